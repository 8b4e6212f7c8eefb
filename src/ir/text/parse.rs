//! Reading the text form back.

use super::super::attr::{Attr, AttrValue};
use super::super::graph::{Graph, GraphPort};
use super::super::id::ValueId;
use super::super::model::{Function, Model};
use super::super::node::{Metadata, Node, Value};
use super::super::types::Type;
use super::cursor::{Cursor, Port, wrong};
use crate::error::Result;
use bytes::Bytes;
use indexmap::IndexMap;
use std::iter::Peekable;

/// Subgraphs nested deeper are refused.
const MAX_DEPTH: usize = 64;

/// Reads a model from its text form. Header lines (`graph-text 1`, `ir_version`, `producer`, `opset`, `meta`) may be left out; lines
/// that begin with `#` are comments. In a subgraph, a name that is not defined there is captured from the graph around it.
///
/// # Errors
/// The first line that is not understood, with what was expected there.
///
/// ```
/// let model = onnx_graft::ir::text::parse(
///     r#"
///     opset "" 17
///     graph main(%x: f32[batch, 4]) -> (%y: f32[batch, 2])
///       init %w: f32[4, 2] = seed(1)
///       %y = MatMul(%x, %w)  // proj
///     "#,
/// )?;
/// assert_eq!(model.graph.node_count(), 1);
/// # Ok::<(), onnx_graft::Error>(())
/// ```
pub fn parse(text: &str) -> Result<Model> {
    let lines = text
        .lines()
        .enumerate()
        .map(|(i, l)| (i + 1, l.trim_end()))
        .filter(|(_, l)| !l.trim_start().is_empty() && !l.trim_start().starts_with('#'))
        .map(|(number, l)| Line {
            number,
            indent: l.len() - l.trim_start().len(),
            text: l.trim_start(),
        })
        .collect::<Vec<Line<'_>>>();
    let mut parser = Parser {
        lines: lines.into_iter().peekable(),
        last: 0,
        top: Frame::default(),
        around: Vec::new(),
    };
    parser.model()
}

#[derive(Clone, Copy)]
struct Line<'t> {
    number: usize,
    indent: usize,
    text: &'t str,
}

#[derive(Default)]
struct Frame {
    graph: Graph,
    outer: Vec<ValueId>,
}

struct Parser<'t> {
    lines: Peekable<std::vec::IntoIter<Line<'t>>>,
    last: usize,
    top: Frame,
    around: Vec<Frame>,
}

