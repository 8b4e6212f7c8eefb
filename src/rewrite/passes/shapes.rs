//! Shapes read early.

use crate::ir::{NodeId, Spot, Val};
use crate::rewrite::{Pass, PassCx, PassError, Uses};

/// Reads the shape of a value right behind the node that makes it, where the value would otherwise be kept for its shape alone: backward
/// passes ask for the shapes of what the forward pass reshaped. Linear in the graph.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct EarlyShapes;

impl Pass for EarlyShapes {
    fn name(&self) -> &'static str {
        "early-shapes"
    }

    fn run(&self, cx: &mut PassCx<'_>) -> Result<(), PassError> {
        let g = &cx.model().graph;
        let mut place = vec![0; g.index_bound()];
        for (at, n) in g.order().unwrap_or_default().into_iter().enumerate() {
            place[n.index()] = at;
        }
        // The producer of a value that is kept for this shape of it.
        let keeps = |n: NodeId| {
            let v = g.input(n, 0)?;
            let last = g.value_readers(v).max_by_key(|r| place[r.index()])?;
            let held = g.node(n).op.is_onnx("Shape") && g.node(last).op.is_onnx("Shape");
            let inner = !g.is_output(v) && !g.is_output(g.output(n, 0)?);
            let made = g.producer(v)?.0;
            (held && inner && place[n.index()] > place[made.index()] + 1).then_some(made)
        };
        let late: Vec<(NodeId, NodeId)> = g.nodes().filter_map(|n| Some((n, keeps(n)?))).collect();
        let mut patch = cx.patch("shapes read early", None);
        patch.builder().set_scope("shape");
        for (n, made) in late {
            let b = patch.builder();
            b.set_spot(Some(Spot::Behind(made)));
            let copies = b.copy_node(g, n, Val::Old);
            b.set_spot(None);
            for (shape, early) in copies {
                patch.redirect(shape, early, Uses::All);
            }
            patch.remove_node(n);
        }
        cx.commit(patch)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
