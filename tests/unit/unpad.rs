//! Training on tokens instead of padding: it changes nothing but the time.

use super::packing::same;
use super::support::fixture;
use crate::unit::training_graph;
use onnx_graft::adapters::AdapterStore;
use onnx_graft::adapters::heads::{Head, HeadConfig, HeadType};
use onnx_graft::infer::Verified;
use onnx_graft::ir::contract;
use onnx_graft::rewrite::passes::gradient::Outputs;
use onnx_graft::rewrite::pipelines::Mode;
use onnx_graft::runtime::{CompileOptions, Feeds, TrainStep, Value};
use onnx_graft::select::Interface;
use onnx_graft::train::{
    Batch, Collator, Example, IGNORE, PaddingSide, dataset_divisor, parse_loss,
};
use onnx_graft::{Attach, api};

fn batch(lengths: &[i64], side: PaddingSide) -> Batch {
    let example = |(seed, n): (usize, &i64)| {
        let ids: Vec<i64> = (0..*n)
            .map(|i| (seed as i64 * 31 + i * 17 + i * i) % 40)
            .collect();
        let mut labels: Vec<i64> = ids.iter().map(|l| l % 16).collect();
        labels[0] = IGNORE;
        vec![Example::tokens(ids, labels)]
    };
    let rows: Vec<Vec<Example>> = lengths.iter().enumerate().map(example).collect();
    let collator = Collator {
        side,
        ..Collator::default()
    };
    collator.collate(&rows).unwrap()
}

fn adapted(arch: &str, file: &str, adapter: &str) -> Verified {
    let interface = Interface::read(&fixture(arch).join("interface.json")).unwrap();
    let base = api::open(fixture(arch).join(file)).unwrap();
    let attach = Attach::to(base)
        .interface(&interface)
        .seed(7)
        .training(true);
    let adapters = vec![api::adapter(adapter).unwrap()];
    attach.adapters(adapters).run().unwrap().model
}

struct Case {
    step: TrainStep,
    /// Number of places where padding is taken out.
    unpadded: usize,
}

impl Case {
    fn new(model: &Verified, loss: &str, mode: Mode) -> Case {
        let names = AdapterStore::from_model(model.model()).trainable();
        let loss = parse_loss(loss, dataset_divisor());
        let graph = training_graph(model.clone(), &loss, &names, Outputs::Drop, mode).unwrap();
        let g = &graph.model().graph;
        let unpads = |n: &_| &*g.node(*n).op.op_type == "UnpadInput";
        let unpadded = g.nodes().filter(unpads).count();
        let mut step = TrainStep::compile(&graph, &names, &CompileOptions::default()).unwrap();
        for (i, p) in step.params_mut().values_mut().enumerate() {
            for (j, x) in p.value.iter_mut().enumerate() {
                *x += 0.05 * (((i * 37 + j * 101) % 23) as f32 / 11.0 - 1.0);
            }
        }
        Case { step, unpadded }
    }

    fn run(&self, b: &Batch) -> (f32, Vec<f32>) {
        self.evaluated(b, None)
    }

    fn drawn(&self, b: &Batch, seed: u64) -> (f32, Vec<f32>) {
        self.evaluated(b, Some(seed))
    }

    fn evaluated(&self, b: &Batch, seed: Option<u64>) -> (f32, Vec<f32>) {
        let items = Value::from_f32(&[], vec![b.scored as f32]).unwrap();
        let feeds: Feeds = b.feeds.clone().with(contract::NUM_ITEMS, items);
        let (loss, grads) = self
            .step
            .evaluate(&feeds.for_plan(self.step.plan()), seed)
            .unwrap();
        (loss, grads.into_values().flatten().collect())
    }
}

#[test]
fn losses_and_gradients_are_those_of_padded_rows() {
    for (arch, file, loss) in [
        ("qwen3", "model.onnx", "causal-lm"),
        ("qwen3", "model.torchscript.onnx", "causal-lm"),
        ("llama", "model.onnx", "causal-lm"),
        ("gpt2", "model.onnx", "causal-lm"),
        ("gpt2", "model.torchscript.onnx", "causal-lm"),
        ("bert", "model.onnx", "seq2seq"),
        ("distilbert", "model.onnx", "seq2seq"),
    ] {
        if !fixture(arch).join(file).exists() {
            continue;
        }
        for adapter in [
            "lora[r=4]",
            "double_seq_bn",
            "prefix_tuning[prefix_length=3]",
            "ia3",
        ] {
            let model = adapted(arch, file, adapter);
            let whole = Case::new(&model, loss, Mode::Portable);
            let case = Case::new(&model, loss, Mode::Native);
            let what = format!("{arch} {file} {adapter}");
            assert_eq!(whole.unpadded, 0);
            assert!(case.unpadded > 0, "{what} keeps its padding");
            for side in [PaddingSide::Right, PaddingSide::Left] {
                for lengths in [&[5, 9, 4][..], &[6, 6], &[1, 12, 1, 3]] {
                    let b = batch(lengths, side);
                    same(
                        &whole.run(&b),
                        &case.run(&b),
                        &format!("{what} {side:?} {lengths:?}"),
                    );
                }
            }
        }
    }
}

/// A head of tokens drops some of the hidden states, which are an output: at other places, it would be another draw.
#[test]
fn what_is_dropped_is_that_of_padded_rows() {
    let config = HeadConfig {
        head_type: HeadType::Tagging,
        num_labels: Some(16),
        dropout_prob: Some(0.3),
        ..HeadConfig::default()
    };
    let model = adapted("bert", "model.onnx", "lora[r=4,dropout=0.2]");
    let model = api::attach_head(model, Head::fresh("h", config), 3, true).unwrap();
    let whole = Case::new(&model, "token-classification", Mode::Portable);
    let case = Case::new(&model, "token-classification", Mode::Native);
    assert!(case.unpadded > 0);
    let b = batch(&[5, 9, 4], PaddingSide::Right);
    let run = |case: &Case, seed| case.drawn(&b, seed);
    same(&run(&whole, 1), &run(&case, 1), "one draw");
    assert!((run(&case, 1).0 - run(&case, 2).0).abs() > 1e-6);
}
