//! Graphs inside nodes (branches of `If`, bodies of `Loop` and `Scan`), each as a model of its own while it is rewritten.
//!
//! Selection and passes look at one graph. So a body is [lifted](Lifted::of): what it captures becomes a graph input, or an initializer
//! where it is a constant, and the body reads as if it had been exported alone. Whatever was done to it, [`sink`] puts it back where it
//! stood: captures are captures again, parameters of adapters and new graph inputs stand in the graph around it, under one name for all
//! bodies that read them, and constants of new nodes stay inside. A body in a body is one of the lifted model.

use super::passes::gradient::declared;
use super::{Pass, PassCx, PassError, Patch, pipelines};
use crate::adapters::manifest::Manifest;
use crate::analyze::view;
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use crate::infer::Verified;
use crate::ir::contract::stamp;
use crate::ir::{Body, Graph, GraphPort, Metadata, Model, TensorData, Use, Val, ValueId};
use bytes::Bytes;
use rustc_hash::{FxHashMap, FxHashSet};

/// A body as a model of its own.
#[derive(Clone, Debug)]
pub(crate) struct Lifted {
    body: Body,
    model: Verified,
    /// What each captured value is in the graph around the body.
    captured: FxHashMap<ValueId, ValueId>,
    /// Number of inputs that the body had.
    formals: usize,
    /// Number of outputs that it had.
    outputs: usize,
}

/// The constant that a value of the graph is, whatever is fed.
fn constant(g: &Graph, v: ValueId) -> Option<&TensorData> {
    view::tensor(g, v).filter(|_| !g.is_input(v))
}

/// The bodies that read constants of at least two axes, in the order of their nodes: what may hold layers.
pub(crate) fn with_weights(g: &Graph) -> Vec<Body> {
    let all = g.nodes().flat_map(|n| g.bodies(n));
    let found = all.filter(|b| {
        let Some(inner) = b.graph(g) else {
            return false;
        };
        let outer: FxHashSet<ValueId> = std::iter::zip(inner.captures(), b.captured(g))
            .filter(|(_, o)| constant(g, *o).is_some_and(is_matrix))
            .map(|(v, _)| *v)
            .collect();
        reads_weights(inner, &outer)
    });
    found.collect()
}

fn is_matrix(t: &TensorData) -> bool {
    t.dims.iter().filter(|d| **d > 1).count() >= 2
}

/// Whether nodes of a graph, or of bodies in it, read matrices; `given` are captures that are.
fn reads_weights(g: &Graph, given: &FxHashSet<ValueId>) -> bool {
    let matrix = |v: &ValueId| given.contains(v) || constant(g, *v).is_some_and(is_matrix);
    g.nodes().any(|n| {
        let read = g.node_inputs(n).iter().flatten().any(matrix);
        read || g.bodies(n).iter().any(|b| {
            let inner = b.graph(g);
            inner.is_some_and(|inner| {
                let pairs = std::iter::zip(inner.captures(), b.captured(g));
                let given = pairs.filter(|(_, o)| matrix(o)).map(|(v, _)| *v);
                reads_weights(inner, &given.collect())
            })
        })
    })
}

impl Lifted {
    /// Lifts a body.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`]: the body does not verify by itself.
    pub(crate) fn of(outer: &Verified, body: &Body) -> Result<Lifted> {
        let around = outer.model();
        let g = &around.graph;
        let gone = || {
            let d = Diagnostic::error("body", format!("there is no graph `{}` here", body.attr));
            Error::new(ErrorKind::Patch, d)
        };
        let mut inner = body.graph(g).ok_or_else(gone)?.clone();
        let (formals, outputs) = (inner.inputs.len(), inner.outputs.len());
        let pairs: Vec<(ValueId, ValueId)> =
            std::iter::zip(std::mem::take(&mut inner.captures), body.captured(g)).collect();
        for &(v, o) in &pairs {
            give_name(&mut inner, v, g.name_of(o));
            if let Some(tensor) = constant(g, o) {
                if let Some(value) = inner.value_mut(v) {
                    value.tensor = Some(tensor.clone());
                    value.metadata.clone_from(&g.value(o).metadata);
                }
                inner.initializers.push(v);
            } else {
                inner.inputs.push(GraphPort {
                    value: v,
                    ty: declared(g, outer, o),
                    residue: Bytes::new(),
                });
            }
        }
        let model = Model {
            graph: inner,
            functions: around.functions.clone(),
            opset_imports: around.opset_imports.clone(),
            // From 4 on, initializers need not be inputs.
            ir_version: around.ir_version.max(4),
            producer_name: around.producer_name.clone(),
            producer_version: around.producer_version.clone(),
            metadata: around.metadata.clone(),
            residue: Bytes::new(),
        };
        let model = Verified::check(model).map_err(Error::from);
        let lifted = model.map(|model| Lifted {
            body: body.clone(),
            model,
            captured: pairs.into_iter().collect(),
            formals,
            outputs,
        });
        lifted.map_err(|e| e.within(place(g, body)))
    }

