//! The gradient of `If`: an `If` of gradients, by the same condition.
//!
//! Each branch of it computes the branch of the forward pass once more, and the gradients of what that branch captures. A value that only
//! one branch reads gets zeros from the other.

use super::{GradientPass, Outputs, Unreached, declared};
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind};
use crate::infer::Verified;
use crate::ir::{Attr, DType, Graph, NodeId, OpId, Type, Val, ValueId, contract};
use crate::rewrite::bodies::Lifted;
use crate::rewrite::{Pass, PassCx, PassError, Patch, Pipeline};
use rustc_hash::FxHashMap;

/// What a branch's gradients are asked for by.
pub(super) struct Branches<'a> {
    /// The model that the node is of.
    pub verified: &'a Verified,
    /// The node.
    pub node: NodeId,
    /// Gradients that have arrived at its outputs.
    pub grads: &'a [Option<Val>],
    /// Captured values that gradients are wanted of.
    pub wanted: &'a [ValueId],
}

impl Branches<'_> {
    /// The gradients of the wanted values, as outputs of a new node.
    pub(super) fn gradients(&self, patch: &Patch) -> Result<Vec<Val>, Error> {
        let g = &self.verified.model().graph;
        let condition = g.input(self.node, 0).map(Val::Old);
        let mut attrs: Vec<(String, Attr)> = Vec::new();
        let mut captures: Vec<Val> = Vec::new();
        for body in g.bodies(self.node) {
            let lifted = Lifted::of(self.verified, &body)?;
            let (graph, captured) = self.branch(g, &lifted)?;
            attrs.push((body.attr.to_string(), Attr::from(graph)));
            captures.extend(captured);
        }
        let attrs: Vec<(&str, Attr)> = attrs.iter().map(|(n, a)| (&**n, a.clone())).collect();
        let b = patch.builder();
        let made = b.node_n(OpId::onnx("If"), &[condition], &attrs, self.wanted.len());
        b.set_captures(captures);
        Ok(made)
    }

    /// A branch that makes the gradients, and what it captures.
    fn branch(&self, g: &Graph, lifted: &Lifted) -> Result<(Graph, Vec<Val>), Error> {
        let inner = &lifted.model().model().graph;
        no_draws(inner)?;
        let mut given: FxHashMap<Box<str>, Val> = FxHashMap::default();
        let mut fed: Vec<(String, Type)> = Vec::new();
        let mut seeds = Vec::new();
        for (slot, grad) in self.grads.iter().enumerate() {
            let (Some(grad), Some(v)) = (grad, g.output(self.node, slot)) else {
                continue;
            };
            let name = format!("{}output/{slot}", contract::GRAD);
            fed.push((name.clone(), known(g, self.verified, v)?));
            given.insert(name.as_str().into(), *grad);
            seeds.push((slot, name));
        }
        let mut wrt = Vec::new();
        for (k, &o) in self.wanted.iter().enumerate() {
            if let Some(v) = lifted.inner_of(o) {
                wrt.push(inner.name_of(v).to_owned());
                continue;
            }
            // What the other branch alone reads: zeros of its shape.
            let name = format!("{}other/{k}", contract::GRAD);
            fed.push((name.clone(), known(g, self.verified, o)?));
            given.insert(name.as_str().into(), Val::Old(o));
            wrt.push(name);
        }
        let pipeline = derived(Weighted { fed, seeds }, wrt);
        let done = pipeline.run(lifted.model().clone())?;
        Ok(lifted.closed(done.model.model(), &given, &[]))
    }
}

/// Name of the sum that a body is differentiated by.
const WEIGHTED: &str = "weighted_outputs";

/// The gradients of a body alone: of its outputs, each times the gradient that has arrived at it. What the gradients are outputs of.
pub(super) fn derived(weighted: Weighted, wrt: Vec<String>) -> Pipeline {
    let gradient = GradientPass {
        loss: WEIGHTED.to_owned(),
        wrt,
        outputs: Outputs::Drop,
        unreached: Unreached::Zeros,
    };
    Pipeline::named("body")
        .step(
            weighted,
            "What a body adds to the loss: its outputs times their gradients.",
        )
        .step(
            gradient,
            "Its gradients are what the body of the new node makes.",
        )
        .step(DropLoss, "The sum itself is of no use.")
}

/// Refuses a body that draws: computed once more, it would draw otherwise.
pub(super) fn no_draws(inner: &Graph) -> Result<(), Error> {
    let Some(n) = inner.nodes().find(|n| is_random(&inner.node(*n).op)) else {
        return Ok(());
    };
    let op = &inner.node(n).op;
    let found = format!("{op} draws inside a graph of a node: its gradient would draw again");
    let d = Diagnostic::error("gradient-body", found);
    let d = d.help("train without dropout, or with this node decided or unrolled");
    Err(Error::new(ErrorKind::Compile, d))
}

/// The type of a value that a gradient is to have.
pub(super) fn known(g: &Graph, verified: &Verified, v: ValueId) -> Result<Type, Error> {
    declared(g, verified, v).ok_or_else(|| {
        let name = g.name_of(v);
        let found = format!("the type of `{name}` is not known, and its gradient has the same");
        Error::new(
            ErrorKind::Compile,
            Diagnostic::error("gradient-body", found),
        )
    })
}

fn is_random(op: &OpId) -> bool {
    op.op_type.starts_with("Random") || matches!(&*op.op_type, "Bernoulli" | "Multinomial")
}

/// Adds graph inputs, and the sum of outputs times some of them.
#[derive(Debug)]
pub(super) struct Weighted {
    /// The inputs.
    pub fed: Vec<(String, Type)>,
    /// Outputs by place, and the inputs that they are multiplied with.
    pub seeds: Vec<(usize, String)>,
}

impl Pass for Weighted {
    fn name(&self) -> &'static str {
        "weighted"
    }

    fn run(&self, cx: &mut PassCx<'_>) -> Result<(), PassError> {
        let g = &cx.model().graph;
        let mut patch = cx.patch("weighted sum", None);
        let b = patch.builder();
        b.set_scope("grad");
        let inputs: FxHashMap<&str, Val> = self
            .fed
            .iter()
            .map(|(name, ty)| (&**name, b.graph_input(name, ty.clone())))
            .collect();
        let mut sum: Option<Val> = None;
        for (slot, name) in &self.seeds {
            let (Some(port), Some(&seed)) = (g.outputs().get(*slot), inputs.get(&**name)) else {
                continue;
            };
            let product = b.mul(port.value, seed);
            let total = b.op("ReduceSum", &[product], &[("keepdims", 0i64.into())]);
            let total = b.cast(total, DType::Float);
            sum = Some(sum.map_or(total, |s| b.add(s, total)));
        }
        let sum = sum.unwrap_or_else(|| b.unary("Identity", b.scalar(0.0)));
        patch.add_output(sum, WEIGHTED, None);
        cx.commit(patch)?;
        Ok(())
    }
}

/// The sum is no output any more.
#[derive(Debug)]
struct DropLoss;

impl Pass for DropLoss {
    fn name(&self) -> &'static str {
        "drop-loss"
    }

    fn run(&self, cx: &mut PassCx<'_>) -> Result<(), PassError> {
        let Some(v) = cx.model().graph.find(WEIGHTED) else {
            return Ok(());
        };
        let mut patch = cx.patch("no sum", None);
        patch.remove_output(v);
        cx.commit(patch)?;
        Ok(())
    }
}
