//! `QuantizeLinear`, `DequantizeLinear`, `DynamicQuantizeLinear`. A constant that is dequantized stays the small integers it is stored
//! as: what reads it widens the rows it needs.

use super::{Cx, Entry, Ins, Kernel, Outs, axis_of, one};
use crate::ir::DType;
use crate::ops::code_range;
use crate::runtime::packed::{Code, Group, Numbers, Packed, Zeros};
use crate::runtime::value::{Fault, Host, KResult, Value, Weight};
use crate::runtime::walk::{self, count};
use onnx_graft_kernels::team;

/// The range of a quantized type.
fn range(dtype: DType) -> KResult<(f32, f32)> {
    code_range(dtype).ok_or_else(|| {
        Fault(format!(
            "{dtype} is no quantized type that is computed with"
        ))
    })
}

/// Which scale an element has: one for all, one for each position of an axis, or one for each block along it.
struct Grid {
    inner: usize,
    len: usize,
    block: usize,
    scales: usize,
}

impl Grid {
    fn new(dims: &[usize], scale: &[usize], axis: i64, block: i64) -> KResult<Self> {
        let n = count(scale)?;
        let bad = || Fault(format!("scales of {scale:?} for {dims:?}"));
        if n == 1 && block == 0 {
            return Ok(Grid {
                inner: 1,
                len: 1,
                block: 1,
                scales: 0,
            });
        }
        let axis = axis_of(axis, dims.len())?;
        let (len, inner) = (dims[axis], count(&dims[axis + 1..])?);
        if block > 0 {
            let block = block as usize;
            let mut want = dims.to_vec();
            want[axis] = len.div_ceil(block);
            if want != scale {
                return Err(bad());
            }
            return Ok(Grid {
                inner,
                len,
                block,
                scales: want[axis],
            });
        }
        if n != len {
            return Err(bad());
        }
        Ok(Grid {
            inner,
            len,
            block: 0,
            scales: len,
        })
    }

    /// Index of the scale of the i-th element.
    fn at(&self, i: usize) -> usize {
        if self.scales == 0 {
            return 0;
        }
        let a = i / self.inner % self.len;
        if self.block == 0 {
            return a;
        }
        let outer = i / self.inner / self.len;
        (outer * self.scales + a / self.block) * self.inner + i % self.inner
    }
}

/// `DequantizeLinear(x, scale, zero?)`.
struct Dequantize {
    axis: i64,
    block: i64,
    to: DType,
}

impl Dequantize {
    /// A constant as the codes it is stored as; `None` where only all of its elements can be had.
    fn packed(&self, cx: &Cx<'_>, ins: &Ins) -> KResult<Option<Weight>> {
        let (Value::Weight(x), scale) = (ins.need(0)?, ins.need(1)?) else {
            return Ok(None);
        };
        let dims = x.dims().to_vec();
        let (Some(bytes), Some(code)) = (x.shared(), code(x.dtype())) else {
            return Ok(None);
        };
        let [first, .., last] = dims[..] else {
            return Ok(None);
        };
        let (n, rank) = (count(scale.dims())?, dims.len());
        let axis = axis_of(self.axis, rank);
        let one = n == 1 && self.block == 0;
        let block = usize::try_from(self.block).unwrap_or(0);
        let all = count(&dims)?;
        let by_rows = [first, all.checked_div(first).unwrap_or(0)];
        let by_last = [all.checked_div(last).unwrap_or(0), last];
        let (shape, group) = match axis {
            _ if one => (by_rows, Group::One),
            Ok(0) if block == 0 => (by_rows, Group::Row),
            Ok(0) => (by_rows, Group::ColumnBlock(block)),
            Ok(a) if a + 1 == rank && block == 0 => (by_last, Group::Column),
            Ok(a) if a + 1 == rank => (by_last, Group::RowBlock(block)),
            _ => return Ok(None),
        };
        let zeros = match ins.get(2) {
            None => Zeros::One(0.0),
            Some(z) => {
                let z: Vec<f32> = z.to_ints()?.iter().map(|&z| z as f32).collect();
                match z[..] {
                    [z] => Zeros::One(z),
                    _ => Zeros::Each(Numbers::Held(z.into())),
                }
            }
        };
        let to = if self.to == DType::Undefined {
            scale.dtype()
        } else {
            self.to
        };
        let packed = Packed::new(
            bytes,
            code,
            shape,
            shape[1],
            group,
            Numbers::of(scale)?,
            zeros,
        )?;
        Weight::packed(packed, to, dims, cx.device).map(Some)
    }
}

/// How elements of a type are stored in a file.
fn code(dtype: DType) -> Option<Code> {
    let low = |signed| Code::Low {
        bits: dtype.bits() as usize,
        signed,
    };
    Some(match dtype {
        DType::Uint8 => Code::Byte { signed: false },
        DType::Int8 => Code::Byte { signed: true },
        DType::Uint4 | DType::Uint2 => low(false),
        DType::Int4 | DType::Int2 => low(true),
        _ => return None,
    })
}

