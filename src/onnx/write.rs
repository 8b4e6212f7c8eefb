//! Writing: [`Model`] to its message. Payloads are shared, everything else is a few bytes a node.

use super::message::{
    int_out, metadata_out, opsets_out, rest, str_out, tensor_out, value_info_out,
};
use super::proto::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, SparseTensorProto,
    TensorProto, ValueInfoProto, attribute_proto::AttributeType,
};
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use crate::ir::{Attr, AttrValue, Function, Graph, GraphPort, InfoEntry, Model, NodeId, ValueId};
use bytes::Bytes;
use rustc_hash::{FxHashMap, FxHashSet};

/// The names that the values of one graph are written under: their own, but for captures, which are written under the name of what
/// they stand for, and for values whose own name a capture needs.
struct Names<'a> {
    graph: &'a Graph,
    other: FxHashMap<ValueId, String>,
}

impl<'a> Names<'a> {
    /// `captured` are the names of the captures, in their order.
    fn new(graph: &'a Graph, captured: &[String]) -> Result<Self> {
        if captured.len() != graph.captures.len() {
            return Err(invalid(format!(
                "the graph `{}` captures {} values, but {} are wired",
                graph.name,
                graph.captures.len(),
                captured.len()
            )));
        }
        let mut other: FxHashMap<ValueId, String> = FxHashMap::default();
        for (&v, name) in graph.captures.iter().zip(captured) {
            if graph.name_of(v) != name {
                other.insert(v, name.clone());
            }
        }
        if !other.is_empty() {
            let taken: FxHashSet<&str> = captured.iter().map(String::as_str).collect();
            let captures: FxHashSet<ValueId> = graph.captures.iter().copied().collect();
            for v in captured.iter().filter_map(|n| graph.find(n)) {
                if !captures.contains(&v) {
                    other.insert(v, free_name(graph, &taken, graph.name_of(v)));
                }
            }
        }
        Ok(Names { graph, other })
    }

    fn of(&self, v: ValueId) -> &str {
        self.other
            .get(&v)
            .map_or_else(|| self.graph.name_of(v), String::as_str)
    }
}

fn free_name(graph: &Graph, taken: &FxHashSet<&str>, base: &str) -> String {
    let mut name = format!("{base}_inner");
    while graph.find(&name).is_some() || taken.contains(name.as_str()) {
        name.push('_');
    }
    name
}

/// The message of a model.
pub(super) fn model_out(model: &Model) -> Result<ModelProto> {
    let mut proto: ModelProto = rest(&model.residue)?;
    int_out(&mut proto.ir_version, model.ir_version);
    str_out(&mut proto.producer_name, &model.producer_name);
    str_out(&mut proto.producer_version, &model.producer_version);
    opsets_out(&mut proto.opset_import, &model.opset_imports);
    metadata_out(&mut proto.metadata_props, &model.metadata);
    proto.graph = Some(graph_out(&model.graph, &[])?);
    proto.functions = model
        .functions
        .iter()
        .map(|f| {
            function_out(f).map_err(|e| e.within(format!("function {}::{}", f.domain, f.name)))
        })
        .collect::<Result<_>>()?;
    Ok(proto)
}

fn graph_out(g: &Graph, captured: &[String]) -> Result<GraphProto> {
    let names = &Names::new(g, captured)?;
    let mut proto: GraphProto = rest(&g.residue)?;
    str_out(&mut proto.name, &g.name);
    metadata_out(&mut proto.metadata_props, &g.metadata);
    proto.node = nodes_out(names)?;
    proto.input = ports_out(names, &g.inputs)?;
    proto.output = ports_out(names, &g.outputs)?;
    proto.value_info = infos_out(names)?;
    proto.initializer = g
        .initializers
        .iter()
        .map(|&v| initializer_out(names, v))
        .collect::<Result<_>>()?;
    proto.sparse_initializer = g
        .sparse_initializers
        .iter()
        .map(|(v, bytes)| sparse_out(names, *v, bytes))
        .collect::<Result<_>>()?;
    Ok(proto)
}

