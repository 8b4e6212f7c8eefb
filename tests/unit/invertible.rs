//! Invertible adapters: the block behind the embeddings and its inverse in front of the head, against the formulas by hand.

use super::support::fixture;
use onnx_graft::adapters::AdapterStore;
use onnx_graft::infer::Verified;
use onnx_graft::ir::contract::stamp;
use onnx_graft::runtime::{CompileOptions, Plan, io};
use onnx_graft::select::Interface;
use onnx_graft::{Attach, api};

/// Width of the model.
const WIDTH: usize = 32;

struct Block {
    glow: bool,
    store: AdapterStore,
}

impl Block {
    fn tensor(&self, name: &str) -> Vec<f64> {
        let ends = format!("invertible_adapters.a.{name}");
        let (_, p) = self.store.iter().find(|(k, _)| k.ends_with(&ends)).unwrap();
        p.tensor
            .to_f32()
            .unwrap()
            .into_iter()
            .map(f64::from)
            .collect()
    }

    /// `W2·relu(W0·x + b0) + b2`.
    fn net(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let linear = |at: u8, x: &[f64]| -> Vec<f64> {
            let (w, b) = (
                self.tensor(&format!("{name}.{at}.weight")),
                self.tensor(&format!("{name}.{at}.bias")),
            );
            let row = |(i, b): (usize, &f64)| {
                b + w[i * x.len()..][..x.len()]
                    .iter()
                    .zip(x)
                    .map(|(w, x)| w * x)
                    .sum::<f64>()
            };
            b.iter().enumerate().map(row).collect()
        };
        let hidden: Vec<f64> = linear(0, x).into_iter().map(|x| x.max(0.0)).collect();
        linear(2, &hidden)
    }

    /// The block on one position.
    fn forward(&self, x: &[f64]) -> Vec<f64> {
        let (x1, x2) = x.split_at(WIDTH / 2);
        let add =
            |a: &[f64], b: &[f64]| -> Vec<f64> { a.iter().zip(b).map(|(a, b)| a + b).collect() };
        if !self.glow {
            let y1 = add(x1, &self.net("F", x2));
            let y2 = add(x2, &self.net("G", &y1));
            return [y1, y2].concat();
        }
        // Kingma and Dhariwal 2018, with the soft clamp of the library: exp(5 · 0.636 · atan(s / 5)).
        let couple = |x: &[f64], st: Vec<f64>| -> Vec<f64> {
            let (s, t) = st.split_at(x.len());
            let each = x.iter().zip(s).zip(t);
            each.map(|((x, s), t)| (5.0 * 0.636 * (s / 5.0).atan()).exp() * x + t)
                .collect()
        };
        let y1 = couple(x1, self.net("s2", x2));
        let y2 = couple(x2, self.net("s1", &y1));
        [y1, y2].concat()
    }
}

/// What stands for a value of the base model at each place of a kind: (before, behind).
fn places(model: &Verified) -> Vec<(String, String)> {
    let g = &model.model().graph;
    let mut out = Vec::new();
    for n in g.nodes() {
        let metadata = &g.node(n).metadata;
        if let (Some(old), Some(new)) = (metadata.get(stamp::REPLACES), g.output(n, 0)) {
            out.push((old.to_string(), g.name_of(new).to_owned()));
        }
    }
    out
}

fn check(inv: &str, graph: &str) {
    let interface = Interface::read(&fixture("qwen3/interface.json")).unwrap();
    let base = api::open(fixture("qwen3").join(graph)).unwrap();
    let spec = format!("a=seq_bn_inv[inv_adapter='{inv}',leave_out=[0,1]]");
    let adapter = api::adapter(&spec).unwrap();
    let model = Attach::to(base)
        .interface(&interface)
        .adapters(vec![adapter])
        .active("a".into())
        .seed(4)
        .run()
        .unwrap()
        .model;
    let block = Block {
        glow: inv == "glow",
        store: AdapterStore::from_model(model.model()),
    };
    let found = places(&model);
    assert_eq!(found.len(), 2, "{inv}: embeddings and head: {found:?}");
    let names = found
        .iter()
        .flat_map(|(a, b)| [a.clone(), b.clone()])
        .collect();
    let options = CompileOptions {
        outputs: Some(names),
        ..CompileOptions::default()
    };
    let plan = Plan::compile(&model, &options).unwrap();
    let feeds = io::read(&fixture("qwen3/inputs.safetensors"))
        .unwrap()
        .plain()
        .for_plan(&plan);
    let out = plan.run(&feeds).unwrap();
    let value = |name: &str| -> Vec<f64> {
        let data = out.get(name).unwrap().to_f32().unwrap();
        data.into_iter().map(f64::from).collect()
    };
    for (i, (before, behind)) in found.iter().enumerate() {
        let (before, behind) = (value(before), value(behind));
        // Behind the embeddings the block itself, in front of the head what the block maps back to the hidden states.
        let (from, to) = if i == 0 {
            (&before, &behind)
        } else {
            (&behind, &before)
        };
        assert_ne!(from, to, "{inv}: the block does something");
        for (x, y) in from.chunks(WIDTH).zip(to.chunks(WIDTH)) {
            for (got, want) in block.forward(x).iter().zip(y) {
                // f32 against f64, values up to 10.
                assert!((got - want).abs() < 2e-5, "{inv} {graph}: {got} != {want}");
            }
        }
    }
}

#[test]
fn nice_is_its_formula_and_is_undone_before_the_head() {
    check("nice", "model.onnx");
    check("nice", "model.torchscript.onnx");
}

#[test]
fn glow_is_its_formula_and_is_undone_before_the_head() {
    check("glow", "model.onnx");
    check("glow", "model.torchscript.onnx");
}
