//! What an exported model is good for: adapting, training, generating; and what a better export would have.

use super::attach::{AdapterSettings, Attaching};
use super::check::fits;
use super::event::OnEvent;
use super::files::ModelFiles;
use super::model::ModelSettings;
use super::to_file::selected;
use crate::adapters::heads::{Head, HeadConfig};
use crate::api::{self, Adapted};
use crate::error::{Error, Result};
use crate::infer::Verified;
use crate::ir::{Dim, Type, contract};
use crate::runtime::caches;
use crate::train::{Task, Trainer, TrainingArguments, dataset_divisor, parse_loss};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Checks an exported model.
#[derive(Clone, Debug)]
pub(crate) struct CheckModel {
    /// The ONNX file, or the folder of an encoder and a decoder.
    pub model: PathBuf,
    /// The variant of the files in a folder.
    pub variant: Option<String>,
    /// The interface (default: that of the model).
    pub interface: Option<String>,
}

/// What is found about one purpose.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Aspect {
    /// What for.
    pub purpose: &'static str,
    /// Whether the model is good for it.
    pub good: bool,
    /// What was found.
    pub found: String,
    /// What to do about it.
    pub help: Vec<String>,
}

/// How to export a model well, for what is missing.
const EXPORT: &str = "export it again: torch.onnx.export(model, …, dynamo=True, dynamic_shapes={\"input_ids\": {0: \"batch\", 1: \"sequence\"}, …}), \
                      or optimum-cli export onnx --task text-generation";

impl Aspect {
    fn good(purpose: &'static str, found: String) -> Aspect {
        let help = Vec::new();
        Aspect {
            purpose,
            good: true,
            found,
            help,
        }
    }

    /// Says that rows of other sizes do not go in.
    fn fixed(&mut self, shapes: &Aspect) {
        let trains = self.purpose == "training";
        let writes = self.purpose == "generating" && shapes.found.contains("sequence");
        if self.good && (trains || writes) {
            self.good = false;
            self.found = format!("rows of other sizes do not go in: {}", shapes.found);
            self.help.clone_from(&shapes.help);
        }
    }

    fn bad(purpose: &'static str, e: &Error) -> Aspect {
        let findings = e.findings();
        let messages: Vec<&str> = findings.iter().map(|d| &*d.message).take(3).collect();
        Aspect {
            purpose,
            good: false,
            found: messages.join("; "),
            help: findings
                .iter()
                .filter_map(|d| d.help.as_ref())
                .map(ToString::to_string)
                .take(3)
                .collect(),
        }
    }
}

impl CheckModel {
    /// What the model is good for.
    ///
    /// # Errors
    /// A file that cannot be read, or is no valid model.
    pub(crate) fn run(&self, events: OnEvent<'_>) -> Result<Vec<Aspect>> {
        let files = ModelFiles::locate(&self.model, self.variant.as_deref())?;
        let model = files.open(events)?;
        let adapted = self.adapt(&model, &files.path);
        let mut out = Vec::new();
        match &adapted {
            Ok(adapted) => {
                let s = selected(adapted);
                out.push(Aspect::good(
                    "adapting",
                    format!(
                        "{} layers of width {}, {} places for an adapter",
                        s.layers, s.hidden_size, s.places
                    ),
                ));
                out.push(train(adapted, &model, &files));
            }
            Err(e) => {
                out.push(Aspect::bad("adapting", e));
                let help =
                    vec!["see adapting: without an adapter there is nothing to train".to_owned()];
                let found = "no adapter can be attached".to_owned();
                out.push(Aspect {
                    purpose: "training",
                    good: false,
                    found,
                    help,
                });
            }
        }
        out.push(generate(&model));
        let shapes = shapes(&model);
        if !shapes.good {
            for aspect in &mut out {
                aspect.fixed(&shapes);
            }
        }
        out.push(shapes);
        out.push(beside(&files));
        Ok(out)
    }

    fn adapt(&self, model: &Verified, path: &Path) -> Result<Adapted> {
        let settings = AdapterSettings {
            interface: self.interface.clone(),
            ..AdapterSettings::default()
        };
        let interface = settings.interface(path, model)?;
        let how = Attaching {
            training: true,
            ..Attaching::default()
        };
        settings.attach_by(&interface, model.clone(), path, how, &mut |_| Ok(()))
    }
}

/// The losses that a graph can be trained with by its rows, by what comes in and goes out; the first is tried. Whether they need a head
/// that the training adds.
fn losses(model: &Verified, files: &ModelFiles) -> (Vec<&'static str>, bool) {
    let g = &model.model().graph;
    let logits = g.find(contract::LOGITS).filter(|v| g.is_output(*v));
    let logits = logits.and_then(|v| model.fact(v));
    if g.find(contract::DECODER_INPUT_IDS).is_some() {
        return (vec!["seq2seq"], false);
    }
    if g.find(contract::INPUT_IDS).is_none() {
        return (vec!["mse"], false);
    }
    if g.find(contract::START_LOGITS).is_some() {
        return (vec!["question-answering"], false);
    }
    if fits(model, Task::CausalLm, true).is_ok() {
        let words = if files.class().ends_with("ForMaskedLM") {
            "masked-lm"
        } else {
            "causal-lm"
        };
        return (vec![words], false);
    }
    match logits.map(|f| (f.rank(), f.size(-1))) {
        Some((Some(3), _)) => (vec!["token-classification"], false),
        Some((_, Some(1))) => (vec!["regression", "multi-label"], false),
        Some(_) => (vec!["classification", "multi-label", "regression"], false),
        None => {
            let all = [
                "classification",
                "multi-label",
                "regression",
                "token-classification",
                "question-answering",
                "masked-lm",
            ];
            (all.to_vec(), true)
        }
    }
}

