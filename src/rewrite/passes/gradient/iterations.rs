//! The gradient of `Loop` and `Scan`: a `Scan` that goes back through the iterations.
//!
//! A loop on the way of a gradient is [made to record](record) what it was in before each iteration, as outputs of scanned values. The
//! `Scan` takes these in reverse. Each of its iterations computes the body once more, and the gradients of it: of the carried values, which
//! it carries on; of the elements of sequences, which are scanned; and of what the body captures, which are summed up. Carried values
//! must keep their shape, as scanned values have one (ONNX, `Loop` and `Scan`).

use super::branches::{Weighted, derived, known, no_draws};
use super::{Ends, Route, declared, zeros};
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind};
use crate::infer::Verified;
use crate::ir::contract::{self, stamp};
use crate::ir::{Attr, Body, DType, Graph, NodeId, OpId, TensorData, Type, Val, ValueId};
use crate::rewrite::bodies::Lifted;
use crate::rewrite::{Pass, PassCx, PassError, Patch, Pipeline};
use rustc_hash::FxHashMap;

/// Whether a node repeats a body.
pub(super) fn is_iterated(g: &Graph, n: NodeId) -> bool {
    let op = &g.node(n).op;
    op.is_onnx("Loop") || op.is_onnx("Scan")
}

/// Whether a node repeats a body and does not record its states.
pub(super) fn unrecorded(g: &Graph, n: NodeId) -> bool {
    is_iterated(g, n) && !g.node(n).metadata.contains_key(stamp::RECORDED)
}

/// How elements lie in a sequence.
#[derive(Clone, Copy, Debug)]
struct Along {
    axis: i64,
    reversed: bool,
}

impl Along {
    fn back(self) -> Along {
        Along {
            reversed: !self.reversed,
            ..self
        }
    }
}

/// What the inputs and outputs of a loop are.
#[derive(Debug)]
struct Layout {
    /// Number of node inputs, and of body inputs, before the carried values.
    before: usize,
    /// Number of carried values.
    carried: usize,
    /// Number of body outputs before the carried values.
    skip: usize,
    /// The sequences: the last inputs.
    sequences: Vec<Along>,
    /// The scanned outputs, which come behind the carried values.
    scanned: Vec<Along>,
    /// Body inputs that are recorded, in the order of the last outputs.
    recorded: Vec<usize>,
}

impl Layout {
    /// `outputs`: number of outputs of the body without those that record.
    fn of(g: &Graph, n: NodeId, outputs: usize) -> Layout {
        let node = g.node(n);
        let inputs = g.node_inputs(n).len();
        let at = |name: &str, k: usize| {
            let list = node.ints(name).unwrap_or(&[]);
            list.get(k).copied().unwrap_or(0)
        };
        let along = |kind: &str, k: usize| Along {
            axis: at(&format!("scan_{kind}_axes"), k),
            reversed: at(&format!("scan_{kind}_directions"), k) == 1,
        };
        if node.op.is_onnx("Loop") {
            let carried = inputs.saturating_sub(2);
            return Layout {
                before: 2,
                carried,
                skip: 1,
                sequences: Vec::new(),
                scanned: (1 + carried..outputs).map(|k| along("output", k)).collect(),
                recorded: std::iter::once(0).chain(2..2 + carried).collect(),
            };
        }
        let count = usize::try_from(node.int("num_scan_inputs", 0)).unwrap_or(0);
        let carried = inputs.saturating_sub(count);
        Layout {
            before: 0,
            carried,
            skip: 0,
            sequences: (0..count).map(|k| along("input", k)).collect(),
            scanned: (carried..outputs)
                .map(|k| along("output", k - carried))
                .collect(),
            recorded: (0..carried).collect(),
        }
    }
}

/// The only body of a loop.
fn body(g: &Graph, n: NodeId) -> Result<Body, Error> {
    let found = g.bodies(n).pop();
    found.ok_or_else(|| {
        let d = Diagnostic::error("gradient-body", "the node has no `body`");
        Error::new(ErrorKind::Compile, d)
    })
}

