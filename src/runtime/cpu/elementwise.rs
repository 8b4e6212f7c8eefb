//! Sums, products, copies and look-ups.

use super::gemm::WeightRef;
use super::simd::fold;
use super::{
    CHUNK, Heads, KernelError, Result, check_dim, check_len, is_large, product, rows_of,
    rows_per_task,
};
use rayon::prelude::*;

/// An arithmetic operation of two operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binary {
    /// `a + b`.
    Add,
    /// `a - b`.
    Sub,
    /// `a * b`.
    Mul,
    /// `a / b`.
    Div,
}

/// How the right operand of a [`binary`] is repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// Equal shapes.
    None,
    /// `a` is `[.., n]` and `b` is `[n]`: a bias.
    Rows,
    /// `a` is `[m, ..]` and `b` is `[m]`: one value per row.
    Columns,
    /// `b` is one value.
    Scalar,
}

/// `y = a op b`, with `b` repeated.
pub fn binary(op: Binary, repeat: Repeat, a: &[f32], b: &[f32], y: &mut [f32]) -> Result<()> {
    check_len("y", y.len(), a.len())?;
    if a.is_empty() {
        return Ok(());
    }
    match repeat {
        Repeat::None => {
            check_len("b", b.len(), a.len())?;
            y.par_chunks_mut(CHUNK)
                .zip(a.par_chunks(CHUNK).zip(b.par_chunks(CHUNK)))
                .for_each(|(y, (a, b))| same(op, a, b, y));
        }
        Repeat::Scalar => {
            check_len("b", b.len(), 1)?;
            y.par_chunks_mut(CHUNK)
                .zip(a.par_chunks(CHUNK))
                .for_each(|(y, a)| scalar(op, a, b[0], y));
        }
        Repeat::Rows | Repeat::Columns => {
            let whole = !b.is_empty() && a.len().is_multiple_of(b.len());
            if !whole {
                return Err(KernelError::Length {
                    what: "b",
                    found: b.len(),
                    expected: a.len(),
                });
            }
            let width = if repeat == Repeat::Rows {
                b.len()
            } else {
                a.len() / b.len()
            };
            let rows = rows_per_task(width);
            y.par_chunks_mut(rows * width)
                .zip(a.par_chunks(rows * width))
                .enumerate()
                .for_each(|(task, (y, a))| {
                    for (i, (y, a)) in y
                        .chunks_exact_mut(width)
                        .zip(a.chunks_exact(width))
                        .enumerate()
                    {
                        if repeat == Repeat::Rows {
                            same(op, a, b, y);
                        } else {
                            scalar(op, a, b[task * rows + i], y);
                        }
                    }
                });
        }
    }
    Ok(())
}

fn same(op: Binary, a: &[f32], b: &[f32], y: &mut [f32]) {
    match op {
        Binary::Add => zip(a, b, y, |a, b| a + b),
        Binary::Sub => zip(a, b, y, |a, b| a - b),
        Binary::Mul => zip(a, b, y, |a, b| a * b),
        Binary::Div => zip(a, b, y, |a, b| a / b),
    }
}

fn scalar(op: Binary, a: &[f32], b: f32, y: &mut [f32]) {
    let pairs = y.iter_mut().zip(a);
    match op {
        Binary::Add => pairs.for_each(|(y, &a)| *y = a + b),
        Binary::Sub => pairs.for_each(|(y, &a)| *y = a - b),
        Binary::Mul => pairs.for_each(|(y, &a)| *y = a * b),
        Binary::Div => pairs.for_each(|(y, &a)| *y = a / b),
    }
}

#[inline]
fn zip(a: &[f32], b: &[f32], y: &mut [f32], f: impl Fn(f32, f32) -> f32) {
    for ((y, &a), &b) in y.iter_mut().zip(a).zip(b) {
        *y = f(a, b);
    }
}

