//! Reverse-mode differentiation on the graph.
//!
//! [`GradientPass`] appends the backward graph, in the order in which the chain rule visits it, and makes the gradient of each value
//! asked for a graph output `grad/<value>`. Only nodes between these values and the loss are differentiated; a frozen operand gets no
//! gradient node. The rules are the operators' own ([`ops`](crate::ops)); operators that are defined by simpler ones are replaced by
//! their definition first.
//!
//! Linear in the graph: each edge is looked at a bounded number of times.

mod branches;
mod iterations;

use self::branches::Branches;
use self::iterations::{Iterations, is_iterated, record, unrecorded};
use super::expand::{definition, expand_nodes, scope};
use crate::diag::{Diagnostic, nearest};
use crate::error::{Error, ErrorKind};
use crate::infer::Verified;
use crate::ir::contract::{self, stamp};
use crate::ir::{DType, Dim, Fact, Graph, NodeId, Sym, TensorData, Type, TypeKind, Val, ValueId};
use crate::ops::{GradCx, Gradient, lookup, quantizes};
use crate::rewrite::{Pass, PassCx, PassError, Patch};
use indexmap::IndexMap;
use rustc_hash::FxHashSet;

/// Appends the gradient of a scalar.
#[derive(Clone, Debug)]
pub(crate) struct GradientPass {
    /// Name of the loss: a value of one element.
    pub loss: String,
    /// Names of the values to differentiate by: initializers, inputs or intermediate values of floating-point type.
    pub wrt: Vec<String>,
    /// What becomes of the graph's own outputs.
    pub outputs: Outputs,
    /// What a value gets that the loss does not depend on.
    pub unreached: Unreached,
}

/// What a value gets that the loss does not depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unreached {
    /// Nothing: that is refused, as it is a mistake in what is asked for.
    Refuse,
    /// Zeros: one branch of several reads it.
    Zeros,
}

/// What becomes of the outputs that a graph has before its gradient is appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outputs {
    /// They stay, before the loss and the gradients.
    Keep,
    /// Only the loss and the gradients are outputs, so that nothing else need be kept.
    Drop,
}

impl Pass for GradientPass {
    fn name(&self) -> &'static str {
        "gradient"
    }

    fn run(&self, cx: &mut PassCx<'_>) -> Result<(), PassError> {
        if let Some(version) = cx.model().opset("").filter(|&v| v < 13) {
            let d = Diagnostic::error(
                "gradient-opset",
                format!("the model imports opset {version}; gradients need 13 or later"),
            );
            return Err(d.help("export the model with a newer opset (`opset_version=17`), or convert it: `onnx.version_converter.convert_version(model, 17)`").into());
        }
        loop {
            let ends = self.ends(&cx.model().graph)?;
            let verified = cx.verified()?;
            let route = Route::find(&cx.model().graph, &verified, &ends);
            let g = &cx.model().graph;
            let composite = route.composite(g);
            let bare: Vec<NodeId> = route
                .path
                .iter()
                .copied()
                .filter(|&n| unrecorded(g, n))
                .collect();
            if !composite.is_empty() {
                expand_nodes(cx, &composite)?;
            } else if !bare.is_empty() {
                record(cx, &verified, &bare)?;
            } else {
                return self.differentiate(cx, &verified, &ends, &route);
            }
        }
    }
}

/// The loss and the values to differentiate by.
struct Ends {
    loss: ValueId,
    wrt: Vec<ValueId>,
}

impl GradientPass {
    fn ends(&self, g: &Graph) -> Result<Ends, Error> {
        let mut found = Vec::new();
        let mut find = |name: &str, what: &str| {
            let v = g.find(name);
            if v.is_none() {
                let names: Vec<&str> = g.values().map(|v| g.name_of(v)).collect();
                let mut d =
                    Diagnostic::error("gradient-name", format!("no value `{name}` for the {what}"));
                if let Some(near) = nearest(name, names) {
                    d = d.help(format!("did you mean `{near}`?"));
                }
                found.push(d);
            }
            v
        };
        let loss = find(&self.loss, "loss");
        let wrt: Vec<Option<ValueId>> = self.wrt.iter().map(|w| find(w, "gradient")).collect();
        match (loss, wrt.into_iter().collect::<Option<Vec<_>>>()) {
            (Some(loss), Some(wrt)) => Ok(Ends { loss, wrt }),
            _ => Err(Error::many(ErrorKind::Compile, found)),
        }
    }

