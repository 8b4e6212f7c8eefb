//! Reading: bytes to [`Model`].
//!
//! What a subgraph takes from the graphs around it is made explicit: the inner graph lists `captures`, and the node that holds it
//! has a `Capture` edge for each. Names are resolved once, here; afterwards renaming and ordering need no look-ups.

use super::external::{self, ExternalSource};
use super::message::{int_in, metadata_in, opsets_in, residue, str_in, tensor_in, value_info_in};
use super::proto::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, SparseTensorProto,
    TensorProto, ValueInfoProto, attribute_proto::AttributeType,
};
use super::wire;
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use crate::ir::{
    Attr, AttrValue, Function, Graph, GraphPort, InfoEntry, Metadata, Model, Node, OpId, Type,
    Value, ValueId,
};
use bytes::Bytes;
use indexmap::IndexMap;
use prost::Message;
use rustc_hash::FxHashSet;
use std::path::Path;

/// Findings beyond this number are counted, not listed.
const MAX_FINDINGS: usize = 20;

/// Reads a model from a file, with the external data beside it. The files are mapped: no payload is copied or even looked at.
///
/// # Errors
/// Files that cannot be opened or are no regular files; bytes that are no ONNX model or that hold fields which would be lost; models
/// that break ONNX's rules on names and order. All broken names come back together.
pub fn open(path: impl AsRef<Path>) -> Result<Model> {
    let path = path.as_ref();
    let file = external::map(path)?;
    let folder = path.parent().unwrap_or(Path::new(""));
    file.skim();
    let model = read(file.bytes(), &ExternalSource::folder(folder))
        .map_err(|e| e.within(path.display().to_string()));
    file.settle();
    model
}

/// Reads a model from its bytes. Payloads stay slices of `bytes` and of the external files.
///
/// # Errors
/// As [`open`].
pub fn read(bytes: Bytes, external: &ExternalSource) -> Result<Model> {
    let decode = |d: Diagnostic| Error::new(ErrorKind::Decode, d);
    wire::check_model(&bytes).map_err(decode)?;
    let proto = ModelProto::decode(bytes).map_err(|e| {
        decode(
            Diagnostic::error("onnx-decode", format!("not an ONNX model: {e}"))
                .help("the file is damaged or of another format"),
        )
        .with_source(e)
    })?;
    let mut reader = Reader {
        external,
        top: Frame::default(),
        around: Vec::new(),
        findings: Vec::new(),
        unlisted: 0,
    };
    let model = reader.model(proto)?;
    reader.finish()?;
    Ok(model)
}

struct Reader<'a> {
    external: &'a ExternalSource,
    /// The graph that is being read.
    top: Frame,
    /// The graphs around it, outermost first.
    around: Vec<Frame>,
    findings: Vec<Diagnostic>,
    unlisted: usize,
}

type Attrs = IndexMap<Box<str>, Attr>;

/// A graph that is being read.
#[derive(Default)]
struct Frame {
    graph: Graph,
    /// Values that nodes may read by now; all others are outputs of later nodes.
    defined: FxHashSet<ValueId>,
    /// What the captures of this graph are in the graph around it, in the same order.
    outer: Vec<ValueId>,
    path: String,
}

