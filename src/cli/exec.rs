//! How a graph is executed, as flags.

use super::flags::checked;
use crate::job::{Dtype, ModelSettings, check_device};
use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};

/// Options of commands that execute a graph.
#[derive(Clone, Debug, Args)]
pub(crate) struct ExecArgs {
    /// Device to compute on: cpu, or cuda or cuda:N in a build with the `cuda` feature
    #[arg(long, default_value = "cpu", value_name = "DEVICE", value_parser = checked(check_device))]
    pub(crate) device: String,
    /// Element type that operands of matrix products may be rounded to: bf16, where the processor has it; f32 and f16 are computed in f32
    #[arg(long, value_enum, default_value = "f32")]
    pub(crate) dtype: DTypeArg,
    /// Number of threads (default: all cores)
    #[arg(long, value_name = "N", value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    pub(crate) threads: Option<usize>,
    /// Who computes: native fuses operators into this program's own kernels, candle runs each operator of the graph as it was exported
    /// (default: native, and candle for `run`)
    #[arg(long, value_enum)]
    pub(crate) backend: Option<BackendArg>,
}

impl ExecArgs {
    /// How a graph is executed.
    pub(crate) fn settings(&self) -> ModelSettings {
        ModelSettings {
            device: self.device.clone(),
            dtype: self.dtype(),
            threads: self.threads,
            portable: self.backend == Some(BackendArg::Candle),
            ..ModelSettings::default()
        }
    }

    fn dtype(&self) -> Dtype {
        match self.dtype {
            DTypeArg::F32 => Dtype::F32,
            DTypeArg::Bf16 => Dtype::Bf16,
            DTypeArg::F16 => Dtype::F16,
        }
    }

    /// Names the settings that were given. What is the default stands back behind a job file.
    pub(crate) fn name(&self, flags: &mut Map<String, Value>) {
        let usual = ModelSettings::default();
        if self.device != usual.device {
            flags.insert("device".into(), json!(self.device));
        }
        if self.dtype() != usual.dtype {
            flags.insert("dtype".into(), json!(self.dtype()));
        }
        if let Some(threads) = self.threads {
            flags.insert("threads".into(), threads.into());
        }
        if let Some(backend) = self.backend {
            flags.insert("portable".into(), json!(backend == BackendArg::Candle));
        }
    }
}

/// Element type of activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DTypeArg {
    F32,
    Bf16,
    F16,
}

/// Who computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum BackendArg {
    Native,
    Candle,
}
