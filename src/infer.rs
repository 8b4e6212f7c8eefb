//! Types and shapes of a whole model: [`Verified`] is the only door to writing and to the runtime.
//!
//! Inference walks each graph once in execution order and asks every operator's rule (`ops`). Sizes are symbolic; integer vectors that
//! hold shapes are followed element by element, so that what an exporter writes as `Shape → Gather → Mul → Concat → Reshape` comes out
//! as a shape over the symbols of the graph inputs. Subgraphs are inferred with the facts of what they capture, functions at each call.
//!
//! Declared types (`value_info`, outputs) are merged with the inferred ones. A declaration may say more than inference knows and is
//! then believed. Where both know and differ:
//! * element types: an error;
//! * rank or a known size of a graph output: an error, the output is the model's contract;
//! * rank or a known size of an inner value: a warning, and the inferred shape stands. Exporters and optimizers leave such entries
//!   stale, and every runtime ignores them.
//!
//! Symbols are believed to be sizes of at least one: `seq - 1` is the size of `x[:, 1:]`.

use crate::diag::{Diagnostic, Severity};
use crate::error::{Error, ErrorKind};
use crate::ir::{
    Attr, AttrValue, DType, Dim, Fact, Function, Graph, GraphPort, InfoEntry, Metadata, Model,
    Node, NodeId, Payload, Sym, TensorData, Type, TypeKind, ValueId, verify,
};
use crate::ops::{self, InferCx, OpDef, shape_text, tensor_fact};
use indexmap::IndexMap;
use rustc_hash::FxHashMap;
use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

/// Shapes of more axes stay unknown, and so do sizes with longer names.
const MAX_RANK: usize = 256;
const MAX_SYMBOL: usize = 128;
/// Subgraphs and function calls nest no deeper.
const MAX_DEPTH: u32 = 48;

/// A model that verifies, with what is known of each of its values.
#[derive(Clone, Debug)]
pub struct Verified {
    model: Model,
    facts: Facts,
    warnings: Vec<Diagnostic>,
}

/// What is known of each value of the main graph.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    by_index: Vec<Option<(ValueId, Fact)>>,
}

/// A model that does not verify: all findings, and the model back.
#[derive(Debug)]
pub struct Rejected {
    /// Everything that was found.
    pub findings: Vec<Diagnostic>,
    /// The model.
    pub model: Box<Model>,
}

impl From<Rejected> for Error {
    fn from(r: Rejected) -> Error {
        Error::many(ErrorKind::Invalid, r.findings)
    }
}

impl Facts {
    /// What is known of a value.
    pub(crate) fn get(&self, value: ValueId) -> Option<&Fact> {
        self.by_index
            .get(value.index())?
            .as_ref()
            .filter(|(id, _)| *id == value)
            .map(|(_, f)| f)
    }

    /// Notes what is known of a value.
    pub(crate) fn set(&mut self, value: ValueId, fact: Fact) {
        if self.by_index.len() <= value.index() {
            self.by_index.resize(value.index() + 1, None);
        }
        self.by_index[value.index()] = Some((value, fact));
    }
}