impl Reader<'_> {
    fn finish(mut self) -> Result<()> {
        if self.findings.is_empty() {
            return Ok(());
        }
        if self.unlisted > 0 {
            self.findings.push(Diagnostic::error(
                "onnx-graph",
                format!("{} more findings of these kinds", self.unlisted),
            ));
        }
        Err(Error::many(ErrorKind::Invalid, self.findings))
    }

    fn report(&mut self, finding: Diagnostic) {
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(finding.at(self.top.path.as_str()));
        } else {
            self.unlisted += 1;
        }
    }

    fn model(&mut self, mut proto: ModelProto) -> Result<Model> {
        let Some(graph) = proto.graph.take() else {
            return Err(Error::new(
                ErrorKind::Decode,
                Diagnostic::error("onnx-decode", "the model has no graph")
                    .help("the file is empty, or of another format"),
            ));
        };
        let functions = std::mem::take(&mut proto.functions);
        let (graph, _) = self.graph(graph, "")?;
        let functions = functions
            .into_iter()
            .map(|f| self.function(f))
            .collect::<Result<_>>()?;
        Ok(Model {
            graph,
            functions,
            opset_imports: opsets_in(&mut proto.opset_import),
            ir_version: int_in(&mut proto.ir_version),
            producer_name: str_in(&mut proto.producer_name),
            producer_version: str_in(&mut proto.producer_version),
            metadata: metadata_in(&mut proto.metadata_props),
            residue: residue(&proto),
        })
    }

    // ---- graphs ----------------------------------------------------------------------------------------------------------

    /// Reads a graph; also returns what it captures of the graph around it.
    fn graph(&mut self, mut proto: GraphProto, path: &str) -> Result<(Graph, Vec<ValueId>)> {
        self.push(path.to_owned());
        let inputs = std::mem::take(&mut proto.input);
        let outputs = std::mem::take(&mut proto.output);
        let infos = std::mem::take(&mut proto.value_info);
        let nodes = std::mem::take(&mut proto.node);
        for input in inputs {
            self.graph_input(input);
        }
        for tensor in std::mem::take(&mut proto.initializer) {
            self.initializer(tensor)?;
        }
        for tensor in std::mem::take(&mut proto.sparse_initializer) {
            self.sparse_initializer(tensor);
        }
        self.nodes(nodes)?;
        for output in outputs {
            self.graph_output(output);
        }
        self.infos(infos);
        let (mut graph, outer) = self.pop();
        graph.name = str_in(&mut proto.name);
        graph.metadata = metadata_in(&mut proto.metadata_props);
        graph.residue = residue(&proto);
        Ok((graph, outer))
    }

    fn function(&mut self, mut proto: FunctionProto) -> Result<Function> {
        let name = str_in(&mut proto.name);
        let domain = str_in(&mut proto.domain);
        self.push(format!("function {domain}::{name}"));
        for name in std::mem::take(&mut proto.input) {
            self.graph_input(ValueInfoProto {
                name: Some(name),
                ..ValueInfoProto::default()
            });
        }
        self.nodes(std::mem::take(&mut proto.node))?;
        for name in std::mem::take(&mut proto.output) {
            self.graph_output(ValueInfoProto {
                name: Some(name),
                ..ValueInfoProto::default()
            });
        }
        self.infos(std::mem::take(&mut proto.value_info));
        let (mut body, _) = self.pop();
        body.metadata = metadata_in(&mut proto.metadata_props);
        Ok(Function {
            name,
            domain,
            overload: str_in(&mut proto.overload),
            body,
            opset_imports: opsets_in(&mut proto.opset_import),
            residue: residue(&proto),
        })
    }

    fn push(&mut self, path: String) {
        let inner = Frame {
            path,
            ..Frame::default()
        };
        self.around.push(std::mem::replace(&mut self.top, inner));
    }

    fn pop(&mut self) -> (Graph, Vec<ValueId>) {
        let outer = self.around.pop().unwrap_or_default();
        let frame = std::mem::replace(&mut self.top, outer);
        (frame.graph, frame.outer)
    }

    /// A new value of the graph that is being read; `None` (and a finding) if the name is taken or empty.
    fn declare(&mut self, name: Box<str>, ty: Option<Type>, what: &str) -> Option<ValueId> {
        if name.is_empty() {
            self.report(Diagnostic::error(
                "onnx-name",
                format!("{what} has no name"),
            ));
            return None;
        }
        let value = Value {
            name,
            ty,
            tensor: None,
            metadata: Metadata::new(),
        };
        match self.top.graph.add_value(value) {
            Ok(id) => Some(id),
            Err(taken) => {
                let message = format!("{what} is named `{}`, which is defined already", taken.0);
                self.report(Diagnostic::error("onnx-redefined", message));
                None
            }
        }
    }

    fn graph_input(&mut self, proto: ValueInfoProto) {
        let (name, ty, residue) = value_info_in(proto);
        if let Some(value) = self.declare(name, ty.clone(), "a graph input") {
            let top = &mut self.top;
            top.defined.insert(value);
            top.graph.inputs.push(GraphPort { value, ty, residue });
        }
    }

    /// An initializer: a new value, or the default of a graph input.
    fn initializer(&mut self, mut proto: TensorProto) -> Result<()> {
        let name = str_in(&mut proto.name);
        let metadata = metadata_in(&mut proto.metadata_props);
        let tensor = tensor_in(proto, self.external)
            .map_err(|e| e.within(format!("initializer `{name}`")))?;
        let Some(id) = self.given(name, "an initializer") else {
            return Ok(());
        };
        let top = &mut self.top;
        top.defined.insert(id);
        top.graph.initializers.push(id);
        if let Some(value) = top.graph.value_mut(id) {
            value.tensor = Some(tensor);
            value.metadata = metadata;
        }
        Ok(())
    }

    fn sparse_initializer(&mut self, mut proto: SparseTensorProto) {
        let name = proto
            .values
            .as_mut()
            .map(|t| str_in(&mut t.name))
            .unwrap_or_default();
        let Some(id) = self.given(name, "a sparse initializer") else {
            return;
        };
        let top = &mut self.top;
        top.defined.insert(id);
        top.graph.sparse_initializers.push((id, residue(&proto)));
    }

    /// The value of an initializer: that of a graph input of its name (IR version 3), or a new one.
    fn given(&mut self, name: Box<str>, what: &str) -> Option<ValueId> {
        let graph = &self.top.graph;
        let Some(id) = graph.find(&name) else {
            return self.declare(name, None, what);
        };
        // What is declared so far is inputs and initializers, and only an initializer has a tensor.
        let again = graph.value(id).tensor.is_some()
            || graph.sparse_initializers.iter().any(|(v, _)| *v == id);
        if again {
            let message = format!("{what} is named `{name}`, which is defined already");
            self.report(Diagnostic::error("onnx-redefined", message));
            return None;
        }
        Some(id)
    }

    fn graph_output(&mut self, proto: ValueInfoProto) {
        let (name, ty, residue) = value_info_in(proto);
        let Some(value) = self.resolve(&name, "the graph's outputs") else {
            return;
        };
        let graph = &mut self.top.graph;
        if let Some(v) = graph.value_mut(value)
            && v.ty.is_none()
        {
            v.ty.clone_from(&ty);
        }
        graph.outputs.push(GraphPort { value, ty, residue });
    }

    fn infos(&mut self, infos: Vec<ValueInfoProto>) {
        let graph = &mut self.top.graph;
        for proto in infos {
            let Some(value) = graph.find(proto.name()) else {
                graph.infos.push(InfoEntry::Orphan(residue(&proto)));
                continue;
            };
            let (_, ty, residue) = value_info_in(proto);
            if let Some(v) = graph.value_mut(value)
                && v.ty.is_none()
            {
                v.ty.clone_from(&ty);
            }
            graph
                .infos
                .push(InfoEntry::Value(GraphPort { value, ty, residue }));
        }
    }

    // ---- nodes -----------------------------------------------------------------------------------------------------------

    fn nodes(&mut self, nodes: Vec<NodeProto>) -> Result<()> {
        let (nodes, moved) = super::order::ordered(nodes);
        self.top.graph.mended |= moved;
        // Outputs first: a name that a later node defines is an error of order, and never a capture.
        let mut outputs = Vec::with_capacity(nodes.len());
        for node in &nodes {
            let outs = node.output.iter().map(|name| {
                if name.is_empty() {
                    return None;
                }
                self.declare(
                    name.as_str().into(),
                    None,
                    &format!("an output of {}", title(node)),
                )
            });
            outputs.push(outs.collect::<Vec<_>>());
        }
        for (node, outs) in nodes.into_iter().zip(outputs) {
            self.node(node, &outs)?;
        }
        Ok(())
    }

    fn node(&mut self, mut proto: NodeProto, outputs: &[Option<ValueId>]) -> Result<()> {
        let title = title(&proto);
        if proto.op_type().is_empty() {
            self.report(Diagnostic::error(
                "onnx-node",
                format!("{title} has no operator"),
            ));
        }
        let inputs: Vec<Option<ValueId>> = std::mem::take(&mut proto.input)
            .iter()
            .map(|name| {
                if name.is_empty() {
                    return None;
                }
                self.resolve(name, &title)
            })
            .collect();
        proto.output.clear();
        let op_type = str_in(&mut proto.op_type);
        let mut op = OpId::new(proto.domain(), &op_type);
        op.overload = str_in(&mut proto.overload);
        // `ai.onnx` is read as ``: the spelling stays in the residue.
        if !op.domain.is_empty() {
            proto.domain = None;
        }
        let (attrs, captures) = self
            .attributes(std::mem::take(&mut proto.attribute), &title)
            .map_err(|e| e.within(title.clone()))?;
        let mut node = Node::new(str_in(&mut proto.name), op);
        node.attrs = attrs;
        node.metadata = metadata_in(&mut proto.metadata_props);
        node.residue = residue(&proto);
        let top = &mut self.top;
        let id = top.graph.push_node(node, &inputs, outputs);
        top.graph.add_captures(id, &captures);
        top.defined.extend(outputs.iter().flatten());
        Ok(())
    }

    /// The value of this name in the graph that is being read, captured from an enclosing graph where necessary.
    fn resolve(&mut self, name: &str, reader: &str) -> Option<ValueId> {
        let found = resolve(&mut self.top, &mut self.around, name);
        let message = match found {
            Ok(Some(id)) => return Some(id),
            Ok(None) => format!("{reader} reads `{name}`, which nothing defines"),
            Err(()) => format!("{reader} reads `{name}`, which a later node defines"),
        };
        let mut finding = Diagnostic::error("onnx-undefined", message);
        if found.is_err() {
            finding.code = "onnx-order";
            finding = finding.help("ONNX wants nodes in topological order, without cycles");
        }
        self.report(finding);
        None
    }

    // ---- attributes ------------------------------------------------------------------------------------------------------

    fn attributes(
        &mut self,
        protos: Vec<AttributeProto>,
        title: &str,
    ) -> Result<(Attrs, Vec<ValueId>)> {
        let mut attrs = IndexMap::with_capacity(protos.len());
        let mut captures = Vec::new();
        for proto in protos {
            let name: Box<str> = proto.name().into();
            if name.is_empty() {
                self.report(Diagnostic::error(
                    "onnx-attribute",
                    format!("an attribute of {title} has no name"),
                ));
                continue;
            }
            let attr = self
                .attribute(proto, title, &mut captures)
                .map_err(|e| e.within(format!("attribute `{name}`")))?;
            if attrs.contains_key(&name) {
                self.report(Diagnostic::error(
                    "onnx-attribute",
                    format!("{title} has the attribute `{name}` twice"),
                ));
            }
            attrs.insert(name, attr);
        }
        Ok((attrs, captures))
    }

    fn attribute(
        &mut self,
        mut proto: AttributeProto,
        title: &str,
        captures: &mut Vec<ValueId>,
    ) -> Result<Attr> {
        let graphs = |this: &mut Self, protos: Vec<GraphProto>, captures: &mut Vec<ValueId>| {
            let path = inner_path(&this.top.path, title);
            protos
                .into_iter()
                .map(|g| {
                    let (graph, outer) = this.graph(g, &path)?;
                    captures.extend(outer);
                    Ok(graph)
                })
                .collect::<Result<Vec<Graph>>>()
        };
        let kind = kind_of(&proto);
        let value = match kind {
            Kind::Value(AttributeType::Graph) => {
                let inner = graphs(self, proto.g.take().into_iter().collect(), captures)?;
                inner
                    .into_iter()
                    .next()
                    .map(|g| AttrValue::Graph(Box::new(g)))
            }
            Kind::Value(AttributeType::Graphs) => Some(AttrValue::Graphs(graphs(
                self,
                std::mem::take(&mut proto.graphs),
                captures,
            )?)),
            Kind::Value(AttributeType::Tensor) => {
                let tensor = proto
                    .t
                    .take()
                    .map(|t| tensor_in(t, self.external))
                    .transpose()?;
                tensor.map(AttrValue::Tensor)
            }
            Kind::Value(AttributeType::Tensors) => {
                let tensors = std::mem::take(&mut proto.tensors);
                let tensors = tensors.into_iter().map(|t| tensor_in(t, self.external));
                Some(AttrValue::Tensors(tensors.collect::<Result<_>>()?))
            }
            Kind::Value(kind) => plain_value(&mut proto, kind),
            Kind::Ref => Some(AttrValue::Ref {
                name: str_in(&mut proto.ref_attr_name),
                kind: proto.r#type.unwrap_or_default(),
            }),
            Kind::Other => None,
        };
        if proto.g.is_some() || !proto.graphs.is_empty() {
            return Err(Error::new(
                ErrorKind::Decode,
                Diagnostic::error(
                    "onnx-attribute",
                    "the attribute holds a graph beside another value, or of no type",
                ),
            ));
        }
        Ok(match value {
            Some(value) => Attr {
                residue: attribute_residue(proto, &value),
                value,
            },
            None => Attr {
                value: AttrValue::Other(residue(&proto)),
                residue: Bytes::new(),
            },
        })
    }
}

