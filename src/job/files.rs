//! A model's files: the ONNX file, and what stands beside it.

use super::event::{Event, OnEvent, note};
use super::origin::Origin;
use super::variant;
use crate::adapters::heads::HeadBase;
use crate::adapters::spec;
use crate::analyze::logits::vocabulary;
use crate::api;
use crate::diag::Diagnostic;
use crate::disk;
use crate::error::Result;
use crate::infer::Verified;
use crate::ir::contract;
use crate::rewrite::pipelines;
use crate::select;
use crate::text::Tokenizer;
use crate::train::DecoderStart;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// A model file, and the files beside it; or the files of an encoder-decoder in one folder, as Optimum writes them.
#[derive(Clone, Debug)]
pub(super) struct ModelFiles {
    /// The model, or the encoder.
    pub(super) path: PathBuf,
    /// The decoder, where it is a file of its own.
    decoder: Option<PathBuf>,
    /// Further forms of the decoder.
    more: Vec<PathBuf>,
    /// What `config.json` says of the text model; null where there is none.
    config: Value,
    /// Why a `config.json` that is there says nothing.
    unread: Option<String>,
}

impl ModelFiles {
    /// The files of a model. A folder stands for the variant of the model in it, or for its encoder and its decoder.
    ///
    /// # Errors
    /// A folder without the variant; a file that is another one.
    pub(super) fn locate(path: &Path, variant: Option<&str>) -> Result<Self> {
        if !path.is_dir() {
            return variant::is_of(path, variant).map(|()| Self::at(path));
        }
        let found = variant::inside(path, variant)?;
        let place = |name: String| path.join(name);
        Ok(ModelFiles {
            decoder: found.decoder.map(place),
            more: found.more.into_iter().map(place).collect(),
            ..Self::at(&path.join(found.model))
        })
    }

    /// A model file, and what is beside it. What is missing says nothing.
    pub(super) fn at(path: &Path) -> Self {
        let place = select::beside(path, "config.json");
        let (config, unread) = match disk::text(&place) {
            Ok(text) => match serde_json::from_str::<Value>(&text) {
                Ok(config) => (config, None),
                Err(e) => (Value::Null, Some(format!("not JSON: {e}"))),
            },
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => (Value::Null, None),
            Err(e) => (Value::Null, Some(e.to_string())),
        };
        let unread = unread.map(|why| format!("{} is not used: {why}", place.display()));
        // A text model inside another one has its own part.
        let config = match config.get("text_config") {
            Some(inner) => inner.clone(),
            None => config,
        };
        ModelFiles {
            path: path.to_owned(),
            decoder: None,
            more: Vec::new(),
            config,
            unread,
        }
    }

    /// Whether there is a configuration that can be read.
    pub(super) fn has_config(&self) -> bool {
        !self.config.is_null()
    }

    /// Reads and verifies the model, and puts functions and decided branches in place. An encoder and its decoder become one graph.
    pub(super) fn open(&self, events: OnEvent<'_>) -> Result<Verified> {
        if let Some(why) = &self.unread {
            let d = Diagnostic::warning("model-config", why.clone());
            events(&Event::Warning(
                d.help("the graph alone says what the model is"),
            ))?;
        }
        let model = api::flat(super::open(&self.path, events)?)?;
        let Some(decoder) = &self.decoder else {
            return Ok(model);
        };
        let decoder = api::flat(super::open(decoder, events)?)?;
        Ok(pipelines::joining(model).run(decoder)?.model)
    }

    /// Every file of the model, where encoder and decoder are files of their own.
    pub(super) fn parts(&self) -> Vec<PathBuf> {
        let Some(decoder) = &self.decoder else {
            return Vec::new();
        };
        let first = [&self.path, decoder].into_iter();
        first.chain(&self.more).cloned().collect()
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

    /// What the model is called: its name on the Hub, or that of its file, with that of its folder where the file has the name that all
    /// models have.
    pub(super) fn called(&self) -> String {
        if let Some(origin) = Origin::of(&self.path) {
            return origin.repo;
        }
        let path = std::path::absolute(&self.path).unwrap_or_else(|_| self.path.clone());
        let mut names = path.iter().rev().filter_map(|n| n.to_str());
        let file = names.next().unwrap_or_default();
        let usual = ["model", "encoder", "decoder"]
            .iter()
            .any(|n| file.starts_with(n));
        match names.find(|n| *n != "onnx") {
            Some(folder) if usual && folder != "/" => format!("{folder}/{file}"),
            _ => file.to_owned(),
        }
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
            dropout: dropout(&self.config),
            tied: self.config["tie_word_embeddings"].as_bool().unwrap_or(true),
            merged: false,
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
        let text = disk::text(select::beside(&self.path, "generation_config.json"));
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

    /// Number of positions that the model was made for, at which rows end unless a longer length was asked for.
    pub(super) fn within_positions(
        &self,
        asked: Option<usize>,
        events: OnEvent<'_>,
    ) -> Result<Option<usize>> {
        let most = self.positions();
        if let (Some(asked), Some(most)) = (asked, most)
            && asked > most
        {
            note(
                events,
                format!(
                    "warning: `max_seq_length` is {asked}, and the model was made for {most} positions; longer rows may fail"
                ),
            )?;
        }
        Ok(most)
    }

    /// Names of the classes in the order of their ids.
    pub(super) fn classes(&self) -> Option<Vec<String>> {
        let ids = self.config["label2id"].as_object()?;
        let ids = ids
            .iter()
            .filter_map(|(n, i)| Some((n.clone(), i.as_i64()?)));
        Some(in_order(ids))
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

/// The dropout that the Adapters library gives a head that has none of its own: that of the model's classifiers, or else of its hidden
/// states, under the names that types of models have for them.
fn dropout(config: &Value) -> f64 {
    let names = [
        "classifier_dropout",
        "classifier_dropout_prob",
        "seq_classif_dropout",
        "hidden_dropout_prob",
        "dropout",
        "resid_pdrop",
        "dropout_rate",
    ];
    let found = names.iter().find_map(|n| config[*n].as_f64());
    found.filter(|p| (0.0..1.0).contains(p)).unwrap_or(0.0)
}

/// Names in the order of their ids.
fn in_order(ids: impl Iterator<Item = (String, i64)>) -> Vec<String> {
    let mut names: Vec<(i64, String)> = ids.map(|(name, id)| (id, name)).collect();
    names.sort_unstable();
    names.into_iter().map(|(_, name)| name).collect()
}