    /// What a value of the graph around is inside.
    pub(crate) fn inner_of(&self, outer: ValueId) -> Option<ValueId> {
        let mut found: Vec<ValueId> = self
            .captured
            .iter()
            .filter(|(_, o)| **o == outer)
            .map(|(v, _)| *v)
            .collect();
        found.sort_unstable();
        found.first().copied()
    }

    /// The graph that the body's model became, for a new node: what its inputs and constants are around it, which it captures. `given`
    /// are those of new inputs, by name; the inputs named in `formals` are those of the graph, in this order.
    pub(crate) fn closed(
        &self,
        after: &Model,
        given: &FxHashMap<Box<str>, Val>,
        formals: &[String],
    ) -> (Graph, Vec<Val>) {
        let mut inner = after.graph.clone();
        let mut captures: Vec<(ValueId, Val)> = Vec::new();
        let mut ports = std::mem::take(&mut inner.inputs);
        for name in formals {
            let at = ports.iter().position(|p| inner.name_of(p.value) == name);
            inner.inputs.extend(at.map(|at| ports.remove(at)));
        }
        let constants = std::mem::take(&mut inner.initializers);
        let values = ports.iter().map(|p| p.value).chain(constants);
        for v in values {
            let outer = self.captured.get(&v).copied().map(Val::Old);
            match outer.or_else(|| given.get(inner.name_of(v)).copied()) {
                Some(outer) => captures.push((v, outer)),
                None => inner.initializers.push(v),
            }
        }
        let captured = enclose(&mut inner, captures);
        (inner, captured)
    }

    /// The body as a model.
    pub(crate) fn model(&self) -> &Verified {
        &self.model
    }
}

/// Gives a value this name; another value of that name gets one of its own.
fn give_name(g: &mut Graph, v: ValueId, name: &str) {
    if g.name_of(v) == name {
        return;
    }
    if let Some(other) = g.find(name) {
        let mut free = format!("{name}_inner");
        while g.rename(other, &free).is_err() {
            free.push('_');
        }
    }
    let done = g.rename(v, name);
    debug_assert!(done.is_ok(), "the name is free");
}

/// What a body is called in messages.
pub(crate) fn place(g: &Graph, body: &Body) -> String {
    let node = g.node(body.node);
    let name = if node.name.is_empty() {
        node.op.to_string()
    } else {
        node.name.to_string()
    };
    format!("`{}` of {name}", body.attr)
}

/// Does the same to the main graph and to every body that may hold layers, wherever that is possible; what each gave.
///
/// # Errors
/// What `rewrite` found, where it can do nothing anywhere, or with one body of a node and not with another that holds weights too.
pub(crate) fn everywhere<T>(
    model: Verified,
    rewrite: &mut dyn FnMut(Verified) -> Result<(Verified, T)>,
) -> Result<(Verified, Vec<T>)> {
    let found = with_weights(&model.model().graph);
    if found.is_empty() {
        let (model, done) = rewrite(model)?;
        return Ok((model, vec![done]));
    }
    let own = multiplies(&model.model().graph);
    let mut all: Vec<T> = Vec::new();
    let mut failed: Vec<(Body, Error)> = Vec::new();
    let (model, whole) = match rewrite(model.clone()) {
        Ok((model, done)) => {
            all.push(done);
            (model, None)
        }
        Err(e) => (model, Some(e)),
    };
    let mut pieces: Vec<(Lifted, Model)> = Vec::new();
    for body in found {
        let g = &model.model().graph;
        // What was done to the main graph may have put the nodes of a body in the place of its node.
        if body.graph(g).is_none() {
            continue;
        }
        let lifted = Lifted::of(&model, &body)?;
        match everywhere(lifted.model.clone(), rewrite) {
            Ok((inner, done)) => {
                pieces.push((lifted, inner.into_model()));
                all.extend(done);
            }
            Err(e) => failed.push((body.clone(), e.within(place(g, &body)))),
        }
    }
    let half = |b: &Body| pieces.iter().any(|(l, _)| l.body.node == b.node);
    if let Some(at) = failed.iter().position(|(b, _)| half(b)) {
        return Err(failed.swap_remove(at).1);
    }
    if all.is_empty() {
        // What the main graph lacks is no news where its nodes hold the layers.
        let first = failed.into_iter().next().map(|(_, e)| e);
        return match (whole, first) {
            (Some(whole), None) => Err(whole),
            (Some(whole), _) if own => Err(whole),
            (_, Some(e)) => Err(e),
            (None, None) => Ok((model, all)),
        };
    }
    Ok((sink(model, pieces)?, all))
}

