//! The layer as an exported graph: operators as exporters write them, adapters as they are attached, the gradient by the pass, fused by
//! the native pipeline, run from a plan.

use super::Layer;
use super::setup::{
    BATCH, EPS, Fixture, Gradients, HEAD, HEADS, HIDDEN, KV_HEADS, LINEARS, RANK, SCALE, SEQ,
};
use half::bf16;
use onnx_graft::Verified;
use onnx_graft::ir::{Builder, DType, Dim, Model, TensorData, Type, Val};
use onnx_graft::rewrite::pipelines::{self, Mode};
use onnx_graft::rewrite::{Loss, Outputs};
use onnx_graft::runtime::{CompileOptions, Feeds, Plan, Precision, Tensor};

pub struct Planned {
    plan: Plan,
    feeds: Feeds,
}

/// Names of the values to differentiate by: the input, then `A` and `B` of each linear.
fn wrt() -> Vec<String> {
    let linears = LINEARS
        .iter()
        .flat_map(|l| [format!("{}.lora_A", l.0), format!("{}.lora_B", l.0)]);
    std::iter::once("x".to_owned()).chain(linears).collect()
}

impl Planned {
    pub fn new(fixture: &'static Fixture, precision: Precision) -> Self {
        let model = Verified::check(model(fixture, precision)).unwrap();
        let names = wrt();
        let loss = Loss::Named("loss".into());
        let pipeline = pipelines::training(&loss, &names, Outputs::Keep, false, Mode::Native);
        let graph = pipeline.run(model).unwrap().model;
        let outputs = std::iter::once("y".to_owned())
            .chain(names.iter().map(|n| format!("grad/{n}")))
            .collect();
        let options = CompileOptions {
            outputs: Some(outputs),
            variables: names[1..].to_vec(),
            precision,
            ..CompileOptions::default()
        };
        let plan = Plan::compile(&graph, &options).unwrap();
        let dims = [BATCH, SEQ, HIDDEN];
        let mut feeds = Feeds::new()
            .with("x", Tensor::from_f32(&dims, fixture.input.clone()).unwrap())
            .with(
                "upstream",
                Tensor::from_f32(&dims, fixture.upstream.clone()).unwrap(),
            );
        for (l, linear) in LINEARS.iter().zip(&fixture.linears) {
            let a = Tensor::from_f32(&[RANK, l.1], transposed(&linear.a, l.1, RANK)).unwrap();
            let b = Tensor::from_f32(&[l.2, RANK], transposed(&linear.b, RANK, l.2)).unwrap();
            feeds.insert(&format!("{}.lora_A", l.0), a);
            feeds.insert(&format!("{}.lora_B", l.0), b);
        }
        Planned { plan, feeds }
    }
}

impl Layer for Planned {
    fn step(&mut self) -> Gradients {
        let out = self.plan.run(&self.feeds).unwrap();
        let mut values = out.values().map(|v| v.to_f32().unwrap());
        let mut all: Vec<Vec<f32>> = values.by_ref().take(2).collect();
        for l in LINEARS {
            let (a, b) = (values.next().unwrap(), values.next().unwrap());
            all.push(transposed(&a, RANK, l.1));
            all.push(transposed(&b, l.2, RANK));
        }
        Gradients(all)
    }
}

fn transposed(x: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    (0..cols)
        .flat_map(|c| (0..rows).map(move |r| x[r * cols + c]))
        .collect()
}

struct Maker<'a> {
    b: &'a Builder,
    fixture: &'a Fixture,
    precision: Precision,
}

