//! Quantized operators: integers in, exact integer sums, floats out. Weights stay quantized; a panel at a time is widened.

use super::matmul::{Mat, multiply};
use super::{BuildCx, Cx, Entry, Ins, Kernel, MS, OWN, Outs, axis_of, one, plain, size_of};
use crate::ir::DType;
use crate::runtime::value::{Fault, Floats, Host, KResult, Value};
use crate::runtime::walk::{self, count};
use rayon::prelude::*;

/// Elements of a weight that are widened at a time.
const PANEL: usize = 1 << 20;

/// The range of a quantized type.
fn range(dtype: DType) -> KResult<(f32, f32)> {
    Ok(match dtype {
        DType::Uint8 => (0.0, 255.0),
        DType::Int8 => (-128.0, 127.0),
        DType::Uint16 => (0.0, 65535.0),
        DType::Int16 => (-32768.0, 32767.0),
        DType::Uint4 => (0.0, 15.0),
        DType::Int4 => (-8.0, 7.0),
        other => {
            return Err(Fault(format!(
                "{other} is no quantized type that is computed with"
            )));
        }
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
}

impl Kernel for Dequantize {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let zero = ins.ints_opt(2)?;
        let scale = ins.dense(1, cx)?;
        let x = ins.host(0)?;
        let dims = x.dims().to_vec();
        let grid = Grid::new(&dims, scale.dims(), self.axis, self.block)?;
        let read = scale.read();
        let s = read.slice()?;
        if zero.as_ref().is_some_and(|z| z.len() != s.len()) {
            return Err("scale and zero point differ in size".into());
        }
        let mut out = cx.alloc(count(&dims)?);
        let put = |from: usize, out: &mut [f32], get: &dyn Fn(usize) -> i64| {
            for (j, o) in out.iter_mut().enumerate() {
                let i = from + j;
                let g = grid.at(i);
                let z = zero.as_ref().map_or(0, |z| z[g]);
                *o = (get(i) - z) as f32 * s[g];
            }
        };
        let signed = matches!(x.dtype(), DType::Int8 | DType::Int4);
        let bytes = x.bytes().ok();
        let wide = if bytes.is_some() {
            None
        } else {
            Some(x.ints()?)
        };
        let get = |i: usize| match (bytes, &wide) {
            (Some(b), _) if signed => i64::from(b[i] as i8),
            (Some(b), _) => i64::from(b[i]),
            (None, Some(w)) => w[i],
            (None, None) => 0,
        };
        out.par_chunks_mut(walk::TASK)
            .enumerate()
            .for_each(|(c, o)| put(c * walk::TASK, o, &get));
        cx.one(out, &dims, scale.dtype())
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
        let step = if scale == 0.0 { 1.0 } else { scale };
        let zero = (-lo / step).round_ties_even().clamp(0.0, 255.0);
        let mut out = vec![0u8; src.len()];
        out.par_chunks_mut(walk::TASK)
            .zip(src.par_chunks(walk::TASK))
            .for_each(|(o, x)| {
                for (o, &x) in o.iter_mut().zip(x) {
                    *o = ((x / step).round_ties_even() + zero).clamp(0.0, 255.0) as u8;
                }
            });
        let y = Host::new(DType::Uint8, dims, crate::runtime::value::Data::U8(out))?;
        let scale = cx.floats(vec![scale], &[], DType::Float)?;
        let zero = Host::from_ints(DType::Uint8, Vec::new(), vec![zero as i64])?;
        Ok(vec![Some(y.into()), Some(scale.into()), Some(zero.into())])
    }
}

/// Bytes of an 8-bit operand, from the file where they are there.
enum Bytes {
    File(crate::runtime::value::Weight),
    Host(Host),
}

impl Bytes {
    fn of(v: Value) -> KResult<Self> {
        match v {
            Value::Weight(w) if w.bytes().is_some() => Ok(Bytes::File(w)),
            v => match plain(v)? {
                Value::Host(h) => Ok(Bytes::Host(h)),
                v => Err(Fault(format!(
                    "found {}, expected 8-bit integers",
                    v.dtype()
                ))),
            },
        }
    }

    fn get(&self) -> KResult<&[u8]> {
        match self {
            Bytes::File(w) => w.bytes().ok_or_else(|| "a permuted weight".into()),
            Bytes::Host(h) => h.bytes(),
        }
    }
}

/// `MatMulInteger(a, b, a zero?, b zero?) -> i32`; b of rank 2.
struct MatMulInteger;

impl Kernel for MatMulInteger {
    fn run(&self, _: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let (za, zb) = (ins.ints_opt(2)?, ins.ints_opt(3)?);
        let (a, b) = (ins.take(0)?, ins.take(1)?);
        let (da, db) = (a.dims().to_vec(), b.dims().to_vec());
        let ([lead @ .., k], [kb, n]) = (&da[..], &db[..]) else {
            return Err(Fault(format!("a product of {da:?} and {db:?}")));
        };
        if k != kb {
            return Err(Fault(format!("a product of {da:?} and {db:?}")));
        }
        let (k, n, rows) = (*k, *n, count(lead)?);
        let (signed_a, signed_b) = (a.dtype() == DType::Int8, b.dtype() == DType::Int8);
        let (a, b) = (Bytes::of(a)?, Bytes::of(b)?);
        let (x, w) = (a.get()?, b.get()?);
        if x.len() != rows * k || w.len() != k * n {
            return Err("operands of 8 bits are expected".into());
        }
        let za = za.unwrap_or_else(|| vec![0]);
        let zb = zb.unwrap_or_else(|| vec![0]);
        if !(za.len() == 1 || za.len() == rows) || !(zb.len() == 1 || zb.len() == n) {
            return Err(Fault(format!("{} and {} zero points", za.len(), zb.len())));
        }
        let wide = |b: u8, signed: bool| {
            if signed {
                i32::from(b as i8)
            } else {
                i32::from(b)
            }
        };
        let mut out = vec![0i64; rows * n];
        if n > 0 {
            out.par_chunks_mut(n).enumerate().for_each(|(i, o)| {
                let z = za[if za.len() == 1 { 0 } else { i }] as i32;
                let mut sums = vec![0i32; n];
                let mut total = 0i32;
                for p in 0..k {
                    let l = wide(x[i * k + p], signed_a) - z;
                    total = total.wrapping_add(l);
                    if l == 0 {
                        continue;
                    }
                    let row = &w[p * n..(p + 1) * n];
                    if signed_b {
                        for (s, &b) in sums.iter_mut().zip(row) {
                            *s = s.wrapping_add(l * i32::from(b as i8));
                        }
                    } else {
                        for (s, &b) in sums.iter_mut().zip(row) {
                            *s = s.wrapping_add(l * i32::from(b));
                        }
                    }
                }
                for (j, (o, s)) in o.iter_mut().zip(sums).enumerate() {
                    let z = zb[if zb.len() == 1 { 0 } else { j }] as i32;
                    *o = i64::from(s.wrapping_sub(z.wrapping_mul(total)));
                }
            });
        }
        let mut dims = lead.to_vec();
        dims.push(n);
        one(Host::from_ints(DType::Int32, dims, out)?)
    }
}

/// A weight `[n, k]` of 2, 4 or 8 bits in blocks along `k`.
struct NBits {
    k: usize,
    n: usize,
    bits: usize,
    block: usize,
}

/// Zero points of the blocks.
enum Zeros {
    Middle(f32),
    Packed(Vec<u8>),
    Floats(Vec<f32>),
}

impl NBits {
    fn new(cx: &BuildCx<'_>) -> KResult<Self> {
        let it = NBits {
            k: size_of(cx.need_int("K")?)?,
            n: size_of(cx.need_int("N")?)?,
            bits: size_of(cx.int("bits", 4))?,
            block: size_of(cx.need_int("block_size")?)?,
        };
        if !matches!(it.bits, 2 | 4 | 8) || it.block == 0 || !(it.block * it.bits).is_multiple_of(8)
        {
            return Err(Fault(format!("{} bits in blocks of {}", it.bits, it.block)));
        }
        Ok(it)
    }

    fn blocks(&self) -> usize {
        self.k.div_ceil(self.block)
    }

    /// Bytes of the zero points of one row.
    fn zero_row(&self) -> usize {
        (self.blocks() * self.bits).div_ceil(8)
    }

    fn zeros(&self, v: Option<Value>) -> KResult<Zeros> {
        let zeros = match v {
            None => return Ok(Zeros::Middle((1u32 << (self.bits - 1)) as f32)),
            Some(v) if v.dtype().is_float() => Zeros::Floats(v.to_f32()?),
            Some(v) => Zeros::Packed(Bytes::of(v)?.get()?.to_vec()),
        };
        let fits = match &zeros {
            Zeros::Floats(v) => v.len() == self.n * self.blocks(),
            Zeros::Packed(v) => v.len() == self.n * self.zero_row(),
            Zeros::Middle(_) => true,
        };
        if fits {
            Ok(zeros)
        } else {
            Err("the zero points do not fit K, N and block_size".into())
        }
    }

    /// The i-th number of a packed row, from the low bits up.
    fn number(&self, row: &[u8], i: usize) -> f32 {
        let bit = i * self.bits;
        let mask = ((1u32 << self.bits) - 1) as u8;
        f32::from(row[bit / 8] >> (bit % 8) & mask)
    }

    /// Row `r` of the weight.
    fn row(&self, r: usize, packed: &[u8], scales: &[f32], zeros: &Zeros, out: &mut [f32]) {
        let (blocks, bytes) = (self.blocks(), self.block * self.bits / 8);
        for (b, o) in out.chunks_mut(self.block).enumerate() {
            let at = r * blocks + b;
            let z = match zeros {
                Zeros::Middle(z) => *z,
                Zeros::Floats(v) => v[at],
                Zeros::Packed(v) => self.number(&v[r * self.zero_row()..], b),
            };
            let s = scales[at];
            let part = &packed[at * bytes..(at + 1) * bytes];
            for (i, o) in o.iter_mut().enumerate() {
                *o = (self.number(part, i) - z) * s;
            }
        }
    }

    fn check(&self, packed: &[u8], scales: &[f32]) -> KResult<()> {
        let blocks = count(&[self.n, self.blocks()])?;
        if packed.len() != blocks * (self.block * self.bits / 8) || scales.len() != blocks {
            return Err(Fault(format!(
                "{} bytes and {} scales for {} x {}",
                packed.len(),
                scales.len(),
                self.n,
                self.k
            )));
        }
        Ok(())
    }
}

/// `com.microsoft::MatMulNBits(a, b, scales, zeros?, order?, bias?)`.
struct MatMulNBits(NBits);

impl Kernel for MatMulNBits {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let w = &self.0;
        if ins.has(4) {
            return Err("weights in groups of another order (g_idx)".into());
        }
        let bias = ins.dense_opt(5, cx)?;
        let zeros = if ins.has(3) { Some(ins.take(3)?) } else { None };
        let zeros = w.zeros(zeros)?;
        let scales = ins.dense(2, cx)?;
        let packed = Bytes::of(ins.take(1)?)?;
        let x = ins.dense(0, cx)?;
        let (read, scale_read) = (x.read(), scales.read());
        let (b, s) = (packed.get()?, scale_read.slice()?);
        w.check(b, s)?;
        let mut dims = x.dims().to_vec();
        match dims.last_mut() {
            Some(d) if *d == w.k => *d = w.n,
            _ => return Err(Fault(format!("an input of {:?} for K = {}", x.dims(), w.k))),
        }
        let rows = count(&dims[..dims.len() - 1])?;
        let a = Mat::dense(read.slice()?, rows, w.k);
        let mut out = cx.alloc(count(&dims)?);
        let block = (PANEL / w.k.max(1)).clamp(1, w.n.max(1));
        let mut panel = cx.alloc(block * w.k);
        for at in (0..w.n).step_by(block) {
            let part = block.min(w.n - at);
            walk::rows(&mut panel[..part * w.k], w.k, |r, o| {
                w.row(at + r, b, s, &zeros, o);
            });
            let m = Mat::dense(&panel[..part * w.k], part, w.k).t();
            multiply(cx, &mut out[at..], w.n, a, m, 1.0, false)?;
        }
        cx.pool.give(panel);
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

/// `onnx_graft::DequantizeNBits(b, scales, zeros?)`: the weight of `MatMulNBits`, `[N, K]`.
struct DequantizeNBits(NBits);

impl Kernel for DequantizeNBits {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let w = &self.0;
        let zeros = if ins.has(2) { Some(ins.take(2)?) } else { None };
        let zeros = w.zeros(zeros)?;
        let scales: Floats = ins.dense(1, cx)?;
        let packed = Bytes::of(ins.take(0)?)?;
        let read = scales.read();
        let (b, s) = (packed.get()?, read.slice()?);
        w.check(b, s)?;
        let mut out = cx.alloc(count(&[w.n, w.k])?);
        walk::rows(&mut out, w.k, |r, o| w.row(r, b, s, &zeros, o));
        cx.one(out, &[w.n, w.k], scales.dtype())
    }

    /// The file keeps the small form; a plan must not hold the wide one.
    fn pure(&self) -> bool {
        false
    }
}

/// `com.microsoft::GatherBlockQuantized(data, ids, scales, zeros?)`: rows of a quantized table.
struct GatherBlocks {
    bits: usize,
    block: usize,
}

impl Kernel for GatherBlocks {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let zeros = if ins.has(3) { Some(ins.take(3)?) } else { None };
        let scales = ins.dense(2, cx)?;
        let ids = ins.take(1)?;
        let data = ins.take(0)?;
        let dtype = data.dtype();
        let [rows, width] = *data.dims() else {
            return Err(Fault(format!("a table of {:?}", data.dims())));
        };
        // `u8` holds several numbers a byte; 4-bit types have one an element.
        let per = if dtype == DType::Uint8 {
            8 / self.bits
        } else {
            1
        };
        let k = width * per;
        let blocks = k.div_ceil(self.block);
        if scales.dims() != [rows, blocks] {
            return Err(Fault(format!(
                "scales of {:?}, expected [{rows}, {blocks}]",
                scales.dims()
            )));
        }
        let table = Bytes::of(plain(data)?)?;
        let q = table.get()?;
        let signed = dtype == DType::Int4;
        let unpack = |row: &[u8], i: usize| -> f32 {
            if per == 1 {
                return if signed {
                    f32::from(row[i] as i8)
                } else {
                    f32::from(row[i])
                };
            }
            let bit = i * self.bits;
            f32::from(row[bit / 8] >> (bit % 8) & ((1u32 << self.bits) - 1) as u8)
        };
        let middle = if dtype == DType::Uint8 {
            (1u32 << (self.bits - 1)) as f32
        } else {
            0.0
        };
        let zeros = zeros
            .map(|z| -> KResult<(usize, Bytes)> {
                Ok((z.dims().last().copied().unwrap_or(0), Bytes::of(plain(z)?)?))
            })
            .transpose()?;
        let zero = match &zeros {
            Some((w, z)) if w * per >= blocks && z.get()?.len() == rows * w => Some((*w, z.get()?)),
            Some(_) => return Err("the zero points do not fit the scales".into()),
            None => None,
        };
        let read = scales.read();
        let s = read.slice()?;
        let index = ids.to_ints()?;
        let mut out = cx.alloc(count(&[index.len(), k])?);
        for (o, &i) in out.chunks_mut(k.max(1)).zip(&index) {
            let r = super::gather::index_of(i, rows)?;
            let row = &q[r * width..(r + 1) * width];
            for (j, o) in o.iter_mut().enumerate() {
                let b = j / self.block;
                let z = zero.map_or(middle, |(w, z)| unpack(&z[r * w..(r + 1) * w], b));
                *o = (unpack(row, j) - z) * s[r * blocks + b];
            }
        }
        let mut dims = ids.dims().to_vec();
        dims.push(k);
        cx.one(out, &dims, scales.dtype())
    }
}