impl Verified {
    /// Verifies structure, types and shapes. All findings come back together.
    pub fn check(model: Model) -> Result<Verified, Rejected> {
        let mut findings = verify::check_model(&model);
        let mut facts = Facts::default();
        if !has_errors(&findings) {
            let found = RefCell::new(findings);
            facts = Engine::new(&model, &found).main();
            findings = found.into_inner();
        }
        if has_errors(&findings) {
            return Err(Rejected {
                findings,
                model: Box::new(model),
            });
        }
        Ok(Verified {
            model,
            facts,
            warnings: findings,
        })
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// What is known of a value of the main graph.
    pub fn fact(&self, value: ValueId) -> Option<&Fact> {
        self.facts.get(value)
    }

    /// Findings that did not stop verification.
    pub(crate) fn warnings(&self) -> &[Diagnostic] {
        &self.warnings
    }

    /// Declares the types of what these nodes make (`value_info`), where they are not declared. It is what was inferred, so the model
    /// verifies as before; sizes that only an expression or a name made up here tells are left open.
    pub(crate) fn declare_types(&mut self, of: impl Fn(&Metadata) -> bool) {
        let graph = &self.model.graph;
        let declared = declarations(graph);
        let made = graph.nodes().filter(|n| of(&graph.node(*n).metadata));
        let made = made.flat_map(|n| graph.node_outputs(n)).flatten();
        let open = made.filter(|v| declared[v.index()].is_none());
        let entry = |value| {
            let ty = Some(declarable(self.facts.get(value)?)?);
            let residue = bytes::Bytes::new();
            Some(InfoEntry::Value(GraphPort { value, ty, residue }))
        };
        let entries: Vec<InfoEntry> = open.filter_map(entry).collect();
        self.model.graph.infos.extend(entries);
    }

    /// Gives the model up, for editing by other means.
    pub fn into_model(self) -> Model {
        self.model
    }
}

/// The type that a file can declare of a value of which this is known.
fn declarable(fact: &Fact) -> Option<Type> {
    let size = |s: &Sym| match (s.as_const(), s.as_symbol()) {
        (Some(n), _) => Dim::Known(n),
        (None, Some(name)) if s.is_plain() => Dim::Symbol(name.into()),
        (None, _) => Dim::Unknown,
    };
    let dims = fact.dims.as_ref().map(|d| d.iter().map(size).collect());
    let kind = TypeKind::Tensor {
        dtype: fact.dtype?,
        dims,
    };
    Some(Type { kind, exact: None })
}

fn has_errors(findings: &[Diagnostic]) -> bool {
    findings.iter().any(|d| d.severity == Severity::Error)
}

type Imports = [(Box<str>, i64)];
type Attrs = IndexMap<Box<str>, Attr>;

struct Engine<'m> {
    model: &'m Model,
    functions: FxHashMap<(&'m str, &'m str, &'m str), &'m Function>,
    found: &'m RefCell<Vec<Diagnostic>>,
    fresh: Cell<u32>,
    /// Nodes that may still be visited inside subgraphs and functions: calls can nest exponentially.
    budget: Cell<u64>,
    missing_domains: RefCell<BTreeSet<Box<str>>>,
}

/// Where a graph stands.
struct Scope<'a> {
    path: String,
    imports: &'a Imports,
    /// Inside a function: the attributes of the call.
    call: Option<&'a Attrs>,
    depth: u32,
}

/// What is known inside one graph, by value index.
struct Table<'a> {
    facts: Vec<Option<Fact>>,
    tensors: Vec<Option<&'a TensorData>>,
}

impl<'a> Table<'a> {
    fn fact(&self, v: ValueId) -> Option<&Fact> {
        self.facts.get(v.index())?.as_ref()
    }

    fn tensor(&self, v: ValueId) -> Option<&'a TensorData> {
        self.tensors.get(v.index()).copied().flatten()
    }

    fn set(&mut self, v: ValueId, fact: Fact, tensor: Option<&'a TensorData>) {
        self.facts[v.index()] = Some(fact);
        self.tensors[v.index()] = tensor;
    }
}

/// A value given from outside: an input or a capture.
type Given<'a> = (ValueId, Fact, Option<&'a TensorData>);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    Input,
    Info,
    Output,
}

impl<'m> Engine<'m> {
    fn new(model: &'m Model, found: &'m RefCell<Vec<Diagnostic>>) -> Self {
        let functions = model
            .functions
            .iter()
            .map(|f| ((ai_onnx(&f.domain), &*f.name, &*f.overload), f))
            .collect();
        let nodes = model.graph.node_count() as u64;
        Engine {
            model,
            functions,
            found,
            fresh: Cell::new(0),
            budget: Cell::new(nodes * 64 + 20_000),
            missing_domains: RefCell::default(),
        }
    }

