//! Adapters that a running model exchanges: a graph with their parameters as inputs, and a file for each of them.

use super::attach::AdapterSettings;
use super::check::{ensure_absent, keep, usage, write_file};
use super::event::{OnEvent, warn};
use super::merge::evaluate;
use super::open;
use crate::adapters::manifest::{Exchangeable, Manifest};
use crate::adapters::onnx_adapter::{self, EXTENSION, OnnxAdapter};
use crate::api::{self, Adapted, Attach};
use crate::diag::Diagnostic;
use crate::disk;
use crate::error::{Error, ErrorKind, Result};
use crate::infer::Verified;
use crate::ir::{DType, Dim, Graph, TensorData, Type};
use crate::onnx::{SaveOptions, Saved};
use crate::rewrite::passes::{Exchanging, Tensors};
use crate::select::beside;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What stands beside a model and goes with it: what `onnxruntime-genai` and Transformers read.
const BESIDE: [&str; 12] = [
    "genai_config.json",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
];

/// Makes a graph whose adapters are inputs, and the adapters' files.
#[derive(Clone, Debug)]
pub(crate) struct ExportAdapter {
    /// The ONNX file: a base model, or a graph that this job made before.
    pub model: PathBuf,
    /// The adapters.
    pub adapters: AdapterSettings,
    /// The folder.
    pub output: PathBuf,
    /// Whether existing outputs are replaced.
    pub force: bool,
    /// Seed of fresh adapters.
    pub seed: u64,
    /// Element type of the parameters; a graph that is there has its own.
    pub dtype: ParameterType,
}

/// Element types of exchanged parameters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum ParameterType {
    /// 32 bits.
    #[default]
    F32,
    /// 16 bits, 10 of them for the fraction.
    F16,
    /// 16 bits, 7 of them for the fraction.
    Bf16,
}

impl ParameterType {
    fn dtype(self) -> DType {
        match self {
            ParameterType::F32 => DType::Float,
            ParameterType::F16 => DType::Float16,
            ParameterType::Bf16 => DType::Bfloat16,
        }
    }
}

/// What was written.
#[derive(Clone, Debug)]
pub(crate) struct Exported {
    /// The graph, unless it was there.
    pub saved: Option<Saved>,
    /// Number of the graph's inputs for parameters.
    pub inputs: usize,
    /// The adapters.
    pub adapters: Vec<ExportedAdapter>,
    /// Other files that went along.
    pub beside: Vec<PathBuf>,
}

/// One adapter's file.
#[derive(Clone, Debug)]
pub(crate) struct ExportedAdapter {
    /// Its name.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// Number of tensors.
    pub tensors: usize,
    /// Number of numbers in them.
    pub parameters: u64,
    /// Length of the file in bytes.
    pub bytes: usize,
}

impl ExportAdapter {
    /// Makes and writes.
    ///
    /// # Errors
    /// Adapters that cannot be inputs, or that the graph has no inputs for; outputs that exist or are inputs; files that cannot be read or
    /// written.
    pub(crate) fn run(&self, events: OnEvent<'_>) -> Result<Exported> {
        self.check_flags()?;
        let model = open(&self.model, events)?;
        let manifest = Manifest::read(model.model()).map_err(method)?;
        let known = manifest.exchanged;
        let base = if known.is_empty() {
            model.clone()
        } else {
            api::strip(model.clone(), None)?
        };
        // A graph that is there has a type already.
        let mut there = known.iter().flat_map(|k| &k.inputs);
        let there = there.find_map(|name| type_of(&model.model().graph, name)?.dtype());
        let dtype = there.unwrap_or(self.dtype.dtype());
        let adapted = self.attached(base, (known.clone(), dtype), events)?;
        let graph = if known.is_empty() {
            adapted.model.model()
        } else {
            model.model()
        };
        for (name, tensors) in &adapted.exchanged {
            check_fit(name, tensors, &graph.graph, !known.is_empty())?;
        }
        let files = self.files(&adapted)?;
        let target = self.output.join(self.model.file_name().unwrap_or_default());
        if known.is_empty() {
            keep(&target, [&*self.model])?;
            ensure_absent(&target, self.force)?;
        }
        for (adapter, _) in &files {
            ensure_absent(&adapter.path, self.force)?;
        }
        std::fs::create_dir_all(&self.output)
            .map_err(|e| Error::io(&self.output, "cannot make the folder", e))?;
        for (adapter, bytes) in &files {
            write_file(&adapter.path, bytes)?;
        }
        let (mut saved, mut copied) = (None, Vec::new());
        if known.is_empty() {
            let options = SaveOptions {
                force: self.force,
                ..SaveOptions::default()
            };
            saved = Some(crate::onnx::save(&adapted.model, &target, options)?);
            copied = bring_along(&self.model, &self.output, self.force, events)?;
        }
        let exchanged = Manifest::read(graph).map_err(method)?.exchanged;
        Ok(Exported {
            saved,
            inputs: exchanged.iter().map(|e| e.inputs.len()).sum(),
            adapters: files.into_iter().map(|(adapter, _)| adapter).collect(),
            beside: copied,
        })
    }