/// Whether a graph itself multiplies with weights, whatever stands inside its nodes.
pub(crate) fn multiplies(g: &Graph) -> bool {
    let linear = |op: &str| op.contains("MatMul") || op.contains("Gemm");
    g.nodes().any(|n| linear(&g.node(n).op.op_type))
}

/// Puts bodies back, each with what its model became. Nothing to do without any.
///
/// # Errors
/// What cannot stand inside a node: a new output; a name that is taken outside, or stands for two things in two bodies.
pub(crate) fn sink(model: Verified, pieces: Vec<(Lifted, Model)>) -> Result<Verified> {
    if pieces.is_empty() {
        return Ok(model);
    }
    Ok(pipelines::sinking(Sink { pieces }).run(model)?.model)
}

/// Puts bodies back.
#[derive(Debug)]
pub(crate) struct Sink {
    /// Each body, and what its model became.
    pub pieces: Vec<(Lifted, Model)>,
}

impl Pass for Sink {
    fn name(&self) -> &'static str {
        "sink-bodies"
    }

    fn run(&self, cx: &mut PassCx<'_>) -> Result<(), PassError> {
        let patch = cx.patch("bodies", None);
        let mut sinking = Sinking {
            around: cx.model(),
            patch,
            hoisted: FxHashMap::default(),
            tensors: FxHashMap::default(),
            metadata: FxHashMap::default(),
        };
        let mut kept: FxHashSet<ValueId> = FxHashSet::default();
        for (lifted, after) in &self.pieces {
            kept.extend(sinking.body(lifted, after)?);
        }
        let gone = self.gone(&cx.model().graph, &kept);
        let mut patch = sinking.patch;
        for v in gone {
            patch.remove_value(v);
        }
        cx.commit(patch)?;
        Ok(())
    }
}

impl Sink {
    /// Values that passes took out of bodies and that nothing else reads.
    fn gone(&self, g: &Graph, kept: &FxHashSet<ValueId>) -> Vec<ValueId> {
        let mut gone: Vec<ValueId> = Vec::new();
        let replaced: FxHashSet<_> = self.pieces.iter().map(|p| p.0.body.node).collect();
        for (lifted, after) in &self.pieces {
            // An input that came with an adapter goes when nothing reads it any more.
            let came = |o: &ValueId| g.value(*o).metadata.contains_key(stamp::ADAPTER);
            let removed = lifted.captured.iter().filter(|(v, o)| {
                let there = after.graph.get_value(**v).is_some();
                !there || (came(o) && after.graph.uses(**v).is_empty())
            });
            gone.extend(removed.map(|(_, o)| *o));
        }
        gone.sort_unstable();
        gone.dedup();
        let inside = |u: &Use| matches!(u, Use::Capture(n, _) if replaced.contains(n));
        gone.retain(|v| {
            !kept.contains(v)
                && g.producer(*v).is_none()
                && !g.is_output(*v)
                && g.uses(*v).iter().all(inside)
        });
        gone
    }
}

/// A patch of the graph around bodies in the making.
struct Sinking<'a> {
    around: &'a Model,
    patch: Patch,
    /// New values of the graph around, by name.
    hoisted: FxHashMap<Box<str>, (Val, Option<TensorData>)>,
    /// Constants that bodies changed.
    tensors: FxHashMap<ValueId, TensorData>,
    /// Metadata that they changed.
    metadata: FxHashMap<Box<str>, Option<Box<str>>>,
}

