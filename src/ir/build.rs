//! Builder: wiring new nodes as expressions.
//!
//! A [`Fragment`] is a set of new nodes and values that may read existing ones; nothing of it is in a graph until a
//! [`Patch`](crate::rewrite::Patch) is committed or [`Builder::finish_graph`] makes a graph of it. `Builder` methods take `&self`, so
//! that expressions nest: `b.add(b.matmul(x, w), bias)`. Operators are emitted in the form of the model's opset (13 and later).

use super::attr::Attr;
use super::graph::{Graph, GraphPort, NameTaken};
use super::id::{NodeId, ValueId};
use super::node::{Metadata, Node, OpId, OrderKey, Value};
use super::tensor::TensorData;
use super::types::{DType, Type};
use bytes::Bytes;
use indexmap::IndexMap;
use rustc_hash::{FxHashMap, FxHashSet};
use std::cell::{Cell, RefCell};

/// A value as a fragment sees it: one of the graph, or a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Val {
    /// A value of the graph.
    Old(ValueId),
    /// A value of the fragment.
    New(u32),
}

impl From<ValueId> for Val {
    fn from(id: ValueId) -> Self {
        Val::Old(id)
    }
}

/// Where a new node stands in the file, if not where its patch says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spot {
    /// In front of all nodes of the file.
    Front,
    /// Behind a node.
    Behind(super::id::NodeId),
}

/// A node of a fragment.
#[derive(Clone, Debug)]
pub(crate) struct NewNode {
    /// Name.
    pub name: Box<str>,
    /// Operator.
    pub op: OpId,
    /// Attributes.
    pub attrs: IndexMap<Box<str>, Attr>,
    /// `metadata_props`.
    pub metadata: Metadata,
    /// Place of its own.
    pub spot: Option<Spot>,
    /// Inputs by slot.
    pub inputs: Vec<Option<Val>>,
    /// Outputs by slot: indices of new values.
    pub outputs: Vec<Option<u32>>,
    /// What its subgraphs capture, in the order of all captures.
    pub captures: Vec<Val>,
}

/// A value of a fragment.
#[derive(Clone, Debug)]
pub(crate) struct NewValue {
    /// Name; unique in the fragment, checked against the graph on commit.
    pub name: Box<str>,
    /// Declared type; only needed for graph inputs.
    pub ty: Option<Type>,
    /// The constant, for an initializer.
    pub tensor: Option<TensorData>,
    /// `metadata_props` of an initializer.
    pub metadata: Metadata,
    /// Whether it becomes a graph input.
    pub input: bool,
}

/// New nodes and values, in the order of their making.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fragment {
    /// Nodes, each after the producers of its inputs.
    pub nodes: Vec<NewNode>,
    /// Values.
    pub values: Vec<NewValue>,
}

/// Makes a [`Fragment`].
#[derive(Debug)]
pub struct Builder {
    fragment: RefCell<Fragment>,
    taken: RefCell<FxHashMap<Box<str>, u32>>,
    scope: RefCell<Box<str>>,
    stamp: RefCell<Metadata>,
    opset: i64,
    float: Cell<DType>,
    spot: Cell<Option<Spot>>,
    by_row: RefCell<FxHashMap<Val, ByRow>>,
    transposed: RefCell<FxHashSet<Val>>,
}

/// A value that holds one tensor for each row of the batch: `[batch, 1, …, tensor]`.
#[derive(Clone, Copy, Debug)]
struct ByRow {
    /// Number of axes of a tensor.
    axes: usize,
    /// Number of all axes.
    rank: usize,
}

impl Builder {
    /// A builder for a model with this version of `ai.onnx`. Floating-point constants are `f32` until [`set_float`](Self::set_float).
    pub fn new(opset: i64) -> Self {
        Builder {
            fragment: RefCell::default(),
            taken: RefCell::default(),
            scope: RefCell::new("".into()),
            stamp: RefCell::default(),
            opset,
            float: Cell::new(DType::Float),
            spot: Cell::new(None),
            by_row: RefCell::default(),
            transposed: RefCell::default(),
        }
    }

    /// The version of `ai.onnx` that nodes are emitted for.
    pub fn opset(&self) -> i64 {
        self.opset
    }

