//! The stable text form: one line a node, names and not ids, values in file order.
//!
//! ```text
//! graph-text 1
//! opset "" 17
//! graph main(%x: f32[batch, 4]) -> (%y: f32[batch, 2])
//!   init %w: f32[4, 2] blake3:9c1f6a0b7d2e4f58
//!   init %shape: i64[2] = {-1, 2}
//!   %h = MatMul(%x, %w)  // /model/proj/MatMul
//!   %y, _ = Custom(%h, _, %shape) {axis = 1} +onnx_graft.adapter="lora"
//!   %z = If(%c)
//!     .then_branch = graph then() -> (%t: f32[2])
//!       %t = Relu(%h)
//! ```
//!
//! `_` is an absent slot, `//` starts the node's name, `+key="value"` is an adapter stamp (`metadata_props` beginning with
//! `onnx_graft.`; other metadata of nodes and initializers is not shown, nor are `value_info` and doc strings). Tensors of up to eight
//! elements are written out, floats so that they read back bit for bit; larger ones show shape and hash. `# …` on a line of its own
//! is a comment.
//!
//! [`parse`] is the inverse as far as the text goes: `print(parse(print(m))) == print(m)`. A tensor that shows only its hash parses to a
//! placeholder of the same shape without bytes, which prints the same hash again. For tests, `init` also takes `= fill(0.5)`,
//! `= iota` and `= seed(3)` (deterministic numbers in `[-1, 1)`), which make real tensors.

mod cursor;
mod parse;
#[cfg(test)]
mod tests;

use super::contract::stamp;
pub use parse::parse;

use super::attr::AttrValue;
use super::graph::{Graph, GraphPort};
use super::id::{NodeId, ValueId};
use super::model::{Function, Model};
use super::node::{Metadata, OpId};
use super::tensor::{Payload, TensorData, Typed, f16_to_f32};
use super::types::{DType, Dim, Type, TypeKind};
use std::fmt::{self, Write};

/// The key under which a placeholder remembers its hash, in `External::entries`.
const HASH: &str = "blake3";

/// Tensors of more elements show their hash.
const SHOWN: u64 = 8;

/// What to print.
#[derive(Clone, Copy)]
pub(crate) struct TextOptions<'a> {
    /// Only these nodes of the main graph, with the initializers they read. `None` is the whole model.
    pub nodes: Option<&'a dyn Fn(NodeId) -> bool>,
    /// Whether initializers that nothing reads are shown.
    pub dangling: bool,
    /// Whether large tensors are hashed, which reads all weights; `...` stands for the hash otherwise.
    pub hashes: bool,
}

impl Default for TextOptions<'_> {
    fn default() -> Self {
        TextOptions {
            nodes: None,
            dangling: true,
            hashes: true,
        }
    }
}

impl fmt::Debug for TextOptions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TextOptions")
            .field("nodes", &self.nodes.is_some())
            .field("dangling", &self.dangling)
            .field("hashes", &self.hashes)
            .finish()
    }
}

/// The whole model as text.
pub fn print(model: &Model) -> String {
    part(|p| p.model(model))
}

/// The nodes of the main graph that `keep` accepts, with what they read.
pub(crate) fn print_module(model: &Model, keep: &dyn Fn(NodeId) -> bool) -> String {
    let mut out = String::new();
    let options = TextOptions {
        nodes: Some(keep),
        ..TextOptions::default()
    };
    let _ = write(model, options, &mut out);
    out
}

/// Writes a model as text. `O(size of the graph)`, and of the weights if they are hashed.
pub(crate) fn write(model: &Model, options: TextOptions<'_>, out: &mut dyn Write) -> fmt::Result {
    let mut p = Printer { options, out };
    p.model(model)
}

/// A part of the text form by itself.
fn part(print: impl FnOnce(&mut Printer<'_, '_>) -> fmt::Result) -> String {
    let mut out = String::new();
    // Writing to a `String` does not fail.
    let _ = print(&mut Printer {
        options: TextOptions::default(),
        out: &mut out,
    });
    out
}

/// A constant: type and elements or hash.
pub(super) fn tensor_text(tensor: &TensorData) -> String {
    part(|p| p.tensor(tensor))
}

/// A node, without its subgraphs.
pub(super) fn node_text(g: &Graph, n: NodeId) -> String {
    part(|p| p.node_line(g, n))
}

