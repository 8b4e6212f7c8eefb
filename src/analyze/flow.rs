//! Where hidden states flow: what is to be known of each value for that, computed once in execution order, linear in the size of the graph.

use super::through::Through;
use super::view::View;
use crate::infer::Verified;
use crate::ir::{AttrValue, DType, Dim, Node, NodeId, TensorData, TypeKind, ValueId};

/// A [`View`] that also knows which values carry hidden states.
#[derive(Debug)]
pub(crate) struct Flow<'a> {
    view: View<'a>,
    /// Nodes in execution order.
    pub(crate) order: Vec<NodeId>,
    /// Whether the exporter gives modules names of its own.
    pub(crate) renames: bool,
    rank_of: Vec<u32>,
    facts: Vec<Known>,
}

#[derive(Clone, Debug, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent facts, not states"
)]
struct Known {
    dtype: Option<DType>,
    rank: Option<usize>,
    last: Option<i64>,
    constant: bool,
    /// Depends on the numbers in a graph input, not only on its shape.
    data: bool,
    /// Computed from embedded tokens or from a float input, quantized forms included.
    carries: bool,
    /// Carries hidden states: `carries`, in floats.
    flow: bool,
    output: bool,
    root: Option<ValueId>,
    place: i64,
}

/// Operators that look rows of a table up.
const EMBEDS: [&str; 3] = ["EmbedLayerNormalization", "Gather", "GatherBlockQuantized"];

/// Operators whose result is never a float.
const NOT_FLOAT: [&str; 19] = [
    "Shape",
    "Size",
    "Equal",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "And",
    "Or",
    "Not",
    "Xor",
    "IsNaN",
    "IsInf",
    "ArgMax",
    "ArgMin",
    "NonZero",
    "Range",
    "QuantizeLinear",
    "DynamicQuantizeLinear",
];

impl<'a> std::ops::Deref for Flow<'a> {
    type Target = View<'a>;

    fn deref(&self) -> &View<'a> {
        &self.view
    }
}

impl<'a> Flow<'a> {
    pub(crate) fn new(verified: &'a Verified) -> Self {
        let graph = &verified.model().graph;
        let order = graph.order().unwrap_or_default();
        let bound = graph.index_bound();
        let mut view = Flow {
            view: View::new(graph, verified),
            order: Vec::new(),
            renames: verified.model().producer_name.contains("genai"),
            rank_of: vec![0; bound],
            facts: vec![Known::default(); bound],
        };
        for v in graph.values() {
            view.facts[v.index()] = declared(verified, v);
        }
        for (i, port) in graph.inputs().iter().enumerate() {
            let k = &mut view.facts[port.value.index()];
            if k.constant {
                continue;
            }
            k.data = true;
            // A mask is no hidden state; neither is a cached key or value.
            let name = graph.name_of(port.value);
            k.flow = is_float(k.dtype)
                && k.rank != Some(1)
                && !name.contains("mask")
                && !name.contains("past");
            k.carries = k.flow;
            k.place = -1 - i as i64;
        }
        for port in graph.outputs() {
            view.facts[port.value.index()].output = true;
        }
        for (at, &n) in order.iter().enumerate() {
            view.rank_of[n.index()] = at as u32;
            view.visit(n, at as i64);
        }
        view.order = order;
        view
    }

    fn visit(&mut self, n: NodeId, at: i64) {
        let node = self.graph.node(n);
        let inputs = self.graph.node_inputs(n);
        let known = |v: Option<ValueId>| v.map(|v| &self.facts[v.index()]);
        let captures = self.graph.node_captures(n);
        let mut all = inputs.iter().copied().flatten().chain(captures);
        let random = node.op.op_type.starts_with("Random") || &*node.op.op_type == "Multinomial";
        let constant = !random && all.clone().all(|v| self.facts[v.index()].constant);
        let measures = matches!(&*node.op.op_type, "Shape" | "Size");
        let data = !measures && all.clone().any(|v| self.facts[v.index()].data);
        let embeds = data && self.embeds(node, &inputs);
        let carries = embeds || (!measures && all.any(|v| self.facts[v.index()].carries));
        let alias = self.alias(node, &inputs);
        let dtype = guess_dtype(node, &inputs, &|v| known(v).and_then(|k| k.dtype));
        for (slot, v) in self.graph.node_outputs(n).into_iter().enumerate() {
            let Some(v) = v else { continue };
            let k = &mut self.facts[v.index()];
            k.dtype = k.dtype.or(if slot == 0 { dtype } else { None });
            k.constant = constant;
            k.data = data;
            // Scale and zero point of a quantized value are no hidden states.
            let aside = slot > 0 && &*node.op.op_type == "DynamicQuantizeLinear";
            k.carries = carries && !aside && !matches!(k.dtype, Some(DType::Int64 | DType::Bool));
            k.flow = k.carries && is_float(k.dtype);
            k.place = at;
            k.root = if slot == 0 { alias } else { None };
        }
    }

