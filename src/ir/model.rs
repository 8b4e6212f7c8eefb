//! A model: the main graph, functions, opset imports, and what rides along.

use super::graph::Graph;
use super::node::Metadata;
use bytes::Bytes;

/// A whole ONNX model.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// The main graph.
    pub graph: Graph,
    /// Model-local functions, in file order.
    pub functions: Vec<Function>,
    /// Opset imports in file order: domain (`""` is `ai.onnx`; `ai.onnx` itself is kept as written) and version.
    pub opset_imports: Vec<(Box<str>, i64)>,
    /// `ir_version`; 0 when the file has none.
    pub ir_version: i64,
    /// `producer_name`.
    pub producer_name: Box<str>,
    /// `producer_version`.
    pub producer_version: Box<str>,
    /// `metadata_props`.
    pub metadata: Metadata,
    /// The encoded rest of the `ModelProto` (doc string, domain, training info, …).
    pub residue: Bytes,
}

/// A model-local function.
#[derive(Clone, Debug)]
pub struct Function {
    /// Name.
    pub name: Box<str>,
    /// Domain.
    pub domain: Box<str>,
    /// Overload.
    pub overload: Box<str>,
    /// The body; its inputs and outputs are the function's.
    pub body: Graph,
    /// Opset imports of the body.
    pub opset_imports: Vec<(Box<str>, i64)>,
    /// The encoded rest of the `FunctionProto` (attribute declarations, doc string, …).
    pub residue: Bytes,
}

impl Model {
    /// The imported version of a domain (`""` for `ai.onnx`); `None` if it is not imported.
    pub fn opset(&self, domain: &str) -> Option<i64> {
        let plain = |d: &str| if d == "ai.onnx" { "" } else { d }.to_owned();
        self.opset_imports
            .iter()
            .find(|(d, _)| plain(d) == plain(domain))
            .map(|(_, v)| *v)
    }
}
