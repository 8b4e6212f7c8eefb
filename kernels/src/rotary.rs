//! Rotary position embedding (Su et al., "`RoFormer`", 2021), in place or from one layout to another.
//!
//! A rotation's gradient is the rotation by the opposite angle: `inverse` computes it (exactly the transpose, also where a table
//! scales the rotation).
#![expect(
    unsafe_code,
    reason = "tasks write disjoint vectors through a pointer; calls loops compiled for the probed instruction set"
)]
#![expect(
    clippy::inline_always,
    reason = "loop bodies must be compiled with the features of their caller"
)]

use crate::isa::Isa;
use crate::simd::madd;
use crate::team;
use crate::{Heads, KernelError, Result, check_dim, check_len, is_large, product};

/// Cosines and sines by position.
#[derive(Clone, Copy, Debug)]
pub struct Rotary<'a> {
    /// Cosines, `[rows, width]`.
    pub cos: &'a [f32],
    /// Sines, `[rows, width]`.
    pub sin: &'a [f32],
    /// Table rows: without `positions` one per position of a sequence, or one per position of each sequence of the batch.
    pub rows: usize,
    /// Table row of each position of each sequence, `[batch, seq]`.
    pub positions: Option<&'a [usize]>,
    /// Entries of a table row: one per pair, or one per element (`dim`).
    pub width: usize,
    /// Leading elements of a vector that are rotated; the others stay.
    pub dim: usize,
    /// Whether element `2i` pairs with `2i + 1`, instead of `i` with `i + dim / 2`.
    pub interleaved: bool,
}

/// Rotates the vectors of `x` in place.
pub fn rotary_in_place(
    x: &mut [f32],
    heads: Heads,
    tables: &Rotary<'_>,
    inverse: bool,
) -> Result<()> {
    rotary_in_place_on(Isa::detect(), x, heads, tables, inverse)
}

fn rotary_in_place_on(
    isa: Isa,
    x: &mut [f32],
    heads: Heads,
    tables: &Rotary<'_>,
    inverse: bool,
) -> Result<()> {
    heads.check_mut("vectors", x.len())?;
    tables.check(heads)?;
    run(isa, None, x, (heads, tables), inverse);
    Ok(())
}

/// Writes the rotated vectors of `x` to `y`, which may lie in another order.
pub fn rotary(
    x: &[f32],
    from: Heads,
    tables: &Rotary<'_>,
    inverse: bool,
    y: &mut [f32],
    to: Heads,
) -> Result<()> {
    from.check("vectors", x.len())?;
    to.check_mut("rotated vectors", y.len())?;
    tables.check(from)?;
    for (what, found, expected) in [
        ("batch", to.batch, from.batch),
        ("sequence", to.seq, from.seq),
        ("heads", to.heads, from.heads),
        ("head dimension", to.dim, from.dim),
    ] {
        check_dim(what, found, expected)?;
    }
    run(Isa::detect(), Some((x, from)), y, (to, tables), inverse);
    Ok(())
}

impl Rotary<'_> {
    fn check(&self, heads: Heads) -> Result<()> {
        let entries = product("rotary table", &[self.rows, self.width])?;
        check_len("cosines", self.cos.len(), entries)?;
        check_len("sines", self.sin.len(), entries)?;
        let all = product("positions", &[heads.batch, heads.seq])?;
        if let Some(positions) = self.positions {
            check_len("positions", positions.len(), all)?;
            if let Some(&position) = positions.iter().find(|row| **row >= self.rows) {
                return Err(KernelError::Index {
                    what: "position",
                    index: position as i64,
                    bound: self.rows,
                });
            }
        } else if self.rows != heads.seq {
            check_dim("rows of the rotary table", self.rows, all)?;
        }
        if self.dim > heads.dim || !self.dim.is_multiple_of(2) {
            check_dim("rotated elements", self.dim, heads.dim / 2 * 2)?;
        }
        if self.width != self.dim {
            check_dim("width of the rotary table", self.width, self.dim / 2)?;
        }
        Ok(())
    }
}

#[derive(Clone, Copy)]
struct Out(*mut f32);
// SAFETY: tasks write disjoint vectors, which `Heads::check_mut` has established.
unsafe impl Send for Out {}
// SAFETY: as for `Send`: no vector is shared by two tasks.
unsafe impl Sync for Out {}

