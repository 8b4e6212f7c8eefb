//! Nodes that hold or call a graph, replaced by the nodes of that graph: an `If` whose condition is known, and calls of model-local
//! functions.
//!
//! Names of values and nodes stay where they are free, so that modules are found as in the graph that was exported without them. A call is
//! left alone where its body needs another version of an operator set, or refers to an attribute that the call does not give.

use crate::analyze::through::Through;
use crate::infer::{Verified, ai_onnx};
use crate::ir::{
    Adopted, Attr, AttrValue, Body, Graph, Model, Node, NodeId, Val, ValueId, contract,
};
use crate::ops;
use crate::rewrite::{Pass, PassCx, PassError};
use rustc_hash::FxHashMap;

/// Replaces nodes by the graphs that they hold or call, until none is left that can be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Inline {
    /// Whether the graph input that says whether a cache is fed is false from now on. It goes, and so do inputs that only the other branch
    /// reads.
    pub without_cache: bool,
    /// Whether calls of functions are replaced.
    pub calls: bool,
}

/// Calls in calls are replaced so often; a function that calls itself is found out elsewhere.
const ROUNDS: usize = 64;

impl Pass for Inline {
    fn name(&self) -> &'static str {
        "inline"
    }

    fn run(&self, cx: &mut PassCx<'_>) -> Result<(), PassError> {
        let calls = self.calls && unfolded(cx.model()) <= UNFOLDED;
        let wanted = Inline { calls, ..*self };
        for _ in 0..ROUNDS {
            let verified = cx.verified()?;
            let model = verified.model();
            let found = |n: NodeId| Some((n, wanted.body(&verified, n)?));
            let all: Vec<(NodeId, Inner<'_>)> = model.graph.nodes().filter_map(found).collect();
            if all.is_empty() {
                break;
            }
            for (n, inner) in all {
                replace(cx, n, &inner)?;
            }
        }
        if self.without_cache {
            drop_inputs(cx)?;
        }
        Ok(())
    }
}

/// Calls stay where the graph without them would have more nodes than this: functions that call each other may unfold without end in
/// sight.
const UNFOLDED: usize = 1 << 20;

/// Number of nodes of a model in which no function is called any more. Linear in its nodes.
fn unfolded(model: &Model) -> usize {
    let all = model.functions.iter().enumerate();
    let index: FxHashMap<_, usize> = all
        .map(|(i, f)| ((ai_onnx(&f.domain), &*f.name, &*f.overload), i))
        .collect();
    let part = |g: &Graph| {
        let called = |n: NodeId| {
            let op = &g.node(n).op;
            index.get(&(ai_onnx(&op.domain), &*op.op_type, &*op.overload))
        };
        let calls: Vec<usize> = g.nodes().filter_map(|n| called(n).copied()).collect();
        (g.node_count(), calls)
    };
    let mut parts: Vec<(usize, Vec<usize>)> =
        model.functions.iter().map(|f| part(&f.body)).collect();
    parts.push(part(&model.graph));
    let whole = parts.len() - 1;
    let mut sizes: Vec<Option<usize>> = vec![None; parts.len()];
    let mut opened = vec![false; parts.len()];
    let mut todo = vec![whole];
    while let Some(&at) = todo.last() {
        let (own, calls) = &parts[at];
        let unknown = calls.iter().copied().filter(|c| sizes[*c].is_none());
        let unknown: Vec<usize> = unknown.collect();
        if !unknown.is_empty() && !opened[at] {
            opened[at] = true;
            todo.extend(unknown);
            continue;
        }
        // One that calls itself has no size.
        let inner = calls.iter().map(|c| sizes[*c].unwrap_or(usize::MAX));
        let size = inner.fold(*own, usize::saturating_add);
        sizes[at].get_or_insert(size);
        todo.pop();
    }
    sizes[whole].unwrap_or(usize::MAX)
}

/// The graph to put in the place of a node.
struct Inner<'m> {
    graph: &'m Graph,
    /// Where it stands, for a branch: what it captures is given. For a call, its inputs are.
    body: Option<Body>,
    /// Attributes of the call.
    attrs: Option<&'m Node>,
    /// What names begin with.
    prefix: String,
    /// Domains that the body imports.
    imports: &'m [(Box<str>, i64)],
}

impl Inner<'_> {
    /// What its inputs or captures are in the graph around, as it is now.
    fn given(&self, g: &Graph, n: NodeId) -> FxHashMap<ValueId, Val> {
        if let Some(body) = &self.body {
            let outer = body.captured(g).into_iter().map(Val::Old);
            return std::iter::zip(self.graph.captures().iter().copied(), outer).collect();
        }
        let formal = self.graph.inputs().iter().map(|p| p.value);
        let given = std::iter::zip(formal, g.node_inputs(n));
        given.filter_map(|(p, a)| Some((p, Val::Old(a?)))).collect()
    }
}

