//! A scan of the encoded bytes for what a decoder would drop in silence.
//!
//! prost skips fields that the schema does not know. This walks tags and lengths only (payloads are skipped, not read) and refuses a
//! file with such a field, naming the path to it. It runs before decoding, so it is also what bounds nesting and reports truncation
//! with a place.

use super::proto;
use crate::diag::Diagnostic;

/// Nested messages deeper than this are refused; prost's own limit.
const MAX_DEPTH: usize = 100;

/// Memory that decoded messages may take beyond [`MAX_GROWTH`] times the file.
const FREE_MEMORY: usize = 64 << 20;

/// Decoded messages may take this many times the bytes of the file: real models stay below ten, empty messages are beyond a hundred.
const MAX_GROWTH: usize = 32;

/// What a field of a message holds, as far as scanning needs to know.
#[derive(Clone, Copy, Debug)]
enum Field {
    /// A number, string or bytes; nothing to look into.
    Leaf,
    /// A nested message.
    Message(&'static str, Kind),
}

/// The messages of the schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Attribute,
    ValueInfo,
    Node,
    IntIntList,
    NodeDevice,
    Sharding,
    ShardedDim,
    SimpleShardedDim,
    Training,
    Model,
    Device,
    Entry,
    Annotation,
    Graph,
    Tensor,
    Segment,
    SparseTensor,
    Shape,
    Dimension,
    Type,
    TypeTensor,
    TypeSequence,
    TypeMap,
    TypeOptional,
    TypeSparse,
    TypeOpaque,
    OperatorSet,
    Function,
}

#[allow(
    clippy::match_same_arms,
    reason = "one line for each field, in the schema's order"
)]
/// The field of this number, or `None` if the schema has none.
fn field(kind: Kind, number: u64) -> Option<Field> {
    use Field::{Leaf, Message};
    Some(match (kind, number) {
        (Kind::Attribute, 1..=4 | 7..=9 | 13 | 20 | 21) => Leaf,
        (Kind::Attribute, 5) => Message("t", Kind::Tensor),
        (Kind::Attribute, 6) => Message("g", Kind::Graph),
        (Kind::Attribute, 10) => Message("tensors", Kind::Tensor),
        (Kind::Attribute, 11) => Message("graphs", Kind::Graph),
        (Kind::Attribute, 14) => Message("tp", Kind::Type),
        (Kind::Attribute, 15) => Message("type_protos", Kind::Type),
        (Kind::Attribute, 22) => Message("sparse_tensor", Kind::SparseTensor),
        (Kind::Attribute, 23) => Message("sparse_tensors", Kind::SparseTensor),

        (Kind::ValueInfo, 1 | 3) => Leaf,
        (Kind::ValueInfo, 2) => Message("type", Kind::Type),
        (Kind::ValueInfo, 4) => Message("metadata_props", Kind::Entry),

        (Kind::Node, 1..=4 | 6..=8) => Leaf,
        (Kind::Node, 5) => Message("attribute", Kind::Attribute),
        (Kind::Node, 9) => Message("metadata_props", Kind::Entry),
        (Kind::Node, 10) => Message("device_configurations", Kind::NodeDevice),

        (Kind::IntIntList, 1 | 2) => Leaf,

        (Kind::NodeDevice, 1 | 3) => Leaf,
        (Kind::NodeDevice, 2) => Message("sharding_spec", Kind::Sharding),

        (Kind::Sharding, 1 | 2) => Leaf,
        (Kind::Sharding, 3) => Message("index_to_device_group_map", Kind::IntIntList),
        (Kind::Sharding, 4) => Message("sharded_dim", Kind::ShardedDim),

        (Kind::ShardedDim, 1) => Leaf,
        (Kind::ShardedDim, 2) => Message("simple_sharding", Kind::SimpleShardedDim),

        (Kind::SimpleShardedDim, 1..=3) => Leaf,

        (Kind::Training, 1) => Message("initialization", Kind::Graph),
        (Kind::Training, 2) => Message("algorithm", Kind::Graph),
        (Kind::Training, 3) => Message("initialization_binding", Kind::Entry),
        (Kind::Training, 4) => Message("update_binding", Kind::Entry),

        (Kind::Model, 1..=6) => Leaf,
        (Kind::Model, 7) => Message("graph", Kind::Graph),
        (Kind::Model, 8) => Message("opset_import", Kind::OperatorSet),
        (Kind::Model, 14) => Message("metadata_props", Kind::Entry),
        (Kind::Model, 20) => Message("training_info", Kind::Training),
        (Kind::Model, 25) => Message("functions", Kind::Function),
        (Kind::Model, 26) => Message("configuration", Kind::Device),

        (Kind::Device, 1..=3) => Leaf,

        (Kind::Entry, 1 | 2) => Leaf,

        (Kind::Annotation, 1) => Leaf,
        (Kind::Annotation, 2) => Message("quant_parameter_tensor_names", Kind::Entry),

        (Kind::Graph, 1) => Message("node", Kind::Node),
        (Kind::Graph, 2 | 10) => Leaf,
        (Kind::Graph, 5) => Message("initializer", Kind::Tensor),
        (Kind::Graph, 11) => Message("input", Kind::ValueInfo),
        (Kind::Graph, 12) => Message("output", Kind::ValueInfo),
        (Kind::Graph, 13) => Message("value_info", Kind::ValueInfo),
        (Kind::Graph, 14) => Message("quantization_annotation", Kind::Annotation),
        (Kind::Graph, 15) => Message("sparse_initializer", Kind::SparseTensor),
        (Kind::Graph, 16) => Message("metadata_props", Kind::Entry),

        (Kind::Tensor, 1 | 2 | 4..=12 | 14) => Leaf,
        (Kind::Tensor, 3) => Message("segment", Kind::Segment),
        (Kind::Tensor, 13) => Message("external_data", Kind::Entry),
        (Kind::Tensor, 16) => Message("metadata_props", Kind::Entry),

        (Kind::Segment, 1 | 2) => Leaf,

        (Kind::SparseTensor, 1) => Message("values", Kind::Tensor),
        (Kind::SparseTensor, 2) => Message("indices", Kind::Tensor),
        (Kind::SparseTensor, 3) => Leaf,

        (Kind::Shape, 1) => Message("dim", Kind::Dimension),
        (Kind::Dimension, 1..=3) => Leaf,

        (Kind::Type, 1) => Message("tensor_type", Kind::TypeTensor),
        (Kind::Type, 4) => Message("sequence_type", Kind::TypeSequence),
        (Kind::Type, 5) => Message("map_type", Kind::TypeMap),
        (Kind::Type, 6) => Leaf,
        (Kind::Type, 7) => Message("opaque_type", Kind::TypeOpaque),
        (Kind::Type, 8) => Message("sparse_tensor_type", Kind::TypeSparse),
        (Kind::Type, 9) => Message("optional_type", Kind::TypeOptional),
        (Kind::TypeTensor | Kind::TypeSparse, 1) => Leaf,
        (Kind::TypeTensor | Kind::TypeSparse, 2) => Message("shape", Kind::Shape),
        (Kind::TypeSequence | Kind::TypeOptional, 1) => Message("elem_type", Kind::Type),
        (Kind::TypeMap, 1) => Leaf,
        (Kind::TypeMap, 2) => Message("value_type", Kind::Type),
        (Kind::TypeOpaque, 1 | 2) => Leaf,

        (Kind::OperatorSet, 1 | 2) => Leaf,

        (Kind::Function, 1 | 4..=6 | 8 | 10 | 13) => Leaf,
        (Kind::Function, 7) => Message("node", Kind::Node),
        (Kind::Function, 9) => Message("opset_import", Kind::OperatorSet),
        (Kind::Function, 11) => Message("attribute_proto", Kind::Attribute),
        (Kind::Function, 12) => Message("value_info", Kind::ValueInfo),
        (Kind::Function, 14) => Message("metadata_props", Kind::Entry),
        _ => return None,
    })
}