impl<'t> Parser<'t> {
    fn next(&mut self) -> Option<Line<'t>> {
        let line = self.lines.next()?;
        self.last = line.number;
        Some(line)
    }

    /// The next line if it stands deeper than a given indent.
    fn inner(&mut self, indent: Option<usize>) -> Option<Line<'t>> {
        let line = *self.lines.peek()?;
        indent.is_none_or(|i| line.indent > i).then_some(line)
    }

    // ---- model and graphs --------------------------------------------------------------------------------------------------

    fn model(&mut self) -> Result<Model> {
        let mut model = Model::default();
        while let Some(line) = self.next() {
            let mut c = Cursor::new(line.text, line.number);
            match c.word()? {
                "graph-text" => {
                    if c.int::<i64>()? != 1 {
                        return Err(c.error("version 1 of the text form"));
                    }
                }
                "ir_version" => model.ir_version = c.int()?,
                "producer" => {
                    model.producer_name = c.string()?.into();
                    c.space();
                    model.producer_version = c.string()?.into();
                }
                "opset" => model.opset_imports.push(c.opset()?),
                "meta" => {
                    let (key, value) = c.meta()?;
                    model.metadata.insert(key, value);
                }
                "function" => {
                    model.functions.push(self.function(c, line)?);
                    continue;
                }
                "graph" => {
                    model.graph = self.graph(c, None)?.0;
                    return match self.next() {
                        None => Ok(model),
                        Some(line) => Err(wrong(line.number, "something follows the graph")),
                    };
                }
                other => {
                    return Err(wrong(
                        line.number,
                        format!(
                            "`{other}` begins no line here; `opset`, `meta`, `function` or `graph` is expected"
                        ),
                    ));
                }
            }
            c.end()?;
        }
        Err(wrong(self.last, "there is no `graph` line"))
    }

    fn function(&mut self, mut c: Cursor<'t>, line: Line<'t>) -> Result<Function> {
        c.space();
        let op = c.op()?;
        let mut opset_imports = Vec::new();
        let (inputs, outputs) = c.signature()?;
        while let Some(inner) = self.inner(Some(line.indent)) {
            let mut c = Cursor::new(inner.text, inner.number);
            if !c.eat("opset ") {
                break;
            }
            self.next();
            opset_imports.push(c.opset()?);
            c.end()?;
        }
        self.push();
        self.contents(inputs, outputs, Some(line.indent), line.number)?;
        Ok(Function {
            name: op.op_type,
            domain: op.domain,
            overload: op.overload,
            body: self.pop().0,
            opset_imports,
            residue: Bytes::new(),
        })
    }

    /// From the graph's name on; the body is all lines deeper than `indent`. Also returns what is captured.
    fn graph(&mut self, mut c: Cursor<'t>, indent: Option<usize>) -> Result<(Graph, Vec<ValueId>)> {
        if self.around.len() >= MAX_DEPTH {
            return Err(wrong(
                c.line,
                format!("subgraphs are nested more than {MAX_DEPTH} deep"),
            ));
        }
        c.space();
        let name = if c.peek() == Some('(') {
            "".into()
        } else {
            c.name()?
        };
        let (inputs, outputs) = c.signature()?;
        c.end()?;
        self.push();
        self.contents(inputs, outputs, indent, c.line)?;
        let (mut graph, outer) = self.pop();
        graph.name = name;
        Ok((graph, outer))
    }

    fn push(&mut self) {
        self.around.push(std::mem::take(&mut self.top));
    }

    fn pop(&mut self) -> (Graph, Vec<ValueId>) {
        let outer = self.around.pop().unwrap_or_default();
        let frame = std::mem::replace(&mut self.top, outer);
        (frame.graph, frame.outer)
    }

    fn contents(
        &mut self,
        inputs: Vec<Port>,
        outputs: Vec<Port>,
        indent: Option<usize>,
        line: usize,
    ) -> Result<()> {
        for (name, ty) in inputs {
            let value = self.define(line, name, ty.clone())?;
            self.top.graph.inputs.push(port(value, ty));
        }
        while let Some(inner) = self.inner(indent) {
            let mut c = Cursor::new(inner.text, inner.number);
            if indent.is_none() && (c.text.starts_with("graph ") || c.text.starts_with("function "))
            {
                break;
            }
            self.next();
            if c.eat("meta ") {
                let (key, value) = c.meta()?;
                self.top.graph.metadata.insert(key, value);
                c.end()?;
            } else if c.eat("capture ") {
                self.capture_line(c)?;
            } else if c.eat("init ") {
                self.init_line(c)?;
            } else if c.eat("sparse ") {
                let name = c.value_name()?;
                c.space();
                let bytes = c.hex()?;
                let id = self.define(c.line, name, None)?;
                self.top.graph.sparse_initializers.push((id, bytes));
                c.end()?;
            } else {
                self.node_line(c, inner.indent)?;
            }
        }
        for (name, ty) in outputs {
            let value = self.read(line, &name)?;
            if let Some(v) = self.top.graph.value_mut(value)
                && v.ty.is_none()
            {
                v.ty.clone_from(&ty);
            }
            self.top.graph.outputs.push(port(value, ty));
        }
        Ok(())
    }

    fn define(&mut self, line: usize, name: Box<str>, ty: Option<Type>) -> Result<ValueId> {
        let value = Value {
            name,
            ty,
            tensor: None,
            metadata: Metadata::new(),
        };
        self.top
            .graph
            .add_value(value)
            .map_err(|taken| wrong(line, format!("`%{}` is defined already", taken.0)))
    }

    fn read(&mut self, line: usize, name: &str) -> Result<ValueId> {
        resolve(&mut self.top, &mut self.around, name).ok_or_else(|| {
            wrong(
                line,
                format!("`%{name}` is read, but nothing above defines it"),
            )
        })
    }

    fn capture_line(&mut self, mut c: Cursor<'t>) -> Result<()> {
        let inner = c.value_name()?;
        c.token("=")?;
        let outer_name = c.value_name()?;
        c.end()?;
        let found = self
            .around
            .split_last_mut()
            .and_then(|(next, beyond)| resolve(next, beyond, &outer_name));
        let Some(outer) = found else {
            return Err(wrong(
                c.line,
                format!("`%{outer_name}` is not defined around this graph"),
            ));
        };
        let id = self.define(c.line, inner, None)?;
        self.top.graph.captures.push(id);
        self.top.outer.push(outer);
        Ok(())
    }

    fn init_line(&mut self, mut c: Cursor<'t>) -> Result<()> {
        let name = c.value_name()?;
        c.token(":")?;
        let tensor = c.tensor()?;
        let metadata = c.stamps()?;
        c.end()?;
        let input = self.top.graph.find(&name);
        let id = match input.filter(|&v| self.top.graph.is_input(v)) {
            Some(id) if self.top.graph.value(id).tensor.is_none() => id,
            _ => self.define(c.line, name, None)?,
        };
        self.top.graph.initializers.push(id);
        if let Some(value) = self.top.graph.value_mut(id) {
            value.tensor = Some(tensor);
            value.metadata = metadata;
        }
        Ok(())
    }

    // ---- nodes -------------------------------------------------------------------------------------------------------------

    fn node_line(&mut self, mut c: Cursor<'t>, indent: usize) -> Result<()> {
        let outputs = if c.eat("()") { Vec::new() } else { c.slots()? };
        c.token("=")?;
        let op = c.op()?;
        c.token("(")?;
        let inputs = if c.eat(")") {
            Vec::new()
        } else {
            let slots = c.slots()?;
            c.token(")")?;
            slots
        };
        let inputs = inputs
            .into_iter()
            .map(|n| n.map(|n| self.read(c.line, &n)).transpose())
            .collect::<Result<Vec<_>>>()?;
        let mut attrs = c.attributes()?;
        let metadata = c.stamps()?;
        let name = c.node_name()?;
        let captures = self.subgraphs(&mut attrs, indent)?;
        let outputs = outputs
            .into_iter()
            .map(|n| n.map(|n| self.define(c.line, n, None)).transpose())
            .collect::<Result<Vec<_>>>()?;
        let mut node = Node::new(name, op);
        node.attrs = attrs;
        node.metadata = metadata;
        let id = self.top.graph.push_node(node, &inputs, &outputs);
        self.top.graph.add_captures(id, &captures);
        Ok(())
    }

    /// The lines `.name = graph …` below a node.
    fn subgraphs(
        &mut self,
        attrs: &mut IndexMap<Box<str>, Attr>,
        indent: usize,
    ) -> Result<Vec<ValueId>> {
        let mut captures = Vec::new();
        while let Some(line) = self.inner(Some(indent)).filter(|l| l.text.starts_with('.')) {
            self.next();
            let mut c = Cursor::new(line.text, line.number);
            c.eat(".");
            let name = c.name()?;
            let indexed = c.eat("[");
            if indexed {
                c.int::<usize>()?;
                c.token("]")?;
            }
            c.token("=")?;
            c.token("graph")?;
            let (graph, outer) = self.graph(c, Some(line.indent))?;
            captures.extend(outer);
            if !indexed {
                if attrs.insert(name.clone(), graph.into()).is_some() {
                    return Err(wrong(
                        line.number,
                        format!("the attribute `{name}` is there twice"),
                    ));
                }
                continue;
            }
            let list = attrs
                .entry(name.clone())
                .or_insert_with(|| AttrValue::Graphs(Vec::new()).into());
            let AttrValue::Graphs(list) = &mut list.value else {
                return Err(wrong(
                    line.number,
                    format!("the attribute `{name}` is there twice"),
                ));
            };
            list.push(graph);
        }
        Ok(captures)
    }
}

fn port(value: ValueId, ty: Option<Type>) -> GraphPort {
    GraphPort {
        value,
        ty,
        residue: Bytes::new(),
    }
}

/// Looks a name up in the innermost graph, then outwards; makes captures on the way back in.
fn resolve(top: &mut Frame, around: &mut [Frame], name: &str) -> Option<ValueId> {
    if let Some(id) = top.graph.find(name) {
        return Some(id);
    }
    let (next, beyond) = around.split_last_mut()?;
    let outer = resolve(next, beyond, name)?;
    let value = Value {
        name: name.into(),
        ty: next.graph.value(outer).ty.clone(),
        tensor: None,
        metadata: Metadata::new(),
    };
    let id = top.graph.add_value(value).ok()?;
    top.graph.captures.push(id);
    top.outer.push(outer);
    Some(id)
}
