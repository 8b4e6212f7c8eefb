//! Names of parameters: which module of the saving model holds which adapter.
//!
//! The library has two routes with different module trees. Through an interface ("plugin") every architecture has the same names;
//! the library's own model classes ("native") differ among themselves, and some of them also differ in what they compute.

use crate::select::{AttentionSite, Layer, Selection};
use std::fmt;

/// How the library integrated the adapter that a file or a fresh configuration stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// Through an adapter model interface.
    Plugin,
    /// By the library's own class for this model type.
    Native {
        /// `config.model_type`.
        model_type: Box<str>,
    },
}

/// Model types that the library supports without an interface.
const NATIVE: [&str; 29] = [
    "albert",
    "bart",
    "beit",
    "bert",
    "bert-generation",
    "clip",
    "clip_text_model",
    "clip_vision_model",
    "deberta",
    "deberta-v2",
    "distilbert",
    "electra",
    "encoder-decoder",
    "gpt2",
    "gptj",
    "llama",
    "mbart",
    "mistral",
    "mt5",
    "plbart",
    "roberta",
    "t5",
    "vit",
    "whisper",
    "xlm-roberta",
    "xmod",
    "deberta_v2",
    "xlm_roberta",
    "bert_generation",
];

/// Which sublayer a bottleneck sits behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Sublayer {
    /// Self-attention (`mh_adapter`).
    Attention,
    /// Cross-attention (`cross_adapter`).
    Cross,
    /// The feed-forward block (`output_adapter`).
    Output,
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Route::Plugin => f.write_str("plugin"),
            Route::Native { model_type } => write!(f, "native:{model_type}"),
        }
    }
}

impl Route {
    /// The native route of a model type, if the library has one.
    pub fn native(model_type: &str) -> Option<Route> {
        NATIVE.contains(&model_type).then(|| Route::Native {
            model_type: model_type.into(),
        })
    }

    fn family(&self) -> &str {
        match self {
            Route::Plugin => "",
            Route::Native { model_type } => match &**model_type {
                "roberta" | "xlm-roberta" | "electra" | "bert-generation" | "xmod" | "deberta"
                | "deberta-v2" => "bert",
                "mistral" => "llama",
                "mt5" => "t5",
                other => other,
            },
        }
    }

    /// Native Llama and Mistral register the two feed-forward linears under each other's flag.
    pub fn swaps_feed_forward(&self) -> bool {
        self.family() == "llama"
    }

    /// Through an interface, the library looks the post-norm of every layer up in the last one.
    pub fn binds_norms_late(&self) -> bool {
        *self == Route::Plugin
    }

    /// The module that holds the bottlenecks of a sublayer.
    pub fn bottleneck(&self, layer: &Layer, sublayer: Sublayer) -> String {
        let path = &*layer.path;
        let t5 = |n: usize| format!("{path}.layer.{n}");
        let last = if layer.cross_attn.is_some() { 2 } else { 1 };
        match (self.family(), sublayer) {
            ("bert", Sublayer::Attention) => format!("{path}.attention.output"),
            ("bert", Sublayer::Cross) => format!("{path}.crossattention.output"),
            ("bert", Sublayer::Output) => format!("{path}.output"),
            ("vit", Sublayer::Output) => format!("{path}.output.output_adapters"),
            ("albert", Sublayer::Attention) => format!("{path}.attention.attention_adapters"),
            ("t5", Sublayer::Attention) => t5(0),
            ("t5", Sublayer::Cross) => t5(1),
            ("t5", Sublayer::Output) => t5(last),
            (_, Sublayer::Attention) => format!("{path}.attention_adapters"),
            (_, Sublayer::Cross) => format!("{path}.cross_attention_adapters"),
            (_, Sublayer::Output) => format!("{path}.output_adapters"),
        }
    }

    /// The module that holds the prefixes of an attention: its projections' parent.
    pub fn prefix(site: &AttentionSite) -> Option<String> {
        let projection = site.q.as_ref().or(site.qkv.as_ref())?;
        let parent = projection.path.rsplit_once('.').map_or("", |(p, _)| p);
        Some(inside(parent, "prefix_tuning"))
    }

