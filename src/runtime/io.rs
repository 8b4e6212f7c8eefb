//! Named tensors in safetensors files, to and from [`Value`]s.

use super::plan::Feeds;
use super::value::{Data, Fault, Floats, Host, KResult, Value, widen};
use crate::diag::Diagnostic;
use crate::disk;
use crate::error::{Error, ErrorKind, Result};
use crate::fence;
use crate::ir::DType;
use crate::staging;
use half::{bf16, f16};
use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensors, View};
use std::borrow::Cow;
use std::path::Path;

/// Reads all tensors of a safetensors file, sorted by name.
pub(crate) fn read(path: &Path) -> Result<Feeds> {
    let bytes = disk::tensors(path).map_err(|e| Error::io(path, "cannot be read", e))?;
    decode(&bytes).map_err(|e| e.within(path.display().to_string()))
}

/// Decodes a safetensors file, sorted by name.
pub(crate) fn decode(bytes: &[u8]) -> Result<Feeds> {
    let bad = |what: String| Error::new(ErrorKind::Decode, Diagnostic::error("safetensors", what));
    let file = fence::guarded(|| SafeTensors::deserialize(bytes));
    let file = file.map_err(|e| bad(e.to_string()))?;
    let file = file.map_err(|e| bad(e.to_string()))?;
    let mut names = file.names();
    names.sort_unstable();
    let mut feeds = Feeds::new();
    for name in names {
        let view = file.tensor(name).map_err(|e| bad(e.to_string()))?;
        let v = value(&view).map_err(|e| bad(format!("`{name}`: {e}")))?;
        feeds.insert(name, v);
    }
    Ok(feeds)
}

fn value(t: &TensorView<'_>) -> KResult<Value> {
    let (dims, b) = (t.shape().to_vec(), t.data());
    let dtype = match t.dtype() {
        Dtype::BOOL => DType::Bool,
        Dtype::U8 => DType::Uint8,
        Dtype::I8 => DType::Int8,
        Dtype::I16 => DType::Int16,
        Dtype::U16 => DType::Uint16,
        Dtype::I32 => DType::Int32,
        Dtype::U32 => DType::Uint32,
        Dtype::I64 => DType::Int64,
        Dtype::U64 => DType::Uint64,
        Dtype::F16 => DType::Float16,
        Dtype::BF16 => DType::Bfloat16,
        Dtype::F32 => DType::Float,
        Dtype::F64 => DType::Double,
        other => {
            return Err(Fault(format!(
                "tensors of type {other:?} are not computed with"
            )));
        }
    };
    value_of(dtype, dims, b)
}

/// A value of its elements in row-major order, little-endian.
pub(super) fn value_of(dtype: DType, dims: Vec<usize>, b: &[u8]) -> KResult<Value> {
    if dtype == DType::Double {
        let v = b
            .as_chunks()
            .0
            .iter()
            .map(|c| f64::from_le_bytes(*c))
            .collect();
        return Ok(Value::Host(Host::new(dtype, dims, Data::F64(v))?));
    }
    if dtype.is_float() {
        let mut out = vec![0.0; super::walk::count(&dims)?];
        widen(dtype, b, &mut out)?;
        return Ok(Value::Float(Floats::new(out, &dims, dtype, None)?));
    }
    let t = crate::ir::TensorData::raw(
        dtype,
        dims.iter().map(|&d| d as u64).collect::<Vec<_>>(),
        bytes::Bytes::copy_from_slice(b),
    );
    let ints = t.to_i64().ok_or("the payload does not fit the shape")?;
    Ok(Value::Host(Host::from_ints(dtype, dims, ints)?))
}

/// A tensor on its way into a file.
pub(super) struct Packed {
    dtype: Dtype,
    dims: Vec<usize>,
    pub(super) bytes: Vec<u8>,
}

impl View for Packed {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.dims
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

pub(super) fn pack(v: &Value) -> KResult<Packed> {
    let wide = || v.to_ints();
    let (dtype, bytes): (Dtype, Vec<u8>) = match v.dtype() {
        DType::Float => (
            Dtype::F32,
            v.to_f32()?.iter().flat_map(|x| x.to_le_bytes()).collect(),
        ),
        DType::Float16 => {
            let v = v.to_f32()?;
            let half = v.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes());
            (Dtype::F16, half.collect())
        }
        DType::Bfloat16 => {
            let v = v.to_f32()?;
            let half = v.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes());
            (Dtype::BF16, half.collect())
        }
        DType::Double => {
            let Value::Host(h) = v else {
                return Err("f64 elements".into());
            };
            let Data::F64(v) = h.data() else {
                return Err("f64 elements".into());
            };
            (Dtype::F64, v.iter().flat_map(|x| x.to_le_bytes()).collect())
        }
        DType::Bool => (
            Dtype::BOOL,
            wide()?.iter().map(|&x| u8::from(x != 0)).collect(),
        ),
        DType::Uint8 => (Dtype::U8, wide()?.iter().map(|&x| x as u8).collect()),
        DType::Int8 => (Dtype::I8, wide()?.iter().map(|&x| x as u8).collect()),
        DType::Int16 => (
            Dtype::I16,
            wide()?
                .iter()
                .flat_map(|&x| (x as i16).to_le_bytes())
                .collect(),
        ),
        DType::Uint16 => (
            Dtype::U16,
            wide()?
                .iter()
                .flat_map(|&x| (x as u16).to_le_bytes())
                .collect(),
        ),
        DType::Int32 => (
            Dtype::I32,
            wide()?
                .iter()
                .flat_map(|&x| (x as i32).to_le_bytes())
                .collect(),
        ),
        DType::Uint32 => (
            Dtype::U32,
            wide()?
                .iter()
                .flat_map(|&x| (x as u32).to_le_bytes())
                .collect(),
        ),
        DType::Int64 => (
            Dtype::I64,
            wide()?.iter().flat_map(|x| x.to_le_bytes()).collect(),
        ),
        DType::Uint64 => (
            Dtype::U64,
            wide()?.iter().flat_map(|x| x.to_le_bytes()).collect(),
        ),
        other => return Err(Fault(format!("tensors of type {other} are not written"))),
    };
    Ok(Packed {
        dtype,
        dims: v.dims().to_vec(),
        bytes,
    })
}

/// Encodes named values; equal values give equal bytes.
pub(crate) fn encode<'a>(
    values: impl IntoIterator<Item = (&'a str, &'a Value)>,
) -> Result<Vec<u8>> {
    let bad = |what: String| Error::new(ErrorKind::Io, Diagnostic::error("safetensors", what));
    let mut packed = Vec::new();
    for (name, v) in values {
        let p = pack(v).map_err(|e| bad(format!("`{name}`: {e}")))?;
        packed.push((name.to_owned(), p));
    }
    packed.sort_by(|a, b| a.0.cmp(&b.0));
    safetensors::serialize(packed, None).map_err(|e| bad(e.to_string()))
}

/// Writes named values to a safetensors file: the old file stays until the new one is complete.
pub(crate) fn write<'a>(
    path: &Path,
    values: impl IntoIterator<Item = (&'a str, &'a Value)>,
) -> Result<()> {
    let bytes = encode(values).map_err(|e| e.within(path.display().to_string()))?;
    let io = |e| Error::io(path, "cannot be written", e);
    staging::write(path, &bytes, true).map_err(io)
}