/// `y += alpha * x`.
pub fn add_scaled(alpha: f32, x: &[f32], y: &mut [f32]) -> Result<()> {
    check_len("y", y.len(), x.len())?;
    y.par_chunks_mut(CHUNK)
        .zip(x.par_chunks(CHUNK))
        .for_each(|(y, x)| y.iter_mut().zip(x).for_each(|(y, &x)| *y += alpha * x));
    Ok(())
}

/// `y *= alpha`.
pub fn scale(alpha: f32, y: &mut [f32]) {
    y.par_chunks_mut(CHUNK)
        .for_each(|y| y.iter_mut().for_each(|y| *y *= alpha));
}

/// `y[j] = sum over rows of x[.., j]`, the gradient of a bias of `y.len()` elements; fixed blocks of rows.
pub fn sum_rows(x: &[f32], y: &mut [f32]) -> Result<()> {
    let width = y.len();
    let rows = x.len().checked_div(width).unwrap_or(0);
    check_len("x", x.len(), rows * width)?;
    y.fill(0.0);
    if width == 0 {
        return Ok(());
    }
    let blocks: Vec<Vec<f32>> = x
        .par_chunks(64 * width)
        .map(|block| {
            let mut sum = vec![0.0; width];
            for row in block.chunks_exact(width) {
                sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
            }
            sum
        })
        .collect();
    for block in blocks {
        y.iter_mut().zip(&block).for_each(|(y, x)| *y += x);
    }
    Ok(())
}

/// `y[i] = sum over columns of x[i, ..]`, rows of `cols` elements.
pub fn sum_columns(x: &[f32], cols: usize, y: &mut [f32]) -> Result<()> {
    let rows = rows_of("x", x.len(), cols)?;
    check_len("y", y.len(), rows)?;
    let sum = |x: &[f32], y: &mut [f32]| {
        for (y, x) in y.iter_mut().zip(x.chunks_exact(cols)) {
            *y = fold(x, |acc, x| acc + x);
        }
    };
    if !is_large(x.len()) {
        sum(x, y);
        return Ok(());
    }
    let block = rows_per_task(cols);
    y.par_chunks_mut(block)
        .zip(x.par_chunks(block * cols))
        .for_each(|(y, x)| sum(x, y));
    Ok(())
}

/// Axes that [`permute`] takes, at most.
pub const MAX_AXES: usize = 8;

/// Writes `x` of shape `dims` with its axes in the order `perm`, as ONNX `Transpose`: axis `i` of `y` is axis `perm[i]` of `x`.
pub fn permute(x: &[f32], dims: &[usize], perm: &[usize], y: &mut [f32]) -> Result<()> {
    check_len("x", x.len(), product("x", dims)?)?;
    check_len("y", y.len(), x.len())?;
    check_dim("permuted axes", perm.len(), dims.len())?;
    check_dim("axes", dims.len().min(MAX_AXES), dims.len())?;
    let mut seen = [false; MAX_AXES];
    for &axis in perm {
        if axis >= dims.len() || std::mem::replace(&mut seen[axis], true) {
            return Err(KernelError::Index {
                what: "permuted axis",
                index: axis as i64,
                bound: dims.len(),
            });
        }
    }
    if x.is_empty() {
        return Ok(());
    }
    let walk = Walk::new(dims, perm);
    let block = rows_per_task(walk.width) * walk.width;
    if is_large(x.len()) {
        y.par_chunks_mut(block)
            .enumerate()
            .for_each(|(i, y)| walk.copy(x, i * block, y));
    } else {
        walk.copy(x, 0, y);
    }
    Ok(())
}

/// The axes of a permuted result with their steps in the source, outermost first, neighbours merged where both sides allow it.
struct Walk {
    dims: [usize; MAX_AXES],
    steps: [usize; MAX_AXES],
    count: usize,
    /// Size and step of the innermost axis.
    width: usize,
    step: usize,
}