fn refused(what: impl Into<String>, at: &str) -> Diagnostic {
    Diagnostic::error("body", what).at(at)
}

/// Makes values of a graph captures of what they are around it, and drops those that nothing reads; what it captures now, in order.
fn enclose(inner: &mut Graph, captures: Vec<(ValueId, Val)>) -> Vec<Val> {
    let (used, unused): (Vec<_>, Vec<_>) =
        captures.into_iter().partition(|(v, _)| inner.is_used(*v));
    for (v, _) in &used {
        if let Some(value) = inner.value_mut(*v) {
            value.tensor = None;
            value.metadata = Metadata::default();
        }
    }
    inner.captures = used.iter().map(|(v, _)| *v).collect();
    inner.remove_values(&unused.iter().map(|(v, _)| *v).collect::<Vec<_>>());
    used.into_iter().map(|(_, o)| o).collect()
}

/// Whether two constants are the same. Those that share their bytes are not read.
fn same(a: &TensorData, b: &TensorData) -> bool {
    let bytes = || match (a.bytes(), b.bytes()) {
        (Some(a), Some(b)) => (a.as_ptr() == b.as_ptr() && a.len() == b.len()) || a == b,
        _ => false,
    };
    a.dtype == b.dtype && a.dims == b.dims && bytes()
}

