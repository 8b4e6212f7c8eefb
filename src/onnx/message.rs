//! The small messages, each in both directions side by side.
//!
//! `*_in` takes what the IR interprets out of a message, so that what remains is the residue; `*_out` puts it back. A field is left in
//! the residue where its interpretation would not reproduce it (explicit defaults, doubled keys), and writing keeps the residue's
//! field as long as it still means what the IR says.

use super::external::ExternalSource;
use super::proto::{
    self, StringStringEntryProto as Entry, TensorProto, TensorShapeProto, TypeProto,
    ValueInfoProto, tensor_proto::DataLocation, tensor_shape_proto, type_proto,
};
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use crate::ir::{DType, Dim, External, Metadata, Payload, TensorData, Type, TypeKind, Typed};
use bytes::Bytes;
use prost::Message;

/// The encoded rest of a message; empty when nothing is left.
pub(super) fn residue(message: &impl Message) -> Bytes {
    message.encode_to_vec().into()
}

/// A residue, decoded.
pub(super) fn rest<M: Message + Default>(residue: &Bytes) -> Result<M> {
    M::decode(residue.clone()).map_err(|e| {
        Error::new(
            ErrorKind::Decode,
            Diagnostic::error("onnx-residue", format!("a residue does not decode: {e}")),
        )
        .with_source(e)
    })
}

pub(super) fn str_in(field: &mut Option<String>) -> Box<str> {
    match field {
        Some(s) if !s.is_empty() => std::mem::take(field).unwrap_or_default().into(),
        _ => "".into(),
    }
}

pub(super) fn str_out(field: &mut Option<String>, value: &str) {
    if field.as_deref().unwrap_or_default() != value {
        *field = Some(value.to_owned());
    }
}

pub(super) fn int_in(field: &mut Option<i64>) -> i64 {
    match *field {
        Some(n) if n != 0 => {
            *field = None;
            n
        }
        _ => 0,
    }
}

pub(super) fn int_out(field: &mut Option<i64>, value: i64) {
    if field.unwrap_or_default() != value {
        *field = Some(value);
    }
}

fn metadata_of(entries: &[Entry]) -> Metadata {
    entries
        .iter()
        .map(|e| (e.key().into(), e.value().into()))
        .collect()
}

pub(super) fn metadata_in(field: &mut Vec<Entry>) -> Metadata {
    let metadata = metadata_of(field);
    let exact =
        field.len() == metadata.len() && field.iter().all(|e| e.key.is_some() && e.value.is_some());
    if exact {
        field.clear();
    }
    metadata
}

pub(super) fn metadata_out(field: &mut Vec<Entry>, metadata: &Metadata) {
    if !metadata_of(field).iter().eq(metadata.iter()) {
        *field = metadata.iter().map(|(k, v)| entry(k, v)).collect();
    }
}

pub(super) fn entry(key: &str, value: &str) -> Entry {
    Entry {
        key: Some(key.to_owned()),
        value: Some(value.to_owned()),
    }
}

type Opsets = Vec<(Box<str>, i64)>;

fn opsets_of(field: &[proto::OperatorSetIdProto]) -> Opsets {
    field
        .iter()
        .map(|o| (o.domain().into(), o.version()))
        .collect()
}

fn opset(domain: &str, version: i64) -> proto::OperatorSetIdProto {
    proto::OperatorSetIdProto {
        domain: Some(domain.to_owned()),
        version: Some(version),
    }
}

pub(super) fn opsets_in(field: &mut Vec<proto::OperatorSetIdProto>) -> Opsets {
    let opsets = opsets_of(field);
    if field
        .iter()
        .all(|o| o.domain.is_some() && o.version.is_some())
    {
        field.clear();
    }
    opsets
}

pub(super) fn opsets_out(field: &mut Vec<proto::OperatorSetIdProto>, opsets: &Opsets) {
    let old = std::mem::take(field);
    let mut old = old.into_iter();
    for (domain, version) in opsets {
        let kept = old
            .next()
            .filter(|o| o.domain() == &**domain && o.version() == *version);
        field.push(kept.unwrap_or_else(|| opset(domain, *version)));
    }
}

// ---- types ---------------------------------------------------------------------------------------------------------------

pub(super) fn type_in(proto: &TypeProto) -> Type {
    let kind = kind_of(proto);
    let exact = type_proto_of(&kind).as_ref() != Some(proto);
    Type {
        kind,
        exact: exact.then(|| residue(proto)),
    }
}

fn kind_of(proto: &TypeProto) -> TypeKind {
    let Some(type_proto::Value::TensorType(t)) = &proto.value else {
        return TypeKind::Other;
    };
    let Some(dtype) = DType::from_code(t.elem_type()) else {
        return TypeKind::Other;
    };
    let dims = t.shape.as_ref().map(|s| s.dim.iter().map(dim_of).collect());
    TypeKind::Tensor { dtype, dims }
}

