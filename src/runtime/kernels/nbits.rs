//! Weights of few bits in blocks: products, the weights themselves, and rows of tables. They stay as they are stored; a panel at a time
//! is widened.

use super::integer::Bytes;
use super::matmul::{Mat, multiply_packed};
use super::{BuildCx, Cx, Entry, Ins, Kernel, MS, OWN, Outs, axis_of, one, size_of};
use crate::ir::DType;
use crate::ops::{FP4, NF4};
use crate::runtime::packed::{Code, Group, Numbers, Packed, Zeros};
use crate::runtime::value::{Fault, KResult, Value, Weight};
use crate::runtime::walk::{self, count};

/// A weight `[n, k]` of 2, 4 or 8 bits in blocks along `k`.
struct NBits {
    k: usize,
    n: usize,
    bits: usize,
    block: usize,
}

impl NBits {
    fn new(cx: &BuildCx<'_>) -> KResult<Self> {
        let it = NBits {
            k: size_of(cx.need_int("K")?)?,
            n: size_of(cx.need_int("N")?)?,
            bits: size_of(cx.int("bits", 4))?,
            block: size_of(cx.need_int("block_size")?)?,
        };
        if !matches!(it.bits, 1 | 2 | 4 | 8)
            || it.block == 0
            || !(it.block * it.bits).is_multiple_of(8)
        {
            return Err(Fault(format!("{} bits in blocks of {}", it.bits, it.block)));
        }
        Ok(it)
    }

    fn zeros(&self, v: Option<Value>) -> KResult<Zeros> {
        match v {
            None => Ok(Zeros::One((1u32 << (self.bits - 1)) as f32)),
            Some(v) if v.dtype().is_float() => Ok(Zeros::Each(Numbers::of(&v)?)),
            Some(v) => {
                let blocks = self.k.div_ceil(self.block);
                Ok(Zeros::Codes(Bytes::of(v)?.shared()?, self.bits, blocks))
            }
        }
    }

    /// The weight: its codes, scales, zero points, and the block of each column where these are out of order.
    fn packed(&self, [b, scales, zeros, order]: [Option<Value>; 4]) -> KResult<Packed> {
        let (Some(b), Some(scales)) = (b, scales) else {
            return Err("the codes or the scales are absent".into());
        };
        let blocks = self.k.div_ceil(self.block);
        let group = match order {
            None => Group::RowBlock(self.block),
            Some(order) => {
                let order = order.to_ints()?;
                let all = order.iter().map(|&g| u32::try_from(g)).collect();
                let all: Result<Vec<u32>, _> = all;
                let all = all.map_err(|_| Fault("a negative group in g_idx".into()))?;
                Group::Ordered(blocks, all.into())
            }
        };
        let code = Code::Low {
            bits: self.bits,
            signed: false,
        };
        let bytes = Bytes::of(b)?.shared()?;
        let zeros = self.zeros(zeros)?;
        let (shape, row) = ([self.n, self.k], blocks * self.block);
        Packed::new(bytes, code, shape, row, group, Numbers::of(&scales)?, zeros)
    }
}

fn optional(ins: &mut Ins, slot: usize) -> KResult<Option<Value>> {
    if ins.has(slot) {
        ins.take(slot).map(Some)
    } else {
        Ok(None)
    }
}

/// `com.microsoft::MatMulNBits(a, b, scales, zeros?, order?, bias?)`.
struct MatMulNBits(NBits);

impl Kernel for MatMulNBits {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let w = &self.0;
        let bias = ins.dense_opt(5, cx)?;
        let mut part = |slot| optional(&mut ins, slot);
        let packed = w.packed([part(1)?, part(2)?, part(3)?, part(4)?])?;
        let x = ins.dense(0, cx)?;
        let read = x.read();
        let mut dims = x.dims().to_vec();
        match dims.last_mut() {
            Some(d) if *d == w.k => *d = w.n,
            _ => return Err(Fault(format!("an input of {:?} for K = {}", x.dims(), w.k))),
        }
        let rows = count(&dims[..dims.len() - 1])?;
        let a = Mat::dense(read.slice()?, rows, w.k);
        let mut out = cx.alloc(count(&dims)?);
        multiply_packed(cx, &mut out, a, &packed, true, 1.0, false)?;
        if let Some(bias) = bias {
            if bias.dims() != [w.n] {
                return Err(Fault(format!(
                    "a bias of {:?} for N = {}",
                    bias.dims(),
                    w.n
                )));
            }
            walk::zip_in_place(&dims, &mut out, &bias.read().view()?, |x, b| x + b);
        }
        cx.one(out, &dims, x.dtype())
    }
}

