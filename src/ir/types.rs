//! Element types, dimensions and value types, in ONNX's terms.

use bytes::Bytes;
use std::fmt;

/// `TensorProto.DataType`, all of them. The discriminant is ONNX's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(i32)]
#[expect(missing_docs, reason = "the names are ONNX's own")]
pub enum DType {
    Undefined = 0,
    Float = 1,
    Uint8 = 2,
    Int8 = 3,
    Uint16 = 4,
    Int16 = 5,
    Int32 = 6,
    Int64 = 7,
    String = 8,
    Bool = 9,
    Float16 = 10,
    Double = 11,
    Uint32 = 12,
    Uint64 = 13,
    Complex64 = 14,
    Complex128 = 15,
    Bfloat16 = 16,
    Float8E4M3FN = 17,
    Float8E4M3FNUZ = 18,
    Float8E5M2 = 19,
    Float8E5M2FNUZ = 20,
    Uint4 = 21,
    Int4 = 22,
    Float4E2M1 = 23,
    Float8E8M0 = 24,
    Uint2 = 25,
    Int2 = 26,
    Float6E2M3 = 27,
    Float6E3M2 = 28,
}

const DTYPES: [(DType, &str, u64); 29] = [
    (DType::Undefined, "undefined", 0),
    (DType::Float, "f32", 32),
    (DType::Uint8, "u8", 8),
    (DType::Int8, "i8", 8),
    (DType::Uint16, "u16", 16),
    (DType::Int16, "i16", 16),
    (DType::Int32, "i32", 32),
    (DType::Int64, "i64", 64),
    (DType::String, "string", 0),
    (DType::Bool, "bool", 8),
    (DType::Float16, "f16", 16),
    (DType::Double, "f64", 64),
    (DType::Uint32, "u32", 32),
    (DType::Uint64, "u64", 64),
    (DType::Complex64, "c64", 64),
    (DType::Complex128, "c128", 128),
    (DType::Bfloat16, "bf16", 16),
    (DType::Float8E4M3FN, "f8e4m3fn", 8),
    (DType::Float8E4M3FNUZ, "f8e4m3fnuz", 8),
    (DType::Float8E5M2, "f8e5m2", 8),
    (DType::Float8E5M2FNUZ, "f8e5m2fnuz", 8),
    (DType::Uint4, "u4", 4),
    (DType::Int4, "i4", 4),
    (DType::Float4E2M1, "f4e2m1", 4),
    (DType::Float8E8M0, "f8e8m0", 8),
    (DType::Uint2, "u2", 2),
    (DType::Int2, "i2", 2),
    (DType::Float6E2M3, "f6e2m3", 6),
    (DType::Float6E3M2, "f6e3m2", 6),
];

impl DType {
    /// From ONNX's number; `None` for a number this version of the schema does not know.
    pub(crate) fn from_code(code: i32) -> Option<Self> {
        DTYPES.get(usize::try_from(code).ok()?).map(|d| d.0)
    }

    /// ONNX's number.
    pub(crate) fn code(self) -> i32 {
        self as i32
    }

    /// The name used by the text form: `f32`, `i64`, `bool`, …
    pub fn name(self) -> &'static str {
        DTYPES[self as usize].1
    }

    /// The inverse of [`name`](Self::name).
    pub fn from_name(name: &str) -> Option<Self> {
        DTYPES.iter().find(|d| d.1 == name).map(|d| d.0)
    }

    /// Bits of one element in `raw_data`; 0 where elements have no fixed size (strings).
    pub(crate) fn bits(self) -> u64 {
        DTYPES[self as usize].2
    }

    /// Bytes that `count` elements take in `raw_data` (sub-byte types are packed), or `None` on overflow or for strings.
    pub(crate) fn bytes_for(self, count: u64) -> Option<u64> {
        match self.bits() {
            0 => None,
            bits => Some(count.checked_mul(bits)?.div_ceil(8)),
        }
    }

    /// Whether gradients can flow through values of this type.
    pub fn is_float(self) -> bool {
        matches!(
            self,
            DType::Float | DType::Double | DType::Float16 | DType::Bfloat16
        )
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One dimension as the file declares it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Dim {
    /// A fixed size.
    Known(i64),
    /// A named size (`dim_param`): equal names in one graph mean equal sizes.
    Symbol(Box<str>),
    /// Declared without a size.
    Unknown,
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Dim::Known(n) => write!(f, "{n}"),
            Dim::Symbol(s) => f.write_str(s),
            Dim::Unknown => f.write_str("?"),
        }
    }
}

/// The declared type of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Type {
    /// What is interpreted of it.
    pub kind: TypeKind,
    /// The encoded `TypeProto` as read, where `kind` alone would not reproduce it (denotations, non-tensor types).
    pub exact: Option<Bytes>,
}

/// The interpreted part of a [`Type`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TypeKind {
    /// A dense tensor; `dims` is `None` when not even the rank is declared.
    Tensor {
        /// Element type.
        dtype: DType,
        /// Dimensions, outermost first.
        dims: Option<Vec<Dim>>,
    },
    /// Sequence, map, optional, sparse or opaque type: carried, not interpreted.
    Other,
}

impl Type {
    /// A tensor type.
    pub fn tensor(dtype: DType, dims: impl Into<Vec<Dim>>) -> Self {
        Type {
            kind: TypeKind::Tensor {
                dtype,
                dims: Some(dims.into()),
            },
            exact: None,
        }
    }

    /// Element type, for tensors.
    pub fn dtype(&self) -> Option<DType> {
        match &self.kind {
            TypeKind::Tensor { dtype, .. } => Some(*dtype),
            TypeKind::Other => None,
        }
    }

    /// Declared dimensions, for tensors with a known rank.
    pub fn dims(&self) -> Option<&[Dim]> {
        match &self.kind {
            TypeKind::Tensor { dims, .. } => dims.as_deref(),
            TypeKind::Other => None,
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            TypeKind::Tensor { dtype, dims: None } => write!(f, "{dtype}[..]"),
            TypeKind::Tensor {
                dtype,
                dims: Some(dims),
            } => {
                write!(f, "{dtype}[")?;
                for (i, d) in dims.iter().enumerate() {
                    write!(f, "{}{d}", if i > 0 { ", " } else { "" })?;
                }
                f.write_str("]")
            }
            TypeKind::Other => f.write_str("other"),
        }
    }
}