fn gather(cx: &mut BuildCx<'_>) -> KResult<Box<dyn Kernel>> {
    let (bits, block) = (
        size_of(cx.int("bits", 4))?,
        size_of(cx.int("block_size", 128))?,
    );
    if cx.int("gather_axis", 0) != 0 || !matches!(cx.int("quantize_axis", 1), 1 | -1) {
        return Err("gather_axis 0 and quantize_axis 1 only".into());
    }
    if !matches!(bits, 4 | 8) || block == 0 {
        return Err(Fault(format!("{bits} bits in blocks of {block}")));
    }
    Ok(Box::new(GatherBlocks { bits, block }))
}

pub(super) const KERNELS: &[Entry] = &[
    ("", "DequantizeLinear", |cx| {
        Ok(Box::new(Dequantize {
            axis: cx.int("axis", 1),
            block: cx.int("block_size", 0),
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
    ("", "MatMulInteger", |_| Ok(Box::new(MatMulInteger))),
    (MS, "MatMulNBits", |cx| {
        Ok(Box::new(MatMulNBits(NBits::new(cx)?)))
    }),
    (MS, "GatherBlockQuantized", gather),
    (OWN, "DequantizeNBits", |cx| {
        Ok(Box::new(DequantizeNBits(NBits::new(cx)?)))
    }),
];
