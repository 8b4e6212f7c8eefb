//! A model file as text: as it is, or after a pass of a pipeline.

use super::attach::AdapterSettings;
use super::check::usage;
use super::event::OnEvent;
use super::merge::merging;
use super::open;
use crate::adapters::AdapterStore;
use crate::adapters::methods::Fold;
use crate::analyze::logits::logits;
use crate::api;
use crate::diag::nearest;
use crate::error::{Error, ErrorKind, Result};
use crate::infer::Verified;
use crate::ir::{NodeId, text};
use crate::rewrite::Pipeline;
use crate::rewrite::passes::gradient::Outputs;
use crate::rewrite::passes::loss::Divisor;
use crate::rewrite::pipelines::{self, Mode};
use crate::select::{ModuleTree, Selection, fused_attentions, hiding_operators};
use crate::train::parse_loss;
use serde::Serialize;
use std::path::PathBuf;

/// Prints a model file.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub(crate) struct Print {
    /// The ONNX file.
    pub model: PathBuf,
    /// Path of the only module that is printed (default: all).
    pub module: Option<String>,
    /// Adapters to attach first (default: none).
    pub adapters: AdapterSettings,
    /// Name of the last pass that runs (default: no pass; with a pipeline, all of it).
    pub after: Option<String>,
    /// Name of the pipeline (default: `inference`).
    pub pipeline: Option<String>,
    /// Which operators the pipeline may use (default: fused ones).
    pub mode: Mode,
    /// The loss of the pipelines that have one (default: `causal-lm`).
    pub loss: String,
}

/// Seed of adapters that are attached to be looked at.
const SEED: u64 = 42;

impl Print {
    /// A job with the command's defaults.
    pub(crate) fn new(model: impl Into<PathBuf>) -> Self {
        Print {
            model: model.into(),
            module: None,
            adapters: AdapterSettings::default(),
            after: None,
            pipeline: None,
            mode: Mode::Native,
            loss: "causal-lm".into(),
        }
    }

    /// The text.
    ///
    /// # Errors
    /// A module, a pipeline or a pass that is not there; a model that cannot be read, or that the pipeline refuses.
    pub(crate) fn run(&self, events: OnEvent<'_>) -> Result<String> {
        let mut model = open(&self.model, events)?;
        let last = match (&self.pipeline, &self.after) {
            (None, None) => None,
            (name, after) => {
                let (name, after) = (name.as_deref().unwrap_or("inference"), after.as_deref());
                check(name, after, self.mode)?;
                Some((name, after))
            }
        };
        let training = last.is_some_and(|(name, _)| name == "training");
        let attaches = last.is_some_and(|(name, _)| name == "attaching");
        let merges = last.is_some_and(|(name, _)| name == "merging");
        let mut selection = None;
        if attaches || (!merges && !self.adapters.adapters.is_empty()) {
            let attach = &self.adapters;
            let adapted = attach.attach(model, &self.model, SEED, training, events)?;
            (model, selection) = (adapted.model, Some(adapted.selection));
        }
        if let Some((name, pass)) = last.filter(|_| !attaches) {
            let (before, mut pipeline) = self.pipeline(name, model, selection, events)?;
            if let Some(pass) = pass {
                pipeline = pipeline.through(pass);
            }
            model = pipeline.run(before)?.model;
        }
        self.text(&model)
    }

    fn text(&self, model: &Verified) -> Result<String> {
        let Some(module) = &self.module else {
            return Ok(text::print(model.model()));
        };
        let tree = ModuleTree::new(model);
        let within = |path: &str| format!(".{path}.").contains(&format!(".{module}."));
        let inside = |n: NodeId| within(tree.path_of(n));
        let model = model.model();
        if !model.graph.nodes().any(inside) {
            // As many names as were given, of every path.
            let words = module.split('.').count();
            let paths = tree.ids().map(|m| &*tree.module(m).path);
            let ends = paths.map(|p| match p.rmatch_indices('.').nth(words - 1) {
                Some((at, _)) => &p[at + 1..],
                None => p,
            });
            let near = nearest(module, ends).map(|near| format!("did you mean `{near}`? "));
            return Err(usage(
                format!("no node of the model belongs to a module `{module}`"),
                &format!(
                    "{}`rewrite inspect` shows the modules",
                    near.unwrap_or_default()
                ),
            ));
        }
        Ok(text::print_module(model, &inside))
    }