/// How a node is called in findings.
fn title(node: &NodeProto) -> String {
    let op = if node.op_type().is_empty() {
        "?"
    } else {
        node.op_type()
    };
    match (node.name(), node.output.iter().find(|o| !o.is_empty())) {
        ("", Some(output)) => format!("the {op} that makes `{output}`"),
        ("", None) => format!("a nameless {op}"),
        (name, _) => format!("`{name}` ({op})"),
    }
}

fn inner_path(outer: &str, title: &str) -> String {
    if outer.is_empty() {
        title.to_owned()
    } else {
        format!("{outer}, {title}")
    }
}

/// Looks a name up in the innermost graph, then outwards; makes captures on the way back in. `Err` if a later node defines it.
fn resolve(top: &mut Frame, around: &mut [Frame], name: &str) -> Result<Option<ValueId>, ()> {
    if let Some(id) = top.graph.find(name) {
        return if top.defined.contains(&id) {
            Ok(Some(id))
        } else {
            Err(())
        };
    }
    let Some((next, beyond)) = around.split_last_mut() else {
        return Ok(None);
    };
    let Some(outer) = resolve(next, beyond, name)? else {
        return Ok(None);
    };
    let ty = next.graph.value(outer).ty.clone();
    let value = Value {
        name: name.into(),
        ty,
        tensor: None,
        metadata: Metadata::new(),
    };
    let Ok(id) = top.graph.add_value(value) else {
        return Ok(None);
    };
    top.defined.insert(id);
    top.graph.captures.push(id);
    top.outer.push(outer);
    Ok(Some(id))
}

