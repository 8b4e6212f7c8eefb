//! Tests of operators: small graphs in, types and gradient nodes out, as text.

use super::kit::infer::{fact, tensor_fact};
use super::{DOMAIN, GradCx, Gradient, InferCx, MS, lookup};
use crate::ir::{
    AttrValue, Builder, DType, Dim, Fact, Graph, NodeId, Sym, TensorData, Type, TypeKind, Val,
    ValueId,
};
use std::cell::Cell;
use std::collections::BTreeMap;

/// `f32[batch, 8]`; sizes are numbers, symbols or `?`. `f32[..]` has no rank.
pub(super) fn ty(text: &str) -> Type {
    let (dtype, dims) = text.split_once('[').expect("a `[`");
    let dims = dims.strip_suffix(']').expect("a `]`");
    let dim = |d: &str| match (d, d.parse()) {
        ("?", _) => Dim::Unknown,
        (_, Ok(n)) => Dim::Known(n),
        (s, Err(_)) => Dim::Symbol(s.into()),
    };
    let dims = match dims {
        ".." => None,
        "" => Some(Vec::new()),
        d => Some(d.split(", ").map(dim).collect()),
    };
    Type {
        kind: TypeKind::Tensor {
            dtype: DType::from_name(dtype).expect("a type"),
            dims,
        },
        exact: None,
    }
}

/// A graph of these inputs (named `a`, `b`, …) and of what `build` makes of them, as outputs `out0`, `out1`, ….
fn graph(opset: i64, inputs: &[&str], build: impl FnOnce(&Builder, &[Val]) -> Vec<Val>) -> Graph {
    let b = Builder::new(opset);
    let vals: Vec<Val> = inputs
        .iter()
        .zip('a'..)
        .map(|(t, name)| b.graph_input(&name.to_string(), ty(t)))
        .collect();
    let outs = build(&b, &vals);
    let names: Vec<String> = (0..outs.len()).map(|i| format!("out{i}")).collect();
    let outputs: Vec<(Val, &str, Type)> = outs
        .iter()
        .zip(&names)
        .map(|(v, n)| (*v, &**n, ty("undefined[..]")))
        .collect();
    b.finish_graph("g", &outputs).expect("fresh names")
}

/// What the rules alone know of the values of a graph, or the first contradiction: no subgraphs, no functions, no declarations but
/// those of the inputs.
struct Known<'g> {
    graph: &'g Graph,
    facts: BTreeMap<usize, Fact>,
    tensors: BTreeMap<usize, &'g TensorData>,
    fresh: Cell<u32>,
}

