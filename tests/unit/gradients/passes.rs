//! The gradient and loss passes themselves: names, sharing, errors, divisors.

use onnx_graft::infer::Verified;
use onnx_graft::ir::contract;
use onnx_graft::ir::{Builder, DType, Dim, Model, OpId, TensorData, Type, TypeKind, Val};
use onnx_graft::onnx::to_bytes;
use onnx_graft::rewrite::Pipeline;
use onnx_graft::rewrite::passes::gradient::{GradientPass, Outputs, Unreached};
use onnx_graft::rewrite::passes::loss::{Divisor, Loss};
use onnx_graft::runtime::{CompileOptions, Feeds, Plan, Value};

fn floats(dims: &[i64]) -> Type {
    Type::tensor(
        DType::Float,
        dims.iter().map(|&n| Dim::Known(n)).collect::<Vec<_>>(),
    )
}

/// A model of the inputs `x` and `w`, two floats each, and of the outputs that `build` names.
fn model(build: impl FnOnce(&Builder, Val, Val) -> Vec<(Val, &'static str)>) -> Verified {
    let b = Builder::new(18);
    let (x, w) = (
        b.graph_input("x", floats(&[2])),
        b.graph_input("w", floats(&[2])),
    );
    let outs = build(&b, x, w);
    let unshaped = Type {
        kind: TypeKind::Tensor {
            dtype: DType::Float,
            dims: None,
        },
        exact: None,
    };
    let typed: Vec<(Val, &str, Type)> = outs
        .into_iter()
        .map(|(v, name)| (v, name, unshaped.clone()))
        .collect();
    let model = Model {
        graph: b.finish_graph("g", &typed).unwrap(),
        opset_imports: vec![
            ("".into(), 18),
            ("com.microsoft".into(), 1),
            ("my.domain".into(), 1),
        ],
        ir_version: 8,
        ..Model::default()
    };
    Verified::check(model).map_err(|r| r.findings).unwrap()
}

fn sum(b: &Builder, v: Val) -> Val {
    b.op("ReduceSum", &[v], &[("keepdims", 0i64.into())])
}

fn gradient(model: Verified, wrt: &[&str], outputs: Outputs) -> Result<Verified, String> {
    let pass = GradientPass {
        loss: "loss".into(),
        wrt: wrt.iter().map(|&w| w.to_owned()).collect(),
        outputs,
        unreached: Unreached::Refuse,
    };
    let done = Pipeline::new().with(pass).run(model);
    done.map(|r| r.model).map_err(|f| f.error.to_string())
}

fn outputs(model: &Verified) -> Vec<&str> {
    let g = &model.model().graph;
    g.outputs().iter().map(|p| g.name_of(p.value)).collect()
}

fn run(model: &Verified, feeds: &[(&str, Vec<usize>, Vec<f32>)]) -> onnx_graft::runtime::Outputs {
    let plan = Plan::compile(model, &CompileOptions::default()).unwrap();
    let mut all = Feeds::new();
    for (name, dims, data) in feeds {
        all.insert(name, Value::from_f32(dims, data.clone()).unwrap());
    }
    plan.run(&all).unwrap()
}

/// `loss = Σ (x + w)·x`: two paths to `x`, and one gradient that is two outputs' at once.
#[test]
fn sums_paths_and_names_outputs() {
    let made = model(|b, x, w| {
        let s = b.add(x, w);
        b.name_last_output("s");
        vec![(sum(b, b.mul(s, x)), "loss")]
    });
    let made = gradient(made, &["x", "w", "s"], Outputs::Keep).unwrap();
    assert_eq!(outputs(&made), ["loss", "grad/x", "grad/w", "grad/s"]);
    let out = run(
        &made,
        &[
            ("x", vec![2], vec![1.0, 2.0]),
            ("w", vec![2], vec![5.0, 7.0]),
        ],
    );
    assert_eq!(out["grad/x"].to_f32().unwrap(), [7.0, 11.0]);
    assert_eq!(out["grad/w"].to_f32().unwrap(), [1.0, 2.0]);
    assert_eq!(out["grad/s"].to_f32().unwrap(), [1.0, 2.0]);
}

#[test]
fn is_deterministic_and_drops_other_outputs() {
    let make = || {
        let made = model(|b, x, w| {
            let y = b.mul(x, w);
            vec![(b.unary("Tanh", y), "y"), (sum(b, y), "loss")]
        });
        gradient(made, &["w"], Outputs::Drop).unwrap()
    };
    assert_eq!(outputs(&make()), ["loss", "grad/w"]);
    assert_eq!(to_bytes(&make()).unwrap(), to_bytes(&make()).unwrap());
}

/// Only what lies between the loss and the value is differentiated.
#[test]
fn frozen_operands_get_no_gradient() {
    let made = model(|b, x, w| vec![(sum(b, b.mul(b.unary("Exp", x), w)), "loss")]);
    let before = made.model().graph.node_count();
    let made = gradient(made, &["w"], Outputs::Keep).unwrap();
    let g = &made.model().graph;
    let added: Vec<&str> = g.order().unwrap()[before..]
        .iter()
        .map(|&n| &*g.node(n).op.op_type)
        .collect();
    assert!(!added.is_empty() && !added.contains(&"Exp"), "{added:?}");
    assert_eq!(
        added.iter().filter(|op| **op == "Mul").count(),
        1,
        "{added:?}"
    );
}

#[test]
fn reports_operators_without_rule_with_their_place() {
    let made = model(|b, x, w| {
        let y = b.op_in("my.domain", "Strange", &[b.add(x, w)], &[]);
        vec![(sum(b, y), "loss")]
    });
    let e = gradient(made, &["w"], Outputs::Keep).unwrap_err();
    assert!(e.contains("my.domain::Strange has no gradient rule"), "{e}");
    assert!(e.contains("between `w` and `loss`"), "{e}");
    assert!(e.contains("nodes: Strange"), "{e}");
}

#[test]
fn reports_all_that_gets_no_gradient() {
    let made = model(|b, x, w| {
        let rounded = b.unary("Round", w);
        vec![(sum(b, b.add(x, rounded)), "loss")]
    });
    let e = gradient(made, &["w"], Outputs::Keep).unwrap_err();
    assert!(e.contains("`w` gets no gradient"), "{e}");
}

#[test]
fn reports_wrong_ends() {
    let made = || model(|b, x, w| vec![(b.add(x, w), "loss")]);
    let e = gradient(made(), &["w"], Outputs::Keep).unwrap_err();
    assert!(
        e.contains("the loss `loss` has shape [2], not one element"),
        "{e}"
    );
    let e = gradient(made(), &["ww", "zzzzzz"], Outputs::Keep).unwrap_err();
    assert!(
        e.contains("no value `ww`") && e.contains("did you mean `w`?"),
        "{e}"
    );
    assert!(e.contains("no value `zzzzzz`"), "{e}");
}

/// A row that is masked as a whole is NaN before the guard, and must not be in the gradient.
#[test]
fn masked_rows_have_finite_gradients() {
    let made = model(|b, x, w| {
        let low = b.constant(TensorData::from_f32(
            [2, 2],
            &[0.0, 0.0, f32::NEG_INFINITY, f32::NEG_INFINITY],
        ));
        let p = b.op(
            "Softmax",
            &[b.add(b.add(x, w), low)],
            &[("axis", (-1i64).into())],
        );
        let nan = b.unary("IsNaN", p);
        let p = b.op("Where", &[nan, b.scalar(0.0), p], &[]);
        let weights = b.constant(TensorData::from_f32([2], &[1.0, 3.0]));
        vec![(sum(b, b.mul(p, weights)), "loss")]
    });
    let made = gradient(made, &["x"], Outputs::Keep).unwrap();
    let out = run(
        &made,
        &[("x", vec![2], vec![0.0; 2]), ("w", vec![2], vec![0.0; 2])],
    );
    // p = ½ each: dx = p·(g - Σ p·g) = ½·(1 - 2), ½·(3 - 2)
    assert_eq!(out["grad/x"].to_f32().unwrap(), [-0.5, 0.5]);
}

fn logits(dims: Vec<Dim>, divisor: Divisor) -> Result<Verified, String> {
    let b = Builder::new(18);
    let x = b.graph_input("x", Type::tensor(DType::Float, dims.clone()));
    let y = b.op("Identity", &[x], &[]);
    let model = Model {
        graph: b
            .finish_graph("g", &[(y, "logits", Type::tensor(DType::Float, dims))])
            .unwrap(),
        opset_imports: vec![("".into(), 18)],
        ir_version: 8,
        ..Model::default()
    };
    let base = Verified::check(model).map_err(|r| r.findings).unwrap();
    let loss = Loss::CausalLm {
        logits: None,
        divisor,
    };
    let done = Pipeline::new().with(loss).run(base);
    gradient(
        done.map_err(|f| f.error.to_string())?.model,
        &["x"],
        Outputs::Keep,
    )
}

/// Uniform logits over four words: the loss of each labelled position is ln 4.
fn causal(labels: [i64; 3], divisor: Divisor) -> (f32, Vec<f32>) {
    for dims in [
        vec![
            Dim::Symbol("batch".into()),
            Dim::Symbol("seq".into()),
            Dim::Unknown,
        ],
        vec![Dim::Known(1), Dim::Known(3), Dim::Known(4)],
    ] {
        let model = logits(dims.clone(), divisor).unwrap();
        let mut feeds = Feeds::new()
            .with("x", Value::from_f32(&[1, 3, 4], vec![0.5; 12]).unwrap())
            .with("labels", Value::from_i64(&[1, 3], labels.to_vec()).unwrap());
        if divisor == Divisor::Input {
            feeds.insert(
                contract::NUM_ITEMS,
                Value::from_f32(&[], vec![8.0]).unwrap(),
            );
        }
        let plan = Plan::compile(&model, &CompileOptions::default()).unwrap();
        let out = plan.run(&feeds).unwrap();
        let found = (
            out["loss"].to_f32().unwrap()[0],
            out["grad/x"].to_f32().unwrap(),
        );
        if matches!(dims[2], Dim::Known(_)) {
            return found;
        }
    }
    unreachable!("the last shape is known")
}

/// Rounding of one logarithm.
const CLOSE: f32 = 1e-6;

#[test]
fn language_model_loss_is_shifted_and_masked() {
    // The first label is nobody's target, the second is ignored, the third is that of position 1.
    let (loss, grad) = causal([3, -100, 2], Divisor::Labels);
    assert!((loss - 4f32.ln()).abs() < CLOSE);
    let want = [
        0.0, 0.0, 0.0, 0.0, 0.25, 0.25, -0.75, 0.25, 0.0, 0.0, 0.0, 0.0,
    ];
    assert!(
        grad.iter().zip(want).all(|(g, w)| (g - w).abs() < CLOSE),
        "{grad:?}"
    );
}

#[test]
fn language_model_loss_divided_by_an_input() {
    let (loss, grad) = causal([3, 1, 2], Divisor::Input);
    assert!((loss - 2.0 * 4f32.ln() / 8.0).abs() < CLOSE);
    assert!((grad[1] - -0.75 / 8.0).abs() < CLOSE, "{grad:?}");
}

/// 0/0 and a gradient of zero, as in torch.
#[test]
fn language_model_loss_without_labels() {
    let (loss, grad) = causal([-100; 3], Divisor::Labels);
    assert!(loss.is_nan());
    assert!(grad.iter().all(|&g| g == 0.0), "{grad:?}");
}

#[test]
fn losses_refuse_what_they_cannot_use() {
    let e = logits(vec![Dim::Known(3), Dim::Known(4)], Divisor::Labels).unwrap_err();
    assert!(e.contains("`logits` has rank 2"), "{e}");
    let taken = model(|b, x, w| vec![(sum(b, b.add(x, w)), "loss")]);
    let done = Pipeline::new().with(Loss::Mse { output: None }).run(taken);
    let e = done.map_err(|f| f.error.to_string()).unwrap_err();
    assert!(e.contains("has a value `loss` already"), "{e}");
}

/// The values that fused operators hide keep or get names, and the sum of a skip norm stays an output.
#[test]
fn expansion_keeps_names() {
    let made = model(|b, x, w| {
        let op = OpId::new("com.microsoft", "SkipLayerNormalization");
        let outs = b.node_n(op, &[Some(x), Some(w), Some(w)], &[], 4);
        vec![(outs[0], "y"), (outs[3], "sum")]
    });
    let pass = onnx_graft::rewrite::passes::expand::Expand::All;
    let done = Pipeline::new()
        .with(pass)
        .run(made)
        .map_err(|f| f.error.to_string())
        .unwrap();
    assert_eq!(outputs(&done.model), ["y", "sum"]);
    let g = &done.model.model().graph;
    assert!(g.nodes().all(|n| g.node(n).op.domain.is_empty()));
}