    fn differentiate(
        &self,
        cx: &mut PassCx<'_>,
        verified: &Verified,
        ends: &Ends,
        route: &Route,
    ) -> Result<(), PassError> {
        let g = &cx.model().graph;
        let mut patch = cx.patch("gradient", None);
        let mut back = Backward {
            g,
            verified,
            route,
            patch: &patch,
            sums: vec![None; g.index_bound()],
            findings: route.findings(g, ends),
        };
        back.findings.extend(check_ends(g, verified, ends));
        if back.findings.is_empty() {
            back.seed(ends.loss);
            for &n in route.path.iter().rev() {
                back.visit(n);
            }
        }
        let mut findings = std::mem::take(&mut back.findings);
        let mut grads: Vec<Option<Val>> = ends.wrt.iter().map(|w| back.sums[w.index()]).collect();
        if self.unreached == Unreached::Zeros {
            let lost = std::iter::zip(&ends.wrt, &mut grads).filter(|(_, grad)| grad.is_none());
            lost.for_each(|(w, grad)| *grad = Some(zeros(&patch, verified, *w)));
        }
        if findings.is_empty() {
            findings.extend(unreached(g, ends, &grads));
        }
        if !findings.is_empty() {
            return Err(Error::many(ErrorKind::Compile, findings).into());
        }
        self.publish(&mut patch, g, verified, ends, &grads);
        patch.import_domains();
        cx.commit(patch)?;
        Ok(())
    }

    /// Makes the loss and the gradients graph outputs.
    fn publish(
        &self,
        patch: &mut Patch,
        g: &Graph,
        verified: &Verified,
        ends: &Ends,
        grads: &[Option<Val>],
    ) {
        if self.outputs == Outputs::Drop {
            let own = g.outputs().iter().filter(|p| p.value != ends.loss);
            own.for_each(|p| patch.remove_output(p.value));
        }
        if !g.is_output(ends.loss) {
            let ty = declared(g, verified, ends.loss);
            patch.add_output(ends.loss.into(), &self.loss, ty);
        }
        let mut named: FxHashSet<&str> = FxHashSet::default();
        let mut taken: FxHashSet<Val> = FxHashSet::default();
        for ((name, &w), grad) in self.wrt.iter().zip(&ends.wrt).zip(grads) {
            let Some(grad) = *grad else { continue };
            if !named.insert(name) {
                continue;
            }
            // An output has one name: what is there already, or is the gradient of another value too, is copied.
            let fresh = patch.is_node_output(grad) && taken.insert(grad);
            let grad = if fresh {
                grad
            } else {
                patch.builder().set_scope(&contract::grad(name));
                patch.builder().unary("Identity", grad)
            };
            patch.add_output(grad, &contract::grad(name), declared(g, verified, w));
        }
    }
}

/// Zeros in the shape of a value.
fn zeros(patch: &Patch, verified: &Verified, like: ValueId) -> Val {
    let dtype = verified.fact(like).and_then(|f| f.dtype);
    let dtype = dtype.filter(|t| t.is_float()).unwrap_or(DType::Float);
    let bytes = vec![0u8; (dtype.bits() / 8) as usize];
    let zero = TensorData::raw(dtype, [1], bytes.into());
    let b = patch.builder();
    b.op(
        "ConstantOfShape",
        &[b.shape(like)],
        &[("value", zero.into())],
    )
}

