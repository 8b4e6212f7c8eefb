//! Shapes read early.

use crate::ir::{Attr, NodeId, OpId, Spot, ValueId};
use crate::rewrite::{Pass, PassCx, PassError, Uses};

/// Reads the shape of a value right behind the node that makes it, where the value would otherwise be kept for its shape alone: backward
/// passes ask for the shapes of what the forward pass reshaped. Linear in the graph.
#[derive(Clone, Copy, Debug, Default)]
pub struct EarlyShapes;

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
        // Shapes that are the last to read a value, with its producer.
        let keeps = |n: NodeId| -> Option<(ValueId, NodeId)> {
            let v = g.input(n, 0)?;
            let last = g.value_readers(v).max_by_key(|r| place[r.index()])?;
            let held = g.node(n).op.is_onnx("Shape") && g.node(last).op.is_onnx("Shape");
            (held && !g.is_output(v)).then_some((v, g.producer(v)?.0))
        };
        let late: Vec<(NodeId, ValueId, NodeId)> = g
            .nodes()
            .filter_map(|n| keeps(n).map(|(v, made)| (n, v, made)))
            .filter(|(n, _, made)| place[n.index()] > place[made.index()] + 1)
            .collect();
        let mut patch = cx.patch("shapes read early", None);
        patch.builder().set_scope("shape");
        for (n, v, made) in late {
            let Some(shape) = g.output(n, 0) else {
                continue;
            };
            let node = g.node(n);
            let attrs: Vec<(&str, Attr)> =
                node.attrs.iter().map(|(k, a)| (&**k, a.clone())).collect();
            let b = patch.builder();
            b.set_spot(Some(Spot::Behind(made)));
            let early = b.node_n(OpId::new("", "Shape"), &[Some(v.into())], &attrs, 1)[0];
            b.set_spot(None);
            patch.redirect(shape, early, Uses::All);
            patch.remove_node(n);
        }
        cx.commit(patch)?;
        Ok(())
    }
}
