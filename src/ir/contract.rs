//! The contract between graphs and those who feed, read and rewrite them: names of graph inputs, graph outputs and metadata.
//!
//! Names that exporters use are Hugging Face's. Names that this library adds are its own, and a graph that has a value of that name
//! already is refused by the pass that would add it. No other file spells one of these names as a literal.

use super::Dim;

/// Graph input: token ids, `i64[batch, seq]`.
pub(crate) const INPUT_IDS: &str = "input_ids";
/// Graph input: 1 for every position that counts, `i64[batch, seq]`.
pub(crate) const ATTENTION_MASK: &str = "attention_mask";
/// Graph input: the position of every token in its text, `i64[batch, seq]`.
pub(crate) const POSITION_IDS: &str = "position_ids";
/// Graph input: the segment (first or second text) of every token, `i64[batch, seq]`.
pub(crate) const TOKEN_TYPE_IDS: &str = "token_type_ids";
/// Graph input of an encoder-decoder: token ids of the decoder, `i64[batch, target]`.
pub(crate) const DECODER_INPUT_IDS: &str = "decoder_input_ids";
/// Graph input of an encoder-decoder: 1 for every decoder position that counts, `i64[batch, target]`.
pub(crate) const DECODER_ATTENTION_MASK: &str = "decoder_attention_mask";
/// Graph input of a decoder that is a file of its own: what the encoder makes, `f32[batch, source, width]`.
pub(crate) const ENCODER_HIDDEN_STATES: &str = "encoder_hidden_states";
/// Graph input of such a decoder: 1 for every position of the encoder that counts, `i64[batch, source]`.
pub(crate) const ENCODER_ATTENTION_MASK: &str = "encoder_attention_mask";
/// Graph inputs that have one entry for each sample of a batch, by Hugging Face's names.
pub(crate) const ROWS: [&str; 15] = [
    INPUT_IDS,
    "inputs_embeds",
    "pixel_values",
    "input_features",
    "input_values",
    ATTENTION_MASK,
    POSITION_IDS,
    TOKEN_TYPE_IDS,
    ENCODER_HIDDEN_STATES,
    ENCODER_ATTENTION_MASK,
    "encoder_outputs",
    DECODER_INPUT_IDS,
    "decoder_inputs_embeds",
    DECODER_ATTENTION_MASK,
    "decoder_position_ids",
];
/// Graph output: scores of classes or tokens.
pub(crate) const LOGITS: &str = "logits";
/// Graph output: how well the answer begins at each token, `f32[batch, seq]`.
pub(crate) const START_LOGITS: &str = "start_logits";
/// Graph output: how well the answer ends at each token, `f32[batch, seq]`.
pub(crate) const END_LOGITS: &str = "end_logits";
/// Outputs of heads.
const OF_HEADS: [&str; 3] = [LOGITS, START_LOGITS, END_LOGITS];

/// Name of the output of one of several heads: `logits.NAME`.
pub(crate) fn of_head(output: &str, head: &str) -> String {
    format!("{output}.{head}")
}

/// The usual name of an output of one of several heads, and the head.
pub(crate) fn head_output(name: &str) -> Option<(&'static str, &str)> {
    let (output, head) = name.split_once('.')?;
    let usual = OF_HEADS.into_iter().find(|n| *n == output)?;
    Some((usual, head))
}

/// Graph output of a base model: its hidden states, `f32[batch, seq, width]`.
pub(crate) const LAST_HIDDEN_STATE: &str = "last_hidden_state";
/// Graph output of a base model: what its own pooler makes of them, `f32[batch, width]`.
pub(crate) const POOLER_OUTPUT: &str = "pooler_output";

