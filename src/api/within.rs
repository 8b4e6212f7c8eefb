//! Models whose layers stand inside nodes: branches of `If` (Optimum's merged decoders), bodies of `Loop` and `Scan`.
//!
//! Each body is a model of its own while adapters are attached to it or taken out. Bodies that hold the same layers get the same
//! parameters, which stand in the main graph once.

use super::attach::Adapted;
use super::strip_one;
use crate::diag::Diagnostic;
use crate::error::Result;
use crate::infer::Verified;
use crate::ir::contract::stamp;
use crate::ir::{Body, Graph, Metadata};
use crate::rewrite::bodies::{self, Lifted};
use crate::rewrite::passes::{Tensors, inline};
use crate::rewrite::pipelines;

/// What was attached to several graphs of one model.
pub(super) fn joined(all: Vec<Adapted>, model: Verified) -> Adapted {
    let mut warnings: Vec<Diagnostic> = Vec::new();
    for finding in all.iter().flat_map(|a| &a.warnings) {
        let text = finding.to_string();
        if !warnings.iter().any(|w| w.to_string() == text) {
            warnings.push(finding.clone());
        }
    }
    // Each graph has inputs of its own, and all are those of the model.
    let mut exchanged: Vec<(String, Tensors)> = Vec::new();
    for (name, tensors) in all.iter().flat_map(|a| &a.exchanged) {
        match exchanged.iter_mut().find(|(n, _)| n == name) {
            Some((_, there)) => there.extend(tensors.clone()),
            None => exchanged.push((name.clone(), tensors.clone())),
        }
    }
    // The one with most parameters knows most of the model.
    let mut best = all.into_iter().rev();
    let first = best.next();
    let richest = best.fold(first, |best, a| match best {
        Some(b) if b.store().iter().count() > a.store().iter().count() => Some(b),
        _ => Some(a),
    });
    let mut richest = richest.expect("invariant: something was attached");
    (richest.model, richest.warnings) = (model, warnings);
    richest.exchanged = exchanged;
    richest
}

/// Takes adapters out again: one, or all.
pub(super) fn stripped(model: Verified, adapter: Option<&str>) -> Result<Verified> {
    let own = |m: &Metadata| m.contains_key(stamp::ADAPTER);
    let has = |g: &Graph| g.nodes().any(|n| own(&g.node(n).metadata));
    let g = &model.model().graph;
    let inside = bodies::with_weights(g);
    let inside: Vec<Body> = inside
        .into_iter()
        .filter(|b| b.graph(g).is_some_and(has))
        .collect();
    if inside.is_empty() {
        return strip_one(model, adapter);
    }
    let whole = has(g);
    let mut pieces = Vec::new();
    for body in inside {
        let lifted = Lifted::of(&model, &body)?;
        let mut inner = stripped(lifted.model().clone(), adapter)?.into_model();
        if whole {
            // The main graph is next, and asks the manifest too.
            inner.metadata.clone_from(&model.model().metadata);
        }
        pieces.push((lifted, inner));
    }
    let model = bodies::sink(model, pieces)?;
    if whole {
        strip_one(model, adapter)
    } else {
        Ok(model)
    }
}

/// A model with its functions and decided branches in place, and without a cache where branches go by one: as it is trained, evaluated
/// and generated with.
///
/// # Errors
/// A model that does not verify with them.
pub(crate) fn flat(model: Verified) -> Result<Verified> {
    if !inline::concerns(model.model()) {
        return Ok(model);
    }
    Ok(pipelines::inlining(true).run(model)?.model)
}

/// The graph of a model that holds its layers: the main graph, or the largest body of its nodes.
///
/// # Errors
/// Those of [`flat`].
pub(crate) fn shown(model: Verified) -> Result<Verified> {
    let model = flat(model)?;
    let g = &model.model().graph;
    let size = |b: &Body| b.graph(g).map_or(0, Graph::node_count);
    let largest = bodies::with_weights(g).into_iter().max_by_key(size);
    match largest {
        Some(body) if !bodies::multiplies(g) => Ok(Lifted::of(&model, &body)?.model().clone()),
        _ => Ok(model),
    }
}
