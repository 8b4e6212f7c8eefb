//! The fields of an interface, once: what each is called, what its path is relative to, and what stands for it in a layer.

use super::interface::{Fields, PerStack};
use super::site::{AttentionSite, Layer, LinearSite, NormSite};
use crate::ir::ValueId;
use std::fmt;

/// A place that an interface can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub(crate) enum Field {
    /// Key projection.
    AttnKProj,
    /// Output projection of the attention.
    AttnOProj,
    /// Query projection.
    AttnQProj,
    /// Fused projection of query, key and value.
    AttnQkvProj,
    /// Value projection.
    AttnVProj,
    /// A layer's input; only a name of the graph can stand for it.
    Layer,
    /// A layer's output; only a name of the graph can stand for it.
    LayerOutput,
    /// Cross-attention module.
    LayerCrossAttn,
    /// Projection of a gated feed-forward block whose output goes through the activation.
    LayerGateProj,
    /// First projection of the feed-forward block.
    LayerIntermediateProj,
    /// Norm behind self-attention.
    LayerLn1,
    /// Norm behind the feed-forward block.
    LayerLn2,
    /// Norm behind cross-attention.
    LayerLnCross,
    /// Last projection of the feed-forward block.
    LayerOutputProj,
    /// Module whose input is the residual of cross-attention.
    LayerPreCrossAttn,
    /// Module whose input is the residual of the feed-forward block.
    LayerPreFfn,
    /// Module whose input is the residual of self-attention.
    LayerPreSelfAttn,
    /// Self-attention module.
    LayerSelfAttn,
    /// Module whose output is the embedded input.
    ModelEmbeddings,
    /// The list of layers.
    ModelLayers,
    /// A linear that no other field names.
    Linear,
    /// Projection onto the vocabulary; only a name of the graph can stand for it.
    OutputEmbeddings,
}

/// What the path of a field is relative to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Base {
    /// The base model.
    Model,
    /// One layer.
    Layer,
    /// The attention module.
    Attention,
}

/// A field that holds a path.
pub(super) struct Row {
    pub(super) field: Field,
    pub(super) base: Base,
    /// Whether an interface must have it.
    pub(super) required: bool,
    /// Where the file's text stands.
    pub(super) path: fn(&Fields) -> &PerStack,
}

/// A [`Row`]; the name of the struct's field is that of the interface's.
macro_rules! row {
    ($field:ident, $base:ident, $required:literal, $name:ident) => {
        Row {
            field: Field::$field,
            base: Base::$base,
            required: $required,
            path: |f| &f.$name,
        }
    };
}

/// The fields that hold paths, in the order of their names.
pub(super) const PATHS: [Row; 18] = [
    row!(AttnKProj, Attention, false, attn_k_proj),
    row!(AttnOProj, Attention, true, attn_o_proj),
    row!(AttnQProj, Attention, false, attn_q_proj),
    row!(AttnQkvProj, Attention, false, attn_qkv_proj),
    row!(AttnVProj, Attention, false, attn_v_proj),
    row!(LayerCrossAttn, Layer, false, layer_cross_attn),
    row!(LayerGateProj, Layer, false, layer_gate_proj),
    row!(LayerIntermediateProj, Layer, true, layer_intermediate_proj),
    row!(LayerLn1, Layer, false, layer_ln_1),
    row!(LayerLn2, Layer, false, layer_ln_2),
    row!(LayerLnCross, Layer, false, layer_ln_cross),
    row!(LayerOutputProj, Layer, true, layer_output_proj),
    row!(LayerPreCrossAttn, Layer, false, layer_pre_cross_attn),
    row!(LayerPreFfn, Layer, false, layer_pre_ffn),
    row!(LayerPreSelfAttn, Layer, false, layer_pre_self_attn),
    row!(LayerSelfAttn, Layer, false, layer_self_attn),
    row!(ModelEmbeddings, Model, true, model_embeddings),
    row!(ModelLayers, Model, true, model_layers),
];

/// What only names of the graph can stand for.
pub(super) const GRAPH_ONLY: [Field; 3] =
    [Field::Layer, Field::LayerOutput, Field::OutputEmbeddings];

