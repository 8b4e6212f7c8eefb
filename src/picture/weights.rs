//! Which initializers are parameters, how many numbers each is, and which node reads it first.

use super::scene::{Kind, Scene};
use crate::analyze::parameters::coded;
use crate::ir::contract::stamp;
use crate::ir::{NodeId, TensorData, ValueId};

/// A parameter of the model or of an adapter.
#[derive(Clone, Debug)]
pub(super) struct Weight {
    pub(super) value: ValueId,
    /// The first node that computes with it.
    pub(super) reader: NodeId,
    /// Further nodes that do.
    pub(super) others: Vec<NodeId>,
    /// Number of numbers, of codes as what they stand for.
    pub(super) count: u64,
    /// How it is stored, where that is no `f32`.
    pub(super) stored: Option<String>,
    /// Whose it is, if not the base model's.
    pub(super) adapter: Option<u32>,
    pub(super) trains: bool,
}

/// All parameters, in file order. Linear in the size of the graph.
pub(super) fn weights(scene: &mut Scene<'_>) -> Vec<Weight> {
    let readers = readers(scene);
    let mut out = Vec::new();
    for &v in scene.flow.graph.initializers() {
        let value = scene.flow.graph.value(v);
        let Some(tensor) = &value.tensor else {
            continue;
        };
        let mut read = readers[v.index()].clone();
        // An adapter that applies a module's norm again is no home for the module's weights.
        let own = value.metadata.contains_key(stamp::ADAPTER);
        read.sort_by_key(|n| !own && scene.adapter(*n).is_some());
        let Some((reader, others)) = read.split_first() else {
            continue;
        };
        let numbers = tensor.count().unwrap_or(0);
        let owner = value.metadata.get(stamp::ADAPTER).cloned();
        let kind = value.metadata.get(stamp::PARAM).map(|k| &**k);
        let rows = value.metadata.contains_key(stamp::ROWS);
        let (count, stored) = match &owner {
            Some(_) if kind.is_none() && !rows => continue,
            Some(_) => (numbers, None),
            None => base(scene, v, tensor, *reader),
        };
        if count == 0 {
            continue;
        }
        let adapter = owner.map(|name| scene.own(&name));
        out.push(Weight {
            value: v,
            reader: *reader,
            others: others.to_vec(),
            count,
            stored,
            adapter,
            trains: kind == Some("trainable"),
        });
    }
    out
}

/// Most readers of one parameter that are looked at: the first ones.
const READERS: usize = 256;

/// For each value the nodes that compute with it, behind what only prepares it (a cast, a transposition, a scale), in execution order.
fn readers(scene: &Scene<'_>) -> Vec<Vec<NodeId>> {
    let flow = &scene.flow;
    let mut out: Vec<Vec<NodeId>> = vec![Vec::new(); flow.graph.index_bound()];
    for &n in flow.order.iter().rev() {
        let outputs: Vec<ValueId> = flow.graph.node_outputs(n).into_iter().flatten().collect();
        let prepares = !outputs.is_empty() && outputs.iter().all(|v| flow.is_constant(*v));
        let behind: Vec<NodeId> = if prepares {
            let behind = outputs.iter().flat_map(|v| out[v.index()].iter().copied());
            behind.take(READERS).collect()
        } else {
            vec![n]
        };
        for v in flow.graph.node_sources(n) {
            let list = &mut out[v.index()];
            if flow.is_constant(v) {
                list.extend(behind.iter().take(READERS));
                list.drain(..list.len().saturating_sub(READERS));
            }
        }
    }
    for list in &mut out {
        list.sort_by_key(|n| flow.place(*n));
        list.dedup();
    }
    out
}

/// How many parameters of the base model an initializer is, and how they are stored.
fn base(
    scene: &Scene<'_>,
    v: ValueId,
    tensor: &TensorData,
    reader: NodeId,
) -> (u64, Option<String>) {
    let flow = &scene.flow;
    let numbers = tensor.count().unwrap_or(0);
    if !tensor.dtype.is_float() {
        let count = coded(flow.graph, v, numbers, true);
        // Packed codes stand for more numbers than their type says.
        let bits = match flow.op(reader) {
            "MatMulBnb4" => 4,
            "MatMulNBits" | "GatherBlockQuantized" => flow.node(reader).int("bits", 4),
            _ => i64::try_from(tensor.dtype.bits()).unwrap_or(0),
        };
        return (count, (count > 0).then(|| format!("{bits}-bit")));
    }
    let direct = || flow.graph.uses(v).into_iter();
    let scales = direct().any(|u| match u {
        crate::ir::Use::Input(n, slot) => beside(flow.op(n), slot),
        crate::ir::Use::Capture(..) => false,
    });
    let op = flow.op(reader);
    let axes = tensor.dims.len();
    let weighs = match scene.kind(reader) {
        Kind::Main => {
            numbers > 1 && (axes <= 3 || op.ends_with("Conv") || op.ends_with("ConvTranspose"))
        }
        Kind::Aside => axes == 2 && op == "Gather",
        Kind::Idle => false,
    };
    if scales || !weighs {
        return (0, None);
    }
    let name = tensor.dtype.name();
    (numbers, (name != "f32").then(|| name.to_owned()))
}

/// Whether an operator reads no parameter in a slot, but scales of codes or tables of angles.
fn beside(op: &str, slot: u32) -> bool {
    match op {
        "DequantizeLinear" | "QuantizeLinear" | "RotaryEmbedding" => slot > 0,
        "MatMulNBits" => (2..5).contains(&slot),
        "MatMulBnb4" => slot == 2,
        "GatherBlockQuantized" => slot > 1,
        "DynamicQuantizeMatMul" => (2..4).contains(&slot),
        "MatMulIntegerToFloat" => (2..6).contains(&slot),
        "GroupQueryAttention" => slot > 6,
        op => op.starts_with("QLinear"),
    }
}
