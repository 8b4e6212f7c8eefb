//! Node attributes.

use super::graph::Graph;
use super::tensor::TensorData;
use bytes::Bytes;

/// One attribute of a node.
#[derive(Clone, Debug)]
pub struct Attr {
    /// Its value.
    pub value: AttrValue,
    /// The encoded rest of the `AttributeProto` (doc string, and fields that the value alone would not reproduce).
    pub residue: Bytes,
}

/// The value of an attribute, in ONNX's own kinds.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the kinds are AttributeProto's own")]
pub enum AttrValue {
    Float(f32),
    Int(i64),
    String(Bytes),
    Tensor(TensorData),
    Graph(Box<Graph>),
    Floats(Vec<f32>),
    Ints(Vec<i64>),
    Strings(Vec<Bytes>),
    Tensors(Vec<TensorData>),
    Graphs(Vec<Graph>),
    /// Inside a function body: the value of the call's attribute of this name. `kind` is the `AttributeType` number.
    Ref {
        name: Box<str>,
        kind: i32,
    },
    /// Sparse tensors and type protos: carried as the encoded `AttributeProto`, not interpreted.
    Other(Bytes),
}

impl AttrValue {
    /// The integer, if this is one.
    pub(crate) fn as_int(&self) -> Option<i64> {
        if let AttrValue::Int(i) = self {
            Some(*i)
        } else {
            None
        }
    }

    /// The float, if this is one.
    pub(crate) fn as_float(&self) -> Option<f32> {
        if let AttrValue::Float(f) = self {
            Some(*f)
        } else {
            None
        }
    }

    /// The floats, for a list of them.
    pub(crate) fn as_floats(&self) -> Option<&[f32]> {
        match self {
            AttrValue::Floats(v) => Some(v),
            _ => None,
        }
    }

    /// The list of integers, if this is one.
    pub(crate) fn as_ints(&self) -> Option<&[i64]> {
        if let AttrValue::Ints(v) = self {
            Some(v)
        } else {
            None
        }
    }

    /// The string, if this is one in UTF-8.
    pub fn as_str(&self) -> Option<&str> {
        if let AttrValue::String(s) = self {
            std::str::from_utf8(s).ok()
        } else {
            None
        }
    }

    /// The tensor, if this is one.
    pub(crate) fn as_tensor(&self) -> Option<&TensorData> {
        if let AttrValue::Tensor(t) = self {
            Some(t)
        } else {
            None
        }
    }
}

macro_rules! attr_from {
    ($($ty:ty => $e:expr),* $(,)?) => {$(
        impl From<$ty> for Attr {
            fn from(x: $ty) -> Attr {
                let f: fn($ty) -> AttrValue = $e;
                Attr { value: f(x), residue: Bytes::new() }
            }
        }
    )*};
}

attr_from! {
    f32 => AttrValue::Float,
    i64 => AttrValue::Int,
    &str => |s| AttrValue::String(Bytes::copy_from_slice(s.as_bytes())),
    TensorData => AttrValue::Tensor,
    Vec<i64> => AttrValue::Ints,
    &[i64] => |v| AttrValue::Ints(v.to_vec()),
    Vec<f32> => AttrValue::Floats,
    Graph => |g| AttrValue::Graph(Box::new(g)),
    AttrValue => |v| v,
}
