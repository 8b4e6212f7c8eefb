//! Counting the parameters of a model.

use crate::ir::contract::stamp;
use crate::ir::{Graph, Use, ValueId};

/// Number of the base model's parameters, head and adapters not counted: tables, matrices, kernels and vectors that a node multiplies,
/// adds or looks up. Initializers that an exporter merged count once.
pub(crate) fn base_parameters(graph: &Graph) -> u64 {
    let counts = |v: &ValueId| {
        let value = graph.value(*v);
        let Some(tensor) = value.tensor.as_ref().filter(|t| t.dtype.is_float()) else {
            return 0;
        };
        if value.metadata.contains_key(stamp::ADAPTER) {
            return 0;
        }
        let weighs = read(graph, *v).into_iter().any(|u| {
            let Use::Input(n, slot) = u else { return false };
            let op = &*graph.node(n).op.op_type;
            let head =
                graph.output(n, 0).is_some_and(|o| graph.is_output(o)) && tensor.dims.len() == 2;
            match tensor.dims.len() {
                1 => matches!(
                    op,
                    "Mul" | "Add" | "LayerNormalization" | "Gemm" | "Conv" | "RMSNormalization"
                ),
                2 => {
                    (matches!(op, "MatMul" | "Gemm" | "MatMulNBits")
                        || (op == "Gather" && slot == 0))
                        && !head
                }
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