fn ports_out(names: &Names<'_>, ports: &[GraphPort]) -> Result<Vec<ValueInfoProto>> {
    ports
        .iter()
        .map(|p| value_info_out(names.of(p.value), p.ty.as_ref(), &p.residue))
        .collect()
}

fn infos_out(names: &Names<'_>) -> Result<Vec<ValueInfoProto>> {
    names
        .graph
        .infos
        .iter()
        .map(|info| match info {
            InfoEntry::Value(p) => value_info_out(names.of(p.value), p.ty.as_ref(), &p.residue),
            InfoEntry::Orphan(bytes) => rest(bytes),
        })
        .collect()
}

fn initializer_out(names: &Names<'_>, v: ValueId) -> Result<TensorProto> {
    let value = names.graph.value(v);
    let Some(tensor) = &value.tensor else {
        return Err(invalid(format!(
            "`{}` is listed as an initializer but has no tensor",
            value.name
        )));
    };
    let mut proto =
        tensor_out(tensor).map_err(|e| e.within(format!("initializer `{}`", value.name)))?;
    str_out(&mut proto.name, names.of(v));
    metadata_out(&mut proto.metadata_props, &value.metadata);
    Ok(proto)
}

fn sparse_out(names: &Names<'_>, v: ValueId, bytes: &Bytes) -> Result<SparseTensorProto> {
    let mut proto: SparseTensorProto = rest(bytes)?;
    if let Some(values) = &mut proto.values {
        str_out(&mut values.name, names.of(v));
    }
    Ok(proto)
}

fn invalid(message: String) -> Error {
    Error::new(ErrorKind::Invalid, Diagnostic::error("onnx-write", message))
}

fn nodes_out(names: &Names<'_>) -> Result<Vec<NodeProto>> {
    let g = names.graph;
    let order = g
        .order()
        .map_err(|cycle| invalid(format!("the graph `{}` is cyclic: {cycle}", g.name)))?;
    order
        .into_iter()
        .map(|n| {
            node_out(names, n)
                .map_err(|e| e.within(format!("`{}` ({})", g.node(n).name, g.node(n).op)))
        })
        .collect()
}

fn node_out(names: &Names<'_>, id: NodeId) -> Result<NodeProto> {
    let g = names.graph;
    let node = g.node(id);
    let mut proto: NodeProto = rest(&node.residue)?;
    let name = |v: Option<ValueId>| v.map_or_else(String::new, |v| names.of(v).to_owned());
    proto.input = g.node_inputs(id).into_iter().map(name).collect();
    proto.output = g.node_outputs(id).into_iter().map(name).collect();
    str_out(&mut proto.name, &node.name);
    str_out(&mut proto.op_type, &node.op.op_type);
    str_out(&mut proto.overload, &node.op.overload);
    let spelled = proto.domain();
    let same = spelled == &*node.op.domain || (spelled == "ai.onnx" && node.op.domain.is_empty());
    if !same {
        proto.domain = Some(node.op.domain.to_string());
    }
    metadata_out(&mut proto.metadata_props, &node.metadata);
    let captured: Vec<String> = g
        .node_captures(id)
        .into_iter()
        .map(|v| names.of(v).to_owned())
        .collect();
    let mut captured = captured.as_slice();
    proto.attribute = node
        .attrs
        .iter()
        .map(|(name, attr)| attribute_out(name, attr, &mut captured))
        .collect::<Result<_>>()?;
    Ok(proto)
}

