//! Rotary position embeddings: `RotaryEmbedding` of ONNX (opset 23) and of ONNX Runtime.

use super::{BuildCx, Cx, Entry, Ins, Kernel, MS, Outs};
use crate::runtime::value::{Fault, Floats, KResult};
use crate::runtime::walk::count;
use onnx_graft_kernels::Heads;
use onnx_graft_kernels::rotary::{Rotary as Tables, rotary_in_place};

/// Where vectors of heads are in a dense tensor.
#[derive(Clone, Copy)]
pub(crate) struct Layout {
    pub(crate) heads: usize,
    pub(crate) seq: usize,
    pub(crate) dim: usize,
    /// `[b, s, h·d]` rather than `[b, h, s, d]`.
    pub(crate) flat: bool,
}

impl Layout {
    /// Of `[b, h, s, d]`, or of `[b, s, h·d]` with a number of heads.
    pub(crate) fn of(dims: &[usize], heads: i64) -> KResult<Self> {
        match *dims {
            [_, heads, seq, dim] => Ok(Layout {
                heads,
                seq,
                dim,
                flat: false,
            }),
            [_, seq, width] => {
                let heads = usize::try_from(heads)
                    .ok()
                    .filter(|&h| h > 0 && width % h == 0)
                    .ok_or_else(|| Fault(format!("{heads} heads of {width} columns")))?;
                Ok(Layout {
                    heads,
                    seq,
                    dim: width / heads,
                    flat: true,
                })
            }
            _ => Err(Fault(format!(
                "a tensor of shape {dims:?}, expected rank 3 or 4"
            ))),
        }
    }

    /// Where the vectors of `batch` entries are.
    fn vectors(self, batch: usize) -> Heads {
        if self.flat {
            Heads::bshd(batch, self.seq, self.heads, self.dim)
        } else {
            Heads::bhsd(batch, self.seq, self.heads, self.dim)
        }
    }
}

/// Turns the first `2 · half` elements of every vector; `positions` are the rows of the tables for each batch entry and position.
pub(crate) fn rotate(
    x: &mut [f32],
    layout: Layout,
    (cos, sin): (&[f32], &[f32]),
    half: usize,
    interleaved: bool,
    positions: &[usize],
) -> KResult<()> {
    let Some(rows) = cos.len().checked_div(half) else {
        return Ok(());
    };
    let tables = Tables {
        cos,
        sin,
        rows,
        positions: Some(positions),
        width: half,
        dim: 2 * half,
        interleaved,
    };
    let batch = positions.len() / layout.seq.max(1);
    Ok(rotary_in_place(x, layout.vectors(batch), &tables, false)?)
}

struct Rotary {
    heads: i64,
    dim: i64,
    interleaved: bool,
    /// Slots of positions, cosines and sines.
    slots: [usize; 3],
}

impl Kernel for Rotary {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let positions = ins
            .get(self.slots[0])
            .map(|v| (v.dims().to_vec(), v.to_ints()));
        let (cos, sin) = (ins.dense(self.slots[1], cx)?, ins.dense(self.slots[2], cx)?);
        let x = ins.floats(0)?;
        let (dims, dtype) = (x.dims().to_vec(), x.dtype());
        let layout = Layout::of(&dims, self.heads(&dims, &cos))?;
        let (batch, half) = (dims[0], cos.dims().last().copied().unwrap_or(0));
        let table = count(cos.dims())? / half.max(1);
        if 2 * half > layout.dim || cos.dims() != sin.dims() {
            return Err(Fault(format!(
                "tables of {:?} and {:?} for heads of {}",
                cos.dims(),
                sin.dims(),
                layout.dim
            )));
        }
        let rows = rows(positions, cos.dims(), (batch, layout.seq), table)?;
        let mut v = cx.buffer(x)?;
        {
            let (c, s) = (cos.read(), sin.read());
            let tables = (c.slice()?, s.slice()?);
            rotate(&mut v, layout, tables, half, self.interleaved, &rows)?;
        }
        cx.one(v, &dims, dtype)
    }
}

impl Rotary {
    /// A flat tensor without a number of heads has heads of the tables' width, or of the rotated width.
    fn heads(&self, dims: &[usize], cos: &Floats) -> i64 {
        if self.heads > 0 || dims.len() != 3 {
            return self.heads;
        }
        let half = cos.dims().last().copied().unwrap_or(0);
        let dim = if self.dim > 0 {
            self.dim as usize
        } else {
            2 * half
        };
        dims[2].checked_div(dim).map_or(0, |n| n as i64)
    }
}

/// The row of the tables of every batch entry and position.
fn rows(
    positions: Option<(Vec<usize>, KResult<Vec<i64>>)>,
    tables: &[usize],
    (batch, seq): (usize, usize),
    table: usize,
) -> KResult<Vec<usize>> {
    let n = count(&[batch, seq])?;
    let find = |p: i64| super::gather::index_of(p, table);
    match positions {
        None => {
            // Tables per batch entry and position; one entry serves all.
            let per = match *tables {
                [b, s, _] if (b == batch || b == 1) && s == seq => usize::from(b == batch && b > 1),
                [s, _] if s >= seq => 0,
                _ => return Err(Fault(format!("tables of {tables:?} without positions"))),
            };
            Ok((0..n)
                .map(|i| i / seq.max(1) * per * seq + i % seq.max(1))
                .collect())
        }
        Some((dims, values)) => {
            let values = values?;
            match *dims.as_slice() {
                [1] | [] => {
                    let first = values.first().copied().unwrap_or(0);
                    (0..n)
                        .map(|i| find(first + (i % seq.max(1)) as i64))
                        .collect()
                }
                [b, s] if s == seq && (b == batch || b == 1) => (0..n)
                    .map(|i| find(values[i % values.len().max(1)]))
                    .collect(),
                _ => Err(Fault(format!("positions of {dims:?} for {batch} x {seq}"))),
            }
        }
    }
}

fn make(cx: &BuildCx<'_>, slots: [usize; 3]) -> KResult<Box<dyn Kernel>> {
    if cx.flag("is_packed_batching") {
        return Err("is_packed_batching".into());
    }
    Ok(Box::new(Rotary {
        heads: cx.int("num_heads", 0),
        dim: cx.int("rotary_embedding_dim", 0),
        interleaved: cx.flag("interleaved"),
        slots,
    }))
}

pub(super) const KERNELS: &[Entry] = &[
    ("", "RotaryEmbedding", |cx| make(cx, [3, 1, 2])),
    (MS, "RotaryEmbedding", |cx| make(cx, [1, 2, 3])),
];