/// A declared type.
pub(super) fn type_text(ty: &Type) -> String {
    part(|p| p.ty(ty))
}

/// A value's name.
pub(super) fn value_text(g: &Graph, v: ValueId) -> String {
    part(|p| p.value_name(g.name_of(v)))
}

/// A graph by itself, under its own names.
pub(super) fn graph_text(g: &Graph) -> String {
    part(|p| p.graph(g, &[], 0))
}

/// The value of an attribute; of a graph, only that it is one.
pub(super) fn attribute_text(value: &AttrValue) -> String {
    match value {
        AttrValue::Graph(g) => format!("graph {}", g.name),
        AttrValue::Graphs(v) => format!("{} graphs", v.len()),
        _ => part(|p| p.attribute(value)),
    }
}

struct Printer<'a, 'o> {
    options: TextOptions<'o>,
    out: &'a mut dyn Write,
}

/// The length of the bare name at the start of a text: letters, digits, `_ . / -`, and pairs of colons inside.
fn bare_len(text: &str) -> usize {
    let plain = |c: &char| c.is_alphanumeric() || matches!(c, '_' | '.' | '/' | '-');
    let mut len = 0;
    loop {
        let rest = &text[len..];
        let run: usize = rest.chars().take_while(plain).map(char::len_utf8).sum();
        len += run;
        let more = text[len..]
            .strip_prefix("::")
            .is_some_and(|r| run > 0 && r.chars().next().is_some_and(|c| plain(&c)));
        if !more {
            return len;
        }
        len += 2;
    }
}

/// The length of the word at the start of a text: letters, digits and `_ . -`.
fn word_len(text: &str) -> usize {
    let plain = |c: &char| c.is_alphanumeric() || matches!(c, '_' | '.' | '-');
    text.chars().take_while(plain).map(char::len_utf8).sum()
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && word_len(text) == text.len()
}

/// Whether a dimension name needs no quotes: it must not look like a number.
fn is_symbol(text: &str) -> bool {
    is_word(text)
        && text
            .chars()
            .next()
            .is_some_and(|c| c.is_alphabetic() || c == '_')
}

impl Printer<'_, '_> {
    fn quoted(&mut self, text: &str) -> fmt::Result {
        self.out.write_char('"')?;
        for c in text.chars() {
            match c {
                '"' => self.out.write_str("\\\"")?,
                '\\' => self.out.write_str("\\\\")?,
                '\n' => self.out.write_str("\\n")?,
                '\r' => self.out.write_str("\\r")?,
                '\t' => self.out.write_str("\\t")?,
                c if c.is_control() || ['\u{2028}', '\u{2029}', '\u{85}'].contains(&c) => {
                    write!(self.out, "\\u{{{:x}}}", u32::from(c))?;
                }
                c => self.out.write_char(c)?,
            }
        }
        self.out.write_char('"')
    }

    fn word(&mut self, text: &str) -> fmt::Result {
        if is_word(text) {
            self.out.write_str(text)
        } else {
            self.quoted(text)
        }
    }

    fn value_name(&mut self, name: &str) -> fmt::Result {
        self.out.write_char('%')?;
        if !name.is_empty() && bare_len(name) == name.len() {
            self.out.write_str(name)
        } else {
            self.quoted(name)
        }
    }

    fn hex(&mut self, bytes: &[u8]) -> fmt::Result {
        self.out.write_str("x\"")?;
        for b in bytes {
            write!(self.out, "{b:02x}")?;
        }
        self.out.write_char('"')
    }

    fn string(&mut self, bytes: &[u8]) -> fmt::Result {
        match std::str::from_utf8(bytes) {
            Ok(text) => self.quoted(text),
            Err(_) => self.hex(bytes),
        }
    }

    fn indent(&mut self, depth: usize) -> fmt::Result {
        write!(self.out, "{:width$}", "", width = depth * 2)
    }

    // ---- model and graphs --------------------------------------------------------------------------------------------------

