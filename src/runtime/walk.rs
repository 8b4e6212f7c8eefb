//! Strided views, and loops over them with broadcasting: axes are collapsed once, rows are handed to the threads.

use super::fault::{Fault, KResult};
use onnx_graft_kernels::team;
use std::borrow::Cow;

/// A strided view of elements.
#[derive(Clone, Debug)]
pub(crate) struct View<'a, T> {
    pub(crate) data: &'a [T],
    pub(crate) dims: Cow<'a, [usize]>,
    pub(crate) strides: Cow<'a, [usize]>,
}

impl<'a, T> View<'a, T> {
    /// A row-major view.
    pub(crate) fn dense(data: &'a [T], dims: &'a [usize]) -> Self {
        View {
            data,
            dims: Cow::Borrowed(dims),
            strides: Cow::Owned(row_major(dims)),
        }
    }
}

/// Row-major strides.
pub(crate) fn row_major(dims: &[usize]) -> Vec<usize> {
    let mut strides = vec![1usize; dims.len()];
    for i in (0..dims.len().saturating_sub(1)).rev() {
        strides[i] = strides[i + 1].saturating_mul(dims[i + 1].max(1));
    }
    strides
}

/// Number of elements; an error when it cannot be held in memory.
pub(crate) fn count(dims: &[usize]) -> KResult<usize> {
    dims.iter()
        .try_fold(1usize, |n, &d| n.checked_mul(d))
        .filter(|&n| n <= isize::MAX as usize / 8)
        .ok_or_else(|| Fault(format!("a tensor of shape {dims:?} does not fit in memory")))
}

/// Elements that one task computes: enough to be worth a thread.
pub(crate) const TASK: usize = 16 * 1024;

/// The common shape of operands under ONNX's multidirectional broadcasting.
pub(crate) fn broadcast(shapes: &[&[usize]]) -> KResult<Vec<usize>> {
    let rank = shapes.iter().map(|s| s.len()).max().unwrap_or(0);
    let mut out = vec![1usize; rank];
    for s in shapes {
        for (o, &d) in out[rank - s.len()..].iter_mut().zip(*s) {
            match (*o, d) {
                (_, 1) => {}
                (1, d) => *o = d,
                (o, d) if o == d => {}
                _ => return Err(Fault(format!("shapes {shapes:?} do not broadcast"))),
            }
        }
    }
    Ok(out)
}

/// Strides of an operand seen in a larger shape: zero along broadcast axes.
pub(crate) fn broadcast_strides(dims: &[usize], strides: &[usize], to: &[usize]) -> Vec<usize> {
    let lead = to.len() - dims.len();
    let mut out = vec![0; to.len()];
    for (i, (&d, &s)) in dims.iter().zip(strides).enumerate() {
        out[lead + i] = if d == 1 && to[lead + i] != 1 { 0 } else { s };
    }
    out
}

/// A collapsed loop nest over `N` strided operands and one dense output.
pub(crate) struct Walk<const N: usize> {
    total: usize,
    inner: usize,
    inner_strides: [usize; N],
    /// Outer axes, innermost first.
    outer: Vec<(usize, [usize; N])>,
}

impl<const N: usize> Walk<N> {
    /// The loops over `dims`; every operand's strides have the rank of `dims`.
    pub(crate) fn new(dims: &[usize], strides: [&[usize]; N]) -> Self {
        let mut axes: Vec<(usize, [usize; N])> = Vec::with_capacity(dims.len());
        for (i, &d) in dims.iter().enumerate().rev() {
            if d == 1 {
                continue;
            }
            let s = strides.map(|s| s[i]);
            match axes.last_mut() {
                Some((size, inner)) if (0..N).all(|n| s[n] == inner[n].wrapping_mul(*size)) => {
                    *size = size.saturating_mul(d);
                }
                _ => axes.push((d, s)),
            }
        }
        let total = dims.iter().product();
        if axes.is_empty() {
            axes.push((1, [1; N]));
        }
        let (inner, inner_strides) = axes.remove(0);
        Walk {
            total,
            inner,
            inner_strides,
            outer: axes,
        }
    }

    fn offsets(&self, mut row: usize) -> [usize; N] {
        let mut at = [0; N];
        for (size, strides) in &self.outer {
            let i = row % size;
            row /= size;
            for n in 0..N {
                at[n] += i * strides[n];
            }
        }
        at
    }

    /// Calls `f` with pieces of rows of `out`, the operands' offsets at their beginning, and the operands' strides along them.
    pub(crate) fn run<U: Send>(
        &self,
        out: &mut [U],
        f: impl Fn(&mut [U], [usize; N], [usize; N]) + Sync,
    ) {
        if self.total == 0 {
            return;
        }
        let piece = |from: usize, out: &mut [U]| {
            let mut done = 0;
            while done < out.len() {
                let (row, col) = ((from + done) / self.inner, (from + done) % self.inner);
                let len = (self.inner - col).min(out.len() - done);
                let mut at = self.offsets(row);
                for (at, stride) in at.iter_mut().zip(self.inner_strides) {
                    *at += col * stride;
                }
                f(&mut out[done..done + len], at, self.inner_strides);
                done += len;
            }
        };
        if out.len() <= 2 * TASK {
            piece(0, out);
        } else {
            team::each(out.chunks_mut(TASK).enumerate(), |(i, o)| {
                piece(i * TASK, o);
            });
        }
    }
}

