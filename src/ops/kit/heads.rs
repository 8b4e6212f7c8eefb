//! What attention operators of all domains share: heads, rotations, masks and the core, as expressions of standard operators.
//!
//! The expressions have the form that the native pipeline fuses again.

use super::grad::convert;
use crate::ir::{Builder, DType, OpId, Val};

/// `[b, s, n·d]` as `[b, n, s, d]`.
pub(in crate::ops) fn split_heads(b: &Builder, v: Val, heads: i64) -> Val {
    let v = b.reshape(v, b.ints(&[0, 0, heads, -1]));
    b.transpose(v, &[0, 2, 1, 3])
}

/// `[b, n, s, d]` as `[b, s, n·d]`.
pub(in crate::ops) fn merge_heads(b: &Builder, v: Val) -> Val {
    let v = b.transpose(v, &[0, 2, 1, 3]);
    b.reshape(v, b.ints(&[0, 0, -1]))
}

/// Each key or value head `times` in a row: `[b, n, s, d]` as `[b, n·times, s, d]`.
pub(in crate::ops) fn repeat_heads(b: &Builder, v: Val, heads: i64, times: i64, width: i64) -> Val {
    if times == 1 {
        return v;
    }
    let v = b.unsqueeze(v, &[2]);
    let v = b.op("Expand", &[v, b.ints(&[1, 1, times, 1, 1])], &[]);
    b.reshape(v, b.ints(&[0, heads * times, -1, width]))
}

/// One size of a value, as a scalar.
pub(in crate::ops) fn length(b: &Builder, v: Val, axis: i64) -> Val {
    b.op(
        "Gather",
        &[b.shape(v), b.int(axis)],
        &[("axis", 0i64.into())],
    )
}

/// `0, 1, … n - 1`.
pub(in crate::ops) fn count(b: &Builder, n: Val) -> Val {
    b.op("Range", &[b.int(0), n, b.int(1)], &[])
}

/// Parts of the last axis.
pub(in crate::ops) fn split_last(b: &Builder, v: Val, sizes: &[i64]) -> Vec<Val> {
    let ins = [Some(v), Some(b.ints(sizes))];
    b.node_n(
        OpId::onnx("Split"),
        &ins,
        &[("axis", (-1i64).into())],
        sizes.len(),
    )
}

/// A rotary embedding.
#[derive(Clone, Copy)]
pub(in crate::ops) struct Rotary {
    /// Cosines, `[b or 1, s, half]`.
    pub(in crate::ops) cos: Val,
    /// Sines of the same shape.
    pub(in crate::ops) sin: Val,
    /// Half of the width that is rotated; the rest of each head passes.
    pub(in crate::ops) half: i64,
    /// Width of a head, where it is known.
    pub(in crate::ops) width: Option<i64>,
    /// Whether pairs are neighbours (`x₀, x₁`) or lie half a width apart.
    pub(in crate::ops) interleaved: bool,
}

impl Rotary {
    /// Rotates `[b, n, s, d]`.
    pub(in crate::ops) fn apply(&self, b: &Builder, x: Val) -> Val {
        let (half, full) = (self.half, 2 * self.half);
        if self.width == Some(full) {
            return self.rotate(b, x);
        }
        let turned = self.rotate(b, b.slice(x, 3, 0, full));
        b.concat(&[turned, b.slice(x, 3, 2 * half, i64::MAX)], 3)
    }

    fn rotate(&self, b: &Builder, x: Val) -> Val {
        let (cos, sin) = (b.unsqueeze(self.cos, &[1]), b.unsqueeze(self.sin, &[1]));
        if self.interleaved {
            return self.rotate_pairs(b, x, cos, sin);
        }
        let (cos, sin) = (b.concat(&[cos, cos], 3), b.concat(&[sin, sin], 3));
        let lower = b.slice(x, 3, 0, self.half);
        let upper = b.slice(x, 3, self.half, 2 * self.half);
        let turned = b.concat(&[b.neg(upper), lower], 3);
        b.add(b.mul(x, cos), b.mul(turned, sin))
    }

