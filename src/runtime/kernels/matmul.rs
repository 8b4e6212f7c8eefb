//! Matrix products. Frozen weights are multiplied straight from the mapped file; operands of any stride are multiplied in place.

use super::{BuildCx, Cx, Entry, Ins, Kernel, MS, Outs, one, plain, to_floats};
use crate::ir::DType;
use crate::runtime::packed::Packed;
use crate::runtime::value::{Fault, Floats, Host, KResult, Value, WeightBytes};
use crate::runtime::walk::{self, count, row_major};
use onnx_graft_kernels::gemm as product;
use onnx_graft_kernels::team;

/// A strided matrix.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mat<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) row: usize,
    pub(crate) col: usize,
}

impl<'a> Mat<'a> {
    /// A row-major matrix.
    pub(crate) fn dense(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Mat {
            data,
            rows,
            cols,
            row: cols,
            col: 1,
        }
    }

    /// The transpose.
    pub(crate) fn t(self) -> Self {
        Mat {
            data: self.data,
            rows: self.cols,
            cols: self.rows,
            row: self.col,
            col: self.row,
        }
    }

    /// The matrix itself if the product kernel can read it, else a copy of it in `store`.
    fn plain<'b>(self, cx: &Cx<'_>, store: &'b mut Vec<f32>) -> Mat<'b>
    where
        'a: 'b,
    {
        if stored(&self).is_some() {
            return self;
        }
        *store = cx.alloc(self.rows * self.cols);
        for (i, row) in store.chunks_mut(self.cols.max(1)).enumerate() {
            for (j, x) in row.iter_mut().enumerate() {
                *x = self.data[i * self.row + j * self.col];
            }
        }
        Mat::dense(store, self.rows, self.cols)
    }

    fn fits(&self) -> bool {
        if self.rows == 0 || self.cols == 0 {
            return true;
        }
        let last = (self.rows - 1)
            .checked_mul(self.row)
            .zip((self.cols - 1).checked_mul(self.col))
            .and_then(|(a, b)| a.checked_add(b));
        last.is_some_and(|l| l < self.data.len())
    }
}

/// Whether a matrix is stored by rows or by columns, with which distance; `None` if neither.
fn stored(m: &Mat<'_>) -> Option<(bool, usize)> {
    let by_rows = m.col == 1 || m.cols <= 1;
    let by_cols = m.row == 1 || m.rows <= 1;
    if by_rows && (m.row >= m.cols || m.rows <= 1) {
        Some((false, m.row.max(m.cols)))
    } else if by_cols && (m.col >= m.rows || m.cols <= 1) {
        Some((true, m.col.max(m.rows)))
    } else {
        None
    }
}

/// A matrix for the product kernel, and whether it is the transpose of what is stored.
fn operand<'a>(m: &Mat<'a>, (turned, stride): (bool, usize)) -> KResult<(product::Mat<'a>, bool)> {
    let (rows, cols) = if turned {
        (m.cols, m.rows)
    } else {
        (m.rows, m.cols)
    };
    let mat = product::Mat::strided(m.data, rows, cols, stride)?;
    Ok((mat, turned))
}

/// `out = alpha * a·b`, or `out += alpha * a·b`; `out` is row-major with rows `stride` apart.
pub(crate) fn multiply(
    cx: &Cx<'_>,
    out: &mut [f32],
    stride: usize,
    a: Mat<'_>,
    b: Mat<'_>,
    alpha: f32,
    add: bool,
) -> KResult<()> {
    let (m, n, k) = (a.rows, b.cols, a.cols);
    if m == 0 || n == 0 {
        return Ok(());
    }
    if a.cols != b.rows || !a.fits() || !b.fits() {
        return Err(Fault(format!("a product of {m}x{k} and {}x{n}", b.rows)));
    }
    let mut copies = [Vec::new(), Vec::new()];
    let [ca, cb] = &mut copies;
    let (a, b) = (a.plain(cx, ca), b.plain(cx, cb));
    let shape = |m: &Mat<'_>| stored(m).ok_or_else(|| Fault("a matrix by rows or columns".into()));
    let (left, turn_a) = operand(&a, shape(&a)?)?;
    let (right, turn_b) = operand(&b, shape(&b)?)?;
    let mut term = product::Term::new(left, right).scaled(alpha);
    if turn_a {
        term = term.trans_a();
    }
    if turn_b {
        term = term.trans_b();
    }
    let c = product::MatMut::strided(out, m, n, stride)?;
    product::gemm(cx.precision, &[term], add, c)?;
    for c in copies {
        cx.pool.give(c);
    }
    Ok(())
}

