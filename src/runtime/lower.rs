//! From the IR to a flat list of instructions: functions are inlined, subgraphs become programs of their own, and an operator that has a
//! definition but no kernel becomes what it is defined as.

use super::kernels;
use crate::diag::Diagnostic;
use crate::infer::Verified;
use crate::ir::{
    Attr, AttrValue, Builder, DType, Fact, Function, Graph, Model, Node, NodeId, TensorData, Val,
    ValueId,
};
use crate::ops::{self, ExpandCx, GradError, Gradient};
use indexmap::IndexMap;
use rustc_hash::FxHashMap;
use std::borrow::Cow;

/// A value of a lowered graph.
pub(super) type Vid = usize;

/// Functions call functions; a model that nests deeper calls itself.
const DEPTH: usize = 64;

/// Nodes that calls of functions may become: functions that call others twice, in a chain, are more than any machine runs.
const INLINED: usize = 1 << 20;

/// One operator application.
pub(super) struct Instr<'m> {
    pub(super) node: Cow<'m, Node>,
    pub(super) opset: i64,
    pub(super) ins: Vec<Option<Vid>>,
    pub(super) outs: Vec<Option<Vid>>,
    /// Where it is: function calls and enclosing nodes.
    pub(super) path: String,
    /// Subgraphs, in attribute order. Their captures are the last of `ins`, in the order of all captures.
    pub(super) graphs: Vec<(Box<str>, Lowered<'m>)>,
}

/// A graph as a list of instructions.
#[derive(Default)]
pub(super) struct Lowered<'m> {
    pub(super) instrs: Vec<Instr<'m>>,
    /// Constant of each value, where it is one.
    pub(super) tensors: Vec<Option<Cow<'m, TensorData>>>,
    /// Name of each value.
    pub(super) names: Vec<Cow<'m, str>>,
    /// Formal inputs, and behind them the captures.
    pub(super) inputs: Vec<Vid>,
    /// Number of captures.
    pub(super) captures: usize,
    pub(super) outputs: Vec<Vid>,
}

impl Lowered<'_> {
    /// Number of values.
    pub(super) fn len(&self) -> usize {
        self.names.len()
    }
}

/// Lowers graphs of one model.
pub(super) struct Lowerer<'m> {
    model: &'m Model,
    verified: &'m Verified,
    functions: FxHashMap<(&'m str, &'m str, &'m str), &'m Function>,
    /// What cannot be lowered.
    pub(super) findings: Vec<Diagnostic>,
    /// Nodes that calls of functions have become.
    inlined: usize,
}

type Env = FxHashMap<ValueId, Vid>;
type Attrs<'a> = Option<&'a IndexMap<Box<str>, Attr>>;

#[derive(Clone, Copy)]
struct Scope<'a, 'm> {
    attrs: Attrs<'a>,
    path: &'a str,
    imports: &'m [(Box<str>, i64)],
    depth: usize,
}

impl<'m> Lowerer<'m> {
    pub(super) fn new(verified: &'m Verified) -> Self {
        let model = verified.model();
        let functions = model
            .functions
            .iter()
            .map(|f| {
                let domain = if &*f.domain == "ai.onnx" {
                    ""
                } else {
                    &*f.domain
                };
                ((domain, &*f.name, &*f.overload), f)
            })
            .collect();
        Lowerer {
            model,
            verified,
            functions,
            findings: Vec::new(),
            inlined: 0,
        }
    }

    /// The main graph; every value of the graph gets the [`Vid`] returned.
    pub(super) fn main(&mut self) -> (Lowered<'m>, FxHashMap<ValueId, Vid>) {
        let mut out = Lowered::default();
        let mut env = Env::default();
        let scope = Scope {
            attrs: None,
            path: "",
            imports: &self.model.opset_imports,
            depth: 0,
        };
        let g = &self.model.graph;
        for p in g.inputs() {
            let v = fresh(&mut out, &mut env, g, p.value, "");
            out.inputs.push(v);
        }
        self.body(&mut out, g, &mut env, scope);
        out.outputs = g
            .outputs()
            .iter()
            .map(|p| fresh(&mut out, &mut env, g, p.value, ""))
            .collect();
        (out, env)
    }

