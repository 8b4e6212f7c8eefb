//! Elements of quantized weights, as the floats that they stand for.
//!
//! `DequantizeLinear` with a scale for the whole weight or for each row or column, and `MatMulNBits` with its blocks. What an integer
//! product is scaled by stands elsewhere in the graph, and is not read.

use super::{Sample, positions};
use crate::analyze::linear::{Layout, WeightForm};
use crate::ir::{DType, Graph, TensorData, ValueId};
use crate::select::LinearSite;

/// The elements of a weight `[out, in]` that a name and a size choose.
pub(super) fn sample(site: &LinearSite, name: &str, graph: &Graph) -> Option<Sample> {
    let tensor = |v: ValueId| graph.get_value(v)?.tensor.as_ref();
    let weight = tensor(site.weight.value)?;
    // Columns of a fused weight are numbered from the first of all.
    let first = site.column.unwrap_or(0);
    let dims = vec![site.d_out, site.d_in];
    let whole = match &site.weight.form {
        WeightForm::Dequantized { .. } => usize::try_from(weight.count()?)
            .ok()?
            .checked_div(site.d_in)?,
        WeightForm::Float
        | WeightForm::NBits { .. }
        | WeightForm::Bnb4 { .. }
        | WeightForm::Integer { .. } => site.d_out,
    };
    let mut step = 0f32;
    let mut values = Vec::new();
    for index in positions(name, &dims) {
        let (row, column) = (first + index.first()?, *index.get(1)?);
        let (number, zero, scale) = match &site.weight.form {
            WeightForm::Dequantized { scale, zero_point } => {
                let flat = match site.weight.layout {
                    Layout::OutIn => row * site.d_in + column,
                    Layout::InOut => column * whole + row,
                };
                let scales = tensor(*scale)?;
                let along = |t: &TensorData| match usize::try_from(t.count()?).ok()? {
                    1 => Some(0),
                    n if n == whole => Some(row),
                    n if n == site.d_in => Some(column),
                    _ => None,
                };
                let scale = *scales.floats_at(&[along(scales)?])?.first()?;
                let zero = match zero_point {
                    Some(v) => integer(tensor(*v)?, along(tensor(*v)?)?)?,
                    None => 0.0,
                };
                (integer(weight, flat)?, zero, scale)
            }
            WeightForm::NBits { .. } => blocked(site, weight, (row, column), graph)?,
            WeightForm::Float | WeightForm::Bnb4 { .. } | WeightForm::Integer { .. } => {
                return None;
            }
        };
        step = step.max(scale.abs());
        values.push((number - zero) * scale);
    }
    Some(Sample {
        dtype: weight.dtype,
        dims,
        values,
        step: Some(step),
    })
}

/// A number of `MatMulNBits`, with its zero point and its scale.
fn blocked(
    site: &LinearSite,
    weight: &TensorData,
    (row, column): (usize, usize),
    graph: &Graph,
) -> Option<(f32, f32, f32)> {
    let WeightForm::NBits {
        scales,
        zero_points,
        bits,
        block_size,
    } = &site.weight.form
    else {
        return None;
    };
    let tensor = |v: ValueId| graph.get_value(v)?.tensor.as_ref();
    let bits = usize::try_from(*bits).ok()?;
    let size = usize::try_from(*block_size).ok().filter(|s| *s > 0)?;
    let blocks = site.d_in.div_ceil(size);
    let (block, at) = (row * blocks + column / size, column % size);
    let scale = *tensor(*scales)?.floats_at(&[block])?.first()?;
    let zero = match zero_points {
        None => (1u32 << bits.checked_sub(1)?) as f32,
        Some(v) => zero(tensor(*v)?, bits, block, (row, column / size, blocks))?,
    };
    let number = packed(&weight.bytes()?, bits, block * (size * bits / 8), at)?;
    Some((number, zero, scale))
}

/// The zero point of a block: a float, or a number packed by rows.
fn zero(
    tensor: &TensorData,
    bits: usize,
    block: usize,
    (row, column, blocks): (usize, usize, usize),
) -> Option<f32> {
    if tensor.dtype.is_float() {
        return tensor.floats_at(&[block])?.first().copied();
    }
    let width = (blocks * bits).div_ceil(8);
    packed(&tensor.bytes()?, bits, row * width, column)
}

/// A number of 4 or 8 bits, the low half of a byte first.
fn packed(bytes: &[u8], bits: usize, begin: usize, at: usize) -> Option<f32> {
    let byte = *bytes.get(begin + at * bits / 8)?;
    match bits {
        8 => Some(f32::from(byte)),
        4 => Some(f32::from(if at.is_multiple_of(2) {
            byte & 15
        } else {
            byte >> 4
        })),
        _ => None,
    }
}

fn integer(tensor: &TensorData, at: usize) -> Option<f32> {
    let byte = *tensor.bytes()?.get(at)?;
    match tensor.dtype {
        DType::Int8 => Some(f32::from(byte as i8)),
        DType::Uint8 => Some(f32::from(byte)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use crate::adapters::Adapter;
    use crate::adapters::Config;
    use crate::adapters::base::Base;
    use crate::infer::Verified;
    use crate::ir::text::parse;
    use crate::rewrite::passes::testing::{DECODER, sites};

    /// The decoder, whose projection of queries is eight-bit numbers and a scale; or the floats that these stand for.
    fn decoder(number: i32, quantized: bool) -> Verified {
        let float = format!("init %q.weight: f32[4, 4] = fill({})", number as f32 * 0.5);
        let stored = format!(
            "init %q.int: i8[4, 4] = fill({number})\n          init %q.scale: f32[4] = fill(0.5)"
        );
        let node = "%q = MatMul(%x, %q.weight)";
        let opened = format!(
            "%q.weight = DequantizeLinear(%q.int, %q.scale) {{axis = 1}}  // /model/layers.0/self_attn/q_proj/DequantizeLinear\n          {node}"
        );
        let plain = "init %q.weight: f32[4, 4] = fill(0.5)";
        let text = if quantized {
            DECODER.replace(plain, &stored).replace(node, &opened)
        } else {
            DECODER.replace(plain, &float)
        };
        Verified::check(parse(&text).unwrap()).unwrap()
    }

    fn base(model: &Verified) -> Base {
        Base::of(&sites(model), model)
    }

    #[test]
    fn what_is_quantized_is_the_same_base_model_and_another_one_is_not() {
        let (float, quantized) = (decoder(3, false), decoder(3, true));
        assert!(!base(&float).has_other_weights(&base(&quantized)));
        assert!(!base(&quantized).has_other_weights(&base(&float)));
        for other in [decoder(9, true), decoder(9, false)] {
            assert!(base(&quantized).has_other_weights(&base(&other)));
            let mut adapter = Adapter::fresh("a", Config::parse("lora").unwrap());
            adapter.base = base(&quantized);
            let found = adapter.base.differs(&adapter, &sites(&other), &other);
            assert_eq!(found.unwrap().code, "base-differs");
        }
    }

    #[test]
    fn a_file_keeps_the_step() {
        let base = base(&decoder(3, true));
        let mut extra = serde_json::Map::new();
        base.record(&mut extra);
        assert!(extra["onnx_graft"].to_string().contains("~3f000000 "));
        assert_eq!(Base::recorded(&extra), base);
        assert!(Base::garbled(&extra).is_none());
    }
}
