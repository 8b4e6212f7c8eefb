//! The graph IR: everything ONNX can say, in petgraph.
//!
//! Knows petgraph and nothing else: no protobuf, no serde, no candle, no I/O. [`Graph`] holds operator and value vertices;
//! [`Builder`] makes new ones; [`Patch`](crate::rewrite::Patch) is the only public editor. What is not interpreted rides along in
//! `residue` fields as encoded bytes, so that writing a model loses nothing.

mod attr;
mod body;
mod build;
pub(crate) mod contract;
pub(crate) mod diff;
mod graph;
mod id;
pub(crate) mod layers;
#[cfg(test)]
pub(crate) mod looks;
mod model;
mod node;
mod order;
mod sym;
mod tensor;
pub mod text;
mod types;
pub(crate) mod verify;

pub use attr::{Attr, AttrValue};
pub(crate) use body::{Adopted, Body};
pub use build::{Builder, Val};
pub(crate) use build::{Fragment, NewNode, NewValue, Spot};
pub(crate) use graph::InfoEntry;
pub use graph::{Graph, GraphPort, NameTaken, Use};
pub use id::{NodeId, ValueId};
pub use model::{Function, Model};
pub(crate) use node::OrderKey;
pub use node::{Metadata, Node, OpId, Value};
pub use order::Cycle;
pub use sym::{Fact, Sym};
pub use tensor::TensorData;
pub(crate) use tensor::{External, Payload, Typed, f32_to_bf16, f32_to_f16};
pub use types::{DType, Dim, Type, TypeKind};
