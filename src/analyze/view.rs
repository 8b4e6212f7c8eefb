//! A graph with the questions that patterns ask: who makes a value, who reads it, which number it is, and what is known of it.

use crate::infer::Verified;
use crate::ir::{AttrValue, DType, Fact, Graph, Node, NodeId, Sym, TensorData, Use, ValueId};

/// What is known of the values of a graph.
pub(crate) trait Known {
    /// What is known of one value.
    fn fact(&self, v: ValueId) -> Option<&Fact>;
}

impl Known for Verified {
    fn fact(&self, v: ValueId) -> Option<&Fact> {
        Verified::fact(self, v)
    }
}

/// A graph, and what is known of its values. A view costs nothing to make.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    pub(crate) graph: &'a Graph,
    known: &'a dyn Known,
}

impl std::fmt::Debug for View<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View").finish_non_exhaustive()
    }
}

impl<'a> View<'a> {
    pub(crate) fn new(graph: &'a Graph, known: &'a dyn Known) -> Self {
        View { graph, known }
    }

    // ---- nodes ---------------------------------------------------------------------------------------------------------------

    pub(crate) fn node(&self, n: NodeId) -> &'a Node {
        self.graph.node(n)
    }

    /// The operator's name, if the node is of `ai.onnx` or `com.microsoft`.
    pub(crate) fn op(&self, n: NodeId) -> &'a str {
        let op = &self.graph.node(n).op;
        match &*op.domain {
            "" | "com.microsoft" => &op.op_type,
            _ => "",
        }
    }

    /// Whether the node is this `ai.onnx` operator.
    pub(crate) fn is(&self, n: NodeId, op: &str) -> bool {
        self.graph.node(n).op.is_onnx(op)
    }

    /// Whether a node reads nothing of a value but its shape.
    pub(crate) fn measures(&self, n: NodeId) -> bool {
        matches!(self.op(n), "Shape" | "Size")
    }

    pub(crate) fn inputs(&self, n: NodeId) -> Vec<Option<ValueId>> {
        self.graph.node_inputs(n)
    }

    pub(crate) fn input(&self, n: NodeId, slot: usize) -> Option<ValueId> {
        self.graph.input(n, slot)
    }

    /// The first output of a node.
    pub(crate) fn out(&self, n: NodeId) -> Option<ValueId> {
        self.graph.output(n, 0)
    }

    /// The first two inputs of a node.
    pub(crate) fn pair(&self, n: NodeId) -> Option<(ValueId, ValueId)> {
        Some((self.graph.input(n, 0)?, self.graph.input(n, 1)?))
    }

    /// The axes of a reduction or squeeze: the attribute of old opsets, or the input of new ones.
    pub(crate) fn axes(&self, n: NodeId) -> Option<Vec<i64>> {
        match self.graph.node(n).ints("axes") {
            Some(a) => Some(a.to_vec()),
            None => self.ints(self.graph.input(n, 1)?),
        }
    }

    // ---- who makes and who reads a value -------------------------------------------------------------------------------------

    /// The node that makes a value.
    pub(crate) fn producer(&self, v: ValueId) -> Option<NodeId> {
        self.graph.producer(v).map(|p| p.0)
    }

    /// The node that makes a value, if it is this `ai.onnx` operator and the value its first output.
    pub(crate) fn made_by(&self, v: ValueId, op: &str) -> Option<NodeId> {
        let (n, slot) = self.graph.producer(v)?;
        (slot == 0 && self.is(n, op)).then_some(n)
    }

    /// The only reader of a value, if it has exactly one and is no graph output.
    pub(crate) fn only_use(&self, v: ValueId) -> Option<(NodeId, u32)> {
        if self.graph.is_output(v) {
            return None;
        }
        match self.graph.uses(v).as_slice() {
            [Use::Input(n, s)] => Some((*n, *s)),
            _ => None,
        }
    }

    // ---- constants -----------------------------------------------------------------------------------------------------------

    /// The tensor that stands for a value: an initializer, the default of a graph input included, or the result of a `Constant` node.
    pub(crate) fn tensor(&self, v: ValueId) -> Option<&'a TensorData> {
        tensor(self.graph, v)
    }

    /// The constant behind a value: what no caller can replace.
    pub(crate) fn constant(&self, v: ValueId) -> Option<&'a TensorData> {
        self.tensor(v).filter(|_| !self.graph.is_input(v))
    }

    /// The number behind a constant with one element.
    pub(crate) fn scalar(&self, v: ValueId) -> Option<f32> {
        let t = self.constant(v)?;
        (t.count() == Some(1))
            .then(|| t.to_f32())
            .flatten()?
            .first()
            .copied()
    }

    /// The integers behind a value: constant, or known by inference.
    pub(crate) fn ints(&self, v: ValueId) -> Option<Vec<i64>> {
        if let Some(known) = self.fact(v).and_then(|f| f.ints.as_ref()) {
            return known.iter().map(Sym::as_const).collect();
        }
        self.constant(v)
            .filter(|t| t.count().is_some_and(|n| n <= 64))
            .and_then(TensorData::to_i64)
    }

    // ---- what is known of a value --------------------------------------------------------------------------------------------

    pub(crate) fn fact(&self, v: ValueId) -> Option<&'a Fact> {
        self.known.fact(v)
    }

    pub(crate) fn dtype(&self, v: ValueId) -> Option<DType> {
        self.fact(v)?.dtype
    }

    pub(crate) fn dims(&self, v: ValueId) -> Option<&'a [Sym]> {
        self.fact(v)?.dims.as_deref()
    }

    pub(crate) fn rank(&self, v: ValueId) -> Option<usize> {
        self.fact(v)?.rank()
    }

    /// Size of an axis, where it is a known number; negative axes count from the last one.
    pub(crate) fn size(&self, v: ValueId, axis: i64) -> Option<i64> {
        self.fact(v)?.size(axis)
    }

    /// Whether a value has one element, whatever its rank.
    pub(crate) fn is_single(&self, v: ValueId) -> bool {
        self.dims(v)
            .is_some_and(|dims| dims.iter().all(|d| d.is(1)))
    }

    /// Whether fused kernels take values of this type.
    pub(crate) fn is_f32(&self, v: ValueId) -> bool {
        self.dtype(v) == Some(DType::Float)
    }

    /// Whether two values have the same, fully known shape (symbols allowed).
    pub(crate) fn same_shape(&self, a: ValueId, b: ValueId) -> bool {
        matches!((self.dims(a), self.dims(b)), (Some(a), Some(b)) if a == b)
    }

    /// `x` where a value is `x` with its last two axes exchanged.
    pub(crate) fn untransposed(&self, v: ValueId) -> Option<ValueId> {
        let t = self.made_by(v, "Transpose")?;
        let x = self.graph.input(t, 0)?;
        let rank = self.rank(x)? as i64;
        let mut perm: Vec<i64> = (0..rank).collect();
        if rank < 2 {
            return None;
        }
        perm.swap(rank as usize - 1, rank as usize - 2);
        (self.graph.node(t).ints("perm") == Some(&perm)).then_some(x)
    }
}

/// The initializer that a value is, by itself or as what an `Identity` makes of it: exporters store equal parameters once.
pub(crate) fn identical(graph: &Graph, v: ValueId) -> Option<&TensorData> {
    let mut v = v;
    while graph.value(v).tensor.is_none() {
        let (n, _) = graph.producer(v)?;
        if !graph.node(n).op.is_onnx("Identity") {
            return None;
        }
        v = graph.input(n, 0)?;
    }
    graph.value(v).tensor.as_ref()
}

/// The tensor that stands for a value: an initializer, or the result of a `Constant` node.
pub(crate) fn tensor(graph: &Graph, v: ValueId) -> Option<&TensorData> {
    if let Some(t) = &graph.value(v).tensor {
        return Some(t);
    }
    let (n, _) = graph.producer(v)?;
    let node = graph.node(n);
    let value = node.op.is_onnx("Constant").then(|| node.attr("value"))?;
    value.and_then(AttrValue::as_tensor)
}
