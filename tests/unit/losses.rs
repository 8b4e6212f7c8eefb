//! Losses by name: their value and gradient are those of the formula, portable and fused.

use crate::unit::training_graph;
use onnx_graft::infer::Verified;
use onnx_graft::ir::contract;
use onnx_graft::ir::{Builder, DType, Dim, Model, TensorData, Type};
use onnx_graft::rewrite::passes::gradient::Outputs;
use onnx_graft::rewrite::passes::loss::Divisor;
use onnx_graft::rewrite::pipelines::Mode;
use onnx_graft::runtime::{CompileOptions, Feeds, TrainStep, Value};
use onnx_graft::train::{IGNORE, parse_loss, smoothed};

/// Width of what enters, and number of classes.
const WIDTH: usize = 3;
const CLASSES: usize = 5;

fn numbers(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// `logits = hidden · weight · head` with leading axes of `hidden` as given; the weight is trained. A tied head is stored the other way
/// round, as an embedding is.
fn model(leading: &[&str], tied: bool) -> Verified {
    let b = Builder::new(20);
    let dims = |last: usize| {
        let mut dims: Vec<Dim> = leading.iter().map(|d| Dim::Symbol((*d).into())).collect();
        dims.push(Dim::Known(last as i64));
        Type::tensor(DType::Float, dims)
    };
    let hidden = b.graph_input("hidden", dims(WIDTH));
    let matrix = |name: &str, columns: usize, data: &[f32]| {
        let dims = [WIDTH as u64, columns as u64];
        b.initializer(name, TensorData::from_f32(dims, data))
    };
    let weight = matrix("weight", WIDTH, &numbers(WIDTH * WIDTH, 3));
    let numbers = numbers(WIDTH * CLASSES, 5);
    let head = if tied {
        let turned: Vec<f32> = (0..numbers.len())
            .map(|i| numbers[i % WIDTH * CLASSES + i / WIDTH])
            .collect();
        let embedding = TensorData::from_f32([CLASSES as u64, WIDTH as u64], &turned);
        let embedding = b.initializer("head", embedding);
        b.op("Transpose", &[embedding], &[("perm", vec![1i64, 0].into())])
    } else {
        matrix("head", CLASSES, &numbers)
    };
    let logits = b.matmul(b.matmul(hidden, weight), head);
    let graph = b
        .finish_graph("main", &[(logits, "logits", dims(CLASSES))])
        .unwrap();
    Verified::check(Model {
        graph,
        opset_imports: vec![("".into(), 20)],
        ir_version: 10,
        ..Model::default()
    })
    .unwrap()
}

/// Logits in `f64`, row by row.
fn logits(hidden: &[f32], weight: &[f64]) -> Vec<[f64; CLASSES]> {
    let head = numbers(WIDTH * CLASSES, 5);
    let row = |h: &[f32]| {
        let mut out = [0.0; CLASSES];
        for (i, x) in h.iter().enumerate() {
            for j in 0..WIDTH {
                let inner = f64::from(*x) * weight[i * WIDTH + j];
                let columns = out.iter_mut().zip(&head[j * CLASSES..]);
                columns.for_each(|(y, w)| *y += inner * f64::from(*w));
            }
        }
        out
    };
    hidden.chunks(WIDTH).map(row).collect()
}

/// Hugging Face's `LabelSmoother`; without smoothing torch's cross entropy. The mean over labelled rows.
fn cross_entropy(rows: &[[f64; CLASSES]], labels: &[i64], epsilon: f64) -> f64 {
    let (mut nll, mut all, mut active) = (0.0, 0.0, 0.0);
    for (row, &label) in rows.iter().zip(labels).filter(|(_, l)| **l != IGNORE) {
        let total = row.iter().map(|x| x.exp()).sum::<f64>().ln();
        nll += total - row[label as usize];
        all += row.iter().map(|x| total - x).sum::<f64>();
        active += 1.0;
    }
    (1.0 - epsilon) * nll / active + epsilon * all / (active * CLASSES as f64)
}

struct Case<'a> {
    name: &'a str,
    smoothing: f64,
    leading: &'a [usize],
    labels: Value,
}

