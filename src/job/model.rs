//! What a job says of its model.

use super::attach::AdapterSettings;
use crate::error::Result;
use crate::options::Options;
use crate::rewrite::pipelines::Mode;
use crate::runtime::CompileOptions;
use crate::runtime::Precision;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The adapters of a job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum AdapterSpecs {
    /// The first method that the interface lists.
    #[default]
    Default,
    /// `SPEC` or `NAME=SPEC`.
    One(String),
    /// Several of them.
    Many(Vec<String>),
    /// Specs by name.
    Named(BTreeMap<String, String>),
}

impl AdapterSpecs {
    /// Each as `SPEC` or `NAME=SPEC`.
    pub(crate) fn list(&self) -> Vec<String> {
        match self {
            AdapterSpecs::Default => Vec::new(),
            AdapterSpecs::One(s) => vec![s.clone()],
            AdapterSpecs::Many(list) => list.clone(),
            AdapterSpecs::Named(map) => map.iter().map(|(n, s)| format!("{n}={s}")).collect(),
        }
    }
}

/// Element type of activations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Dtype {
    /// 32 bits.
    #[default]
    F32,
    /// Operands of products rounded to bfloat16.
    Bf16,
    /// The same as `f32`: no processor multiplies faster in it, and `f32` holds all of its numbers.
    F16,
}

/// What every job says of its model: adapters, tokenizer, and how the graph is executed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ModelSettings {
    /// The variant of a model that is there in several, by a folder or by its name on the Hub: fp32, fp16, q8, int8, uint8, q4, q4f16, bnb4, or
    /// whatever stands behind `model_` in the name of the file (default: full precision, `model.onnx`).
    pub(crate) variant: Option<String>,
    /// An `adapter_interface.json`, or the name of a built-in one (default: the one of config.json beside the model, else of the graph).
    pub(crate) interface: Option<String>,
    /// The adapters: `SPEC`, `NAME=SPEC`, a list of them, or an object of specs by name. A spec is a configuration string, an
    /// `adapter_config.json` or a saved adapter folder.
    pub(crate) adapter: AdapterSpecs,
    /// The setup: which adapters are active and how they are composed, in AdapterHub's notation, or an `adapter_setup.json` with the folders
    /// of its adapters beside it (default: all, one behind the other).
    pub(crate) active: Option<String>,
    /// The `AdapterFusion` of each `Fuse` in the setup: the folder of a saved one, or `static` or `dynamic` for a fresh one (default: dynamic).
    pub(crate) fusion: AdapterSpecs,
    /// Layers that get no adapters (`AdapterDrop`).
    pub(crate) skip_layers: Vec<usize>,
    /// How the Adapters library is to integrate fresh adapters: native, by its own class for the model's type, or plugin, through the
    /// interface (default: native where it has such a class and no interface file is named).
    pub(crate) route: Option<String>,
    /// Attaches saved adapters to another base model than the one that they were made for.
    pub(crate) allow_other_base: bool,
    /// The tokenizer: tokenizer.json or its folder (default: the one beside the model).
    pub(crate) tokenizer: Option<String>,
    /// Device to compute on: cpu; cuda or cuda:N in a build with CUDA.
    pub(crate) device: String,
    /// Element type of activations.
    pub(crate) dtype: Dtype,
    /// Number of threads (default: all cores).
    pub(crate) threads: Option<usize>,
    /// Runs the graph as it was exported, without fused kernels.
    pub(crate) portable: bool,
}

impl Options for ModelSettings {}

impl Default for ModelSettings {
    fn default() -> Self {
        ModelSettings {
            variant: None,
            interface: None,
            adapter: AdapterSpecs::Default,
            active: None,
            fusion: AdapterSpecs::Default,
            skip_layers: Vec::new(),
            route: None,
            allow_other_base: false,
            tokenizer: None,
            device: "cpu".to_owned(),
            dtype: Dtype::F32,
            threads: None,
            portable: false,
        }
    }
}

impl ModelSettings {
    /// The interface and the adapters.
    pub(super) fn adapters(&self) -> AdapterSettings {
        AdapterSettings {
            interface: self.interface.clone(),
            adapters: self.adapter.list(),
            active: self.active.clone(),
            fusions: self.fusion.list(),
            skip_layers: self.skip_layers.clone(),
            adapter_ids: false,
            skip_layers_input: false,
            output_adapter_gating_scores: false,
            output_adapter_fusion_attentions: false,
            route: self.route.clone(),
            allow_other_base: self.allow_other_base,
        }
    }

    /// Which operators a graph is made of.
    pub(super) fn mode(&self) -> Mode {
        if self.portable {
            Mode::Portable
        } else {
            Mode::Native
        }
    }

    /// How a graph is compiled.
    pub(crate) fn compile_options(&self) -> Result<CompileOptions> {
        let precision = match self.dtype {
            Dtype::F32 | Dtype::F16 => Precision::F32,
            Dtype::Bf16 => Precision::Bf16,
        };
        Ok(CompileOptions {
            precision,
            device: crate::runtime::device(&self.device)?,
            threads: self.threads,
            ..CompileOptions::default()
        })
    }
}
