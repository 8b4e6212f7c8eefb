//! Encoding without copying payloads: a message as a list of chunks, where a large payload is a chunk of its own, shared with the
//! map it lies in. The bytes are exactly those of prost (fields in order of their tags).

use super::proto::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, SparseTensorProto,
    TensorProto,
};
use bytes::Bytes;
use prost::Message;
use std::mem::take;

/// Payloads below this many bytes are copied into the bytes around them.
const SHARE_FROM: usize = 4096;

/// An encoded message in chunks.
#[derive(Debug, Default)]
pub(super) struct Chunks {
    done: Vec<Bytes>,
    tail: Vec<u8>,
    len: u64,
}

impl Chunks {
    /// Length in bytes.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// The chunks in order.
    pub(super) fn finish(mut self) -> Vec<Bytes> {
        self.flush();
        self.done
    }

    fn flush(&mut self) {
        if !self.tail.is_empty() {
            self.done.push(take(&mut self.tail).into());
        }
    }

    fn grow(&mut self, n: usize) {
        self.len += u64::try_from(n).unwrap_or(u64::MAX);
    }

    fn small(&mut self, bytes: &[u8]) {
        self.tail.extend_from_slice(bytes);
        self.grow(bytes.len());
    }

    /// All fields that are set, in order of their tags.
    fn fields(&mut self, message: &impl Message) {
        let before = self.tail.len();
        self.tail.reserve(message.encoded_len());
        // A `Vec` grows as needed: encoding into it cannot fail.
        let _ = message.encode(&mut self.tail);
        self.grow(self.tail.len() - before);
    }

    fn varint(&mut self, mut n: u64) {
        while let (low, 1..) = (n & 0x7f, n >> 7) {
            self.small(&[u8::try_from(low).unwrap_or_default() | 0x80]);
            n >>= 7;
        }
        self.small(&[u8::try_from(n).unwrap_or_default()]);
    }

    /// Tag of a length-delimited field, and the length.
    fn head(&mut self, tag: u32, len: u64) {
        self.varint(u64::from(tag) << 3 | 2);
        self.varint(len);
    }

    fn payload(&mut self, tag: u32, bytes: Bytes) {
        self.head(tag, u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        if bytes.len() < SHARE_FROM {
            return self.small(&bytes);
        }
        self.flush();
        self.grow(bytes.len());
        self.done.push(bytes);
    }

    fn nested(&mut self, tag: u32, inner: Chunks) {
        self.head(tag, inner.len);
        for chunk in inner.done {
            if chunk.len() < SHARE_FROM {
                self.tail.extend_from_slice(&chunk);
            } else {
                self.flush();
                self.done.push(chunk);
            }
        }
        self.tail.extend_from_slice(&inner.tail);
        self.len += inner.len;
    }
}

/// Encodes a model.
pub(super) fn model(mut p: ModelProto) -> Chunks {
    let mut out = Chunks::default();
    let (graph, functions) = (p.graph.take(), take(&mut p.functions));
    let configuration = take(&mut p.configuration);
    out.fields(&ModelProto {
        ir_version: p.ir_version.take(),
        producer_name: p.producer_name.take(),
        producer_version: p.producer_version.take(),
        domain: p.domain.take(),
        model_version: p.model_version.take(),
        doc_string: p.doc_string.take(),
        ..ModelProto::default()
    });
    if let Some(g) = graph {
        out.nested(7, self::graph(g));
    }
    out.fields(&p);
    for f in functions {
        out.nested(25, function(f));
    }
    out.fields(&ModelProto {
        configuration,
        ..ModelProto::default()
    });
    out
}

fn graph(mut p: GraphProto) -> Chunks {
    let mut out = Chunks::default();
    let sparse = take(&mut p.sparse_initializer);
    let metadata_props = take(&mut p.metadata_props);
    for n in take(&mut p.node) {
        out.nested(1, node(n));
    }
    out.fields(&GraphProto {
        name: p.name.take(),
        ..GraphProto::default()
    });
    for t in take(&mut p.initializer) {
        out.nested(5, tensor(t));
    }
    out.fields(&p);
    for s in sparse {
        out.nested(15, sparse_tensor(s));
    }
    out.fields(&GraphProto {
        metadata_props,
        ..GraphProto::default()
    });
    out
}

fn node(mut p: NodeProto) -> Chunks {
    let mut out = Chunks::default();
    let attributes = take(&mut p.attribute);
    out.fields(&NodeProto {
        input: take(&mut p.input),
        output: take(&mut p.output),
        name: p.name.take(),
        op_type: p.op_type.take(),
        ..NodeProto::default()
    });
    for a in attributes {
        out.nested(5, attribute(a));
    }
    out.fields(&p);
    out
}

fn attribute(mut p: AttributeProto) -> Chunks {
    let mut out = Chunks::default();
    let (tensors, graphs) = (take(&mut p.tensors), take(&mut p.graphs));
    let (sparse_one, sparse) = (p.sparse_tensor.take(), take(&mut p.sparse_tensors));
    out.fields(&AttributeProto {
        name: p.name.take(),
        f: p.f.take(),
        i: p.i.take(),
        s: p.s.take(),
        ..AttributeProto::default()
    });
    if let Some(t) = p.t.take() {
        out.nested(5, tensor(t));
    }
    if let Some(g) = p.g.take() {
        out.nested(6, graph(g));
    }
    out.fields(&AttributeProto {
        floats: take(&mut p.floats),
        ints: take(&mut p.ints),
        strings: take(&mut p.strings),
        ..AttributeProto::default()
    });
    for t in tensors {
        out.nested(10, tensor(t));
    }
    for g in graphs {
        out.nested(11, graph(g));
    }
    out.fields(&p);
    if let Some(s) = sparse_one {
        out.nested(22, sparse_tensor(s));
    }
    for s in sparse {
        out.nested(23, sparse_tensor(s));
    }
    out
}

fn tensor(mut p: TensorProto) -> Chunks {
    let mut out = Chunks::default();
    let raw = p.raw_data.take();
    out.fields(&TensorProto {
        dims: take(&mut p.dims),
        data_type: p.data_type.take(),
        segment: p.segment.take(),
        float_data: take(&mut p.float_data),
        int32_data: take(&mut p.int32_data),
        string_data: take(&mut p.string_data),
        int64_data: take(&mut p.int64_data),
        name: p.name.take(),
        ..TensorProto::default()
    });
    if let Some(raw) = raw {
        out.payload(9, raw);
    }
    out.fields(&p);
    out
}

fn sparse_tensor(mut p: SparseTensorProto) -> Chunks {
    let mut out = Chunks::default();
    if let Some(t) = p.values.take() {
        out.nested(1, tensor(t));
    }
    if let Some(t) = p.indices.take() {
        out.nested(2, tensor(t));
    }
    out.fields(&p);
    out
}

fn function(mut p: FunctionProto) -> Chunks {
    let mut out = Chunks::default();
    let nodes = take(&mut p.node);
    out.fields(&FunctionProto {
        name: p.name.take(),
        input: take(&mut p.input),
        output: take(&mut p.output),
        attribute: take(&mut p.attribute),
        ..FunctionProto::default()
    });
    for n in nodes {
        out.nested(7, node(n));
    }
    out.fields(&p);
    out
}
