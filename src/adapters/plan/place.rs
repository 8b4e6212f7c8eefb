//! Places: where a method attaches, what flows there, and what a method needs to build its nodes.

use crate::adapters::methods::detail::Detail;
use crate::adapters::naming::{Route, Sublayer, scope};
use crate::analyze::attention::AttentionCore;
use crate::analyze::sequence::Longer;
use crate::analyze::view::View;
use crate::infer::Verified;
use crate::ir::contract;
use crate::ir::contract::stamp;
use crate::ir::{Builder, DType, Graph, NodeId, OpId, TensorData, Use, Val, ValueId};
use crate::select::{Layer, LinearSite, NormSite, ParameterSite, Selection, TableSite};
use rustc_hash::FxHashMap;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a method knows when it says where it attaches.
#[derive(Clone, Copy)]
pub struct Surroundings<'a, 's> {
    /// The selected sites.
    pub selection: &'s Selection,
    /// The graph they are in.
    pub graph: &'a Graph,
    /// How the library integrated the adapter.
    pub route: &'a Route,
    /// Name of the adapter.
    pub name: &'a str,
    /// Whether the adapter's file has parameters in this scope; `None` for a fresh adapter.
    pub has: Option<&'a dyn Fn(&str) -> bool>,
    /// Whether the library wrote that file.
    pub(crate) foreign: bool,
    /// Whether it goes by the columns of q, k and v in a fused projection whose heads hold all three: a fresh adapter, or a file of ours
    /// that says so. The library knows thirds alone.
    pub(crate) by_columns: bool,
    /// What is known of its values.
    pub known: &'a Verified,
    /// The places of the adapters that a fusion mixes, each with the adapter's name.
    pub(crate) fused: &'a [(String, Place<'s>)],
}

/// One place where an adapter attaches.
#[derive(Clone, Debug)]
pub struct Place<'s> {
    /// What is there.
    pub at: At<'s>,
    /// Layer id; `None` outside the layers.
    pub layer: Option<usize>,
    /// AdapterHub's location key: `selfattn_lora`, `mh_adapter`, …
    pub location: &'static str,
    /// What stands before the parameters' own names: `model.layers.0.self_attn.q_proj.loras.NAME`.
    pub scope: String,
    /// What the method knows besides.
    pub(crate) detail: Detail,
}