    fn model(&mut self, m: &Model) -> fmt::Result {
        writeln!(self.out, "graph-text 1")?;
        if m.ir_version != 0 {
            writeln!(self.out, "ir_version {}", m.ir_version)?;
        }
        if !m.producer_name.is_empty() || !m.producer_version.is_empty() {
            self.out.write_str("producer ")?;
            self.quoted(&m.producer_name)?;
            self.out.write_char(' ')?;
            self.quoted(&m.producer_version)?;
            self.out.write_char('\n')?;
        }
        // What documents the whole file is not of a part.
        if self.options.nodes.is_none() {
            self.opsets(&m.opset_imports, 0)?;
            self.metadata(&m.metadata, 0)?;
            for f in &m.functions {
                self.function(f)?;
            }
        }
        self.out.write_str("graph ")?;
        self.graph(&m.graph, &[], 0)
    }

    fn opsets(&mut self, imports: &[(Box<str>, i64)], depth: usize) -> fmt::Result {
        for (domain, version) in imports {
            self.indent(depth)?;
            self.out.write_str("opset ")?;
            self.quoted(domain)?;
            writeln!(self.out, " {version}")?;
        }
        Ok(())
    }

    fn metadata(&mut self, metadata: &Metadata, depth: usize) -> fmt::Result {
        for (key, value) in metadata {
            self.indent(depth)?;
            self.out.write_str("meta ")?;
            self.quoted(key)?;
            self.out.write_str(" = ")?;
            self.quoted(value)?;
            self.out.write_char('\n')?;
        }
        Ok(())
    }

    fn function(&mut self, f: &Function) -> fmt::Result {
        self.out.write_str("function ")?;
        self.op(&OpId {
            domain: f.domain.clone(),
            op_type: f.name.clone(),
            overload: f.overload.clone(),
        })?;
        self.signature(&f.body)?;
        self.opsets(&f.opset_imports, 1)?;
        self.body(&f.body, &[], 0, None)
    }

    /// From the graph's name on. `outer` is what the captures are called outside.
    fn graph(&mut self, g: &Graph, outer: &[&str], depth: usize) -> fmt::Result {
        self.word(&g.name)?;
        self.signature(g)?;
        let nodes = if depth == 0 { self.options.nodes } else { None };
        self.body(g, outer, depth, nodes)
    }

    fn signature(&mut self, g: &Graph) -> fmt::Result {
        self.ports(g, g.inputs())?;
        self.out.write_str(" -> ")?;
        self.ports(g, g.outputs())?;
        self.out.write_char('\n')
    }

    fn ports(&mut self, g: &Graph, ports: &[GraphPort]) -> fmt::Result {
        self.out.write_char('(')?;
        for (i, p) in ports.iter().enumerate() {
            if i > 0 {
                self.out.write_str(", ")?;
            }
            self.value_name(g.name_of(p.value))?;
            if let Some(ty) = &p.ty {
                self.out.write_str(": ")?;
                self.ty(ty)?;
            }
        }
        self.out.write_char(')')
    }

    fn body(
        &mut self,
        g: &Graph,
        outer: &[&str],
        depth: usize,
        keep: Option<&dyn Fn(NodeId) -> bool>,
    ) -> fmt::Result {
        if keep.is_none() {
            self.metadata(&g.metadata, depth + 1)?;
        }
        for (&v, name) in g.captures().iter().zip(outer) {
            if g.name_of(v) != *name {
                self.indent(depth + 1)?;
                self.out.write_str("capture ")?;
                self.value_name(g.name_of(v))?;
                self.out.write_str(" = ")?;
                self.value_name(name)?;
                self.out.write_char('\n')?;
            }
        }
        let mut order = g.order().unwrap_or_else(|_| by_file(g));
        if let Some(keep) = keep {
            order.retain(|&n| keep(n));
        }
        let shown = self.shown_initializers(g, &order, keep.is_some());
        for v in shown {
            self.initializer(g, v, depth + 1)?;
        }
        for (v, bytes) in g.sparse_initializers() {
            self.indent(depth + 1)?;
            self.out.write_str("sparse ")?;
            self.value_name(g.name_of(*v))?;
            self.out.write_char(' ')?;
            self.hex(bytes)?;
            self.out.write_char('\n')?;
        }
        for n in order {
            self.node(g, n, depth + 1)?;
        }
        Ok(())
    }

    fn shown_initializers(&self, g: &Graph, nodes: &[NodeId], only_read: bool) -> Vec<ValueId> {
        let mut read = vec![!only_read; g.index_bound()];
        if only_read {
            for &n in nodes {
                for v in g
                    .node_inputs(n)
                    .into_iter()
                    .flatten()
                    .chain(g.node_captures(n))
                {
                    read[v.index()] = true;
                }
            }
        }
        let all = g.initializers().iter().copied();
        all.filter(|&v| read[v.index()] && (self.options.dangling || g.is_used(v)))
            .collect()
    }