/// `AttributeProto.type` of a value as a writer of today sets it.
pub(super) fn attribute_kind(value: &AttrValue) -> Option<i32> {
    let kind = match value {
        AttrValue::Float(_) => AttributeType::Float,
        AttrValue::Int(_) => AttributeType::Int,
        AttrValue::String(_) => AttributeType::String,
        AttrValue::Tensor(_) => AttributeType::Tensor,
        AttrValue::Graph(_) => AttributeType::Graph,
        AttrValue::Floats(_) => AttributeType::Floats,
        AttrValue::Ints(_) => AttributeType::Ints,
        AttrValue::Strings(_) => AttributeType::Strings,
        AttrValue::Tensors(_) => AttributeType::Tensors,
        AttrValue::Graphs(_) => AttributeType::Graphs,
        AttrValue::Ref { kind, .. } => return (*kind != 0).then_some(*kind),
        AttrValue::Other(_) => return None,
    };
    Some(kind.into())
}

/// `captured` are the names of what the node's subgraphs capture; each subgraph takes its own off the front.
fn attribute_out(name: &str, attr: &Attr, captured: &mut &[String]) -> Result<AttributeProto> {
    let mut inner_out = |inner: &Graph| {
        let n = inner.captures.len().min(captured.len());
        let (own, rest) = captured.split_at(n);
        *captured = rest;
        graph_out(inner, own)
    };
    if let AttrValue::Other(bytes) = &attr.value {
        let mut proto: AttributeProto = rest(bytes)?;
        str_out(&mut proto.name, name);
        return Ok(proto);
    }
    let mut proto: AttributeProto = rest(&attr.residue)?;
    // A name in the residue: this attribute was read with a presence of its own, see `attribute_residue`.
    let kept = proto.name.is_some();
    proto.name = Some(name.to_owned());
    let kind = attribute_kind(&attr.value);
    let retyped = proto.r#type.is_some_and(|t| t != 0 && Some(t) != kind);
    if !kept || retyped {
        proto.r#type = kind;
    }
    match &attr.value {
        AttrValue::Float(f) => {
            if !kept || proto.f.unwrap_or_default().to_bits() != f.to_bits() {
                proto.f = Some(*f);
            }
        }
        AttrValue::Int(i) => {
            if !kept || proto.i.unwrap_or_default() != *i {
                proto.i = Some(*i);
            }
        }
        AttrValue::String(s) => {
            if !kept || proto.s.as_ref().unwrap_or(&Bytes::new()) != s {
                proto.s = Some(s.clone());
            }
        }
        AttrValue::Tensor(t) => proto.t = Some(tensor_out(t)?),
        AttrValue::Graph(g) => proto.g = Some(inner_out(g)?),
        AttrValue::Floats(v) => proto.floats.clone_from(v),
        AttrValue::Ints(v) => proto.ints.clone_from(v),
        AttrValue::Strings(v) => proto.strings.clone_from(v),
        AttrValue::Tensors(v) => proto.tensors = v.iter().map(tensor_out).collect::<Result<_>>()?,
        AttrValue::Graphs(v) => proto.graphs = v.iter().map(inner_out).collect::<Result<_>>()?,
        AttrValue::Ref { name, .. } => proto.ref_attr_name = Some(name.to_string()),
        AttrValue::Other(_) => {}
    }
    Ok(proto)
}

fn function_out(f: &Function) -> Result<FunctionProto> {
    let mut proto: FunctionProto = rest(&f.residue)?;
    if !f.body.initializers.is_empty() || !f.body.sparse_initializers.is_empty() {
        return Err(invalid(
            "a function body cannot hold initializers".to_owned(),
        ));
    }
    let names = &Names::new(&f.body, &[])?;
    let listed = |ports: &[GraphPort]| ports.iter().map(|p| names.of(p.value).to_owned()).collect();
    str_out(&mut proto.name, &f.name);
    str_out(&mut proto.domain, &f.domain);
    str_out(&mut proto.overload, &f.overload);
    proto.input = listed(&f.body.inputs);
    proto.output = listed(&f.body.outputs);
    proto.node = nodes_out(names)?;
    proto.value_info = infos_out(names)?;
    opsets_out(&mut proto.opset_import, &f.opset_imports);
    metadata_out(&mut proto.metadata_props, &f.body.metadata);
    Ok(proto)
}