/// Makes loops hand on what each iteration starts from.
pub(super) fn record(
    cx: &mut PassCx<'_>,
    verified: &Verified,
    nodes: &[NodeId],
) -> Result<(), PassError> {
    for &n in nodes {
        let g = &cx.model().graph;
        let lifted = Lifted::of(verified, &body(g, n)?)?;
        let inner = &lifted.model().model().graph;
        let outputs = inner.outputs().len();
        let layout = Layout::of(g, n, outputs);
        let formals = names(
            inner,
            layout.before + layout.carried + layout.sequences.len(),
        );
        let wanted = layout.recorded.iter().map(|&k| formals[k].clone());
        let pass = Recording {
            inputs: wanted.collect(),
        };
        let pipeline = Pipeline::named("recording").step(
            pass,
            "The gradient starts each iteration from where it started.",
        );
        let done = pipeline.run(lifted.model().clone()).map_err(Error::from)?;
        let (graph, captured) = lifted.closed(done.model.model(), &FxHashMap::default(), &formals);
        let node = g.node(n).clone();
        let inputs: Vec<Option<Val>> = g
            .node_inputs(n)
            .into_iter()
            .map(|v| v.map(Val::Old))
            .collect();
        let before = outputs - layout.skip;
        let mut attrs: Vec<(String, Attr)> = Vec::new();
        for (name, attr) in &node.attrs {
            let attr = match &**name {
                "body" => Attr::from(graph.clone()),
                // Recorded values lie along the first axis, in the order of the iterations.
                "scan_output_axes" | "scan_output_directions" => {
                    let mut list = node.ints(name).unwrap_or(&[]).to_vec();
                    list.resize(layout.scanned.len() + layout.recorded.len(), 0);
                    Attr::from(list.as_slice())
                }
                _ => attr.clone(),
            };
            attrs.push((name.to_string(), attr));
        }
        let mut patch = cx.patch("recorded iterations", Some(n));
        let b = patch.builder();
        b.set_scope(&node.name);
        let attrs: Vec<(&str, Attr)> = attrs.iter().map(|(n, a)| (&**n, a.clone())).collect();
        let made = b.node_n(
            node.op.clone(),
            &inputs,
            &attrs,
            before + layout.recorded.len(),
        );
        b.set_captures(captured);
        for (key, value) in &node.metadata {
            b.mark_last_node(key, value);
        }
        b.mark_last_node(stamp::RECORDED, &before.to_string());
        let mut renamed = Vec::new();
        for (old, new) in std::iter::zip(g.node_outputs(n), made) {
            if let Some(old) = old {
                patch.supersede((old, g.name_of(old)), new, &mut renamed);
            }
        }
        patch.remove_node(n);
        for (new, name) in renamed {
            patch.rename(new, &name);
        }
        cx.commit(patch)?;
    }
    Ok(())
}

/// Names of the first inputs of a graph.
fn names(g: &Graph, count: usize) -> Vec<String> {
    let ports = g.inputs().iter().take(count);
    ports.map(|p| g.name_of(p.value).to_owned()).collect()
}

/// Makes copies of inputs outputs.
#[derive(Debug)]
struct Recording {
    inputs: Vec<String>,
}

impl Pass for Recording {
    fn name(&self) -> &'static str {
        "recording"
    }

    fn run(&self, cx: &mut PassCx<'_>) -> Result<(), PassError> {
        let verified = cx.verified()?;
        let g = &cx.model().graph;
        let mut patch = cx.patch("recorded inputs", None);
        patch.builder().set_scope("grad");
        for name in &self.inputs {
            let Some(v) = g.find(name) else { continue };
            let copy = patch.builder().unary("Identity", v);
            patch.add_output(copy, &format!("recorded/{name}"), declared(g, &verified, v));
        }
        cx.commit(patch)?;
        Ok(())
    }
}

/// What the gradients of a loop are asked for by.
pub(super) struct Iterations<'a> {
    /// The model that the node is of.
    pub verified: &'a Verified,
    /// The node, which records.
    pub node: NodeId,
    /// Gradients that have arrived at its outputs.
    pub grads: &'a [Option<Val>],
    /// Captured values that gradients are wanted of.
    pub wanted: &'a [ValueId],
    /// Whether a gradient is wanted of a value around the body.
    pub reached: &'a dyn Fn(ValueId) -> bool,
}

