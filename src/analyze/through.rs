//! Operators that a value passes through: the one list.
//!
//! Each of them makes its first output of its first input, and says here what it changes on the way. A walk along the graph names the
//! changes that it does not mind; it never names operators.

use crate::ir::{Graph, NodeId, OpId, ValueId};

/// A set of changes that a value may meet on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Through(u16);

/// The operators, and what each changes.
const OPERATORS: [(&str, Through); 20] = [
    ("Identity", Through::SAME),
    ("Dropout", Through::SAME),
    ("Cast", Through::TYPE),
    ("QuantizeLinear", Through::CODE),
    ("DequantizeLinear", Through::CODE),
    ("Reshape", Through::SHAPE),
    ("Squeeze", Through::SHAPE),
    ("Unsqueeze", Through::SHAPE),
    ("Flatten", Through::SHAPE),
    ("Transpose", Through::ORDER),
    ("Expand", Through::REPEAT),
    ("Slice", Through::PART),
    ("Gather", Through::PICK),
    ("Mul", Through::FACTOR),
    ("Div", Through::FACTOR),
    ("Add", Through::SUM),
    ("Sub", Through::SUM),
    ("Tanh", Through::BOUND),
    ("Clip", Through::BOUND),
    ("Where", Through::GUARD),
];

impl Through {
    /// Nothing changes.
    const SAME: Through = Through(1);
    /// The element type changes.
    const TYPE: Through = Through(1 << 1);
    /// The axes change; the elements keep their order.
    pub(crate) const SHAPE: Through = Through(1 << 2);
    /// The elements change their order.
    pub(crate) const ORDER: Through = Through(1 << 3);
    /// Elements are repeated.
    pub(crate) const REPEAT: Through = Through(1 << 4);
    /// A range of an axis is cut out.
    pub(crate) const PART: Through = Through(1 << 5);
    /// Places of an axis are picked.
    pub(crate) const PICK: Through = Through(1 << 6);
    /// Each element is multiplied or divided.
    pub(crate) const FACTOR: Through = Through(1 << 7);
    /// Something is added to each element, or taken from it.
    pub(crate) const SUM: Through = Through(1 << 8);
    /// Each element is bounded.
    pub(crate) const BOUND: Through = Through(1 << 9);
    /// Elements are replaced under a condition.
    pub(crate) const GUARD: Through = Through(1 << 10);
    /// Each element becomes a code of few bits, or is read from one.
    const CODE: Through = Through(1 << 11);
    /// The same numbers at the same places, perhaps in another type.
    pub(crate) const EQUAL: Through = Through::SAME.or(Through::TYPE);
    /// The same numbers at the same places, perhaps in another type or rounded to the steps of codes.
    pub(crate) const ALIKE: Through = Through::EQUAL.or(Through::CODE);
    /// The same numbers, laid out in another way.
    pub(crate) const LAID_OUT: Through = Through::ALIKE
        .or(Through::SHAPE)
        .or(Through::ORDER)
        .or(Through::REPEAT);

    /// Both sets.
    pub(crate) const fn or(self, other: Through) -> Through {
        Through(self.0 | other.0)
    }

    /// Whether a value passes through an operator with no other change than these.
    pub(crate) fn takes(self, op: &OpId) -> bool {
        let of = OPERATORS.iter().find(|(name, _)| op.is_onnx(name));
        of.is_some_and(|(_, change)| self.0 & change.0 != 0)
    }

    /// What a value was before its last change, if that is one of these.
    pub(crate) fn before(self, graph: &Graph, v: ValueId) -> Option<ValueId> {
        let (n, slot) = graph.producer(v)?;
        let passes = slot == 0 && self.takes(&graph.node(n).op);
        passes.then(|| graph.input(n, 0)).flatten()
    }

    /// What a node makes of its first input, if that is one of these changes.
    pub(crate) fn after(self, graph: &Graph, n: NodeId) -> Option<ValueId> {
        let passes = self.takes(&graph.node(n).op);
        passes.then(|| graph.output(n, 0)).flatten()
    }

    /// A value, and against the flow all that it was before.
    pub(crate) fn up(self, graph: &Graph, v: ValueId) -> impl Iterator<Item = ValueId> {
        std::iter::successors(Some(v), move |v| self.before(graph, *v))
    }

    /// What a value was at first.
    pub(crate) fn source(self, graph: &Graph, v: ValueId) -> ValueId {
        self.up(graph, v).last().unwrap_or(v)
    }
}