/// One step of the path to a message: the field's name and which of its repetitions.
struct Step {
    name: &'static str,
    index: usize,
}

/// Refuses bytes that are no `ModelProto`, hold a field that the schema does not know, or nest too deep.
pub(super) fn check_model(bytes: &[u8]) -> Result<(), Diagnostic> {
    let mut scan = Scan {
        path: Vec::new(),
        memory: bytes
            .len()
            .saturating_mul(MAX_GROWTH)
            .saturating_add(FREE_MEMORY),
    };
    scan.message(bytes, Kind::Model)
}

struct Scan {
    path: Vec<Step>,
    /// What the messages to come may still take once decoded.
    memory: usize,
}

/// What a message takes once it is decoded, without its strings and lists.
fn memory(kind: Kind) -> usize {
    match kind {
        Kind::Node => size_of::<proto::NodeProto>(),
        Kind::Attribute => size_of::<proto::AttributeProto>(),
        Kind::Tensor => size_of::<proto::TensorProto>(),
        Kind::SparseTensor => size_of::<proto::SparseTensorProto>(),
        Kind::Graph => size_of::<proto::GraphProto>(),
        Kind::Training => size_of::<proto::TrainingInfoProto>(),
        Kind::Function => size_of::<proto::FunctionProto>(),
        Kind::ValueInfo => size_of::<proto::ValueInfoProto>(),
        _ => size_of::<proto::TypeProto>(),
    }
}

impl Scan {
    fn message(&mut self, bytes: &[u8], kind: Kind) -> Result<(), Diagnostic> {
        if self.path.len() >= MAX_DEPTH {
            let message = format!("messages are nested more than {MAX_DEPTH} deep");
            return Err(self.finding("onnx-nesting", message));
        }
        let mut rest = bytes;
        let mut seen = [0usize; 32];
        while !rest.is_empty() {
            let at = bytes.len() - rest.len();
            let (number, payload) = next_field(&mut rest).map_err(|what| {
                self.finding(
                    "onnx-truncated",
                    format!("{what} at byte {at} of {}", bytes.len()),
                )
                .help("the file is incomplete or is not an ONNX model")
            })?;
            let Some(known) = field(kind, number) else {
                let message = format!(
                    "{kind:?} has a field of number {number}, which IR version 14 does not know; it would be lost"
                );
                return Err(self
                    .finding("onnx-unknown-field", message)
                    .help("write the model with a released version of ONNX, or remove the field"));
            };
            let (Field::Message(name, inner), Some(payload)) = (known, payload) else {
                continue;
            };
            let count = usize::try_from(number).ok().and_then(|n| seen.get_mut(n));
            let index = count.map_or(0, |c| std::mem::replace(c, *c + 1));
            self.path.push(Step { name, index });
            let Some(left) = self.memory.checked_sub(memory(inner)) else {
                let message = "the file holds far more messages than a model of its size";
                return Err(self.finding("onnx-size", message.to_owned()));
            };
            self.memory = left;
            self.message(payload, inner)?;
            self.path.pop();
        }
        Ok(())
    }

