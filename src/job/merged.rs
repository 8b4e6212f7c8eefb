//! What a merge changed: for people, as JSON, and what is to be said about rounding.

use crate::adapters::methods::Fold;
use crate::diag::Diagnostic;
use crate::ir::layers::folded;
use crate::onnx::Saved;
use crate::rewrite::passes::{MergedWeight, Spread};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// A merged model that was written, and what is other in it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Merged {
    /// The file.
    pub saved: Saved,
    /// Its further files, where encoder and decoder are files of their own.
    pub more: Vec<Saved>,
    pub(super) fold: Fold,
    pub(super) weights: Vec<MergedWeight>,
}

/// The weights that are stored in one way.
struct Form<'m> {
    name: Option<&'m str>,
    weights: Vec<&'m MergedWeight>,
    base: Spread,
    change: Spread,
    error: Spread,
}

impl Form<'_> {
    /// The change in terms of what was there.
    fn relative(&self) -> f64 {
        share(self.change.rms(), self.base.rms())
    }

    /// The error in terms of the change.
    fn lost(&self) -> f64 {
        share(self.error.rms(), self.change.rms())
    }

    fn json(&self) -> Value {
        let mut out = json!({
            "form": self.name.unwrap_or("floats"),
            "weights": self.weights.len(),
            "change_rms": self.change.rms(),
            "change_relative": self.relative(),
        });
        if self.name.is_some() {
            out["error_rms"] = json!(self.error.rms());
            out["error_max"] = json!(self.error.most);
            out["error_of_change"] = json!(self.lost());
            let count = |i: usize| self.weights.iter().map(|w| w.groups[i]).sum::<usize>();
            out["groups_changed"] = json!(count(0));
            out["groups_rescaled"] = json!(count(1));
        }
        out
    }

    fn line(&self) -> String {
        let n = self.weights.len();
        let what = self.name.unwrap_or("floats");
        let change = format!(
            "  {what}: {n} {}, changed by {} of their size",
            if n == 1 { "weight" } else { "weights" },
            percent(self.relative())
        );
        match self.name {
            None => change + "\n",
            Some(_) => format!(
                "{change}; rounding leaves an error of {} of the change (root mean square {:.2e}, at most {:.2e})\n",
                percent(self.lost()),
                self.error.rms(),
                self.error.most
            ),
        }
    }
}

fn share(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

fn percent(x: f64) -> String {
    match x * 100.0 {
        p if p >= 10.0 => format!("{p:.0} %"),
        p => format!("{p:.2} %"),
    }
}

impl Merged {
    /// As JSON.
    pub(crate) fn json(&self) -> Value {
        let forms = self.forms();
        let files: Vec<&Saved> = self.files().collect();
        let mut out = json!({
            "model": self.saved.model,
            "bytes": files.iter().map(|s| s.bytes).sum::<u64>(),
            "weights": self.changed().count(),
            "quantized": self.changed().filter(|w| w.form.is_some()).count(),
            "modules": folded(self.changed().flat_map(|w| &w.modules).map(|m| &**m)),
            "forms": forms.iter().map(Form::json).collect::<Vec<_>>(),
        });
        if files.len() > 1 {
            out["models"] = files.iter().map(|s| json!(s.model)).collect();
        }
        out
    }

    fn files(&self) -> impl Iterator<Item = &Saved> {
        std::iter::once(&self.saved).chain(&self.more)
    }

    /// In lines.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        let n = self.changed().count();
        if n > 0 {
            let names: BTreeSet<&str> = self
                .changed()
                .flat_map(|w| &w.adapters)
                .map(|a| &**a)
                .collect();
            let names = names.into_iter().collect::<Vec<_>>().join(", ");
            let modules = folded(self.changed().flat_map(|w| &w.modules).map(|m| &**m)).join(", ");
            let weights = if n == 1 { "weight" } else { "weights" };
            text += &match self.fold {
                Fold::In => format!("merged {names} into {n} {weights}: {modules}\n"),
                Fold::Out => format!("took {names} out of {n} {weights}: {modules}\n"),
            };
            text.extend(self.forms().iter().map(Form::line));
        }
        for saved in self.files() {
            text += &format!("wrote {}\n", saved.model.display());
        }
        text
    }

    fn changed(&self) -> impl Iterator<Item = &MergedWeight> {
        self.weights.iter().filter(|w| w.stored)
    }

    fn forms(&self) -> Vec<Form<'_>> {
        let mut out: Vec<Form<'_>> = Vec::new();
        for weight in &self.weights {
            let name = weight.form.as_deref();
            let at = out.iter().position(|f| f.name == name).unwrap_or_else(|| {
                out.push(Form {
                    name,
                    weights: Vec::new(),
                    base: Spread::default(),
                    change: Spread::default(),
                    error: Spread::default(),
                });
                out.len() - 1
            });
            let form = &mut out[at];
            form.weights.push(weight);
            form.base = form.base.and(weight.base);
            form.change = form.change.and(weight.change);
            form.error = form.error.and(weight.error);
        }
        out
    }
}

