//! Tensor payloads: shared byte ranges, never copied to look at them, and remembered in the form in which the file stored them.

use super::types::DType;
use bytes::Bytes;
use std::path::Path;
use std::sync::Arc;

/// A constant tensor: an initializer or a tensor attribute.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorData {
    /// Element type.
    pub dtype: DType,
    /// Dimensions, outermost first; empty for a scalar.
    pub dims: Box<[u64]>,
    /// Where the elements are.
    pub(crate) payload: Payload,
    /// The encoded rest of the `TensorProto` (doc string, metadata, and the name of an attribute's tensor).
    pub(crate) residue: Bytes,
}

/// The storage form of a tensor.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Payload {
    /// `raw_data`: little-endian, row-major, packed.
    Raw(Bytes),
    /// One of the typed fields (`float_data`, `int64_data`, …).
    Typed(Typed),
    /// A range of another file.
    External(External),
}

/// A typed field of `TensorProto`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Typed {
    Float(Arc<[f32]>),
    Double(Arc<[f64]>),
    Int32(Arc<[i32]>),
    Int64(Arc<[i64]>),
    Uint64(Arc<[u64]>),
    String(Arc<[Bytes]>),
}

/// A range of another file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct External {
    /// `external_data` as written: `location`, `offset`, `length`, `checksum`, and whatever else the file says, in its order.
    pub entries: Arc<[(Box<str>, Box<str>)]>,
    /// The mapped bytes; empty when the model was read without its external files.
    pub bytes: Bytes,
    /// The folder that `location` is relative to; `None` when the model was read without its external files.
    pub folder: Option<Arc<Path>>,
}

impl External {
    /// The value of one key of `external_data`.
    pub(crate) fn entry(&self, key: &str) -> Option<&str> {
        self.entries
            .iter()
            .find(|(k, _)| &**k == key)
            .map(|(_, v)| &**v)
    }
}

impl TensorData {
    /// A tensor over raw little-endian bytes.
    pub fn raw(dtype: DType, dims: impl Into<Box<[u64]>>, bytes: Bytes) -> Self {
        TensorData {
            dtype,
            dims: dims.into(),
            payload: Payload::Raw(bytes),
            residue: Bytes::new(),
        }
    }

    /// An `f32` tensor.
    pub fn from_f32(dims: impl Into<Box<[u64]>>, data: &[f32]) -> Self {
        let bytes: Vec<u8> = data.iter().flat_map(|x| x.to_le_bytes()).collect();
        Self::raw(DType::Float, dims, bytes.into())
    }

    /// A tensor of a float type that holds these values, rounded to it; `None` for other types.
    pub(crate) fn from_floats(
        dtype: DType,
        dims: impl Into<Box<[u64]>>,
        data: &[f32],
    ) -> Option<Self> {
        let each = data.iter();
        let bytes: Vec<u8> = match dtype {
            DType::Float => each.flat_map(|x| x.to_le_bytes()).collect(),
            DType::Double => each.flat_map(|&x| f64::from(x).to_le_bytes()).collect(),
            DType::Bfloat16 => each.flat_map(|&x| f32_to_bf16(x).to_le_bytes()).collect(),
            DType::Float16 => each.flat_map(|&x| f32_to_f16(x).to_le_bytes()).collect(),
            _ => return None,
        };
        Some(Self::raw(dtype, dims, bytes.into()))
    }

    /// An `i64` tensor.
    pub fn from_i64(dims: impl Into<Box<[u64]>>, data: &[i64]) -> Self {
        let bytes: Vec<u8> = data.iter().flat_map(|x| x.to_le_bytes()).collect();
        Self::raw(DType::Int64, dims, bytes.into())
    }

    /// A one-dimensional `i64` tensor.
    pub(crate) fn ints(data: &[i64]) -> Self {
        Self::from_i64([data.len() as u64], data)
    }

    /// An `f32` scalar.
    pub(crate) fn scalar(x: f32) -> Self {
        Self::from_f32([], &[x])
    }