/// What an attribute holds.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Value(AttributeType),
    Ref,
    /// Not interpreted: carried as it is.
    Other,
}

fn kind_of(proto: &AttributeProto) -> Kind {
    use AttributeType as T;
    if !proto.ref_attr_name().is_empty() {
        return Kind::Ref;
    }
    let populated = || {
        let fields = [
            (proto.f.is_some(), T::Float),
            (proto.i.is_some(), T::Int),
            (proto.s.is_some(), T::String),
            (proto.t.is_some(), T::Tensor),
            (proto.g.is_some(), T::Graph),
            (!proto.floats.is_empty(), T::Floats),
            (!proto.ints.is_empty(), T::Ints),
            (!proto.strings.is_empty(), T::Strings),
            (!proto.tensors.is_empty(), T::Tensors),
            (!proto.graphs.is_empty(), T::Graphs),
        ];
        let mut set = fields.into_iter().filter(|f| f.0).map(|f| f.1);
        set.next().filter(|_| set.next().is_none())
    };
    let kind = match proto.r#type {
        // IR version 1 had no `type`: the field that is set tells.
        None | Some(0) => populated(),
        Some(code) => T::try_from(code).ok(),
    };
    match kind {
        None
        | Some(T::Undefined | T::SparseTensor | T::SparseTensors | T::TypeProto | T::TypeProtos) => {
            Kind::Other
        }
        Some(kind) => Kind::Value(kind),
    }
}