impl Walk {
    fn new(dims: &[usize], perm: &[usize]) -> Self {
        let mut walk = Self {
            dims: [1; MAX_AXES],
            steps: [1; MAX_AXES],
            count: 0,
            width: 1,
            step: 1,
        };
        for &axis in perm {
            let (dim, step) = (dims[axis], dims[axis + 1..].iter().product());
            if dim == 1 {
                continue;
            }
            if walk.count > 0 && walk.steps[walk.count - 1] == dim * step {
                walk.dims[walk.count - 1] *= dim;
                walk.steps[walk.count - 1] = step;
            } else {
                walk.dims[walk.count] = dim;
                walk.steps[walk.count] = step;
                walk.count += 1;
            }
        }
        if walk.count > 0 {
            walk.count -= 1;
            (walk.width, walk.step) = (walk.dims[walk.count], walk.steps[walk.count]);
        }
        walk
    }

    /// Fills `y`, whole rows of the innermost axis, which starts at element `start` of the result.
    fn copy(&self, x: &[f32], start: usize, y: &mut [f32]) {
        let mut index = [0; MAX_AXES];
        let mut rest = start / self.width;
        for axis in (0..self.count).rev() {
            index[axis] = rest % self.dims[axis];
            rest /= self.dims[axis];
        }
        let pairs = index.iter().zip(&self.steps).take(self.count);
        let mut from: usize = pairs.map(|(i, step)| i * step).sum();
        let mut y = y;
        while !y.is_empty() {
            let rows = self.run(&index, y.len() / self.width);
            let (block, rest) = y.split_at_mut(rows * self.width);
            y = rest;
            if self.step == 1 {
                block.copy_from_slice(&x[from..][..self.width]);
            } else {
                self.turn(x, from, block);
            }
            // Steps over the rows of the block, which share all indices but the last.
            for axis in (0..self.count).rev() {
                let by = if axis + 1 == self.count { rows } else { 1 };
                index[axis] += by;
                from += by * self.steps[axis];
                if index[axis] < self.dims[axis] {
                    break;
                }
                from -= self.dims[axis] * self.steps[axis];
                index[axis] = 0;
            }
        }
    }

    /// How many result rows from `index` on to copy together: rows whose sources are neighbours make a tile, at most `left`.
    fn run(&self, index: &[usize; MAX_AXES], left: usize) -> usize {
        const TILE: usize = 16;
        let Some(last) = self.count.checked_sub(1) else {
            return 1;
        };
        if self.step == 1 || self.steps[last] != 1 {
            return 1;
        }
        TILE.min(self.dims[last] - index[last]).min(left)
    }

    /// Copies result rows from columns of the source that start at `from` and the elements after it.
    fn turn(&self, x: &[f32], from: usize, block: &mut [f32]) {
        const TILE: usize = 16;
        for i0 in (0..self.width).step_by(TILE) {
            let end = (i0 + TILE).min(self.width);
            for (r, row) in block.chunks_exact_mut(self.width).enumerate() {
                let source = x[from + r + i0 * self.step..].iter().step_by(self.step);
                for (out, &value) in row[i0..end].iter_mut().zip(source) {
                    *out = value;
                }
            }
        }
    }
}

/// Copies heads from one layout to another: `[B, S, H, D]` to `[B, H, S, D]` or back, or out of a wider tensor.
pub fn copy_heads(x: &[f32], from: Heads, y: &mut [f32], to: Heads) -> Result<()> {
    let none = super::rotary::Rotary {
        cos: &[],
        sin: &[],
        rows: from.seq,
        width: 0,
        dim: 0,
        interleaved: false,
    };
    super::rotary::rotary(x, from, &none, false, y, to)
}

