//! What the loop of a run does at which step.

use super::support::fixture;
use onnx_graft::train::{
    CollateArguments, Dataset, Event, Interval, ReadOptions, TrainData, Trainer, TrainingArguments,
};
use onnx_graft::{Attach, Interface, api};

/// Lengths of the rows.
const LENGTHS: [usize; 6] = [6, 5, 9, 8, 3, 7];

/// Rows whose tokens are all learned.
fn rows() -> Dataset {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    let row = |(i, n): (usize, &usize)| {
        let ids: Vec<String> = (0..*n)
            .map(|j| ((i * 7 + j * 5) % 48).to_string())
            .collect();
        format!("{{\"input_ids\": [{}]}}\n", ids.join(", "))
    };
    let text: String = LENGTHS.iter().enumerate().map(row).collect();
    std::fs::write(&path, text).unwrap();
    Dataset::read_jsonl(&path, &ReadOptions::default()).unwrap()
}

/// The events of a run on six rows, evaluated on the same.
fn events(args: TrainingArguments) -> Vec<Event> {
    let train = rows();
    let interface = Interface::resolve("qwen3").unwrap();
    let lora = api::adapter("lora[r=4,alpha=8]").unwrap();
    let base = api::open(fixture("qwen3/model.onnx")).unwrap();
    let adapted = Attach::to(base)
        .interface(&interface)
        .adapters(vec![lora])
        .seed(42)
        .training(true)
        .run()
        .unwrap();
    let mut trainer = Trainer::causal_lm(adapted.model, args).unwrap();
    let data = TrainData {
        eval: Some(&train),
        collate: CollateArguments::default(),
        ..TrainData::new(&train)
    };
    let mut events = Vec::new();
    let mut keep = |e: &Event| {
        events.push(e.clone());
        Ok(())
    };
    trainer.train(&data, None, &mut keep).unwrap();
    events
}

fn logged(events: &[Event]) -> Vec<u64> {
    let step = |e: &Event| match e {
        Event::Log(e) => Some(e.step),
        _ => None,
    };
    events.iter().filter_map(step).collect()
}

fn evaluated(events: &[Event]) -> Vec<u64> {
    let step = |e: &Event| match e {
        Event::Evaluate(e) => Some(e.step),
        _ => None,
    };
    events.iter().filter_map(step).collect()
}

fn losses(events: &[Event]) -> Vec<f64> {
    let loss = |e: &Event| match e {
        Event::Step(r) => Some(r.loss),
        _ => None,
    };
    events.iter().filter_map(loss).collect()
}

/// Three epochs of three steps.
fn args() -> TrainingArguments {
    TrainingArguments {
        per_device_train_batch_size: 2,
        learning_rate: 1e-2,
        ..TrainingArguments::default()
    }
}

#[test]
fn the_loss_is_logged_when_the_strategy_says() {
    let of = |logging_strategy, logging_steps| {
        logged(&events(TrainingArguments {
            logging_strategy,
            logging_steps,
            ..args()
        }))
    };
    assert_eq!(of(Interval::Steps, Some(4.0)), [4, 8]);
    assert_eq!(of(Interval::Epoch, Some(4.0)), [3, 6, 9]);
    assert!(of(Interval::No, Some(1.0)).is_empty());
    // A short run has a curve.
    assert_eq!(of(Interval::Steps, None), (1..=9).collect::<Vec<_>>());
}

#[test]
fn an_epochs_entry_is_the_mean_of_its_steps() {
    let events = events(TrainingArguments {
        logging_strategy: Interval::Epoch,
        ..args()
    });
    let losses = losses(&events);
    let entries: Vec<f64> = events
        .iter()
        .filter_map(|e| match e {
            Event::Log(e) => Some(e.loss),
            _ => None,
        })
        .collect();
    assert_eq!(entries.len(), 3);
    for (entry, steps) in entries.iter().zip(losses.chunks(3)) {
        assert!((entry - steps.iter().sum::<f64>() / 3.0).abs() < 1e-12);
    }
}

#[test]
fn evaluations_come_at_steps_or_epochs_and_say_how_far_they_are() {
    let of = |eval_strategy| {
        events(TrainingArguments {
            eval_strategy,
            eval_steps: Some(4.0),
            per_device_eval_batch_size: 4,
            ..args()
        })
    };
    assert_eq!(evaluated(&of(Interval::Steps)), [4, 8]);
    let events = of(Interval::Epoch);
    assert_eq!(evaluated(&events), [3, 6, 9]);
    let ticks: Vec<(usize, usize)> = events
        .iter()
        .filter_map(|e| match e {
            Event::Evaluating { done, total } => Some((*done, *total)),
            _ => None,
        })
        .take(3)
        .collect();
    assert_eq!(ticks, [(0, 2), (1, 2), (2, 2)]);
}