/// `out = alpha * a·w`, or `out += alpha * a·w`, for a weight in the file.
pub(crate) fn multiply_weight(
    cx: &Cx<'_>,
    out: &mut [f32],
    a: Mat<'_>,
    w: WeightBytes<'_>,
    n: usize,
    alpha: f32,
    add: bool,
) -> KResult<()> {
    if a.rows == 0 || n == 0 {
        return Ok(());
    }
    let mut copy = Vec::new();
    let a = a.plain(cx, &mut copy);
    let shape = stored(&a).ok_or("a matrix by rows or columns")?;
    let (left, turned) = operand(&a, shape)?;
    let right = super::fused::stored(&w, &[a.cols, n])?.ok_or("a weight of f32, f16 or bf16")?;
    let mut term = product::Term::new(left, right).scaled(alpha);
    if turned {
        term = term.trans_a();
    }
    if w.transposed {
        term = term.trans_b();
    }
    let c = product::MatMut::strided(out, a.rows, n, n)?;
    product::gemm(cx.precision, &[term], add, c)?;
    cx.pool.give(copy);
    Ok(())
}

/// Elements of a weight of small integers that are widened at a time.
const PANEL: usize = 1 << 20;

/// `out = alpha * a·w`, or `out += alpha * a·w`, for a matrix of small integers, or for its transpose, by panels of its rows.
pub(crate) fn multiply_packed(
    cx: &Cx<'_>,
    out: &mut [f32],
    a: Mat<'_>,
    w: &Packed,
    transposed: bool,
    alpha: f32,
    add: bool,
) -> KResult<()> {
    let [rows, cols] = w.shape();
    let n = if transposed { rows } else { cols };
    let step = (PANEL / cols.max(1)).clamp(1, rows.max(1));
    let mut panel = cx.alloc(step * cols);
    for at in (0..rows).step_by(step) {
        let part = step.min(rows - at);
        walk::rows(&mut panel[..part * cols], cols, |r, o| w.row(at + r, 0, o));
        let m = Mat::dense(&panel[..part * cols], part, cols);
        if transposed {
            multiply(cx, &mut out[at..], n, a, m.t(), alpha, add)?;
        } else {
            let left = Mat {
                data: a.data.get(at * a.col..).unwrap_or_default(),
                cols: part,
                ..a
            };
            multiply(cx, out, n, left, m, alpha, add || at > 0)?;
        }
    }
    cx.pool.give(panel);
    Ok(())
}

/// Whether a weight is multiplied from the file.
pub(crate) fn streams(cx: &Cx<'_>, v: &Value) -> bool {
    matches!(v, Value::Weight(w) if cx.device.is_cpu()
        && w.matrix().is_some()
        && matches!(w.dtype(), DType::Float | DType::Float16 | DType::Bfloat16))
}

/// The product over the last two axes with broadcasting of the others, times `alpha`.
pub(crate) fn matmul(cx: &Cx<'_>, a: Value, b: Value, alpha: f32) -> KResult<Floats> {
    let (da, db) = (a.dims().to_vec(), b.dims().to_vec());
    if da.is_empty() || db.is_empty() {
        return Err("a product of a scalar".into());
    }
    let a_vec = da.len() == 1;
    let b_vec = db.len() == 1;
    let a = if a_vec {
        super::shape::reshaped(cx, a, vec![1, da[0]])?
    } else {
        a
    };
    let b = if b_vec {
        super::shape::reshaped(cx, b, vec![db[0], 1])?
    } else {
        b
    };
    let out = product(cx, a, b, alpha)?;
    if !a_vec && !b_vec {
        return Ok(out);
    }
    let mut dims = out.dims().to_vec();
    if b_vec {
        dims.pop();
    }
    if a_vec {
        let row = dims.len() - usize::from(!b_vec);
        if b_vec {
            dims.pop();
        } else {
            dims.remove(row - 1);
        }
    }
    out.view(|t| t.reshape(dims))
}

