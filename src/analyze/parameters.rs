//! Counting the parameters of a model.

use crate::ir::contract::stamp;
use crate::ir::{DType, Graph, NodeId, Use, ValueId};

/// Number of the base model's parameters, head and adapters not counted: tables, matrices, kernels and vectors that a node multiplies,
/// adds or looks up. Initializers that an exporter merged count once, and codes as what they stand for.
pub(crate) fn base_parameters(graph: &Graph) -> u64 {
    let counts = |v: &ValueId| {
        let value = graph.value(*v);
        let Some(tensor) = value.tensor.as_ref() else {
            return 0;
        };
        if value.metadata.contains_key(stamp::ADAPTER) {
            return 0;
        }
        if !tensor.dtype.is_float() {
            return coded(graph, *v, tensor.count().unwrap_or(0), false);
        }
        let weighs = read(graph, *v).into_iter().any(|u| {
            let Use::Input(n, slot) = u else { return false };
            let op = &*graph.node(n).op.op_type;
            let head =
                graph.output(n, 0).is_some_and(|o| graph.is_output(o)) && tensor.dims.len() == 2;
            match tensor.dims.len() {
                1 if is_scale(graph, n) => false,
                1 => matches!(
                    op,
                    "Mul" | "Add" | "LayerNormalization" | "Gemm" | "Conv" | "RMSNormalization"
                ),
                2 => (matches!(op, "MatMul" | "Gemm") || (op == "Gather" && slot == 0)) && !head,
                _ => op == "Conv",
            }
        });
        if weighs {
            tensor.count().unwrap_or(0)
        } else {
            0
        }
    };
    graph.initializers().iter().map(counts).sum()
}

/// Number of the weights that codes stand for; `count` is their own number. Those of the last product count if `head` says so.
pub(crate) fn coded(graph: &Graph, v: ValueId, count: u64, head: bool) -> u64 {
    let stand_for = |u: Use| {
        let Use::Input(n, slot) = u else { return 0 };
        let node = graph.node(n);
        let made = || graph.output(n, 0);
        if !head && made().is_some_and(|o| ends(graph, o)) {
            return 0;
        }
        let size = |name: &str| u64::try_from(node.int(name, 0)).unwrap_or(0);
        match (&*node.op.op_type, slot) {
            ("MatMulNBits" | "MatMulBnb4", 1) => size("K").saturating_mul(size("N")),
            (
                "MatMulInteger" | "MatMulIntegerToFloat" | "DynamicQuantizeMatMul" | "ConvInteger",
                1,
            ) => count,
            // Two codes of four bits share a byte.
            ("GatherBlockQuantized", 0) => {
                let packed = graph.value(v).tensor.as_ref().map(|t| t.dtype) == Some(DType::Uint8);
                count.saturating_mul(if packed && size("bits") != 8 { 2 } else { 1 })
            }
            ("DequantizeLinear", 0) => {
                let weight = |u: &Use| {
                    let Use::Input(n, _) = u else { return false };
                    let op = &*graph.node(*n).op.op_type;
                    matches!(op, "MatMul" | "Gemm" | "Gather" | "Conv" | "Transpose")
                };
                let read = made().map(|o| read(graph, o)).unwrap_or_default();
                if read.iter().any(weight) { count } else { 0 }
            }
            _ => 0,
        }
    };
    graph.uses(v).into_iter().map(stand_for).max().unwrap_or(0)
}

/// Whether a node multiplies the scale of a weight with that of what was quantized while the model ran.
fn is_scale(graph: &Graph, n: NodeId) -> bool {
    let inputs = graph.node_inputs(n).into_iter().flatten();
    let mut producers = inputs.filter_map(|v| graph.producer(v));
    producers.any(|(p, _)| graph.node(p).op.is_onnx("DynamicQuantizeLinear"))
}

/// Whether a value is an output of the graph, or becomes one by a conversion and a scale.
fn ends(graph: &Graph, v: ValueId) -> bool {
    const STEPS: usize = 2;
    let mut v = v;
    for _ in 0..STEPS {
        if graph.is_output(v) {
            return true;
        }
        let [Use::Input(n, _)] = graph.uses(v)[..] else {
            return false;
        };
        let op = &graph.node(n).op;
        let Some(next) = graph
            .output(n, 0)
            .filter(|_| op.is_onnx("Cast") || op.is_onnx("Mul"))
        else {
            return false;
        };
        v = next;
    }
    graph.is_output(v)
}

/// Who reads a value, through the conversions of a stored number format.
fn read(graph: &Graph, v: ValueId) -> Vec<Use> {
    let mut out = Vec::new();
    for u in graph.uses(v) {
        let converted = match u {
            Use::Input(n, 0) if graph.node(n).op.is_onnx("Cast") => graph.output(n, 0),
            _ => None,
        };
        match converted {
            Some(converted) => out.extend(graph.uses(converted)),
            None => out.push(u),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::base_parameters;
    use std::path::Path;

    /// A quantized file has the parameters of the file that it was made of, up to its norms and what a quantizer leaves.
    #[test]
    fn codes_count_as_what_they_stand_for() {
        let count = |name: &str| {
            let root = Path::new(env!("CARGO_MANIFEST_DIR"));
            let model = crate::onnx::open(root.join("fixtures/skill").join(name)).unwrap();
            base_parameters(&model.graph)
        };
        let whole = count("model.onnx");
        assert_eq!(whole, count("model.int4.onnx"));
        assert_eq!(whole, count("model.int8.onnx"));
    }
}