impl<'g> Known<'g> {
    fn infer(graph: &'g Graph, opset: i64) -> Result<Known<'g>, String> {
        let mut known = Known {
            graph,
            facts: BTreeMap::new(),
            tensors: BTreeMap::new(),
            fresh: Cell::new(0),
        };
        for &v in graph.initializers() {
            let tensor = graph.value(v).tensor.as_ref().expect("a tensor");
            known.facts.insert(v.index(), tensor_fact(tensor));
            known.tensors.insert(v.index(), tensor);
        }
        for port in graph.inputs() {
            let fact = known.declared(port.ty.as_ref().expect("a type"));
            known.facts.insert(port.value.index(), fact);
        }
        for id in graph.order().expect("no cycle") {
            known.node(id, opset)?;
        }
        Ok(known)
    }

    fn declared(&self, ty: &Type) -> Fact {
        let TypeKind::Tensor { dtype, dims } = &ty.kind else {
            return Fact::default();
        };
        let dim = |d: &Dim| match d {
            Dim::Known(n) => Sym::from(*n),
            Dim::Symbol(s) => Sym::symbol(s),
            Dim::Unknown => {
                let n = self.fresh.replace(self.fresh.get() + 1);
                Sym::symbol(&format!("?{n}"))
            }
        };
        let dims = dims.as_ref().map(|d| d.iter().map(dim).collect());
        fact(Some(*dtype), dims)
    }

    fn node(&mut self, id: NodeId, opset: i64) -> Result<(), String> {
        let node = self.graph.node(id);
        let known = ["", MS, DOMAIN].contains(&&*node.op.domain);
        assert!(known, "{} is of another domain", node.op);
        let def = lookup(&node.op.domain, &node.op.op_type).expect("a known operator");
        let inputs = self.graph.node_inputs(id);
        let of = |v: &Option<ValueId>| v.map(ValueId::index);
        let mut cx = InferCx {
            node,
            inputs: inputs.iter().map(|v| self.facts.get(&of(v)?)).collect(),
            tensors: inputs
                .iter()
                .map(|v| self.tensors.get(&of(v)?).copied())
                .collect(),
            outputs: vec![Fact::default(); node.output_count()],
            opset: if node.op.domain.is_empty() { opset } else { 1 },
            fresh: &self.fresh,
            bodies: &|_, _, _| None,
        };
        (def.infer)(&mut cx).map_err(|e| format!("error: {}: {e}", node.op))?;
        let outputs = cx.outputs;
        for (v, fact) in self.graph.node_outputs(id).iter().zip(outputs) {
            if let Some(at) = of(v) {
                self.facts.insert(at, fact);
            }
        }
        let constant = node.attr("value").and_then(AttrValue::as_tensor);
        if let (true, Some(tensor)) = (node.op.is_onnx("Constant"), constant) {
            let out = self.graph.output(id, 0).expect("an output");
            self.tensors.insert(out.index(), tensor);
        }
        Ok(())
    }

    fn fact(&self, v: ValueId) -> Option<Fact> {
        self.facts.get(&v.index()).cloned()
    }
}

/// What is known of a value: `i64[2] = (batch, 8)`, fresh symbols as `?` and `#`.
fn shown(f: &Fact) -> String {
    // Fresh symbols without their numbers.
    let sym = |s: &Sym| {
        let mut out = String::new();
        for c in s.to_string().chars() {
            if !(c.is_ascii_digit() && out.ends_with(['?', '#'])) {
                out.push(c);
            }
        }
        out
    };
    let list = |v: &[Sym]| v.iter().map(sym).collect::<Vec<_>>().join(", ");
    let dtype = f.dtype.map_or("?", DType::name);
    let dims = f.dims.as_deref().map_or("..".to_owned(), list);
    let ints = f
        .ints
        .as_deref()
        .map_or(String::new(), |v| format!(" = ({})", list(v)));
    format!("{dtype}[{dims}]{ints}")
}

/// Types of the outputs at opset 18, or the first finding.
pub(super) fn infer(
    inputs: &[&str],
    build: impl FnOnce(&Builder, &[Val]) -> Vec<Val>,
) -> Vec<String> {
    infer_at(18, inputs, build)
}

/// Types of the outputs, or the first finding.
pub(super) fn infer_at(
    opset: i64,
    inputs: &[&str],
    build: impl FnOnce(&Builder, &[Val]) -> Vec<Val>,
) -> Vec<String> {
    let graph = graph(opset, inputs, build);
    match Known::infer(&graph, opset) {
        Ok(known) => graph
            .outputs()
            .iter()
            .map(|p| shown(&known.fact(p.value).expect("a fact")))
            .collect(),
        Err(e) => vec![e],
    }
}

/// The backward nodes of the last node of a model, as `Op(inputs)`, and what each input's gradient is. All its floating-point inputs
/// want one; `g0`, `g1`, … arrive.
pub(super) fn backward(
    opset: i64,
    inputs: &[&str],
    build: impl FnOnce(&Builder, &[Val]) -> Vec<Val>,
) -> String {
    let graph = &graph(opset, inputs, build);
    let known = Known::infer(graph, opset).expect("no contradiction");
    let id = *graph.order().expect("no cycle").last().expect("a node");
    let op = &graph.node(id).op;
    let def = lookup(&op.domain, &op.op_type).expect("a known operator");
    let Gradient::Rule(rule) = def.gradient else {
        return format!("{:?}", def.gradient);
    };
    let b = Builder::new(opset);
    let fact = |v| known.fact(v);
    let slots = graph.node_inputs(id);
    let is_float = |v| fact(v).and_then(|f| f.dtype).is_some_and(DType::is_float);
    let grads = (0..graph.node(id).output_count())
        .map(|i| Some(b.graph_input(&format!("g{i}"), ty("f32[..]"))))
        .collect();
    let mut cx = GradCx {
        graph,
        id,
        b: &b,
        grads,
        wants: slots.iter().map(|v| v.is_some_and(is_float)).collect(),
        facts: &fact,
        types: &|v| fact(v)?.dtype,
        result: vec![None; slots.len()],
    };
    if let Err(e) = rule(&mut cx) {
        return format!("error: {e}");
    }
    let result = cx.result;
    let fragment = b.peek();
    let named = |name: &str, tensor: Option<&TensorData>| {
        let ints = tensor
            .and_then(TensorData::to_i64)
            .map(|v| format!("{v:?}"));
        let floats = tensor
            .and_then(TensorData::to_f32)
            .map(|v| format!("{v:?}"));
        ints.or(floats)
            .unwrap_or_else(|| name.trim_end_matches("_output").to_owned())
    };
    let name = |v: Val| match v {
        Val::Old(id) => named(graph.name_of(id), graph.value(id).tensor.as_ref()),
        Val::New(ix) => {
            let value = &fragment.values[ix as usize];
            named(&value.name, value.tensor.as_ref())
        }
    };
    let mut lines: Vec<String> = fragment
        .nodes
        .iter()
        .map(|n| {
            let args: Vec<String> = n
                .inputs
                .iter()
                .map(|v| v.map_or("-".into(), name))
                .collect();
            format!("{}: {}({})", n.name, n.op, args.join(", "))
        })
        .collect();
    for (v, name_of) in result.iter().zip('a'..) {
        if let Some(v) = v {
            lines.push(format!("d{name_of} = {}", name(*v)));
        }
    }
    lines.join("\n")
}
