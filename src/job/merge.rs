//! Folding adapters into base weights: the method's expression, evaluated here.

use super::attach::{AdapterSettings, Attaching, headed_by};
use super::check::{ensure_absent, keep, usage};
use super::event::{Event, OnEvent, warn};
use super::exchange::bring_along;
use super::files::ModelFiles;
use super::merged::{Merged, warnings};
use super::open;
use crate::adapters::heads::Noted;
use crate::adapters::methods::Fold;
use crate::adapters::target::Met;
use crate::adapters::{Adapter, Setup, Weighting};
use crate::api;
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use crate::infer::Verified;
use crate::ir::{Graph, TensorData};
use crate::onnx::{SaveOptions, Saved};
use crate::rewrite::bodies;
use crate::rewrite::passes::{self, Changes, MergedWeight};
use crate::rewrite::pipelines;
use crate::runtime::{CompileOptions, Feeds, Plan, Tensor};
use crate::select::{Interface, Selection};
use std::path::{Path, PathBuf};

/// Folds adapters into the weights of a model file, or takes them out of it again.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Merge {
    /// The ONNX file; a folder stands for the model in it, or for the files of its encoder and its decoder.
    pub model: PathBuf,
    /// The variant of a model that is there in several, by its folder.
    pub variant: Option<String>,
    /// The adapters, all of which are folded in, as `Stack` puts them together; a head that was saved with one is added.
    pub adapters: AdapterSettings,
    /// Where the merged model goes: a file, or a folder where encoder and decoder are files of their own.
    pub output: PathBuf,
    /// Whether the adapters are taken out of weights that they were folded into.
    pub reset: bool,
    /// Whether an existing output is replaced.
    pub force: bool,
    /// How PEFT's `add_weighted_adapter` makes one adapter of all that are given, which is folded in.
    pub(crate) weighting: Option<Weighting>,
}

impl Merge {
    /// A job with the command's defaults.
    pub fn new(
        model: impl Into<PathBuf>,
        adapters: AdapterSettings,
        output: impl Into<PathBuf>,
    ) -> Self {
        Merge {
            model: model.into(),
            variant: None,
            adapters,
            output: output.into(),
            reset: false,
            force: false,
            weighting: None,
        }
    }

    /// Merges and writes.
    ///
    /// # Errors
    /// Those of [`merge`] and [`reset`]; an output that exists or is the input; files that cannot be read or written.
    pub fn run(&self, events: OnEvent<'_>) -> Result<Merged> {
        self.check_flags()?;
        let files = ModelFiles::locate(&self.model, self.variant.as_deref())?;
        let parts = files.parts();
        if parts.is_empty() {
            let model = &files.path;
            keep(&self.output, [&**model])?;
            let (merged, weights) = self.merged(model, events)?;
            return Ok(Merged {
                saved: self.save(&merged, &self.output)?,
                more: Vec::new(),
                fold: self.way(),
                weights,
            });
        }
        self.run_parts(&parts, events)
    }

    /// The same for an encoder and its decoder, each of which takes what of the adapters belongs to it.
    fn run_parts(&self, parts: &[PathBuf], events: OnEvent<'_>) -> Result<Merged> {
        if self.output.is_file() {
            return Err(usage(
                format!("{} is a file", self.output.display()),
                "encoder and decoder are files of their own: name a folder with -o",
            ));
        }
        let to = |part: &Path| self.output.join(part.file_name().unwrap_or_default());
        for part in parts {
            keep(&to(part), [&**part])?;
            ensure_absent(&to(part), self.force)?;
        }
        // What one file lacks is in the other, and is said of both together; what is loaded for each, once.
        let (mut aside, mut noted) = (Vec::new(), Vec::new());
        let mut heard = |event: &Event| match event {
            Event::Warning(d) if ["module-elsewhere", "merge-nothing"].contains(&d.code) => {
                aside.push(d.clone());
                Ok(())
            }
            Event::Note(line) if noted.contains(line) => Ok(()),
            Event::Note(line) => {
                noted.push(line.clone());
                events(event)
            }
            other => events(other),
        };
        let (mut models, mut weights) = (Vec::new(), Vec::new());
        for part in parts {
            let (model, changed) = self.merged(part, &mut heard)?;
            models.push((model, to(part)));
            weights.extend(changed);
        }
        if weights.iter().all(|w| !w.stored) {
            let nothing = aside.into_iter().find(|d| d.code == "merge-nothing");
            warn(events, nothing.as_ref())?;
        }
        std::fs::create_dir_all(&self.output)
            .map_err(|e| Error::io(&self.output, "cannot make the folder", e))?;
        let mut saved = Vec::new();
        for (model, to) in &models {
            saved.push(self.save(model, to)?);
        }
        if let Some(part) = parts.first() {
            bring_along(part, &self.output, self.force, events)?;
        }
        let first = saved.remove(0);
        Ok(Merged {
            saved: first,
            more: saved,
            fold: self.way(),
            weights,
        })
    }

