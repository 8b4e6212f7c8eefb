//! Tests of inference as a whole; those of operators are beside them.

use super::*;
use crate::ir::{Builder, GraphPort, OpId, Val};

fn ty(dtype: DType, dims: &[Dim]) -> Type {
    Type::tensor(dtype, dims.to_vec())
}

fn batch_by(n: i64) -> Type {
    ty(DType::Float, &[Dim::Symbol("batch".into()), Dim::Known(n)])
}

fn undeclared() -> Type {
    Type {
        kind: TypeKind::Tensor {
            dtype: DType::Undefined,
            dims: None,
        },
        exact: None,
    }
}

/// A model of `x: f32[batch, 8]` and one output `y`.
fn model(declared: Type, build: impl FnOnce(&Builder, Val) -> Val) -> Model {
    let b = Builder::new(17);
    let x = b.graph_input("x", batch_by(8));
    let y = build(&b, x);
    Model {
        graph: b
            .finish_graph("g", &[(y, "y", declared)])
            .expect("fresh names"),
        opset_imports: vec![("".into(), 17)],
        ir_version: 8,
        ..Model::default()
    }
}

fn codes(found: &[Diagnostic]) -> Vec<&'static str> {
    found.iter().map(|d| d.code).collect()
}

fn errors(model: Model) -> Vec<Diagnostic> {
    Verified::check(model).expect_err("it is wrong").findings
}

fn shape_of(model: Model, name: &str) -> String {
    let v = Verified::check(model).expect("it verifies");
    let id = v.model().graph.find(name).expect("a value");
    v.fact(id)
        .and_then(|f| f.dims.as_deref())
        .map_or("[..]".into(), shape_text)
}

#[test]
fn a_declared_output_must_fit() {
    assert_eq!(
        shape_of(model(batch_by(8), |b, x| b.unary("Relu", x)), "y"),
        "[batch, 8]"
    );
    let found = errors(model(batch_by(4), |b, x| b.unary("Relu", x)));
    assert_eq!(codes(&found), ["shape-contradiction"]);
    assert_eq!(
        found[0].message,
        "found shape [batch, 8], declared [batch, 4]"
    );
    let found = errors(model(ty(DType::Int64, &[]), |b, x| b.unary("Relu", x)));
    assert_eq!(codes(&found), ["type-contradiction", "shape-contradiction"]);
}

#[test]
fn stale_value_info_is_ignored() {
    let mut m = model(undeclared(), |b, x| {
        let h = b.unary("Relu", x);
        b.unary("Tanh", h)
    });
    let h = m.graph.find("Relu_output").expect("a value");
    let port = |ty| GraphPort {
        value: h,
        ty: Some(ty),
        residue: bytes::Bytes::new(),
    };
    m.graph.infos.push(InfoEntry::Value(port(batch_by(4))));
    let v = Verified::check(m.clone()).expect("a warning only");
    assert_eq!(codes(v.warnings()), ["shape-stale"]);
    assert_eq!(shape_of(m.clone(), "y"), "[batch, 8]");
    // Not so a wrong element type: everything behind it would be wrong.
    m.graph.infos = vec![InfoEntry::Value(port(ty(DType::Double, &[])))];
    assert!(codes(&errors(m)).contains(&"type-contradiction"));
}

#[test]
fn names_made_up_for_unknown_sizes_say_less_than_expressions() {
    // The length is that of two inputs together: `broadcast(a, b)`, and not the name that ONNX's inference gives it.
    let mut m = model(undeclared(), |b, x| {
        let by = |name: &str| Type::tensor(DType::Float, [Dim::Symbol(name.into()), Dim::Known(8)]);
        let (a, c) = (b.graph_input("a", by("a")), b.graph_input("c", by("c")));
        b.add(b.unary("Relu", x), b.add(a, c))
    });
    let sum = m.graph.find("Add_output").expect("a value");
    let ty = Type::tensor(DType::Float, [Dim::Symbol("unk__3".into()), Dim::Known(8)]);
    m.graph.infos.push(InfoEntry::Value(GraphPort {
        value: sum,
        ty: Some(ty),
        residue: bytes::Bytes::new(),
    }));
    let v = Verified::check(m).expect("no contradiction");
    let fact = v.fact(sum).expect("a fact");
    let dims = fact.dims.as_ref().expect("a rank");
    assert_eq!(dims[0].to_string(), "broadcast(a, c)");
}

#[test]
fn a_declaration_says_what_inference_cannot() {
    let unknown = |b: &Builder, x| b.op_in("custom", "Thing", &[x], &[]);
    let mut m = model(batch_by(3), unknown);
    m.opset_imports.push(("custom".into(), 1));
    assert_eq!(shape_of(m, "y"), "[batch, 3]");
}

#[test]
fn a_domain_must_be_imported() {
    let found = errors(model(undeclared(), |b, x| {
        b.op_in("custom", "Thing", &[x], &[])
    }));
    assert_eq!(codes(&found), ["domain-not-imported"]);
    assert_eq!(found[0].path, "Thing");
}

#[test]
fn arity() {
    let found = errors(model(undeclared(), |b, x| b.op("Add", &[x], &[])));
    assert_eq!(found[0].message, "Add takes 2 inputs, found 1");
    let found = errors(model(undeclared(), |b, x| {
        b.node_n(OpId::onnx("Add"), &[None, Some(x)], &[], 1)[0]
    }));
    assert_eq!(found[0].message, "Add needs its input 0");
    let found = errors(model(undeclared(), |b, x| b.op("Relu", &[x, x], &[])));
    assert_eq!(found[0].message, "Relu takes 1 inputs, found 2");
}

