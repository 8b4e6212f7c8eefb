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
        run(cx, blocks::LAYER_NORM.finder())?;
        run(cx, blocks::GELU.finder())?;
        run(cx, blocks::GELU_TANH.finder())?;
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
    /// The value that is replaced.
    picture: fn() -> Picture,
    /// What happens where something else reads what is made on the way to it.
    shared: Shared,
    /// The operator, where sizes and types allow it; else the next way to fit the picture is asked for.
    fused: fn(&View<'_>, &Fit) -> Option<Fused>,
}

/// What happens to a fusion where something else reads a part of the picture.
#[derive(Clone, Copy)]
enum Shared {
    /// The graph stays as it is.
    Forbids,
    /// The part stays, beside the fused operator.
    Stays,
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
            picture.find(view, replaces, &mut |fit| {
                let found = Found {
                    why: self.why,
                    fused: (self.fused)(view, fit)?,
                    replaces,
                    removes: fit.nodes.clone(),
                };
                match self.shared {
                    Shared::Stays => found.shrink(view),
                    Shared::Forbids => {
                        let mut nodes = found.removes.iter();
                        let closed = nodes.all(|n| !found.is_read_outside(view, *n));
                        closed.then_some(found)
                    }
                }
            })
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

    /// Keeps what others read: a repeated key or value that something else needs stays in the graph.
    fn shrink(mut self, view: &View<'_>) -> Option<Found> {
        let last = view.producer(self.replaces)?;
        loop {
            let read = |n: &NodeId| self.is_read_outside(view, *n);
            let stays: Vec<NodeId> = self.removes.iter().copied().filter(read).collect();
            if stays.is_empty() {
                return Some(self);
            }
            self.removes.retain(|n| !stays.contains(n));
            if !self.removes.contains(&last) {
                return None;
            }
        }
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
        let domain = fused.op.domain.clone();
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
        patch.import(&domain, 1);
        cx.commit(patch)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