/// What a place is.
#[derive(Clone, Debug)]
pub enum At<'s> {
    /// A linear, one call of it: what it makes is replaced.
    Linear(&'s LinearSite),
    /// The output of a sublayer: what its last linear makes is replaced, before the model adds the residual.
    Sublayer(SublayerSite<'s>),
    /// The output of a layer is replaced.
    Layer(&'s Layer),
    /// A module's output is replaced.
    Embeddings(ValueId),
    /// What a linear reads is replaced, for it alone: the head.
    HeadInput(&'s LinearSite),
    /// What a linear reads is replaced, for it alone.
    Input(&'s LinearSite),
    /// A look-up in an embedding table: the rows that it finds are replaced.
    Table(&'s TableSite),
    /// A stored parameter of the base model is replaced, for its module alone.
    Parameter(&'s ParameterSite),
    /// The embeddings' output is replaced by a longer one, and everything behind it grows with it.
    Sequence(Arc<Longer>),
    /// A mask `[…, queries, keys]` that is added to scores is replaced.
    Mask(ValueId),
    /// What an attention makes of its values is replaced.
    Attention(Arc<AttentionCore>),
}

/// A sublayer, as a bottleneck sees it.
#[derive(Clone, Debug)]
pub struct SublayerSite<'s> {
    /// Which.
    pub(crate) which: Sublayer,
    /// What its last linear makes.
    pub output: ValueId,
    /// The residual: what entered it.
    pub residual: Option<ValueId>,
    /// The norm behind it, in post-norm models.
    pub norm: Option<&'s NormSite>,
    /// Width of the residual stream.
    pub width: usize,
    /// The node behind which new nodes belong.
    pub anchor: NodeId,
    /// What is added to the residual besides: another sublayer's output, where two run side by side.
    pub(crate) beside: Option<ValueId>,
    /// What adds the residual (and norms) behind it, where the adapter replaces that instead of the output.
    pub stream: Option<ValueId>,
    /// Whether the adapter adds the residual itself, because it replaces the sum.
    pub(crate) rejoins: bool,
}

impl Surroundings<'_, '_> {
    /// Whether what the adapter names may be in another file: it is a saved one, and an encoder and its decoder are files of their own.
    pub(crate) fn is_a_part(&self) -> bool {
        self.has.is_some() && self.selection.lacks_a_stack()
    }

    /// The graph, with what is known of its values.
    pub(crate) fn view(&self) -> View<'_> {
        View::new(self.graph, self.known)
    }

    /// Size of a value's last axis; the residual stream's where nothing else is known.
    pub(crate) fn width(&self, value: ValueId) -> Option<usize> {
        let known = self.known.fact(value).and_then(|f| f.size(-1));
        let hidden = (self.selection.hidden_size > 0).then_some(self.selection.hidden_size);
        known.and_then(|n| usize::try_from(n).ok()).or(hidden)
    }

    /// Name of a parameter's module in a module of the base model.
    pub fn scope(&self, module: &str, kind: &str) -> String {
        scope(module, kind, self.name)
    }
}

impl<'s> Place<'s> {
    /// A place without details.
    pub fn new(
        at: At<'s>,
        layer: Option<usize>,
        location: &'static str,
        scope: impl Into<String>,
    ) -> Self {
        Place {
            at,
            layer,
            location,
            scope: scope.into(),
            detail: Detail::None,
        }
    }

    /// The same place with a detail.
    #[must_use]
    pub(crate) fn with(mut self, detail: Detail) -> Self {
        self.detail = detail;
        self
    }

    /// The value that the place replaces.
    pub(crate) fn target(&self) -> ValueId {
        match &self.at {
            At::Linear(site) => site.output,
            At::Sublayer(site) => site.stream.unwrap_or(site.output),
            At::Layer(layer) => layer.output,
            At::Embeddings(value) | At::Mask(value) => *value,
            At::HeadInput(site) | At::Input(site) => site.input,
            At::Table(site) => site.output,
            At::Parameter(site) => site.value,
            At::Attention(core) => core.output,
            At::Sequence(longer) => longer.embedded,
        }
    }

    /// The node behind which new nodes belong.
    pub(crate) fn anchor(&self, graph: &Graph) -> Option<NodeId> {
        let producer = |v| graph.producer(v).map(|p| p.0);
        match &self.at {
            At::Linear(site) => Some(site.anchor),
            At::Table(site) => Some(site.node),
            At::Sublayer(site) => site.stream.and_then(producer).or(Some(site.anchor)),
            At::Layer(_)
            | At::Embeddings(_)
            | At::HeadInput(_)
            | At::Input(_)
            | At::Parameter(_)
            | At::Sequence(_)
            | At::Mask(_)
            | At::Attention(_) => producer(self.target()),
        }
    }

    /// The nodes whose reading is replaced, where others go on reading what was there.
    pub(crate) fn readers(&self) -> Option<&[NodeId]> {
        match &self.at {
            At::HeadInput(site) | At::Input(site) => Some(&site.nodes),
            At::Parameter(site) => Some(&site.nodes),
            At::Linear(_)
            | At::Sublayer(_)
            | At::Layer(_)
            | At::Embeddings(_)
            | At::Table(_)
            | At::Sequence(_)
            | At::Mask(_)
            | At::Attention(_) => None,
        }
    }

    /// The linear, where the place is one or what one reads.
    pub fn linear(&self) -> Option<&LinearSite> {
        match &self.at {
            At::Linear(site) | At::Input(site) => Some(site),
            At::Parameter(_)
            | At::Table(_)
            | At::Sublayer(_)
            | At::Layer(_)
            | At::Embeddings(_)
            | At::HeadInput(_)
            | At::Sequence(_)
            | At::Mask(_)
            | At::Attention(_) => None,
        }
    }

    /// What is to be known of places like this one.
    pub(crate) fn kind(&self) -> Kind {
        match self.at {
            At::Embeddings(_) => Kind::EMBEDDINGS,
            At::Linear(_) => Kind::LINEAR,
            At::Sublayer(_) => Kind::SUBLAYER,
            At::Layer(_) => Kind::LAYER,
            At::HeadInput(_) => Kind::HEAD,
            At::Input(_) => Kind::INPUT,
            At::Table(_) => Kind::TABLE,
            At::Parameter(_) => Kind::PARAMETER,
            At::Attention(_) => Kind::ATTENTION,
            At::Sequence(_) => Kind::SEQUENCE,
            At::Mask(_) => Kind::MASK,
        }
    }
}

/// A kind of place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kind {
    /// Its name, in the stamp that `strip` reads.
    pub name: &'static str,
    /// What places of the kind are, for people.
    pub about: &'static str,
    /// Order of places at one value: a linear's own adapters, then the sublayer's, then the layer's.
    pub rank: u8,
    /// Whether adapters compose here. Invertible adapters and prompts do not, as in the library: the first one of the setup is the one.
    pub composes: bool,
}

impl Kind {
    const EMBEDDINGS: Kind = Kind::new(0, "embeddings", "output of the embeddings", false);
    const LINEAR: Kind = Kind::new(1, "linear", "outputs of linears", true);
    const SUBLAYER: Kind = Kind::new(
        2,
        "sublayer",
        "outputs of attention or feed-forward blocks",
        true,
    );
    const LAYER: Kind = Kind::new(3, "layer", "outputs of layers", true);
    const HEAD: Kind = Kind::new(4, "head", "input of the head", false);
    const ATTENTION: Kind = Kind::new(5, "attention", "attentions: keys and values", true);
    const SEQUENCE: Kind = Kind::new(6, "sequence", "embedded sequence, which grows", false);
    const MASK: Kind = Kind::new(7, "mask", "masks, opened for the prompt", false);

    /// What has no place of its own, and grows along with another place.
    pub(crate) const GROWN: Kind = Kind::new(
        8,
        "grown",
        "inputs and sizes that grow with the sequence",
        false,
    );

    const INPUT: Kind = Kind::new(9, "input", "inputs of linears", true);
    const PARAMETER: Kind = Kind::new(10, "parameter", "parameters of the base model", false);

    const TABLE: Kind = Kind::new(11, "table", "rows of embedding tables", true);

    /// What has no place of its own either: inputs whose batch stands once for each child of a `Parallel`.
    pub(crate) const BATCH: Kind = Kind::new(12, "batch", "inputs, once for each child", false);

    const ALL: [Kind; 13] = [
        Kind::EMBEDDINGS,
        Kind::LINEAR,
        Kind::SUBLAYER,
        Kind::LAYER,
        Kind::HEAD,
        Kind::ATTENTION,
        Kind::SEQUENCE,
        Kind::MASK,
        Kind::GROWN,
        Kind::INPUT,
        Kind::PARAMETER,
        Kind::TABLE,
        Kind::BATCH,
    ];

    const fn new(rank: u8, name: &'static str, about: &'static str, composes: bool) -> Kind {
        Kind {
            name,
            about,
            rank,
            composes,
        }
    }

    /// Whether what several adapters make here has a mean.
    pub(crate) fn averages(self) -> bool {
        self.composes || self == Kind::PARAMETER
    }

    /// Whose module an adapter at such a place is in.
    pub(crate) fn home(self) -> Home {
        match self {
            Kind::LINEAR | Kind::TABLE | Kind::LAYER => Home::Maker,
            Kind::INPUT | Kind::PARAMETER => Home::Readers,
            _ => Home::Between,
        }
    }

    /// The kind of this name.
    pub(crate) fn of(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|k| k.name == name)
    }
}

/// Whose module an adapter is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Home {
    /// Of what makes the value that the adapter changes.
    Maker,
    /// Of what reads that value.
    Readers,
    /// The module that holds both.
    Between,
}

/// The type to compute in with parameters and activations of these types: theirs if they agree, otherwise `f32` or more.
pub(crate) fn wider(a: DType, b: DType) -> DType {
    match (a, b) {
        (a, b) if a == b => a,
        (DType::Double, _) | (_, DType::Double) => DType::Double,
        _ => DType::Float,
    }
}

/// What flows through a place.
#[derive(Clone, Copy, Debug)]
pub struct State {
    /// What the adapters read: a linear's input; the hidden state, changed by each adapter in turn, everywhere else.
    pub x: Val,
    /// What the base model made: a linear's output, a sublayer's.
    pub out: Val,
    /// The residual of a sublayer.
    pub residual: Option<Val>,
    /// What the adapters of a linear add (or multiply with) so far.
    pub delta: Option<Val>,
    /// What an attention mixes; its scores are `out`.
    pub values: Option<Val>,
    /// What takes the place's own value, where a composition has ended the place already.
    pub closed: Option<Val>,
}

/// Adapters of one method at one place, of which each sample has one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tasks<'a> {
    /// The index of each sample's adapter: `[batch]`, each below their number.
    pub ids: Val,
    /// Number of axes of what flows; the batch is the first.
    pub rank: usize,
    /// The place as each adapter sees it, with its parameters. Those that tasks have together are the same values.
    pub of: &'a [(&'a Place<'a>, Params<'a>)],
}

