//! Expressions that several gradient rules and definitions share: what a rule asks of its node, constants of the node's type, and the
//! gradient of broadcasting.

use super::{DOMAIN, Differentiated, no_gradient};
use crate::ir::{Builder, DType, Fact, Sym, TensorData, Val, ValueId};
use crate::ops::{ExpandCx, GradCx, GradError};

impl GradCx<'_> {
    /// Element type of the first floating-point output or input, for constants.
    pub(in crate::ops) fn float_type(&self) -> DType {
        let outs = self.graph.node_outputs(self.id);
        let ins = self.graph.node_inputs(self.id);
        outs.into_iter()
            .chain(ins)
            .flatten()
            .filter_map(|v| (self.facts)(v)?.dtype)
            .find(|d| d.is_float())
            .unwrap_or_else(|| self.b.float())
    }

    /// A scalar constant of the node's floating-point type.
    pub(in crate::ops) fn scalar(&self, x: f32) -> Val {
        self.b.scalar_of(x, self.float_type())
    }

    /// `v * x`, in the node's type; `v` itself where `x` is 1.
    pub(in crate::ops) fn scaled(&self, v: Val, x: f32) -> Val {
        if x.to_bits() == 1f32.to_bits() {
            return v;
        }
        self.b.mul(v, self.scalar(x))
    }

    /// What is known of a value.
    pub(in crate::ops) fn fact_of(&self, v: ValueId) -> Fact {
        (self.facts)(v).unwrap_or_default()
    }

    /// What is known of an output.
    pub(in crate::ops) fn out_fact(&self, slot: usize) -> Fact {
        self.graph
            .output(self.id, slot)
            .map(|v| self.fact_of(v))
            .unwrap_or_default()
    }

    /// The shape of an existing value as an `i64` vector: a constant if it is known.
    pub(in crate::ops) fn shape_of(&self, v: ValueId) -> Val {
        let fact = self.fact_of(v);
        let known: Option<Vec<i64>> = fact
            .dims
            .as_ref()
            .and_then(|d| d.iter().map(Sym::as_const).collect());
        match known {
            Some(dims) => self.b.ints(&dims),
            None => self.b.shape(v),
        }
    }

    /// The shape of an input, see [`shape_of`](Self::shape_of).
    pub(in crate::ops) fn input_shape(&self, slot: usize) -> Result<Val, GradError> {
        Ok(self.shape_of(self.input_id(slot)?))
    }

    /// Zeros in the shape of an existing value and of its type.
    pub(in crate::ops) fn zeros_like(&self, v: ValueId) -> Val {
        let dtype = self.fact_of(v).dtype.unwrap_or_else(|| self.float_type());
        let shape = self.shape_of(v);
        self.zeros(shape, dtype)
    }

    /// Zeros of a shape.
    pub(in crate::ops) fn zeros(&self, shape: Val, dtype: DType) -> Val {
        let bytes = vec![0u8; (dtype.bits() / 8) as usize];
        let zero = TensorData::raw(dtype, [1], bytes.into());
        self.b
            .op("ConstantOfShape", &[shape], &[("value", zero.into())])
    }

    /// `cond ? v : 0`.
    pub(in crate::ops) fn keep_where(&self, cond: Val, v: Val) -> Val {
        self.b.op("Where", &[cond, v, self.scalar(0.0)], &[])
    }

    /// Elements of an integer input: a constant of the graph, or known from inference.
    pub(in crate::ops) fn const_ints(&self, slot: usize) -> Option<Vec<i64>> {
        self.fact(slot).ints?.iter().map(Sym::as_const).collect()
    }

    /// An input, if it is there.
    pub(in crate::ops) fn optional(&self, slot: usize) -> Option<Val> {
        self.graph.input(self.id, slot).map(Val::from)
    }

    /// Rank of an input.
    pub(in crate::ops) fn rank(&self, slot: usize) -> Result<usize, GradError> {
        self.fact(slot)
            .rank()
            .ok_or_else(|| GradError(format!("the rank of input {slot} is unknown")))
    }

    /// Dimensions of an input.
    pub(in crate::ops) fn dims(&self, slot: usize) -> Result<Vec<Sym>, GradError> {
        self.fact(slot)
            .dims
            .ok_or_else(|| GradError(format!("the shape of input {slot} is unknown")))
    }

    /// Element type of an input; `f32` where it is unknown.
    pub(in crate::ops) fn float(&self, slot: usize) -> DType {
        self.fact(slot).dtype.unwrap_or(DType::Float)
    }

    /// An error if any of these inputs needs a gradient.
    pub(in crate::ops) fn refuse(&self, slots: &[usize], what: &str) -> Differentiated {
        match slots.iter().find(|&&s| self.wants(s)) {
            Some(s) => no_gradient(format!("no gradient for {what} (input {s})")),
            None => Ok(()),
        }
    }

    /// A gradient in the shape of the node's first output, summed to the shape of an input that was broadcast to it.
    pub(in crate::ops) fn unbroadcast(&self, slot: usize, grad: Val) -> Result<Val, GradError> {
        self.sum_to_input(slot, grad, self.out_fact(0).dims.as_deref())
    }

    /// A gradient of the shape `from`, where it is known, summed to the shape of an input that was broadcast to it.
    pub(in crate::ops) fn sum_to_input(
        &self,
        slot: usize,
        grad: Val,
        from: Option<&[Sym]>,
    ) -> Result<Val, GradError> {
        let id = self.input_id(slot)?;
        let to = self.fact_of(id).dims;
        Ok(sum_to(self.b, grad, from, to.as_deref(), || {
            self.shape_of(id)
        }))
    }

    /// `Pad` with zeros; begin and end of every axis, in ONNX's order.
    pub(in crate::ops) fn pad_zeros(&self, g: Val, pads: &[i64]) -> Val {
        if pads.iter().all(|p| *p == 0) {
            return g;
        }
        self.b.op("Pad", &[g, self.b.ints(pads)], &[])
    }
}