    fn rotate_pairs(&self, b: &Builder, x: Val, cos: Val, sin: Val) -> Val {
        let x = b.reshape(
            x,
            b.constant(crate::ir::TensorData::ints(&[0, 0, 0, self.half, 2])),
        );
        let part = |at: i64| b.op("Gather", &[x, b.int(at)], &[("axis", 4i64.into())]);
        let (first, second) = (part(0), part(1));
        let real = b.sub(b.mul(first, cos), b.mul(second, sin));
        let imaginary = b.add(b.mul(first, sin), b.mul(second, cos));
        let pairs = b.concat(&[b.unsqueeze(real, &[4]), b.unsqueeze(imaginary, &[4])], 4);
        b.reshape(pairs, b.ints(&[0, 0, 0, 2 * self.half]))
    }
}

/// An additive bias from what may be attended to.
pub(in crate::ops) fn bias_of(b: &Builder, allowed: Val, ty: DType, forbidden: f32) -> Val {
    let (zero, low) = (b.scalar_of(0.0, ty), b.scalar_of(forbidden, ty));
    b.op("Where", &[allowed, zero, low], &[])
}

/// Which keys a query may attend to by position. The query in row `i` stands at position `i + offset`.
pub(in crate::ops) struct Window {
    /// Position of the first query: a scalar, or `[b, 1, 1, 1]`.
    pub(in crate::ops) offset: Option<Val>,
    /// How many keys are seen, the query's own included; all of them when it is not positive.
    pub(in crate::ops) left: i64,
}

impl Window {
    /// `[s, t]`, or `[b, 1, s, t]`: whether key `j` stands at or before query `i`, and not too far before.
    pub(in crate::ops) fn allowed(&self, b: &Builder, queries: Val, keys: Val) -> Val {
        let rows = b.unsqueeze(count(b, queries), &[1]);
        let rows = self.offset.map_or(rows, |o| b.add(rows, o));
        let columns = b.unsqueeze(count(b, keys), &[0]);
        let past = b.op("LessOrEqual", &[columns, rows], &[]);
        if self.left <= 0 {
            return past;
        }
        let first = b.sub(rows, b.int(self.left));
        let near = b.op("Greater", &[columns, first], &[]);
        b.op("And", &[past, near], &[])
    }
}

/// The core: `softmax(softcap(scale·q·kᵀ) + biases)·v` over `[b, n, s, d]`.
pub(in crate::ops) struct Core {
    pub(in crate::ops) scale: f32,
    /// `c·tanh(x/c)`, when positive.
    pub(in crate::ops) softcap: f32,
    /// Additive biases, each broadcast to `[b, n, s, t]`.
    pub(in crate::ops) biases: Vec<Val>,
    /// Element type of the operands.
    pub(in crate::ops) ty: DType,
    /// Element type of the softmax.
    pub(in crate::ops) precise: DType,
    /// Whether a row may be masked as a whole, which then attends to nothing.
    pub(in crate::ops) guard: bool,
}

/// The output of the core and its stages.
pub(in crate::ops) struct Attended {
    pub(in crate::ops) y: Val,
    /// Scaled products; after the soft cap; with biases; after the softmax.
    pub(in crate::ops) stages: [Val; 4],
}

impl Core {
    pub(in crate::ops) fn build(&self, b: &Builder, q: Val, k: Val, v: Val) -> Attended {
        let c = |x: f32| b.scalar_of(x, self.ty);
        let product = b.matmul(q, b.transpose(k, &[0, 1, 3, 2]));
        let scaled = b.mul(product, c(self.scale));
        let capped = if self.softcap > 0.0 {
            let inner = b.unary("Tanh", b.div(scaled, c(self.softcap)));
            b.mul(inner, c(self.softcap))
        } else {
            scaled
        };
        // Masks first: their sum is small where they do not depend on the head.
        let bias = self.biases.iter().copied().reduce(|x, y| b.add(x, y));
        let biased = bias.map_or(capped, |m| b.add(capped, m));
        let scores = convert(b, biased, self.ty, self.precise);
        let p = b.op("Softmax", &[scores], &[("axis", (-1i64).into())]);
        let p = if self.guard {
            let nan = b.unary("IsNaN", p);
            b.op("Where", &[nan, b.scalar_of(0.0, self.precise), p], &[])
        } else {
            p
        };
        let p = convert(b, p, self.precise, self.ty);
        Attended {
            y: b.matmul(p, v),
            stages: [scaled, capped, biased, p],
        }
    }
}