    fn finding(&self, code: &'static str, message: String) -> Diagnostic {
        let steps = self.path.iter().map(|s| format!("{}[{}]", s.name, s.index));
        let path: Vec<String> = steps.collect();
        Diagnostic::error(code, message).at(if path.is_empty() {
            "model".to_owned()
        } else {
            path.join(".")
        })
    }
}

/// Number and, if it is length-delimited, payload of the next field.
fn next_field<'a>(rest: &mut &'a [u8]) -> Result<(u64, Option<&'a [u8]>), String> {
    let tag = varint(rest).ok_or("a field's tag is cut off")?;
    let (number, wire) = (tag >> 3, tag & 7);
    match wire {
        0 => {
            varint(rest).ok_or("a number is cut off")?;
            Ok((number, None))
        }
        1 | 5 => {
            take(rest, if wire == 1 { 8 } else { 4 }).ok_or("a number is cut off")?;
            Ok((number, None))
        }
        2 => {
            let length = varint(rest).ok_or("a length is cut off")?;
            let have = rest.len();
            usize::try_from(length)
                .ok()
                .and_then(|n| take(rest, n))
                .map(|payload| (number, Some(payload)))
                .ok_or_else(|| format!("field {number} claims {length} bytes, {have} are there,"))
        }
        _ => Err(format!(
            "field {number} has wire type {wire}, which ONNX does not use,"
        )),
    }
}

fn take<'a>(rest: &mut &'a [u8], n: usize) -> Option<&'a [u8]> {
    let (head, tail) = rest.split_at_checked(n)?;
    *rest = tail;
    Some(head)
}

/// A base-128 number of at most ten bytes.
fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..70).step_by(7) {
        let (&byte, tail) = rest.split_first()?;
        *rest = tail;
        if shift < 64 {
            value |= u64::from(byte & 0x7f) << shift;
        }
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::proto;
    use super::{Kind, field};
    use prost::Message;

    /// prost keeps a field of this number, or objects to its wire type: it knows it.
    fn known<M: Message + Default>(number: u32) -> bool {
        (0..=5u32).filter(|w| ![3, 4].contains(w)).any(|wire| {
            let mut bytes = Vec::new();
            prost::encoding::encode_varint(u64::from(number << 3 | wire), &mut bytes);
            bytes.extend_from_slice(match wire {
                0 | 2 => &[0],
                1 => &[0; 8],
                _ => &[0; 4],
            });
            M::decode(&*bytes).map_or(true, |m| m.encoded_len() > 0)
        })
    }

    #[test]
    fn the_table_is_the_schema() {
        use proto::{tensor_proto, tensor_shape_proto, type_proto};
        macro_rules! check {
            ($($kind:ident = $message:ty),* $(,)?) => {$(
                for number in 1..64 {
                    let ours = field(Kind::$kind, u64::from(number)).is_some();
                    assert_eq!(ours, known::<$message>(number), "{:?} {number}", Kind::$kind);
                }
            )*};
        }
        check! {
            Attribute = proto::AttributeProto,
            ValueInfo = proto::ValueInfoProto,
            Node = proto::NodeProto,
            IntIntList = proto::IntIntListEntryProto,
            NodeDevice = proto::NodeDeviceConfigurationProto,
            Sharding = proto::ShardingSpecProto,
            ShardedDim = proto::ShardedDimProto,
            SimpleShardedDim = proto::SimpleShardedDimProto,
            Training = proto::TrainingInfoProto,
            Model = proto::ModelProto,
            Device = proto::DeviceConfigurationProto,
            Entry = proto::StringStringEntryProto,
            Annotation = proto::TensorAnnotation,
            Graph = proto::GraphProto,
            Tensor = proto::TensorProto,
            Segment = tensor_proto::Segment,
            SparseTensor = proto::SparseTensorProto,
            Shape = proto::TensorShapeProto,
            Dimension = tensor_shape_proto::Dimension,
            Type = proto::TypeProto,
            TypeTensor = type_proto::Tensor,
            TypeSequence = type_proto::Sequence,
            TypeMap = type_proto::Map,
            TypeOptional = type_proto::Optional,
            TypeSparse = type_proto::SparseTensor,
            TypeOpaque = type_proto::Opaque,
            OperatorSet = proto::OperatorSetIdProto,
            Function = proto::FunctionProto,
        }
    }
}