    fn main(&self) -> Facts {
        let g = &self.model.graph;
        let scope = Scope {
            path: String::new(),
            imports: &self.model.opset_imports,
            call: None,
            depth: 0,
        };
        let table = self.graph(g, Vec::new(), &scope);
        let mut facts = Facts::default();
        for v in g.values() {
            if let Some(f) = table.fact(v) {
                facts.set(v, f.clone());
            }
        }
        facts
    }

    fn report(&self, d: Diagnostic) {
        self.found.borrow_mut().push(d);
    }

    fn graph<'a>(&self, g: &'a Graph, given: Vec<Given<'a>>, scope: &Scope<'_>) -> Table<'a> {
        let bound = g.index_bound();
        let mut table = Table {
            facts: vec![None; bound],
            tensors: vec![None; bound],
        };
        let declared = declarations(g);
        for &v in g.initializers() {
            self.initializer(g, v, &declared, &mut table, scope);
        }
        for (v, fact, tensor) in given {
            let path = || place(scope, g.name_of(v));
            let fact = self.merge(fact, declared[v.index()], &path);
            table.set(v, fact, tensor);
        }
        for v in g.values() {
            if table.fact(v).is_none()
                && g.producer(v).is_none()
                && let Some((ty, _)) = declared[v.index()]
            {
                table.set(v, self.declared_fact(ty), None);
            }
        }
        let Ok(order) = g.order() else { return table };
        for n in order {
            if scope.depth > 0 && !self.spend() {
                break;
            }
            self.node(g, n, &declared, &mut table, scope);
        }
        table
    }

    fn spend(&self) -> bool {
        let left = self.budget.get();
        self.budget.set(left.saturating_sub(1));
        if left == 1 {
            self.report(Diagnostic::warning(
                "infer-budget",
                "subgraphs and function calls are too many to infer: types inside the last ones stay unknown",
            ));
        }
        left > 0
    }

    fn initializer<'a>(
        &self,
        g: &'a Graph,
        v: ValueId,
        declared: &[Option<(&Type, Origin)>],
        table: &mut Table<'a>,
        scope: &Scope<'_>,
    ) {
        let Some(tensor) = &g.value(v).tensor else {
            return;
        };
        let path = || place(scope, g.name_of(v));
        if let Some(d) = payload_finding(tensor) {
            self.report(d.at(path()));
        }
        // An initializer that is also a graph input is a default that the caller may replace (IR version 3 lists all of them).
        let is_default = self.model.ir_version >= 4 && scope.depth == 0 && g.is_input(v);
        let mut fact = tensor_fact(tensor);
        if is_default {
            fact.ints = None;
        }
        let mut fact = self.merge(fact, declared[v.index()], &path);
        if let (true, Some((ty, _))) = (is_default, declared[v.index()]) {
            // What takes its place has the declared shape, and not the default's.
            fact.dims = self.declared_fact(ty).dims;
        }
        table.set(v, fact, (!is_default).then_some(tensor));
    }

    fn node<'a>(
        &self,
        g: &'a Graph,
        id: NodeId,
        declared: &[Option<(&Type, Origin)>],
        table: &mut Table<'a>,
        scope: &Scope<'_>,
    ) {
        let node = g.node(id);
        let inputs = g.node_inputs(id);
        let outputs = g.node_outputs(id);
        let path = || place(scope, &label(g, id));
        let mut facts = self.outputs(g, id, &inputs, table, scope);
        facts.resize(outputs.len(), Fact::default());
        let tensor = carried_tensor(node, &inputs, table);
        for (slot, (v, fact)) in outputs.iter().zip(facts).enumerate() {
            let Some(v) = *v else { continue };
            let fact = self.merge(fact, declared[v.index()], &|| {
                format!("{} (output `{}`)", path(), g.name_of(v))
            });
            table.set(v, fact, tensor.filter(|_| slot == 0));
        }
    }

    /// Facts of a node's outputs, before declarations.
    fn outputs<'a>(
        &self,
        g: &'a Graph,
        id: NodeId,
        inputs: &[Option<ValueId>],
        table: &Table<'a>,
        scope: &Scope<'_>,
    ) -> Vec<Fact> {
        let unknown = vec![Fact::default(); g.node(id).output_count()];
        let Some(node) = resolve_refs(g.node(id), scope.call) else {
            return unknown;
        };
        let node: &Node = &node;
        let path = || place(scope, &label(g, id));
        let op = &node.op;
        if let Some(f) = self.function(&op.domain, &op.op_type, &op.overload) {
            return self
                .call(f, node, inputs, table, &path(), scope)
                .unwrap_or(unknown);
        }
        let Some(opset) = import(scope.imports, &op.domain) else {
            if self.missing_domains.borrow_mut().insert(op.domain.clone()) {
                self.report(missing_domain(&op.domain, &op.op_type).at(path()));
            }
            return unknown;
        };
        let Some(def) = ops::lookup(&op.domain, &op.op_type) else {
            return unknown;
        };
        let arity = arity_findings(def, node, inputs);
        if !arity.is_empty() {
            for d in arity {
                self.report(d.at(path()));
            }
            return unknown;
        }
        let bodies = |name: &str, given: &[Fact], loud: bool| {
            self.body(g, id, name, given, loud, table, &path(), scope)
        };
        let mut cx = InferCx {
            node,
            inputs: inputs.iter().map(|v| table.fact((*v)?)).collect(),
            tensors: inputs.iter().map(|v| table.tensor((*v)?)).collect(),
            outputs: unknown.clone(),
            opset,
            fresh: &self.fresh,
            bodies: &bodies,
        };
        match (def.infer)(&mut cx) {
            Ok(()) => cx.outputs,
            Err(e) => {
                self.report(
                    Diagnostic::error("op-types", format!("{op}: {e}"))
                        .at(path())
                        .note(describe_inputs(g, inputs, table)),
                );
                unknown
            }
        }
    }

    fn function(&self, domain: &str, name: &str, overload: &str) -> Option<&'m Function> {
        if self.functions.is_empty() {
            return None;
        }
        self.functions
            .get(&(ai_onnx(domain), name, overload))
            .copied()
    }

    /// A call of a model-local function: its body with the facts of the call.
    fn call<'a>(
        &self,
        f: &'m Function,
        node: &Node,
        inputs: &[Option<ValueId>],
        table: &Table<'a>,
        path: &str,
        scope: &Scope<'_>,
    ) -> Option<Vec<Fact>> {
        if inputs.len() > f.body.inputs().len() {
            self.report(
                Diagnostic::error(
                    "op-arity",
                    format!(
                        "function {} takes {} inputs, found {}",
                        node.op,
                        f.body.inputs().len(),
                        inputs.len()
                    ),
                )
                .at(path),
            );
            return None;
        }
        if scope.depth >= MAX_DEPTH || self.budget.get() == 0 {
            return None;
        }
        let given = f.body.inputs().iter().enumerate().map(|(i, p)| {
            let v = inputs.get(i).copied().flatten();
            let fact = v.and_then(|v| table.fact(v)).cloned().unwrap_or_default();
            (p.value, fact, v.and_then(|v| table.tensor(v)))
        });
        let inner = Scope {
            path: format!("{path} > "),
            imports: &f.opset_imports,
            call: Some(&node.attrs),
            depth: scope.depth + 1,
        };
        // The facts of the body are only looked at here, so the tensors need not outlive the call.
        let body = self.graph(&f.body, given.collect(), &inner);
        Some(
            f.body
                .outputs()
                .iter()
                .map(|p| body.fact(p.value).cloned().unwrap_or_default())
                .collect(),
        )
    }

    /// A subgraph of a node.
    #[expect(clippy::too_many_arguments, reason = "one caller, which curries it")]
    fn body(
        &self,
        g: &Graph,
        id: NodeId,
        name: &str,
        given: &[Fact],
        loud: bool,
        table: &Table<'_>,
        path: &str,
        scope: &Scope<'_>,
    ) -> Option<Vec<Fact>> {
        if scope.depth >= MAX_DEPTH || self.budget.get() == 0 {
            return None;
        }
        let (body, first) = subgraph(g.node(id), name)?;
        let outer = g.node_captures(id);
        let captures = body.captures().iter().enumerate().filter_map(|(i, &v)| {
            let o = *outer.get(first + i)?;
            Some((v, table.fact(o)?.clone(), table.tensor(o)))
        });
        let inputs = body
            .inputs()
            .iter()
            .enumerate()
            .map(|(i, p)| (p.value, given.get(i).cloned().unwrap_or_default(), None));
        let inner = Scope {
            path: format!("{path}/{name} > "),
            imports: scope.imports,
            call: scope.call,
            depth: scope.depth + 1,
        };
        let before = self.found.borrow().len();
        let inferred = self.graph(body, captures.chain(inputs).collect(), &inner);
        if !loud {
            self.found.borrow_mut().truncate(before);
        }
        Some(
            body.outputs()
                .iter()
                .map(|p| inferred.fact(p.value).cloned().unwrap_or_default())
                .collect(),
        )
    }

    fn unknown(&self) -> Sym {
        let n = self.fresh.get();
        self.fresh.set(n + 1);
        Sym::symbol(&format!("?{n}"))
    }

    fn declared_fact(&self, ty: &Type) -> Fact {
        let TypeKind::Tensor { dtype, dims } = &ty.kind else {
            return Fact::default();
        };
        let dim = |d: &Dim| match d {
            Dim::Known(n) if *n >= 0 => Sym::from(*n),
            Dim::Symbol(s) if is_symbol(s) => Sym::symbol(s),
            Dim::Known(_) | Dim::Symbol(_) | Dim::Unknown => self.unknown(),
        };
        Fact {
            dtype: (*dtype != DType::Undefined).then_some(*dtype),
            dims: dims.as_ref().map(|d| d.iter().map(dim).collect()),
            ints: None,
        }
    }

    /// What inference found and what the file declares.
    fn merge(
        &self,
        found: Fact,
        declared: Option<(&Type, Origin)>,
        path: &dyn Fn() -> String,
    ) -> Fact {
        let mut found = found;
        found.dims = found.dims.filter(|d| d.len() <= MAX_RANK);
        let Some((ty, origin)) = declared else {
            return found;
        };
        let told = self.declared_fact(ty);
        if let (Some(a), Some(b)) = (found.dtype, told.dtype)
            && a != b
        {
            self.report(
                Diagnostic::error("type-contradiction", format!("found {a}, declared {b}"))
                    .at(path())
                    .help("correct or remove the declared type"),
            );
        }
        let dims = match (found.dims, told.dims) {
            (Some(a), Some(b)) if contradict(&a, &b) => {
                self.report(shape_finding(&a, &b, origin).at(path()));
                Some(a)
            }
            (Some(a), Some(b)) => Some(a.into_iter().zip(b).map(|(a, b)| better(a, b)).collect()),
            (a, b) => a.or(b),
        };
        Fact {
            dtype: found.dtype.or(told.dtype),
            dims,
            ints: found.ints,
        }
    }
}

