//! Fusing for the native runtime.
//!
//! Exporters write a norm as seven nodes and an attention core as thirty. These passes put one operator of our own domain (see
//! [`ops`](crate::ops)) in their place; each has a kernel and a gradient rule. The unfused graph stays runnable and exportable: fusing
//! is only ever done on the copy that a plan is compiled from.
//!
//! Order: [`Cleanup`], [`FuseBlocks`], then loss and gradient passes, then [`FuseProducts`].

mod attention;
mod blocks;
mod loss;
mod products;

pub(crate) use loss::FuseLoss;
pub(crate) use products::FuseProducts;

use super::super::pass::{Pass, PassCx, PassError};
use super::super::patch::{Patch, Uses};
use crate::analyze::pattern::{Fit, Picture};
use crate::analyze::view::View;
use crate::ir::{Attr, NodeId, OpId, Val, ValueId};

/// Removes `Identity` nodes and casts to the type a value has already.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cleanup;

impl Pass for Cleanup {
    fn name(&self) -> &'static str {
        "cleanup"
    }

    fn run(&self, cx: &mut PassCx<'_>) -> Result<(), PassError> {
        let candidates: Vec<NodeId> = cx.model().graph.nodes().collect();
        for n in candidates {
            let g = &cx.model().graph;
            let node = g.node(n);
            let (Some(x), Some(y)) = (g.input(n, 0), g.output(n, 0)) else {
                continue;
            };
            let to = || node.int("to", 0);
            let has = || {
                cx.fact(x)
                    .and_then(|f| f.dtype)
                    .map(|d| i64::from(d.code()))
            };
            let noop =
                node.op.is_onnx("Identity") || (node.op.is_onnx("Cast") && has() == Some(to()));
            if !noop || g.is_output(y) || g.value(x).tensor.is_some() && g.is_output(x) {
                continue;
            }
            let mut patch = cx.patch("no-op", None);
            patch.redirect(y, x.into(), Uses::All);
            patch.remove_node(n);
            cx.commit(patch)?;
        }
        Ok(())
    }
}

/// Fuses norms, rotary embeddings, attention cores and gated activations.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct FuseBlocks;

impl Pass for FuseBlocks {
    fn name(&self) -> &'static str {
        "fuse-blocks"
    }

    fn run(&self, cx: &mut PassCx<'_>) -> Result<(), PassError> {
        run(cx, blocks::RMS_NORM.finder())?;
        run(cx, blocks::ROTARY_EMBEDDING.finder())?;
        run(cx, attention::attention)?;
        run(cx, blocks::SWIGLU.finder())?;
        run(cx, blocks::SILU.finder())
    }
}

/// Fuses wherever a finder finds something.
fn run(
    cx: &mut PassCx<'_>,
    find: impl Fn(&View<'_>, NodeId) -> Option<Found>,
) -> Result<(), PassError> {
    let candidates: Vec<NodeId> = cx.model().graph.nodes().collect();
    for n in candidates {
        let graph = &cx.model().graph;
        let live = graph.get_node(n).is_some();
        let found = live.then(|| find(&View::new(graph, cx), n));
        if let Some(found) = found.flatten() {
            found.commit(cx)?;
        }
    }
    Ok(())
}

/// A fusion: a picture of what it matches, and the operator to put in its place.
struct Fusion {
    why: &'static str,
    /// The value that is replaced. Nothing else may read what is made on the way to it.
    picture: fn() -> Picture,
    /// The operator, where sizes and types allow it.
    fused: fn(&View<'_>, &Fit) -> Option<Fused>,
}

/// An operator in the place of a picture.
struct Fused {
    op: OpId,
    inputs: Vec<Option<Input>>,
    attrs: Vec<(&'static str, Attr)>,
    n_out: usize,
}

impl Fusion {
    /// What finds the picture at its outermost node.
    fn finder(self) -> impl Fn(&View<'_>, NodeId) -> Option<Found> {
        let picture = (self.picture)();
        move |view, n| {
            let replaces = view.out(n)?;
            let fit = picture.fit(view, replaces)?;
            let found = Found {
                why: self.why,
                fused: (self.fused)(view, &fit)?,
                replaces,
                removes: fit.nodes,
            };
            let closed = (found.removes.iter()).all(|n| !found.is_read_outside(view, *n));
            closed.then_some(found)
        }
    }
}

/// A match: the operator to put in place of the value `replaces`, and the nodes that nothing else needs.
struct Found {
    why: &'static str,
    fused: Fused,
    replaces: ValueId,
    removes: Vec<NodeId>,
}

/// An input of a fused operator: a value, or a value times a scalar.
enum Input {
    Is(ValueId),
    Scaled(ValueId, ValueId),
}

impl Found {
    /// Whether something besides the nodes to be removed reads what one of them makes, the replaced value apart.
    fn is_read_outside(&self, view: &View<'_>, n: NodeId) -> bool {
        let g = view.graph;
        g.node_outputs(n).into_iter().flatten().any(|v| {
            v != self.replaces
                && (g.is_output(v) || g.uses(v).iter().any(|u| !self.removes.contains(&u.node())))
        })
    }

    fn commit(mut self, cx: &mut PassCx<'_>) -> Result<(), PassError> {
        let g = &cx.model().graph;
        let Some((anchor, _)) = g.producer(self.replaces) else {
            return Ok(());
        };
        self.removes.sort_unstable();
        self.removes.dedup();
        let mut patch: Patch = cx.patch(self.why, Some(anchor));
        let name = g.name_of(self.replaces).to_owned();
        let b = patch.builder();
        b.set_scope(&format!("{name}/fused"));
        let fused = self.fused;
        let input = |i: &Input| match i {
            Input::Is(v) => Val::Old(*v),
            Input::Scaled(v, s) => b.mul(*v, *s),
        };
        let inputs: Vec<Option<Val>> = fused.inputs.iter().map(|i| i.as_ref().map(input)).collect();
        let outs = b.node_n(fused.op, &inputs, &fused.attrs, fused.n_out);
        patch.redirect(self.replaces, outs[0], Uses::All);
        for &n in &self.removes {
            patch.remove_node(n);
        }
        patch.import(crate::ops::DOMAIN, 1);
        cx.commit(patch)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