    /// Refuses what says how adapters act together: one of them comes in at a time.
    fn check_flags(&self) -> Result<()> {
        let a = &self.adapters;
        if a.adapters.is_empty() {
            return Err(usage(
                "the graph is made for adapters, and none is named",
                "--adapter math/, or a configuration whose kind is to come in: --adapter 'lora[r=8]'",
            ));
        }
        let of_graphs = [
            (a.active.is_some(), "--active"),
            (!a.fusions.is_empty(), "--fusion"),
            (a.skip_layers_input, "--skip-layers-input"),
            (
                a.output_adapter_gating_scores,
                "--output-adapter-gating-scores",
            ),
            (
                a.output_adapter_fusion_attentions,
                "--output-adapter-fusion-attentions",
            ),
        ];
        match of_graphs.iter().find(|(given, _)| *given) {
            Some((_, flag)) => Err(usage(
                format!(
                    "{flag} is about adapters that are attached, and here one comes in when the model runs"
                ),
                "leave it out, or attach the adapters: `rewrite model.onnx --adapter …`",
            )),
            None => Ok(()),
        }
    }

    fn attached(
        &self,
        base: Verified,
        (known, dtype): (Vec<Exchangeable>, DType),
        events: OnEvent<'_>,
    ) -> Result<Adapted> {
        let interface = self.adapters.interface(&self.model, &base)?;
        let adapters = self.adapters.load(&interface, events)?;
        let names: Vec<String> = adapters.iter().map(|a| a.name.clone()).collect();
        if let Some(twice) = names
            .iter()
            .enumerate()
            .find(|(i, n)| names[..*i].contains(n))
        {
            let found = format!("two adapters are called `{}`", twice.1);
            let found = Diagnostic::error("adapter-twice", found);
            return Err(method(
                found.help("give one of them another name: `NAME=SPEC`"),
            ));
        }
        self.adapters.leave_heads(
            &names,
            "the graph has one head for all adapters that come in, its own",
            events,
        )?;
        let attach = Attach::to(base)
            .from_file(&self.model)
            .interface(&interface)
            .adapters(adapters)
            .skip_layers(self.adapters.skip_layers.iter().copied())
            .seed(self.seed)
            .exchange(exchanging(dtype), known);
        let adapted = match self.adapters.named_route(&interface, &self.model)? {
            Some(route) => attach.route(route).run()?,
            None => attach.run()?,
        };
        warn(events, &adapted.warnings)?;
        Ok(adapted)
    }

