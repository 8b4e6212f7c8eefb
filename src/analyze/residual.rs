//! The residual behind one sublayer. Layers along the whole stream are found in [`structure`](super::structure).

use super::through::Through;
use super::view::View;
use crate::ir::{Use, ValueId};

/// Where a sublayer joins the stream.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Joint {
    /// The sublayer's output as it is added: behind a constant factor (`LayerScale`), where there is one.
    pub(crate) branch: ValueId,
    /// What it is added to.
    pub(crate) residual: ValueId,
    /// The sum of the two.
    pub(crate) sum: ValueId,
}

/// The addition of a sublayer's output and the residual; where that is not known, to whatever is no constant.
pub(crate) fn joint(view: View<'_>, output: ValueId, residual: Option<ValueId>) -> Option<Joint> {
    let graph = view.graph;
    let source = |v: ValueId| Through::ALIKE.source(graph, v);
    let residual = residual.map(source);
    let (mut at, mut branch) = (output, output);
    loop {
        let mut next = None;
        for u in graph.uses(at) {
            let Use::Input(n, _) = u else { continue };
            let operands: Vec<ValueId> = graph.node_inputs(n).into_iter().flatten().collect();
            let add = graph.node(n).op.is_onnx("Add");
            let fits = |v: &&ValueId| match residual {
                Some(r) => source(**v) == r,
                None => **v != at && view.constant(source(**v)).is_none(),
            };
            if let Some(found) = operands.iter().find(fits).filter(|_| add) {
                return Some(Joint {
                    branch,
                    residual: *found,
                    sum: graph.output(n, 0)?,
                });
            }
            let scaled = graph.node(n).op.is_onnx("Mul")
                && operands.iter().any(|v| view.constant(source(*v)).is_some());
            if scaled {
                let v = graph.output(n, 0);
                next = v.map(|v| (v, v));
            } else if let Some(v) = Through::ALIKE.after(graph, n) {
                next = Some((v, branch));
            }
        }
        (at, branch) = next?;
    }
}

/// What a sublayer adds to the stream, from the sum back: the operand that is not the residual, in front of a constant factor. Where the
/// residual is not known, it is the operand that is made first.
pub(crate) fn branch(
    view: View<'_>,
    sum: ValueId,
    residual: Option<ValueId>,
    made: &dyn Fn(ValueId) -> i64,
) -> Option<ValueId> {
    let graph = view.graph;
    let source = |v: ValueId| Through::ALIKE.source(graph, v);
    let (add, _) = graph.producer(source(sum))?;
    let operands: Vec<ValueId> = graph.node_inputs(add).into_iter().flatten().collect();
    let ([a, b], true) = (&operands[..], graph.node(add).op.is_onnx("Add")) else {
        return None;
    };
    let (a, b) = (*a, *b);
    let found = match residual.map(source) {
        Some(r) if source(a) == r => b,
        Some(r) if source(b) == r => a,
        Some(_) => return None,
        None if made(a) > made(b) => a,
        None => b,
    };
    Some(unscaled(view, found))
}

/// A value in front of a constant factor.
pub(crate) fn unscaled(view: View<'_>, v: ValueId) -> ValueId {
    let graph = view.graph;
    let source = |v: ValueId| Through::ALIKE.source(graph, v);
    let Some((n, _)) = graph.producer(source(v)) else {
        return v;
    };
    let operands: Vec<ValueId> = graph.node_inputs(n).into_iter().flatten().collect();
    let constant = |v: &ValueId| view.constant(source(*v)).is_some();
    match operands[..] {
        [a, b] if graph.node(n).op.is_onnx("Mul") && constant(&b) => a,
        [a, b] if graph.node(n).op.is_onnx("Mul") && constant(&a) => b,
        _ => v,
    }
}