/// Embedding: `y[i] = table[ids[i]]`, widened to `f32`. A negative id counts from the end, as ONNX `Gather` has it.
pub fn gather_rows(table: WeightRef<'_>, ids: &[i64], y: &mut [f32]) -> Result<()> {
    let width = table.cols();
    check_len("y", y.len(), product("y", &[ids.len(), width])?)?;
    if width == 0 {
        return Ok(());
    }
    let rows = rows_per_task(width);
    y.par_chunks_mut(rows * width)
        .zip(ids.par_chunks(rows))
        .try_for_each(|(y, ids)| {
            y.chunks_exact_mut(width)
                .zip(ids)
                .try_for_each(|(y, &id)| table.read_rows(row_of(id, table.rows())?, y))
        })
}

/// Gradient of [`gather_rows`]: `dtable[ids[i]] += dy[i]`, in the order of `ids`.
pub fn scatter_add_rows(ids: &[i64], dy: &[f32], width: usize, dtable: &mut [f32]) -> Result<()> {
    check_len("dy", dy.len(), product("dy", &[ids.len(), width])?)?;
    let rows = dtable.len().checked_div(width).unwrap_or(0);
    check_len("dtable", dtable.len(), rows * width)?;
    let found = ids
        .iter()
        .map(|&id| row_of(id, rows))
        .collect::<Result<Vec<_>>>()?;
    for (row, dy) in found.into_iter().zip(dy.chunks_exact(width.max(1))) {
        dtable[row * width..][..width]
            .iter_mut()
            .zip(dy)
            .for_each(|(sum, dy)| *sum += dy);
    }
    Ok(())
}

fn row_of(id: i64, rows: usize) -> Result<usize> {
    let index = if id < 0 {
        id.checked_add_unsigned(rows as u64)
    } else {
        Some(id)
    };
    index
        .and_then(|index| usize::try_from(index).ok())
        .filter(|&index| index < rows)
        .ok_or(KernelError::Index {
            what: "row",
            index: id,
            bound: rows,
        })
}

#[cfg(test)]
#[expect(
    clippy::float_cmp,
    reason = "these kernels round nothing, or as the comparison does"
)]
mod tests {
    use super::*;
    use crate::runtime::cpu::gemm::DType;
    use crate::runtime::cpu::testing::{close, values, wide};

    #[test]
    fn binary_repeats_the_right_operand() {
        let (rows, cols) = (5, 7);
        let a = values(rows * cols, 1);
        for (op, f) in [
            (Binary::Add, (|a, b| a + b) as fn(f32, f32) -> f32),
            (Binary::Sub, |a, b| a - b),
            (Binary::Mul, |a, b| a * b),
            (Binary::Div, |a, b| a / b),
        ] {
            for (repeat, len) in [
                (Repeat::None, 35),
                (Repeat::Rows, 7),
                (Repeat::Columns, 5),
                (Repeat::Scalar, 1),
            ] {
                let b = values(len, 2);
                let mut y = vec![0.0; 35];
                binary(op, repeat, &a, &b, &mut y).unwrap();
                for i in 0..35 {
                    let j = match repeat {
                        Repeat::None => i,
                        Repeat::Rows => i % cols,
                        Repeat::Columns => i / cols,
                        Repeat::Scalar => 0,
                    };
                    assert_eq!(y[i], f(a[i], b[j]));
                }
            }
        }
        assert!(binary(Binary::Add, Repeat::Rows, &a, &[0.0; 4], &mut [0.0; 35]).is_err());
        assert!(binary(Binary::Add, Repeat::Rows, &a, &[], &mut [0.0; 35]).is_err());
    }

