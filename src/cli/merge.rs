//! `rewrite merge`: parses arguments, shows events and prints.

#![expect(
    clippy::doc_markdown,
    reason = "the documentation is the help text on a terminal"
)]

use super::Ui;
use super::average::SignMethod;
use super::select::AdapterArgs;
use crate::adapters::Weighting;
use crate::error::Result;
use crate::job;
use clap::Args;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(crate) struct MergeArgs {
    /// The ONNX file, its folder, or hub:ORG/NAME; the files of an encoder and its decoder are merged together
    pub(crate) model: PathBuf,
    #[command(flatten)]
    pub(crate) select: AdapterArgs,
    #[command(flatten)]
    pub(crate) combine: CombineArgs,
    /// File that the merged model goes to; a folder for the files of an encoder and its decoder
    #[arg(short, long, value_name = "FILE|DIR")]
    pub(crate) output: PathBuf,
    /// Take the adapter out of weights that it was folded into; they come back up to rounding
    #[arg(long)]
    pub(crate) reset: bool,
    /// Replace an existing output
    #[arg(long)]
    pub(crate) force: bool,
}

/// How several adapters become one before it is folded in.
#[derive(Debug, Args)]
pub(crate) struct CombineArgs {
    /// Make one adapter of the LoRA adapters that are given, as PEFT's add_weighted_adapter does, and fold that in: svd, linear, cat, ties,
    /// dare_ties, dare_linear, magnitude_prune, or one of the last four with _svd behind it
    #[arg(long, value_name = "TYPE")]
    combination_type: Option<String>,
    /// One weight for each adapter, separated by commas, negative ones too (default: 1 each)
    #[arg(
        long,
        value_name = "W,W,…",
        value_delimiter = ',',
        allow_hyphen_values = true,
        requires = "combination_type"
    )]
    weights: Option<Vec<f64>>,
    /// Share of the values that ties, dare_… and magnitude_prune keep
    #[arg(long, value_name = "SHARE", requires = "combination_type")]
    density: Option<f64>,
    /// Which sign wins in ties: that of the sum, or of most values
    #[arg(
        long,
        value_enum,
        default_value = "total",
        value_name = "METHOD",
        requires = "combination_type"
    )]
    majority_sign_method: SignMethod,
    /// Seed of dare_…
    #[arg(
        long,
        default_value_t = 42,
        value_name = "N",
        requires = "combination_type"
    )]
    seed: u64,
    /// Rank of the combination with svd and …_svd (default: the greatest of the adapters')
    #[arg(long, value_name = "K", requires = "combination_type")]
    svd_rank: Option<usize>,
}

impl CombineArgs {
    fn weighting(&self) -> Option<Weighting> {
        Some(Weighting {
            combination: self.combination_type.clone()?,
            weights: self.weights.clone(),
            density: self.density,
            by_frequency: self.majority_sign_method == SignMethod::Frequency,
            svd_rank: self.svd_rank,
            seed: self.seed,
        })
    }
}

pub(super) fn run(args: &MergeArgs, ui: &Ui) -> Result<()> {
    let mut job = job::Merge::new(&args.model, args.select.settings(), &args.output);
    job.variant.clone_from(&args.select.of.variant);
    job.reset = args.reset;
    job.force = args.force;
    job.weighting = args.combine.weighting();
    let merged = job.run(&mut |event| ui.shown(event))?;
    ui.result(&merged.json(), || merged.text())
}