impl Iterations<'_> {
    /// The gradients of carried values, sequences and captures that they are wanted of, as outputs of a new node.
    pub(super) fn gradients(&self, patch: &Patch) -> Result<Vec<(ValueId, Val)>, Error> {
        let g = &self.verified.model().graph;
        let n = self.node;
        let lifted = Lifted::of(self.verified, &body(g, n)?)?;
        let inner = &lifted.model().model().graph;
        no_draws(inner)?;
        let recorded = g.node(n).metadata.get(stamp::RECORDED);
        let before = recorded.and_then(|k| k.parse::<usize>().ok()).unwrap_or(0);
        let skip = usize::from(g.node(n).op.is_onnx("Loop"));
        let layout = Layout::of(g, n, skip + before);
        let count = layout.before + layout.carried + layout.sequences.len();
        let formals = names(inner, count);
        let input = |k: usize| g.input(n, k);
        let reached = |k: &usize| input(*k).is_some_and(self.reached);
        let first = layout.before + layout.carried;
        let sequences: Vec<usize> = (first..count).filter(reached).collect();
        let active = self.active(&lifted, &layout, &sequences);

        let b = patch.builder();
        let mut back = Back::default();
        // What stands for the condition: each iteration that is gone back through has been gone through.
        let mut given: FxHashMap<Box<str>, Val> = FxHashMap::default();
        if skip == 1 {
            let yes = TensorData::raw(DType::Bool, [], vec![1u8].into());
            given.insert(formals[1].as_str().into(), b.constant(yes));
        }
        let grad_of = |slot: usize| self.grads.get(slot).copied().flatten();
        let output = |slot: usize| g.output(n, slot);
        for &k in &active {
            let name = format!("{}output/{k}", contract::GRAD);
            let port = inner.inputs()[layout.before + k].value;
            back.feed(&name, known(inner, lifted.model(), port)?);
            back.seeds.push((layout.skip + k, name.clone()));
            let start = match (grad_of(k), output(k)) {
                (Some(grad), _) => grad,
                (None, Some(v)) => zeros(patch, self.verified, v),
                (None, None) => continue,
            };
            back.state(start, name, contract::grad(&formals[layout.before + k]));
        }
        for (j, &o) in self.wanted.iter().enumerate() {
            let Some(v) = lifted.inner_of(o) else {
                continue;
            };
            let name = format!("{}sum/{j}", contract::GRAD);
            let total = format!("{}total/{j}", contract::GRAD);
            let grad = contract::grad(inner.name_of(v));
            let ty = known(inner, lifted.model(), v)?;
            back.sums.push((name.clone(), ty, grad, total.clone()));
            back.state(zeros(patch, self.verified, o), name, total);
            back.wrt.push(inner.name_of(v).to_owned());
        }
        let states = back.states.len();
        let forward = Along {
            axis: 0,
            reversed: false,
        };
        for (slot, &k) in layout.recorded.iter().enumerate() {
            let kept = output(before + slot);
            back.element(kept.map(Val::Old), forward, &formals[k]);
        }
        for (k, along) in layout.sequences.iter().enumerate() {
            back.element(input(first + k).map(Val::Old), *along, &formals[first + k]);
        }
        for (m, along) in layout.scanned.iter().enumerate() {
            let Some(grad) = grad_of(layout.carried + m) else {
                continue;
            };
            let name = format!("{}scanned/{m}", contract::GRAD);
            let slot = layout.skip + layout.carried + m;
            let port = inner.outputs()[slot].value;
            back.feed(&name, known(inner, lifted.model(), port)?);
            back.seeds.push((slot, name.clone()));
            back.element(Some(grad), *along, &name);
        }
        let along = |k: usize| layout.sequences[k - first].back();
        let scanned: Vec<Along> = sequences.iter().map(|&k| along(k)).collect();
        back.results
            .extend(sequences.iter().map(|&k| contract::grad(&formals[k])));
        back.wrt
            .extend(active.iter().map(|k| formals[layout.before + k].clone()));
        back.wrt
            .extend(sequences.iter().map(|&k| formals[k].clone()));

        let made = back.build(&lifted, &given, &scanned, patch)?;
        let carried = active.iter().map(|k| input(layout.before + k));
        let all = carried
            .chain(self.wanted.iter().copied().map(Some))
            .chain(sequences.iter().map(|&k| input(k)));
        debug_assert_eq!(states + sequences.len(), made.len());
        let wanted = std::iter::zip(all, made).filter_map(|(v, grad)| Some((v?, grad)));
        Ok(wanted.filter(|(v, _)| (self.reached)(*v)).collect())
    }

    /// The carried values that depend on one that a gradient is wanted of.
    fn active(&self, lifted: &Lifted, layout: &Layout, sequences: &[usize]) -> Vec<usize> {
        let g = &self.verified.model().graph;
        let (verified, inner) = (lifted.model(), &lifted.model().model().graph);
        let formal = |k: usize| inner.inputs()[k].value;
        let float = |v: ValueId| {
            let ty = verified.fact(v).and_then(|f| f.dtype);
            let ty = ty.or_else(|| inner.value(v).ty.as_ref().and_then(Type::dtype));
            ty.is_some_and(DType::is_float)
        };
        let start = |k: &usize| {
            let v = g.input(self.node, layout.before + k);
            v.is_some_and(self.reached)
        };
        let mut active: Vec<usize> = (0..layout.carried).filter(start).collect();
        loop {
            let captured = self.wanted.iter().filter_map(|&o| lifted.inner_of(o));
            let carried = active.iter().map(|k| formal(layout.before + k));
            let elements = sequences.iter().map(|&k| formal(k));
            let ends = Ends {
                loss: inner.outputs()[0].value,
                wrt: captured.chain(carried).chain(elements).collect(),
            };
            let route = Route::find(inner, verified, &ends);
            let next: Vec<usize> = (0..layout.carried)
                .filter(|&k| {
                    let v = inner.outputs()[layout.skip + k].value;
                    active.contains(&k) || route.origin[v.index()].is_some()
                })
                .filter(|&k| float(formal(layout.before + k)))
                .collect();
            if next == active {
                return active;
            }
            active = next;
        }
    }
}