/// `onnx_graft::DequantizeNBits(b, scales, zeros?, order?)`: the weight of `MatMulNBits`, `[N, K]`.
struct DequantizeNBits(NBits);

impl Kernel for DequantizeNBits {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let w = &self.0;
        let dtype = ins.need(1)?.dtype();
        let mut part = |slot| optional(&mut ins, slot);
        let packed = w.packed([part(0)?, part(1)?, part(2)?, part(3)?])?;
        let dims = vec![w.n, w.k];
        one(Value::Weight(Weight::packed(
            packed, dtype, dims, cx.device,
        )?))
    }

    fn is_view(&self) -> bool {
        true
    }
}

/// `onnx_graft::DequantizeBnb4(b, absmax)`: the weight of `MatMulBnb4`, `[N, K]`, in blocks of the elements in that order.
struct DequantizeBnb4 {
    shape: [usize; 2],
    block: usize,
    table: &'static [f32; 16],
}

impl Kernel for DequantizeBnb4 {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let scales = ins.take(1)?;
        let bytes = Bytes::of(ins.take(0)?)?.shared()?;
        let packed = Packed::new(
            bytes,
            Code::Table(self.table),
            self.shape,
            self.shape[1],
            Group::Flat(self.block),
            Numbers::of(&scales)?,
            Zeros::One(0.0),
        )?;
        let dims = self.shape.to_vec();
        one(Value::Weight(Weight::packed(
            packed,
            scales.dtype(),
            dims,
            cx.device,
        )?))
    }

    fn is_view(&self) -> bool {
        true
    }
}

fn bnb4(cx: &mut BuildCx<'_>) -> KResult<Box<dyn Kernel>> {
    Ok(Box::new(DequantizeBnb4 {
        shape: [size_of(cx.need_int("N")?)?, size_of(cx.need_int("K")?)?],
        block: size_of(cx.need_int("block_size")?)?,
        table: match cx.int("quant_type", 1) {
            0 => &FP4,
            1 => &NF4,
            other => {
                return Err(Fault(format!(
                    "quant_type = {other}, expected 0 (FP4) or 1 (NF4)"
                )));
            }
        },
    }))
}

/// `com.microsoft::GatherBlockQuantized(data, ids, scales, zeros?)`: rows of a quantized table.
struct GatherBlocks {
    bits: usize,
    block: usize,
    gather: i64,
    quantize: i64,
}