/// What adapters of one method have in common, where the parameters of many are stacked and each sample has its own: one subgraph for all
/// of them. Adapters whose common configuration, detail and place are equal are stacked; sizes that differ between them are filled up
/// with zeros at the end of each axis, which must not change what is computed.
#[derive(Clone, Debug)]
pub(crate) struct Stacking<M> {
    /// The configuration without what may differ.
    pub common: M,
    /// What the method knows of the place, without what may differ.
    pub detail: Detail,
    /// The constant factor of each, where it may differ: what the method takes by [`BuildCx::times`].
    pub factor: Option<f32>,
}

/// An adapter at a place as a running model exchanges it for another one: its parameters are inputs of the graph, and what is no parameter
/// is a part of it. Adapters whose configuration, detail and place are equal are exchanged for each other; sizes that are
/// [free](crate::adapters::param::Size::free) may differ.
#[derive(Clone, Debug)]
pub(crate) struct Exchanged<M> {
    /// The configuration without what may differ. It asks for the parameters below.
    pub config: M,
    /// What the method knows of the place, without what may differ.
    pub detail: Detail,
    /// The parameters of the place.
    pub own: Vec<Given>,
    /// Those that all places share.
    pub shared: Vec<Given>,
}

/// A parameter of an exchanged adapter.
#[derive(Clone, Debug)]
pub(crate) struct Given {
    /// Name inside the module, by which the method reads it.
    pub suffix: String,
    /// Name behind the module's in graphs and files.
    pub name: String,
    /// What it is made of: the adapter's own parameters.
    pub value: Val,
    /// Whether graphs and files have its axes exchanged: `[in, out]`. The method reads it by [`Builder::linear_t`] only.
    pub transposed: bool,
}

