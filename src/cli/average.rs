//! The arguments of `rewrite adapter average`.

#![expect(
    clippy::doc_markdown,
    reason = "the documentation is the help text on a terminal"
)]

use clap::{Args, ValueEnum};
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(crate) struct AverageArgs {
    /// Name of the new adapter
    pub(crate) name: String,
    /// A saved adapter folder. Give one for each adapter
    #[arg(short, long = "adapter", value_name = "DIR", required = true)]
    pub(crate) adapters: Vec<PathBuf>,
    /// One weight for each adapter, separated by commas (default: equal ones)
    #[arg(
        long,
        value_name = "W,W,…",
        value_delimiter = ',',
        allow_hyphen_values = true
    )]
    pub(crate) weights: Option<Vec<f64>>,
    /// Use the weights as they are, instead of dividing them by their sum
    #[arg(long)]
    pub(crate) no_normalize_weights: bool,
    /// How parameters are combined
    #[arg(long, value_enum, default_value = "linear", value_name = "STRATEGY")]
    pub(crate) combine_strategy: CombineStrategy,
    /// Combine LoRA adapters as PEFT's add_weighted_adapter does, instead: svd, linear, cat, ties, dare_ties, dare_linear,
    /// magnitude_prune, or one of the last four with _svd behind it. Weights are taken as they are (default: 1 each)
    #[arg(long, value_name = "TYPE", conflicts_with_all = ["combine_strategy", "no_normalize_weights"])]
    pub(crate) combination_type: Option<String>,
    /// Share of the values that ties, dare_… and magnitude_prune keep
    #[arg(long, value_name = "SHARE", requires = "combination_type")]
    pub(crate) density: Option<f64>,
    /// Which sign wins in ties: that of the sum, or of most values
    #[arg(long, value_enum, default_value = "total", value_name = "METHOD")]
    pub(crate) majority_sign_method: SignMethod,
    /// Seed of dare_…
    #[arg(long, default_value_t = 42, value_name = "N")]
    pub(crate) seed: u64,
    /// Rank of the result, with `lora_delta_w_svd` (`alpha` follows it, so that the effect keeps its size) and with …svd (default there: the
    /// greatest)
    #[arg(
        long,
        value_name = "K",
        required_if_eq("combine_strategy", "lora_delta_w_svd")
    )]
    pub(crate) svd_rank: Option<usize>,
    /// The new folder (default: one of the new name in the working folder)
    #[arg(short, long, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    pub(crate) output: Option<PathBuf>,
    /// Replace existing outputs
    #[arg(long)]
    pub(crate) force: bool,
}

/// Which sign wins, under PEFT's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum SignMethod {
    /// That of the sum
    Total,
    /// That of most values
    Frequency,
}

/// How parameters are combined, under the library's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum CombineStrategy {
    /// Every parameter is the weighted sum
    Linear,
    /// LoRA: A with the weights' magnitudes, B with the weights
    LoraLinearOnlyNegateB,
    /// LoRA: the weighted sum of B·A, cut to a rank
    LoraDeltaWSvd,
}

impl CombineStrategy {
    /// The library's name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            CombineStrategy::Linear => "linear",
            CombineStrategy::LoraLinearOnlyNegateB => "lora_linear_only_negate_b",
            CombineStrategy::LoraDeltaWSvd => "lora_delta_w_svd",
        }
    }
}