    /// Whether the node looks up rows of a constant table by numbers that the caller gives.
    fn embeds(&self, node: &Node, inputs: &[Option<ValueId>]) -> bool {
        match &*node.op.op_type {
            "EmbedLayerNormalization" => true,
            "Gather" | "GatherBlockQuantized" => {
                let (Some(Some(table)), Some(Some(ids))) = (inputs.first(), inputs.get(1)) else {
                    return false;
                };
                let k = &self.facts[table.index()];
                k.constant && k.rank == Some(2) && self.facts[ids.index()].data
            }
            _ => false,
        }
    }

    fn alias(&self, node: &Node, inputs: &[Option<ValueId>]) -> Option<ValueId> {
        let from = inputs.first().copied().flatten()?;
        if node.op.is_onnx("DequantizeLinear") {
            let coded = self.graph.producer(from).map(|(n, _)| n);
            let coded = coded.filter(|n| self.graph.node(*n).op.is_onnx("QuantizeLinear"))?;
            return self.graph.input(coded, 0).map(|v| self.root(v));
        }
        let same = if node.op.is_onnx("Cast") {
            let to = DType::from_code(i32::try_from(node.int("to", 0)).ok()?);
            to.is_some() && to == self.facts[from.index()].dtype
        } else {
            Through::EQUAL.takes(&node.op)
        };
        same.then(|| self.root(from))
    }

    /// The value itself, behind no-op casts and identities, and before it was quantized and dequantized.
    pub(crate) fn root(&self, v: ValueId) -> ValueId {
        self.facts[v.index()].root.unwrap_or(v)
    }

    pub(crate) fn is_constant(&self, v: ValueId) -> bool {
        self.facts[v.index()].constant
    }

    pub(crate) fn is_flow(&self, v: ValueId) -> bool {
        self.facts[v.index()].flow
    }

    /// Whether a value is computed from hidden states, quantized forms included.
    pub(crate) fn carries(&self, v: ValueId) -> bool {
        self.facts[v.index()].carries
    }

    pub(crate) fn is_output(&self, v: ValueId) -> bool {
        self.facts[v.index()].output
    }

    pub(crate) fn is_data(&self, v: ValueId) -> bool {
        self.facts[v.index()].data
    }

    /// Whether a node looks up rows of an embedding table.
    pub(crate) fn is_lookup(&self, n: NodeId) -> bool {
        let node = self.node(n);
        if !EMBEDS.contains(&&*node.op.op_type) {
            return false;
        }
        let inputs = self.inputs(n);
        let data = inputs.iter().flatten().any(|v| self.is_data(*v));
        data && self.embeds(node, &inputs)
    }

    /// Whether a node makes codes of a value.
    pub(crate) fn quantizes(&self, n: NodeId) -> bool {
        matches!(self.op(n), "DynamicQuantizeLinear" | "QuantizeLinear")
    }

    /// What a quantized hidden state was made from; any other value itself.
    pub(crate) fn unquantized(&self, v: ValueId) -> ValueId {
        let quantizes = |n: &NodeId| self.quantizes(*n);
        if self.is_flow(v) || !self.carries(v) {
            return v;
        }
        let made = self.producer(v).filter(quantizes);
        made.and_then(|n| self.inputs(n).first().copied().flatten())
            .unwrap_or(v)
    }

    /// What an embedding lookup makes, dequantized.
    pub(crate) fn looked_up(&self, n: NodeId) -> Option<ValueId> {
        let rows = self.graph.output(n, 0)?;
        match self.readers(rows)[..] {
            [r] if !self.is_flow(rows) && self.op(r) == "DequantizeLinear" => {
                self.graph.output(r, 0)
            }
            _ => Some(rows),
        }
    }

    /// Whether an embedding lookup reads the ids of tokens, as the caller gives them, rather than positions or types.
    pub(crate) fn reads_token_ids(&self, n: NodeId) -> bool {
        let slot = usize::from(self.op(n) != "EmbedLayerNormalization");
        let Some(ids) = self.input(n, slot) else {
            return false;
        };
        let passes = Through::ALIKE.or(Through::SHAPE).or(Through::PART);
        let first = passes.source(self.graph, ids);
        let name = self.graph.name_of(first);
        let other = ["mask", "position", "type"];
        self.graph.is_input(first) && !other.iter().any(|w| name.contains(w))
    }

