//! Tests of operators: small graphs in, types and gradient nodes out, as text.

use super::{GradCx, Gradient, lookup};
use crate::infer::Verified;
use crate::ir::{Builder, DType, Dim, Fact, Model, Sym, TensorData, Type, TypeKind, Val};

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

/// A model of these inputs (named `a`, `b`, …) and of what `build` makes of them, as outputs `out0`, `out1`, ….
pub(super) fn model(
    opset: i64,
    inputs: &[&str],
    build: impl FnOnce(&Builder, &[Val]) -> Vec<Val>,
) -> Model {
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
    Model {
        graph: b.finish_graph("g", &outputs).expect("fresh names"),
        opset_imports: vec![
            ("".into(), opset),
            ("com.microsoft".into(), 1),
            ("onnx_graft".into(), 1),
        ],
        ir_version: 8,
        ..Model::default()
    }
}

/// What inference knows of a value: `i64[2] = (batch, 8)`, fresh symbols as `?` and `#`.
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
    match Verified::check(model(opset, inputs, build)) {
        Ok(v) => {
            let outs = v.model().graph.outputs().iter();
            outs.map(|p| shown(v.fact(p.value).expect("a fact")))
                .collect()
        }
        Err(r) => vec![format!("error: {}", r.findings[0].message)],
    }
}

/// The backward nodes of the last node of a model, as `Op(inputs)`, and what each input's gradient is. All its floating-point inputs
/// want one; `g0`, `g1`, … arrive.
pub(super) fn backward(
    opset: i64,
    inputs: &[&str],
    build: impl FnOnce(&Builder, &[Val]) -> Vec<Val>,
) -> String {
    let verified = Verified::check(model(opset, inputs, build)).expect("it verifies");
    let graph = &verified.model().graph;
    let id = *graph.order().expect("no cycle").last().expect("a node");
    let op = &graph.node(id).op;
    let def = lookup(&op.domain, &op.op_type).expect("a known operator");
    let Gradient::Rule(rule) = def.gradient else {
        return format!("{:?}", def.gradient);
    };
    let b = Builder::new(opset);
    let fact = |v| verified.fact(v).cloned();
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