    fn way(&self) -> Fold {
        if self.reset { Fold::Out } else { Fold::In }
    }

    fn save(&self, merged: &Verified, to: &Path) -> Result<Saved> {
        let options = SaveOptions {
            force: self.force,
            ..SaveOptions::default()
        };
        crate::onnx::save(merged, to, options)
    }

    fn check_flags(&self) -> Result<()> {
        let of_graphs = [
            (self.adapters.skip_layers_input, "--skip-layers-input"),
            (
                self.adapters.output_adapter_gating_scores,
                "--output-adapter-gating-scores",
            ),
            (
                self.adapters.output_adapter_fusion_attentions,
                "--output-adapter-fusion-attentions",
            ),
            (self.adapters.adapter_ids, "--adapter-ids"),
        ];
        if let Some((_, flag)) = of_graphs.iter().find(|(given, _)| *given) {
            return Err(usage(
                format!("{flag} is about nodes of adapters, and a merge leaves none"),
                "leave it out, or attach the adapters without `merge`",
            ));
        }
        if self.reset && self.adapters.active.is_some() {
            return Err(usage(
                "reset takes every adapter that is given out of the weights, one after the other",
                "leave --active out, and give only the adapters to be taken out",
            ));
        }
        if self.weighting.is_some() && self.adapters.active.is_some() {
            return Err(usage(
                "--combination-type makes one adapter of all, and --active puts several together",
                "leave one of them out",
            ));
        }
        Ok(())
    }

    /// The model of one file with what was folded in, and the weights that are other ones.
    fn merged(&self, path: &Path, events: OnEvent<'_>) -> Result<(Verified, Vec<MergedWeight>)> {
        let model = open(path, events)?;
        let interface = self.adapters.interface(path, &model)?;
        let interface = interface.counting(path);
        let (model, opened) = api::opened(model, false)?;
        warn(events, &opened)?;
        let mut adapters = match &self.weighting {
            Some(how) => vec![self.adapters.load_weighted(how, events)?],
            None => self.adapters.load(&interface, events)?,
        };
        let (joined, saved) = match &self.weighting {
            Some(_) => (None, None),
            None => {
                self.adapters
                    .join_head(&mut adapters, &interface, &model, path, false, events)?
            }
        };
        let way = self.way();
        let setup = self.adapters.merged_setup(&mut adapters)?;
        let (mut merged, said, weights) = fold(
            &model,
            &interface,
            adapters,
            (setup, &self.adapters.skip_layers),
            way,
        )?;
        warn(events, &said)?;
        if let Some((head, own)) = joined.filter(|_| !self.reset) {
            let noted = pipelines::noting(Noted::joined(&head, &own));
            merged = noted.run(merged)?.model;
        }
        if let Some(saved) = saved.filter(|_| !self.reset) {
            let how = Attaching {
                merged: true,
                ..Attaching::default()
            };
            merged = headed_by(&saved, merged, path, how, events)?.0;
        }
        Ok((merged, weights))
    }
}

/// Folds adapters into the weights of a model, as `Stack` puts them together.
///
/// # Errors
/// Adapters whose method has no merged form (bottlenecks, gated LoRA), and weights that are stored in a form that is not read.
pub fn merge(model: &Verified, interface: &Interface, adapters: Vec<Adapter>) -> Result<Verified> {
    Ok(fold(model, interface, adapters, (None, &[]), Fold::In)?.0)
}

/// Folds adapters into the weights of a model, as a setup puts them together.
#[cfg(test)]
pub(crate) fn merged_as(
    model: &Verified,
    interface: &Interface,
    adapters: Vec<Adapter>,
    setup: Setup,
) -> Result<Verified> {
    Ok(fold(model, interface, adapters, (Some(setup), &[]), Fold::In)?.0)
}

