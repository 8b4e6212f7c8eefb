//! Sites: the places of a graph that an interface names, as values and nodes.
//!
//! Nothing here looks at a graph or changes one, [`NormSite::apply`] apart, which copies nodes into a fragment.

use super::field::Field;
use super::modules::{ModuleTree, Witness};
use crate::analyze::attention::{AttentionCore, Ends, Widths};
pub use crate::analyze::columns::QkvLayout;
pub use crate::analyze::linear::{Layout, WeightForm, WeightUse};
pub use crate::analyze::norm::NormKind;
use crate::analyze::view::View;
use crate::diag::Diagnostic;
use crate::ir::{Builder, Graph, NodeId, Val, ValueId};
use rustc_hash::FxHashMap;
use std::fmt;
use std::sync::Arc;

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
    /// Every linear that has a module's name, inside the layers and outside, whether a field names it or not; in execution order.
    pub(crate) modules: Vec<LinearModule>,
    /// Number of linears that read hidden states and have no module's name.
    pub(crate) nameless: usize,
    /// Every look-up in an embedding table that has a module's name, in execution order.
    pub(crate) tables: Vec<TableSite>,
    /// Every stored parameter that has a module's name.
    pub(crate) parameters: Vec<ParameterSite>,
    /// Findings that do not stop the selection: places a fused operator swallowed, embeddings outside the graph.
    pub misses: Vec<Diagnostic>,
    /// Why each place was chosen.
    pub(crate) decisions: Vec<Decision>,
    /// Paths, without the base model's prefix or with it, of modules that the interface names and another file of the model holds: the
    /// other stack of an encoder-decoder, or what a decoder's first step has cached.
    pub(crate) absent: Vec<String>,
    /// Whether it is not known how many layers of the model stand before those of the graph.
    pub(crate) uncounted: bool,
    /// The modules of the graph that it was made in.
    pub(crate) tree: Option<Arc<ModuleTree>>,
}

impl Selection {
    /// Whether a parameter's name lies in a module that another file of the model holds.
    pub(crate) fn is_elsewhere(&self, name: &str) -> bool {
        let inside = |path: &String| format!(".{name}").contains(&format!(".{path}."));
        self.absent.iter().any(inside)
    }

    /// Whether the stack that the model begins with is in another file.
    pub(crate) fn lacks_first_stack(&self) -> bool {
        self.lacks_a_stack() && self.layers.iter().all(|l| l.stack > 0)
    }

    /// Whether the layers of the graph are not all layers of the model.
    pub(crate) fn lacks_a_stack(&self) -> bool {
        self.misses.iter().any(|d| d.code == "select-stack")
    }

    /// Whether a fused operator took the projections of an attention in.
    pub(crate) fn hides_projections(&self) -> bool {
        let hidden = |a: &AttentionSite| [&a.q, &a.k, &a.v, &a.qkv].iter().all(|p| p.is_none());
        let attentions = |l: &Layer| l.self_attn.as_ref().is_some_and(hidden);
        self.layers.iter().any(attentions)
    }

    /// The module of each stored weight.
    pub(crate) fn modules_of_weights(&self) -> FxHashMap<ValueId, &str> {
        let parameters = self.parameters.iter().map(|p| (p.stored, &*p.module));
        let linears = self.modules.iter();
        let linears = linears.map(|m| (m.site.weight.value, &*m.site.path));
        parameters.chain(linears).collect()
    }
}

/// A linear by its module's path.
#[derive(Clone, Debug)]
pub(crate) struct LinearModule {
    /// Layer id; `None` outside the layers.
    pub(crate) layer: Option<usize>,
    /// The linear, with all calls of the module.
    pub(crate) site: LinearSite,
}

/// A look-up in an embedding table.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TableSite {
    /// Full module path.
    pub(crate) path: Box<str>,
    /// The node that looks up.
    pub(crate) node: NodeId,
    /// Which rows: integers.
    pub(crate) ids: ValueId,
    /// The rows.
    pub(crate) output: ValueId,
    /// What the module makes of the rows, where it multiplies them by a number (M2M-100, Gemma 3).
    pub(crate) scaled: Option<ValueId>,
    /// The initializer that holds the table, `[rows, width]`.
    pub(crate) value: ValueId,
    /// Number of rows.
    pub(crate) rows: usize,
    /// Width of a row.
    pub(crate) width: usize,
}

/// A stored parameter of a module, as its nodes read it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ParameterSite {
    /// Full module path.
    pub(crate) module: Box<str>,
    /// Name inside the module: `weight`, `bias`.
    pub(crate) name: Box<str>,
    /// The value that the nodes read.
    pub(crate) value: ValueId,
    /// The module's nodes that read it.
    pub(crate) nodes: Vec<NodeId>,
    /// Its shape in the state dict.
    pub(crate) dims: Vec<usize>,
    /// Whether the nodes read it with its axes exchanged.
    pub(crate) transposed: bool,
    /// The initializer that holds it.
    pub(crate) stored: ValueId,
    /// Whether the initializer has its axes exchanged.
    pub(crate) stored_transposed: bool,
    /// Whether the initializer may be something that the exporter made of the parameter: it has no parameter's name, or a norm reads it
    /// as it is in a model whose norms multiply with `1 + weight`, as Gemma's do. Exporters store the sum.
    pub(crate) derived: bool,
}