/// Copies a strided view into row-major order.
pub(crate) fn copy<T: Copy + Send + Sync>(src: &View<'_, T>, out: &mut [T]) {
    let data = src.data;
    Walk::new(&src.dims, [&src.strides]).run(out, |o, [a], [s]| {
        if s == 1 {
            o.copy_from_slice(&data[a..a + o.len()]);
        } else {
            o.iter_mut()
                .enumerate()
                .for_each(|(i, o)| *o = data[a + i * s]);
        }
    });
}

/// `out[i] = f(a[i])`.
pub(crate) fn map<T, U>(a: &View<'_, T>, out: &mut [U], f: impl Fn(T) -> U + Sync)
where
    T: Copy + Send + Sync,
    U: Send,
{
    let data = a.data;
    Walk::new(&a.dims, [&a.strides]).run(out, |o, [a], [s]| {
        if s == 1 {
            let src = &data[a..a + o.len()];
            o.iter_mut().zip(src).for_each(|(o, &x)| *o = f(x));
        } else {
            o.iter_mut()
                .enumerate()
                .for_each(|(i, o)| *o = f(data[a + i * s]));
        }
    });
}

/// `x[i] = f(x[i])`.
pub(crate) fn map_in_place<T: Copy + Send>(x: &mut [T], f: impl Fn(T) -> T + Sync) {
    if x.len() <= 2 * TASK {
        for x in x {
            *x = f(*x);
        }
    } else {
        team::each(x.chunks_mut(TASK), |part| {
            for x in part {
                *x = f(*x);
            }
        });
    }
}

/// `out = f(a, b)` with broadcasting into `dims`.
pub(crate) fn zip<A, B, U>(
    dims: &[usize],
    a: &View<'_, A>,
    b: &View<'_, B>,
    out: &mut [U],
    f: impl Fn(A, B) -> U + Sync,
) where
    A: Copy + Send + Sync,
    B: Copy + Send + Sync,
    U: Send,
{
    let (sa, sb) = (
        broadcast_strides(&a.dims, &a.strides, dims),
        broadcast_strides(&b.dims, &b.strides, dims),
    );
    let (da, db) = (a.data, b.data);
    Walk::new(dims, [&sa, &sb]).run(out, |o, [a, b], [s, t]| match (s, t) {
        (1, 1) => {
            let (x, y) = (&da[a..a + o.len()], &db[b..b + o.len()]);
            o.iter_mut()
                .zip(x)
                .zip(y)
                .for_each(|((o, &x), &y)| *o = f(x, y));
        }
        (1, 0) => {
            let (x, y) = (&da[a..a + o.len()], db[b]);
            o.iter_mut().zip(x).for_each(|(o, &x)| *o = f(x, y));
        }
        (0, 1) => {
            let (x, y) = (da[a], &db[b..b + o.len()]);
            o.iter_mut().zip(y).for_each(|(o, &y)| *o = f(x, y));
        }
        _ => o
            .iter_mut()
            .enumerate()
            .for_each(|(i, o)| *o = f(da[a + i * s], db[b + i * t])),
    });
}

/// `x = f(x, b)`, `b` broadcast into `dims`, which is the shape of `x`.
pub(crate) fn zip_in_place<A, B>(
    dims: &[usize],
    x: &mut [A],
    b: &View<'_, B>,
    f: impl Fn(A, B) -> A + Sync,
) where
    A: Copy + Send,
    B: Copy + Send + Sync,
{
    let sb = broadcast_strides(&b.dims, &b.strides, dims);
    let db = b.data;
    Walk::new(dims, [&sb]).run(x, |o, [b], [t]| match t {
        1 => {
            let y = &db[b..b + o.len()];
            o.iter_mut().zip(y).for_each(|(o, &y)| *o = f(*o, y));
        }
        0 => {
            let y = db[b];
            for o in o {
                *o = f(*o, y);
            }
        }
        _ => o
            .iter_mut()
            .enumerate()
            .for_each(|(i, o)| *o = f(*o, db[b + i * t])),
    });
}

/// `out = c ? a : b` with broadcasting into `dims`.
pub(crate) fn select<T>(
    dims: &[usize],
    c: &View<'_, u8>,
    a: &View<'_, T>,
    b: &View<'_, T>,
    out: &mut [T],
) where
    T: Copy + Send + Sync,
{
    let sc = broadcast_strides(&c.dims, &c.strides, dims);
    let sa = broadcast_strides(&a.dims, &a.strides, dims);
    let sb = broadcast_strides(&b.dims, &b.strides, dims);
    let (dc, da, db) = (c.data, a.data, b.data);
    Walk::new(dims, [&sc, &sa, &sb]).run(out, |o, [c, a, b], [r, s, t]| {
        for (i, o) in o.iter_mut().enumerate() {
            *o = if dc[c + i * r] != 0 {
                da[a + i * s]
            } else {
                db[b + i * t]
            };
        }
    });
}

/// Calls `f` for every row of a dense matrix, rows in blocks on the threads.
pub(crate) fn rows<T: Send>(out: &mut [T], width: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    if width == 0 || out.is_empty() {
        return;
    }
    if out.len() <= 2 * TASK {
        out.chunks_mut(width).enumerate().for_each(|(i, r)| f(i, r));
        return;
    }
    let block = (TASK / width).max(1);
    team::each(out.chunks_mut(width * block).enumerate(), |(i, rows)| {
        rows.chunks_mut(width)
            .enumerate()
            .for_each(|(j, r)| f(i * block + j, r));
    });
}