/// Takes a value that needs no reader. An absent number or string is zero or empty, as proto3 writers mean it.
fn plain_value(proto: &mut AttributeProto, kind: AttributeType) -> Option<AttrValue> {
    use std::mem::take;
    Some(match kind {
        AttributeType::Float => AttrValue::Float(proto.f.unwrap_or_default()),
        AttributeType::Int => AttrValue::Int(proto.i.unwrap_or_default()),
        AttributeType::String => AttrValue::String(proto.s.clone().unwrap_or_default()),
        AttributeType::Floats => AttrValue::Floats(take(&mut proto.floats)),
        AttributeType::Ints => AttrValue::Ints(take(&mut proto.ints)),
        AttributeType::Strings => AttrValue::Strings(take(&mut proto.strings)),
        _ => return None,
    })
}

/// The residue of an attribute: empty or a doc string for an ordinary one. One that the value alone would not reproduce (no `type`,
/// no value field for a zero, further fields) keeps its name there, which tells the writer to keep presence as it is.
fn attribute_residue(mut proto: AttributeProto, value: &AttrValue) -> Bytes {
    let fresh = super::write::attribute_kind(value);
    let mut plain = proto.clone();
    plain.name = None;
    plain.doc_string = None;
    let mut ordinary = plain.r#type.take() == fresh;
    match value {
        AttrValue::Float(_) => ordinary &= plain.f.take().is_some(),
        AttrValue::Int(_) => ordinary &= plain.i.take().is_some(),
        AttrValue::String(_) => ordinary &= plain.s.take().is_some(),
        _ => {}
    }
    if ordinary && plain == AttributeProto::default() {
        return residue(&AttributeProto {
            doc_string: proto.doc_string,
            ..AttributeProto::default()
        });
    }
    // A value that is not the default leaves; writing sees that it is missing and puts it back.
    match value {
        AttrValue::Float(f) if f.to_bits() != 0 => proto.f = None,
        AttrValue::Int(i) if *i != 0 => proto.i = None,
        AttrValue::String(s) if !s.is_empty() => proto.s = None,
        _ => {}
    }
    residue(&proto)
}
