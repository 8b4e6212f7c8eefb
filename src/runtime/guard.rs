//! What a node is about to make, before it makes it: sizes that come from data are compared with the memory there is.
//!
//! The operator's own shape rule is asked, with the sizes that its operands have now. Most nodes are not worth asking: whatever an
//! operator of two operands makes, it has at most as many elements as both have multiplied.

use super::kernels::Cx;
use super::value::{Fault, Value};
use crate::budget;
use crate::ir::{DType, Fact, Node, Sym};
use crate::ops::{InferCx, OpDef, lookup};
use std::cell::Cell;

/// Operators whose result is as large as an operand or an attribute says.
const BY_VALUE: [&str; 22] = [
    "BlackmanWindow",
    "CenterCropPad",
    "Col2Im",
    "ConstantOfShape",
    "Conv",
    "ConvTranspose",
    "DFT",
    "Expand",
    "EyeLike",
    "GridSample",
    "HammingWindow",
    "HannWindow",
    "MaxUnpool",
    "MelWeightMatrix",
    "Multinomial",
    "OneHot",
    "Pad",
    "RandomNormal",
    "RandomUniform",
    "Range",
    "Resize",
    "Tile",
];

/// Elements of an integer operand that a shape rule may read.
const READ: usize = 64;

/// Bytes below which nothing is asked.
const SMALL: u128 = 64 << 20;

/// The check of one node.
pub(crate) struct Guard {
    node: Node,
    opset: i64,
    def: &'static OpDef,
    by_value: bool,
    outputs: usize,
}

impl Guard {
    /// The check of a node, where its operator has a shape rule and no graph inside.
    pub(crate) fn of(node: &Node, opset: i64, outputs: usize) -> Option<Guard> {
        let def = lookup(&node.op.domain, &node.op.op_type)?;
        if ["If", "Loop", "Scan"].iter().any(|op| node.op.is_onnx(op)) {
            return None;
        }
        Some(Guard {
            node: node.clone(),
            opset,
            def,
            by_value: BY_VALUE.contains(&&*node.op.op_type),
            outputs,
        })
    }

    /// Refuses what would not fit.
    ///
    /// # Errors
    /// The outputs, and what the run holds already, are larger than the limit.
    pub(crate) fn check(&self, ins: &[Option<Value>], run: &Cx<'_>) -> Result<(), Fault> {
        if !self.by_value && product(ins) <= SMALL {
            return Ok(());
        }
        let facts: Vec<Option<Fact>> = ins.iter().map(|v| v.as_ref().map(fact)).collect();
        let fresh = Cell::new(0);
        let mut cx = InferCx {
            node: &self.node,
            inputs: facts.iter().map(Option::as_ref).collect(),
            tensors: vec![None; ins.len()],
            outputs: vec![Fact::default(); self.outputs],
            opset: self.opset,
            fresh: &fresh,
            bodies: &|_, _, _| None,
        };
        // What the rule refuses, the kernel refuses in its own words.
        if (self.def.infer)(&mut cx).is_err() {
            return Ok(());
        }
        let known = |f: &Fact| {
            let dims = f.dims.as_ref()?.iter().map(Sym::as_const);
            let dims: Vec<i64> = dims.collect::<Option<_>>()?;
            let sizes = dims.iter().map(|d| u64::try_from(*d).unwrap_or(0));
            let bits = f.dtype.map_or(32, |t| t.bits().max(8));
            // Integers are kept in eight bytes each.
            let each = if f.dtype.is_some_and(DType::is_float) {
                bits / 8
            } else {
                8
            };
            let bytes = budget::bytes_of(sizes, each);
            Some((bytes, dims))
        };
        let sizes: Vec<(u128, Vec<i64>)> = cx.outputs.iter().filter_map(known).collect();
        let held = budget::bytes_of([run.pool.used() as u64], size_of::<f32>() as u64);
        let total = sizes.iter().fold(held, |n, (b, _)| n.saturating_add(*b));
        let shapes = || {
            let shapes: Vec<String> = sizes.iter().map(|(_, d)| format!("{d:?}")).collect();
            let held = match held {
                0 => String::new(),
                n => format!(", beside {} in use,", budget::size(n)),
            };
            format!("the result of shape {}{held}", shapes.join(" and "))
        };
        budget::check(shapes, total).map_err(|e| Fault(e.to_string()))
    }
}

/// The most elements that two operands can make, in bytes.
fn product(ins: &[Option<Value>]) -> u128 {
    let sizes = ins
        .iter()
        .flatten()
        .map(|v| budget::bytes_of(v.dims().iter().map(|d| *d as u64), 1));
    sizes.fold(8, |n, size| n.saturating_mul(size.max(1)))
}

fn fact(v: &Value) -> Fact {
    let dims = v.dims();
    let few = dims.len() <= 1 && dims.iter().product::<usize>() <= READ;
    let ints = match v {
        Value::Float(_) => None,
        _ if few && !v.dtype().is_float() => v.to_ints().ok(),
        _ => None,
    };
    Fact {
        dtype: Some(v.dtype()),
        dims: Some(dims.iter().map(|d| Sym::from(*d as i64)).collect()),
        ints: ints.map(|v| v.into_iter().map(Sym::from).collect()),
    }
}