fn run(
    isa: Isa,
    x: Option<(&[f32], Heads)>,
    y: &mut [f32],
    (to, tables): (Heads, &Rotary<'_>),
    inverse: bool,
) {
    let out = Out(y.as_mut_ptr());
    let position = |index: usize| {
        let (b, s) = (index / to.seq, index % to.seq);
        let row = match tables.positions {
            Some(positions) => positions[index],
            None if tables.rows == to.seq => s,
            None => index,
        };
        let turn = Turn {
            cos: &tables.cos[row * tables.width..][..tables.width],
            sin: &tables.sin[row * tables.width..][..tables.width],
            dim: tables.dim,
            interleaved: tables.interleaved,
            inverse,
        };
        for h in 0..to.heads {
            // SAFETY: `check_mut` found this vector inside `y` and apart from all others.
            let vector =
                unsafe { std::slice::from_raw_parts_mut({ out }.0.add(to.at(b, s, h)), to.dim) };
            if let Some((x, from)) = x {
                vector.copy_from_slice(&x[from.at(b, s, h)..][..from.dim]);
            }
            rotate(isa, &turn, vector);
        }
    };
    if to.vectors() == 0 {
        return;
    }
    let positions = to.batch * to.seq;
    if is_large(to.vectors() * to.dim) {
        let least = crate::rows_per_task(to.heads * to.dim);
        team::range(positions.div_ceil(least), |part| {
            (part * least..positions.min((part + 1) * least)).for_each(position);
        });
    } else {
        (0..positions).for_each(position);
    }
}

struct Turn<'a> {
    cos: &'a [f32],
    sin: &'a [f32],
    dim: usize,
    interleaved: bool,
    inverse: bool,
}