    #[test]
    fn sums_over_rows_and_columns() {
        let (rows, cols) = (700, 67);
        let x = wide(&values(rows * cols, 1));
        let narrow: Vec<f32> = x.iter().map(|&v| v as f32).collect();
        let (mut down, mut across) = (vec![1.0; cols], vec![1.0; rows]);
        sum_rows(&narrow, &mut down).unwrap();
        sum_columns(&narrow, cols, &mut across).unwrap();
        let wanted: Vec<f64> = (0..cols)
            .map(|j| (0..rows).map(|i| x[i * cols + j]).sum())
            .collect();
        // Sums of 700 values below 1, in blocks.
        close(&down, &wanted, 2e-5);
        let wanted: Vec<f64> = x.chunks(cols).map(|x| x.iter().sum()).collect();
        close(&across, &wanted, 2e-6);
        assert!(sum_rows(&narrow[1..], &mut down).is_err());
    }

    #[test]
    fn every_permutation_of_four_axes() {
        let dims = [2, 3, 1, 5];
        let x = values(30, 1);
        let mut seen = 0;
        for code in 0..256 {
            let perm = [code & 3, code >> 2 & 3, code >> 4 & 3, code >> 6];
            let mut y = vec![0.0; 30];
            let sorted = {
                let mut sorted = perm;
                sorted.sort_unstable();
                sorted
            };
            if sorted != [0, 1, 2, 3] {
                assert!(permute(&x, &dims, &perm, &mut y).is_err());
                continue;
            }
            seen += 1;
            permute(&x, &dims, &perm, &mut y).unwrap();
            let out = perm.map(|axis| dims[axis]);
            for (i, &x) in x.iter().enumerate() {
                let at = [i / 15, i / 5 % 3, 0, i % 5];
                let to = perm.map(|axis| at[axis]);
                let j = ((to[0] * out[1] + to[1]) * out[2] + to[2]) * out[3] + to[3];
                assert_eq!(y[j], x, "{perm:?}");
            }
        }
        assert_eq!(seen, 24);
    }

    #[test]
    fn a_large_permutation_uses_threads() {
        let (b, s, h, d) = (3, 50, 16, 24);
        let x = values(b * s * h * d, 1);
        let (mut y, mut z) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        permute(&x, &[b, s, h, d], &[0, 2, 1, 3], &mut y).unwrap();
        copy_heads(&x, Heads::bshd(b, s, h, d), &mut z, Heads::bhsd(b, s, h, d)).unwrap();
        assert_eq!(y, z);
        permute(&y, &[b, h, s, d], &[0, 2, 1, 3], &mut z).unwrap();
        assert_eq!(x, z);
        permute(&x, &[b * s, h * d], &[1, 0], &mut y).unwrap();
        assert_eq!(y[b * s + 7], x[7 * h * d + 1]);
    }

    #[test]
    fn rows_by_index_and_their_gradient() {
        let bytes: Vec<u8> = (0..12u16)
            .flat_map(|i| half::bf16::from_f32(f32::from(i)).to_le_bytes())
            .collect();
        let table = WeightRef::new(DType::Bf16, &bytes, 4, 3).unwrap();
        let mut y = [0.0; 9];
        gather_rows(table, &[2, -1, 2], &mut y).unwrap();
        assert_eq!(y, [6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 6.0, 7.0, 8.0]);
        assert!(matches!(
            gather_rows(table, &[4, 0, 0], &mut y),
            Err(KernelError::Index {
                index: 4,
                bound: 4,
                ..
            })
        ));
        assert!(gather_rows(table, &[-5, 0, 0], &mut y).is_err());
        let mut sums = [0.0; 12];
        scatter_add_rows(&[2, -1, 2], &y, 3, &mut sums).unwrap();
        assert_eq!(sums[6..], [12.0, 14.0, 16.0, 9.0, 10.0, 11.0]);
        assert_eq!(sums[..6], [0.0; 6]);
    }

    #[test]
    fn scaled_sums() {
        let (mut y, x) = ([1.0, 2.0], [10.0, 20.0]);
        add_scaled(0.5, &x, &mut y).unwrap();
        scale(2.0, &mut y);
        assert_eq!(y, [12.0, 24.0]);
        assert!(add_scaled(0.5, &x[1..], &mut y).is_err());
    }
}
