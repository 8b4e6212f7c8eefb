//! The residual behind one sublayer. Layers along the whole stream are found in [`structure`](super::structure).

use super::through::Through;
use crate::ir::{Graph, Use, ValueId};

/// The sum of a sublayer's output and the residual.
pub(crate) fn sum(graph: &Graph, output: ValueId, residual: ValueId) -> Option<ValueId> {
    let source = |v: ValueId| Through::ALIKE.source(graph, v);
    let residual = source(residual);
    let mut at = output;
    loop {
        let mut next = None;
        for u in graph.uses(at) {
            let Use::Input(n, _) = u else { continue };
            let mut operands = graph.node_inputs(n).into_iter().flatten();
            if graph.node(n).op.is_onnx("Add") && operands.any(|v| source(v) == residual) {
                return graph.output(n, 0);
            }
            next = Through::ALIKE.after(graph, n).or(next);
        }
        at = next?;
    }
}