impl Maker<'_> {
    fn linear(&self, index: usize, x: Val) -> Val {
        let (b, l) = (self.b, &self.fixture.linears[index]);
        let name = LINEARS[index].0;
        b.set_scope(name);
        let weight = match self.precision {
            Precision::F32 => TensorData::from_f32([l.inputs as u64, l.outputs as u64], &l.weight),
            Precision::Bf16 => {
                let bytes: Vec<u8> = l
                    .weight
                    .iter()
                    .flat_map(|v| bf16::from_f32(*v).to_le_bytes())
                    .collect();
                TensorData::raw(
                    DType::Bfloat16,
                    [l.inputs as u64, l.outputs as u64],
                    bytes.into(),
                )
            }
        };
        let mut w = b.initializer(&format!("{name}.weight"), weight);
        if self.precision == Precision::Bf16 {
            w = b.cast(w, DType::Float);
        }
        let y = b.matmul(x, w);
        let zeros =
            |r: usize, c: usize| TensorData::from_f32([r as u64, c as u64], &vec![0.0; r * c]);
        let a = b.initializer(&format!("{name}.lora_A"), zeros(RANK, l.inputs));
        let up = b.initializer(&format!("{name}.lora_B"), zeros(l.outputs, RANK));
        let low = b.linear_t(x, a);
        b.add(y, b.scale(b.linear_t(low, up), SCALE))
    }

    fn norm(&self, index: usize, x: Val) -> Val {
        let (b, w) = (self.b, &self.fixture.norms[index]);
        b.set_scope(&format!("norm{index}"));
        let weight = b.initializer(
            &format!("norm{index}.weight"),
            TensorData::from_f32([w.len() as u64], w),
        );
        let mean = b.reduce_mean(b.op("Pow", &[x, b.scalar(2.0)], &[]), &[-1], true);
        let root = b.unary("Sqrt", b.add(mean, b.scalar(EPS)));
        b.mul(weight, b.mul(x, b.unary("Reciprocal", root)))
    }

    fn heads(&self, x: Val, heads: usize, norm: Option<usize>) -> Val {
        let b = self.b;
        b.set_scope("attn");
        let mut y = b.reshape(x, b.ints(&[0, 0, heads as i64, HEAD as i64]));
        if let Some(n) = norm {
            y = self.norm(n, y);
        }
        b.set_scope("attn");
        b.transpose(y, &[0, 2, 1, 3])
    }

    fn rotate(&self, x: Val, cos: Val, sin: Val) -> Val {
        let (b, half) = (self.b, HEAD as i64 / 2);
        let upper = b.neg(b.slice(x, 3, half, i64::MAX));
        let turned = b.concat(&[upper, b.slice(x, 3, 0, half)], -1);
        b.add(b.mul(x, cos), b.mul(turned, sin))
    }

    fn repeat(&self, x: Val) -> Val {
        let b = self.b;
        let dims = [BATCH, KV_HEADS, HEADS / KV_HEADS, SEQ, HEAD].map(|n| n as i64);
        let wide = b.op("Expand", &[b.unsqueeze(x, &[2]), b.ints(&dims)], &[]);
        b.reshape(wide, b.ints(&[BATCH, HEADS, SEQ, HEAD].map(|n| n as i64)))
    }

    fn table(&self, half: &[f32]) -> Val {
        let row = HEAD / 2;
        let full: Vec<f32> = half.chunks(row).flat_map(|r| [r, r].concat()).collect();
        self.b
            .constant(TensorData::from_f32([1, 1, SEQ as u64, HEAD as u64], &full))
    }

    fn causal(&self) -> Val {
        let mask: Vec<f32> = (0..SEQ * SEQ)
            .map(|i| if i % SEQ > i / SEQ { f32::MIN } else { 0.0 })
            .collect();
        self.b
            .constant(TensorData::from_f32([1, 1, SEQ as u64, SEQ as u64], &mask))
    }
}

fn model(fixture: &Fixture, precision: Precision) -> Model {
    let b = Builder::new(20);
    let dims = [BATCH, SEQ, HIDDEN].map(|n| Dim::Known(n as i64));
    let stream = Type::tensor(DType::Float, dims.to_vec());
    let x = b.graph_input("x", stream.clone());
    let upstream = b.graph_input("upstream", stream.clone());
    let m = Maker {
        b: &b,
        fixture,
        precision,
    };
    let (cos, sin) = (m.table(&fixture.cos), m.table(&fixture.sin));
    let h = m.norm(0, x);
    let q = m.rotate(m.heads(m.linear(0, h), HEADS, Some(1)), cos, sin);
    let k = m.rotate(m.heads(m.linear(1, h), KV_HEADS, Some(2)), cos, sin);
    let v = m.heads(m.linear(2, h), KV_HEADS, None);
    let (k, v) = (m.repeat(k), m.repeat(v));
    let scores = b.scale(
        b.matmul(q, b.transpose(k, &[0, 1, 3, 2])),
        (HEAD as f32).powf(-0.5),
    );
    let p = b.op(
        "Softmax",
        &[b.add(scores, m.causal())],
        &[("axis", (-1i64).into())],
    );
    let mixed = b.transpose(b.matmul(p, v), &[0, 2, 1, 3]);
    let mixed = b.reshape(mixed, b.ints(&[0, 0, (HEADS * HEAD) as i64]));
    let x = b.add(x, m.linear(3, mixed));
    let h = m.norm(3, x);
    let gate = m.linear(4, h);
    let gate = b.mul(gate, b.unary("Sigmoid", gate));
    let inner = b.mul(gate, m.linear(5, h));
    let y = b.add(x, m.linear(6, inner));
    let loss = b.reduce_sum(b.mul(y, upstream), &[0, 1, 2], false);
    let outs = [
        (y, "y", stream),
        (loss, "loss", Type::tensor(DType::Float, Vec::new())),
    ];
    let graph = b.finish_graph("layer", &outs).unwrap();
    Model {
        graph,
        opset_imports: vec![("".into(), 20)],
        ir_version: 10,
        ..Model::default()
    }
}