fn dim_of(dim: &tensor_shape_proto::Dimension) -> Dim {
    use tensor_shape_proto::dimension::Value::{DimParam, DimValue};
    match &dim.value {
        Some(DimValue(n)) => Dim::Known(*n),
        Some(DimParam(s)) => Dim::Symbol(s.as_str().into()),
        None => Dim::Unknown,
    }
}

fn type_proto_of(kind: &TypeKind) -> Option<TypeProto> {
    use tensor_shape_proto::dimension::Value::{DimParam, DimValue};
    let TypeKind::Tensor { dtype, dims } = kind else {
        return None;
    };
    let dim = |d: &Dim| tensor_shape_proto::Dimension {
        denotation: None,
        value: match d {
            Dim::Known(n) => Some(DimValue(*n)),
            Dim::Symbol(s) => Some(DimParam(s.to_string())),
            Dim::Unknown => None,
        },
    };
    let shape = dims.as_ref().map(|dims| TensorShapeProto {
        dim: dims.iter().map(dim).collect(),
    });
    let tensor = type_proto::Tensor {
        elem_type: Some(dtype.code()),
        shape,
    };
    Some(TypeProto {
        denotation: None,
        value: Some(type_proto::Value::TensorType(tensor)),
    })
}

pub(super) fn type_out(ty: &Type) -> Result<TypeProto> {
    match &ty.exact {
        Some(bytes) => rest(bytes),
        None => type_proto_of(&ty.kind).ok_or_else(|| {
            Error::new(
                ErrorKind::Invalid,
                Diagnostic::error("onnx-type", "a type that is no tensor has no encoded form"),
            )
        }),
    }
}

/// Name and type leave the message; the rest is the residue.
pub(super) fn value_info_in(mut proto: ValueInfoProto) -> (Box<str>, Option<Type>, Bytes) {
    let name = str_in(&mut proto.name);
    let ty = proto.r#type.take().map(|t| type_in(&t));
    (name, ty, residue(&proto))
}

pub(super) fn value_info_out(
    name: &str,
    ty: Option<&Type>,
    residue: &Bytes,
) -> Result<ValueInfoProto> {
    let mut proto: ValueInfoProto = rest(residue)?;
    str_out(&mut proto.name, name);
    proto.r#type = ty.map(type_out).transpose()?;
    Ok(proto)
}

// ---- tensors -------------------------------------------------------------------------------------------------------------

fn tensor_error(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Decode, Diagnostic::error("onnx-tensor", message))
}

/// A `TensorProto` in a file of its own, as test data has it.
#[cfg(test)]
pub(crate) fn tensor(bytes: bytes::Bytes) -> Result<TensorData> {
    let proto = prost::Message::decode(bytes).map_err(|e| tensor_error(format!("{e}")))?;
    tensor_in(proto, &ExternalSource::none())
}

/// A tensor without its name, which the caller has taken or leaves in the residue.
pub(super) fn tensor_in(mut proto: TensorProto, external: &ExternalSource) -> Result<TensorData> {
    let code = proto.data_type.take().unwrap_or_default();
    let dtype = DType::from_code(code)
        .filter(|d| *d != DType::Undefined)
        .ok_or_else(|| tensor_error(format!("the element type {code} is unknown")))?;
    if proto.segment.is_some() {
        return Err(tensor_error("tensors in segments are not supported"));
    }
    let dims = std::mem::take(&mut proto.dims)
        .into_iter()
        .map(|d| u64::try_from(d).map_err(|_| tensor_error(format!("a dimension is {d}"))))
        .collect::<Result<Box<[u64]>>>()?;
    let count = dims
        .iter()
        .try_fold(1u64, |n, &d| n.checked_mul(d))
        .ok_or_else(|| tensor_error(format!("the dimensions {dims:?} overflow")))?;
    let payload = payload_in(&mut proto, dtype, count, external)
        .map_err(|e| e.within(format!("{dtype} tensor of dimensions {dims:?}")))?;
    let other = !proto.float_data.is_empty()
        || !proto.int32_data.is_empty()
        || !proto.string_data.is_empty()
        || !proto.int64_data.is_empty()
        || !proto.double_data.is_empty()
        || !proto.uint64_data.is_empty()
        || proto.raw_data.is_some();
    if other {
        return Err(tensor_error(format!(
            "the {dtype} tensor has elements in more than one field, or in one of another type"
        )));
    }
    Ok(TensorData {
        dtype,
        dims,
        payload,
        residue: residue(&proto),
    })
}

