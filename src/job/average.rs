//! Adapter folders are averaged.

use crate::adapters::folder::{AdapterFolder, WriteOptions};
use crate::adapters::heads;
use crate::adapters::spec::read_folder;
use crate::adapters::{AverageOptions, Combine, Weighting, average, weighted};
use crate::diag::Diagnostic;
use crate::error::Result;
use std::path::PathBuf;

/// Averages adapter folders into a new one.
#[derive(Clone, Debug)]
pub(crate) struct Average {
    /// Name of the new adapter.
    pub(crate) name: String,
    /// The folders.
    pub(crate) adapters: Vec<PathBuf>,
    /// One weight for each (default: equal ones).
    pub(crate) weights: Option<Vec<f64>>,
    /// Whether weights are divided by their sum.
    pub(crate) normalize: bool,
    /// How parameters are combined, by the library's name.
    pub(crate) strategy: String,
    /// Rank of the result, where parameters are combined by singular values.
    pub(crate) rank: Option<usize>,
    /// How PEFT's `add_weighted_adapter` combines them, instead.
    pub(crate) weighting: Option<Weighting>,
    /// The new folder (default: one of the new name in the working folder).
    pub(crate) output: Option<PathBuf>,
    /// Whether existing outputs are replaced.
    pub(crate) force: bool,
}

impl Average {
    /// Averages and writes: the new adapter and its folder.
    ///
    /// # Errors
    /// Those of [`Combine::named`] and [`average`]; folders that cannot be read or written.
    pub(crate) fn run(&self) -> Result<(AdapterFolder, PathBuf)> {
        let adapters = self.adapters.iter().map(|p| read_folder(p));
        let adapters = adapters.collect::<Result<Vec<_>>>()?;
        let mut out = if let Some(weighting) = &self.weighting {
            weighted(&self.name, &adapters, weighting)?
        } else {
            let options = AverageOptions {
                weights: self.weights.clone(),
                normalize: self.normalize,
                combine: Combine::named(&self.strategy, self.rank)?,
            };
            average(&self.name, &adapters, &options)?
        };
        let headed = |p: &&PathBuf| p.join(heads::file::CONFIG).exists();
        if let Some(first) = self.adapters.iter().find(headed) {
            let found = format!("the head in {} is not averaged", first.display());
            let d = Diagnostic::warning("head-ignored", found);
            out.notes
                .push(d.help("copy one, or train a new one on the averaged adapter"));
        }
        let path = self.output.clone();
        let path = path.unwrap_or_else(|| PathBuf::from(&self.name));
        let options = WriteOptions {
            force: self.force,
            ..WriteOptions::default()
        };
        out.write(&path, options)?;
        Ok((out, path))
    }
}
