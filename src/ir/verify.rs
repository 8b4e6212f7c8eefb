//! Structural invariants of a graph. Types and shapes are [`infer`](crate::infer)'s.

use super::attr::AttrValue;
use super::graph::{Graph, Port};
use super::id::NodeId;
use super::model::Model;
use crate::diag::Diagnostic;

/// Everything that is structurally wrong with a model; empty when nothing is.
pub(crate) fn check_model(model: &Model) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    check_graph(&model.graph, "", &mut found);
    for f in &model.functions {
        check_graph(
            &f.body,
            &format!("function {}::{}", f.domain, f.name),
            &mut found,
        );
    }
    found
}

fn check_graph(g: &Graph, path: &str, found: &mut Vec<Diagnostic>) {
    if g.mended {
        let message = "nodes read what later ones make: they were brought into order";
        found.push(
            Diagnostic::warning("onnx-order", message)
                .at(path)
                .help("other runtimes may refuse this file; what is written from it is in order"),
        );
    }
    for n in g.nodes() {
        check_slots(g, n, path, found);
    }
    for v in g.values() {
        let value = g.value(v);
        let sources = g.definition_count(v) + usize::from(value.tensor.is_some());
        if sources > 1 {
            found.push(
                Diagnostic::error(
                    "value-redefined",
                    format!("`{}` has {sources} definitions", value.name),
                )
                .at(path),
            );
        }
        let given = sources == 1
            || g.is_input(v)
            || g.captures.contains(&v)
            || g.sparse_initializers.iter().any(|(s, _)| *s == v);
        if !given && g.is_used(v) {
            found.push(
                Diagnostic::error(
                    "value-undefined",
                    format!("`{}` is read, but nothing defines it", value.name),
                )
                .at(path)
                .help("it must be a graph input, an initializer or a node output"),
            );
        }
    }
    if let Err(cycle) = g.order() {
        let names: Vec<&str> = cycle.0.iter().take(5).map(|n| &*g.node(*n).name).collect();
        found.push(
            Diagnostic::error("cycle", format!("{cycle}, first: {}", names.join(", "))).at(path),
        );
    }
}

fn check_slots(g: &Graph, n: NodeId, path: &str, found: &mut Vec<Diagnostic>) {
    let node = g.node(n);
    let mut seen: Vec<Port> = g.node_ports(n).collect();
    let key = |p: &Port| match *p {
        Port::Def(s) => (0u8, s),
        Port::Use(s) => (1, s),
        Port::Capture(s) => (2, s),
    };
    seen.sort_unstable_by_key(key);
    if seen.windows(2).any(|w| w[0] == w[1]) {
        found.push(
            Diagnostic::error(
                "slot-twice",
                format!("a slot of `{}` ({}) is wired twice", node.name, node.op),
            )
            .at(path),
        );
    }
    let mut captures = 0;
    for attr in node.attrs.values() {
        let graphs: &[Graph] = match &attr.value {
            AttrValue::Graph(inner) => std::slice::from_ref(inner),
            AttrValue::Graphs(inner) => inner,
            _ => &[],
        };
        for inner in graphs {
            captures += inner.captures.len();
            check_graph(inner, &format!("{path}/{}", node.name), found);
        }
    }
    let wired = seen
        .iter()
        .filter(|p| matches!(p, Port::Capture(_)))
        .count();
    if wired != captures {
        found.push(
            Diagnostic::error(
                "captures",
                format!(
                    "`{}` captures {captures} values but {wired} are wired",
                    node.name
                ),
            )
            .at(path),
        );
    }
}
