//! Operators: one file per operator (or family of identical form), with arity, type inference and gradient rule side by side.
//!
//! No kernels here (they are `runtime::kernels`), and no candle. An operator that is not in the table is carried through every rewrite
//! with unknown types; only `Plan::compile` and the gradient pass object, naming node and path.

#![allow(
    clippy::unnecessary_wraps,
    reason = "rules share one signature, though some of them cannot fail"
)]

use crate::ir::{Builder, DType, Fact, Graph, Node, NodeId, Sym, TensorData, Val, ValueId};
use std::cell::Cell;

pub(crate) use kit::DOMAIN;
pub(crate) use kit::MS;
pub(crate) use kit::infer::{shape_text, tensor_fact};
pub(crate) use nbits::{FP4, NF4};
pub(crate) use quant::{code_range, quantizes};

/// What is known about an operator.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OpDef {
    /// Domain; `""` is `ai.onnx`.
    pub domain: &'static str,
    /// Operator name.
    pub name: &'static str,
    /// Fewest and most inputs.
    pub inputs: (usize, usize),
    /// Fewest and most outputs.
    pub outputs: (usize, usize),
    /// Type and shape inference: fills `cx.outputs`. What it cannot know it leaves unknown; it fails only on a contradiction.
    pub infer: fn(&mut InferCx<'_>) -> Result<(), InferError>,
    /// The gradient.
    pub gradient: Gradient,
    /// The definition that some nodes have besides: as simpler operators, for what has to look inside.
    pub plain: Option<fn(&Node) -> Option<Definition>>,
}

/// How gradients pass through an operator.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Gradient {
    /// They pass: the rule adds the backward nodes.
    Rule(fn(&mut GradCx<'_>) -> Result<(), GradError>),
    /// The outputs are integers, booleans, or piecewise constant: the gradient is zero everywhere.
    Zero,
    /// The operator is defined by simpler ones: the gradient is that of its definition, which takes the node's place.
    Expand(Definition),
    /// There is no rule: a path from a trainable parameter to the loss through this operator is an error.
    Missing,
}

/// An operator in terms of simpler ones: the outputs by slot.
pub(crate) type Definition = fn(&ExpandCx<'_>) -> Result<Vec<Option<Val>>, GradError>;

/// A contradiction found by type inference.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct InferError(pub String);

/// Why a gradient rule cannot be applied to a node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct GradError(pub String);

/// Infers a subgraph of the node: the name of the graph attribute, facts of the subgraph's inputs, and whether what is wrong inside is
/// reported. Gives the facts of the subgraph's outputs; `None` where it cannot be inferred.
pub(crate) type Bodies<'a> = &'a dyn Fn(&str, &[Fact], bool) -> Option<Vec<Fact>>;

/// What inference sees of a node.
pub(crate) struct InferCx<'a> {
    /// The node.
    pub node: &'a Node,
    /// Facts of the inputs by slot; `None` is an absent input.
    pub inputs: Vec<Option<&'a Fact>>,
    /// Constant tensors of the inputs by slot, where an input is an initializer or a `Constant`.
    pub tensors: Vec<Option<&'a TensorData>>,
    /// Facts of the outputs by slot, to be filled in; unknown at first.
    pub outputs: Vec<Fact>,
    /// Imported opset version of the node's domain.
    pub opset: i64,
    /// Source of fresh symbols, one for each model.
    pub fresh: &'a Cell<u32>,
    /// Inference of the node's subgraphs.
    pub bodies: Bodies<'a>,
}

impl InferCx<'_> {
    /// A size nobody knows, different from all others.
    pub(crate) fn unknown(&self) -> Sym {
        let n = self.fresh.get();
        self.fresh.set(n + 1);
        Sym::symbol(&format!("?{n}"))
    }

    /// An integer nobody knows; unlike a size it may be negative.
    pub(crate) fn unknown_int(&self) -> Sym {
        let n = self.fresh.get();
        self.fresh.set(n + 1);
        Sym::symbol(&format!("#{n}"))
    }

    /// Unknown sizes of a known rank.
    pub(crate) fn unknown_dims(&self, rank: usize) -> Vec<Sym> {
        (0..rank).map(|_| self.unknown()).collect()
    }

    /// Fact of an input; `None` if it is absent.
    pub(crate) fn input(&self, slot: usize) -> Option<&Fact> {
        self.inputs.get(slot).copied().flatten()
    }

    /// Dimensions of an input, if it is there and its rank is known.
    pub(crate) fn dims(&self, slot: usize) -> Option<&[Sym]> {
        self.input(slot)?.dims.as_deref()
    }

    /// Elements of an integer input: from the constant, or known symbolically.
    pub(crate) fn ints(&self, slot: usize) -> Option<Vec<Sym>> {
        self.input(slot)?.ints.clone()
    }

    /// Elements of an integer input, all of them known numbers.
    pub(crate) fn const_ints(&self, slot: usize) -> Option<Vec<i64>> {
        self.ints(slot)?.iter().map(Sym::as_const).collect()
    }
}

