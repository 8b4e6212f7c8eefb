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
mod view;

pub use loss::FuseLoss;
pub use products::FuseProducts;

use super::super::pass::{Pass, PassCx, PassError};
use super::super::patch::{Patch, Uses};
use crate::ir::{DType, NodeId, OpId, Val, ValueId};
use view::View;

/// Removes `Identity` nodes and casts to the type a value has already.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cleanup;

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
pub struct FuseBlocks;

impl Pass for FuseBlocks {
    fn name(&self) -> &'static str {
        "fuse-blocks"
    }

    fn run(&self, cx: &mut PassCx<'_>) -> Result<(), PassError> {
        let finders: [fn(&View<'_>, NodeId) -> Option<Found>; 4] = [
            blocks::rms_normalization,
            blocks::rotary_embedding,
            attention::attention,
            blocks::gated_activation,
        ];
        for find in finders {
            let candidates: Vec<NodeId> = cx.model().graph.nodes().collect();
            for n in candidates {
                if cx.model().graph.get_node(n).is_none() {
                    continue;
                }
                let found = find(&View::new(cx), n);
                if let Some(found) = found {
                    found.commit(cx)?;
                }
            }
        }
        Ok(())
    }
}

/// A match: the operator to put in place of the value `replaces`, and the nodes that nothing else needs.
pub(super) struct Found {
    why: &'static str,
    op: OpId,
    inputs: Vec<Option<Input>>,
    attrs: Vec<(&'static str, crate::ir::Attr)>,
    n_out: usize,
    replaces: ValueId,
    removes: Vec<NodeId>,
}

/// An input of a fused operator: a value, or a value times a scalar.
pub(super) enum Input {
    Is(ValueId),
    Scaled(ValueId, ValueId),
}

impl Found {
    /// Whether the nodes to be removed are read by each other and the replaced value's readers only.
    fn closed(&self, view: &View<'_>) -> bool {
        self.removes.iter().all(|&n| {
            view.g.node_outputs(n).into_iter().flatten().all(|v| {
                v == self.replaces
                    || (!view.g.is_output(v)
                        && view
                            .g
                            .uses(v)
                            .iter()
                            .all(|u| self.removes.contains(&u.node())))
            })
        })
    }

    fn commit(mut self, cx: &mut PassCx<'_>) -> Result<(), PassError> {
        let view = View::new(cx);
        let Some((anchor, _)) = view.g.producer(self.replaces) else {
            return Ok(());
        };
        self.removes.sort_unstable();
        self.removes.dedup();
        let mut patch: Patch = cx.patch(self.why, Some(anchor));
        let name = view.g.name_of(self.replaces).to_owned();
        let b = patch.builder();
        b.set_scope(&format!("{name}/fused"));
        let inputs: Vec<Option<Val>> = self
            .inputs
            .iter()
            .map(|i| {
                i.as_ref().map(|i| match i {
                    Input::Is(v) => Val::Old(*v),
                    Input::Scaled(v, s) => b.mul(*v, *s),
                })
            })
            .collect();
        let outs = b.node_n(self.op.clone(), &inputs, &self.attrs, self.n_out);
        patch.redirect(self.replaces, outs[0], Uses::All);
        for &n in &self.removes {
            patch.remove_node(n);
        }
        patch.import(crate::ops::DOMAIN, 1);
        cx.commit(patch)?;
        Ok(())
    }
}

/// Whether fused kernels take values of this type.
fn is_f32(view: &View<'_>, v: ValueId) -> bool {
    view.fact(v).and_then(|f| f.dtype) == Some(DType::Float)
}

#[cfg(test)]
mod tests;