fn product(cx: &Cx<'_>, a: Value, b: Value, alpha: f32) -> KResult<Floats> {
    let a = to_floats(a, 0)?;
    let (da, db) = (a.dims().to_vec(), b.dims().to_vec());
    let ([la @ .., m, k], [lb @ .., kb, n]) = (&da[..], &db[..]) else {
        return Err("a product of a scalar".into());
    };
    let (m, k, n) = (*m, *k, *n);
    if k != *kb {
        return Err(Fault(format!("inner sizes {k} and {kb} differ")));
    }
    if !cx.device.is_cpu() {
        return on_candle(&a, to_floats(b, 1)?, alpha);
    }
    let dtype = a.dtype();
    let mut dims = walk::broadcast(&[la, lb])?;
    let batch = dims.clone();
    dims.extend([m, n]);
    let mut out = cx.alloc(count(&dims)?);
    if k == 0 {
        out.fill(0.0);
        return cx.floats(out, &dims, dtype);
    }
    // A matrix on the right: all rows of the left are one matrix.
    if lb.iter().all(|&d| d == 1) {
        let a = foldable(cx, a)?;
        let read = a.read();
        let v = read.view()?;
        let left = Mat {
            data: v.data,
            rows: count(la)? * m,
            cols: k,
            row: fold_stride(&da, &v.strides),
            col: v.strides[da.len() - 1],
        };
        if streams(cx, &b)
            && let Value::Weight(w) = &b
            && let Some(bytes) = w.matrix()
        {
            multiply_weight(cx, &mut out, left, bytes, n, alpha, false)?;
        } else if let Value::Weight(w) = &b
            && let Some((packed, transposed)) = w.codes()
        {
            multiply_packed(cx, &mut out, left, packed, transposed, alpha, false)?;
        } else {
            let b = to_floats(b, 1)?;
            let read = b.read();
            let v = read.view()?;
            multiply(
                cx,
                &mut out,
                n,
                left,
                last_two(v.data, &db, &v.strides, 0),
                alpha,
                false,
            )?;
        }
        drop(read);
        return cx.floats(out, &dims, dtype);
    }
    let b = to_floats(b, 1)?;
    let (ra, rb) = (a.read(), b.read());
    let (va, vb) = (ra.view()?, rb.view()?);
    let sa = walk::broadcast_strides(la, &va.strides[..la.len()], &batch);
    let sb = walk::broadcast_strides(lb, &vb.strides[..lb.len()], &batch);
    let steps = row_major(&batch);
    let offset = |i: usize, s: &[usize]| -> usize {
        let mut rest = i;
        let mut at = 0;
        for (step, s) in steps.iter().zip(s) {
            at += rest / step * s;
            rest %= step;
        }
        at
    };
    let batches = count(&batch)?;
    let threads = batches < team::threads();
    let job = |(i, o): (usize, &mut [f32])| {
        let left = last_two(va.data, &da, &va.strides, offset(i, &sa));
        let right = last_two(vb.data, &db, &vb.strides, offset(i, &sb));
        multiply(cx, o, n, left, right, alpha, false)
    };
    if m * n > 0 {
        if threads || batches * m * n * k < 64 * 64 * 64 {
            out.chunks_mut(m * n).enumerate().try_for_each(job)?;
        } else {
            team::try_each(out.chunks_mut(m * n).enumerate(), job)?;
        }
    }
    drop(ra);
    cx.floats(out, &dims, dtype)
}

fn last_two<'a>(data: &'a [f32], dims: &[usize], strides: &[usize], at: usize) -> Mat<'a> {
    let r = dims.len();
    Mat {
        data: data.get(at..).unwrap_or_default(),
        rows: dims[r - 2],
        cols: dims[r - 1],
        row: strides[r - 2],
        col: strides[r - 1],
    }
}

/// Distance of rows when all axes but the last are one.
fn fold_stride(dims: &[usize], strides: &[usize]) -> usize {
    (0..dims.len() - 1)
        .rev()
        .find(|&i| dims[i] != 1)
        .map_or(dims[dims.len() - 1], |i| strides[i])
}