    /// The adapters' files, each read back as a runtime reads it.
    fn files(&self, adapted: &Adapted) -> Result<Vec<(ExportedAdapter, Vec<u8>)>> {
        let mut out = Vec::new();
        for (name, tensors) in &adapted.exchanged {
            let file = OnnxAdapter {
                adapter_version: 1,
                model_version: 1,
                tensors: tensors.clone(),
            };
            let bytes = onnx_adapter::write(&file)?;
            let again = onnx_adapter::read(&Bytes::copy_from_slice(&bytes))?;
            if again != file {
                let found = format!("the file of `{name}` does not read as what was written");
                return Err(method(Diagnostic::error("onnx-adapter", found)));
            }
            let counts = tensors.values().filter_map(TensorData::count);
            let adapter = ExportedAdapter {
                name: name.clone(),
                path: self.output.join(format!("{name}.{EXTENSION}")),
                tensors: tensors.len(),
                parameters: counts.sum(),
                bytes: bytes.len(),
            };
            out.push((adapter, bytes));
        }
        Ok(out)
    }
}

/// Parameters of a type as inputs, with this library's runtime as what computes them.
pub(crate) fn exchanging(dtype: DType) -> Exchanging {
    Exchanging {
        evaluate: Arc::new(evaluate),
        dtype,
    }
}

/// The type of a graph's input.
fn type_of<'g>(graph: &'g Graph, input: &str) -> Option<&'g Type> {
    let value = graph.find(input)?;
    let mut ports = graph.inputs().iter();
    ports.find(|p| p.value == value)?.ty.as_ref()
}

/// Refuses an adapter that gives what a graph has no input for, by name, type and sizes.
fn check_fit(name: &str, tensors: &Tensors, graph: &Graph, was_there: bool) -> Result<()> {
    const SHOWN: usize = 4;
    let mut found = Vec::new();
    let mut symbols: BTreeMap<&str, u64> = BTreeMap::new();
    for (input, tensor) in tensors {
        let Some(ty) = type_of(graph, input) else {
            found.push(format!("`{input}` is no input of the graph"));
            continue;
        };
        let dims = ty.dims().unwrap_or_default();
        let unified = dims.len() == tensor.dims.len()
            && dims.iter().zip(&tensor.dims).all(|(want, d)| match want {
                Dim::Known(n) => u64::try_from(*n) == Ok(*d),
                Dim::Symbol(s) => *symbols.entry(s).or_insert(*d) == *d,
                Dim::Unknown => true,
            });
        if !unified || ty.dtype() != Some(tensor.dtype) {
            found.push(format!(
                "`{input}` is {ty}, and the adapter has {:?}",
                tensor.dims
            ));
        }
    }
    if found.is_empty() {
        return Ok(());
    }
    let what = format!(
        "`{name}` does not fit the inputs of the graph: {} of {}",
        found.len(),
        tensors.len()
    );
    let mut d = Diagnostic::error("exchange-fit", what);
    for note in found.into_iter().take(SHOWN) {
        d = d.note(note);
    }
    let help = if was_there {
        "the graph was made for adapters of other methods or modules: make one for all of them, from the base model"
    } else {
        "this is a mistake of this program: please report it"
    };
    Err(Error::new(ErrorKind::Method, d.help(help)))
}

fn method(d: Diagnostic) -> Error {
    Error::new(ErrorKind::Method, d)
}

/// Copies what a runtime reads beside a model to the folder of another one.
pub(super) fn bring_along(
    model: &Path,
    folder: &Path,
    force: bool,
    events: OnEvent<'_>,
) -> Result<Vec<PathBuf>> {
    let mut out = Vec::new();
    for name in BESIDE {
        let (from, to) = (beside(model, name), folder.join(name));
        if !from.is_file() {
            continue;
        }
        let bytes = disk::bytes(&from).map_err(|e| Error::io(&from, "cannot be read", e))?;
        let there = disk::own::bytes(&to).ok();
        if there.as_deref() == Some(&*bytes) {
            continue;
        }
        if there.is_some() && !force {
            let found = format!("{} is of another model, and stays", to.display());
            let found = Diagnostic::warning("exchange-beside", found);
            let help = "it goes with the graph in a folder of its own, or is replaced with --force";
            warn(events, &[found.help(help)])?;
            continue;
        }
        write_file(&to, &bytes)?;
        out.push(to);
    }
    Ok(out)
}