/// Takes adapters out of weights that they were folded into, as the library's `reset_adapter` does. The weights come back up to
/// rounding, quantized ones as nearly as their codes can tell.
///
/// # Errors
/// Those of [`merge`], and DoRA, whose norms the merged weight does not tell any more.
pub fn reset(model: &Verified, interface: &Interface, adapters: Vec<Adapter>) -> Result<Verified> {
    Ok(fold(model, interface, adapters, (None, &[]), Fold::Out)?.0)
}

/// The model, what was found that did not stop the work, and the weights that are other ones.
fn fold(
    model: &Verified,
    interface: &Interface,
    adapters: Vec<Adapter>,
    (setup, skip): (Option<Setup>, &[usize]),
    fold: Fold,
) -> Result<(Verified, Vec<Diagnostic>, Vec<MergedWeight>)> {
    let changes = Changes::default();
    let noted = changes.clone();
    let mut one = move |m: Verified| {
        let how = (fold, &changes);
        fold_one(&m, interface, adapters.clone(), (setup.clone(), skip), how)
    };
    let (model, said) = bodies::everywhere(model.clone(), &mut one)?;
    let mut all: Vec<Diagnostic> = Vec::new();
    for finding in said.into_iter().flatten() {
        if !all.contains(&finding) {
            all.push(finding);
        }
    }
    let weights = noted.taken();
    let ranges = has_ranges(&model.model().graph);
    all.extend(warnings(&weights, fold, ranges));
    Ok((model, all, weights))
}

/// Whether activations are quantized in ranges that a calibration measured.
fn has_ranges(graph: &Graph) -> bool {
    let stored = |n, slot| {
        let v = graph.input(n, slot)?;
        Some(graph.value(v).tensor.is_some())
    };
    graph.nodes().any(|n| {
        graph.node(n).op.is_onnx("QuantizeLinear")
            && (stored(n, 0), stored(n, 1)) == (Some(false), Some(true))
    })
}

/// The same of one graph, whatever stands inside its nodes.
fn fold_one(
    model: &Verified,
    interface: &Interface,
    mut adapters: Vec<Adapter>,
    (setup, skip): (Option<Setup>, &[usize]),
    (fold, changes): (Fold, &Changes),
) -> Result<(Verified, Vec<Diagnostic>)> {
    let selection = interface.select(model)?;
    api::check_finite(model, Some(&selection))?;
    let model_type = interface.model_type.as_deref().unwrap_or_default();
    let met = Met {
        selection: &selection,
        interface,
        model_type,
    };
    let mut said = met.check(&adapters)?;
    if fold == Fold::Out {
        // They are in the weights, which are other ones than those of the base model that their files name.
        for adapter in &mut adapters {
            adapter.base.forget_weights();
        }
    }
    let pass = passes::Merge {
        setup,
        skip_layers: skip.to_vec(),
        changes: changes.clone(),
        ..merging(selection.clone(), adapters.clone(), fold)
    };
    let merged = pipelines::merging(pass).run(model.clone());
    let merged = merged.map_err(|f| met.explain(&adapters, f.into()))?;
    said.extend(merged.reports.into_iter().flat_map(|r| r.warnings));
    Ok((merged.model, said))
}

/// The pass, with this library's runtime as what evaluates.
pub(super) fn merging(selection: Selection, adapters: Vec<Adapter>, fold: Fold) -> passes::Merge {
    passes::Merge {
        selection,
        adapters,
        setup: None,
        skip_layers: Vec::new(),
        fold,
        changes: Changes::default(),
        evaluate: Box::new(evaluate),
    }
}

/// Runs a model without inputs.
pub(super) fn evaluate(model: &Verified) -> Result<Vec<TensorData>> {
    let plan = Plan::compile(model, &CompileOptions::default())?;
    plan.run(&Feeds::new())?.values().map(tensor).collect()
}

fn tensor(value: &Tensor) -> Result<TensorData> {
    let wrong = |e: String| Error::new(ErrorKind::Run, Diagnostic::error("merge", e));
    let data = value.to_f32().map_err(|e| wrong(e.to_string()))?;
    let dims: Vec<u64> = value.dims().iter().map(|&d| d as u64).collect();
    TensorData::from_floats(value.dtype(), dims, &data)
        .ok_or_else(|| wrong(format!("a merged weight of type {}", value.dtype())))
}