/// What a gradient rule sees of a node, and where it puts the gradients.
pub(crate) struct GradCx<'a> {
    /// The graph that is differentiated.
    pub graph: &'a Graph,
    /// The node.
    pub id: NodeId,
    /// Builder of the backward nodes.
    pub b: &'a Builder,
    /// Gradients of the loss with respect to the node's outputs, by slot; at least one is there.
    pub grads: Vec<Option<Val>>,
    /// Which inputs need a gradient, by slot.
    pub wants: Vec<bool>,
    /// Known facts of any value of the graph. Integers that stand for real numbers have the type of their gradient.
    pub facts: &'a dyn Fn(ValueId) -> Option<Fact>,
    /// Types of the values as they are.
    pub types: &'a dyn Fn(ValueId) -> Option<DType>,
    /// Gradients with respect to the inputs, by slot: the result of the rule, in the input's own shape.
    pub result: Vec<Option<Val>>,
}

impl GradCx<'_> {
    /// The node's own data.
    pub(crate) fn node(&self) -> &Node {
        self.graph.node(self.id)
    }

    /// An input value.
    pub(crate) fn input_id(&self, slot: usize) -> Result<ValueId, GradError> {
        self.graph
            .input(self.id, slot)
            .ok_or_else(|| GradError(format!("input {slot} is absent")))
    }

    /// An input value, for the builder.
    pub(crate) fn input(&self, slot: usize) -> Result<Val, GradError> {
        Ok(self.input_id(slot)?.into())
    }

    /// An output value, for the builder.
    pub(crate) fn output(&self, slot: usize) -> Result<Val, GradError> {
        Ok(self
            .graph
            .output(self.id, slot)
            .ok_or_else(|| GradError(format!("output {slot} is absent")))?
            .into())
    }

    /// The gradient of the first output.
    pub(crate) fn grad(&self) -> Result<Val, GradError> {
        self.grads
            .first()
            .copied()
            .flatten()
            .ok_or_else(|| GradError("no gradient arrives at output 0".into()))
    }

    /// Whether an input needs a gradient.
    pub(crate) fn wants(&self, slot: usize) -> bool {
        self.wants.get(slot).copied().unwrap_or(false)
    }

    /// What is known of an input.
    pub(crate) fn fact(&self, slot: usize) -> Fact {
        self.graph
            .input(self.id, slot)
            .and_then(|v| (self.facts)(v))
            .unwrap_or_default()
    }

    /// The type of a value as it is.
    pub(crate) fn stored_type(&self, v: ValueId) -> Option<DType> {
        (self.types)(v)
    }

    /// Puts the gradient of an input.
    pub(crate) fn set(&mut self, slot: usize, grad: Val) {
        if let Some(r) = self.result.get_mut(slot) {
            *r = Some(grad);
        }
    }
}

/// What the definition of an operator sees of a node that it is to replace. It returns the outputs by slot; an output that the node
/// does not have may be missing.
pub(crate) struct ExpandCx<'a> {
    /// The graph.
    pub graph: &'a Graph,
    /// The node.
    pub id: NodeId,
    /// Builder of the nodes that replace it.
    pub b: &'a Builder,
    /// Known facts of any value of the graph.
    pub facts: &'a dyn Fn(ValueId) -> Option<Fact>,
}