/// Graph input that packing adds: the number of the example that a position belongs to, 0 for padding, `i64[batch, seq]`.
pub(crate) const SEGMENT_IDS: &str = "segment_ids";
/// Graph input that a `MultiTask` setup adds: the adapter of every sample, `i64[batch]`.
pub(crate) const TASK_IDS: &str = "task_ids";
/// What stands in front of the name of a graph input with the temperature of a fusion, a scalar; the fusion's name follows.
pub(crate) const FUSION_TEMPERATURE: &str = "adapter_fusion_temperature.";
/// The temperature that a fusion's training begins with, what every step of the model takes off, and where it ends.
pub(crate) const FIRST_TEMPERATURE: f32 = 50.0;
/// The second.
pub(crate) const COOLING: f32 = 0.05;
/// The third.
pub(crate) const LAST_TEMPERATURE: f32 = 1.0;
/// Graph input that many adapters in one graph add: the adapter of every sample, -1 for none, `i64[batch]` or `i64[1]` for all samples;
/// left out, none.
pub(crate) const ADAPTER_IDS: &str = "adapter_ids";
/// Owner of the nodes of adapters whose parameters are graph inputs: whichever adapter comes in.
pub(crate) const EXCHANGED: &str = "exchanged";
/// Graph input that adapters with layers to be skipped at run time add: whether each layer is, `bool[layers]`; left out, none.
pub(crate) const SKIP_LAYERS: &str = "adapter_skip_layers";
/// Graph input that a loss adds: labels. Their shape depends on the loss.
pub(crate) const LABELS: &str = "labels";
/// Graph input that a loss of answers adds: the token that the answer begins at, `i64[batch]`.
pub(crate) const START_POSITIONS: &str = "start_positions";
/// Graph input that a loss of answers adds: the token that the answer ends at, `i64[batch]`.
pub(crate) const END_POSITIONS: &str = "end_positions";
/// Graph input that a mean squared error adds: the values to reach, of the output's shape.
pub(crate) const TARGET: &str = "target";
/// Graph input that a summed loss is divided by, a scalar.
pub(crate) const NUM_ITEMS: &str = "num_items";
/// Graph output that a loss adds, a scalar.
pub(crate) const LOSS: &str = "loss";
/// Graph input with the positions whose logits are computed, `i64[batch, chosen]`.
pub(crate) const LOGIT_POSITIONS: &str = "logit_positions";
/// Graph input that a cache adds: 1 for every cached position that counts, `i64[batch, past_sequence]`.
pub(crate) const PAST_ATTENTION_MASK: &str = "past_attention_mask";

/// Graph input of a decoder of two branches (Optimum's merged ones), `bool[1]`: whether the branch that reads a cache is taken.
pub(crate) const USE_CACHE_BRANCH: &str = "use_cache_branch";

/// What stands in front of the name of a graph input with cached keys or values.
pub(crate) const PAST: &str = "past_key_values.";
/// Words of the name of a graph input with cached keys or values, as exporters other than Optimum write it.
const CACHES: [&str; 6] = ["cache", "caches", "kv", "kvcache", "past", "pkv"];
/// Words of the name of an input about a cache that is none.
const ABOUT_CACHES: [&str; 8] = [
    "branch", "ids", "index", "len", "length", "mask", "position", "seqlens",
];

/// Whether the name of a graph input says that it holds cached keys or values: `past_key_values.0.key`, and in other exports
/// `past_key_self_0`, `past_0`, `pkv.0.k`, `cache_k_0`, `layers.0.kv_cache`.
pub(crate) fn is_past(name: &str) -> bool {
    let low = name.to_lowercase();
    let words = || low.split(|c: char| !c.is_alphabetic());
    name.starts_with(PAST)
        || words().any(|w| CACHES.contains(&w)) && !words().any(|w| ABOUT_CACHES.contains(&w))
}

/// Words of the name of an input with keys or values, where a number says of which layer.
const PARTS: [&str; 4] = ["key", "keys", "value", "values"];
/// The other words that such a name may have.
const PLACES: [&str; 11] = [
    "attention",
    "attn",
    "block",
    "blocks",
    "cross",
    "decoder",
    "encoder",
    "layer",
    "layers",
    "model",
    "self",
];

/// Whether a graph input of this name and shape holds cached keys or values: by its name alone, or, where that but names keys or values
/// and a layer (`layer0.keys`), also by its shape: four axes, and more than the batch is open.
pub(crate) fn is_cache(name: &str, dims: Option<&[Dim]>) -> bool {
    let low = name.to_lowercase();
    let words = || {
        low.split(|c: char| !c.is_alphabetic())
            .filter(|w| !w.is_empty())
    };
    let known = words().all(|w| PARTS.contains(&w) || PLACES.contains(&w));
    let named = known && words().any(|w| PARTS.contains(&w));
    let layer = low.contains(|c: char| c.is_ascii_digit());
    let open = |dims: &[Dim]| {
        let mut behind = dims.iter().skip(1);
        dims.len() == 4 && behind.any(|d| !matches!(d, Dim::Known(_)))
    };
    is_past(name) || named && layer && dims.is_some_and(open)
}

/// What stands in front of the name of a graph output with a whole cache, in exports that have one.
pub(crate) const PRESENT: &str = "present.";
/// What stands in front of the name of a graph output with the keys or values of new positions.
pub(crate) const NEW: &str = "new_key_values.";
/// What stands in front of the name of a graph output with gates of an adapter, `[batch, gates]`; the adapter's module follows.
pub(crate) const GATING_SCORES: &str = "adapter_gating_scores.";
/// What stands in front of the name of a graph output with a fusion's weights, `[batch, positions, adapters]`; the fusion's module follows.
pub(crate) const FUSION_ATTENTIONS: &str = "adapter_fusion_attentions.";
/// What stands in front of the name of a graph output with a gradient.
pub(crate) const GRAD: &str = "grad/";