impl Given {
    /// A parameter under its own name.
    pub(crate) fn new(suffix: impl Into<String>, value: Val) -> Self {
        let suffix = suffix.into();
        Given {
            name: suffix.clone(),
            suffix,
            value,
            transposed: false,
        }
    }

    /// The same under another name.
    #[must_use]
    pub(crate) fn named(self, name: &str) -> Self {
        Given {
            name: name.to_owned(),
            ..self
        }
    }
}

/// Name of the factor among the parameters of stacked adapters.
pub(crate) const FACTOR: &str = "(factor)";

/// The parameters of one adapter at one place, in the graph.
#[derive(Clone, Copy, Debug)]
pub struct Params<'a> {
    /// Those of the place.
    pub own: &'a [(String, Val)],
    /// Those that all places share.
    pub shared: &'a [(String, Val)],
}

impl Params<'_> {
    /// A parameter of the place.
    ///
    /// # Panics
    /// If the method did not ask for it: `params` and `build` of a method disagree.
    pub fn get(&self, suffix: &str) -> Val {
        self.find(suffix)
            .expect("invariant: a method reads the parameters that it asked for")
    }

    /// A parameter of the place, if it asked for one of this name.
    pub fn find(&self, suffix: &str) -> Option<Val> {
        let found = self.own.iter().find(|(s, _)| s == suffix);
        found.map(|(_, v)| *v)
    }

    /// A shared parameter.
    ///
    /// # Panics
    /// If the method did not ask for it: `shared` and `build` of a method disagree.
    pub fn shared(&self, suffix: &str) -> Val {
        let found = self.shared.iter().find(|(s, _)| s == suffix);
        found
            .map(|(_, v)| *v)
            .expect("invariant: a method reads the shared parameters that it asked for")
    }
}