/// The loss must be one floating-point number, and gradients are taken by floating-point values.
fn check_ends(g: &Graph, verified: &Verified, ends: &Ends) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    let fact = |v: ValueId| verified.fact(v).cloned().unwrap_or_default();
    let loss = fact(ends.loss);
    let name = g.name_of(ends.loss);
    match &loss.dims {
        Some(dims) if dims.iter().all(|d| d.is(1)) => {}
        Some(dims) => {
            let dims: Vec<String> = dims.iter().map(Sym::to_string).collect();
            let shape = dims.join(", ");
            found.push(
                Diagnostic::error(
                    "gradient-loss",
                    format!("the loss `{name}` has shape [{shape}], not one element"),
                )
                .help("reduce it to a scalar, for example with ReduceMean"),
            );
        }
        None => found.push(Diagnostic::error(
            "gradient-loss",
            format!("the shape of the loss `{name}` is unknown"),
        )),
    }
    for v in ends.wrt.iter().chain([&ends.loss]) {
        if let Some(ty) = fact(*v).dtype.filter(|t| !t.is_float()) {
            found.push(Diagnostic::error(
                "gradient-type",
                format!("`{}` is {ty}, which has no gradient", g.name_of(*v)),
            ));
        }
    }
    found
}

/// Values that no gradient arrives at.
fn unreached(g: &Graph, ends: &Ends, grads: &[Option<Val>]) -> Vec<Diagnostic> {
    let lost = ends.wrt.iter().zip(grads).filter(|(_, d)| d.is_none());
    lost.map(|(w, _)| {
        let name = g.name_of(*w);
        let loss = g.name_of(ends.loss);
        Diagnostic::error(
            "gradient-none",
            format!("`{name}` gets no gradient: `{loss}` does not depend on it"),
        )
        .help("choose another loss, or leave this value out of the trainable ones")
    })
    .collect()
}

/// The type of a value, for the output that holds its gradient.
pub(crate) fn declared(g: &Graph, verified: &Verified, v: ValueId) -> Option<Type> {
    let fact = verified.fact(v).cloned().unwrap_or_default();
    let Some(dtype) = fact.dtype else {
        return g.value(v).ty.clone();
    };
    let dim = |s: &Sym| match s.as_const() {
        Some(n) => Dim::Known(n),
        None => match s.to_string() {
            name if name.starts_with('?') || name.contains([' ', '*', '-', '+']) => Dim::Unknown,
            name => Dim::Symbol(name.into()),
        },
    };
    let dims = fact.dims.map(|d| d.iter().map(dim).collect());
    Some(Type {
        kind: TypeKind::Tensor { dtype, dims },
        exact: None,
    })
}

/// What lies between the values to differentiate by and the loss.
struct Route {
    /// By value: whether it depends differentiably on one of the values, and on which (the first of them).
    origin: Vec<Option<u32>>,
    /// By value: the type of the gradient of an integer that stands for a real number, between quantizing and dequantizing.
    codes: Vec<Option<DType>>,
    /// Nodes to differentiate, in execution order.
    path: Vec<NodeId>,
}

impl Route {
    fn find(g: &Graph, verified: &Verified, ends: &Ends) -> Route {
        let order = g.order().unwrap_or_default();
        let mut origin: Vec<Option<u32>> = vec![None; g.index_bound()];
        for (i, w) in ends.wrt.iter().enumerate() {
            origin[w.index()].get_or_insert(i as u32);
        }
        let mut codes: Vec<Option<DType>> = vec![None; g.index_bound()];
        let dtype = |v: ValueId| {
            let ty = verified.fact(v).and_then(|f| f.dtype);
            ty.or_else(|| g.value(v).ty.as_ref().and_then(Type::dtype))
        };
        for &n in &order {
            let from = g.node_sources(n).find_map(|v| origin[v.index()]);
            let zero = matches!(rule(g, n), Some(Gradient::Zero))
                || g.node(n).metadata.contains_key(stamp::DETACHED);
            let Some(from) = from.filter(|_| !zero) else {
                continue;
            };
            let behind = g.node_sources(n).find_map(|v| codes[v.index()]);
            for (slot, v) in g.node_outputs(n).into_iter().enumerate() {
                let Some(v) = v else { continue };
                if quantizes(&g.node(n).op, slot) {
                    // What is quantized passes its type on; scale and zero point are constants.
                    codes[v.index()] = g.input(n, 0).and_then(dtype).or(Some(DType::Float));
                } else if g.node(n).op.is_onnx("DynamicQuantizeLinear") {
                    continue;
                } else if dtype(v).is_some_and(|t| !t.is_float()) {
                    codes[v.index()] = behind;
                    if behind.is_none() {
                        continue;
                    }
                }
                origin[v.index()].get_or_insert(from);
            }
        }
        let mut needed = vec![false; g.index_bound()];
        needed[ends.loss.index()] = origin[ends.loss.index()].is_some();
        let mut path = Vec::new();
        for &n in order.iter().rev() {
            let outs = g.node_outputs(n);
            let on = outs
                .into_iter()
                .flatten()
                .any(|v| needed[v.index()] && origin[v.index()].is_some());
            if !on || g.node_sources(n).all(|v| origin[v.index()].is_none()) {
                continue;
            }
            path.push(n);
            for v in g.node_sources(n) {
                needed[v.index()] |= origin[v.index()].is_some();
            }
        }
        path.reverse();
        Route {
            origin,
            codes,
            path,
        }
    }