multiversion! { fn rotate(turn: &Turn<'_>, x: &mut [f32]) = rotate_body }

#[inline(always)]
fn rotate_body<const FMA: bool>(turn: &Turn<'_>, x: &mut [f32]) {
    let half = turn.dim / 2;
    let sign = if turn.inverse { -1.0 } else { 1.0 };
    let x = &mut x[..turn.dim];
    if turn.interleaved {
        let every = turn.cos.len() / half.max(1);
        for (i, pair) in x.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            let (first, second) = (i * every, i * every + every - 1);
            let (sin_first, sin_second) = swap(turn.inverse, turn.sin[first], turn.sin[second]);
            let (a, b) = (pair[0], pair[1]);
            pair[0] = madd::<FMA>(a, turn.cos[first], -sign * b * sin_first);
            pair[1] = madd::<FMA>(b, turn.cos[second], sign * a * sin_second);
        }
        return;
    }
    let second = turn.cos.len() - half;
    let (low, high) = x.split_at_mut(half);
    let (cos_low, cos_high) = (&turn.cos[..half], &turn.cos[second..]);
    let (sin_low, sin_high) = swap(turn.inverse, &turn.sin[..half], &turn.sin[second..]);
    for i in 0..half {
        let (a, b) = (low[i], high[i]);
        low[i] = madd::<FMA>(a, cos_low[i], -sign * b * sin_low[i]);
        high[i] = madd::<FMA>(b, cos_high[i], sign * a * sin_high[i]);
    }
}

/// The transpose takes the sine of the other element of the pair.
#[inline(always)]
fn swap<T>(inverse: bool, a: T, b: T) -> (T, T) {
    if inverse { (b, a) } else { (a, b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{close, dot, gradient, values, wide};

    /// `[b, s, h, d]` dense.
    fn naive(x: &[f64], heads: Heads, t: &Rotary<'_>) -> Vec<f64> {
        let mut y = x.to_vec();
        for v in 0..heads.vectors() {
            let (b, s) = (v / heads.heads / heads.seq, v / heads.heads % heads.seq);
            let row = if t.rows == heads.seq {
                s
            } else {
                b * heads.seq + s
            };
            let x = &x[v * heads.dim..][..heads.dim];
            for i in 0..t.dim / 2 {
                let (p, q) = if t.interleaved {
                    (2 * i, 2 * i + 1)
                } else {
                    (i, i + t.dim / 2)
                };
                let entry = |e: usize| row * t.width + if t.width == t.dim { e } else { i };
                let (c, s) = (
                    |e| f64::from(t.cos[entry(e)]),
                    |e| f64::from(t.sin[entry(e)]),
                );
                y[v * heads.dim + p] = x[p] * c(p) - x[q] * s(p);
                y[v * heads.dim + q] = x[q] * c(q) + x[p] * s(q);
            }
        }
        y
    }

    #[test]
    fn rotation_and_gradient_in_every_form() {
        let heads = Heads::bshd(2, 3, 2, 10);
        let (x, dy) = (values(120, 1), values(120, 2));
        for form in 0..8 {
            let (interleaved, full, per_batch) = (form & 1 == 1, form & 2 == 2, form & 4 == 4);
            let dim = 8;
            let (rows, width) = (
                if per_batch { 6 } else { 3 },
                if full { dim } else { dim / 2 },
            );
            let (cos, sin) = (values(rows * width, 3), values(rows * width, 4));
            let tables = Rotary {
                cos: &cos,
                sin: &sin,
                rows,
                positions: None,
                width,
                dim,
                interleaved,
            };
            for isa in Isa::all() {
                let mut y = x.clone();
                rotary_in_place_on(isa, &mut y, heads, &tables, false).unwrap();
                // One product and one sum of values below 1.
                close(&y, &naive(&wide(&x), heads, &tables), 3e-7);

                let mut dx = dy.clone();
                rotary_in_place_on(isa, &mut dx, heads, &tables, true).unwrap();
                close(
                    &dx,
                    &gradient(&wide(&x), |x| dot(&naive(x, heads, &tables), &wide(&dy))),
                    3e-7,
                );
            }

            let mut y = x.clone();
            rotary_in_place(&mut y, heads, &tables, false).unwrap();
            let mut moved = vec![0.0; 120];
            rotary(
                &x,
                heads,
                &tables,
                false,
                &mut moved,
                Heads::bhsd(2, 3, 2, 10),
            )
            .unwrap();
            let to = Heads::bhsd(2, 3, 2, 10);
            for v in 0..12 {
                let (b, s, h) = (v / 6, v / 2 % 3, v % 2);
                assert_eq!(moved[to.at(b, s, h)..][..10], y[v * 10..][..10]);
            }
        }
    }

    #[test]
    fn positions_choose_rows_of_the_tables() {
        let heads = Heads::bhsd(2, 2, 3, 4);
        let (cos, sin) = (values(5 * 2, 1), values(5 * 2, 2));
        let positions = [4, 0, 2, 2];
        let pick = |table: &[f32]| -> Vec<f32> {
            let rows = positions.iter().flat_map(|&p| &table[2 * p..][..2]);
            rows.copied().collect()
        };
        let tables = Rotary {
            cos: &cos,
            sin: &sin,
            rows: 5,
            positions: Some(&positions),
            width: 2,
            dim: 4,
            interleaved: false,
        };
        let (picked_cos, picked_sin) = (pick(&cos), pick(&sin));
        let picked = Rotary {
            cos: &picked_cos,
            sin: &picked_sin,
            rows: 4,
            positions: None,
            ..tables
        };
        let (mut x, mut y) = (values(48, 3), values(48, 3));
        rotary_in_place(&mut x, heads, &tables, false).unwrap();
        rotary_in_place(&mut y, heads, &picked, false).unwrap();
        assert_eq!(x, y);
        let outside = Rotary {
            positions: Some(&[0, 5, 0, 0]),
            ..tables
        };
        let wrong = rotary_in_place(&mut x, heads, &outside, false);
        assert!(matches!(wrong, Err(KernelError::Index { index: 5, .. })));
    }

    #[test]
    fn sizes_are_checked() {
        let t = [0.0; 12];
        let tables = Rotary {
            cos: &t,
            sin: &t,
            rows: 3,
            positions: None,
            width: 4,
            dim: 8,
            interleaved: false,
        };
        let mut x = [0.0; 24];
        assert_eq!(
            rotary_in_place(&mut x, Heads::bshd(1, 3, 1, 8), &tables, false),
            Ok(())
        );
        assert!(rotary_in_place(&mut x, Heads::bshd(1, 2, 1, 8), &tables, false).is_err());
        assert!(rotary_in_place(&mut x, Heads::bshd(1, 3, 1, 6), &tables, false).is_err());
        let odd = Rotary { dim: 7, ..tables };
        assert!(rotary_in_place(&mut x, Heads::bshd(1, 3, 1, 8), &odd, false).is_err());
        let empty = Rotary {
            cos: &[],
            sin: &[],
            width: 0,
            dim: 0,
            ..tables
        };
        assert_eq!(
            rotary_in_place(&mut x, Heads::bshd(1, 3, 1, 8), &empty, false),
            Ok(())
        );
    }
}