/// Above this share of a change that is lost in rounding, the user is told.
const LOST: f64 = 0.5;

/// Above this size of a change, in sizes of the weights, ranges of activations may be too small.
const LARGE: f64 = 0.5;

/// That ranges of activations stay what they were, where a change is large.
fn calibrated(weights: &[&MergedWeight]) -> Option<Diagnostic> {
    let (mut base, mut change) = (Spread::default(), Spread::default());
    for w in weights {
        (base, change) = (base.and(w.base), change.and(w.change));
    }
    let relative = share(change.rms(), base.rms());
    (relative > LARGE).then(|| {
        let found = format!(
            "the weights changed by {} of their size, and this file quantizes activations in ranges that were measured before: what lies outside of them is cut off",
            percent(relative)
        );
        Diagnostic::warning("merge-calibrated", found)
            .help("merge into the float model, and quantize that with calibration data of its own")
    })
}

/// What is to be said of weights whose codes were written anew. `ranges`: whether activations have ranges that were measured.
pub(super) fn warnings(weights: &[MergedWeight], fold: Fold, ranges: bool) -> Vec<Diagnostic> {
    let quantized: Vec<&MergedWeight> = weights.iter().filter(|w| w.form.is_some()).collect();
    let mut out: Vec<Diagnostic> = Vec::new();
    out.extend(calibrated(&quantized).filter(|_| ranges && fold == Fold::In));
    if fold == Fold::Out && quantized.iter().any(|w| w.stored) {
        let found = format!(
            "{} weights are quantized, and come back only as nearly as their codes can tell",
            quantized.len()
        );
        out.push(
            Diagnostic::warning("reset-rounding", found)
                .help("keep the base model's file: nothing else brings its codes back"),
        );
        return out;
    }
    let drowned: Vec<&MergedWeight> = quantized
        .iter()
        .copied()
        .filter(|w| w.stored && w.lost() > LOST)
        .collect();
    if drowned.is_empty() {
        return out;
    }
    let (mut error, mut change) = (Spread::default(), Spread::default());
    for w in &drowned {
        (error, change) = (error.and(w.error), change.and(w.change));
    }
    let found = format!(
        "in {} of {} quantized weights most of what was folded in is lost in rounding: the error is {} of the change",
        drowned.len(),
        quantized.len(),
        percent(share(error.rms(), change.rms()))
    );
    let modules = folded(drowned.iter().flat_map(|w| &w.modules).map(|m| &**m)).join(", ");
    out.push(
        Diagnostic::warning("merge-rounding", found)
            .note(modules)
            .help("attach the adapter instead (`rewrite model.onnx --adapter …`), or merge it into the model before it is quantized"),
    );
    out
}