/// Accumulated micro-batches are one large batch, whatever the loss.
#[test]
fn accumulation_changes_nothing() {
    for label_smoothing_factor in [0.0, 0.1] {
        let of = |per_device_train_batch_size, gradient_accumulation_steps| {
            losses(&events(TrainingArguments {
                per_device_train_batch_size,
                gradient_accumulation_steps,
                label_smoothing_factor,
                ..args()
            }))
        };
        let (whole, parts) = (of(4, 1), of(1, 4));
        assert_eq!((whole.len(), parts.len()), (6, 6));
        for (a, b) in whole.iter().zip(&parts) {
            // Sums in another order, over six updates.
            assert!((a - b).abs() < 1e-5 * a.abs(), "{whole:?} {parts:?}");
        }
    }
}

/// Hugging Face's Trainer divides a model's own loss by all labels, and its label smoother by those that are left after the shift.
#[test]
fn smoothed_losses_are_means_over_what_is_scored() {
    let of = |label_smoothing_factor| {
        losses(&events(TrainingArguments {
            per_device_train_batch_size: LENGTHS.len(),
            label_smoothing_factor,
            max_steps: 1,
            ..args()
        }))[0]
    };
    let items: usize = LENGTHS.iter().sum();
    let scored = items - LENGTHS.len();
    // So little smoothing that only the divisor differs.
    let found = of(1e-9) / of(0.0);
    let want = items as f64 / scored as f64;
    assert!((found - want).abs() < 1e-5, "{found} {want}");
}

/// Steps and epochs, as Hugging Face's Trainer logs them: an epoch counts micro-batches, and the last one ends though it is incomplete.
#[test]
fn epochs_count_micro_batches() {
    let of = |num_train_epochs, gradient_accumulation_steps| {
        let events = events(TrainingArguments {
            num_train_epochs,
            gradient_accumulation_steps,
            eval_strategy: Interval::Epoch,
            ..args()
        });
        let epochs: Vec<f64> = events
            .iter()
            .filter_map(|e| match e {
                Event::Step(r) => Some(r.epoch),
                _ => None,
            })
            .collect();
        (epochs, evaluated(&events))
    };
    // Three micro-batches of two rows: a window of two, and one of one.
    let (epochs, at) = of(1.0, 2);
    assert!((epochs[0] - 2.0 / 3.0).abs() < 1e-12 && (epochs[1] - 1.0).abs() < 1e-12);
    assert_eq!(at, [2]);
    let (epochs, at) = of(1.5, 1);
    assert!((epochs[4] - (1.0 + 2.0 / 3.0)).abs() < 1e-12);
    assert_eq!(at, [3, 5]);
}

/// `Stack(language, task)` with the task alone in training: the language is left as it is, bit by bit.
#[test]
fn one_adapter_of_a_stack_is_trained() {
    let interface = Interface::resolve("qwen3").unwrap();
    let specs = ["language=lora[r=2]", "task=seq_bn[reduction_factor=4]"];
    let adapted = Attach::to(api::open(fixture("qwen3/model.onnx")).unwrap())
        .interface(&interface)
        .adapters(specs.map(|s| api::adapter(s).unwrap()))
        .run()
        .unwrap();
    let before = adapted.store();
    let only = |name: &str| TrainingArguments {
        train_adapters: Some(vec![name.to_owned()]),
        ..args()
    };
    let train = rows();
    let mut trainer = Trainer::causal_lm(adapted.model.clone(), only("task")).unwrap();
    trainer
        .train(&TrainData::new(&train), None, &mut |_| Ok(()))
        .unwrap();
    let after = trainer.store();
    let changed = |name: &str| {
        let own = before.of(name);
        let differs = |(key, p): (&str, &onnx_graft::adapters::Param)| {
            after.get(key).unwrap().tensor.bytes() != p.tensor.bytes()
        };
        own.iter().filter(|(k, p)| differs((k, p))).count()
    };
    assert_eq!(changed("language"), 0);
    assert!(changed("task") > 0);
    let failed = Trainer::causal_lm(adapted.model, only("tusk")).unwrap_err();
    assert!(
        failed.to_string().contains("active are: language, task"),
        "{failed}"
    );
}
