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
pub(crate) enum Sublayer {
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
    pub(crate) fn native(model_type: &str) -> Option<Route> {
        NATIVE.contains(&model_type).then(|| Route::Native {
            model_type: model_type.into(),
        })
    }

    /// The route of its text.
    pub(crate) fn named(text: &str) -> Option<Route> {
        match text.split_once(':') {
            Some(("native", model_type)) => Some(Route::Native {
                model_type: model_type.into(),
            }),
            Some(_) => None,
            None => (text == "plugin").then_some(Route::Plugin),
        }
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
    pub(crate) fn swaps_feed_forward(&self) -> bool {
        self.family() == "llama"
    }

    /// Native ALBERT gives the adapter behind attention what enters the layer, and the attention's output as the residual.
    pub(crate) fn swaps_attention(&self) -> bool {
        self.family() == "albert"
    }

    /// Native GPT-J runs both sublayers side by side: to the adapter behind the feed-forward block, the residual is the stream with the
    /// attention's output.
    pub(crate) fn runs_side_by_side(&self) -> bool {
        self.family() == "gptj"
    }

    /// Through an interface, the library looks the post-norm of every layer up in the last one.
    pub(crate) fn binds_norms_late(&self) -> bool {
        *self == Route::Plugin
    }

    /// The configuration's word for the bottleneck of a sublayer; `None` where the library has none. BERT's classes take their
    /// cross-attention for an attention.
    pub(crate) fn location(&self, sublayer: Sublayer) -> Option<&'static str> {
        match (self.family(), sublayer) {
            (_, Sublayer::Attention) | ("bert" | "encoder-decoder", Sublayer::Cross) => {
                Some("mh_adapter")
            }
            ("gpt2", Sublayer::Cross) => None,
            (_, Sublayer::Cross) => Some("cross_adapter"),
            (_, Sublayer::Output) => Some("output_adapter"),
        }
    }

    /// Whether a model of two models has one room for adapters in each: an `encoder-decoder` of two BERTs.
    fn has_rooms(&self) -> bool {
        self.family() == "encoder-decoder"
    }

    /// The path of the model that a layer belongs to, with a dot behind it.
    pub(crate) fn room(&self, selection: &Selection, layer: &Layer) -> String {
        let list = layer.path.rsplit_once('.').map_or("", |(list, _)| list);
        match list.strip_suffix("encoder.layer") {
            Some(room) if self.has_rooms() => room.to_owned(),
            Some(_) | None => selection.base_prefix.to_string(),
        }
    }

    fn rooms(&self, selection: &Selection) -> Vec<String> {
        if !self.has_rooms() {
            return vec![selection.base_prefix.to_string()];
        }
        let mut out: Vec<String> = Vec::new();
        for layer in &selection.layers {
            let room = self.room(selection, layer);
            if !out.contains(&room) {
                out.push(room);
            }
        }
        out
    }

    /// The module that holds what all places share.
    pub(crate) fn shared(&self, selection: &Selection) -> String {
        let base = selection.base_prefix.to_string();
        let room = self.rooms(selection).into_iter().next().unwrap_or(base);
        format!("{room}shared_parameters")
    }

    /// Where else the library has the parameters of a scope.
    pub(crate) fn copies(&self, selection: &Selection, scope: &str) -> Vec<String> {
        if !self.has_rooms() {
            return Vec::new();
        }
        let rooms = self.rooms(selection);
        let Some((first, others)) = rooms.split_first() else {
            return Vec::new();
        };
        let Some(rest) = scope.strip_prefix(first.as_str()) else {
            return Vec::new();
        };
        let invertible = rest.starts_with("invertible_adapters.");
        if !invertible && !rest.starts_with("shared_parameters.") {
            return Vec::new();
        }
        let whole = invertible.then(|| rest.to_owned());
        let copies = others.iter().map(|room| format!("{room}{rest}"));
        copies.chain(whole).collect()
    }