impl Inline {
    fn body(self, verified: &Verified, n: NodeId) -> Option<Inner<'_>> {
        let model = verified.model();
        if model.graph.node(n).op.is_onnx("If") {
            return self.branch(verified, n);
        }
        if self.calls { call(model, n) } else { None }
    }

    /// The branch that is taken, where that is known.
    fn branch(self, verified: &Verified, n: NodeId) -> Option<Inner<'_>> {
        let g = &verified.model().graph;
        let test = g.input(n, 0)?;
        let known = verified.fact(test).and_then(|f| f.ints.as_deref());
        let source = Through::ALIKE.source(g, test);
        let off = self.without_cache && is_switch(g, source);
        let taken = match known {
            Some([one]) => one.as_const()? != 0,
            _ if off => false,
            _ => return None,
        };
        let name = if taken { "then_branch" } else { "else_branch" };
        let body = g.bodies(n).into_iter().find(|b| &*b.attr == name)?;
        let graph = body.graph(g)?;
        Some(Inner {
            graph,
            body: Some(body),
            attrs: None,
            prefix: String::new(),
            imports: &[],
        })
    }
}

/// Whether a value is the graph input that says whether a cache is fed.
fn is_switch(g: &Graph, v: ValueId) -> bool {
    g.is_input(v) && g.name_of(v) == contract::USE_CACHE_BRANCH
}

/// The body of the function that a node calls.
fn call(model: &Model, n: NodeId) -> Option<Inner<'_>> {
    let (g, node) = (&model.graph, model.graph.node(n));
    let f = model.functions.iter().find(|f| {
        ai_onnx(&f.domain) == ai_onnx(&node.op.domain)
            && f.name == node.op.op_type
            && f.overload == node.op.overload
    })?;
    // Ours are exported with a body for other runtimes, and are operators here.
    if *f.domain == *ops::DOMAIN || !f.body.order().is_ok_and(|o| !o.is_empty()) {
        return None;
    }
    let other = |(d, v): &(Box<str>, i64)| model.opset(d).is_some_and(|have| have != *v);
    let gives = |name: &str| node.attrs.contains_key(name);
    let refers = |a: &Attr| matches!(&a.value, AttrValue::Ref { name, .. } if !gives(name));
    let open = |n: NodeId| {
        let inside = f.body.bodies(n).into_iter();
        f.body.node(n).attrs.values().any(refers)
            || inside.filter_map(|b| b.graph(&f.body)).any(has_references)
    };
    if f.body.nodes().any(open) || f.opset_imports.iter().any(other) {
        return None;
    }
    Some(Inner {
        graph: &f.body,
        body: None,
        attrs: Some(node),
        prefix: format!("{}/", super::expand::scope(g, n)),
        imports: &f.opset_imports,
    })
}

/// Whether attributes in a graph stand for those of a call.
fn has_references(g: &Graph) -> bool {
    g.nodes().any(|n| {
        let refers = |a: &Attr| matches!(a.value, AttrValue::Ref { .. });
        let mut inside = g.bodies(n).into_iter();
        g.node(n).attrs.values().any(refers)
            || inside.any(|b| b.graph(g).is_some_and(has_references))
    })
}

/// Whether a model has nodes that call functions of its own, or branches.
pub(crate) fn concerns(model: &Model) -> bool {
    let g = &model.graph;
    g.nodes()
        .any(|n| g.node(n).op.is_onnx("If") || call(model, n).is_some())
}

fn replace(cx: &mut PassCx<'_>, n: NodeId, inner: &Inner<'_>) -> Result<(), PassError> {
    let g = &cx.model().graph;
    let name = super::expand::scope(g, n);
    let mut patch = cx.patch(format!("the nodes of {name}"), Some(n));
    let mut given = inner.given(g, n);
    let attr = |name: &str| inner.attrs.and_then(|n| n.attrs.get(name)).cloned();
    let attrs: &dyn Fn(&str) -> Option<Attr> = &attr;
    let adopted = Adopted {
        graph: inner.graph,
        taken: &|name| g.find(name).is_some(),
        attrs: inner.attrs.map(|_| attrs),
        rename: &|name| format!("{}{name}", inner.prefix),
    };
    patch.builder().adopt(&adopted, &mut given);
    patch.builder().set_scope(&name);
    let mut names: Vec<(Val, String)> = Vec::new();
    let outer = g.node_outputs(n);
    for (old, port) in std::iter::zip(outer, inner.graph.outputs()) {
        let (Some(old), Some(&new)) = (old, given.get(&port.value)) else {
            continue;
        };
        patch.supersede((old, g.name_of(old)), new, &mut names);
    }
    patch.remove_node(n);
    for (domain, version) in inner.imports {
        patch.import(domain, *version);
    }
    for (new, name) in names {
        patch.rename(new, &name);
    }
    cx.commit(patch)?;
    Ok(())
}

/// Drops the switch, and caches that nothing reads any more.
fn drop_inputs(cx: &mut PassCx<'_>) -> Result<(), PassError> {
    let g = &cx.model().graph;
    let before = &cx.before().model().graph;
    let switched = g.inputs().iter().any(|p| is_switch(g, p.value));
    let idle = |v: &ValueId| !g.is_used(*v) && g.is_input(*v) && before.is_used(*v);
    let gone: Vec<ValueId> = g.inputs().iter().map(|p| p.value).filter(idle).collect();
    if !switched || gone.is_empty() {
        return Ok(());
    }
    let mut patch = cx.patch("inputs of the other branch", None);
    for v in gone {
        patch.remove_value(v);
    }
    cx.commit(patch)?;
    Ok(())
}

#[cfg(test)]
mod tests;