/// Whether a gradient reaches every parameter of an adapter, and with which losses.
fn train(adapted: &Adapted, model: &Verified, files: &ModelFiles) -> Aspect {
    let (all, headed) = losses(model, files);
    let loss = all[0];
    let prepared = || {
        if loss == "seq2seq" {
            fits(model, Task::Seq2seq, true)?;
        }
        let settings = ModelSettings::default();
        let loss = parse_loss(loss, dataset_divisor());
        let options = settings.compile_options()?;
        let mut graph = adapted.model.clone();
        if headed {
            let head = Head {
                base: files.head_base(),
                ..Head::fresh("check", HeadConfig::default())
            };
            graph = api::attach_head(graph, head, 0, true)?;
        }
        Trainer::new(
            graph,
            &loss,
            TrainingArguments::default(),
            settings.mode(),
            &options,
        )
    };
    match prepared() {
        Ok(trainer) => {
            let words = if all.len() > 1 { "losses" } else { "loss" };
            let head = if headed {
                ", each with a head that the training adds"
            } else {
                ""
            };
            Aspect::good(
                "training",
                format!(
                    "{words} {}{head}: a gradient reaches all {} parameters",
                    all.join(", "),
                    trainer.trainable()
                ),
            )
        }
        Err(e) => {
            let found = Aspect::bad("training", &e);
            Aspect {
                found: format!("no gradient with the loss {loss}: {}", found.found),
                ..found
            }
        }
    }
}

fn generate(model: &Verified) -> Aspect {
    let g = &model.model().graph;
    let mut names = g.inputs().iter().map(|p| g.name_of(p.value));
    let own = names.any(|n| n.starts_with(contract::PAST));
    let other = !caches(g).is_empty();
    let cache = if own {
        "with the cache of the graph"
    } else if other {
        "without the cache of the graph, whose outputs have no names that tell: the whole text is computed for each token"
    } else {
        "without a cache of its own: one is added where the layers are known"
    };
    if g.find(contract::DECODER_INPUT_IDS).is_some() {
        return Aspect::good("generating", format!("an encoder-decoder, {cache}"));
    }
    if g.find(contract::INPUT_IDS).is_none() {
        return Aspect {
            purpose: "generating",
            good: false,
            found: "the graph has no input `input_ids`: it reads no text".to_owned(),
            help: Vec::new(),
        };
    }
    match fits(model, Task::CausalLm, true) {
        Ok(()) => Aspect::good("generating", format!("logits of tokens, {cache}")),
        Err(e) => Aspect::bad("generating", &e),
    }
}

/// Whether rows of any number and length go in.
fn shapes(model: &Verified) -> Aspect {
    let g = &model.model().graph;
    let mut fixed = Vec::new();
    for port in g.inputs() {
        let name = g.name_of(port.value);
        let ty = port.ty.as_ref().or(g.value(port.value).ty.as_ref());
        let dims = ty.and_then(Type::dims).unwrap_or_default();
        if [contract::INPUT_IDS, contract::ATTENTION_MASK].contains(&name) {
            let sizes = dims
                .iter()
                .zip(["batch", "sequence"])
                .filter_map(|(d, axis)| match d {
                    Dim::Known(n) => Some(format!("`{name}` has a {axis} of {n}")),
                    _ => None,
                });
            fixed.extend(sizes);
        }
    }
    if fixed.is_empty() {
        let found = "batch and sequence may have any size".to_owned();
        return Aspect::good("shapes", found);
    }
    Aspect {
        purpose: "shapes",
        good: false,
        found: fixed.join(", "),
        help: vec![EXPORT.to_owned()],
    }
}

/// The files that a tokenizer, a chat and the numbers of heads are read from.
fn beside(files: &ModelFiles) -> Aspect {
    let mut missing = Vec::new();
    match files.tokenizer(None, &[]) {
        Err(e) => return Aspect::bad("files", &e),
        Ok(None) => missing.push("tokenizer.json"),
        Ok(Some(_)) => {}
    }
    if !files.has_config() {
        missing.push("config.json");
    }
    if missing.is_empty() {
        let found = "tokenizer.json and config.json are beside the model".to_owned();
        return Aspect::good("files", found);
    }
    Aspect {
        purpose: "files",
        good: false,
        found: format!("{} not beside the model", missing.join(" and ")),
        help: vec![
            "copy them from the model that was exported: its folder, or its repository on the Hub"
                .to_owned(),
        ],
    }
}