/// The `Scan` that goes back, in the making.
#[derive(Default)]
struct Back {
    /// New inputs of the body, which gradients arrive by.
    fed: Vec<(String, Type)>,
    /// Outputs of the body by place, and the inputs that their gradients arrive by.
    seeds: Vec<(usize, String)>,
    /// What the body is differentiated by.
    wrt: Vec<String>,
    /// Sums that are carried: the input, its type, what is added, and the output.
    sums: Vec<(String, Type, String, String)>,
    /// What carried values start from.
    states: Vec<Val>,
    /// The sequences, with the way back through each.
    elements: Vec<(Val, Along)>,
    /// Names of the body's inputs: those of carried values.
    carried: Vec<String>,
    /// Those of elements.
    scanned: Vec<String>,
    /// Names of the body's outputs.
    results: Vec<String>,
}

impl Back {
    fn feed(&mut self, name: &str, ty: Type) {
        self.fed.push((name.to_owned(), ty));
    }

    fn state(&mut self, start: Val, input: String, output: String) {
        self.states.push(start);
        self.carried.push(input);
        self.results.push(output);
    }

    fn element(&mut self, sequence: Option<Val>, along: Along, input: &str) {
        let Some(sequence) = sequence else { return };
        self.elements.push((sequence, along.back()));
        self.scanned.push(input.to_owned());
    }

    /// Its outputs.
    fn build(
        self,
        lifted: &Lifted,
        given: &FxHashMap<Box<str>, Val>,
        scanned: &[Along],
        patch: &Patch,
    ) -> Result<Vec<Val>, Error> {
        let weighted = Weighted {
            fed: self.fed,
            seeds: self.seeds,
        };
        let pipeline = derived(weighted, self.wrt).step(
            Sums { of: self.sums },
            "What the body captures gets the sum over all iterations.",
        );
        let done = pipeline.run(lifted.model().clone())?;
        let formals = [self.carried, self.scanned].concat();
        let (mut graph, captured) = lifted.closed(done.model.model(), given, &formals);
        graph.order_outputs(&self.results);
        let ints = |of: &dyn Fn(&Along) -> i64, all: &[Along]| {
            let list: Vec<i64> = all.iter().map(of).collect();
            Attr::from(list.as_slice())
        };
        let axis = |a: &Along| a.axis;
        let direction = |a: &Along| i64::from(a.reversed);
        let (sequences, ways): (Vec<Val>, Vec<Along>) = self.elements.into_iter().unzip();
        let count = i64::try_from(sequences.len()).unwrap_or(i64::MAX);
        let attrs = [
            ("body", Attr::from(graph)),
            ("num_scan_inputs", count.into()),
            ("scan_input_axes", ints(&axis, &ways)),
            ("scan_input_directions", ints(&direction, &ways)),
            ("scan_output_axes", ints(&axis, scanned)),
            ("scan_output_directions", ints(&direction, scanned)),
        ];
        let inputs: Vec<Option<Val>> = self.states.into_iter().chain(sequences).map(Some).collect();
        let b = patch.builder();
        let made = b.node_n(OpId::onnx("Scan"), &inputs, &attrs, self.results.len());
        b.set_captures(captured);
        Ok(made)
    }
}

/// Sums up gradients over iterations.
#[derive(Debug)]
struct Sums {
    /// The input with the sum so far, its type, what is added, and the output with the sum.
    of: Vec<(String, Type, String, String)>,
}

impl Pass for Sums {
    fn name(&self) -> &'static str {
        "sums"
    }

    fn run(&self, cx: &mut PassCx<'_>) -> Result<(), PassError> {
        let g = &cx.model().graph;
        let mut patch = cx.patch("sums over iterations", None);
        patch.builder().set_scope("grad");
        for (sum, ty, grad, total) in &self.of {
            let Some(grad) = g.find(grad) else { continue };
            let before = patch.builder().graph_input(sum, ty.clone());
            let after = patch.builder().add(before, grad);
            patch.remove_output(grad);
            patch.add_output(after, total, Some(ty.clone()));
        }
        cx.commit(patch)?;
        Ok(())
    }
}