fn payload_in(
    proto: &mut TensorProto,
    dtype: DType,
    count: u64,
    external: &ExternalSource,
) -> Result<Payload> {
    if proto.data_location() == DataLocation::External {
        proto.data_location = None;
        return external_in(proto, dtype, count, external).map(Payload::External);
    }
    if let Some(raw) = proto.raw_data.take() {
        let want = dtype
            .bytes_for(count)
            .ok_or_else(|| tensor_error("strings cannot be raw, and sizes must not overflow"))?;
        if u64::try_from(raw.len()).ok() != Some(want) {
            return Err(tensor_error(format!(
                "{want} bytes are expected, `raw_data` has {}",
                raw.len()
            )));
        }
        return Ok(Payload::Raw(raw));
    }
    let (typed, found) = typed_in(proto, dtype);
    let want = entries_for(dtype, count);
    if want.is_none() || u64::try_from(found).ok() != want {
        let want = want.map_or_else(|| "more than can be counted".to_owned(), |n| n.to_string());
        return Err(tensor_error(format!(
            "{want} entries are expected, the file has {found}"
        )));
    }
    Ok(Payload::Typed(typed))
}

/// onnx.proto: complex numbers take two entries, 4-bit types share an entry between two elements, 2-bit types between four.
fn entries_for(dtype: DType, count: u64) -> Option<u64> {
    match dtype {
        DType::Complex64 | DType::Complex128 => count.checked_mul(2),
        _ if dtype.bits() == 4 => Some(count.div_ceil(2)),
        _ if dtype.bits() == 2 => Some(count.div_ceil(4)),
        _ => Some(count),
    }
}

fn typed_in(proto: &mut TensorProto, dtype: DType) -> (Typed, usize) {
    use std::mem::take;
    match dtype {
        DType::Float | DType::Complex64 => {
            let v = take(&mut proto.float_data);
            let n = v.len();
            (Typed::Float(v.into()), n)
        }
        DType::Double | DType::Complex128 => {
            let v = take(&mut proto.double_data);
            let n = v.len();
            (Typed::Double(v.into()), n)
        }
        DType::Int64 => {
            let v = take(&mut proto.int64_data);
            let n = v.len();
            (Typed::Int64(v.into()), n)
        }
        DType::Uint32 | DType::Uint64 => {
            let v = take(&mut proto.uint64_data);
            let n = v.len();
            (Typed::Uint64(v.into()), n)
        }
        DType::String => {
            let v = take(&mut proto.string_data);
            let n = v.len();
            (Typed::String(v.into()), n)
        }
        _ => {
            let v = take(&mut proto.int32_data);
            let n = v.len();
            (Typed::Int32(v.into()), n)
        }
    }
}

fn external_in(
    proto: &mut TensorProto,
    dtype: DType,
    count: u64,
    external: &ExternalSource,
) -> Result<External> {
    let entries = std::mem::take(&mut proto.external_data);
    if entries.iter().any(|e| e.key.is_none() || e.value.is_none()) {
        return Err(tensor_error(
            "an `external_data` entry lacks its key or value",
        ));
    }
    let find = |key: &str| entries.iter().find(|e| e.key() == key).map(Entry::value);
    let number = |key: &str| {
        find(key)
            .map(|text| {
                text.parse::<u64>().map_err(|_| {
                    tensor_error(format!(
                        "`{key}` of the external data is `{text}`, not a number"
                    ))
                })
            })
            .transpose()
    };
    let location =
        find("location").ok_or_else(|| tensor_error("external data has no `location`"))?;
    let want = dtype
        .bytes_for(count)
        .ok_or_else(|| tensor_error("strings cannot be external, and sizes must not overflow"))?;
    let bytes = external.range(
        location,
        number("offset")?.unwrap_or(0),
        number("length")?,
        want,
    )?;
    Ok(External {
        entries: entries
            .iter()
            .map(|e| (e.key().into(), e.value().into()))
            .collect(),
        bytes: bytes.unwrap_or_default(),
        folder: external.base(),
    })
}

/// The message of a tensor, without a name but for one in the residue. Raw payloads are shared.
pub(super) fn tensor_out(tensor: &TensorData) -> Result<TensorProto> {
    let mut proto: TensorProto = rest(&tensor.residue)?;
    proto.data_type = Some(tensor.dtype.code());
    proto.dims = tensor
        .dims
        .iter()
        .map(|&d| i64::try_from(d).map_err(|_| tensor_error(format!("a dimension is {d}"))))
        .collect::<Result<_>>()?;
    match &tensor.payload {
        Payload::Raw(bytes) => proto.raw_data = Some(bytes.clone()),
        Payload::Typed(typed) => match typed {
            Typed::Float(v) => proto.float_data = v.to_vec(),
            Typed::Double(v) => proto.double_data = v.to_vec(),
            Typed::Int32(v) => proto.int32_data = v.to_vec(),
            Typed::Int64(v) => proto.int64_data = v.to_vec(),
            Typed::Uint64(v) => proto.uint64_data = v.to_vec(),
            Typed::String(v) => proto.string_data = v.to_vec(),
        },
        Payload::External(external) => {
            proto.external_data = external.entries.iter().map(|(k, v)| entry(k, v)).collect();
            proto.set_data_location(DataLocation::External);
        }
    }
    Ok(proto)
}