/// Name of the graph output with the gradient of a value.
pub(crate) fn grad(value: &str) -> String {
    format!("{GRAD}{value}")
}

/// Keys of `metadata_props`: what torch's exporter says of the modules that a node is in.
pub(crate) mod exporter {
    /// Paths of the modules around the node, outermost first, then its own name: a list as Python writes it.
    pub(crate) const SCOPES: &str = "pkg.torch.onnx.name_scopes";
    /// Their classes, in the same order.
    pub(crate) const CLASSES: &str = "pkg.torch.onnx.class_hierarchy";
    /// Both in one: `path: class/path: class/…`.
    pub(crate) const NAMESPACE: &str = "namespace";
    /// All of them.
    pub(crate) const ALL: [&str; 3] = [SCOPES, CLASSES, NAMESPACE];
}

/// Keys of `metadata_props`: what this library says of the nodes and values that it adds.
pub(crate) mod stamp {
    /// What all these keys begin with.
    pub(crate) const PREFIX: &str = "onnx_graft.";
    /// On nodes and initializers: the adapter's name.
    pub(crate) const ADAPTER: &str = "onnx_graft.adapter";
    /// On the node whose output takes the place of a value: that value's name.
    pub(crate) const REPLACES: &str = "onnx_graft.replaces";
    /// On the same node, where only some readers were moved: `node name/slot`, comma-separated.
    pub(crate) const READERS: &str = "onnx_graft.readers";
    /// On the same node: what kind of place it closes.
    pub(crate) const PLACE: &str = "onnx_graft.place";
    /// On the same node, where the length of outputs changes: their types in the base model, as JSON.
    pub(crate) const OUTPUTS: &str = "onnx_graft.outputs";
    /// On a node that cuts a batch into the children of a `Parallel`, or joins what they make.
    pub(crate) const CHANNELS: &str = "onnx_graft.channels";
    /// On a parameter: `trainable`, `frozen`, or `idle` (the library calls it trained, but nothing reads it).
    pub(crate) const PARAM: &str = "onnx_graft.param";
    /// On a parameter: further names of it in files, comma-separated.
    pub(crate) const ALIASES: &str = "onnx_graft.aliases";
    /// On a parameter: weight of its squared distance from the identity, which training adds to the loss.
    pub(crate) const TO_IDENTITY: &str = "onnx_graft.to_identity";
    /// On a tensor that holds a parameter of many adapters, one row for each: which rows are whose, as JSON.
    pub(crate) const ROWS: &str = "onnx_graft.rows";
    /// On the model: what is attached, as JSON.
    pub(crate) const MANIFEST: &str = "onnx_graft.manifest";
    /// On a node of an operator's definition: the operator that it stands for.
    pub(crate) const DEFINITION: &str = "onnx_graft.definition";
    /// A node that no gradient passes: what it makes counts as constant.
    pub(crate) const DETACHED: &str = "onnx_graft.detached";
    /// On a loop that hands on what it was in before each iteration, for its gradient: the number of outputs it had before.
    pub(crate) const RECORDED: &str = "onnx_graft.recorded";
    /// On a random node: the node whose draws it repeats.
    pub(crate) const DRAWS_AS: &str = "onnx_graft.draws_as";
}

#[cfg(test)]
mod tests {
    use super::{Dim, is_cache, is_past};

    #[test]
    fn caches_are_known_by_their_names() {
        for name in [
            "past_key_values.0.key",
            "past_key_values.3.decoder.value",
            "past_key_self_0",
            "past_value_cross_11",
            "past_0",
            "pkv.0.k",
            "past.0.key",
            "cache_k_0",
            "k_cache.7",
            "kv_cache_0",
            "model.layers.0.KV_Cache",
        ] {
            assert!(is_past(name), "{name}");
        }
        for name in [
            "input_ids",
            "attention_mask",
            "past_attention_mask",
            "past_sequence_length",
            "cache_position",
            "use_cache_branch",
            "pastry",
            "key_0",
        ] {
            assert!(!is_past(name), "{name}");
        }
    }

    #[test]
    fn keys_of_a_layer_are_a_cache_by_their_shape() {
        let open = Dim::Symbol("p".into());
        let known = |n| Dim::Known(n);
        let cache = [open.clone(), known(2), open.clone(), known(8)];
        let table = [open.clone(), known(2), known(4), known(8)];
        for name in ["layer0.keys", "layers.1.value", "key_0"] {
            assert!(is_cache(name, Some(&cache)), "{name}");
            assert!(!is_cache(name, Some(&table)), "{name}");
            assert!(!is_cache(name, Some(&cache[..3])), "{name}");
            assert!(!is_cache(name, None), "{name}");
        }
        assert!(!is_cache("keys", Some(&cache)));
        assert!(!is_cache("pixel_values_0", Some(&cache)));
        assert!(is_cache("past_0", None));
    }
}
