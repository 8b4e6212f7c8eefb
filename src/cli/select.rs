//! The flags that say what is selected in a model, and what is spliced in.

#![expect(
    clippy::doc_markdown,
    reason = "the documentation is the help text on a terminal"
)]

use super::Ui;
use super::flags::checked;
use super::values;
use crate::error::Result;
use crate::job::{AdapterSettings, ModelName, check_fusion, check_setup};
use clap::Args;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// Which of several variants of a model is meant.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct VariantArgs {
    /// The variant of a model that is there in several, by a folder or by its name on the Hub: fp32, fp16, q8, int8, uint8, q4, q4f16, bnb4,
    /// or whatever stands behind `model_` in the name of the file (default: full precision, model.onnx)
    #[arg(long, value_name = "NAME")]
    pub(crate) variant: Option<String>,
}

impl VariantArgs {
    /// The file of a model that is named by a file, a folder or a reference to the Hub. The folder, where encoder and decoder are files of
    /// their own.
    pub(super) fn locate(&self, model: &Path, ui: &Ui) -> Result<PathBuf> {
        self.find(model, false, ui)
    }

    /// The same, with every file of an encoder-decoder.
    pub(super) fn locate_parts(&self, model: &Path, ui: &Ui) -> Result<PathBuf> {
        self.find(model, true, ui)
    }

    fn find(&self, name: &Path, every_part: bool, ui: &Ui) -> Result<PathBuf> {
        let variant = self.variant.as_deref();
        let model = ModelName {
            name,
            variant,
            every_part,
        };
        model.locate(&mut |event| ui.shown(event))
    }
}

/// What selects and what is spliced in.
#[derive(Clone, Debug, Default, Args)]
#[expect(clippy::struct_excessive_bools, reason = "flags")]
pub(crate) struct AdapterArgs {
    #[command(flatten)]
    pub(crate) of: VariantArgs,
    /// adapter_interface.json, or the name of a built-in one, see `rewrite interface list` (default: the one of the model type in
    /// config.json beside the model, else one inferred from the graph)
    #[arg(short, long, value_name = "FILE|NAME", value_parser = values::interface(), hide_possible_values = true)]
    pub(crate) interface: Option<String>,
    /// NAME=SPEC or SPEC: a configuration string (`lora[r=8]`), an adapter_config.json, or a saved adapter folder. May be repeated
    #[arg(short, long = "adapter", value_name = "[NAME=]SPEC", value_parser = values::adapter(), hide_possible_values = true)]
    pub(crate) adapters: Vec<String>,
    /// How the adapters are composed, in AdapterHub's notation: a name, `Stack(a, Fuse(b, c))`, or `MultiTask(a, b)`, where the input
    /// `task_ids` says which adapter each sample has; or an adapter_setup.json (default: all are active, one behind the other)
    #[arg(long, value_name = "SETUP|FILE", value_parser = checked(check_setup))]
    pub(crate) active: Option<String>,
    /// NAME=SPEC or SPEC: the AdapterFusion of a `Fuse` in the setup, as its folder, or as `static` or `dynamic` for a fresh one (default:
    /// dynamic). May be repeated
    #[arg(long = "fusion", value_name = "[NAME=]SPEC", value_parser = checked(check_fusion))]
    pub(crate) fusions: Vec<String>,
    /// Layers that get no adapters (AdapterDrop): --skip-layers 0 1
    #[arg(long, value_name = "N", num_args = 1.., value_delimiter = ',')]
    pub(crate) skip_layers: Vec<usize>,
    /// Give the graph an optional input adapter_skip_layers, bool[layers], that says which layers are skipped at run time
    #[arg(long)]
    pub(crate) skip_layers_input: bool,
    /// Give the gates of adapters as outputs, adapter_gating_scores.MODULE
    #[arg(long)]
    pub(crate) output_adapter_gating_scores: bool,
    /// Give the weights that fusions give their adapters as outputs, adapter_fusion_attentions.MODULE
    #[arg(long)]
    pub(crate) output_adapter_fusion_attentions: bool,
    /// How the Adapters library is to integrate fresh adapters: by its own class for the model's type, or through the interface; decides
    /// their names, and in places what they compute (default: native where it has a class and no interface file is named)
    #[arg(long, value_name = "native|plugin")]
    pub(crate) route: Option<String>,
    /// Attach saved adapters to another base model than the one that they were made for
    #[arg(long)]
    pub(crate) allow_other_base: bool,
}

impl AdapterArgs {
    /// The interface and the adapters.
    pub(crate) fn settings(&self) -> AdapterSettings {
        AdapterSettings {
            interface: self.interface.clone(),
            adapters: self.adapters.clone(),
            active: self.active.clone(),
            fusions: self.fusions.clone(),
            skip_layers: self.skip_layers.clone(),
            skip_layers_input: self.skip_layers_input,
            output_adapter_gating_scores: self.output_adapter_gating_scores,
            output_adapter_fusion_attentions: self.output_adapter_fusion_attentions,
            route: self.route.clone(),
            allow_other_base: self.allow_other_base,
            adapter_ids: false,
        }
    }

    /// Names the settings that were given.
    pub(crate) fn name(&self, flags: &mut Map<String, Value>) {
        if let Some(variant) = &self.of.variant {
            flags.insert("variant".into(), json!(variant));
        }
        if let Some(interface) = &self.interface {
            flags.insert("interface".into(), json!(interface));
        }
        if !self.adapters.is_empty() {
            flags.insert("adapter".into(), json!(self.adapters));
        }
        if let Some(active) = &self.active {
            flags.insert("active".into(), json!(active));
        }
        if !self.fusions.is_empty() {
            flags.insert("fusion".into(), json!(self.fusions));
        }
        if !self.skip_layers.is_empty() {
            flags.insert("skip_layers".into(), json!(self.skip_layers));
        }
        if let Some(route) = &self.route {
            flags.insert("route".into(), json!(route));
        }
        if self.allow_other_base {
            flags.insert("allow_other_base".into(), json!(true));
        }
    }
}