    /// Names of new nodes and values begin with `scope/` from now on. Returns the scope before.
    pub fn set_scope(&self, scope: &str) -> Box<str> {
        self.scope.replace(scope.into())
    }

    /// What names of new nodes and values begin with.
    pub(crate) fn scope(&self) -> Box<str> {
        self.scope.borrow().clone()
    }

    /// `metadata_props` that every new node and initializer carries from now on.
    pub(crate) fn set_stamp(&self, stamp: Metadata) {
        *self.stamp.borrow_mut() = stamp;
    }

    /// Adds to the `metadata_props` of all nodes made so far what they do not say yet.
    pub(crate) fn describe(&self, say: impl Fn(&NewNode) -> Metadata) {
        for node in &mut self.fragment.borrow_mut().nodes {
            for (key, text) in say(node) {
                node.metadata.entry(key).or_insert(text);
            }
        }
    }

    /// Where new nodes stand from now on; where the patch says, without one.
    pub(crate) fn set_spot(&self, spot: Option<Spot>) {
        self.spot.set(spot);
    }

    /// Element type of floating-point constants from now on.
    pub(crate) fn set_float(&self, dtype: DType) {
        self.float.set(dtype);
    }

    /// Element type of floating-point constants.
    pub fn float(&self) -> DType {
        self.float.get()
    }

    /// The fragment.
    pub(crate) fn finish(self) -> Fragment {
        self.fragment.into_inner()
    }

