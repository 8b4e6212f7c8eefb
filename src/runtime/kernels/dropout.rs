//! `Dropout(x, ratio?, training?) -> (y, mask?)`: the identity, unless the plan runs with a seed and the node is in training mode.
//!
//! `onnx_graft::Dropout(x[1, t, …], ratio, training, tokens[1, t])` draws for tokens what the first draws for the batch that they are of.
//!
//! The mask is a function of the run's seed, the node's name and the element's index: independent of threads and device.

use super::{BuildCx, Cx, Entry, Ins, Kernel, OWN, Outs};
use crate::draw;
use crate::ir::contract::stamp;
use crate::runtime::value::{Host, KResult, Value};
use crate::runtime::walk;

struct Dropout {
    /// Hash of the node's name and its `seed` attribute.
    key: u64,
    ratio: f32,
    wants_mask: bool,
}

/// A number in [0, 1) for each element.
pub(super) fn uniform(seed: u64, i: u64) -> f32 {
    (draw::at(seed, i) >> 40) as f32 / (1u32 << 24) as f32
}

impl Kernel for Dropout {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let ratio = if ins.has(1) {
            ins.scalar(1)?
        } else {
            self.ratio
        };
        let training = ins.ints_opt(2)?.is_some_and(|v| v.first() == Some(&1));
        let places = ins.ints_opt(3)?;
        let x = ins.take(0)?;
        let dims = x.dims().to_vec();
        let n = crate::runtime::walk::count(&dims)?;
        let seed = match cx.random {
            Some(seed) if training && ratio > 0.0 => seed ^ self.key,
            _ => {
                let mask = self
                    .wants_mask
                    .then(|| Host::from_bools(dims, vec![1; n]))
                    .transpose()?;
                return Ok(vec![Some(x), mask.map(Value::Host)]);
            }
        };
        let x = super::to_floats(x, 0)?;
        let dtype = x.dtype();
        let width = match &places {
            Some(places) if n > 0 => n / places.len().max(1),
            _ => 1,
        };
        // The element's index in the batch.
        let index = |i: usize| match &places {
            Some(places) => {
                places.get(i / width).map_or(0, |at| *at as u64) * width as u64 + (i % width) as u64
            }
            None => i as u64,
        };
        let keep = |i: usize| uniform(seed, index(i)) >= ratio;
        let scale = if ratio < 1.0 {
            1.0 / (1.0 - ratio)
        } else {
            0.0
        };
        let mut v = cx.buffer(x)?;
        walk::rows(&mut v, walk::TASK.min(n.max(1)), |r, row| {
            let first = r * walk::TASK.min(n.max(1));
            for (j, x) in row.iter_mut().enumerate() {
                *x = if keep(first + j) { *x * scale } else { 0.0 };
            }
        });
        let y = cx.floats(v, &dims, dtype)?;
        let mask = if self.wants_mask {
            let mask = (0..n).map(|i| u8::from(keep(i))).collect();
            Some(Value::Host(Host::from_bools(dims, mask)?))
        } else {
            None
        };
        Ok(vec![Some(y.into()), mask])
    }

    fn pure(&self) -> bool {
        false
    }
}

fn make(cx: &mut BuildCx<'_>) -> KResult<Box<dyn Kernel>> {
    // FNV-1a: stable across builds, unlike the standard library's hash.
    let seed = cx.int("seed", 0).to_le_bytes();
    let name = cx
        .node
        .metadata
        .get(stamp::DRAWS_AS)
        .unwrap_or(&cx.node.name);
    let key = name
        .bytes()
        .chain(seed)
        .fold(0xCBF2_9CE4_8422_2325u64, |h, b| {
            (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01B3)
        });
    Ok(Box::new(Dropout {
        key,
        ratio: cx.float("ratio", 0.5),
        wants_mask: cx.wants(1),
    }))
}

pub(super) const KERNELS: &[Entry] = &[("", "Dropout", make), (OWN, "Dropout", make)];