/// Compares a loss and its gradient with `reference(logits)` and the differences of that; `items` is the number of labels that the
/// reference takes the mean over.
#[track_caller]
fn check(case: &Case<'_>, items: f32, reference: &dyn Fn(&[[f64; CLASSES]]) -> f64) {
    let rows: usize = case.leading.iter().product();
    let hidden = numbers(rows * WIDTH, 7);
    let dims = [case.leading, &[WIDTH]].concat();
    let names = ["batch", "seq"];
    let weight: Vec<f64> = numbers(WIDTH * WIDTH, 3)
        .into_iter()
        .map(f64::from)
        .collect();
    let at = |w: &[f64]| reference(&logits(&hidden, w));
    let want = at(&weight);
    let slope = |i: usize| {
        const STEP: f64 = 1e-5;
        let moved = |by: f64| {
            let mut w = weight.clone();
            w[i] += by;
            at(&w)
        };
        (moved(STEP) - moved(-STEP)) / (2.0 * STEP)
    };
    let variants = [
        (Mode::Portable, false),
        (Mode::Native, false),
        (Mode::Native, true),
    ];
    for (mode, tied) in variants {
        // The sum over twice as many items is half of the mean.
        for (divisor, share) in [(Divisor::Labels, 1.0), (Divisor::Input, 0.5)] {
            let loss = smoothed(parse_loss(case.name, divisor), case.smoothing);
            let wrt = ["weight".to_owned()];
            let model = model(&names[..case.leading.len()], tied);
            let graph = training_graph(model, &loss, &wrt, Outputs::Drop, mode).unwrap();
            let without_logits = graph
                .model()
                .graph
                .nodes()
                .any(|n| &*graph.model().graph.node(n).op.op_type == "LinearCrossEntropy");
            let fuses = mode == Mode::Native && case.name == "causal-lm" && case.smoothing == 0.0;
            assert_eq!(without_logits, fuses, "{}, tied: {tied}", case.name);
            let step = TrainStep::compile(&graph, &wrt, &CompileOptions::default()).unwrap();
            let mut feeds = Feeds::new()
                .with("hidden", Value::from_f32(&dims, hidden.clone()).unwrap())
                .with(contract::LABELS, case.labels.clone());
            if divisor == Divisor::Input {
                feeds = feeds.with(
                    contract::NUM_ITEMS,
                    Value::from_f32(&[], vec![2.0 * items]).unwrap(),
                );
            }
            let (found, gradients) = step.evaluate(&feeds, None).unwrap();
            let what = format!("{} {mode:?} {divisor:?}, tied: {tied}", case.name);
            // Single precision; sums of at most a hundred terms.
            let gap = (f64::from(found) - share * want).abs();
            assert!(
                gap < 2e-6 * (1.0 + want.abs()),
                "{what}: {found} for {}",
                share * want
            );
            for (i, g) in gradients["weight"].iter().enumerate() {
                let want = share * slope(i);
                let gap = (f64::from(*g) - want).abs();
                assert!(
                    gap < 2e-6 * (1.0 + want.abs()),
                    "{what}, {i}: {g} for {want}"
                );
            }
        }
    }
}

/// Labels of two rows of four positions, some ignored.
const TOKENS: [i64; 8] = [1, IGNORE, 4, 0, IGNORE, 2, 3, IGNORE];

fn ints(dims: &[usize], data: &[i64]) -> Value {
    Value::from_i64(dims, data.to_vec()).unwrap()
}

/// Rows and labels of a causal language model: position `i` is scored against label `i + 1`.
fn shifted(rows: &[[f64; CLASSES]]) -> (Vec<[f64; CLASSES]>, Vec<i64>) {
    let places = [0, 1, 2, 4, 5, 6];
    let rows = places.iter().map(|i| rows[*i]).collect();
    (rows, places.iter().map(|i| TOKENS[i + 1]).collect())
}

#[test]
fn causal_lm_with_and_without_smoothing() {
    for smoothing in [0.0, 0.1] {
        let case = Case {
            name: "causal-lm",
            smoothing,
            leading: &[2, 4],
            labels: ints(&[2, 4], &TOKENS),
        };
        check(&case, 4.0, &|rows| {
            let (rows, labels) = shifted(rows);
            cross_entropy(&rows, &labels, smoothing)
        });
    }
}

#[test]
fn seq2seq_with_and_without_smoothing() {
    for smoothing in [0.0, 0.3] {
        let case = Case {
            name: "seq2seq",
            smoothing,
            leading: &[2, 4],
            labels: ints(&[2, 4], &TOKENS),
        };
        check(&case, 5.0, &|rows| cross_entropy(rows, &TOKENS, smoothing));
    }
}

