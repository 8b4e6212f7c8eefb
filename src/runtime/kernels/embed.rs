//! `com.microsoft::EmbedLayerNormalization`: word, position and segment embeddings, summed and normalized.

use super::{BuildCx, Cx, Entry, Ins, Kernel, MS, Outs};
use crate::ir::DType;
use crate::runtime::value::{Fault, Host, KResult, Value};
use crate::runtime::walk::count;
use onnx_graft_kernels::norm::{LayerNorm, layer_norm};

/// `(ids, segments?, words, positions, segment table?, gamma, beta, mask?, position ids?) -> (y, mask index, sum?)`.
struct Embed {
    eps: f32,
    wants_sum: bool,
}

impl Kernel for Embed {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let positions = ins.ints_opt(8)?;
        let mask = ins.get(7).map(|m| (m.dims().to_vec(), m.to_ints()));
        let (beta, gamma) = (ins.dense(6, cx)?, ins.dense(5, cx)?);
        let segments = ins.ints_opt(1)?;
        let ids = ins.take(0)?;
        let [batch, seq] = *ids.dims() else {
            return Err(Fault(format!("ids of {:?}", ids.dims())));
        };
        let n = count(&[batch, seq])?;
        let width = ins.need(2)?.dims().last().copied().unwrap_or(0);
        let words = ids.to_ints()?;
        let places: Vec<i64> = match positions {
            Some(p) if p.len() == n => p,
            Some(p) if p.len() == seq => (0..n).map(|i| p[i % seq]).collect(),
            Some(p) => return Err(Fault(format!("{} positions for {batch} x {seq}", p.len()))),
            None => (0..n).map(|i| (i % seq.max(1)) as i64).collect(),
        };
        let mut sum = cx.zeros(count(&[n, width])?);
        add(ins.take(2)?, &words, width, &mut sum)?;
        add(ins.take(3)?, &places, width, &mut sum)?;
        if let (Some(s), true) = (segments, ins.has(4)) {
            add(ins.take(4)?, &s, width, &mut sum)?;
        }
        let dims = [batch, seq, width];
        let (g, b) = (gamma.read(), beta.read());
        let (g, b) = (g.slice()?, b.slice()?);
        if g.len() != width || b.len() != width {
            return Err(Fault(format!("a scale of {} for rows of {width}", g.len())));
        }
        let mut outs: Outs = vec![None, None, None];
        if self.wants_sum {
            let mut copy = cx.alloc(sum.len());
            copy.copy_from_slice(&sum);
            outs[2] = Some(cx.floats(copy, &dims, DType::Float)?.into());
        }
        let norm = LayerNorm {
            cols: width,
            weight: Some(g),
            bias: Some(b),
            eps: self.eps,
            center: true,
        };
        layer_norm(&mut sum, &norm, None)?;
        outs[0] = Some(cx.floats(sum, &dims, DType::Float)?.into());
        let counts = match mask {
            Some((d, values)) if d == [batch, seq] => {
                let values = values?;
                (0..batch)
                    .map(|b| {
                        values[b * seq..(b + 1) * seq]
                            .iter()
                            .filter(|&&x| x != 0)
                            .count() as i64
                    })
                    .collect()
            }
            _ => vec![0; batch],
        };
        outs[1] = Some(Host::from_ints(DType::Int32, vec![batch], counts)?.into());
        Ok(outs)
    }
}

/// Adds rows of a table, which may stay in the file.
fn add(table: Value, ids: &[i64], width: usize, sum: &mut [f32]) -> KResult<()> {
    let [rows, w] = *table.dims() else {
        return Err(Fault(format!("a table of {:?}", table.dims())));
    };
    if w != width || width == 0 || ids.len() * width != sum.len() {
        return Err(Fault(format!(
            "a table of {:?} for rows of {width}",
            table.dims()
        )));
    }
    let mut row = vec![0.0; width];
    let held = match &table {
        Value::Weight(w) if w.has_rows() => None,
        v => Some(v.to_f32()?),
    };
    for (out, &id) in sum.chunks_mut(width).zip(ids) {
        let i = super::gather::index_of(id, rows)?;
        let r = match (&held, &table) {
            (Some(h), _) => &h[i * width..(i + 1) * width],
            (None, Value::Weight(w)) => {
                w.read_f32(i * width, &mut row)?;
                &row
            }
            _ => return Err("a table of floats".into()),
        };
        out.iter_mut().zip(r).for_each(|(o, &x)| *o += x);
    }
    Ok(())
}

fn make(cx: &mut BuildCx<'_>) -> KResult<Box<dyn Kernel>> {
    Ok(Box::new(Embed {
        eps: cx.float("epsilon", 1e-12),
        wants_sum: cx.wants(2),
    }))
}

pub(super) const KERNELS: &[Entry] = &[(MS, "EmbedLayerNormalization", make)];
