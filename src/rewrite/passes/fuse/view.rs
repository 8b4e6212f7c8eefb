//! Reading patterns off a graph.

use super::super::super::pass::PassCx;
use crate::ir::{AttrValue, Fact, Graph, NodeId, TensorData, Use, ValueId};

/// A graph with the questions patterns ask.
pub(super) struct View<'a> {
    pub(super) g: &'a Graph,
    cx: &'a PassCx<'a>,
}

impl<'a> View<'a> {
    pub(super) fn new(cx: &'a PassCx<'a>) -> Self {
        View {
            g: &cx.model().graph,
            cx,
        }
    }

    pub(super) fn fact(&self, v: ValueId) -> Option<&'a Fact> {
        self.cx.fact(v)
    }

    /// The node that makes `v`, if it is this `ai.onnx` operator.
    pub(super) fn made_by(&self, v: ValueId, op: &str) -> Option<NodeId> {
        let (n, slot) = self.g.producer(v)?;
        (slot == 0 && self.g.node(n).op.is_onnx(op)).then_some(n)
    }

    /// The only reader of `v`, if it has exactly one and is no graph output.
    pub(super) fn only_use(&self, v: ValueId) -> Option<(NodeId, u32)> {
        if self.g.is_output(v) {
            return None;
        }
        match self.g.uses(v).as_slice() {
            [Use::Input(n, s)] => Some((*n, *s)),
            _ => None,
        }
    }

    /// The only reader of `v`, if it is this `ai.onnx` operator.
    pub(super) fn only_use_by(&self, v: ValueId, op: &str) -> Option<NodeId> {
        self.only_use(v)
            .map(|u| u.0)
            .filter(|&n| self.g.node(n).op.is_onnx(op))
    }

    /// The first output of a node.
    pub(super) fn out(&self, n: NodeId) -> Option<ValueId> {
        self.g.output(n, 0)
    }

    /// The two inputs of a binary node.
    pub(super) fn pair(&self, n: NodeId) -> Option<(ValueId, ValueId)> {
        Some((self.g.input(n, 0)?, self.g.input(n, 1)?))
    }

    /// The other input of a binary node.
    pub(super) fn other(&self, n: NodeId, v: ValueId) -> Option<ValueId> {
        match self.pair(n)? {
            (a, b) if a == v => Some(b),
            (a, b) if b == v => Some(a),
            _ => None,
        }
    }

    /// The constant behind a value: an initializer or the output of a `Constant` node.
    pub(super) fn constant(&self, v: ValueId) -> Option<&'a TensorData> {
        if let Some(t) = &self.g.value(v).tensor {
            return (!self.g.is_input(v)).then_some(t);
        }
        let n = self.made_by(v, "Constant")?;
        self.g.node(n).attr("value").and_then(AttrValue::as_tensor)
    }

    /// `x` where `v` is `x` with its last two axes exchanged.
    pub(super) fn untransposed(&self, v: ValueId) -> Option<ValueId> {
        let t = self.made_by(v, "Transpose")?;
        let x = self.g.input(t, 0)?;
        let rank = self.rank(x)? as i64;
        let mut perm: Vec<i64> = (0..rank).collect();
        if rank < 2 {
            return None;
        }
        perm.swap(rank as usize - 1, rank as usize - 2);
        (self.g.node(t).ints("perm") == Some(&perm)).then_some(x)
    }

    /// The number behind a value with one element.
    pub(super) fn scalar(&self, v: ValueId) -> Option<f32> {
        let t = self.constant(v)?;
        (t.count() == Some(1))
            .then(|| t.to_f32())
            .flatten()?
            .first()
            .copied()
    }

    /// The integers behind a value: constant, or known by inference.
    pub(super) fn ints(&self, v: ValueId) -> Option<Vec<i64>> {
        if let Some(known) = self.fact(v).and_then(|f| f.ints.as_ref()) {
            return known.iter().map(crate::ir::Sym::as_const).collect();
        }
        self.constant(v)
            .filter(|t| t.count().is_some_and(|n| n <= 64))
            .and_then(TensorData::to_i64)
    }

    /// Axes of a reduction or squeeze: the attribute of old opsets, or the input of new ones.
    pub(super) fn axes(&self, n: NodeId) -> Option<Vec<i64>> {
        match self.g.node(n).ints("axes") {
            Some(a) => Some(a.to_vec()),
            None => self.ints(self.g.input(n, 1)?),
        }
    }

    pub(super) fn rank(&self, v: ValueId) -> Option<usize> {
        self.fact(v)?.rank()
    }

    /// Whether two values have the same, fully known shape (symbols allowed).
    pub(super) fn same_shape(&self, a: ValueId, b: ValueId) -> bool {
        match (
            self.fact(a).and_then(|f| f.dims.as_ref()),
            self.fact(b).and_then(|f| f.dims.as_ref()),
        ) {
            (Some(a), Some(b)) => a == b,
            _ => false,
        }
    }
}