    fn subgraph(&mut self, g: &'m Graph, scope: Scope<'_, 'm>) -> Lowered<'m> {
        let mut out = Lowered::default();
        let mut env = Env::default();
        for v in g
            .inputs()
            .iter()
            .map(|p| p.value)
            .chain(g.captures().iter().copied())
        {
            let id = fresh(&mut out, &mut env, g, v, "");
            out.inputs.push(id);
        }
        out.captures = g.captures().len();
        self.body(&mut out, g, &mut env, scope);
        out.outputs = g
            .outputs()
            .iter()
            .map(|p| fresh(&mut out, &mut env, g, p.value, ""))
            .collect();
        out
    }

    fn body(&mut self, out: &mut Lowered<'m>, g: &'m Graph, env: &mut Env, scope: Scope<'_, 'm>) {
        for (v, _) in g.sparse_initializers() {
            self.findings.push(
                Diagnostic::error(
                    "compile-sparse",
                    format!("`{}` is a sparse initializer", g.name_of(*v)),
                )
                .at(scope.path)
                .help("store it as a dense tensor"),
            );
        }
        let order = match g.order() {
            Ok(order) => order,
            Err(cycle) => {
                self.findings
                    .push(Diagnostic::error("cycle", cycle.to_string()).at(scope.path));
                return;
            }
        };
        for n in order {
            let node = g.node(n);
            let mut ins: Vec<Option<Vid>> = g
                .node_inputs(n)
                .into_iter()
                .map(|v| v.map(|v| fresh(out, env, g, v, scope.path)))
                .collect();
            // An absent formal input of a function is an absent operand of its nodes.
            for i in &mut ins {
                if *i == Some(ABSENT) {
                    *i = None;
                }
            }
            let outs: Vec<Option<Vid>> = g
                .node_outputs(n)
                .into_iter()
                .map(|v| v.map(|v| fresh(out, env, g, v, scope.path)))
                .collect();
            if self.call(out, node, &ins, &outs, scope)
                || self.define(out, (g, n), env, &outs, scope)
            {
                continue;
            }
            ins.extend(
                g.node_captures(n)
                    .into_iter()
                    .map(|v| Some(fresh(out, env, g, v, scope.path))),
            );
            let node = resolve(node, scope.attrs);
            let graphs = self.graphs(g.node(n), scope);
            out.instrs.push(Instr {
                opset: import(scope.imports, &node.op.domain),
                node,
                ins,
                outs,
                path: scope.path.to_owned(),
                graphs,
            });
        }
    }

    fn graphs(&mut self, node: &'m Node, scope: Scope<'_, 'm>) -> Vec<(Box<str>, Lowered<'m>)> {
        let mut graphs = Vec::new();
        for (name, attr) in &node.attrs {
            let inner: &[Graph] = match &attr.value {
                AttrValue::Graph(g) => std::slice::from_ref(g),
                AttrValue::Graphs(g) => g,
                _ => continue,
            };
            for g in inner {
                let path = join(scope.path, &node.name);
                let inner = Scope {
                    path: &path,
                    depth: scope.depth + 1,
                    ..scope
                };
                graphs.push((name.clone(), self.subgraph(g, inner)));
            }
        }
        graphs
    }

    /// Puts the definition of an operator in its place, where there is one and no kernel; false if not.
    fn define(
        &mut self,
        out: &mut Lowered<'m>,
        (g, n): (&'m Graph, NodeId),
        env: &mut Env,
        outs: &[Option<Vid>],
        scope: Scope<'_, 'm>,
    ) -> bool {
        let node = g.node(n);
        let known = kernels::lookup(&node.op.domain, &node.op.op_type).is_some();
        let def = ops::lookup(&node.op.domain, &node.op.op_type).filter(|_| !known);
        let Some(Gradient::Expand(define)) = def.map(|d| d.gradient) else {
            return false;
        };
        // Types are known in the main graph; a function and a subgraph have others at each call.
        let main = std::ptr::eq(g, &raw const self.model.graph);
        let facts = |v: ValueId| -> Option<Fact> {
            match &g.value(v).tensor {
                Some(t) => Some(ops::tensor_fact(t)),
                None if main => self.verified.fact(v).cloned(),
                None => None,
            }
        };
        let b = Builder::new(import(scope.imports, ""));
        let dtype = g.output(n, 0).and_then(facts).and_then(|f| f.dtype);
        b.set_float(dtype.filter(|t| t.is_float()).unwrap_or(DType::Float));
        let made = define(&ExpandCx {
            graph: g,
            id: n,
            b: &b,
            facts: &facts,
        });
        let path = join(scope.path, &node.name);
        match made {
            Ok(vals) => self.inline(out, g, b, &vals, env, outs, &path),
            Err(GradError(e)) => self
                .findings
                .push(Diagnostic::error("unsupported-op", format!("{}: {e}", node.op)).at(path)),
        }
        true
    }

    /// Instructions of new nodes, whose values `made` are those of `outs`.
    #[expect(
        clippy::too_many_arguments,
        reason = "where it comes from and where it goes"
    )]
    fn inline(
        &mut self,
        out: &mut Lowered<'m>,
        g: &'m Graph,
        b: Builder,
        made: &[Option<Val>],
        env: &mut Env,
        outs: &[Option<Vid>],
        path: &str,
    ) {
        let opset = b.opset();
        let fragment = b.finish();
        let mut place: Vec<Option<Vid>> = vec![None; fragment.values.len()];
        for (v, o) in made.iter().zip(outs) {
            if let (Some(Val::New(i)), Some(o)) = (v, o)
                && fragment.values[*i as usize].tensor.is_none()
            {
                place[*i as usize].get_or_insert(*o);
            }
        }
        let place: Vec<Vid> = fragment
            .values
            .into_iter()
            .zip(place)
            .map(|(value, known)| {
                known.unwrap_or_else(|| {
                    out.tensors.push(value.tensor.map(Cow::Owned));
                    out.names.push(Cow::Owned(join(path, &value.name)));
                    out.names.len() - 1
                })
            })
            .collect();
        let mut vid = |out: &mut Lowered<'m>, v: &Option<Val>| match v {
            Some(Val::New(i)) => Some(place[*i as usize]),
            Some(Val::Old(v)) => Some(fresh(out, env, g, *v, path)).filter(|v| *v != ABSENT),
            None => None,
        };
        let push = |out: &mut Lowered<'m>, node: Node, opset, ins, outs| {
            out.instrs.push(Instr {
                node: Cow::Owned(node),
                opset,
                ins,
                outs,
                path: path.to_owned(),
                graphs: Vec::new(),
            });
        };
        for new in fragment.nodes {
            let ins = new.inputs.iter().map(|v| vid(out, v)).collect();
            let to = new
                .outputs
                .iter()
                .map(|o| o.map(|o| place[o as usize]))
                .collect();
            let own = new.op.domain.is_empty();
            let mut node = Node::new(new.name, new.op);
            node.attrs = new.attrs;
            push(out, node, if own { opset } else { 1 }, ins, to);
        }
        // An output that is also an input, a constant or another output.
        for (v, o) in made.iter().zip(outs) {
            let Some(o) = *o else { continue };
            match vid(out, v) {
                Some(from) if from != o => {
                    push(out, identity(), 13, vec![Some(from)], vec![Some(o)]);
                }
                Some(_) => {}
                None => self
                    .findings
                    .push(Diagnostic::error("unsupported-op", "an output is not defined").at(path)),
            }
        }
    }

    /// Inlines a call of a model-local function; false if the node is none.
    fn call(
        &mut self,
        out: &mut Lowered<'m>,
        node: &'m Node,
        ins: &[Option<Vid>],
        outs: &[Option<Vid>],
        scope: Scope<'_, 'm>,
    ) -> bool {
        let op = &node.op;
        let key = (&*op.domain, &*op.op_type, &*op.overload);
        let Some(&f) = self.functions.get(&key) else {
            return false;
        };
        // Our own operators are exported with a function body for other runtimes; here they have kernels.
        if &*op.domain == super::kernels::OWN
            && super::kernels::lookup(&op.domain, &op.op_type).is_some()
        {
            return false;
        }
        let path = join(scope.path, &node.name);
        if scope.depth >= DEPTH {
            self.findings.push(
                Diagnostic::error(
                    "compile-recursion",
                    format!("the function {op} calls itself"),
                )
                .at(path),
            );
            return true;
        }
        let before = self.inlined;
        self.inlined = before.saturating_add(f.body.nodes().count());
        if self.inlined > INLINED {
            if before <= INLINED {
                let found = format!(
                    "the functions that {op} and others call are more than {INLINED} nodes when they are put in the place of the calls"
                );
                let d = Diagnostic::error("compile-inline", found).at(path);
                self.findings.push(d);
            }
            return true;
        }
        let mut env = Env::default();
        for (i, p) in f.body.inputs().iter().enumerate() {
            env.insert(p.value, ins.get(i).copied().flatten().unwrap_or(ABSENT));
        }
        for (p, o) in f.body.outputs().iter().zip(outs) {
            if let Some(o) = o
                && !f.body.is_input(p.value)
                && f.body.value(p.value).tensor.is_none()
                && !env.contains_key(&p.value)
            {
                env.insert(p.value, *o);
            }
        }
        let resolved = resolve(node, scope.attrs);
        let inner = Scope {
            attrs: Some(&resolved.attrs),
            path: &path,
            imports: &f.opset_imports,
            depth: scope.depth + 1,
        };
        self.body(out, &f.body, &mut env, inner);
        // An output that is also an input, a constant or another output of the body.
        for (p, o) in f.body.outputs().iter().zip(outs) {
            let (Some(o), Some(&v)) = (o, env.get(&p.value)) else {
                continue;
            };
            if v != *o && v != ABSENT {
                out.instrs.push(Instr {
                    node: Cow::Owned(identity()),
                    opset: 13,
                    ins: vec![Some(v)],
                    outs: vec![Some(*o)],
                    path: path.clone(),
                    graphs: Vec::new(),
                });
            }
        }
        true
    }
}