impl ExpandCx<'_> {
    /// Element type of an input; `f32` where it is unknown.
    pub(in crate::ops) fn float(&self, slot: usize) -> DType {
        self.fact(slot).dtype.unwrap_or(DType::Float)
    }
}

/// Element type of constants and statistics for a value: `f32` for the types that operators with `stash_type` 1 widen.
pub(in crate::ops) fn widened(dtype: DType, stash: i64) -> DType {
    if stash == 1 && matches!(dtype, DType::Float16 | DType::Bfloat16) {
        DType::Float
    } else {
        dtype
    }
}

/// `v` in another element type.
pub(in crate::ops) fn convert(b: &Builder, v: Val, from: DType, to: DType) -> Val {
    if from == to { v } else { b.cast(v, to) }
}

/// The last two axes exchanged.
pub(in crate::ops) fn swap_last(b: &Builder, v: Val, rank: usize) -> Val {
    let mut perm: Vec<i64> = (0..rank as i64).collect();
    perm.swap(rank - 1, rank - 2);
    b.transpose(v, &perm)
}

/// One size of a value as a one-element `i64` vector: a constant where it is known.
pub(in crate::ops) fn size(b: &Builder, v: Val, known: &Fact, axis: i64) -> Val {
    if let Some(n) = known.size(axis) {
        return b.ints(&[n]);
    }
    // A negative index counts from the end of the shape, as the axis does.
    let at = b.ints(&[axis]);
    b.op("Gather", &[b.shape(v), at], &[("axis", 0i64.into())])
}

/// `[rows, width]`, where `width` is an axis of `like`.
pub(in crate::ops) fn rows(b: &Builder, v: Val, like: Val, known: &Fact, axis: i64) -> Val {
    if let Some(n) = known.size(axis) {
        let shape = b.ints(&[-1, n]);
        return b.reshape(v, shape);
    }
    let shape = b.concat(&[b.ints(&[-1]), size(b, like, known, axis)], 0);
    b.reshape(v, shape)
}

/// How a broadcast axis-by-axis comparison ends.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Sum {
    /// Nothing was broadcast.
    None,
    /// Sum over the first `lead` axes, which go, and over `ones`, which stay with size 1.
    Axes { lead: usize, ones: Vec<usize> },
    /// It depends on sizes that are not known.
    Dynamic,
}

fn plan(from: &[Sym], to: &[Sym]) -> Sum {
    let Some(lead) = from.len().checked_sub(to.len()) else {
        return Sum::Dynamic;
    };
    let mut ones = Vec::new();
    for (i, (f, t)) in from[lead..].iter().zip(to).enumerate() {
        if f == t {
            continue;
        }
        match (f.as_const(), t.as_const()) {
            (_, Some(1)) => ones.push(lead + i),
            // The input is not of size 1, or was not broadcast to more: it had that size already.
            (_, Some(_)) | (Some(1), None) => {}
            (_, None) => return Sum::Dynamic,
        }
    }
    if lead == 0 && ones.is_empty() {
        Sum::None
    } else {
        Sum::Axes { lead, ones }
    }
}

/// Sums a gradient of shape `from` to the shape `to` that was broadcast to it; `target` makes the shape vector where it is needed.
fn sum_to(
    b: &Builder,
    grad: Val,
    from: Option<&[Sym]>,
    to: Option<&[Sym]>,
    target: impl FnOnce() -> Val,
) -> Val {
    let plan = match (from, to) {
        (Some(from), Some(to)) => plan(from, to),
        _ => Sum::Dynamic,
    };
    match plan {
        Sum::None => grad,
        Sum::Dynamic => b.op_in(DOMAIN, "SumTo", &[grad, target()], &[]),
        Sum::Axes { lead, ones } => {
            let leading: Vec<i64> = (0..lead as i64).collect();
            if ones.is_empty() {
                return b.reduce_sum(grad, &leading, false);
            }
            let all: Vec<i64> = leading
                .iter()
                .copied()
                .chain(ones.iter().map(|&a| a as i64))
                .collect();
            let summed = b.reduce_sum(grad, &all, true);
            if lead == 0 {
                summed
            } else {
                b.squeeze(summed, &leading)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Sum, plan};
    use crate::ir::Sym;

    fn dims(text: &[&str]) -> Vec<Sym> {
        text.iter()
            .map(|t| t.parse::<i64>().map_or_else(|_| Sym::symbol(t), Sym::from))
            .collect()
    }

    #[test]
    fn sums_what_was_broadcast() {
        let axes = |lead, ones: &[usize]| Sum::Axes {
            lead,
            ones: ones.to_vec(),
        };
        for (from, to, want) in [
            (&["b", "s", "8"][..], &["b", "s", "8"][..], Sum::None),
            (&["b", "s", "8"], &["8"], axes(2, &[])),
            (&["b", "s", "8"], &["1", "8"], axes(1, &[1])),
            (&["b", "s", "8"], &["b", "1", "8"], axes(0, &[1])),
            (&["b", "s", "8"], &["b", "t", "8"], Sum::Dynamic),
            (&["b", "?1"], &["b", "4"], Sum::None),
            (&["b", "s"], &["1", "b", "s"], Sum::Dynamic),
        ] {
            assert_eq!(plan(&dims(from), &dims(to)), want, "{from:?} to {to:?}");
        }
    }
}