/// Scores inside adapters that become graph outputs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shown {
    /// Gates of adapters, `[batch, gates]` each: the library's `output_adapter_gating_scores`.
    pub(crate) gating: bool,
    /// Weights that fusions give their adapters, `[batch, positions, adapters]` each: `output_adapter_fusion_attentions`.
    pub(crate) attentions: bool,
}

/// What a method builds with.
#[derive(Debug)]
pub struct BuildCx<'a> {
    /// The builder; its float type is the one to compute in.
    pub b: &'a Builder,
    /// The graph.
    pub graph: &'a Graph,
    /// Element type of the base model's activations.
    pub base: DType,
    /// Whether dropout and the like are wanted.
    pub training: bool,
    /// Values that other places have replaced, and what replaces them now.
    pub current: &'a FxHashMap<ValueId, ValueId>,
    /// Parameters of the whole model that are made once: mask positions and the like.
    pub once: &'a RefCell<BTreeMap<String, Val>>,
    /// Whether free sizes are those of the parameters that come, and not those of the configuration.
    pub(crate) sizes_vary: bool,
    /// Values besides the place's own that are replaced, by what, and where.
    pub moves: RefCell<Vec<(ValueId, Val, Vec<Use>)>>,
    /// Name of the adapter that builds.
    pub owner: RefCell<String>,
    /// Why what is built treats a row as one example, if it does: it has no meaning where rows are packed.
    pub whole_rows: Cell<Option<&'static str>>,
    /// Which scores become graph outputs.
    pub(crate) shown: Shown,
    /// The scores: names of the outputs, and their values.
    pub(crate) scores: RefCell<Vec<(String, Val)>>,
    /// Element types of values of the graph, where they are known.
    pub(crate) types: Types<'a>,
    /// Shapes of the weights that adapters are folded into, as floats; `None` where none is folded into any.
    pub(crate) opened: Option<FxHashMap<ValueId, Box<[u64]>>>,
    casts: RefCell<FxHashMap<Val, DType>>,
}

/// The element type of a value, where it is known.
#[derive(Clone, Copy)]
pub(crate) struct Types<'a>(pub(crate) &'a dyn Fn(ValueId) -> Option<DType>);

impl std::fmt::Debug for Types<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Types")
    }
}

impl<'a> BuildCx<'a> {
    /// A context.
    pub(crate) fn new(
        b: &'a Builder,
        graph: &'a Graph,
        base: DType,
        training: bool,
        current: &'a FxHashMap<ValueId, ValueId>,
        once: &'a RefCell<BTreeMap<String, Val>>,
    ) -> Self {
        BuildCx {
            b,
            graph,
            base,
            training,
            current,
            once,
            sizes_vary: false,
            moves: RefCell::default(),
            owner: RefCell::default(),
            whole_rows: Cell::default(),
            shown: Shown::default(),
            scores: RefCell::default(),
            types: Types(&|_| None),
            opened: None,
            casts: RefCell::default(),
        }
    }

    /// A value that several places use, made by the first of them. The key must say all that it depends on, the adapter apart.
    pub fn once(&self, key: &str, make: impl FnOnce() -> Val) -> Val {
        let key = format!("{}: {key}", self.owner.borrow());
        if let Some(v) = self.once.borrow().get(&key) {
            return *v;
        }
        let v = make();
        self.once.borrow_mut().insert(key, v);
        v
    }

    /// The same of what can fail.
    pub(crate) fn once_or<E>(
        &self,
        key: &str,
        make: impl FnOnce() -> Result<Val, E>,
    ) -> Result<Val, E> {
        let full = format!("{}: {key}", self.owner.borrow());
        if let Some(v) = self.once.borrow().get(&full) {
            return Ok(*v);
        }
        let v = make()?;
        self.once.borrow_mut().insert(full, v);
        Ok(v)
    }

