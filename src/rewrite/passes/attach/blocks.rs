//! Blocks whose children each have a part of what flows, or whose results are averaged.
//!
//! A part is cut before its child runs, so that a block costs no more than one adapter. Prefixes and `ReFT` are the exceptions: they read
//! masks of all samples, so every child runs on all, and each sample's result is taken from its own.

use super::tasks::{no_batch, one_length};
use crate::adapters::place::{At, Place, State};
use crate::diag::Diagnostic;
use crate::ir::contract::stamp;
use crate::ir::{Attr, Builder, OpId, Val};

/// Where a block cuts.
#[derive(Clone, Copy)]
pub(in crate::rewrite::passes) struct Cut<'c> {
    /// The block's name.
    pub(super) block: &'static str,
    /// The axis that is cut: 0 for samples, 1 for positions.
    pub(super) axis: i64,
    /// How much each child has.
    sizes: Sizes<'c>,
}

/// Sizes of the parts.
#[derive(Clone, Copy)]
enum Sizes<'c> {
    /// These.
    Given(&'c [usize]),
    /// As many equal ones.
    Equal(usize),
}

impl<'c> Cut<'c> {
    /// Into samples of a batch: `BatchSplit`.
    pub(in crate::rewrite::passes) fn samples(sizes: &'c [usize]) -> Self {
        Cut {
            block: "BatchSplit",
            axis: 0,
            sizes: Sizes::Given(sizes),
        }
    }

    /// Into as many equal parts of a batch, however large it is: `Parallel`.
    pub(in crate::rewrite::passes) fn channels(count: usize) -> Self {
        Cut {
            block: "Parallel",
            axis: 0,
            sizes: Sizes::Equal(count),
        }
    }

    /// Into positions of a text: `Split`.
    pub(super) fn positions(sizes: &'c [usize]) -> Self {
        Cut {
            block: "Split",
            axis: 1,
            sizes: Sizes::Given(sizes),
        }
    }

    /// The parts of a value. A value of another length than all sizes together is refused when the graph runs.
    pub(in crate::rewrite::passes) fn parts(self, b: &Builder, v: Val) -> Vec<Val> {
        let axis = ("axis", Attr::from(self.axis));
        let sizes = match self.sizes {
            Sizes::Given(sizes) => sizes,
            Sizes::Equal(n) => {
                let count = ("num_outputs", Attr::from(n as i64));
                let attrs = [axis, count];
                let known = if b.opset() < 18 { 1 } else { 2 };
                let parts = b.node_n(OpId::onnx("Split"), &[Some(v)], &attrs[..known], n);
                self.mark(b);
                return parts;
            }
        };
        let sizes: Vec<i64> = sizes.iter().map(|n| *n as i64).collect();
        let n = sizes.len();
        if b.opset() < 13 {
            let attrs = [axis, ("split", sizes.into())];
            return b.node_n(OpId::onnx("Split"), &[Some(v)], &attrs, n);
        }
        let sizes = Some(b.ints(&sizes));
        b.node_n(OpId::onnx("Split"), &[Some(v), sizes], &[axis], n)
    }

    /// What the children make, one behind the other.
    pub(super) fn join(self, b: &Builder, made: &[Val]) -> Val {
        let joined = b.concat(made, self.axis);
        self.mark(b);
        joined
    }

    /// Says that the last node cuts or joins the children of a `Parallel`.
    fn mark(self, b: &Builder) {
        if let Sizes::Equal(n) = self.sizes {
            b.mark_last_node(stamp::CHANNELS, &n.to_string());
        }
    }

    /// The state of each part.
    pub(super) fn states(self, b: &Builder, state: State) -> Vec<State> {
        let mut made: Vec<(Val, Vec<Val>)> = Vec::new();
        let mut parts = |v: Val| {
            if let Some((_, parts)) = made.iter().find(|(whole, _)| *whole == v) {
                return parts.clone();
            }
            let parts = self.parts(b, v);
            made.push((v, parts.clone()));
            parts
        };
        let (x, out) = (parts(state.x), parts(state.out));
        let residual = state.residual.map(&mut parts);
        let delta = state.delta.map(&mut parts);
        let at = |all: &Option<Vec<Val>>, i: usize| all.as_ref().map(|all| all[i]);
        (0..x.len())
            .map(|i| State {
                x: x[i],
                out: out[i],
                residual: at(&residual, i),
                delta: at(&delta, i),
                ..state
            })
            .collect()
    }

    /// Refuses places that have no such axis.
    pub(super) fn check(self, place: &Place<'_>, rank: Option<usize>) -> Result<(), Diagnostic> {
        match (&place.at, rank) {
            (At::Sequence(_) | At::Mask(_), _) => Err(one_length(place)),
            (At::Attention(_), _) if self.axis > 0 => Err(Diagnostic::error(
                "split-attention",
                "`Split` cuts a text into parts, and a prefix belongs to the attention of all of it",
            )
            .at(place.scope.clone())
            .help("compose prefixes with Stack, BatchSplit, Average or MultiTask")),
            (At::Layer(_), _) if self.axis > 0 => Err(Diagnostic::error(
                "split-layer",
                "`Split` cuts a text into parts, and ReFT chooses positions of all of it",
            )
            .at(place.scope.clone())
            .help("compose ReFT with BatchSplit, Average or MultiTask")),
            (At::Parameter(_), _) => Err(Diagnostic::error(
                "split-parameter",
                format!(
                    "`{}` gives parts of what flows to its children, and a module of `modules_to_save` is one for all",
                    self.block
                ),
            )
            .at(place.scope.clone())),
            (
                At::Linear(_)
                | At::Sublayer(_)
                | At::Layer(_)
                | At::Attention(_)
                | At::Embeddings(_)
                | At::HeadInput(_),
                Some(rank),
            ) if rank > 2 => Ok(()),
            (_, rank) => Err(no_batch(place, rank, self.block)),
        }
    }
}

/// Whether adapters here read more of the graph than what flows, by the number of the sample.
pub(super) fn reads_rows_by_number(place: &Place<'_>) -> bool {
    matches!(place.at, At::Attention(_) | At::Layer(_))
}

/// What is made of the embeddings is undone at the head, and a prompt makes a text longer: neither has a mean.
pub(super) fn no_average(place: &Place<'_>) -> Diagnostic {
    Diagnostic::error(
        "average-place",
        "what several children of `Average` make here has no mean: invertible adapters and prompts",
    )
    .at(place.scope.clone())
    .help("average the parameters instead: `rewrite adapter average`")
}

/// The sum of values times their weights; what the weights lack to 1 is the weight of `old`.
pub(in crate::rewrite::passes) fn weighted_sum(b: &Builder, terms: &[(f64, Val)], old: Val) -> Val {
    let rest = terms.iter().fold(1.0, |rest, (weight, _)| rest - weight);
    // Equal weights add up to 1 but for rounding.
    let rest = (rest.abs() > 1e-9).then_some((rest, old));
    let scaled = terms.iter().copied().chain(rest);
    let scaled = scaled.map(|(weight, v)| b.scale(v, weight as f32));
    scaled.reduce(|sum, v| b.add(sum, v)).unwrap_or(old)
}