impl ExpandCx<'_> {
    /// The node's own data.
    pub(crate) fn node(&self) -> &Node {
        self.graph.node(self.id)
    }

    /// An input value, for the builder.
    pub(crate) fn input(&self, slot: usize) -> Result<Val, GradError> {
        self.optional(slot)
            .ok_or_else(|| GradError(format!("input {slot} is absent")))
    }

    /// An input value that may be absent.
    pub(crate) fn optional(&self, slot: usize) -> Option<Val> {
        self.graph.input(self.id, slot).map(Val::from)
    }

    /// Whether the node has an output in this slot.
    pub(crate) fn has_output(&self, slot: usize) -> bool {
        self.graph.output(self.id, slot).is_some()
    }

    /// What is known of an input.
    pub(crate) fn fact(&self, slot: usize) -> Fact {
        self.graph
            .input(self.id, slot)
            .and_then(|v| (self.facts)(v))
            .unwrap_or_default()
    }

    /// Rank of an input.
    pub(crate) fn rank(&self, slot: usize) -> Result<usize, GradError> {
        self.fact(slot)
            .rank()
            .ok_or_else(|| GradError(format!("the rank of input {slot} is unknown")))
    }
}

mod arithmetic;
mod attention;
mod attention_decoder;
mod attention_gqa;
mod attention_ms;
mod batch_norm;
mod cast;
mod concat;
mod constant;
mod control;
mod conv;
mod cross_entropy;
mod einsum;
mod embed_norm;
mod expand;
mod flex;
mod fused;
mod gather;
mod gelu;
mod gemm;
mod grid;
mod indices;
mod integer;
mod kit;
mod linear_maps;
mod logic;
mod matmul;
mod moe;
mod moves;
mod nbits;
mod norm;
mod normal;
mod optimizers;
mod qlinear;
mod quant;
mod reduce;
mod reshape;
mod resize;
mod rotary;
mod scatter;
mod select;
mod simple;
mod skip_norm;
mod slice;
mod softmax;
mod spatial;
mod state;
mod sum_to;
mod transpose;
mod unary;
mod unpad;
mod unusual;

/// Every known operator: the tables of all files.
fn table() -> impl Iterator<Item = &'static OpDef> {
    let files: &[&'static [OpDef]] = &[
        arithmetic::OPS,
        attention::OPS,
        attention_decoder::OPS,
        attention_gqa::OPS,
        attention_ms::OPS,
        batch_norm::OPS,
        cast::OPS,
        concat::OPS,
        constant::OPS,
        control::OPS,
        conv::OPS,
        cross_entropy::OPS,
        einsum::OPS,
        embed_norm::OPS,
        expand::OPS,
        flex::OPS,
        fused::OPS,
        gather::OPS,
        gelu::OPS,
        gemm::OPS,
        grid::OPS,
        indices::OPS,
        integer::OPS,
        linear_maps::OPS,
        logic::OPS,
        matmul::OPS,
        moe::OPS,
        moves::OPS,
        nbits::OPS,
        norm::OPS,
        normal::OPS,
        optimizers::OPS,
        qlinear::OPS,
        quant::OPS,
        reduce::OPS,
        reshape::OPS,
        resize::OPS,
        rotary::OPS,
        scatter::OPS,
        select::OPS,
        simple::OPS,
        skip_norm::OPS,
        slice::OPS,
        softmax::OPS,
        spatial::OPS,
        state::OPS,
        sum_to::OPS,
        transpose::OPS,
        unary::OPS,
        unpad::OPS,
        unusual::OPS,
    ];
    files.iter().flat_map(|ops| ops.iter())
}

#[cfg(test)]
mod testing;

/// Every known operator, in no particular order.
#[cfg(test)]
pub(crate) fn operators() -> impl Iterator<Item = &'static OpDef> {
    table()
}

/// The definition of an operator; `None` if it is unknown. `ai.onnx` is written `""`.
pub(crate) fn lookup(domain: &str, name: &str) -> Option<&'static OpDef> {
    use rustc_hash::FxHashMap;
    use std::sync::OnceLock;
    static INDEX: OnceLock<FxHashMap<(&'static str, &'static str), &'static OpDef>> =
        OnceLock::new();
    INDEX
        .get_or_init(|| table().map(|d| ((d.domain, d.name), d)).collect())
        .get(&(domain, name))
        .copied()
}

#[cfg(test)]
mod tests {
    use super::table;
    use std::collections::BTreeSet;

    #[test]
    fn every_operator_is_defined_once() {
        let mut seen = BTreeSet::new();
        for def in table() {
            assert!(
                seen.insert((def.domain, def.name)),
                "{} {} twice",
                def.domain,
                def.name
            );
            assert!(
                def.inputs.0 <= def.inputs.1 && def.outputs.0 <= def.outputs.1,
                "{}",
                def.name
            );
        }
    }
}