    /// Nodes on the route that are to be replaced by their definition.
    fn composite(&self, g: &Graph) -> Vec<NodeId> {
        let on = self.path.iter().copied();
        on.filter(|&n| definition(g, n).is_some()).collect()
    }

    /// Operators on the route that have no rule, one finding for each.
    fn findings(&self, g: &Graph, ends: &Ends) -> Vec<Diagnostic> {
        let mut missing: IndexMap<String, Vec<NodeId>> = IndexMap::new();
        for &n in &self.path {
            // A body has the gradients of what it captures.
            if g.node(n).op.is_onnx("If") || is_iterated(g, n) {
                continue;
            }
            let captured = g
                .node_captures(n)
                .iter()
                .any(|v| self.origin[v.index()].is_some());
            if captured || matches!(rule(g, n), None | Some(Gradient::Missing)) {
                missing.entry(g.node(n).op.to_string()).or_default().push(n);
            }
        }
        let loss = g.name_of(ends.loss);
        missing
            .into_iter()
            .map(|(op, nodes)| {
                let first = nodes[0];
                let from = g
                    .node_sources(first)
                    .find_map(|v| self.origin[v.index()])
                    .map_or("?", |i| g.name_of(ends.wrt[i as usize]));
                let names: Vec<String> = nodes.iter().take(5).map(|&n| scope(g, n)).collect();
                let more = match nodes.len() {
                    n if n > names.len() => format!(" and {} more", n - names.len()),
                    _ => String::new(),
                };
                Diagnostic::error(
                    "gradient-no-rule",
                    format!("{op} has no gradient rule, and lies between `{from}` and `{loss}`"),
                )
                .at(scope(g, first))
                .note(format!("nodes: {}{more}", names.join(", ")))
                .help("train parameters behind this operator only, or export the model without it")
            })
            .collect()
    }
}

fn rule(g: &Graph, n: NodeId) -> Option<Gradient> {
    let op = &g.node(n).op;
    lookup(&op.domain, &op.op_type).map(|d| d.gradient)
}

/// The backward graph in the making.
struct Backward<'a> {
    g: &'a Graph,
    verified: &'a Verified,
    route: &'a Route,
    patch: &'a Patch,
    /// By value: the sum of the gradients that have arrived.
    sums: Vec<Option<Val>>,
    findings: Vec<Diagnostic>,
}