/// The better known of two sizes that do not contradict each other. Names that ONNX's own inference makes up for what it does not know
/// say less than an expression.
fn better(found: Sym, declared: Sym) -> Sym {
    let unknown = |s: &Sym| s.to_string().contains(['?', '#']);
    let made_up = |s: &Sym| s.as_symbol().is_some_and(|name| name.starts_with("unk__"));
    if found.is_plain() || !declared.is_plain() || (made_up(&declared) && !unknown(&found)) {
        found
    } else {
        declared
    }
}

fn contradict(a: &[Sym], b: &[Sym]) -> bool {
    a.len() != b.len()
        || a.iter()
            .zip(b)
            .any(|(a, b)| matches!((a.as_const(), b.as_const()), (Some(a), Some(b)) if a != b))
}

fn shape_finding(found: &[Sym], declared: &[Sym], origin: Origin) -> Diagnostic {
    let message = format!(
        "found shape {}, declared {}",
        shape_text(found),
        shape_text(declared)
    );
    match origin {
        Origin::Output | Origin::Input => Diagnostic::error("shape-contradiction", message)
            .help("correct or remove the declared shape"),
        Origin::Info => Diagnostic::warning("shape-stale", message)
            .note("the declaration is ignored, as runtimes do"),
    }
}

/// Whether a name of a dimension can be a symbol: our own are marked by `?` and `#`, and names are copied often.
fn is_symbol(name: &str) -> bool {
    !name.is_empty() && name.len() <= MAX_SYMBOL && !name.contains(['?', '#'])
}

