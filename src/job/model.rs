//! A model with the files that stand beside it, and what a job says of them.

use super::attach::AdapterSettings;
use super::event::{Event, OnEvent, note};
use super::settings::AdapterSpecs;
use crate::adapters::heads::HeadBase;
use crate::adapters::spec;
use crate::analyze::logits::vocabulary;
use crate::diag::Diagnostic;
use crate::error::Result;
use crate::infer::Verified;
use crate::ir::contract;
use crate::options::Options;
use crate::rewrite::pipelines::Mode;
use crate::runtime::CompileOptions;
use crate::runtime::Precision;
use crate::select;
use crate::text::Tokenizer;
use crate::train::DecoderStart;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::{Path, PathBuf};

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
    /// An `adapter_interface.json`, or the name of a built-in one (default: the one of config.json beside the model, else of the graph).
    pub(crate) interface: Option<String>,
    /// The adapters: `SPEC`, `NAME=SPEC`, a list of them, or an object of specs by name. A spec is a configuration string, an
    /// `adapter_config.json` or a saved adapter folder.
    pub(crate) adapter: AdapterSpecs,
    /// The setup: which adapters are active and how they are composed (default: all, one behind the other).
    pub(crate) active: Option<String>,
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
            interface: None,
            adapter: AdapterSpecs::Default,
            active: None,
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

/// A model file, and the files beside it.
#[derive(Clone, Debug)]
pub(super) struct ModelFiles {
    pub(super) path: PathBuf,
    /// What `config.json` says of the text model; null where there is none.
    config: Value,
}

impl ModelFiles {
    /// The files of a model. Those that are missing say nothing.
    pub(super) fn at(path: &Path) -> Self {
        let text = std::fs::read_to_string(select::beside(path, "config.json")).unwrap_or_default();
        let config: Value = serde_json::from_str(&text).unwrap_or_default();
        // A text model inside another one has its own part.
        let config = match config.get("text_config") {
            Some(inner) => inner.clone(),
            None => config,
        };
        ModelFiles {
            path: path.to_owned(),
            config,
        }
    }

    /// Reads and verifies the model.
    pub(super) fn open(&self, events: OnEvent<'_>) -> Result<Verified> {
        super::open(&self.path, events)
    }

    /// The tokenizer that is named, or the one beside the model; with the chat template that the first of these adapters was trained
    /// with, where one has its own.
    pub(super) fn tokenizer(
        &self,
        named: Option<&str>,
        adapters: &[String],
    ) -> Result<Option<Tokenizer>> {
        let beside = select::beside(&self.path, "tokenizer.json");
        let mut tokenizer = match named {
            Some(path) => Tokenizer::open(Path::new(path))?,
            None if beside.exists() => Tokenizer::open(&beside)?,
            None => return Ok(None),
        };
        for adapter in adapters {
            if let Ok(spec::Spec::Saved { folder, .. }) = spec::parse(adapter)
                && tokenizer.adopt_template(&folder)?
            {
                break;
            }
        }
        Ok(Some(tokenizer))
    }

    /// The class that the model was exported from.
    pub(super) fn class(&self) -> String {
        let class = self.config["architectures"][0].as_str();
        class.unwrap_or_default().to_owned()
    }

    /// What a prediction head has to know of the model.
    pub(super) fn head_base(&self) -> HeadBase {
        let eos = &self.config["eos_token_id"];
        HeadBase {
            model_type: self.config["model_type"]
                .as_str()
                .unwrap_or_default()
                .to_owned(),
            eos_token_id: eos.as_i64().or_else(|| eos[0].as_i64()),
            layer_norm_eps: self.config["layer_norm_eps"].as_f64(),
            tied: self.config["tie_word_embeddings"].as_bool().unwrap_or(true),
        }
    }

    /// Where a tokenizer has tokens that the model has no embeddings for.
    pub(super) fn foreign(&self, tokenizer: &Tokenizer, model: &Verified) -> Option<Diagnostic> {
        let rows = vocabulary(&model.model().graph)?;
        let tokens = tokenizer.size();
        let beyond = i64::try_from(tokens).is_ok_and(|t| t > rows);
        beyond.then(|| {
            let message = format!("the tokenizer has {tokens} tokens, and the model embeds {rows}");
            Diagnostic::warning("tokenizer-size", message)
                .at(self.path.display().to_string())
                .help("a tokenizer of another model? Tokens beyond the table cannot be used")
        })
    }

    fn size(&self, name: &str) -> Option<usize> {
        usize::try_from(self.config[name].as_u64()?).ok()
    }

    /// What the decoder of an encoder-decoder begins with, as the model's class shifts labels.
    pub(super) fn decoder_start(
        &self,
        model: &Verified,
        pad: i64,
        events: OnEvent<'_>,
    ) -> Result<DecoderStart> {
        let graph = &model.model().graph;
        if graph.find(contract::DECODER_INPUT_IDS).is_none() {
            return Ok(DecoderStart::Token(pad));
        }
        if let Some("mbart" | "plbart") = self.config["model_type"].as_str() {
            return Ok(DecoderStart::Last);
        }
        let text = std::fs::read_to_string(select::beside(&self.path, "generation_config.json"));
        let generation: Value = serde_json::from_str(&text.unwrap_or_default()).unwrap_or_default();
        let said = [&self.config, &generation];
        let id = said
            .iter()
            .find_map(|c| c["decoder_start_token_id"].as_i64());
        if let Some(id) = id {
            return Ok(DecoderStart::Token(id));
        }
        events(&Event::Warning(
            Diagnostic::warning(
                "decoder-start",
                format!("the decoder begins with the padding token {pad}, as T5's does: no `decoder_start_token_id` is known"),
            )
            .help("put the model's config.json beside it"),
        ))?;
        Ok(DecoderStart::Token(pad))
    }

    /// Number of positions that the model was made for.
    pub(super) fn positions(&self) -> Option<usize> {
        ["max_position_embeddings", "n_positions", "n_ctx"]
            .iter()
            .find_map(|name| self.size(name))
    }

    /// Ends rows where the positions of the model end, unless a longer length was asked for.
    pub(super) fn within_positions(
        &self,
        length: &mut Option<usize>,
        events: OnEvent<'_>,
    ) -> Result<()> {
        /// The usual length.
        const USUAL: usize = 2048;
        let Some(most) = self.positions() else {
            return Ok(());
        };
        match *length {
            None if most < USUAL => *length = Some(most),
            Some(asked) if asked > most => note(
                events,
                format!(
                    "warning: `max_seq_length` is {asked}, and the model was made for {most} positions; longer rows may fail"
                ),
            )?,
            None | Some(_) => {}
        }
        Ok(())
    }

    /// Names of the classes in the order of their ids.
    pub(super) fn classes(&self) -> Option<Vec<String>> {
        let ids = self.config["label2id"].as_object()?;
        let ids = ids
            .iter()
            .filter_map(|(n, i)| Some((n.clone(), i.as_i64()?)));
        Some(super::attach::in_order(ids))
    }

    /// Number of heads of keys and values, and the size of one.
    pub(super) fn cache_size(&self) -> Option<[usize; 2]> {
        let heads = self
            .size("num_key_value_heads")
            .or(self.size("num_attention_heads"))
            .or(self.size("n_head"))?;
        let divided = || Some(self.size("hidden_size")? / self.size("num_attention_heads")?.max(1));
        Some([heads, self.size("head_dim").or_else(divided)?])
    }
}