impl Backward<'_> {
    fn fact(&self, v: ValueId) -> Option<Fact> {
        let mut fact = self.verified.fact(v).cloned()?;
        if let Some(ty) = self.route.codes[v.index()] {
            fact.dtype = Some(ty);
        }
        Some(fact)
    }

    /// The gradient of the loss by itself is one.
    fn seed(&mut self, loss: ValueId) {
        let fact = self.fact(loss).unwrap_or_default();
        let b = self.patch.builder();
        b.set_scope("grad");
        let one = b.scalar_of(1.0, fact.dtype.unwrap_or(DType::Float));
        let rank = fact.rank().unwrap_or(0);
        let one = if rank == 0 {
            one
        } else {
            b.reshape(one, b.constant(TensorData::ints(&vec![1; rank])))
        };
        self.sums[loss.index()] = Some(one);
    }

    /// Applies the rule of a node to the gradients that have arrived at its outputs.
    fn visit(&mut self, n: NodeId) {
        let g = self.g;
        let outputs = g.node_outputs(n);
        let grads: Vec<Option<Val>> = outputs
            .iter()
            .map(|v| v.and_then(|v| self.sums[v.index()]))
            .collect();
        if grads.iter().all(Option::is_none) {
            return;
        }
        if g.node(n).op.is_onnx("If") {
            return self.branches(n, &grads);
        }
        if is_iterated(g, n) {
            return self.iterations(n, &grads);
        }
        let Some(Gradient::Rule(apply)) = rule(g, n) else {
            return;
        };
        let inputs = g.node_inputs(n);
        let wants: Vec<bool> = inputs
            .iter()
            .map(|v| v.is_some_and(|v| self.route.origin[v.index()].is_some()))
            .collect();
        let b = self.patch.builder();
        b.set_scope(&contract::grad(&scope(g, n)));
        let typed = outputs.iter().flatten().chain(inputs.iter().flatten());
        let float = typed
            .filter_map(|&v| self.fact(v)?.dtype)
            .find(|t| t.is_float());
        b.set_float(float.unwrap_or(DType::Float));
        let facts = |v: ValueId| self.fact(v);
        let mut cx = GradCx {
            graph: g,
            id: n,
            b,
            grads,
            wants,
            facts: &facts,
            types: &|v| self.verified.fact(v)?.dtype,
            result: vec![None; inputs.len()],
        };
        let done = apply(&mut cx);
        let (result, wants) = (cx.result, cx.wants);
        if let Err(e) = done {
            let node = g.node(n);
            self.findings.push(
                Diagnostic::error("gradient-rule", format!("{}: {e}", node.op)).at(scope(g, n)),
            );
        }
        for ((v, grad), want) in inputs.into_iter().zip(result).zip(wants) {
            let (Some(v), Some(grad), true) = (v, grad, want) else {
                continue;
            };
            self.arrive(v, grad);
        }
    }

    /// Adds a gradient to those that have arrived at a value.
    fn arrive(&mut self, v: ValueId, grad: Val) {
        let sum = match self.sums[v.index()] {
            Some(before) => self.patch.builder().add(before, grad),
            None => grad,
        };
        self.sums[v.index()] = Some(sum);
    }

    /// The gradients of what the branches of a node capture.
    fn branches(&mut self, n: NodeId, grads: &[Option<Val>]) {
        let wanted = self.captured(n);
        let branches = Branches {
            verified: self.verified,
            node: n,
            grads,
            wanted: &wanted,
        };
        let made = branches.gradients(self.patch);
        self.arrived(n, made.map(|made| std::iter::zip(wanted, made).collect()));
    }

    /// The gradients of what a loop starts from, goes through and captures.
    fn iterations(&mut self, n: NodeId, grads: &[Option<Val>]) {
        let wanted = self.captured(n);
        let origin = |v: ValueId| self.route.origin[v.index()].is_some();
        let iterations = Iterations {
            verified: self.verified,
            node: n,
            grads,
            wanted: &wanted,
            reached: &origin,
        };
        let made = iterations.gradients(self.patch);
        self.arrived(n, made);
    }

    /// What a node captures that gradients are wanted of. New nodes get its scope.
    fn captured(&self, n: NodeId) -> Vec<ValueId> {
        let mut wanted: Vec<ValueId> = self.g.node_captures(n);
        wanted.retain(|v| self.route.origin[v.index()].is_some());
        wanted.sort_unstable();
        wanted.dedup();
        let b = self.patch.builder();
        b.set_scope(&contract::grad(&scope(self.g, n)));
        wanted
    }

    /// Gradients that the bodies of a node gave.
    fn arrived(&mut self, n: NodeId, made: Result<Vec<(ValueId, Val)>, Error>) {
        match made {
            Ok(made) => made.into_iter().for_each(|(v, grad)| self.arrive(v, grad)),
            Err(e) => {
                let at = scope(self.g, n);
                let found = e.within(at).findings().to_vec();
                self.findings.extend(found);
            }
        }
    }
}
#[cfg(test)]
mod tests;
