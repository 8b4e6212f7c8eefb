//! Operator nodes and values: what a vertex of the graph carries.

use super::attr::{Attr, AttrValue};
use super::tensor::TensorData;
use super::types::Type;
use bytes::Bytes;
use indexmap::IndexMap;
use std::fmt;

/// Which operator a node applies.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OpId {
    /// Operator domain; `""` is `ai.onnx`.
    pub domain: Box<str>,
    /// Operator name.
    pub op_type: Box<str>,
    /// Overload of a model-local function; normally empty.
    pub overload: Box<str>,
}

impl OpId {
    /// An operator of the default domain.
    pub fn onnx(op_type: &str) -> Self {
        Self::new("", op_type)
    }

    /// An operator of any domain; `ai.onnx` is normalised to `""`.
    pub fn new(domain: &str, op_type: &str) -> Self {
        let domain = if domain == "ai.onnx" { "" } else { domain };
        OpId {
            domain: domain.into(),
            op_type: op_type.into(),
            overload: "".into(),
        }
    }

    /// Whether this is the named operator of the default domain.
    pub fn is_onnx(&self, op_type: &str) -> bool {
        self.domain.is_empty() && &*self.op_type == op_type
    }
}

impl fmt::Display for OpId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.domain.is_empty() {
            write!(f, "{}::", self.domain)?;
        }
        f.write_str(&self.op_type)?;
        if !self.overload.is_empty() {
            write!(f, ":{}", self.overload)?;
        }
        Ok(())
    }
}

/// Where a node stands in the file: `seq` 0 for the `anchor`-th node of the file, larger for one spliced in behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct OrderKey {
    /// Index of the anchoring node in the file.
    pub anchor: u32,
    /// Position among the nodes spliced in behind it.
    pub seq: u32,
}

/// `metadata_props`: ordered key-value pairs.
pub type Metadata = IndexMap<Box<str>, Box<str>>;

/// An operator node. Its inputs and outputs are edges of the graph.
#[derive(Clone, Debug)]
pub struct Node {
    /// Name; may be empty.
    pub name: Box<str>,
    /// Operator.
    pub op: OpId,
    /// Attributes, in file order.
    pub attrs: IndexMap<Box<str>, Attr>,
    /// `metadata_props`, in file order.
    pub metadata: Metadata,
    /// The encoded rest of the `NodeProto`.
    pub residue: Bytes,
    pub(super) order: OrderKey,
    pub(super) n_in: u32,
    pub(super) n_out: u32,
}

impl Node {
    /// A node without attributes and edges; its place and arity are set when it enters a graph.
    pub(crate) fn new(name: Box<str>, op: OpId) -> Self {
        Node {
            name,
            op,
            attrs: IndexMap::new(),
            metadata: Metadata::new(),
            residue: Bytes::new(),
            order: OrderKey { anchor: 0, seq: 0 },
            n_in: 0,
            n_out: 0,
        }
    }

    /// An attribute's value.
    pub(crate) fn attr(&self, name: &str) -> Option<&AttrValue> {
        self.attrs.get(name).map(|a| &a.value)
    }

    /// An integer attribute, or `default` when it is absent.
    pub fn int(&self, name: &str, default: i64) -> i64 {
        self.attr(name)
            .and_then(AttrValue::as_int)
            .unwrap_or(default)
    }

    /// A float attribute, or `default` when it is absent.
    pub fn float(&self, name: &str, default: f32) -> f32 {
        self.attr(name)
            .and_then(AttrValue::as_float)
            .unwrap_or(default)
    }

    /// A list-of-integers attribute.
    pub fn ints(&self, name: &str) -> Option<&[i64]> {
        self.attr(name).and_then(AttrValue::as_ints)
    }

    /// A string attribute.
    pub fn str(&self, name: &str) -> Option<&str> {
        self.attr(name).and_then(AttrValue::as_str)
    }

    /// Number of input slots, absent ones included.
    pub(crate) fn input_count(&self) -> usize {
        self.n_in as usize
    }

    /// Number of output slots, absent ones included.
    pub(crate) fn output_count(&self) -> usize {
        self.n_out as usize
    }

    /// Place in the file's order.
    pub(crate) fn order(&self) -> OrderKey {
        self.order
    }
}

/// A value: a graph input, an initializer, a node output or a capture from the enclosing graph.
#[derive(Clone, Debug)]
pub struct Value {
    /// Name, unique in its graph.
    pub name: Box<str>,
    /// Declared type, from `input`, `value_info` or `output`.
    pub ty: Option<Type>,
    /// The constant, for an initializer.
    pub tensor: Option<TensorData>,
    /// `metadata_props` of the initializer's `TensorProto`.
    pub metadata: Metadata,
}
