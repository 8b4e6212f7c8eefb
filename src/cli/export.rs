//! `rewrite export-adapter`, and the formats that adapters are written in: parses arguments, shows events and prints.

use super::Ui;
use super::select::AdapterArgs;
use crate::diag::grouped;
use crate::error::Result;
use crate::job::{ExportAdapter, ParameterType, SaveFormat};
use clap::{Args, ValueEnum};
use serde_json::json;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// The ONNX file, its folder, or hub:ORG/NAME: a base model, or the graph that this command made before
    model: PathBuf,
    #[command(flatten)]
    select: AdapterArgs,
    /// Folder that the graph and the adapters go to
    #[arg(short, long, value_name = "FOLDER", value_hint = clap::ValueHint::DirPath)]
    output: PathBuf,
    /// Element type of the parameters; a graph that is there has its own
    #[arg(long, value_enum, default_value_t)]
    dtype: ParameterArg,
    /// Seed of the initial values of adapters that have no weights yet
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Replace existing outputs
    #[arg(long)]
    force: bool,
}

pub(super) fn run(args: &ExportArgs, ui: &Ui) -> Result<()> {
    let job = ExportAdapter {
        model: args.select.of.locate(&args.model, ui)?,
        adapters: args.select.settings(),
        output: args.output.clone(),
        force: args.force,
        seed: args.seed,
        dtype: args.dtype.dtype(),
    };
    let report = job.run(&mut |event| ui.shown(event))?;
    let rows = report.adapters.iter().map(|a| {
        json!({ "name": a.name, "file": a.path, "tensors": a.tensors, "parameters": a.parameters, "bytes": a.bytes })
    });
    let out = json!({
        "model": report.saved.as_ref().map(|s| &s.model), "inputs": report.inputs, "adapters": rows.collect::<Vec<_>>(), "beside": report.beside,
    });
    ui.result(&out, || {
        let mut text = format!(
            "the graph has {} optional inputs for adapters\n",
            report.inputs
        );
        for a in &report.adapters {
            text += &format!(
                "  {:<20}{:>5} of them, {} parameters\n",
                a.name,
                a.tensors,
                grouped(a.parameters)
            );
        }
        if let Some(s) = &report.saved {
            text += &format!("\nwrote {}", s.model.display());
        }
        for a in &report.adapters {
            text += &format!(
                "\nwrote {} ({} bytes)",
                a.path.display(),
                grouped(a.bytes as u64)
            );
        }
        for path in &report.beside {
            text += &format!("\ncopied {}", path.display());
        }
        text + "\n"
    })
}

/// Formats that adapters are written in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum FormatArg {
    /// The Adapters library's: NAME/
    #[default]
    Adapterhub,
    /// Hugging Face PEFT's: NAME/
    Peft,
    /// Both: NAME/ and NAME-peft/
    Both,
}

impl FormatArg {
    /// The job's word.
    pub(crate) fn format(self) -> SaveFormat {
        match self {
            FormatArg::Adapterhub => SaveFormat::Adapterhub,
            FormatArg::Peft => SaveFormat::Peft,
            FormatArg::Both => SaveFormat::Both,
        }
    }
}

/// Element types of parameters that are inputs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum ParameterArg {
    /// 32 bits
    #[default]
    F32,
    /// 16 bits
    F16,
    /// 16 bits, with the range of 32
    Bf16,
}

impl ParameterArg {
    /// The job's word.
    pub(crate) fn dtype(self) -> ParameterType {
        match self {
            ParameterArg::F32 => ParameterType::F32,
            ParameterArg::F16 => ParameterType::F16,
            ParameterArg::Bf16 => ParameterType::Bf16,
        }
    }
}

/// Formats of adapters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum AdapterFormat {
    /// The Adapters library's
    #[value(alias = "adapters")]
    Adapterhub,
    /// Hugging Face PEFT's
    Peft,
    /// ONNX Runtime's file, by the names that Olive gives: LoRA and (IA)³
    #[value(alias = "onnx_adapter", alias = "ort")]
    OnnxAdapter,
}