/// Stands for an absent actual input of a function.
const ABSENT: Vid = usize::MAX;

fn join(path: &str, name: &str) -> String {
    match (path.is_empty(), name.is_empty()) {
        (true, _) => name.to_owned(),
        (_, true) => path.to_owned(),
        _ => format!("{path} > {name}"),
    }
}

fn fresh<'m>(out: &mut Lowered<'m>, env: &mut Env, g: &'m Graph, v: ValueId, path: &str) -> Vid {
    *env.entry(v).or_insert_with(|| {
        let value = g.value(v);
        out.tensors.push(value.tensor.as_ref().map(Cow::Borrowed));
        out.names.push(if path.is_empty() {
            Cow::Borrowed(&*value.name)
        } else {
            Cow::Owned(join(path, &value.name))
        });
        out.names.len() - 1
    })
}

fn import(imports: &[(Box<str>, i64)], domain: &str) -> i64 {
    let plain = |d: &str| {
        if d == "ai.onnx" {
            String::new()
        } else {
            d.to_owned()
        }
    };
    imports
        .iter()
        .find(|(d, _)| plain(d) == plain(domain))
        .map_or(1, |(_, v)| *v)
}

/// Replaces references to a call's attributes by their values.
fn resolve<'m>(node: &'m Node, attrs: Attrs<'_>) -> Cow<'m, Node> {
    let refers = node
        .attrs
        .values()
        .any(|a| matches!(a.value, AttrValue::Ref { .. }));
    if !refers {
        return Cow::Borrowed(node);
    }
    let mut node = node.clone();
    let old = std::mem::take(&mut node.attrs);
    for (name, attr) in old {
        match &attr.value {
            AttrValue::Ref { name: from, .. } => {
                if let Some(a) = attrs.and_then(|m| m.get(from)) {
                    node.attrs.insert(name, a.clone());
                }
            }
            _ => {
                node.attrs.insert(name, attr);
            }
        }
    }
    Cow::Owned(node)
}

fn identity() -> Node {
    let b = crate::ir::Builder::new(17);
    let x = b.graph_input("x", crate::ir::Type::tensor(crate::ir::DType::Float, []));
    let y = b.op("Identity", &[x], &[]);
    let ty = crate::ir::Type::tensor(crate::ir::DType::Float, []);
    b.finish_graph("", &[(y, "y", ty)])
        .ok()
        .and_then(|g| g.nodes().next().map(|n| g.node(n).clone()))
        .expect("invariant: the graph has one node")
}
