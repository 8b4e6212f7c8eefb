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