/// What one field of the interface was found to be, and by which witness.
#[derive(Clone, Debug)]
pub(crate) struct Decision {
    /// Layer id; `None` for the whole model.
    pub layer: Option<usize>,
    /// Interface field.
    pub field: Field,
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
    /// `layer_gate_proj`.
    pub gate_proj: Option<LinearSite>,
    /// `layer_output_proj`.
    pub output_proj: Option<LinearSite>,
    /// What the feed-forward block adds to the stream, where it ends in no one linear: a choice of experts.
    pub ffn_output: Option<ValueId>,
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

impl Layer {
    /// The linears that fields of the interface name.
    pub(crate) fn linears(&self) -> impl Iterator<Item = &LinearSite> {
        let attentions = self.self_attn.iter().chain(&self.cross_attn);
        let inside = attentions.flat_map(|a| [&a.q, &a.k, &a.v, &a.qkv, &a.o]);
        let outside = [&self.intermediate, &self.gate_proj, &self.output_proj];
        inside.chain(outside).flatten()
    }
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
    /// Keys and values that come from a cache as they are, where the module projects neither.
    pub(crate) fed: Option<[ValueId; 2]>,
}

impl AttentionSite {
    /// The core between the projections of this module.
    ///
    /// # Errors
    /// What is missing, or what the graph has in its place.
    pub(crate) fn core(&self, view: View<'_>) -> Result<AttentionCore, Diagnostic> {
        AttentionCore::find(view, &self.ends()?)
    }

    fn ends(&self) -> Result<Ends<'_>, Diagnostic> {
        let fused = self.qkv.as_ref();
        if let (Some(q), Some([keys, values])) = (&self.q, self.fed) {
            return Ok(Ends {
                path: &self.path,
                input: q.input,
                d_in: q.d_in,
                projected: [[q.output, q.rows.1], [keys; 2], [values; 2]],
                widths: Widths::Known([q.d_out; 3]),
                end: self.o.as_ref().map_or(self.output, |o| o.input),
            });
        }
        let projections = [&self.q, &self.k, &self.v].map(|p| p.as_ref().or(fused));
        let [Some(q), Some(k), Some(v)] = projections else {
            return Err(Diagnostic::error(
                "attention-projections",
                "the projections of keys and values are not known",
            )
            .at(self.path.to_string())
            .help(
                "name attn_q_proj, attn_k_proj and attn_v_proj, or attn_qkv_proj, in the interface",
            ));
        };
        let separate = [&self.q, &self.k, &self.v].iter().all(|p| p.is_some());
        // One projection may make keys and values, of which the graph's own axes tell the widths.
        let latent = separate && k.path == v.path;
        let widths = match (&self.qkv_layout, fused) {
            _ if latent => Widths::Mixed { told: None, all: 1 },
            (Some(QkvLayout::Blocks { q, k, v }), Some(_)) if !separate => {
                Widths::Known([*q, *k, *v])
            }
            (layout, Some(fused)) if !separate => Widths::Mixed {
                told: match layout {
                    Some(QkvLayout::Interleaved { widths, .. }) => Some(*widths),
                    Some(QkvLayout::Blocks { .. } | QkvLayout::Unknown) | None => None,
                },
                all: fused.d_out,
            },
            _ => Widths::Known([q.d_out, k.d_out, v.d_out]),
        };
        Ok(Ends {
            path: &self.path,
            input: q.input,
            d_in: q.d_in,
            projected: [q, k, v].map(|p| [p.output, p.rows.1]),
            widths,
            end: self.o.as_ref().map_or(self.output, |o| o.input),
        })
    }
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
    /// `layer_gate_proj`.
    Gate,
    /// `layer_output_proj`.
    Output,
    /// The projection onto the vocabulary.
    Head,
    /// A linear that no field names.
    Linear,
}

impl Role {
    /// All roles that a field names.
    pub(crate) const ALL: [Role; 9] = [
        Role::Query,
        Role::Key,
        Role::Value,
        Role::Qkv,
        Role::AttentionOutput,
        Role::Intermediate,
        Role::Gate,
        Role::Output,
        Role::Head,
    ];

    /// The interface field that names this role.
    pub(crate) fn field(self) -> Field {
        match self {
            Role::Query => Field::AttnQProj,
            Role::Key => Field::AttnKProj,
            Role::Value => Field::AttnVProj,
            Role::Qkv => Field::AttnQkvProj,
            Role::AttentionOutput => Field::AttnOProj,
            Role::Intermediate => Field::LayerIntermediateProj,
            Role::Gate => Field::LayerGateProj,
            Role::Output => Field::LayerOutputProj,
            Role::Head => Field::OutputEmbeddings,
            Role::Linear => Field::Linear,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.field(), f)
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

impl NormSite {
    /// The same normalisation of another value, in a fragment.
    pub(crate) fn apply(&self, graph: &Graph, b: &Builder, x: Val) -> Val {
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
