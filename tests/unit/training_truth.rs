//! What training does and inference does not: dropout and stochastic depth, seeded, with exact gradients; and what trains at all.

use super::support::fixture;
use crate::unit::training_graph;
use onnx_graft::adapters::{AdapterStore, identifiers};
use onnx_graft::rewrite::passes::gradient::Outputs;
use onnx_graft::rewrite::passes::loss::Divisor;
use onnx_graft::rewrite::pipelines::Mode;
use onnx_graft::runtime::{CompileOptions, Feeds, TrainStep, io};
use onnx_graft::select::Interface;
use onnx_graft::train::parse_loss;
use onnx_graft::{Attach, api};

/// Places that drop things, with each method that has them.
const DROPS: [&str; 5] = [
    "lora[r=4,dropout=0.4]",
    "seq_bn[reduction_factor=4,dropout=0.4,non_linearity='gelu']",
    "adapterplus[reduction_factor=4,stochastic_depth=0.5]",
    "loreft[dropout=0.4]",
    "prefix_tuning[prefix_length=3,bottleneck_size=8,dropout=0.4]",
];

struct Case {
    step: TrainStep,
    feeds: Feeds,
}

fn case(adapter: &str, mode: Mode) -> Case {
    let interface = Interface::read(&fixture("qwen3/interface.json")).unwrap();
    let base = api::open(fixture("qwen3/model.onnx")).unwrap();
    let adapter = api::adapter(adapter).unwrap();
    let model = Attach::to(base)
        .interface(&interface)
        .adapters(vec![adapter])
        .seed(3)
        .training(true)
        .run()
        .unwrap()
        .model;
    let store = AdapterStore::from_model(model.model());
    let names: Vec<String> = store.trainable();
    let loss = parse_loss("causal-lm", Divisor::Labels);
    let graph = training_graph(model, &loss, &names, Outputs::Drop, mode).unwrap();
    let mut step = TrainStep::compile(&graph, &names, &CompileOptions::default()).unwrap();
    // Initial values would leave half of the gradients zero.
    for (i, p) in step.params_mut().values_mut().enumerate() {
        for (j, x) in p.value.iter_mut().enumerate() {
            *x += 0.1 * (((i * 37 + j * 101) % 23) as f32 / 11.0 - 1.0);
        }
    }
    let feeds = io::read(&fixture("qwen3/inputs.safetensors"))
        .unwrap()
        .plain()
        .for_plan(step.plan());
    Case { step, feeds }
}

#[test]
fn what_is_dropped_depends_on_the_seed_alone() {
    for adapter in DROPS {
        let c = case(adapter, Mode::Native);
        let run = |seed| c.step.evaluate(&c.feeds, seed).unwrap();
        assert_eq!(run(Some(1)), run(Some(1)), "{adapter}");
        // Stochastic depth draws few numbers: two seeds may agree, many do not.
        let others = |(loss, _): &(f32, _)| loss.to_bits() != run(Some(1)).0.to_bits();
        assert!((2..9).any(|s| others(&run(Some(s)))), "{adapter}");
        assert!((1..9).any(|s| run(Some(s)) != run(None)), "{adapter}");
        // The same draw in a graph of other operators.
        let portable = case(adapter, Mode::Portable);
        let (a, b) = (
            run(Some(1)).0,
            portable.step.evaluate(&portable.feeds, Some(1)).unwrap().0,
        );
        let same = (a - b).abs() < 1e-4;
        assert!(same, "{adapter}: {a} natively, {b} portably");
    }
}

#[test]
fn gradients_are_those_of_what_was_drawn() {
    for adapter in DROPS {
        let mut c = case(adapter, Mode::Native);
        for seed in [Some(5), Some(6)] {
            let (_, grads) = c.step.evaluate(&c.feeds, seed).unwrap();
            let names: Vec<Box<str>> = grads.keys().cloned().collect();
            // Along the gradient of each parameter, the loss changes by its squared norm.
            for name in names {
                let g = &grads[&name];
                let norm: f64 = g.iter().map(|x| f64::from(*x).powi(2)).sum();
                if norm < 1e-7 {
                    continue;
                }
                let step = (2e-3 / norm.sqrt()) as f32;
                let before = c.step.params()[&name].value.clone();
                let mut at = |scale: f32| {
                    let p = &mut c.step.params_mut()[&name];
                    for ((x, b), g) in p.value.iter_mut().zip(&before).zip(g) {
                        *x = b + scale * step * g;
                    }
                    f64::from(c.step.evaluate(&c.feeds, seed).unwrap().0)
                };
                let change = (at(1.0) - at(-1.0)) / (2.0 * f64::from(step));
                at(0.0);
                // Central differences of an f32 loss near 4: its last digit, 5e-7, over a change of 4e-3 times the gradient's norm.
                let noise = 5e-7 / (2.0 * f64::from(step));
                let apart = (change - norm).abs();
                assert!(
                    apart <= 0.03 * norm + noise,
                    "{adapter}, seed {seed:?}, {name}: {change} measured, {norm} computed"
                );
            }
        }
    }
}

#[test]
fn the_mean_over_draws_is_what_inference_computes() {
    // Without a non-linearity behind it, dropout is right on average: the loss of IA³-like scaling is close to linear here.
    let c = case("lora[r=4,dropout=0.2]", Mode::Native);
    let plain = f64::from(c.step.evaluate(&c.feeds, None).unwrap().0);
    let draws = 60;
    let sum: f64 = (0..draws)
        .map(|s| f64::from(c.step.evaluate(&c.feeds, Some(s)).unwrap().0))
        .sum();
    let mean = sum / f64::from(u32::try_from(draws).unwrap());
    // The loss is not linear: its curvature and the spread of 60 draws stay below this.
    assert!((mean - plain).abs() < 0.05 * plain, "{mean} {plain}");
}

/// What trains, what is frozen, what the library saves though nothing reads it, and what is decayed.
#[test]
fn roles_of_parameters() {
    let interface = Interface::read(&fixture("qwen3/interface.json")).unwrap();
    let mut out = String::new();
    for name in identifiers() {
        let wide = name.starts_with("compacter");
        let spec = if wide {
            format!("{name}[reduction_factor=4]")
        } else {
            name.to_owned()
        };
        let base = api::open(fixture("qwen3/model.onnx")).unwrap();
        let Ok(adapter) = api::adapter(&format!("a={spec}")) else {
            panic!("{spec}");
        };
        let Ok(adapted) = Attach::to(base)
            .interface(&interface)
            .adapters(vec![adapter])
            .active("a".into())
            .seed(3)
            .training(true)
            .run()
        else {
            out += &format!("{name}: not on this model\n");
            continue;
        };
        out += &format!("{name}\n");
        let store = AdapterStore::from_model(adapted.model.model());
        let mut seen = std::collections::BTreeSet::new();
        for (key, p) in store.iter() {
            // One layer stands for all.
            if key.contains("layers.1.") {
                continue;
            }
            let role = match (p.trainable, p.idle) {
                (true, _) => "trains",
                (false, true) => "idle",
                (false, false) => "frozen",
            };
            let decay = if p.decay { "decayed" } else { "not decayed" };
            let tail: Vec<&str> = key.rsplitn(2, ".a.").collect();
            let line = format!("  {} {role}, {decay}", tail[0]);
            if seen.insert(line.clone()) {
                out += &(line + "\n");
            }
        }
    }
    insta::assert_snapshot!(out);
}
