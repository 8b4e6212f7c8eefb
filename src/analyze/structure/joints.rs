//! Where sublayers join the stream, and what stands between a value and its place there.

use super::super::through::Through;
use super::{Joint, Structure};
use crate::ir::{NodeId, ValueId};
use rustc_hash::FxHashSet;

impl Structure<'_> {
    /// Where the result of a sublayer joins the stream.
    pub(super) fn joint(&self, from: ValueId) -> Option<Joint> {
        let view = self.view;
        let mut at = from;
        let mut branch_norm = None;
        for _ in 0..12 {
            if let Some(norm) = self.norms.adding(at) {
                let [a, b] = norm.skip?;
                let other = if a == at { b } else { a };
                return Some(Joint {
                    other,
                    sum: norm.input,
                    normed: Some(norm.output),
                    branch_norm,
                });
            }
            let readers: Vec<NodeId> = view
                .readers(at)
                .into_iter()
                .filter(|r| !view.measures(*r))
                .collect();
            let added = |(r, other): (NodeId, ValueId)| Joint {
                other,
                sum: view.graph.output(r, 0).map(|v| self.biased(v)),
                normed: None,
                branch_norm,
            };
            if let Some(found) = self.addition(at) {
                return Some(added(found));
            }
            if let Some(norm) = self.norms.of(view, at).next() {
                branch_norm = Some(norm.output);
                at = norm.output;
                continue;
            }
            let rearranged = || self.rearranged(at).map(added);
            let [r] = readers[..] else {
                return rearranged();
            };
            let scale = view.op(r) == "Mul"
                && view
                    .inputs(r)
                    .into_iter()
                    .flatten()
                    .any(|v| view.is_constant(v));
            if !scale && !Through::ALIKE.or(Through::SHAPE).takes(&view.node(r).op) {
                return rearranged();
            }
            at = view.graph.output(r, 0)?;
        }
        None
    }

    /// What adds a value, or the value behind a cast that changes nothing, to another hidden state, and that.
    fn addition(&self, at: ValueId) -> Option<(NodeId, ValueId)> {
        let view = self.view;
        let own = view.root(at);
        let mut open = vec![at];
        while let Some(v) = open.pop() {
            for r in view.readers(v).into_iter().filter(|r| !view.measures(*r)) {
                let inputs = view.inputs(r).into_iter().flatten();
                let mut others = inputs.filter(|o| view.root(*o) != own && view.is_flow(*o));
                if view.op(r) == "Add"
                    && let Some(other) = others.next()
                {
                    return Some((r, other));
                }
                open.extend(view.out(r).filter(|o| view.root(*o) == own));
            }
        }
        None
    }

    /// The addition behind operators that only put elements in another order, as windows are put together and shifted back.
    fn rearranged(&self, from: ValueId) -> Option<(NodeId, ValueId)> {
        const REORDERED: usize = 48;
        let mut seen: FxHashSet<NodeId> = FxHashSet::default();
        let mut open = std::collections::VecDeque::from([from]);
        while let Some(v) = open.pop_front() {
            if let Some(found) = self.addition(v).filter(|_| v != from) {
                return Some(found);
            }
            for r in self.view.readers(v) {
                if self.rearranges(r) && seen.len() < REORDERED && seen.insert(r) {
                    open.extend(self.view.graph.node_outputs(r).into_iter().flatten());
                }
            }
        }
        None
    }

    fn rearranges(&self, n: NodeId) -> bool {
        const OPS: [&str; 7] = [
            "Concat",
            "Gather",
            "Pad",
            "Reshape",
            "Slice",
            "Split",
            "Transpose",
        ];
        OPS.contains(&self.view.op(n))
            || Through::ALIKE
                .or(Through::SHAPE)
                .takes(&self.view.node(n).op)
    }

    /// What a value was before its elements were put in another order: what a norm makes, or else the value itself.
    pub(crate) fn unarranged(&self, from: ValueId) -> ValueId {
        const REORDERED: usize = 48;
        let mut at = from;
        for _ in 0..REORDERED {
            if self.norms.making(self.view, at).is_some() {
                return at;
            }
            let made = self.view.producer(at).filter(|n| self.rearranges(*n));
            let before = made.and_then(|n| {
                let inputs = self.view.inputs(n).into_iter().flatten();
                inputs.into_iter().find(|v| self.view.is_flow(*v))
            });
            match before {
                Some(v) => at = v,
                None => break,
            }
        }
        from
    }

    /// A sum behind a constant that a fused operator added to it last.
    fn biased(&self, sum: ValueId) -> ValueId {
        let readers = self.view.readers(sum);
        match readers[..] {
            [r] if self.view.op(r) == "Add"
                && self
                    .view
                    .inputs(r)
                    .into_iter()
                    .flatten()
                    .any(|v| v != sum && self.view.is_constant(v)) =>
            {
                self.view.graph.output(r, 0).unwrap_or(sum)
            }
            _ => sum,
        }
    }
}