    /// The graph output that a value becomes, elementwise arithmetic aside (a soft cap, a cast, a scale).
    pub(crate) fn exit(&self, v: ValueId) -> Option<ValueId> {
        let passes = Through::ALIKE
            .or(Through::SHAPE)
            .or(Through::PART)
            .or(Through::PICK)
            .or(Through::FACTOR)
            .or(Through::SUM)
            .or(Through::BOUND);
        let mut at = v;
        loop {
            if self.is_output(at) {
                return Some(at);
            }
            let readers: Vec<NodeId> = self
                .readers(at)
                .into_iter()
                .filter(|r| !self.measures(*r))
                .collect();
            let [r] = readers[..] else { return None };
            at = passes.after(self.graph, r)?;
        }
    }

    pub(crate) fn rank(&self, v: ValueId) -> Option<usize> {
        self.facts[v.index()].rank
    }

    /// Size of the last axis, where it is a known number.
    pub(crate) fn last(&self, v: ValueId) -> Option<usize> {
        self.facts[v.index()]
            .last
            .and_then(|n| usize::try_from(n).ok())
    }

    /// Place of a node in the execution order.
    pub(crate) fn place(&self, n: NodeId) -> u32 {
        self.rank_of[n.index()]
    }

    /// Place of the definition of a value; graph inputs come before all nodes, the first one last.
    pub(crate) fn defined(&self, v: ValueId) -> i64 {
        self.facts[v.index()].place
    }

    /// The nodes that read a value, each once, in execution order.
    pub(crate) fn readers(&self, v: ValueId) -> Vec<NodeId> {
        let mut out: Vec<NodeId> = self.graph.value_readers(v).collect();
        out.sort_by_key(|n| self.place(*n));
        out.dedup();
        out
    }

    /// The tensor that stands for a value, behind no-op casts and identities.
    pub(crate) fn tensor(&self, v: ValueId) -> Option<&'a TensorData> {
        self.view.tensor(self.root(v))
    }
}

fn is_float(dtype: Option<DType>) -> bool {
    dtype.is_none_or(DType::is_float)
}

fn declared(verified: &Verified, v: ValueId) -> Known {
    let value = verified.model().graph.value(v);
    let mut k = Known {
        place: i64::MIN,
        ..Known::default()
    };
    if let Some(t) = &value.tensor {
        k.constant = true;
        k.dtype = Some(t.dtype);
        k.rank = Some(t.dims.len());
        k.last = t.dims.last().and_then(|&d| i64::try_from(d).ok());
        return k;
    }
    if let Some(ty) = &value.ty
        && let TypeKind::Tensor { dtype, dims } = &ty.kind
    {
        k.dtype = Some(*dtype).filter(|d| *d != DType::Undefined);
        k.rank = dims.as_ref().map(Vec::len);
        k.last = dims.as_ref().and_then(|d| match d.last() {
            Some(Dim::Known(n)) => Some(*n),
            _ => None,
        });
    }
    if let Some(f) = verified.fact(v) {
        k.dtype = f.dtype.or(k.dtype);
        k.rank = f.rank().or(k.rank);
        k.last = f.size(-1).or(k.last);
    }
    k
}

/// The element type of a node's first output, where it is neither declared nor inferred.
fn guess_dtype(
    node: &Node,
    inputs: &[Option<ValueId>],
    dtype: &dyn Fn(Option<ValueId>) -> Option<DType>,
) -> Option<DType> {
    match &*node.op.op_type {
        "Shape" | "Size" | "ArgMax" | "ArgMin" | "NonZero" => Some(DType::Int64),
        "Cast" => DType::from_code(i32::try_from(node.int("to", 0)).ok()?),
        "Constant" => match node.attr("value") {
            Some(AttrValue::Tensor(t)) => Some(t.dtype),
            _ => None,
        },
        "Where" => dtype(inputs.get(1).copied().flatten()),
        "MatMulInteger" => Some(DType::Int32),
        "DequantizeLinear" | "EmbedLayerNormalization" => Some(DType::Float),
        "QuantizeLinear" | "DynamicQuantizeLinear" => Some(DType::Uint8),
        op if NOT_FLOAT.contains(&op) => Some(DType::Bool),
        _ => dtype(inputs.first().copied().flatten()),
    }
}