    /// The library's key of the prefixes of an attention.
    pub fn prefix_location(&self, encoder: bool, cross: bool) -> &'static str {
        match self.family() {
            "distilbert" => "self",
            "clip_text_model" => "clip_text_model_self_prefix",
            "clip_vision_model" => "clip_vision_model_self_prefix",
            _ if cross => "cross_prefix",
            _ if encoder => "encoder_prefix",
            _ => "self_prefix",
        }
    }

    /// The module that holds the invertible adapters.
    pub fn invertible(&self, selection: &Selection) -> String {
        let base = &selection.base_prefix;
        let encoder = *self != Route::Plugin && selection.layers.iter().any(|l| l.stack > 0);
        let inner = if encoder { "encoder." } else { "" };
        format!("{base}{inner}invertible_adapters")
    }
}

/// What stands between a module's path and a parameter's own name, for the adapter `name`.
pub(crate) fn scope(module: &str, kind: &str, name: &str) -> String {
    if kind.is_empty() {
        format!("{module}.{name}")
    } else {
        format!("{module}.{kind}.{name}")
    }
}

fn inside(module: &str, name: &str) -> String {
    if module.is_empty() {
        name.to_owned()
    } else {
        format!("{module}.{name}")
    }
}

/// The pieces of a key that mark it as an adapter's, by the library's own test; the adapter's name and a dot follow.
pub(crate) const MARKS: [&str; 8] = [
    "_adapters.",
    ".adapters.",
    ".prefix_tunings.",
    ".prefix_gates.",
    ".loras.",
    ".refts.",
    ".prompt_tunings.",
    ".shared_parameters.",
];

/// Whether a key belongs to the adapter `name`. A key may begin with a mark, without its leading dot.
pub(crate) fn belongs(key: &str, name: &str) -> bool {
    position(key, name).is_some()
}

/// Byte range of the adapter's name in a key of the adapter `name`.
fn position(key: &str, name: &str) -> Option<std::ops::Range<usize>> {
    MARKS.iter().find_map(|mark| {
        let bare = mark.trim_start_matches('.');
        let starts = key
            .match_indices(mark)
            .map(|(at, m)| at + m.len())
            .chain(key.starts_with(bare).then_some(bare.len()));
        starts
            .filter(|&at| key[at..].starts_with(name) && key[at + name.len()..].starts_with('.'))
            .map(|at| at..at + name.len())
            .next()
    })
}

/// The key with another adapter's name; unchanged if it is not a key of `old`.
pub(crate) fn renamed(key: &str, old: &str, new: &str) -> String {
    match position(key, old) {
        Some(range) => format!("{}{new}{}", &key[..range.start], &key[range.end..]),
        None => key.to_owned(),
    }
}

/// Names of the library's first versions, and what they became.
pub(crate) fn modern(key: &str) -> String {
    const OLD: [(&str, &str); 5] = [
        ("attention_text_task_adapters", "adapters"),
        ("attention_text_lang_adapters", "adapters"),
        ("layer_text_task_adapters", "adapters"),
        ("layer_text_lang_adapters", "adapters"),
        ("invertible_lang_adapters", "invertible_adapters"),
    ];
    let mut key = key.to_owned();
    for (old, new) in OLD {
        if key.contains(old) {
            key = key.replace(old, new);
        }
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_recognised_and_renamed() {
        let keys = [
            "model.layers.0.self_attn.q_proj.loras.a.lora_A",
            "model.layers.0.output_adapters.adapters.a.adapter_up.bias",
            "invertible_adapters.a.F.0.weight",
            "shared_parameters.a.phm_rule",
            "prompt_tuning.prompt_tunings.a.prompt_embedding.weight",
        ];
        for key in keys {
            assert!(belongs(key, "a"), "{key}");
            assert!(!belongs(key, "b"), "{key}");
            let there = renamed(key, "a", "new.name");
            assert_eq!(there, key.replace(".a.", ".new.name."));
        }
        assert!(!belongs("lm_head.weight", "a"));
        assert!(!belongs("model.layers.0.mlp.loras.ab.lora_A", "a"));
        assert_eq!(
            modern("bert.invertible_lang_adapters.a.F.0.bias"),
            "bert.invertible_adapters.a.F.0.bias"
        );
    }
}