/// The tensor itself if all axes but the last are evenly spaced, else a dense copy.
fn foldable(cx: &Cx<'_>, x: Floats) -> KResult<Floats> {
    let even = {
        let read = x.read();
        let v = read.view()?;
        let axes: Vec<usize> = (0..v.dims.len() - 1).filter(|&i| v.dims[i] != 1).collect();
        axes.windows(2)
            .all(|w| v.strides[w[0]] == v.strides[w[1]] * v.dims[w[1]])
    };
    if even { Ok(x) } else { cx.dense(x) }
}

fn on_candle(a: &Floats, b: Floats, alpha: f32) -> KResult<Floats> {
    let dtype = a.dtype();
    let (x, y) = (a.tensor().contiguous()?, b.tensor().contiguous()?);
    let out = x.broadcast_matmul(&y)?;
    let out = if alpha == 1.0 {
        out
    } else {
        out.affine(f64::from(alpha), 0.0)?
    };
    Ok(Floats::wrap(out, dtype, None))
}

struct MatMul;

impl Kernel for MatMul {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let (a, b) = (ins.take(0)?, ins.take(1)?);
        let whole = |v: &Value| !v.dtype().is_float();
        if whole(&a) || whole(&b) {
            return one(integers(&plain(a)?, &plain(b)?)?);
        }
        one(matmul(cx, a, b, 1.0)?)
    }
}

/// The product of integer matrices, wrapping.
fn integers(a: &Value, b: &Value) -> KResult<Host> {
    let ([la @ .., m, k], [lb @ .., kb, n]) = (a.dims(), b.dims()) else {
        return Err("a product of integer vectors".into());
    };
    if k != kb || !lb.is_empty() {
        return Err(Fault(format!(
            "a product of {:?} and {:?}",
            a.dims(),
            b.dims()
        )));
    }
    let (x, y) = (a.to_ints()?, b.to_ints()?);
    let rows = count(la)? * m;
    let mut out = vec![0i64; rows * n];
    for i in 0..rows {
        for p in 0..*k {
            let l = x[i * k + p];
            for j in 0..*n {
                out[i * n + j] = out[i * n + j].wrapping_add(l.wrapping_mul(y[p * n + j]));
            }
        }
    }
    let mut dims = a.dims().to_vec();
    dims.pop();
    dims.push(*n);
    Host::from_ints(a.dtype(), dims, out)
}

/// `FusedMatMul` of ONNX Runtime: transposes and a factor.
struct FusedMatMul {
    alpha: f32,
    trans: [bool; 2],
    trans_batch: [bool; 2],
}

impl FusedMatMul {
    fn turn(v: Value, trans: bool, batch: bool) -> KResult<Value> {
        let rank = v.dims().len();
        if rank < 2 || !(trans || batch) {
            return Ok(v);
        }
        let mut perm: Vec<usize> = (0..rank).collect();
        if batch {
            // The first axis goes in front of the last one.
            perm = (1..rank - 1).chain([0, rank - 1]).collect();
        }
        if trans {
            perm.swap(rank - 2, rank - 1);
        }
        v.permuted(&perm)
    }
}

impl Kernel for FusedMatMul {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let a = Self::turn(ins.take(0)?, self.trans[0], self.trans_batch[0])?;
        let b = Self::turn(ins.take(1)?, self.trans[1], self.trans_batch[1])?;
        one(matmul(cx, a, b, self.alpha)?)
    }
}

fn fused(cx: &mut BuildCx<'_>) -> KResult<Box<dyn Kernel>> {
    Ok(Box::new(FusedMatMul {
        alpha: cx.float("alpha", 1.0),
        trans: [cx.flag("transA"), cx.flag("transB")],
        trans_batch: [cx.flag("transBatchA"), cx.flag("transBatchB")],
    }))
}

pub(super) const KERNELS: &[Entry] = &[
    ("", "MatMul", |_| Ok(Box::new(MatMul))),
    (MS, "FusedMatMul", fused),
    (MS, "TransposeMatMul", fused),
];