#[test]
fn classification_with_and_without_smoothing() {
    let labels = [2, IGNORE, 0, 4];
    for smoothing in [0.0, 0.2] {
        let case = Case {
            name: "classification",
            smoothing,
            leading: &[4],
            labels: ints(&[4], &labels),
        };
        check(&case, 3.0, &|rows| cross_entropy(rows, &labels, smoothing));
    }
}

#[test]
fn multi_label_and_regression_are_means_over_all_labels() {
    let n = 4 * CLASSES;
    let values: Vec<f32> = (0..n).map(|i| f32::from(u8::from(i % 3 == 0))).collect();
    // Smoothing is of classes; here it changes nothing.
    let case = |name| Case {
        name,
        smoothing: 0.1,
        leading: &[4],
        labels: Value::from_f32(&[4, CLASSES], values.clone()).unwrap(),
    };
    let mean = |rows: &[[f64; CLASSES]], f: &dyn Fn(f64, f64) -> f64| {
        let pairs = rows.iter().flatten().zip(&values);
        pairs.map(|(x, y)| f(*x, f64::from(*y))).sum::<f64>() / n as f64
    };
    check(&case("multi-label"), n as f32, &|rows| {
        mean(rows, &|x, y| {
            let p = 1.0 / (1.0 + (-x).exp());
            -(y * p.ln() + (1.0 - y) * (1.0 - p).ln())
        })
    });
    check(&case("regression"), n as f32, &|rows| {
        mean(rows, &|x, y| (x - y) * (x - y))
    });
}

#[test]
fn a_loss_that_does_not_fit_the_logits_says_so() {
    for (name, leading, want) in [
        (
            "classification",
            &["batch", "seq"][..],
            "needs [batch, labels]",
        ),
        ("causal-lm", &["batch"][..], "needs [batch, seq, vocab]"),
    ] {
        let loss = parse_loss(name, Divisor::Labels);
        let wrt = ["weight".to_owned()];
        let e = training_graph(
            model(leading, false),
            &loss,
            &wrt,
            Outputs::Drop,
            Mode::Portable,
        );
        let e = e.unwrap_err().to_string();
        assert!(e.contains(want), "{e}");
    }
}

/// As torch's `(CrossEntropyLoss(start) + CrossEntropyLoss(end)) / 2`.
#[test]
fn answers_are_the_mean_of_where_they_begin_and_where_they_end() {
    use onnx_graft::rewrite::Pipeline;
    use onnx_graft::rewrite::passes::loss::{Loss, RowLoss};
    use onnx_graft::runtime::Plan;
    let text = r#"graph-text 1
opset "" 17
graph main(%a: f32[batch, seq], %b: f32[batch, seq]) -> (%start_logits: f32[batch, seq], %end_logits: f32[batch, seq])
  %start_logits = Identity(%a)
  %end_logits = Identity(%b)
"#;
    let model = onnx_graft::ir::text::parse(text).unwrap();
    let loss = Loss::Rows {
        kind: RowLoss::Spans,
        divisor: Divisor::Labels,
        smoothing: 0.0,
    };
    let model = Verified::check(model).unwrap();
    let model = Pipeline::new().with(loss).run(model).unwrap().model;
    let (a, b) = (
        [0.5f32, -1.0, 2.0, 0.0, 0.25, 1.0],
        [1.0f32, 0.0, -0.5, 3.0, 0.5, 0.0],
    );
    let floats = |x: &[f32]| Value::from_f32(&[2, 3], x.to_vec()).unwrap();
    let feeds = Feeds::new()
        .with("a", floats(&a))
        .with("b", floats(&b))
        .with("start_positions", ints(&[2], &[0, 1]))
        .with("end_positions", ints(&[2], &[2, 1]));
    let plan = Plan::compile(&model, &CompileOptions::default()).unwrap();
    let out = plan.run(&feeds).unwrap();
    let got = f64::from(out.get("loss").unwrap().to_f32().unwrap()[0]);
    let row = |x: &[f32], at: usize| {
        let sum: f64 = x.iter().map(|v| f64::from(*v).exp()).sum();
        sum.ln() - f64::from(x[at])
    };
    let start = f64::midpoint(row(&a[..3], 0), row(&a[3..], 1));
    let end = f64::midpoint(row(&b[..3], 2), row(&b[3..], 1));
    assert!((got - f64::midpoint(start, end)).abs() < 1e-6, "{got}");
}
