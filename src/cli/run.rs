//! `rewrite run`.

use super::args::RunArgs;
use super::{Ui, compile_options, exists, keep, open, usage};
use crate::adapters::AdapterStore;
use crate::error::Result;
use crate::infer::Verified;
use crate::ir::contract;
use crate::job::Event;
use crate::rewrite::passes::gradient::Outputs;
use crate::rewrite::passes::loss::Divisor;
use crate::runtime::{Feeds, Plan, io};
use crate::train::{Mode, inference_graph, loss_graph, parse_loss, training_graph};
use serde_json::json;

pub(super) fn run(args: &RunArgs, ui: &Ui) -> Result<()> {
    let mut options = compile_options(&args.exec)?;
    if args.outputs.exists() && !args.force {
        return Err(exists(&args.outputs));
    }
    keep(&args.outputs, [&*args.inputs, &*args.model])?;
    let mut model = open(&args.model, ui)?;
    if !args.select.adapters.is_empty() {
        let events = &mut |event: &Event| {
            ui.event(event);
            Ok(())
        };
        let select = args.select.settings();
        let adapted = select.attach(model, &args.model, args.seed, false, events)?;
        model = adapted.model;
    }
    let tensors = io::read(&args.inputs)?;
    let names: Vec<String> = model
        .model()
        .graph
        .outputs()
        .iter()
        .map(|p| model.model().graph.name_of(p.value).to_owned())
        .collect();
    let mut wanted = if args.wanted.is_empty() {
        names
    } else {
        args.wanted.clone()
    };
    let intermediate = args.wanted.iter().any(|w| {
        !model
            .model()
            .graph
            .outputs()
            .iter()
            .any(|p| model.model().graph.name_of(p.value) == w)
    });
    let mode = if args.native && !intermediate {
        Mode::Native
    } else {
        Mode::Portable
    };
    let model = with_loss(model, args, &mut wanted, mode)?;
    options.outputs = Some(wanted);
    let plan = Plan::compile(&model, &options)?;
    let feeds = feeds(&plan, tensors);
    let results = plan.run(&feeds)?;
    io::write(&args.outputs, results.iter().map(|(k, v)| (k.as_str(), v)))?;
    let shapes: serde_json::Map<String, serde_json::Value> = results
        .iter()
        .map(|(k, v)| {
            (
                k.clone(),
                json!({ "dtype": v.dtype().name(), "shape": v.dims() }),
            )
        })
        .collect();
    let loss = results
        .get(contract::LOSS)
        .and_then(|v| v.to_f32().ok())
        .and_then(|v| v.first().copied());
    ui.result(
        &json!({ "outputs": shapes, "loss": loss, "file": args.outputs }),
        || {
            let mut text = String::new();
            for (name, v) in &results {
                let dims: Vec<String> = v.dims().iter().map(ToString::to_string).collect();
                text += &format!("{name}: {}[{}]\n", v.dtype(), dims.join(", "));
            }
            if let Some(loss) = loss {
                text += &format!("loss = {loss}\n");
            }
            text
        },
    )
}

/// Adds the loss and gradients that were asked for, and their names to the wanted values.
fn with_loss(
    model: Verified,
    args: &RunArgs,
    wanted: &mut Vec<String>,
    mode: Mode,
) -> Result<Verified> {
    let Some(loss) = &args.loss else {
        if args.grad.is_some() {
            return Err(usage(
                "--grad needs a loss",
                "add --loss causal-lm, --loss mse or --loss NAME",
            ));
        }
        return inference_graph(model, mode);
    };
    let loss = parse_loss(loss, Divisor::Labels);
    wanted.push(contract::LOSS.to_owned());
    let Some(grad) = &args.grad else {
        return loss_graph(model, &loss, mode);
    };
    let wrt: Vec<String> = if grad.is_empty() {
        let store = AdapterStore::from_model(model.model());
        store.trainable()
    } else {
        grad.clone()
    };
    if wrt.is_empty() {
        return Err(usage(
            "the model has no trainable adapter parameter",
            "attach one with --adapter, or name values: --grad NAME",
        ));
    }
    let reached = training_graph(model, &loss, &wrt, Outputs::Keep, mode)?;
    wanted.extend(wrt.iter().map(|w| contract::grad(w)));
    Ok(reached)
}

/// The tensors that the plan reads. Names may carry the prefix `input/`; `labels` and `target` are dropped when no loss reads them.
fn feeds(plan: &Plan, tensors: Feeds) -> Feeds {
    let known = |name: &str| plan.feeds().iter().any(|f| f.name == name);
    let mut feeds = Feeds::new();
    for (name, value) in tensors.0 {
        let plain = name
            .strip_prefix("input/")
            .filter(|p| known(p))
            .unwrap_or(&name);
        let spare = [contract::LABELS, contract::TARGET].contains(&plain)
            || name.starts_with("base/")
            || name.starts_with("adapted/");
        if known(plain) || !spare {
            feeds.insert(plain, value);
        }
    }
    feeds
}