/// A payload that is there, but not of the size that type and dimensions ask for.
fn payload_finding(t: &TensorData) -> Option<Diagnostic> {
    let want = t.count().and_then(|n| t.dtype.bytes_for(n))?;
    let have = match &t.payload {
        Payload::Raw(b) => b.len(),
        Payload::External(e) if !e.bytes.is_empty() => e.bytes.len(),
        Payload::External(_) | Payload::Typed(_) => return None,
    };
    (have as u64 != want).then(|| {
        Diagnostic::error(
            "tensor-size",
            format!("{}{:?} takes {want} bytes, found {have}", t.dtype, t.dims),
        )
    })
}

/// Declared types by value index. What a graph input or output declares goes before `value_info`.
fn declarations(g: &Graph) -> Vec<Option<(&Type, Origin)>> {
    let mut out = vec![None; g.index_bound()];
    for v in g.values() {
        out[v.index()] = g.value(v).ty.as_ref().map(|t| (t, Origin::Info));
    }
    for entry in g.infos() {
        if let InfoEntry::Value(p) = entry
            && let Some(ty) = &p.ty
        {
            out[p.value.index()] = Some((ty, Origin::Info));
        }
    }
    let ports = |list, origin| std::iter::zip(list, std::iter::repeat(origin));
    for (p, origin) in ports(g.outputs(), Origin::Output).chain(ports(g.inputs(), Origin::Input)) {
        if let Some(ty) = &p.ty {
            out[p.value.index()] = Some((ty, origin));
        }
    }
    out
}