impl GatherBlocks {
    /// The table, and its dimensions in elements.
    fn table(
        &self,
        data: Value,
        scales: &Value,
        zeros: Option<Value>,
    ) -> KResult<(Packed, Vec<usize>)> {
        // `u8` holds several numbers a byte; types of four bits are stored like that, and have one an element.
        let dtype = data.dtype();
        let mut dims = data.dims().to_vec();
        let (bits, signed) = match dtype {
            DType::Uint8 => (self.bits, false),
            DType::Int8 => (8, true),
            DType::Uint4 => (4, false),
            DType::Int4 => (4, true),
            other => return Err(Fault(format!("a table of {other}"))),
        };
        if dtype == DType::Uint8
            && let Some(last) = dims.last_mut()
        {
            *last *= 8 / bits;
        }
        let axis = axis_of(self.quantize, dims.len())?;
        let &[first, .., last] = &dims[..] else {
            return Err(Fault(format!("a table of {dims:?}")));
        };
        let all = count(&dims)?;
        let (shape, group) = if axis + 1 == dims.len() {
            let rows = all.checked_div(last).unwrap_or(0);
            ([rows, last], Group::RowBlock(self.block))
        } else if axis == 0 {
            let cols = all.checked_div(first).unwrap_or(0);
            ([first, cols], Group::ColumnBlock(self.block))
        } else {
            return Err(Fault(format!(
                "quantize_axis {} of a table of {dims:?}, expected the first or the last",
                self.quantize
            )));
        };
        let mut want = dims.clone();
        want[axis] = dims[axis].div_ceil(self.block);
        if scales.dims() != want {
            return Err(Fault(format!(
                "scales of {:?}, expected {want:?}",
                scales.dims()
            )));
        }
        let zeros = match zeros {
            None if dtype == DType::Uint8 => Zeros::One((1u32 << (bits - 1)) as f32),
            None => Zeros::One(0.0),
            Some(z) if dtype == DType::Uint8 => {
                let row = want.last().copied().unwrap_or(1);
                Zeros::Codes(Bytes::of(z)?.shared()?, bits, row)
            }
            Some(z) => Zeros::Each(Numbers::of(&z)?),
        };
        let code = Code::Low { bits, signed };
        let bytes = stored(data, bits)?;
        let scales = Numbers::of(scales)?;
        let packed = Packed::new(bytes, code, shape, shape[1], group, scales, zeros)?;
        Ok((packed, dims))
    }
}

/// The packed bytes of a table. One that was converted because it is small has a number of four bits a byte: they are packed again.
fn stored(data: Value, bits: usize) -> KResult<bytes::Bytes> {
    let packs = bits == 4 && data.dtype().bits() == 4;
    let bytes = Bytes::of(data)?;
    match &bytes {
        Bytes::Host(h) if packs => {
            let pair = |p: &[u8]| p[0] & 15 | p.get(1).map_or(0, |x| x << 4);
            Ok(h.bytes()?.chunks(2).map(pair).collect::<Vec<u8>>().into())
        }
        _ => bytes.shared(),
    }
}

impl Kernel for GatherBlocks {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let zeros = optional(&mut ins, 3)?;
        let (scales, ids, data) = (ins.take(2)?, ins.take(1)?, ins.take(0)?);
        let (table, from) = self.table(data, &scales, zeros)?;
        let axis = axis_of(self.gather, from.len())?;
        let inner = count(&from[axis + 1..])?;
        let outer = count(&from[..axis])?;
        let index = ids.to_ints()?;
        let mut dims = from[..axis].to_vec();
        dims.extend_from_slice(ids.dims());
        dims.extend_from_slice(&from[axis + 1..]);
        let mut out = cx.alloc(count(&dims)?);
        let at: Vec<usize> = index
            .iter()
            .map(|&i| super::gather::index_of(i, from[axis]))
            .collect::<KResult<_>>()?;
        let size = from[axis];
        let places = (0..outer).flat_map(|o| at.iter().map(move |i| o * size + i));
        for (o, place) in out.chunks_mut(inner.max(1)).zip(places) {
            table.read(place * inner, o);
        }
        cx.one(out, &dims, scales.dtype())
    }
}

fn gather(cx: &mut BuildCx<'_>) -> KResult<Box<dyn Kernel>> {
    let (bits, block) = (
        size_of(cx.int("bits", 4))?,
        size_of(cx.int("block_size", 128))?,
    );
    if !matches!(bits, 2 | 4 | 8) || block == 0 {
        return Err(Fault(format!("{bits} bits in blocks of {block}")));
    }
    Ok(Box::new(GatherBlocks {
        bits,
        block,
        gather: cx.int("gather_axis", 0),
        quantize: cx.int("quantize_axis", 1),
    }))
}

pub(super) const KERNELS: &[Entry] = &[
    (MS, "MatMulNBits", |cx| {
        Ok(Box::new(MatMulNBits(NBits::new(cx)?)))
    }),
    (MS, "GatherBlockQuantized", gather),
    (OWN, "DequantizeNBits", |cx| {
        Ok(Box::new(DequantizeNBits(NBits::new(cx)?)))
    }),
    (OWN, "DequantizeBnb4", bnb4),
];
