//! Operators that are defined by simpler ones, replaced by their definition.
//!
//! Fused operators of exporters (attention, skip norms, products with flags) hide values that adapters and gradients need. Their
//! definition is the one in [`ops`](crate::ops); names of values stay.

use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind};
use crate::infer::Facts;
use crate::ir::contract::{exporter, stamp};
use crate::ir::{Fact, Graph, Metadata, NodeId, OpId, ValueId};
use crate::ops::{Definition, ExpandCx, GradError, Gradient, lookup};
use crate::rewrite::{Pass, PassCx, PassError};

/// Replaces operators by their definition, again and again until none of the chosen ones is left.
#[derive(Clone, Debug)]
pub enum Expand {
    /// Every operator that has a definition.
    All,
    /// These operators only.
    Ops(Vec<OpId>),
    /// These nodes only, by name.
    Nodes(Vec<String>),
}

impl Expand {
    fn wants(&self, g: &Graph, n: NodeId) -> bool {
        let node = g.node(n);
        match self {
            Expand::All => true,
            Expand::Ops(ops) => ops.contains(&node.op),
            Expand::Nodes(names) => names.iter().any(|name| **name == *node.name),
        }
    }
}

impl Pass for Expand {
    fn name(&self) -> &'static str {
        "expand"
    }

    fn run(&self, cx: &mut PassCx<'_>) -> Result<(), PassError> {
        loop {
            let g = &cx.model().graph;
            let chosen: Vec<NodeId> = g
                .nodes()
                .filter(|&n| spelling(g, n).is_some() && self.wants(g, n))
                .collect();
            if chosen.is_empty() {
                return Ok(());
            }
            cx.declare_types();
            expand_nodes(cx, &chosen)?;
        }
    }
}

/// The definition of a node's operator.
pub(super) fn definition(g: &Graph, n: NodeId) -> Option<Definition> {
    let op = &g.node(n).op;
    match lookup(&op.domain, &op.op_type)?.gradient {
        Gradient::Expand(define) => Some(define),
        Gradient::Rule(_) | Gradient::Zero | Gradient::Missing => None,
    }
}

/// The definition of a node's operator, or that of the node alone.
fn spelling(g: &Graph, n: NodeId) -> Option<Definition> {
    let plain = || {
        let node = g.node(n);
        lookup(&node.op.domain, &node.op.op_type)?.plain?(node)
    };
    definition(g, n).or_else(plain)
}

/// Whether any node of an operator can be replaced by a definition.
pub(crate) fn has_definition(g: &Graph, op: &OpId) -> bool {
    g.nodes()
        .any(|n| g.node(n).op == *op && spelling(g, n).is_some())
}

/// Replaces these nodes, all of which have a definition. All refusals come back together.
pub(super) fn expand_nodes(cx: &mut PassCx<'_>, nodes: &[NodeId]) -> Result<(), PassError> {
    let verified = cx.verified()?;
    // Outputs of operators that are replaced by now, which later ones read.
    let mut made = Facts::default();
    let mut refused = Vec::new();
    for &n in nodes {
        let facts = |v: ValueId| made.get(v).or_else(|| verified.fact(v)).cloned();
        match expand_node(cx, n, &facts)? {
            Ok(outputs) => outputs.into_iter().for_each(|(v, f)| made.set(v, f)),
            Err(e) => {
                let node = cx.model().graph.node(n);
                refused.push(
                    Diagnostic::error("expand", format!("{}: {e}", node.op))
                        .at(node.name.to_string())
                        .help("export the graph without this fused operator"),
                );
            }
        }
    }
    if refused.is_empty() {
        return Ok(());
    }
    Err(Error::many(ErrorKind::Unsupported, refused).into())
}

/// Replaces one node; its new outputs, with what is known of the old ones.
fn expand_node(
    cx: &mut PassCx<'_>,
    n: NodeId,
    facts: &dyn Fn(ValueId) -> Option<Fact>,
) -> Result<Result<Vec<(ValueId, Fact)>, GradError>, PassError> {
    let g = &cx.model().graph;
    let Some(define) = spelling(g, n) else {
        return Ok(Ok(Vec::new()));
    };
    let name = g.node(n).name.clone();
    let mut patch = cx.patch(format!("definition of {name}"), Some(n));
    patch.builder().set_scope(&scope(g, n));
    let origin = (stamp::DEFINITION.into(), g.node(n).op.to_string().into());
    let mut stamps = Metadata::from_iter([origin]);
    // The definition stands where the operator stood.
    for key in exporter::ALL {
        if let Some(text) = g.node(n).metadata.get(key) {
            stamps.insert(key.into(), text.clone());
        }
    }
    patch.builder().set_stamp(stamps);
    let dtype = g.output(n, 0).and_then(facts).and_then(|f| f.dtype);
    if let Some(ty) = dtype.filter(|t| t.is_float()) {
        patch.builder().set_float(ty);
    }
    let ex = ExpandCx {
        graph: g,
        id: n,
        b: patch.builder(),
        facts,
    };
    let outs = match define(&ex) {
        Ok(outs) => outs,
        Err(e) => return Ok(Err(e)),
    };
    let mut names = Vec::new();
    let mut known = Vec::new();
    for (slot, old) in g.node_outputs(n).into_iter().enumerate() {
        let Some(old) = old else { continue };
        match outs.get(slot).copied().flatten() {
            Some(new) => {
                let new = patch.supersede((old, g.name_of(old)), new, &mut names);
                known.extend(facts(old).map(|f| (new, f)));
            }
            None if g.is_used(old) => {
                return Ok(Err(GradError(format!("output {slot} is not defined"))));
            }
            None => {}
        }
    }
    patch.remove_node(n);
    patch.import_domains();
    for (new, name) in names {
        patch.rename(new, &name);
    }
    let applied = cx.commit(patch)?;
    let known = known.into_iter().map(|(v, f)| (applied.value(v), f));
    Ok(Ok(known.collect()))
}

/// The name of a node, made up from its operator where it has none.
pub(super) fn scope(g: &Graph, n: NodeId) -> String {
    let node = g.node(n);
    if !node.name.is_empty() {
        return node.name.to_string();
    }
    let out = g.node_outputs(n).into_iter().flatten().next();
    out.map_or_else(|| node.op.op_type.to_string(), |v| g.name_of(v).to_owned())
}

#[cfg(test)]
mod tests;