/// The domain as opset imports have it.
pub(crate) fn ai_onnx(domain: &str) -> &str {
    if domain == "ai.onnx" { "" } else { domain }
}

fn import(imports: &Imports, domain: &str) -> Option<i64> {
    imports
        .iter()
        .find(|(d, _)| ai_onnx(d) == ai_onnx(domain))
        .map(|(_, v)| *v)
}

fn missing_domain(domain: &str, op_type: &str) -> Diagnostic {
    let name = if domain.is_empty() { "ai.onnx" } else { domain };
    Diagnostic::error(
        "domain-not-imported",
        format!("{op_type} is of domain `{name}`, which the model does not import"),
    )
    .help(format!("add an opset import of `{name}`"))
}

/// A node's name, or what it computes if it has none.
fn label(g: &Graph, id: NodeId) -> String {
    let node = g.node(id);
    if !node.name.is_empty() {
        return node.name.to_string();
    }
    let first = g.node_outputs(id).into_iter().flatten().next();
    format!("{} -> {}", node.op, first.map_or("", |v| g.name_of(v)))
}

fn place(scope: &Scope<'_>, name: &str) -> String {
    format!("{}{name}", scope.path)
}

fn describe_inputs(g: &Graph, inputs: &[Option<ValueId>], table: &Table<'_>) -> String {
    let one = |v: &Option<ValueId>| {
        let Some(v) = *v else {
            return "(absent)".to_owned();
        };
        let fact = table.fact(v);
        let ty = fact
            .and_then(|f| f.dtype)
            .map_or_else(|| "?".to_owned(), |d| d.to_string());
        let dims = fact.and_then(|f| f.dims.as_deref());
        let dims = dims.map_or_else(|| "[..]".to_owned(), shape_text);
        format!("`{}` {ty}{dims}", g.name_of(v))
    };
    let all: Vec<String> = inputs.iter().take(8).map(one).collect();
    format!("inputs: {}", all.join(", "))
}