impl Sinking<'_> {
    /// Puts one body back; the values of the graph around that it reads now.
    fn body(&mut self, lifted: &Lifted, after: &Model) -> Result<Vec<ValueId>, PassError> {
        let around = &self.around.graph;
        let at = place(around, &lifted.body);
        let mut inner = after.graph.clone();
        if inner.outputs.len() != lifted.outputs {
            let new = inner
                .outputs
                .get(lifted.outputs)
                .map_or("", |p| inner.name_of(p.value));
            let d = refused(
                format!(
                    "the graph gets another output, `{new}`, and a graph inside a node has those that the node gives on"
                ),
                &at,
            );
            return Err(d.help("leave out what adds outputs").into());
        }
        let mut captures: Vec<(ValueId, Val)> = Vec::new();
        let ports = inner
            .inputs
            .split_off(lifted.formals.min(inner.inputs.len()));
        for port in ports {
            let v = port.value;
            let outer = match lifted.captured.get(&v) {
                Some(o) => Val::Old(*o),
                None => self.input(&inner, &port, &at)?,
            };
            captures.push((v, outer));
        }
        let mut own = Vec::new();
        for v in std::mem::take(&mut inner.initializers) {
            if captures.iter().any(|(c, _)| *c == v) {
                continue;
            }
            match self.outside(lifted, &inner, v, &at)? {
                Some(outer) => captures.push((v, outer)),
                None => own.push(v),
            }
        }
        inner.initializers = own;
        let captured = enclose(&mut inner, captures);
        self.model_entries(after, &at)?;
        let kept = captured.iter().filter_map(|v| match v {
            Val::Old(id) => Some(*id),
            Val::New(_) => None,
        });
        let kept = kept.collect();
        self.patch.set_body(lifted.body.clone(), inner, captured);
        Ok(kept)
    }

    /// What a constant of a body's model is in the graph around; `None` for one that stays inside.
    fn outside(
        &mut self,
        lifted: &Lifted,
        inner: &Graph,
        v: ValueId,
        at: &str,
    ) -> Result<Option<Val>, PassError> {
        let value = inner.value(v);
        let Some(tensor) = &value.tensor else {
            return Ok(None);
        };
        let Some(&outer) = lifted.captured.get(&v) else {
            let parameter = value.metadata.contains_key(stamp::PARAM);
            return if parameter {
                self.parameter(&value.name, tensor, &value.metadata, at)
                    .map(Some)
            } else {
                Ok(None)
            };
        };
        let around = &self.around.graph;
        if constant(around, outer).is_some_and(|t| same(t, tensor)) {
            return Ok(Some(Val::Old(outer)));
        }
        if around.value(outer).tensor.is_none() {
            return Ok(None);
        }
        match self.tensors.get(&outer) {
            Some(t) if same(t, tensor) => {}
            Some(_) => {
                let name = &value.name;
                let d = refused(
                    format!(
                        "`{name}` becomes another weight here than in the other graph that reads it"
                    ),
                    at,
                );
                return Err(d.into());
            }
            None => {
                self.tensors.insert(outer, tensor.clone());
                self.patch.set_tensor(outer, tensor.clone());
            }
        }
        Ok(Some(Val::Old(outer)))
    }

    /// A parameter of an adapter, which stands in the graph around: one for all bodies that read it.
    fn parameter(
        &mut self,
        name: &str,
        tensor: &TensorData,
        metadata: &Metadata,
        at: &str,
    ) -> Result<Val, PassError> {
        if let Some((val, there)) = self.hoisted.get(name) {
            if there.as_ref().is_some_and(|t| same(t, tensor)) {
                return Ok(*val);
            }
            let d = refused(
                format!("`{name}` has other values here than in another graph of this model"),
                at,
            );
            return Err(d.into());
        }
        if let Some(old) = self.around.graph.find(name) {
            if constant(&self.around.graph, old).is_some_and(|t| same(t, tensor)) {
                return Ok(Val::Old(old));
            }
            let d = refused(
                format!("the name `{name}` is taken in the graph around"),
                at,
            );
            return Err(d.help("give the adapter another name").into());
        }
        let b = self.patch.builder();
        b.set_stamp(metadata.clone());
        let val = b.initializer(name, tensor.clone());
        b.set_stamp(Metadata::default());
        self.hoisted
            .insert(name.into(), (val, Some(tensor.clone())));
        Ok(val)
    }

    /// A new graph input, which is one of the graph around: one for all bodies that read it.
    fn input(&mut self, inner: &Graph, port: &GraphPort, at: &str) -> Result<Val, PassError> {
        let value = inner.value(port.value);
        let name = &*value.name;
        if let Some((val, _)) = self.hoisted.get(name) {
            return Ok(*val);
        }
        let around = &self.around.graph;
        if let Some(old) = around.find(name) {
            if around.is_input(old) {
                return Ok(Val::Old(old));
            }
            let d = refused(
                format!(
                    "the name `{name}` is taken in the graph around, and a graph input of this name is added"
                ),
                at,
            );
            return Err(d.into());
        }
        let Some(ty) = port.ty.clone().or_else(|| value.ty.clone()) else {
            return Err(refused(
                format!("the type of the new graph input `{name}` is not known"),
                at,
            )
            .into());
        };
        let b = self.patch.builder();
        let val = match &value.tensor {
            Some(default) => b.optional_input(name, ty, default.clone(), value.metadata.clone()),
            None => b.graph_input(name, ty),
        };
        self.hoisted.insert(name.into(), (val, None));
        Ok(val)
    }

    /// Metadata and imports that the body's model has and the model around has not.
    fn model_entries(&mut self, after: &Model, at: &str) -> Result<(), PassError> {
        let before = &self.around.metadata;
        let keys = after.metadata.keys().chain(before.keys());
        let mut changed: Vec<&Box<str>> = keys
            .filter(|k| after.metadata.get(*k) != before.get(*k))
            .collect();
        changed.dedup();
        for key in changed {
            let value = after.metadata.get(key).cloned();
            let there = self.metadata.get(key);
            let both = there.and_then(|t| united(key, t.as_deref(), value.as_deref()));
            match there {
                Some(there) if *there == value => {}
                Some(_) if both.is_some() => {
                    self.patch.model_metadata(key, both.as_deref());
                    self.metadata.insert(key.clone(), both);
                }
                Some(_) => {
                    let d = refused(
                        format!(
                            "`{key}` says something else here than in another graph of this model"
                        ),
                        at,
                    );
                    return Err(d.into());
                }
                None => {
                    self.patch.model_metadata(key, value.as_deref());
                    self.metadata.insert(key.clone(), value);
                }
            }
        }
        for (domain, version) in &after.opset_imports {
            self.patch.import(domain, *version);
        }
        Ok(())
    }
}

/// What two graphs of a model say together of the adapters that come in; `None` where they contradict each other.
fn united(key: &str, a: Option<&str>, b: Option<&str>) -> Option<Box<str>> {
    let manifests = (key == stamp::MANIFEST).then_some((a?, b?))?;
    Manifest::united(manifests.0, manifests.1).map(Into::into)
}