impl Kernel for Dequantize {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        if let Some(packed) = self.packed(cx, &ins)? {
            return one(Value::Weight(packed));
        }
        let zero = ins.ints_opt(2)?;
        let scale = ins.dense(1, cx)?;
        let x = ins.host(0)?;
        let dims = x.dims().to_vec();
        let grid = Grid::new(&dims, scale.dims(), self.axis, self.block)?;
        let scales = scale.to_vec()?;
        if zero.as_ref().is_some_and(|z| z.len() != scales.len()) {
            return Err("scale and zero point differ in size".into());
        }
        let x = x.ints()?;
        let mut out = cx.alloc(count(&dims)?);
        let parts = out.chunks_mut(walk::TASK).zip(x.chunks(walk::TASK));
        team::each(parts.enumerate(), |(c, (out, x))| {
            for (j, (o, &x)) in out.iter_mut().zip(x).enumerate() {
                let g = grid.at(c * walk::TASK + j);
                let z = zero.as_ref().map_or(0, |z| z[g]);
                *o = (x - z) as f32 * scales[g];
            }
        });
        let to = if self.to == DType::Undefined {
            scale.dtype()
        } else {
            self.to
        };
        let out = cx.floats(out, &dims, DType::Float)?;
        let out = super::cast::on_device(cx, out)?;
        one(super::cast::cast(cx, Value::Float(out), to)?)
    }

    /// Of a constant that is large enough to matter.
    fn is_view(&self) -> bool {
        true
    }
}

/// `QuantizeLinear(x, scale, zero?)`: rounds half to even, saturates.
struct Quantize {
    axis: i64,
    block: i64,
    to: DType,
}

impl Kernel for Quantize {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let to = ins.get(2).map_or(self.to, Value::dtype);
        let (lo, hi) = range(to)?;
        let zero = ins.ints_opt(2)?;
        let scale = ins.dense(1, cx)?;
        let shape = scale.dims().to_vec();
        let scale = scale.to_vec()?;
        let x = ins.dense(0, cx)?;
        let dims = x.dims().to_vec();
        let grid = Grid::new(&dims, &shape, self.axis, self.block)?;
        if zero.as_ref().is_some_and(|z| z.len() != scale.len()) {
            return Err("scale and zero point differ in size".into());
        }
        let read = x.read();
        let out = read
            .slice()?
            .iter()
            .enumerate()
            .map(|(i, &x)| {
                let g = grid.at(i);
                let z = zero.as_ref().map_or(0, |z| z[g]);
                ((x / scale[g]).round_ties_even() + z as f32).clamp(lo, hi) as i64
            })
            .collect();
        one(Host::from_ints(to, dims, out)?)
    }
}

/// `DynamicQuantizeLinear(x) -> (y, scale, zero)`, to `u8` over the range of `x` with 0 in it.
struct Dynamic;

impl Kernel for Dynamic {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let x = ins.dense(0, cx)?;
        let dims = x.dims().to_vec();
        let read = x.read();
        let src = read.slice()?;
        let (lo, hi) = src
            .iter()
            .fold((0f32, 0f32), |(a, b), &x| (a.min(x), b.max(x)));
        let scale = (hi - lo) / 255.0;
        // As onnxruntime has it: what is zero everywhere has a scale all the same.
        let scale = if scale == 0.0 { 1.0 } else { scale };
        let zero = (-lo / scale).round_ties_even().clamp(0.0, 255.0);
        let mut out = vec![0u8; src.len()];
        let parts = out.chunks_mut(walk::TASK).zip(src.chunks(walk::TASK));
        team::each(parts, |(o, x)| {
            for (o, &x) in o.iter_mut().zip(x) {
                *o = ((x / scale).round_ties_even() + zero).clamp(0.0, 255.0) as u8;
            }
        });
        let y = Host::new(DType::Uint8, dims, crate::runtime::value::Data::U8(out))?;
        let scale = cx.floats(vec![scale], &[], DType::Float)?;
        let zero = Host::from_ints(DType::Uint8, Vec::new(), vec![zero as i64])?;
        Ok(vec![Some(y.into()), Some(scale.into()), Some(zero.into())])
    }
}

pub(super) const KERNELS: &[Entry] = &[
    ("", "DequantizeLinear", |cx| {
        Ok(Box::new(Dequantize {
            axis: cx.int("axis", 1),
            block: cx.int("block_size", 0),
            to: cx.dtype("output_dtype", DType::Undefined)?,
        }))
    }),
    ("", "QuantizeLinear", |cx| {
        let to = cx.dtype("output_dtype", DType::Uint8)?;
        Ok(Box::new(Quantize {
            axis: cx.int("axis", 1),
            block: cx.int("block_size", 0),
            to: if to == DType::Undefined {
                DType::Uint8
            } else {
                to
            },
        }))
    }),
    ("", "DynamicQuantizeLinear", |_| Ok(Box::new(Dynamic))),
];