impl Field {
    /// The name in an interface file.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Field::AttnKProj => "attn_k_proj",
            Field::AttnOProj => "attn_o_proj",
            Field::AttnQProj => "attn_q_proj",
            Field::AttnQkvProj => "attn_qkv_proj",
            Field::AttnVProj => "attn_v_proj",
            Field::Layer => "layer",
            Field::LayerOutput => "layer.output",
            Field::LayerCrossAttn => "layer_cross_attn",
            Field::LayerGateProj => "layer_gate_proj",
            Field::LayerIntermediateProj => "layer_intermediate_proj",
            Field::LayerLn1 => "layer_ln_1",
            Field::LayerLn2 => "layer_ln_2",
            Field::LayerLnCross => "layer_ln_cross",
            Field::LayerOutputProj => "layer_output_proj",
            Field::LayerPreCrossAttn => "layer_pre_cross_attn",
            Field::LayerPreFfn => "layer_pre_ffn",
            Field::LayerPreSelfAttn => "layer_pre_self_attn",
            Field::LayerSelfAttn => "layer_self_attn",
            Field::ModelEmbeddings => "model_embeddings",
            Field::ModelLayers => "model_layers",
            Field::Linear => "linear",
            Field::OutputEmbeddings => "output_embeddings",
        }
    }

    /// The field of a name.
    pub(super) fn of(name: &str) -> Option<Field> {
        let paths = PATHS.iter().map(|r| r.field);
        paths.chain(GRAPH_ONLY).find(|f| f.name() == name)
    }

    /// What an interface says of it: nothing for what only names of the graph can stand for.
    pub(super) fn path(self, fields: &Fields, stack: usize) -> Option<&str> {
        let row = PATHS.iter().find(|r| r.field == self)?;
        (row.path)(fields).get(stack)
    }

    /// Whether its path begins at the attention module.
    pub(super) fn is_of_attention(self) -> bool {
        let mut rows = PATHS.iter();
        rows.any(|r| r.field == self && r.base == Base::Attention)
    }

    /// The value that stands for it in a layer; for those of the attention, in all attention modules that the layer has.
    pub(super) fn value(self, layer: &Layer) -> Option<ValueId> {
        let linear = |s: &Option<LinearSite>| s.as_ref().map(|s| s.output);
        let norm = |s: &Option<NormSite>| s.as_ref().map(|s| s.output);
        let attention = |pick: &dyn Fn(&AttentionSite) -> Option<ValueId>| {
            let all: Vec<Option<ValueId>> = [&layer.self_attn, &layer.cross_attn]
                .into_iter()
                .flatten()
                .map(pick)
                .collect();
            let whole = all.iter().all(Option::is_some);
            whole.then(|| all.first().copied().flatten()).flatten()
        };
        match self {
            Field::LayerSelfAttn => layer.self_attn.as_ref().map(|a| a.output),
            Field::LayerCrossAttn => layer.cross_attn.as_ref().map(|a| a.output),
            Field::AttnQProj => attention(&|a| linear(&a.q)),
            Field::AttnKProj => attention(&|a| linear(&a.k)),
            Field::AttnVProj => attention(&|a| linear(&a.v)),
            Field::AttnQkvProj => attention(&|a| linear(&a.qkv)),
            Field::AttnOProj => attention(&|a| linear(&a.o)),
            Field::LayerGateProj => linear(&layer.gate_proj),
            Field::LayerIntermediateProj => linear(&layer.intermediate),
            Field::LayerOutputProj => linear(&layer.output_proj),
            Field::LayerPreSelfAttn => layer.pre_self_attn,
            Field::LayerPreCrossAttn => layer.pre_cross_attn,
            Field::LayerPreFfn => layer.pre_ffn,
            Field::LayerLn1 => norm(&layer.ln_1),
            Field::LayerLnCross => norm(&layer.ln_cross),
            Field::LayerLn2 => norm(&layer.ln_2),
            Field::Layer => Some(layer.input),
            Field::LayerOutput => Some(layer.output),
            Field::ModelEmbeddings
            | Field::ModelLayers
            | Field::OutputEmbeddings
            | Field::Linear => None,
        }
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