    /// What was made so far.
    pub(crate) fn peek(&self) -> std::cell::Ref<'_, Fragment> {
        self.fragment.borrow()
    }

    /// Number of nodes made so far.
    pub(crate) fn node_count(&self) -> usize {
        self.fragment.borrow().nodes.len()
    }

    fn fresh(&self, base: &str) -> Box<str> {
        let scope = self.scope.borrow();
        let full = if scope.is_empty() {
            base.to_owned()
        } else {
            format!("{scope}/{base}")
        };
        let mut taken = self.taken.borrow_mut();
        let seen = taken.entry(full.clone().into()).or_insert(0);
        *seen += 1;
        if *seen == 1 {
            full.into()
        } else {
            format!("{full}_{}", *seen - 1).into()
        }
    }

    fn value(&self, value: NewValue) -> u32 {
        let mut f = self.fragment.borrow_mut();
        f.values.push(value);
        f.values.len() as u32 - 1
    }

    /// A new initializer with exactly this name.
    pub fn initializer(&self, name: &str, tensor: TensorData) -> Val {
        let metadata = self.stamp.borrow().clone();
        self.adopted(name, tensor, metadata)
    }

    /// A new graph input with exactly this name.
    pub fn graph_input(&self, name: &str, ty: Type) -> Val {
        let metadata = Metadata::default();
        Val::New(self.value(NewValue {
            name: name.into(),
            ty: Some(ty),
            tensor: None,
            metadata,
            input: true,
        }))
    }

    /// The graph input of this name, where this builder has made it.
    pub(crate) fn made_input(&self, name: &str) -> Option<Val> {
        let fragment = self.fragment.borrow();
        let named = |v: &NewValue| v.input && *v.name == *name;
        let at = fragment.values.iter().position(named)?;
        u32::try_from(at).ok().map(Val::New)
    }

    /// A new graph input with exactly this name, and the value that it has where nothing is given.
    pub(crate) fn optional_input(
        &self,
        name: &str,
        ty: Type,
        default: TensorData,
        metadata: Metadata,
    ) -> Val {
        Val::New(self.value(NewValue {
            name: name.into(),
            ty: Some(ty),
            tensor: Some(default),
            metadata,
            input: true,
        }))
    }

    /// Says that a value of `rank` axes holds one tensor of `axes` axes for each row of the batch. [`linear_t`](Self::linear_t),
    /// [`squeeze`](Self::squeeze) and [`slice`](Self::slice) count the axes of that tensor, and elementwise operators broadcast it.
    pub(crate) fn mark_by_row(&self, v: Val, axes: usize, rank: usize) {
        self.by_row.borrow_mut().insert(v, ByRow { axes, rank });
    }

    /// Says that a weight has its axes exchanged: `[in, out]`. [`linear_t`](Self::linear_t) is what may read it.
    pub(crate) fn mark_transposed(&self, weight: Val) {
        self.transposed.borrow_mut().insert(weight);
    }

    /// Whether a value holds one tensor for each row of the batch.
    pub(crate) fn is_by_row(&self, v: Val) -> bool {
        self.row_of(v).is_some()
    }

    /// Number of all axes of a value that holds one tensor for each row of the batch.
    pub(crate) fn rank_by_row(&self, v: Val) -> Option<usize> {
        self.row_of(v).map(|row| row.rank)
    }

    fn row_of(&self, v: Val) -> Option<ByRow> {
        self.by_row.borrow().get(&v).copied()
    }

    /// The value with its last two axes exchanged.
    fn flipped(&self, v: Val, rank: usize) -> Val {
        let mut perm: Vec<i64> = (0..rank as i64).collect();
        perm.swap(rank - 1, rank - 2);
        self.transpose(v, &perm)
    }

    /// A constant, as an initializer with a name of its own in the scope.
    pub fn constant(&self, tensor: TensorData) -> Val {
        let name = self.fresh("const");
        self.initializer(&name, tensor)
    }

    /// A one-dimensional `i64` constant.
    pub fn ints(&self, data: &[i64]) -> Val {
        self.constant(TensorData::ints(data))
    }

    /// A scalar `i64` constant.
    pub fn int(&self, x: i64) -> Val {
        self.constant(TensorData::from_i64([], &[x]))
    }

    /// A scalar constant of the builder's float type.
    pub fn scalar(&self, x: f32) -> Val {
        self.scalar_of(x, self.float.get())
    }

    /// A scalar constant of a given float type (`f32`, `f64`, `f16`, `bf16`).
    pub(crate) fn scalar_of(&self, x: f32, dtype: DType) -> Val {
        let bytes: Vec<u8> = match dtype {
            DType::Double => f64::from(x).to_le_bytes().to_vec(),
            DType::Bfloat16 => super::tensor::f32_to_bf16(x).to_le_bytes().to_vec(),
            DType::Float16 => super::tensor::f32_to_f16(x).to_le_bytes().to_vec(),
            _ => x.to_le_bytes().to_vec(),
        };
        let dtype = if dtype.is_float() {
            dtype
        } else {
            DType::Float
        };
        self.constant(TensorData::raw(dtype, [], bytes.into()))
    }

    /// A new node with `n_out` outputs. `attrs` in the order given.
    pub(crate) fn node_n(
        &self,
        op: OpId,
        inputs: &[Option<Val>],
        attrs: &[(&str, Attr)],
        n_out: usize,
    ) -> Vec<Val> {
        let name = self.fresh(&op.op_type);
        let outputs: Vec<u32> = (0..n_out)
            .map(|i| {
                let name = if i == 0 {
                    format!("{name}_output")
                } else {
                    format!("{name}_output_{i}")
                };
                let metadata = Metadata::default();
                self.value(NewValue {
                    name: name.into(),
                    ty: None,
                    tensor: None,
                    metadata,
                    input: false,
                })
            })
            .collect();
        let node = NewNode {
            name,
            op,
            attrs: attrs
                .iter()
                .map(|(k, v)| ((*k).into(), v.clone()))
                .collect(),
            metadata: self.stamp.borrow().clone(),
            spot: self.spot.get(),
            inputs: inputs.to_vec(),
            outputs: outputs.iter().copied().map(Some).collect(),
            captures: Vec::new(),
        };
        self.fragment.borrow_mut().nodes.push(node);
        outputs.into_iter().map(Val::New).collect()
    }

    /// Says what the subgraphs of the last node capture, in the order of all captures.
    pub(crate) fn set_captures(&self, captures: Vec<Val>) {
        if let Some(node) = self.fragment.borrow_mut().nodes.last_mut() {
            node.captures = captures;
        }
    }

    /// Whether a name is free in the fragment, which has it from now on.
    pub(super) fn claim(&self, name: &str) -> bool {
        let mut taken = self.taken.borrow_mut();
        let seen = taken.entry(name.into()).or_insert(0);
        *seen += 1;
        *seen == 1
    }

    /// An initializer of another graph, under a name that was claimed.
    pub(super) fn adopted(&self, name: &str, tensor: TensorData, metadata: Metadata) -> Val {
        Val::New(self.value(NewValue {
            name: name.into(),
            ty: None,
            tensor: Some(tensor),
            metadata,
            input: false,
        }))
    }

    /// A node of another graph, with outputs under names that were claimed.
    pub(super) fn adopted_node(
        &self,
        node: Node,
        inputs: Vec<Option<Val>>,
        captures: Vec<Val>,
        outputs: &[Option<String>],
    ) -> Vec<Option<Val>> {
        let value = |name: &String| {
            self.value(NewValue {
                name: name.as_str().into(),
                ty: None,
                tensor: None,
                metadata: Metadata::default(),
                input: false,
            })
        };
        let outputs: Vec<Option<u32>> = outputs.iter().map(|n| n.as_ref().map(value)).collect();
        let made = outputs.iter().map(|o| o.map(Val::New)).collect();
        self.fragment.borrow_mut().nodes.push(NewNode {
            name: node.name,
            op: node.op,
            attrs: node.attrs,
            metadata: node.metadata,
            spot: self.spot.get(),
            inputs,
            outputs,
            captures,
        });
        made
    }

    /// A node of `graph` once more, which reads `find(v)` where the node reads `v`. Each output with its copy.
    pub(crate) fn copy_node(
        &self,
        graph: &Graph,
        node: NodeId,
        find: impl Fn(ValueId) -> Val,
    ) -> Vec<(ValueId, Val)> {
        let inputs = graph.node_inputs(node).into_iter().map(|v| v.map(&find));
        let inputs: Vec<Option<Val>> = inputs.collect();
        let old = graph.node_outputs(node);
        let node = graph.node(node);
        let attrs: Vec<(&str, Attr)> = node.attrs.iter().map(|(k, a)| (&**k, a.clone())).collect();
        let new = self.node_n(node.op.clone(), &inputs, &attrs, old.len());
        let pairs = old.into_iter().zip(new);
        pairs.filter_map(|(o, n)| Some((o?, n))).collect()
    }

    /// A new single-output node of `ai.onnx`.
    pub fn op(&self, op_type: &str, inputs: &[Val], attrs: &[(&str, Attr)]) -> Val {
        self.op_in("", op_type, inputs, attrs)
    }

    /// A new single-output node of any domain.
    pub fn op_in(
        &self,
        domain: &str,
        op_type: &str,
        inputs: &[Val],
        attrs: &[(&str, Attr)],
    ) -> Val {
        let inputs: Vec<Option<Val>> = inputs.iter().copied().map(Some).collect();
        self.node_n(OpId::new(domain, op_type), &inputs, attrs, 1)[0]
    }

    /// Names the first output of the last node made (instead of the generated name).
    pub fn name_last_output(&self, name: &str) {
        let mut f = self.fragment.borrow_mut();
        let Some(Some(ix)) = f.nodes.last().and_then(|n| n.outputs.first().copied()) else {
            return;
        };
        if let Some(v) = f.values.get_mut(ix as usize) {
            v.name = name.into();
        }
    }

    /// Adds a `metadata_props` entry to the last node made.
    pub(crate) fn mark_last_node(&self, key: &str, value: &str) {
        if let Some(n) = self.fragment.borrow_mut().nodes.last_mut() {
            n.metadata.insert(key.into(), value.into());
        }
    }

    // ---- the operators adapters and gradients are made of ----------------------------------------------------------------

    /// `a + b`, broadcasting.
    pub fn add(&self, a: impl Into<Val>, b: impl Into<Val>) -> Val {
        self.op("Add", &[a.into(), b.into()], &[])
    }

    /// `a - b`, broadcasting.
    pub fn sub(&self, a: impl Into<Val>, b: impl Into<Val>) -> Val {
        self.op("Sub", &[a.into(), b.into()], &[])
    }

    /// `a * b`, broadcasting.
    pub fn mul(&self, a: impl Into<Val>, b: impl Into<Val>) -> Val {
        self.op("Mul", &[a.into(), b.into()], &[])
    }

    /// `a / b`, broadcasting.
    pub fn div(&self, a: impl Into<Val>, b: impl Into<Val>) -> Val {
        self.op("Div", &[a.into(), b.into()], &[])
    }

    /// `a * s`; `a` itself when `s` is 1.
    #[expect(clippy::float_cmp, reason = "only the literal 1 needs no node")]
    pub fn scale(&self, a: impl Into<Val>, s: f32) -> Val {
        if s == 1.0 {
            a.into()
        } else {
            self.mul(a, self.scalar(s))
        }
    }

    /// `-a`.
    pub fn neg(&self, a: impl Into<Val>) -> Val {
        self.op("Neg", &[a.into()], &[])
    }

    /// Matrix product over the last two axes, broadcasting the others.
    pub fn matmul(&self, a: impl Into<Val>, b: impl Into<Val>) -> Val {
        self.op("MatMul", &[a.into(), b.into()], &[])
    }

    /// Permutation of axes.
    pub fn transpose(&self, a: impl Into<Val>, perm: &[i64]) -> Val {
        self.op("Transpose", &[a.into()], &[("perm", perm.into())])
    }

    /// The tensor in another shape, given as an `i64` vector.
    pub fn reshape(&self, a: impl Into<Val>, shape: impl Into<Val>) -> Val {
        self.op("Reshape", &[a.into(), shape.into()], &[])
    }

    /// The shape as an `i64` vector.
    pub fn shape(&self, a: impl Into<Val>) -> Val {
        self.op("Shape", &[a.into()], &[])
    }

    /// Conversion to an element type.
    pub fn cast(&self, a: impl Into<Val>, to: DType) -> Val {
        self.op("Cast", &[a.into()], &[("to", i64::from(to.code()).into())])
    }

    /// Unary operators without attributes: `Sigmoid`, `Tanh`, `Relu`, `Exp`, `Sqrt`, `Erf`, …
    pub fn unary(&self, op_type: &str, a: impl Into<Val>) -> Val {
        self.op(op_type, &[a.into()], &[])
    }

    /// Sum over axes.
    pub fn reduce_sum(&self, a: impl Into<Val>, axes: &[i64], keepdims: bool) -> Val {
        let axes = self.ints(axes);
        self.op(
            "ReduceSum",
            &[a.into(), axes],
            &[("keepdims", i64::from(keepdims).into())],
        )
    }

    /// Mean over axes. Axes are an attribute before opset 18, an input from then on.
    pub fn reduce_mean(&self, a: impl Into<Val>, axes: &[i64], keepdims: bool) -> Val {
        self.reduce("ReduceMean", a.into(), axes, keepdims)
    }

    /// Any reduction whose axes moved from attribute to input at opset 18 (`ReduceMean`, `ReduceMax`, `ReduceL2`, …).
    pub(crate) fn reduce(&self, op_type: &str, a: Val, axes: &[i64], keepdims: bool) -> Val {
        let keep = ("keepdims", Attr::from(i64::from(keepdims)));
        if self.opset < 18 {
            return self.op(op_type, &[a], &[("axes", axes.into()), keep]);
        }
        let axes = self.ints(axes);
        self.op(op_type, &[a, axes], &[keep])
    }

    /// Concatenation along an axis.
    pub fn concat(&self, parts: &[Val], axis: i64) -> Val {
        self.op("Concat", parts, &[("axis", axis.into())])
    }

    /// `x[..., start:end, ...]` along one axis.
    pub fn slice(&self, a: impl Into<Val>, axis: i64, start: i64, end: i64) -> Val {
        let a = a.into();
        let row = self.row_of(a);
        let axis = match row {
            Some(row) if axis >= 0 => axis - row.axes as i64,
            Some(_) | None => axis,
        };
        let (s, e, x) = (self.ints(&[start]), self.ints(&[end]), self.ints(&[axis]));
        let out = self.op("Slice", &[a, s, e, x], &[]);
        if let Some(row) = row {
            self.mark_by_row(out, row.axes, row.rank);
        }
        out
    }

    /// Inserts axes of size one.
    pub fn unsqueeze(&self, a: impl Into<Val>, axes: &[i64]) -> Val {
        let axes = self.ints(axes);
        self.op("Unsqueeze", &[a.into(), axes], &[])
    }

    /// Removes axes of size one.
    pub fn squeeze(&self, a: impl Into<Val>, axes: &[i64]) -> Val {
        let a = a.into();
        if let (Some(ByRow { axes: 2, rank }), [axis]) = (self.row_of(a), axes) {
            // The axis of size 1 becomes one of those that broadcast.
            let out = match axis {
                0 | -2 => a,
                _ => self.flipped(a, rank),
            };
            self.mark_by_row(out, 1, rank);
            return out;
        }
        let axes = self.ints(axes);
        self.op("Squeeze", &[a, axes], &[])
    }

    /// `y = x·Wᵀ` for a weight of shape `[out, in]`, as adapters store it.
    pub fn linear_t(&self, x: impl Into<Val>, weight: impl Into<Val>) -> Val {
        let weight = weight.into();
        if self.transposed.borrow().contains(&weight) {
            return self.matmul(x, weight);
        }
        let w = match self.row_of(weight) {
            Some(row) => self.flipped(weight, row.rank),
            None => self.transpose(weight, &[1, 0]),
        };
        self.matmul(x, w)
    }

    /// Makes a graph of a fragment that reads nothing but its own values. Outputs get the names and types given.
    pub fn finish_graph(
        self,
        name: &str,
        outputs: &[(Val, &str, Type)],
    ) -> Result<Graph, NameTaken> {
        let mut fragment = self.finish();
        for (v, name, _) in outputs {
            if let Val::New(ix) = v
                && let Some(value) = fragment.values.get_mut(*ix as usize)
            {
                value.name = (*name).into();
            }
        }
        let mut g = Graph::default();
        g.name = name.into();
        let end = g.end_anchor();
        let ids = g.insert_fragment(fragment, |_, i| OrderKey {
            anchor: end + i,
            seq: 0,
        })?;
        for (v, _, ty) in outputs {
            if let Val::New(ix) = v {
                g.outputs.push(GraphPort {
                    value: ids[*ix as usize],
                    ty: Some(ty.clone()),
                    residue: Bytes::new(),
                });
            }
        }
        Ok(g)
    }
}

