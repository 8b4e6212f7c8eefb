//! Adapters that the input `adapter_ids` of a model file chooses from: which they are, more of them or fewer, and getting one out. The file
//! is all that it takes.

use super::attach::AdapterSettings;
use super::check::keep;
use super::event::{OnEvent, warn};
use super::open;
use crate::adapters::folder::{AdapterFolder, WriteOptions};
use crate::adapters::manifest::Manifest;
use crate::api::{self, Attach};
use crate::diag::{Diagnostic, nearest};
use crate::error::{Error, ErrorKind, Result};
use crate::onnx::{SaveOptions, Saved};
use crate::select::Interface;
use std::path::PathBuf;

/// Reads the adapters of a file.
#[derive(Clone, Debug)]
pub(crate) struct ListTenants {
    /// The model file.
    pub model: PathBuf,
}

impl ListTenants {
    /// Its adapters, by id.
    ///
    /// # Errors
    /// A file without such adapters.
    pub(crate) fn run(&self, events: OnEvent<'_>) -> Result<Vec<AdapterFolder>> {
        let model = open(&self.model, events)?;
        api::tenants(&model).map_err(|e| e.within(self.model.display().to_string()))
    }
}

/// Writes a file with further adapters, or without some.
#[derive(Clone, Debug)]
pub(crate) struct ChangeTenants {
    /// The model file.
    pub model: PathBuf,
    /// The adapters that are added, behind those that are there.
    pub add: AdapterSettings,
    /// Names of those that are taken out; the ids of those behind them move up.
    pub remove: Vec<String>,
    /// Where the model goes.
    pub output: PathBuf,
    /// Whether an existing output is replaced.
    pub force: bool,
    /// Seed of initial parameter values.
    pub seed: u64,
}

impl ChangeTenants {
    /// Changes and writes; the names by id, and what was written.
    ///
    /// # Errors
    /// A file without such adapters; names that are there already, or not there; adapters that do not fit; an output that exists or is
    /// the input.
    pub(crate) fn run(&self, events: OnEvent<'_>) -> Result<(Vec<String>, Saved)> {
        keep(&self.output, [&*self.model])?;
        let model = open(&self.model, events)?;
        let again = Attach::again(&model);
        let mut attach = again.map_err(|e| e.within(self.model.display().to_string()))?;
        let mut remove = self.remove.clone();
        remove.sort_unstable();
        remove.dedup();
        for name in &remove {
            attach = attach.without(name)?;
        }
        if !self.add.adapters.is_empty() {
            let added = self.add.load(&Interface::bare(), events)?;
            let names: Vec<String> = added.iter().map(|a| a.name.clone()).collect();
            let why = "a graph with `adapter_ids` has one head for all samples, its own";
            self.add.leave_heads(&names, why, events)?;
            attach = attach.adapters(added);
            let there = Manifest::read(model.model());
            let there = there.map_err(|d| Error::new(ErrorKind::Method, d))?;
            let skipped = there.tenants.map(|t| t.skip_layers).unwrap_or_default();
            if !skipped.is_empty() {
                let layers: Vec<String> = skipped.iter().map(ToString::to_string).collect();
                let found = format!(
                    "this file was made without adapters in the layers {}: {} has none there either",
                    layers.join(", "),
                    names.join(", ")
                );
                warn(events, &[Diagnostic::warning("skip-layers", found)])?;
            }
        }
        let adapted = attach.from_file(&self.model).seed(self.seed).run()?;
        warn(events, &adapted.warnings)?;
        let names = adapted.manifest()?.into_iter().map(|(name, _)| name);
        let options = SaveOptions {
            force: self.force,
            ..SaveOptions::default()
        };
        let saved = crate::onnx::save(&adapted.model, &self.output, options)?;
        Ok((names.collect(), saved))
    }
}

/// Writes the folder of one adapter.
#[derive(Clone, Debug)]
pub(crate) struct ExtractTenant {
    /// The model file.
    pub model: PathBuf,
    /// The adapter's name.
    pub name: String,
    /// The folder.
    pub output: PathBuf,
    /// Whether existing files are replaced.
    pub force: bool,
}

impl ExtractTenant {
    /// Writes the folder.
    ///
    /// # Errors
    /// A file without such adapters, or without this one; a folder that holds files already.
    pub(crate) fn run(&self, events: OnEvent<'_>) -> Result<AdapterFolder> {
        let job = ListTenants {
            model: self.model.clone(),
        };
        let all = job.run(events)?;
        let Some(found) = all.iter().find(|f| f.name == self.name) else {
            let names = all.iter().map(|f| &*f.name);
            let near = nearest(&self.name, names.clone());
            let help = near.map_or_else(
                || format!("there are: {}", names.collect::<Vec<_>>().join(", ")),
                |near| format!("did you mean `{near}`?"),
            );
            let found = format!("there is no adapter `{}` in this model", self.name);
            let found = Diagnostic::error("adapter-missing", found).help(help);
            return Err(Error::new(ErrorKind::Method, found));
        };
        let options = WriteOptions {
            force: self.force,
            ..WriteOptions::default()
        };
        found.write(&self.output, options)?;
        Ok(found.clone())
    }
}