#[test]
fn all_findings_come_together() {
    let found = errors(model(undeclared(), |b, x| {
        let five = b.constant(TensorData::from_f32([5], &[0.0; 5]));
        let p = b.add(x, five);
        let q = b.transpose(x, &[0]);
        b.add(p, q)
    }));
    assert_eq!(codes(&found), ["op-types", "op-types"]);
    assert_eq!(
        found[0].message,
        "Add: shapes [batch, 8] and [5] do not broadcast"
    );
    assert_eq!(found[0].path, "Add");
    assert_eq!(
        found[0].notes,
        ["inputs: `x` f32[batch, 8], `const` f32[5]"]
    );
}

#[test]
fn a_payload_has_the_size_of_its_shape() {
    let short = TensorData::raw(DType::Float, [8], bytes::Bytes::from_static(&[0; 12]));
    let found = errors(model(undeclared(), |b, x| b.add(x, b.constant(short))));
    assert_eq!(codes(&found), ["tensor-size"]);
    assert_eq!(found[0].message, "f32[8] takes 32 bytes, found 12");
}

#[test]
fn a_default_that_a_caller_may_replace_is_no_constant() {
    let mut m = model(undeclared(), |b, x| {
        let shape = b.initializer("shape", TensorData::ints(&[8, -1]));
        b.reshape(x, shape)
    });
    assert_eq!(shape_of(m.clone(), "y"), "[8, batch]");
    let shape = m.graph.find("shape").expect("a value");
    m.graph.inputs.push(GraphPort {
        value: shape,
        ty: Some(ty(DType::Int64, &[Dim::Known(2)])),
        residue: bytes::Bytes::new(),
    });
    let text = shape_of(m.clone(), "y");
    assert!(text.starts_with("[?") && !text.contains("batch"), "{text}");
    // Before IR version 4 every initializer had to be listed as an input.
    m.ir_version = 3;
    assert_eq!(shape_of(m, "y"), "[8, batch]");
}

fn function(name: &str, op: &str, callee: &str, axis: Option<AttrValue>) -> Function {
    let b = Builder::new(17);
    let x = b.graph_input("x", undeclared());
    let attrs: Vec<(&str, Attr)> = axis.into_iter().map(|a| ("axis", a.into())).collect();
    let y = b.op_in(callee, op, &[x, x], &attrs);
    Function {
        name: name.into(),
        domain: "my".into(),
        overload: "".into(),
        body: b
            .finish_graph(name, &[(y, "y", undeclared())])
            .expect("fresh names"),
        opset_imports: vec![("".into(), 17), ("my".into(), 1)],
        residue: bytes::Bytes::new(),
    }
}

#[test]
fn functions_are_inferred_at_each_call() {
    let axis = AttrValue::Ref {
        name: "ax".into(),
        kind: 2,
    };
    let call = |attrs: &[(&str, Attr)]| {
        let mut m = model(undeclared(), |b, x| b.op_in("my", "twice", &[x], attrs));
        m.opset_imports.push(("my".into(), 1));
        m.functions
            .push(function("twice", "Concat", "", Some(axis.clone())));
        m
    };
    assert_eq!(shape_of(call(&[("ax", 0i64.into())]), "y"), "[2*batch, 8]");
    assert_eq!(shape_of(call(&[("ax", 1i64.into())]), "y"), "[batch, 16]");
    assert_eq!(
        shape_of(call(&[]), "y"),
        "[..]",
        "the default is not interpreted"
    );
    let found = errors(call(&[("ax", 2i64.into())]));
    assert_eq!(found[0].message, "Concat: axis 2 of a tensor of rank 2");
    assert_eq!(found[0].path, "twice > Concat");
}

#[test]
fn nested_calls_end() {
    // Each function calls the next one; 2⁶⁰ visits without a bound, and the last one calls itself.
    let mut m = model(undeclared(), |b, x| b.op_in("my", "f0", &[x], &[]));
    m.opset_imports.push(("my".into(), 1));
    for i in 0..60 {
        let next = format!("f{}", (i + 1).min(59));
        let b = Builder::new(17);
        let x = b.graph_input("x", undeclared());
        let y = b.add(
            b.op_in("my", &next, &[x], &[]),
            b.op_in("my", &next, &[x], &[]),
        );
        m.functions.push(Function {
            name: format!("f{i}").into(),
            body: b
                .finish_graph("f", &[(y, "y", undeclared())])
                .expect("fresh names"),
            ..function("", "Add", "", None)
        });
    }
    let v = Verified::check(m).expect("unknown, not wrong");
    assert_eq!(codes(v.warnings()), ["infer-budget"]);
}

#[test]
fn sizes_do_not_explode() {
    // A size squared sixty times, and a rank doubled sixty times.
    let m = model(undeclared(), |b, x| {
        let mut n = b.shape(x);
        let mut t = b.cast(x, DType::Int64);
        for _ in 0..60 {
            n = b.mul(n, n);
            t = b.op("Gather", &[t, t], &[]);
        }
        b.op("ConstantOfShape", &[n], &[])
    });
    assert_eq!(shape_of(m, "y").matches('?').count(), 2);
}

#[test]
fn branches_are_inferred() {
    let branch = |n: usize| {
        let b = Builder::new(17);
        let c = b.constant(TensorData::from_f32([2, n as u64], &vec![0.0; 2 * n]));
        let y = b.unary("Relu", c);
        b.finish_graph("branch", &[(y, "out", undeclared())])
            .expect("fresh names")
    };
    let m = model(undeclared(), |b, x| {
        let cond = b.cast(b.unary("Size", x), DType::Bool);
        let attrs = [
            ("then_branch", branch(3).into()),
            ("else_branch", branch(4).into()),
        ];
        b.op("If", &[cond], &attrs)
    });
    let text = shape_of(m, "y");
    assert!(text.starts_with("[2, ?"), "{text}");
}