    fn initializer(&mut self, g: &Graph, v: ValueId, depth: usize) -> fmt::Result {
        let value = g.value(v);
        let Some(tensor) = &value.tensor else {
            return Ok(());
        };
        self.indent(depth)?;
        self.out.write_str("init ")?;
        self.value_name(&value.name)?;
        self.out.write_str(": ")?;
        self.tensor(tensor)?;
        self.stamps(&value.metadata)?;
        self.out.write_char('\n')
    }

    fn stamps(&mut self, metadata: &Metadata) -> fmt::Result {
        for (key, value) in metadata
            .iter()
            .filter(|(k, _)| k.starts_with(stamp::PREFIX))
        {
            self.out.write_str(" +")?;
            self.word(key)?;
            self.out.write_char('=')?;
            self.quoted(value)?;
        }
        Ok(())
    }

    // ---- nodes ---------------------------------------------------------------------------------------------------------------

    fn node(&mut self, g: &Graph, n: NodeId, depth: usize) -> fmt::Result {
        self.indent(depth)?;
        self.node_line(g, n)?;
        self.out.write_char('\n')?;
        let captures = g.node_captures(n);
        let mut outer = captures.iter().map(|&v| g.name_of(v));
        for (name, attr) in &g.node(n).attrs {
            match &attr.value {
                AttrValue::Graph(inner) => {
                    let names: Vec<&str> = outer.by_ref().take(inner.captures().len()).collect();
                    self.subgraph(name, None, inner, &names, depth + 1)?;
                }
                AttrValue::Graphs(inner) => {
                    for (i, inner) in inner.iter().enumerate() {
                        let names: Vec<&str> =
                            outer.by_ref().take(inner.captures().len()).collect();
                        self.subgraph(name, Some(i), inner, &names, depth + 1)?;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn subgraph(
        &mut self,
        name: &str,
        index: Option<usize>,
        g: &Graph,
        outer: &[&str],
        depth: usize,
    ) -> fmt::Result {
        self.indent(depth)?;
        self.out.write_char('.')?;
        self.word(name)?;
        if let Some(i) = index {
            write!(self.out, "[{i}]")?;
        }
        self.out.write_str(" = graph ")?;
        self.graph(g, outer, depth)
    }

    fn node_line(&mut self, g: &Graph, n: NodeId) -> fmt::Result {
        let node = g.node(n);
        let outputs = g.node_outputs(n);
        if outputs.is_empty() {
            self.out.write_str("()")?;
        }
        self.slots(g, &outputs)?;
        self.out.write_str(" = ")?;
        self.op(&node.op)?;
        self.out.write_char('(')?;
        self.slots(g, &g.node_inputs(n))?;
        self.out.write_char(')')?;
        let mut first = true;
        for (name, attr) in &node.attrs {
            let inline = match &attr.value {
                AttrValue::Graph(_) => false,
                AttrValue::Graphs(v) => v.is_empty(),
                _ => true,
            };
            if inline {
                self.out.write_str(if first { " {" } else { ", " })?;
                first = false;
                self.word(name)?;
                self.out.write_str(" = ")?;
                self.attribute(&attr.value)?;
            }
        }
        if !first {
            self.out.write_char('}')?;
        }
        self.stamps(&node.metadata)?;
        if node.name.is_empty() {
            return Ok(());
        }
        self.out.write_str("  // ")?;
        let odd = node.name.chars().any(char::is_control)
            || node.name.trim() != &*node.name
            || node.name.starts_with('"')
            || node.name.contains(['\u{2028}', '\u{2029}', '\u{85}']);
        if odd {
            self.quoted(&node.name)
        } else {
            self.out.write_str(&node.name)
        }
    }

    fn slots(&mut self, g: &Graph, slots: &[Option<ValueId>]) -> fmt::Result {
        for (i, slot) in slots.iter().enumerate() {
            if i > 0 {
                self.out.write_str(", ")?;
            }
            match slot {
                Some(v) => self.value_name(g.name_of(*v))?,
                None => self.out.write_char('_')?,
            }
        }
        Ok(())
    }

    fn op(&mut self, op: &OpId) -> fmt::Result {
        if !op.domain.is_empty() {
            self.word(&op.domain)?;
            self.out.write_str("::")?;
        }
        self.word(&op.op_type)?;
        if !op.overload.is_empty() {
            self.out.write_char(':')?;
            self.word(&op.overload)?;
        }
        Ok(())
    }

    fn attribute(&mut self, value: &AttrValue) -> fmt::Result {
        match value {
            AttrValue::Float(x) => self.out.write_str(&float_text(*x)),
            AttrValue::Int(i) => write!(self.out, "{i}"),
            AttrValue::String(s) => self.string(s),
            AttrValue::Tensor(t) => {
                self.out.write_str("tensor ")?;
                self.tensor(t)
            }
            AttrValue::Floats(v) => self.list("floats", v, |p, x| p.out.write_str(&float_text(*x))),
            AttrValue::Ints(v) => self.list("ints", v, |p, x| write!(p.out, "{x}")),
            AttrValue::Strings(v) => self.list("strings", v, |p, x| p.string(x)),
            AttrValue::Tensors(v) => self.list("tensors", v, |p, x| {
                p.out.write_str("tensor ")?;
                p.tensor(x)
            }),
            AttrValue::Graph(_) => Ok(()),
            AttrValue::Graphs(v) => self.list("graphs", v, |_, _| Ok(())),
            AttrValue::Ref { name, kind } => {
                self.out.write_char('@')?;
                self.word(name)?;
                write!(self.out, ":{kind}")
            }
            AttrValue::Other(bytes) => {
                self.out.write_str("other ")?;
                self.hex(bytes)
            }
        }
    }

    /// A list; an empty one says what it is a list of.
    fn list<T>(
        &mut self,
        kind: &str,
        items: &[T],
        mut item: impl FnMut(&mut Self, &T) -> fmt::Result,
    ) -> fmt::Result {
        if items.is_empty() {
            self.out.write_str(kind)?;
        }
        self.out.write_char('[')?;
        for (i, x) in items.iter().enumerate() {
            if i > 0 {
                self.out.write_str(", ")?;
            }
            item(self, x)?;
        }
        self.out.write_char(']')
    }

    // ---- types and tensors ---------------------------------------------------------------------------------------------------

    fn ty(&mut self, ty: &Type) -> fmt::Result {
        match &ty.kind {
            TypeKind::Other => {
                self.out.write_str("other ")?;
                self.hex(ty.exact.as_deref().unwrap_or_default())
            }
            TypeKind::Tensor { dtype, dims: None } => write!(self.out, "{dtype}[..]"),
            TypeKind::Tensor {
                dtype,
                dims: Some(dims),
            } => {
                write!(self.out, "{dtype}[")?;
                for (i, d) in dims.iter().enumerate() {
                    if i > 0 {
                        self.out.write_str(", ")?;
                    }
                    match d {
                        Dim::Known(n) => write!(self.out, "{n}")?,
                        Dim::Symbol(s) if is_symbol(s) => self.out.write_str(s)?,
                        Dim::Symbol(s) => self.quoted(s)?,
                        Dim::Unknown => self.out.write_char('?')?,
                    }
                }
                self.out.write_char(']')
            }
        }
    }

    fn tensor(&mut self, t: &TensorData) -> fmt::Result {
        write!(self.out, "{}[", t.dtype)?;
        for (i, d) in t.dims.iter().enumerate() {
            write!(self.out, "{}{d}", if i > 0 { ", " } else { "" })?;
        }
        self.out.write_char(']')?;
        if let Payload::External(e) = &t.payload
            && e.bytes.is_empty()
            && t.count() != Some(0)
        {
            return match e.entry(HASH) {
                Some(hash) => write!(self.out, " {HASH}:{hash}"),
                None => self.out.write_str(" missing"),
            };
        }
        match t.count() {
            Some(n) if n <= SHOWN => self.elements(t),
            _ if self.options.hashes => write!(self.out, " {HASH}:{}", hash(t)),
            _ => self.out.write_str(" ..."),
        }
    }

    fn elements(&mut self, t: &TensorData) -> fmt::Result {
        let items = elements(t);
        self.out.write_str(" = ")?;
        let Some(items) = items else {
            return self.hex(&t.bytes().unwrap_or_default());
        };
        if t.dims.is_empty()
            && let [one] = items.as_slice()
        {
            return self.element(one);
        }
        self.out.write_char('{')?;
        for (i, x) in items.iter().enumerate() {
            if i > 0 {
                self.out.write_str(", ")?;
            }
            self.element(x)?;
        }
        self.out.write_char('}')
    }

    fn element(&mut self, x: &Element) -> fmt::Result {
        match x {
            Element::Text(s) => self.out.write_str(s),
            Element::Bytes(b) => self.string(b),
        }
    }
}

enum Element {
    Text(String),
    Bytes(bytes::Bytes),
}

/// Elements of a small tensor; `None` for types that are shown as bytes.
fn elements(t: &TensorData) -> Option<Vec<Element>> {
    if let Payload::Typed(Typed::String(v)) = &t.payload {
        return Some(v.iter().cloned().map(Element::Bytes).collect());
    }
    let b = t.bytes()?;
    let texts: Vec<String> = match t.dtype {
        DType::Float => chunks(&b, |c| float_text(f32::from_le_bytes(c))),
        DType::Double => chunks(&b, |c| double_text(f64::from_le_bytes(c))),
        DType::Float16 => chunks(&b, |c| half_text(u16::from_le_bytes(c), f16_to_f32)),
        DType::Bfloat16 => chunks(&b, |c| {
            half_text(u16::from_le_bytes(c), |h| {
                f32::from_bits(u32::from(h) << 16)
            })
        }),
        DType::Int64 => chunks(&b, |c| i64::from_le_bytes(c).to_string()),
        DType::Int32 => chunks(&b, |c| i32::from_le_bytes(c).to_string()),
        DType::Int16 => chunks(&b, |c| i16::from_le_bytes(c).to_string()),
        DType::Int8 => chunks(&b, |c| i8::from_le_bytes(c).to_string()),
        DType::Uint64 => chunks(&b, |c| u64::from_le_bytes(c).to_string()),
        DType::Uint32 => chunks(&b, |c| u32::from_le_bytes(c).to_string()),
        DType::Uint16 => chunks(&b, |c| u16::from_le_bytes(c).to_string()),
        DType::Uint8 => chunks(&b, |c| u8::from_le_bytes(c).to_string()),
        DType::Bool if b.iter().all(|&x| x < 2) => {
            b.iter().map(|&x| (x == 1).to_string()).collect()
        }
        _ => return None,
    };
    Some(texts.into_iter().map(Element::Text).collect())
}

fn chunks<const N: usize>(bytes: &[u8], text: impl Fn([u8; N]) -> String) -> Vec<String> {
    bytes.as_chunks().0.iter().map(|c| text(*c)).collect()
}

/// A float that reads back bit for bit, and not as an integer.
pub(super) fn float_text(x: f32) -> String {
    if x.is_nan() && x.to_bits() != 0x7fc0_0000 {
        format!("nan({:#x})", x.to_bits())
    } else if x.is_nan() {
        "nan".to_owned()
    } else {
        format!("{x:?}")
    }
}

fn double_text(x: f64) -> String {
    if x.is_nan() {
        format!("nan({:#x})", x.to_bits())
    } else {
        format!("{x:?}")
    }
}

fn half_text(bits: u16, widen: impl Fn(u16) -> f32) -> String {
    let x = widen(bits);
    if x.is_nan() {
        format!("nan({bits:#x})")
    } else {
        format!("{x:?}")
    }
}

/// Sixteen hexadecimal digits of the hash of the elements.
pub(super) fn hash(t: &TensorData) -> String {
    let mut hasher = blake3::Hasher::new();
    match (&t.payload, t.bytes()) {
        (Payload::Typed(Typed::String(v)), _) => {
            for s in v.iter() {
                hasher.update(&(s.len() as u64).to_le_bytes());
                hasher.update(s);
            }
        }
        (_, Some(bytes)) => {
            hasher.update(&bytes);
        }
        (_, None) => {}
    }
    let mut hex = hasher.finalize().to_hex().to_string();
    hex.truncate(16);
    hex
}

/// Nodes of a cyclic graph, in file order.
fn by_file(g: &Graph) -> Vec<NodeId> {
    let mut nodes: Vec<NodeId> = g.nodes().collect();
    nodes.sort_by_key(|&n| g.node(n).order());
    nodes
}