impl Graph {
    /// Puts a fragment into the graph; `place` gives the order of its i-th node. Returns the ids of its values.
    pub(crate) fn insert_fragment(
        &mut self,
        fragment: Fragment,
        mut place: impl FnMut(&NewNode, u32) -> OrderKey,
    ) -> Result<Vec<ValueId>, NameTaken> {
        let mut ids = Vec::with_capacity(fragment.values.len());
        for v in fragment.values {
            let is_initializer = v.tensor.is_some();
            let id = self.add_value(Value {
                name: v.name,
                ty: v.ty.clone(),
                tensor: v.tensor,
                metadata: v.metadata,
            })?;
            if is_initializer {
                self.initializers.push(id);
            }
            if v.input {
                self.inputs.push(GraphPort {
                    value: id,
                    ty: v.ty,
                    residue: Bytes::new(),
                });
            }
            ids.push(id);
        }
        let resolve = |v: Val, ids: &[ValueId]| match v {
            Val::Old(id) => id,
            Val::New(ix) => ids[ix as usize],
        };
        for (i, n) in fragment.nodes.into_iter().enumerate() {
            let order = place(&n, i as u32);
            let ins: Vec<_> = n
                .inputs
                .iter()
                .map(|v| v.map(|v| resolve(v, &ids)))
                .collect();
            let outs: Vec<_> = n
                .outputs
                .iter()
                .map(|o| o.map(|ix| ids[ix as usize]))
                .collect();
            let node = Node {
                name: n.name,
                op: n.op,
                attrs: n.attrs,
                metadata: n.metadata,
                residue: Bytes::new(),
                order,
                n_in: 0,
                n_out: 0,
            };
            let id = self.insert_node(node, order, &ins, &outs);
            let captures: Vec<_> = n.captures.iter().map(|v| resolve(*v, &ids)).collect();
            self.add_captures(id, &captures);
        }
        Ok(ids)
    }
}