    /// A pipeline for a model, and the model as the pipeline expects it.
    fn pipeline(
        &self,
        name: &str,
        model: Verified,
        selection: Option<Selection>,
        events: OnEvent<'_>,
    ) -> Result<(Verified, Pipeline)> {
        let loss = parse_loss(&self.loss, Divisor::Labels);
        let mode = self.mode;
        let pipeline = match name {
            "inference" => pipelines::inference(mode),
            "loss" => pipelines::loss(&loss, mode),
            "evaluating" => pipelines::evaluating(&loss, mode),
            "training" => {
                let wrt = AdapterStore::from_model(model.model()).trainable();
                if wrt.is_empty() {
                    return Err(usage(
                        "the model has no trainable adapter parameter",
                        "attach one with --adapter",
                    ));
                }
                let recompute = self.after.as_deref() == Some("recompute");
                pipelines::training(&loss, &wrt, Outputs::Drop, recompute, mode)
            }
            "opening" => {
                let mut ops = hiding_operators(model.model());
                ops.extend(fused_attentions(model.model()));
                pipelines::opening(ops)
            }
            "choosing" => pipelines::choosing(logits_name(&model)?),
            "scoring" => pipelines::scoring(logits_name(&model)?, mode),
            "stripping" => pipelines::stripping(None),
            "packing" | "merging" => {
                let interface = self.adapters.interface(&self.model, &model)?;
                let (model, _) = api::opened(model, name == "packing")?;
                let selection = interface.select(&model)?;
                let pipeline = if name == "packing" {
                    pipelines::packing(selection)
                } else {
                    let adapters = self.adapters.load(&interface, events)?;
                    pipelines::merging(merging(selection, adapters, Fold::In))
                };
                return Ok((model, pipeline));
            }
            "decoding" | "decoding-first" => {
                let selection = match selection {
                    Some(selection) => selection,
                    None => self
                        .adapters
                        .interface(&self.model, &model)?
                        .select(&model)?,
                };
                let chosen = pipelines::choosing(logits_name(&model)?).run(model)?.model;
                let past = name == "decoding";
                return Ok((chosen, pipelines::decoding(selection, past, mode)));
            }
            other => {
                return Err(usage(
                    format!("the pipeline `{other}` needs more than a model and adapters"),
                    "print what it wrote",
                ));
            }
        };
        Ok((model, pipeline))
    }
}

fn logits_name(model: &Verified) -> Result<String> {
    let g = &model.model().graph;
    let id = logits(g, None).map_err(|d| Error::new(ErrorKind::Run, d))?;
    Ok(g.name_of(id).to_owned())
}

/// Checks that there is such a pipeline, with such a pass.
fn check(name: &str, after: Option<&str>, mode: Mode) -> Result<()> {
    let all = pipelines::all(mode);
    let Some(pipeline) = all.iter().find(|p| p.name() == name) else {
        return Err(unknown(&format!("there is no pipeline `{name}`")));
    };
    match after {
        Some(pass) if !pipeline.names().any(|n| n == pass) => Err(unknown(&format!(
            "the {} pipeline `{name}` has no pass `{pass}`",
            mode.name()
        ))),
        _ => Ok(()),
    }
}

fn unknown(message: &str) -> Error {
    usage(message, &format!("there are\n{}", pipelines_text()))
}

/// A pass in the list of a pipeline.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub(crate) struct Listed {
    /// Its name.
    pub pass: String,
    /// Whether it runs in the native mode only.
    pub native: bool,
    /// Why it stands there.
    pub reason: &'static str,
}

/// All pipelines, and their passes in order.
pub(crate) fn list_pipelines() -> Vec<(String, Vec<Listed>)> {
    let portable = pipelines::all(Mode::Portable);
    let listed = |(native, portable): (&Pipeline, &Pipeline)| {
        let row = |(pass, reason): (&str, &'static str)| Listed {
            pass: pass.to_owned(),
            native: !portable.names().any(|n| n == pass),
            reason,
        };
        (
            native.name().to_owned(),
            native.reasons().map(row).collect(),
        )
    };
    pipelines::all(Mode::Native)
        .iter()
        .zip(&portable)
        .map(listed)
        .collect()
}

/// The list of all pipelines, for people.
pub(crate) fn pipelines_text() -> String {
    let mut text = String::new();
    for (name, passes) in list_pipelines() {
        text += &format!("{name}\n");
        for p in passes {
            let native = if p.native { "native" } else { "" };
            text += &format!("  {:<16}{native:<8}{}\n", p.pass, p.reason);
        }
    }
    text
}
