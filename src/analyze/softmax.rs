//! Attention as exporters spell it: a softmax between two products.
//!
//! ```text
//! queries ─┐
//!          MatMul ─ links ─► scores ─ Softmax ─ way ─┐
//! keysᵀ ───┘  (scale, mask, cast, …)                 MatMul ─► output
//!                                           values ──┘
//! ```
//!
//! It is found in every spelling that is known anywhere. Who needs a narrower one looks at the links and at the way.

use super::through::Through;
use super::view::View;
use crate::ir::contract::stamp;
use crate::ir::{NodeId, Use, ValueId};
use rustc_hash::FxHashMap;
use std::collections::VecDeque;

/// How many nodes a search against the flow looks at. It bounds the work for each softmax.
const REACH: usize = 160;

/// What a value passes through between the softmax and the mix.
const WAY: Through = Through::ALIKE
    .or(Through::SHAPE)
    .or(Through::REPEAT)
    .or(Through::PART)
    .or(Through::FACTOR)
    .or(Through::GUARD);

/// The heart of an attention: a softmax with the products in front and behind.
#[derive(Clone, Debug)]
pub(crate) struct Heart {
    /// What the softmax reads.
    pub(crate) scores: ValueId,
    /// What happens to the scores, from the softmax back to the product.
    pub(crate) links: Vec<Link>,
    /// The product of queries and keys.
    pub(crate) product: NodeId,
    /// Its operands.
    pub(crate) queries: ValueId,
    pub(crate) keys: ValueId,
    /// Nodes from the softmax to the mix, both apart.
    pub(crate) way: Vec<NodeId>,
    /// The product of probabilities and values.
    pub(crate) mix: NodeId,
    pub(crate) probabilities: ValueId,
    pub(crate) values: ValueId,
}

/// An operator between product and softmax.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Link {
    pub(crate) node: NodeId,
    /// The input that comes from the product.
    pub(crate) from: ValueId,
}

/// Why a softmax is no heart of an attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Broken {
    /// No product makes the scores; this does, as far as they can be followed.
    Product(ValueId),
    /// No product reads the probabilities.
    Mix,
}

/// Where a search may go.
pub(crate) struct Bounds<'a> {
    /// Whether a product of two operands is one of queries and keys.
    pub(crate) product: &'a dyn Fn(NodeId, ValueId, ValueId) -> bool,
    /// Whether a value lies inside the attention.
    pub(crate) inside: &'a dyn Fn(ValueId) -> bool,
}

impl Heart {
    /// What lies around a softmax, with the product that is nearest to it.
    pub(crate) fn around(
        view: &View<'_>,
        softmax: NodeId,
        bounds: &Bounds<'_>,
    ) -> Result<Heart, Broken> {
        let scores = view.input(softmax, 0).ok_or(Broken::Mix)?;
        let (product, links) = behind(view, scores, bounds)?;
        let (queries, keys) = view.pair(product).ok_or(Broken::Product(scores))?;
        let (mix, probabilities, way) = ahead(view, softmax).ok_or(Broken::Mix)?;
        let values = view
            .inputs(mix)
            .into_iter()
            .flatten()
            .find(|v| *v != probabilities)
            .ok_or(Broken::Mix)?;
        Ok(Heart {
            scores,
            links,
            product,
            queries,
            keys,
            way,
            mix,
            probabilities,
            values,
        })
    }
}

/// Whether a node multiplies two values.
pub(crate) fn is_product(view: &View<'_>, n: NodeId) -> bool {
    matches!(view.op(n), "MatMul" | "FusedMatMul" | "Einsum")
}

/// From the scores against the flow to the nearest product, and what lies between.
fn behind(
    view: &View<'_>,
    scores: ValueId,
    bounds: &Bounds<'_>,
) -> Result<(NodeId, Vec<Link>), Broken> {
    // How each value was reached: from a reader of it, or for what an adapter replaced, from the replacement.
    let mut reached: FxHashMap<ValueId, (ValueId, Option<NodeId>)> = FxHashMap::default();
    let mut open = VecDeque::from([scores]);
    let mut seen = 0;
    while let Some(v) = open.pop_front() {
        let Some(n) = view.producer(v).filter(|_| seen <= REACH) else {
            continue;
        };
        seen += 1;
        if is_product(view, n)
            && let Some((a, b)) = view.pair(n)
            && (bounds.product)(n, a, b)
        {
            let mut links = Vec::new();
            let mut at = v;
            while let Some((reader, node)) = reached.get(&at).copied().filter(|_| at != scores) {
                links.extend(node.map(|node| Link { node, from: at }));
                at = reader;
            }
            links.reverse();
            return Ok((n, links));
        }
        let replaced = view.node(n).metadata.get(stamp::REPLACES);
        let old = replaced.and_then(|name| view.graph.find(name));
        let (node, inputs) = match old {
            Some(old) => (None, vec![Some(old)]),
            None => (Some(n), view.inputs(n)),
        };
        for from in inputs.into_iter().flatten() {
            if from != scores && (bounds.inside)(from) && !reached.contains_key(&from) {
                reached.insert(from, (v, node));
                open.push_back(from);
            }
        }
    }
    let follows = Through::ALIKE
        .or(Through::SHAPE)
        .or(Through::FACTOR)
        .or(Through::SUM)
        .or(Through::BOUND);
    Err(Broken::Product(follows.source(view.graph, scores)))
}

/// From the softmax along the flow to the first product: what it reads of the softmax, and what lies between.
fn ahead(view: &View<'_>, softmax: NodeId) -> Option<(NodeId, ValueId, Vec<NodeId>)> {
    let mut open: Vec<(ValueId, Vec<NodeId>)> = vec![(view.out(softmax)?, Vec::new())];
    while let Some((v, way)) = open.pop() {
        let mut readers: Vec<NodeId> = view.graph.uses(v).into_iter().map(Use::node).collect();
        readers.dedup();
        if let Some(&mix) = readers.iter().find(|n| is_product(view, **n)) {
            return Some((mix, v, way));
        }
        // A guard against rows of NaN reads the probabilities twice.
        for n in readers.into_iter().filter(|n| !way.contains(n)) {
            if let Some(next) = WAY.after(view.graph, n) {
                open.push((next, way.iter().copied().chain([n]).collect()));
            }
        }
    }
    None
}