    /// Number of elements, or `None` on overflow.
    pub fn count(&self) -> Option<u64> {
        self.dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d))
    }

    /// Bytes of the payload as stored; 0 for an external tensor read without its file.
    pub(crate) fn stored_len(&self) -> usize {
        match &self.payload {
            Payload::Raw(b) | Payload::External(External { bytes: b, .. }) => b.len(),
            Payload::Typed(t) => match t {
                Typed::Float(v) => v.len() * 4,
                Typed::Int32(v) => v.len() * 4,
                Typed::Double(v) => v.len() * 8,
                Typed::Int64(v) => v.len() * 8,
                Typed::Uint64(v) => v.len() * 8,
                Typed::String(v) => v.iter().map(Bytes::len).sum(),
            },
        }
    }

    /// The elements as little-endian packed bytes. Raw and external payloads are shared, typed fields are converted.
    /// `None` for strings, for an external tensor read without its file, and when the size does not fit the dimensions.
    pub fn bytes(&self) -> Option<Bytes> {
        let want = usize::try_from(self.dtype.bytes_for(self.count()?)?).ok()?;
        let bytes = match &self.payload {
            Payload::Raw(b) | Payload::External(External { bytes: b, .. }) => b.clone(),
            Payload::Typed(t) => self.typed_bytes(t)?,
        };
        (bytes.len() == want).then_some(bytes)
    }

    fn typed_bytes(&self, typed: &Typed) -> Option<Bytes> {
        let out: Vec<u8> = match typed {
            Typed::Float(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Typed::Double(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Typed::Int64(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            // onnx.proto: uint64_data holds UINT32 and UINT64.
            Typed::Uint64(v) if self.dtype == DType::Uint32 => {
                v.iter().flat_map(|&x| (x as u32).to_le_bytes()).collect()
            }
            Typed::Uint64(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            // onnx.proto: int32_data holds every type of up to 32 bits, one element an entry; sub-byte types are packed.
            Typed::Int32(v) => match self.dtype.bits() {
                32 => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
                16 => v.iter().flat_map(|&x| (x as u16).to_le_bytes()).collect(),
                _ => v.iter().map(|&x| x as u8).collect(),
            },
            Typed::String(_) => return None,
        };
        Some(out.into())
    }

    /// The elements as `f32`, for `f32`, `f64`, `f16` and `bf16` tensors.
    pub fn to_f32(&self) -> Option<Vec<f32>> {
        let b = self.bytes()?;
        Some(match self.dtype {
            DType::Float => b
                .as_chunks()
                .0
                .iter()
                .map(|c| f32::from_le_bytes(*c))
                .collect(),
            DType::Double => b
                .as_chunks()
                .0
                .iter()
                .map(|c| f64::from_le_bytes(*c) as f32)
                .collect(),
            DType::Bfloat16 => b
                .as_chunks()
                .0
                .iter()
                .map(|c| f32::from_bits(u32::from(u16::from_le_bytes(*c)) << 16))
                .collect(),
            DType::Float16 => b
                .as_chunks()
                .0
                .iter()
                .map(|c| f16_to_f32(u16::from_le_bytes(*c)))
                .collect(),
            _ => return None,
        })
    }

    /// Some elements by their positions, for the types of [`to_f32`](Self::to_f32); `None` where there is no such position.
    pub(crate) fn floats_at(&self, at: &[usize]) -> Option<Vec<f32>> {
        let bytes = self.bytes()?;
        let size = usize::try_from(self.dtype.bytes_for(1)?).ok()?;
        let one = |i: &usize| {
            let begin = i.checked_mul(size)?;
            let bytes = bytes.get(begin..begin.checked_add(size)?)?;
            Self::raw(self.dtype, [], Bytes::copy_from_slice(bytes)).to_f32()
        };
        Some(at.iter().map(one).collect::<Option<Vec<_>>>()?.concat())
    }

    /// Number of elements that are NaN or infinite; 0 for types that [`to_f32`](Self::to_f32) does not read. Nothing is copied.
    pub(crate) fn not_finite(&self) -> usize {
        /// Elements whose exponent has all bits set.
        fn count<const N: usize>(bytes: &[u8], bits: impl Fn(&[u8; N]) -> bool) -> usize {
            let elements = bytes.as_chunks().0;
            elements.iter().map(|c| usize::from(bits(c))).sum()
        }
        let Some(b) = self.bytes() else {
            return 0;
        };
        match self.dtype {
            DType::Float => count(&b, |c| u32::from_le_bytes(*c) & 0x7f80_0000 == 0x7f80_0000),
            DType::Double => count(&b, |c| !f64::from_le_bytes(*c).is_finite()),
            DType::Bfloat16 => count(&b, |c| u16::from_le_bytes(*c) & 0x7f80 == 0x7f80),
            DType::Float16 => count(&b, |c| u16::from_le_bytes(*c) & 0x7c00 == 0x7c00),
            _ => 0,
        }
    }

    /// The elements as `i64`, for integer and bool tensors of at least a byte.
    pub fn to_i64(&self) -> Option<Vec<i64>> {
        let b = self.bytes()?;
        Some(match self.dtype {
            DType::Int64 | DType::Uint64 => b
                .as_chunks()
                .0
                .iter()
                .map(|c| i64::from_le_bytes(*c))
                .collect(),
            DType::Int32 => b
                .as_chunks()
                .0
                .iter()
                .map(|c| i64::from(i32::from_le_bytes(*c)))
                .collect(),
            DType::Uint32 => b
                .as_chunks()
                .0
                .iter()
                .map(|c| i64::from(u32::from_le_bytes(*c)))
                .collect(),
            DType::Int16 => b
                .as_chunks()
                .0
                .iter()
                .map(|c| i64::from(i16::from_le_bytes(*c)))
                .collect(),
            DType::Uint16 => b
                .as_chunks()
                .0
                .iter()
                .map(|c| i64::from(u16::from_le_bytes(*c)))
                .collect(),
            DType::Int8 => b.iter().map(|&x| i64::from(x as i8)).collect(),
            DType::Uint8 | DType::Bool => b.iter().map(|&x| i64::from(x)).collect(),
            _ => return None,
        })
    }
}

pub(super) fn f16_to_f32(h: u16) -> f32 {
    let sign = if h & 0x8000 == 0 { 1.0f32 } else { -1.0 };
    let (exp, frac) = ((h >> 10) & 0x1f, f32::from(h & 0x3ff));
    sign * match exp {
        0 => frac * 2f32.powi(-24),
        31 if frac == 0.0 => f32::INFINITY,
        31 => f32::NAN,
        e => (1.0 + frac / 1024.0) * 2f32.powi(i32::from(e) - 15),
    }
}

/// Round-to-nearest-even conversion to the bits of a `bf16`.
pub(crate) fn f32_to_bf16(x: f32) -> u16 {
    if x.is_nan() {
        return ((x.to_bits() >> 16) as u16) | 0x40;
    }
    let bits = x.to_bits();
    ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

/// Round-to-nearest-even conversion to the bits of an `f16`.
pub(crate) fn f32_to_f16(x: f32) -> u16 {
    let sign = ((x.to_bits() >> 16) & 0x8000) as u16;
    let a = x.abs();
    if a.is_nan() {
        return sign | 0x7e00;
    }
    if a >= 65520.0 {
        return sign | 0x7c00;
    }
    // Below the smallest normal the steps are 2^-24; above it, ten bits of fraction.
    let exp = if a < 2f32.powi(-14) {
        -14
    } else {
        (a.to_bits() >> 23) as i32 - 127
    };
    let units = (a * 2f32.powi(10 - exp)).round_ties_even() as u16;
    let bits = if exp == -14 {
        units
    } else {
        units + (((exp + 14) as u16) << 10)
    };
    sign | bits
}