    /// The attention mask that the model gets: an input `[batch, positions]`.
    pub fn mask(&self) -> Option<Val> {
        self.mask_input(contract::ATTENTION_MASK)
    }

    /// The same of the decoder of two models that were put together.
    pub(crate) fn decoder_mask(&self) -> Option<Val> {
        self.mask_input(contract::DECODER_ATTENTION_MASK)
    }

    fn mask_input(&self, name: &str) -> Option<Val> {
        let v = self.graph.find(name).filter(|v| self.graph.is_input(*v))?;
        let rank = self
            .graph
            .value(v)
            .ty
            .as_ref()
            .and_then(|t| t.dims().map(<[_]>::len));
        rank.is_none_or(|r| r == 2).then(|| self.current(v))
    }

    /// Which example of a packed row each position belongs to, where rows are packed: the input `[batch, positions]`, 0 for padding.
    pub(crate) fn segments(&self) -> Option<Val> {
        let input = self.graph.find(contract::SEGMENT_IDS);
        let input = input.filter(|v| self.graph.is_input(*v))?;
        Some(self.current(input))
    }

    /// Has readers of a value read what the last node made, which says so.
    pub(crate) fn replace(&self, old: ValueId, new: Val, uses: Vec<Use>) {
        self.b
            .mark_last_node(stamp::REPLACES, self.graph.name_of(old));
        self.b.mark_last_node(stamp::READERS, "some");
        self.moves.borrow_mut().push((old, new, uses));
    }

    /// One row for each task, made of one parameter each, and for each sample the row of its task: `[batch, 1, …, elements]`.
    pub(crate) fn rows(&self, rows: &[Val], tasks: &Tasks<'_>) -> Val {
        let b = self.b;
        let flat: Vec<Val> = rows
            .iter()
            .map(|v| b.reshape(*v, b.ints(&[1, -1])))
            .collect();
        let table = b.concat(&flat, 0);
        let picked = b.op("Gather", &[table, tasks.ids], &[("axis", 0i64.into())]);
        let between: Vec<i64> = (1..tasks.rank as i64 - 1).collect();
        if between.is_empty() {
            picked
        } else {
            b.unsqueeze(picked, &between)
        }
    }

    /// What stands for a value of the base model by now.
    pub(crate) fn current(&self, value: ValueId) -> Val {
        Val::Old(self.current.get(&value).copied().unwrap_or(value))
    }

    /// An activation in the parameters' element type.
    pub fn up(&self, v: Val) -> Val {
        let to = self.b.float();
        let from = self.casts.borrow().get(&v).copied().unwrap_or(match v {
            Val::Old(v) => self.type_of(v).unwrap_or(self.base),
            Val::New(_) => to,
        });
        if from == to {
            return v;
        }
        let out = self.b.cast(v, to);
        self.casts.borrow_mut().insert(out, to);
        out
    }

    /// The floating-point type of a value of the graph, where it is known.
    fn type_of(&self, v: ValueId) -> Option<DType> {
        (self.types.0)(v).filter(|t| t.is_float())
    }

    /// A norm of the base model, applied to a value in the parameters' element type. It computes in its own type.
    pub(crate) fn norm(&self, norm: &NormSite, x: Val) -> Val {
        let (own, made) = (self.type_of(norm.input), self.type_of(norm.output));
        let to = own.unwrap_or(self.base);
        let x = if self.b.float() == to {
            x
        } else {
            self.b.cast(x, to)
        };
        let y = norm.apply(self.graph, self.b, x);
        self.casts.borrow_mut().insert(y, made.unwrap_or(to));
        self.up(y)
    }

    /// A value in the parameters' element type as an activation of the base model.
    pub fn down(&self, v: Val) -> Val {
        if self.b.float() == self.base {
            return v;
        }
        let out = self.b.cast(v, self.base);
        self.casts.borrow_mut().insert(out, self.base);
        out
    }

    /// A constant of `f32` made by hand, in the parameters' element type.
    pub fn to_param(&self, v: Val) -> Val {
        if self.b.float() == DType::Float {
            v
        } else {
            self.b.cast(v, self.b.float())
        }
    }