/// The node with attributes that refer to the call replaced by the call's. `None` if one of them is not given there: its default is in
/// a part of the function that is carried, not interpreted.
fn resolve_refs<'a>(node: &'a Node, call: Option<&Attrs>) -> Option<Cow<'a, Node>> {
    let refers = |a: &Attr| matches!(a.value, AttrValue::Ref { .. });
    if !node.attrs.values().any(refers) {
        return Some(Cow::Borrowed(node));
    }
    let mut node = node.clone();
    for attr in node.attrs.values_mut() {
        if let AttrValue::Ref { name, .. } = &attr.value {
            *attr = call?.get(name)?.clone();
        }
    }
    Some(Cow::Owned(node))
}

/// The constant that an output is: of a `Constant`, or of an initializer behind an `Identity`.
fn carried_tensor<'a>(
    node: &'a Node,
    inputs: &[Option<ValueId>],
    table: &Table<'a>,
) -> Option<&'a TensorData> {
    if node.op.is_onnx("Constant") {
        return node.attr("value").and_then(AttrValue::as_tensor);
    }
    if node.op.is_onnx("Identity") {
        return table.tensor((*inputs.first()?)?);
    }
    None
}

/// A subgraph by its attribute's name, and the place of its first capture among those of all subgraphs of the node.
fn subgraph<'a>(node: &'a Node, name: &str) -> Option<(&'a Graph, usize)> {
    let mut first = 0;
    for (key, attr) in &node.attrs {
        match &attr.value {
            AttrValue::Graph(g) if &**key == name => return Some((g, first)),
            AttrValue::Graph(g) => first += g.captures().len(),
            AttrValue::Graphs(list) => {
                first += list.iter().map(|g| g.captures().len()).sum::<usize>();
            }
            _ => {}
        }
    }
    None
}

fn arity_findings(def: &OpDef, node: &Node, inputs: &[Option<ValueId>]) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    let mut check = |what: &str, have: usize, (min, max): (usize, usize)| {
        if have < min || have > max {
            let expected = match (min, max) {
                (a, b) if a == b => format!("{a}"),
                (a, usize::MAX) => format!("at least {a}"),
                (a, b) => format!("{a} to {b}"),
            };
            found.push(Diagnostic::error(
                "op-arity",
                format!("{} takes {expected} {what}, found {have}", node.op),
            ));
        }
    };
    // Absent inputs behind the last one that an operator knows are as good as none.
    let trailing = inputs
        .iter()
        .rposition(Option::is_some)
        .map_or(0, |i| i + 1);
    let have = inputs.len();
    check(
        "inputs",
        if have > def.inputs.1 { trailing } else { have },
        def.inputs,
    );
    check("outputs", node.output_count(), def.outputs);
    // Of the standard operators only Loop may leave out an input that others follow and that it always lists.
    let required = if def.domain.is_empty() && def.name != "Loop" {
        def.inputs.0.min(have)
    } else {
        0
    };
    if let Some(slot) = inputs[..required].iter().position(Option::is_none) {
        found.push(Diagnostic::error(
            "op-arity",
            format!("{} needs its input {slot}", node.op),
        ));
    }
    found
}

#[cfg(test)]
mod tests;
