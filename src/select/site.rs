//! Sites: the places of a graph that an interface names, as values and nodes.
//!
//! Nothing here looks at a graph or changes one, [`NormSite::apply`] apart, which copies nodes into a fragment.

use super::modules::Witness;
use crate::diag::Diagnostic;
use crate::ir::{Builder, Graph, NodeId, Val, ValueId};
use std::fmt;

/// Everything that an interface selects in one graph.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// What stands before the base model's own paths in the exported model's state dict: `"model."` for a causal LM, `""` for a
    /// bare base model. `base_prefix + interface.model_layers` is the path of the layer list.
    pub base_prefix: Box<str>,
    /// Width of the residual stream; 0 when it is not known.
    pub hidden_size: usize,
    /// The embedding module, one site for each call (an encoder-decoder calls a shared one twice). Empty when the graph starts
    /// behind it, which is a finding in `misses`.
    pub embeddings: Vec<ModuleSite>,
    /// The projection onto the vocabulary, where the graph has one.
    pub output_embeddings: Option<LinearSite>,
    /// Layers in execution order. A layer that is called more than once is here once for each call.
    pub layers: Vec<Layer>,
    /// Findings that do not stop the selection: places a fused operator swallowed, embeddings outside the graph.
    pub misses: Vec<Diagnostic>,
    /// Why each place was chosen.
    pub decisions: Vec<Decision>,
}

/// What one field of the interface was found to be, and by which witness.
#[derive(Clone, Debug)]
pub struct Decision {
    /// Layer id; `None` for the whole model.
    pub layer: Option<usize>,
    /// Interface field.
    pub field: &'static str,
    /// Full module path.
    pub path: Box<str>,
    /// The value that stands for it: what enters, for the `layer_pre_*` fields, else what leaves.
    pub value: ValueId,
    /// How it is known.
    pub witness: Witness,
}

/// One call of one layer.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Layer id, as `leave_out` counts: over all stacks, the encoder's first. All calls of a shared layer have one id.
    pub index: usize,
    /// Which call of the layer this is; 0 unless the model shares layers.
    pub call: usize,
    /// Which entry of `model_layers`.
    pub stack: usize,
    /// Full module path: `model.layers.0`.
    pub path: Box<str>,
    /// Hidden state that enters.
    pub input: ValueId,
    /// Hidden state that leaves.
    pub output: ValueId,
    /// `layer_self_attn` and the projections in it.
    pub self_attn: Option<AttentionSite>,
    /// `layer_cross_attn` and the projections in it.
    pub cross_attn: Option<AttentionSite>,
    /// `layer_intermediate_proj`.
    pub intermediate: Option<LinearSite>,
    /// `layer_output_proj`.
    pub output_proj: Option<LinearSite>,
    /// The value that enters the module of `layer_pre_self_attn`: the residual of the attention sublayer.
    pub pre_self_attn: Option<ValueId>,
    /// The value that enters the module of `layer_pre_cross_attn`.
    pub pre_cross_attn: Option<ValueId>,
    /// The value that enters the module of `layer_pre_ffn`.
    pub pre_ffn: Option<ValueId>,
    /// `layer_ln_1`: the norm behind self-attention.
    pub ln_1: Option<NormSite>,
    /// `layer_ln_cross`: the norm behind cross-attention.
    pub ln_cross: Option<NormSite>,
    /// `layer_ln_2`: the norm behind the feed-forward block.
    pub ln_2: Option<NormSite>,
}

/// A module that is tapped at its boundary.
#[derive(Clone, Debug)]
pub struct ModuleSite {
    /// Full module path.
    pub path: Box<str>,
    /// Its activation input; `None` where none is one (token ids and images are not).
    pub input: Option<ValueId>,
    /// Its output.
    pub output: ValueId,
}

/// An attention module.
#[derive(Clone, Debug)]
pub struct AttentionSite {
    /// Full module path.
    pub path: Box<str>,
    /// Query projection.
    pub q: Option<LinearSite>,
    /// Key projection.
    pub k: Option<LinearSite>,
    /// Value projection.
    pub v: Option<LinearSite>,
    /// Fused projection, where the interface names one.
    pub qkv: Option<LinearSite>,
    /// Columns of q, k and v in the fused projection's output.
    pub qkv_layout: Option<QkvLayout>,
    /// Output projection.
    pub o: Option<LinearSite>,
    /// What leaves the attention module.
    pub output: ValueId,
}

/// How q, k and v lie in a fused projection's output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QkvLayout {
    /// `[q | k | v]`, with these widths.
    Blocks {
        /// Width of q.
        q: usize,
        /// Width of k.
        k: usize,
        /// Width of v.
        v: usize,
    },
    /// Interleaved by head: `[h0: q k v | h1: q k v | …]`, or an order that could not be told.
    Interleaved,
}

/// What a linear is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// `attn_q_proj`.
    Query,
    /// `attn_k_proj`.
    Key,
    /// `attn_v_proj`.
    Value,
    /// `attn_qkv_proj`.
    Qkv,
    /// `attn_o_proj`.
    AttentionOutput,
    /// `layer_intermediate_proj`.
    Intermediate,
    /// `layer_output_proj`.
    Output,
    /// The projection onto the vocabulary.
    Head,
}