    /// The value times the configuration's constant; where adapters are stacked, each sample's own.
    pub(crate) fn times(&self, v: Val, p: &Params<'_>, own: f32) -> Val {
        match p.find(FACTOR) {
            Some(factor) => self.b.mul(v, factor),
            None => self.b.scale(v, own),
        }
    }

    /// Zeros of a fixed shape, as a node: they take no room in the file.
    pub fn zeros(&self, dims: &[usize]) -> Val {
        self.filled(dims, 0.0)
    }

    /// Ones of a fixed shape.
    pub fn ones(&self, dims: &[usize]) -> Val {
        self.filled(dims, 1.0)
    }

    fn filled(&self, dims: &[usize], x: f32) -> Val {
        let dims: Vec<i64> = dims.iter().map(|d| *d as i64).collect();
        let value = TensorData::from_f32([1], &[x]);
        let out = self.b.op(
            "ConstantOfShape",
            &[self.b.ints(&dims)],
            &[("value", value.into())],
        );
        self.to_param(out)
    }

    /// Dropout, where it is wanted.
    pub fn dropout(&self, v: Val, p: f64) -> Val {
        if !self.training || p == 0.0 {
            return v;
        }
        let ratio = self.b.scalar(p as f32);
        let on = self.b.constant(TensorData::raw(
            DType::Bool,
            [],
            bytes::Bytes::from_static(&[1]),
        ));
        // The mask is for the gradient.
        let inputs = [Some(v), Some(ratio), Some(on)];
        self.b.node_n(OpId::onnx("Dropout"), &inputs, &[], 2)[0]
    }

    /// `x·Wᵀ + b` of parameters `PREFIX.weight` and `PREFIX.bias`.
    pub fn linear(&self, x: Val, p: &Params<'_>, prefix: &str) -> Val {
        let y = self.b.linear_t(x, p.get(&format!("{prefix}.weight")));
        self.b.add(y, p.get(&format!("{prefix}.bias")))
    }

    /// Layer normalisation over the last axis, as torch's `nn.LayerNorm`.
    pub fn layer_norm(&self, x: Val, p: &Params<'_>, prefix: &str) -> Val {
        const EPSILON: f32 = 1e-5;
        let b = self.b;
        let weight = p.get(&format!("{prefix}.weight"));
        let bias = p.get(&format!("{prefix}.bias"));
        // The operator takes one weight for all rows.
        if b.opset() >= 17 && !b.is_by_row(weight) {
            let attrs = [("axis", (-1i64).into()), ("epsilon", EPSILON.into())];
            return b.op("LayerNormalization", &[x, weight, bias], &attrs);
        }
        let centred = b.sub(x, b.reduce_mean(x, &[-1], true));
        let variance = b.reduce_mean(b.mul(centred, centred), &[-1], true);
        let deviation = b.unary("Sqrt", b.add(variance, b.scalar(EPSILON)));
        b.add(b.mul(b.div(centred, deviation), weight), bias)
    }

    /// `mean over the sequence of σ(W·x + b)`: `[batch, 1, gates]`.
    pub(crate) fn gate(&self, x: Val, p: &Params<'_>) -> Val {
        self.gate_of(x, p.get("gate.weight"), p.get("gate.bias"))
    }

    /// The same of given parameters; `x` as the base model has it.
    pub(crate) fn gate_of(&self, x: Val, weight: Val, bias: Val) -> Val {
        self.whole_rows
            .set(Some("a gate is the mean over all positions of a row"));
        let score = self.b.add(self.b.linear_t(self.up(x), weight), bias);
        let gate = self
            .b
            .reduce_mean(self.b.unary("Sigmoid", score), &[1], true);
        if self.shown.gating {
            self.show(contract::GATING_SCORES, self.b.squeeze(gate, &[1]));
        }
        gate
    }

    /// Makes a score an output of the graph, named by the module that is built.
    pub(crate) fn show(&self, kind: &str, score: Val) {
        let name = format!("{kind}{}", self.b.scope());
        self.scores.borrow_mut().push((name, score));
    }
}
