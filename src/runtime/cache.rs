//! Tensors that grow along one axis without being copied each time.

use super::value::{Fault, Floats, KResult, Value};
use crate::ir::DType;
use candle_core::Tensor;

/// Axis of positions.
const AXIS: usize = 2;

/// What is cached of one attention: `[batch, heads, positions, head]`, with room behind the last position.
#[derive(Debug, Default)]
pub(crate) struct Grown {
    tensor: Option<Tensor>,
    dtype: Option<DType>,
    len: usize,
}

impl Grown {
    /// Nothing yet.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Puts positions behind the others. Room is doubled when there is none left, so that all appends together copy each position a
    /// bounded number of times.
    pub(crate) fn append(&mut self, value: &Value) -> KResult<()> {
        let Value::Float(new) = value else {
            return Err(Fault(format!("{} cannot be cached", value.dtype())));
        };
        let new_tensor = new.to_candle().contiguous()?;
        let dims = new_tensor.dims().to_vec();
        if dims.len() != 4 {
            return Err(Fault(format!("{dims:?} is no cache of keys or values")));
        }
        let more = dims[AXIS];
        let room = self.tensor.as_ref().map_or(0, |t| t.dims()[AXIS]);
        if self.len + more > room {
            let mut wide = dims;
            wide[AXIS] = (self.len + more).max(2 * room).next_multiple_of(64);
            let tensor = Tensor::zeros(wide, new_tensor.dtype(), new_tensor.device())?;
            if let Some(old) = self.tensor.as_ref().filter(|_| self.len > 0) {
                tensor.slice_set(&old.narrow(AXIS, 0, self.len)?.contiguous()?, AXIS, 0)?;
            }
            self.tensor = Some(tensor);
            self.dtype = Some(new.dtype());
        }
        if let Some(tensor) = self.tensor.as_ref().filter(|_| more > 0) {
            tensor.slice_set(&new_tensor, AXIS, self.len)?;
        }
        self.len += more;
        Ok(())
    }

    /// Number of positions.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Forgets the positions behind the first so many.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// All positions, as a view.
    pub(crate) fn value(&self) -> KResult<Value> {
        let (Some(tensor), Some(dtype)) = (&self.tensor, self.dtype) else {
            return Err("nothing is cached".into());
        };
        let view = Floats::from_candle(tensor.narrow(AXIS, 0, self.len)?)?;
        Ok(Value::Float(view.tagged(dtype)))
    }
}

/// The first positions of a cache that a graph keeps itself, which is a tensor of the same axes.
pub(crate) fn first_positions(value: &Value, len: usize) -> KResult<Value> {
    let Value::Float(all) = value else {
        return Err(Fault(format!("{} is no cache", value.dtype())));
    };
    let dtype = all.dtype();
    let tensor = all.to_candle().narrow(AXIS, 0, len)?.contiguous()?;
    Ok(Value::Float(Floats::from_candle(tensor)?.tagged(dtype)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_appended_is_there_in_order() {
        let mut grown = Grown::new();
        let mut all = Vec::new();
        for step in 0..70u16 {
            let x = f32::from(step);
            grown
                .append(&Value::from_f32(&[1, 2, 1, 1], vec![x, -x]).unwrap())
                .unwrap();
            all.push(x);
        }
        let value = grown.value().unwrap();
        assert_eq!(value.dims(), [1, 2, 70, 1]);
        let found = value.to_f32().unwrap();
        assert_eq!(found[..70], all);
        assert_eq!(found[70..], all.iter().map(|x| -x).collect::<Vec<_>>());
        grown.truncate(2);
        grown
            .append(&Value::from_f32(&[1, 2, 1, 1], vec![9.0, -9.0]).unwrap())
            .unwrap();
        let value = grown.value().unwrap();
        let expected = [0.0, 1.0, 9.0, -0.0, -1.0, -9.0];
        assert_eq!(value.to_f32().unwrap()[..], expected);
        let first = first_positions(&value, 1).unwrap();
        assert_eq!(first.dims(), [1, 2, 1, 1]);
        assert_eq!(first.to_f32().unwrap()[..], [0.0, -0.0]);
    }
}