impl Role {
    /// The interface field that names this role; the head has none.
    pub fn field(self) -> &'static str {
        match self {
            Role::Query => "attn_q_proj",
            Role::Key => "attn_k_proj",
            Role::Value => "attn_v_proj",
            Role::Qkv => "attn_qkv_proj",
            Role::AttentionOutput => "attn_o_proj",
            Role::Intermediate => "layer_intermediate_proj",
            Role::Output => "layer_output_proj",
            Role::Head => "output_embeddings",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.field())
    }
}

/// One call of a linear module: `output = input · weight + bias`.
#[derive(Clone, Debug)]
pub struct LinearSite {
    /// What it is for.
    pub role: Role,
    /// Full module path: `model.layers.0.self_attn.q_proj`.
    pub path: Box<str>,
    /// What it reads. Has `d_in` as its last axis.
    pub input: ValueId,
    /// What it makes, bias included. Has `d_out` as its last axis and the leading axes of the hidden state, where the graph has
    /// such a value (a `Gemm` between two `Reshape`s gives the second one's).
    pub output: ValueId,
    /// What the multiplication itself reads and makes, bias included. Where an exporter put it between two `Reshape`s these are rows
    /// `[tokens, width]`; else they are `input` and `output`. `input` equals the first when the graph has no value of its width with
    /// the leading axes of the output.
    pub rows: (ValueId, ValueId),
    /// Its nodes, in execution order.
    pub nodes: Vec<NodeId>,
    /// The weight.
    pub weight: WeightUse,
    /// The module's bias, where a fused reader (`BiasGelu`, `SkipLayerNormalization`) adds it: `output` is without it then.
    pub late_bias: Option<ValueId>,
    /// Width of the input.
    pub d_in: usize,
    /// Width of the output.
    pub d_out: usize,
    /// For a projection that an exporter or optimizer fused with others: the first of its columns in the fused output, whose width
    /// is the weight's. `d_out` columns from there are this site's; `output` is the value that holds only them.
    pub column: Option<usize>,
    /// The node behind which new nodes belong.
    pub anchor: NodeId,
    /// Further calls of the same module in the same layer (relative positions in DeBERTa).
    pub other_calls: Vec<LinearSite>,
}

impl LinearSite {
    /// This call and the other ones.
    pub fn calls(&self) -> impl Iterator<Item = &LinearSite> {
        std::iter::once(self).chain(&self.other_calls)
    }
}

/// The weight of a linear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightUse {
    /// The stored weight: an initializer, in the element type of the file.
    pub value: ValueId,
    /// The float weight as the multiplication reads it, where that is another value (dequantized, transposed, cast).
    pub read: ValueId,
    /// Axes of `value`.
    pub layout: Layout,
    /// The bias, a vector of the output's width.
    pub bias: Option<ValueId>,
    /// How the numbers are stored.
    pub form: WeightForm,
}

/// Axes of a stored weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// `[in, out]`.
    InOut,
    /// `[out, in]`, perhaps with further axes of size 1 (a 1x1 convolution), or in blocks (`MatMulNBits`).
    OutIn,
}

/// How a weight is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WeightForm {
    /// Floats.
    Float,
    /// `DequantizeLinear` in front of the multiplication.
    Dequantized {
        /// The scale.
        scale: ValueId,
        /// The zero point.
        zero_point: Option<ValueId>,
    },
    /// `com.microsoft::MatMulNBits`.
    NBits {
        /// Scales by block.
        scales: ValueId,
        /// Zero points by block.
        zero_points: Option<ValueId>,
        /// Bits of one number.
        bits: i64,
        /// Numbers in a block.
        block_size: i64,
    },
    /// `MatMulInteger` with a dynamically quantized input.
    Integer {
        /// The zero point.
        zero_point: Option<ValueId>,
    },
}

/// One call of a normalisation, such that it can be applied to another input.
#[derive(Clone, Debug)]
pub struct NormSite {
    /// Full module path.
    pub path: Box<str>,
    /// Its nodes, in execution order. Outside values that they read, `input` apart, are constants.
    pub nodes: Vec<NodeId>,
    /// What it reads.
    pub input: ValueId,
    /// What it makes.
    pub output: ValueId,
    /// What it computes.
    pub kind: NormKind,
}

/// What a normalisation computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NormKind {
    /// Mean and variance.
    LayerNorm,
    /// Root of the mean square.
    RmsNorm,
}

impl NormSite {
    /// The same normalisation of another value, in a fragment.
    pub fn apply(&self, graph: &Graph, b: &Builder, x: Val) -> Val {
        let mut map: Vec<(ValueId, Val)> = vec![(self.input, x)];
        let find = |v: ValueId, map: &[(ValueId, Val)]| {
            map.iter()
                .find(|(old, _)| *old == v)
                .map_or(Val::Old(v), |(_, new)| *new)
        };
        for &n in &self.nodes {
            let copies = b.copy_node(graph, n, |v| find(v, &map));
            map.extend(copies);
        }
        find(self.output, &map)
    }
}