    /// The module that holds the bottlenecks of a sublayer.
    pub(crate) fn bottleneck(&self, layer: &Layer, sublayer: Sublayer) -> String {
        let path = &*layer.path;
        let t5 = |n: usize| format!("{path}.layer.{n}");
        let last = if layer.cross_attn.is_some() { 2 } else { 1 };
        match (self.family(), sublayer) {
            ("bert" | "encoder-decoder", Sublayer::Attention) => format!("{path}.attention.output"),
            ("bert" | "encoder-decoder", Sublayer::Cross) => {
                format!("{path}.crossattention.output")
            }
            ("bert" | "encoder-decoder", Sublayer::Output) => format!("{path}.output"),
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
    pub(crate) fn prefix(site: &AttentionSite) -> Option<String> {
        let projection = site.q.as_ref().or(site.qkv.as_ref())?;
        let parent = projection.path.rsplit_once('.').map_or("", |(p, _)| p);
        Some(inside(parent, "prefix_tuning"))
    }

    /// The library's key of the prefixes of an attention.
    pub(crate) fn prefix_location(
        &self,
        layer: &Layer,
        encoder: bool,
        cross: bool,
    ) -> &'static str {
        match self.family() {
            "distilbert" => "self",
            "clip" if layer.path.starts_with("vision_model.") => "clip_vision_model_self_prefix",
            "clip" | "clip_text_model" => "clip_text_model_self_prefix",
            "clip_vision_model" => "clip_vision_model_self_prefix",
            _ if cross => "cross_prefix",
            "encoder-decoder" => "self_prefix",
            _ if encoder => "encoder_prefix",
            _ => "self_prefix",
        }
    }

    /// Whether a parameter that is of no layer belongs to a stack in another file of the model: a prefix, or what stands behind the
    /// encoder's embeddings.
    pub(crate) fn is_elsewhere(selection: &Selection, key: &str) -> bool {
        let has = |location: &str| key.contains(&format!(".{location}."));
        let of_encoder = |l: &Layer| l.stack == 0 && l.cross_attn.is_none();
        let encoder = selection.layers.iter().any(of_encoder);
        let decoder = !selection.layers.iter().all(of_encoder);
        selection.lacks_a_stack()
            && (!encoder && (has("encoder_prefix") || has("encoder.invertible_adapters"))
                || !decoder && (has("self_prefix") || has("cross_prefix")))
    }

    /// The module that holds the invertible adapters.
    pub(crate) fn invertible(&self, selection: &Selection) -> String {
        let base = &selection.base_prefix;
        let native = *self != Route::Plugin;
        let inner = if native && self.family().starts_with("clip") {
            "text_model."
        } else if native
            && (selection.lacks_a_stack() || selection.layers.iter().any(|l| l.stack > 0))
        {
            "encoder."
        } else {
            ""
        };
        format!("{base}{inner}invertible_adapters")
    }

    /// Whether the library's class has invertible adapters behind the module that the interface names, and not in front of the first
    /// layer: the embeddings are narrower than the stream, or there are none (audio).
    pub(crate) fn inverts_embeddings(&self) -> bool {
        match self {
            Route::Plugin => true,
            Route::Native { model_type } => {
                ["albert", "electra", "whisper"].contains(&&**model_type)
            }
        }
    }

    /// Whether the library's class drops the bias by relative position where the attention of the layer before has another number of
    /// keys, and keeps it in its first layer only.
    pub(crate) fn drops_uneven_bias(&self) -> bool {
        self.family() == "t5"
    }

    /// What the library's class puts into its mask in front of the padding for a prompt. `DistilBERT`'s is added to the scores, and gets
    /// ones all the same.
    pub(crate) fn prompt_mask(&self) -> f32 {
        if self.family() == "distilbert" {
            1.0
        } else {
            0.0
        }
    }

    /// Whether each stack of layers counts its own positions, as two models that were put together do.
    pub(crate) fn counts_positions_apart(&self) -> bool {
        self.has_rooms()
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
pub(crate) const MARKS: [&str; 10] = [
    "_adapters.",
    ".adapters.",
    ".adapter_fusion_layer.",
    ".prefix_tunings.",
    ".prefix_gates.",
    ".loras.",
    ".modules_to_save.",
    ".refts.",
    ".prompt_tunings.",
    ".shared_parameters.",
];

/// Whether a key belongs to the adapter `name`. A key may begin with a mark, without its leading dot.
pub(crate) fn belongs(key: &str, name: &str) -> bool {
    position(key, name).is_some()
}

/// Whether a key belongs to an adapter of any name.
pub(crate) fn of_any(key: &str) -> bool {
    MARKS.iter().any(|mark| {
        let bare = mark.trim_start_matches('.');
        key.contains(mark) || key.starts_with(bare)
    })
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

/// The key without the adapter's name and the module that is there for it alone; unchanged if it is not a key of `name`.
pub(crate) fn nameless(key: &str, name: &str) -> String {
    let Some(range) = position(key, name) else {
        return key.to_owned();
    };
    let (before, behind) = (&key[..range.start], &key[range.end + 1..]);
    let own = |mark: &&&str| mark.starts_with('.') && before.ends_with(**mark);
    let kept = match MARKS.iter().find(own) {
        Some(mark) => &before[..=before.len() - mark.len()],
        None => before,
    };
    format!("{kept}{behind}")
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
        let short = keys.map(|key| nameless(key, "a"));
        assert_eq!(
            short,
            [
                "model.layers.0.self_attn.q_proj.lora_A",
                "model.layers.0.output_adapters.adapter_up.bias",
                "invertible_adapters.F.0.weight",
                "shared_parameters.phm_rule",
                "prompt_tuning.prompt_embedding.weight",
            ]
        );
        assert!(!belongs("lm_head.weight", "a"));
        assert!(!belongs("model.layers.0.mlp.loras.ab.lora_A", "a"));
        assert_eq!(
            modern("bert.invertible_lang_adapters.a.F.0.bias"),
            "bert.invertible_adapters.a.F.0.bias"
        );
    }
}
