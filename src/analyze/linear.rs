//! Linears in all their forms, recognised once for a whole graph.

use super::flow::Flow;
use crate::ir::{DType, NodeId, ValueId};

/// The weight of a linear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightUse {
    /// The stored weight: an initializer, in the element type of the file.
    pub value: ValueId,
    /// The float weight as the multiplication reads it, where that is another value (dequantized, transposed, cast).
    pub read: ValueId,
    /// Axes of `value`.
    pub layout: Layout,
    /// The bias, a vector of the output's width.
    pub bias: Option<ValueId>,
    /// How the numbers are stored.
    pub form: WeightForm,
}

/// Axes of a stored weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// `[in, out]`.
    InOut,
    /// `[out, in]`, perhaps with further axes of size 1 (a 1x1 convolution), or in blocks (`MatMulNBits`).
    OutIn,
}

/// How a weight is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WeightForm {
    /// Floats.
    Float,
    /// `DequantizeLinear` in front of the multiplication.
    Dequantized {
        /// The scale.
        scale: ValueId,
        /// The zero point.
        zero_point: Option<ValueId>,
    },
    /// `com.microsoft::MatMulNBits`.
    NBits {
        /// Scales by block.
        scales: ValueId,
        /// Zero points by block.
        zero_points: Option<ValueId>,
        /// Bits of one number.
        bits: i64,
        /// Numbers in a block.
        block_size: i64,
    },
    /// `com.microsoft::MatMulBnb4`.
    Bnb4 {
        /// The largest size in each block.
        absmax: ValueId,
        /// Numbers in a block.
        block_size: i64,
    },
    /// `MatMulInteger` with a dynamically quantized input, or an operator that fuses them.
    Integer {
        /// The zero point.
        zero_point: Option<ValueId>,
    },
}

/// One multiplication with a constant weight, with its bias and the reshapes around it.
#[derive(Clone, Debug)]
pub(crate) struct Linear {
    /// What enters, before a `Reshape` to rows.
    pub(crate) input: ValueId,
    /// What leaves, behind bias and `Reshape` back.
    pub(crate) output: ValueId,
    /// What the multiplication itself reads and makes (bias included), where reshapes stand around it.
    pub(crate) rows: (ValueId, ValueId),
    pub(crate) nodes: Vec<NodeId>,
    pub(crate) core: NodeId,
    pub(crate) weight: WeightUse,
    /// A bias that a fused reader adds to the output.
    pub(crate) late_bias: Option<ValueId>,
    pub(crate) d_in: usize,
    pub(crate) d_out: usize,
    /// Whether what it reads is a constant.
    pub(crate) constant: bool,
}

/// All linears, and which one each node belongs to.
#[derive(Debug)]
pub(crate) struct Linears {
    pub(crate) all: Vec<Linear>,
    of_node: Vec<Option<u32>>,
}

impl Linears {
    /// Those that read hidden states, with their places in `all`.
    pub(crate) fn flowing(&self) -> impl DoubleEndedIterator<Item = (usize, &Linear)> {
        self.all.iter().enumerate().filter(|(_, l)| !l.constant)
    }

    /// Finds all linears. `together` says whether two nodes may belong to one module.
    pub(crate) fn new(view: &Flow<'_>, together: &dyn Fn(NodeId, NodeId) -> bool) -> Self {
        let mut out = Linears {
            all: Vec::new(),
            of_node: vec![None; view.graph.index_bound()],
        };
        for &n in &view.order {
            let Some(mut linear) = core(view, n) else {
                continue;
            };
            add_bias(view, &mut linear, together);
            add_codes(view, &mut linear);
            // A quantizer puts codes between product and bias as well.
            add_bias(view, &mut linear, together);
            add_codes(view, &mut linear);
            add_reshapes(view, &mut linear, together);
            add_codes(view, &mut linear);
            linear.nodes.sort_by_key(|n| view.place(*n));
            for m in &linear.nodes {
                out.of_node[m.index()] = Some(out.all.len() as u32);
            }
            out.all.push(linear);
        }
        out
    }

    /// The linear that a node belongs to, of those that read hidden states.
    pub(crate) fn of(&self, n: NodeId) -> Option<usize> {
        self.call(n).filter(|i| !self.all[*i].constant)
    }

    /// The linear that a node belongs to. It may read a constant: a projection that is also applied to a table (positions in DeBERTa).
    pub(crate) fn call(&self, n: NodeId) -> Option<usize> {
        self.of_node
            .get(n.index())
            .copied()
            .flatten()
            .map(|i| i as usize)
    }
}

struct Weight {
    value: ValueId,
    read: ValueId,
    /// Axes of `read`.
    transposed: bool,
    form: WeightForm,
    dims: Vec<u64>,
}

/// Follows the weight operand of a multiplication to where it is stored.
fn stored(view: &Flow<'_>, read: ValueId) -> Option<Weight> {
    let mut at = read;
    let mut transposed = false;
    let mut form = WeightForm::Float;
    loop {
        at = view.root(at);
        if let Some(t) = view.tensor(at) {
            let dims: Vec<u64> = t.dims.to_vec();
            return Some(Weight {
                value: at,
                read,
                transposed,
                form,
                dims,
            });
        }
        let n = view.producer(at)?;
        let inputs = view.inputs(n);
        let slot = |i: usize| inputs.get(i).copied().flatten();
        match view.op(n) {
            "Transpose" => {
                let perm = view.node(n).ints("perm");
                if perm.is_some_and(|p| p != [1, 0]) {
                    return None;
                }
                transposed = !transposed;
            }
            "Cast" => {}
            "DequantizeLinear" if form == WeightForm::Float => {
                form = WeightForm::Dequantized {
                    scale: slot(1)?,
                    zero_point: slot(2),
                };
            }
            _ => return None,
        }
        at = slot(0)?;
    }
}

fn size(n: u64) -> Option<usize> {
    usize::try_from(n).ok()
}

/// The multiplication itself, with what makes it a linear: a constant weight of rank 2.
fn core(view: &Flow<'_>, n: NodeId) -> Option<Linear> {
    let inputs = view.inputs(n);
    let slot = |i: usize| inputs.get(i).copied().flatten();
    let node = view.node(n);
    let output = view.graph.output(n, 0)?;
    let made = |x: ValueId, w: Weight, flipped: bool, bias: Option<ValueId>| {
        let [a, b] = <[u64; 2]>::try_from(w.dims).ok()?;
        // `flipped`: the multiplication reads the operand as [out, in].
        let out_in = w.transposed != flipped;
        let (d_in, d_out) = if out_in { (b, a) } else { (a, b) };
        Some(Linear {
            input: x,
            output,
            rows: (x, output),
            nodes: vec![n],
            core: n,
            weight: WeightUse {
                value: w.value,
                read: w.read,
                layout: if out_in { Layout::OutIn } else { Layout::InOut },
                bias,
                form: w.form,
            },
            late_bias: None,
            d_in: size(d_in)?,
            d_out: size(d_out)?,
            constant: false,
        })
    };
    match view.op(n) {
        "MatMul" => made(slot(0)?, stored(view, slot(1)?)?, false, None),
        "FusedMatMul" => {
            let plain = ["transA", "transBatchA", "transBatchB"]
                .iter()
                .all(|a| node.int(a, 0) == 0);
            if !plain || node.float("alpha", 1.0).to_bits() != 1f32.to_bits() {
                return None;
            }
            made(
                slot(0)?,
                stored(view, slot(1)?)?,
                node.int("transB", 0) == 1,
                None,
            )
        }
        "Gemm" | "FusedGemm" => {
            let unit = |a: &str| node.float(a, 1.0).to_bits() == 1f32.to_bits();
            if node.int("transA", 0) != 0 || !unit("alpha") || (slot(2).is_some() && !unit("beta"))
            {
                return None;
            }
            if node.attr("activation").is_some() {
                return None;
            }
            made(
                slot(0)?,
                stored(view, slot(1)?)?,
                node.int("transB", 0) == 1,
                slot(2),
            )
        }
        "Conv" => conv(view, n),
        "MatMulNBits" => {
            let (k, wide) = (node.int("K", 0), node.int("N", 0));
            let (bits, block_size) = (node.int("bits", 4), node.int("block_size", 0));
            let form = WeightForm::NBits {
                scales: slot(2)?,
                zero_points: slot(3),
                bits,
                block_size,
            };
            let value = slot(1)?;
            let dims = vec![u64::try_from(wide).ok()?, u64::try_from(k).ok()?];
            made(
                slot(0)?,
                Weight {
                    value,
                    read: value,
                    transposed: false,
                    form,
                    dims,
                },
                true,
                slot(5),
            )
        }
        "MatMulBnb4" => {
            let (k, wide) = (node.int("K", 0), node.int("N", 0));
            let form = WeightForm::Bnb4 {
                absmax: slot(2)?,
                block_size: node.int("block_size", 0),
            };
            let value = slot(1)?;
            let dims = vec![u64::try_from(wide).ok()?, u64::try_from(k).ok()?];
            let w = Weight {
                value,
                read: value,
                transposed: false,
                form,
                dims,
            };
            made(slot(0)?, w, true, None)
        }
        "DynamicQuantizeMatMul" => {
            let value = slot(1)?;
            let dims = view.tensor(value)?.dims.to_vec();
            let form = WeightForm::Integer {
                zero_point: slot(3),
            };
            let w = Weight {
                value,
                read: value,
                transposed: false,
                form,
                dims,
            };
            made(slot(0)?, w, false, slot(4))
        }
        "MatMulInteger" | "MatMulIntegerToFloat" => integer(view, n),
        _ => None,
    }
    .map(|l| Linear {
        constant: view.is_constant(l.input),
        ..l
    })
}

/// A convolution whose kernel covers one point is a linear over channels.
fn conv(view: &Flow<'_>, n: NodeId) -> Option<Linear> {
    let inputs = view.inputs(n);
    let slot = |i: usize| inputs.get(i).copied().flatten();
    let node = view.node(n);
    let w = stored(view, slot(1)?)?;
    let one = |name: &str| node.ints(name).is_none_or(|v| v.iter().all(|&x| x == 1));
    let unpadded = node.ints("pads").is_none_or(|v| v.iter().all(|&x| x == 0));
    let [d_out, d_in, rest @ ..] = &w.dims[..] else {
        return None;
    };
    if w.transposed
        || node.int("group", 1) != 1
        || !one("strides")
        || !unpadded
        || rest.iter().any(|&d| d != 1)
    {
        return None;
    }
    let (x, output) = (slot(0)?, view.graph.output(n, 0)?);
    Some(Linear {
        input: x,
        output,
        rows: (x, output),
        nodes: vec![n],
        core: n,
        d_in: size(*d_in)?,
        d_out: size(*d_out)?,
        constant: false,
        weight: WeightUse {
            value: w.value,
            read: w.read,
            layout: Layout::OutIn,
            bias: slot(2),
            form: w.form,
        },
        late_bias: None,
    })
}

/// `x → DynamicQuantizeLinear → MatMulInteger → Cast → Mul(scales)`, or the last three as `MatMulIntegerToFloat`.
fn integer(view: &Flow<'_>, n: NodeId) -> Option<Linear> {
    let inputs = view.inputs(n);
    let slot = |i: usize| inputs.get(i).copied().flatten();
    let quantize = view
        .producer(slot(0)?)
        .filter(|q| view.op(*q) == "DynamicQuantizeLinear")?;
    let x = view.inputs(quantize).first().copied().flatten()?;
    let value = slot(1)?;
    let dims = view.tensor(value)?.dims.to_vec();
    let [d_in, d_out] = <[u64; 2]>::try_from(dims).ok()?;
    let only = |v: ValueId, op: &str| {
        let readers = view.readers(v);
        match readers[..] {
            [r] if view.op(r) == op => Some((r, view.graph.output(r, 0)?)),
            _ => None,
        }
    };
    let result = view.graph.output(n, 0)?;
    let fused = view.op(n) == "MatMulIntegerToFloat";
    let (nodes, output, zero_point, bias) = if fused {
        (vec![n], result, slot(5), slot(6))
    } else {
        let (cast, float) = only(result, "Cast")?;
        let (mul, output) = only(float, "Mul")?;
        (vec![n, cast, mul], output, slot(3), None)
    };
    Some(Linear {
        input: x,
        output,
        rows: (x, output),
        nodes,
        core: n,
        d_in: size(d_in)?,
        d_out: size(d_out)?,
        constant: false,
        weight: WeightUse {
            value,
            read: value,
            layout: Layout::InOut,
            bias,
            form: WeightForm::Integer { zero_point },
        },
        late_bias: None,
    })
}

/// `Add` of a constant vector, on either side; or a fused reader that adds one.
fn add_bias(view: &Flow<'_>, linear: &mut Linear, together: &dyn Fn(NodeId, NodeId) -> bool) {
    if linear.weight.bias.is_some() || view.is_output(linear.output) {
        return;
    }
    let readers = view.readers(linear.output);
    let [reader] = readers[..] else { return };
    let inputs = view.inputs(reader);
    match view.op(reader) {
        "Add" if together(linear.core, reader) => {
            let other = inputs
                .iter()
                .flatten()
                .copied()
                .find(|v| *v != linear.output);
            let Some(bias) = other.filter(|v| is_vector(view, *v, linear.d_out)) else {
                return;
            };
            let Some(output) = view.graph.output(reader, 0) else {
                return;
            };
            linear.weight.bias = Some(bias);
            linear.nodes.push(reader);
            linear.output = output;
            linear.rows.1 = output;
        }
        "BiasGelu" | "FastGelu" => linear.late_bias = inputs.get(1).copied().flatten(),
        "SkipLayerNormalization" | "SkipSimplifiedLayerNormalization" => {
            let slot = if view.op(reader) == "SkipLayerNormalization" {
                4
            } else {
                3
            };
            // One of the two summands has the bias; it is this one when the other is no fresh product.
            linear.late_bias = inputs.get(slot).copied().flatten();
        }
        _ => {}
    }
}

fn is_vector(view: &Flow<'_>, v: ValueId, width: usize) -> bool {
    let Some(t) = view.tensor(v) else {
        let dequantized = view
            .producer(v)
            .is_some_and(|n| view.op(n) == "DequantizeLinear");
        return dequantized
            && view.is_constant(v)
            && view.rank(v) == Some(1)
            && view.last(v) == Some(width);
    };
    let Some((last, rest)) = t.dims.split_last() else {
        return false;
    };
    t.dtype != DType::Int64 && usize::try_from(*last) == Ok(width) && rest.iter().all(|&d| d == 1)
}

/// What quantizes the result and dequantizes it again: the result is what comes out of that.
fn add_codes(view: &Flow<'_>, linear: &mut Linear) {
    let only = |v: ValueId, op: &str| match view.readers(v)[..] {
        [r] if !view.is_output(v) && view.op(r) == op => Some((r, view.graph.output(r, 0)?)),
        _ => None,
    };
    if let Some((quantize, codes)) = only(linear.output, "QuantizeLinear")
        && let Some((dequantize, output)) = only(codes, "DequantizeLinear")
    {
        linear.nodes.extend([quantize, dequantize]);
        if linear.rows.1 == linear.output {
            linear.rows.1 = output;
        }
        linear.output = output;
    }
}

/// What a value was before it was quantized and dequantized, and the nodes that do that.
fn before_codes(view: &Flow<'_>, v: ValueId) -> (ValueId, Vec<NodeId>) {
    let from = |v: ValueId, op: &str| {
        let n = view.producer(v).filter(|n| view.op(*n) == op)?;
        Some((n, view.inputs(n).first().copied().flatten()?))
    };
    let pair = from(v, "DequantizeLinear")
        .and_then(|(dequantize, codes)| Some((dequantize, from(codes, "QuantizeLinear")?)));
    match pair {
        Some((dequantize, (quantize, x))) => (x, vec![quantize, dequantize]),
        None => (v, Vec::new()),
    }
}

/// `Reshape` to rows in front and back behind, as GPT-2 has them.
fn add_reshapes(view: &Flow<'_>, linear: &mut Linear, together: &dyn Fn(NodeId, NodeId) -> bool) {
    if view.rank(linear.output).is_some_and(|r| r != 2) || view.op(linear.core) != "Gemm" {
        return;
    }
    let (entering, codes) = before_codes(view, linear.input);
    let Some(front) = view.producer(entering) else {
        return;
    };
    if view.op(front) != "Reshape" || !together(linear.core, front) {
        return;
    }
    let readers = if view.is_output(linear.output) {
        Vec::new()
    } else {
        view.readers(linear.output)
    };
    let back = readers
        .iter()
        .copied()
        .find(|r| view.op(*r) == "Reshape" && together(linear.core, *r))
        .and_then(|r| Some((r, view.graph.output(r, 0)?)))
        .filter(|(_, v)| readers.len() == 1 && view.last(*v).is_none_or(|d| d == linear.d_out));
    let before = view.inputs(front).first().copied().flatten();
    if let Some((node, output)) = back {
        linear.nodes.push(node);
        linear.output = output;
        if let Some(x) = before.filter(|x| view.last(*x).is_none_or(|d| d == linear.d_in)) {
            linear.nodes.push(front);
            linear.nodes.extend(codes);
            linear.input = x;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Linears, WeightForm};
    use crate::analyze::flow::Flow;
    use crate::infer::Verified;
    use crate::ir::{Builder, DType, Dim, Model, TensorData, Type, Val};

    /// `x` as codes and back, by a scale and zero point of its own.
    fn coded(b: &Builder, x: Val) -> Val {
        let zero = b.constant(TensorData::raw(DType::Uint8, [], vec![128].into()));
        let scale = b.scalar(0.1);
        let q = b.op("QuantizeLinear", &[x, scale, zero], &[]);
        b.op("DequantizeLinear", &[q, scale, zero], &[])
    }

    #[test]
    fn a_bias_behind_codes_belongs_to_the_product() {
        let b = Builder::new(17);
        let x = b.graph_input(
            "x",
            Type::tensor(DType::Float, [Dim::Known(2), Dim::Known(4)]),
        );
        let w = b.initializer("w", TensorData::from_f32([4, 5], &[0.5; 20]));
        let bias = TensorData::raw(DType::Int32, [5], vec![0; 20].into());
        let bias = [b.initializer("bias", bias), b.scalar(0.5)];
        let bias = b.op("DequantizeLinear", &bias, &[]);
        let y = b.op("Add", &[coded(&b, b.op("MatMul", &[x, w], &[])), bias], &[]);
        let y = b.unary("Tanh", coded(&b, y));
        let ty = Type::tensor(DType::Float, [Dim::Known(2), Dim::Known(5)]);
        let model = Model {
            graph: b.finish_graph("g", &[(y, "y", ty)]).unwrap(),
            opset_imports: vec![("".into(), 17)],
            ir_version: 8,
            ..Model::default()
        };
        let model = Verified::check(model).unwrap();
        let view = Flow::new(&model);
        let found = Linears::new(&view, &|_, _| true);
        let [linear] = &found.all[..] else {
            panic!("{} linears", found.all.len())
        };
        assert!(linear.weight.bias.is_some());
        assert_eq!(view.op(view.readers(linear.output)[0]), "Tanh");
    }

    #[test]
    fn codes_around_a_product_and_its_reshapes_belong_to_it() {
        let b = Builder::new(17);
        let dims = [Dim::Known(2), Dim::Known(3), Dim::Known(4)];
        let x = b.graph_input("x", Type::tensor(DType::Float, dims));
        let w = TensorData::raw(DType::Int8, [4, 5], (0..20).collect::<Vec<u8>>().into());
        let w = b.op(
            "DequantizeLinear",
            &[b.initializer("w", w), b.scalar(0.5)],
            &[],
        );
        let rows = b.reshape(coded(&b, x), b.ints(&[-1, 4]));
        let bias = b.initializer("bias", TensorData::from_f32([5], &[0.0; 5]));
        let y = b.op("Gemm", &[coded(&b, rows), w, bias], &[]);
        let y = b.reshape(coded(&b, y), b.ints(&[2, 3, 5]));
        let y = b.unary("Tanh", coded(&b, y));
        let ty = Type::tensor(DType::Float, [Dim::Known(2), Dim::Known(3), Dim::Known(5)]);
        let model = Model {
            graph: b.finish_graph("g", &[(y, "y", ty)]).unwrap(),
            opset_imports: vec![("".into(), 17)],
            ir_version: 8,
            ..Model::default()
        };
        let model = Verified::check(model).unwrap();
        let view = Flow::new(&model);
        let found = Linears::new(&view, &|_, _| true);
        let [linear] = &found.all[..] else {
            panic!("{} linears", found.all.len())
        };
        assert_eq!((linear.d_in, linear.d_out), (4, 5));
        assert!(matches!(linear.weight.form, WeightForm::Dequantized { .. }));
        let reader = view.readers(linear.output);
        assert_eq!(
            view.op(reader[0]),
            "Tanh",
            "the result is behind the last codes"
        );
        assert_eq!(
            view.rank(linear.input),
            Some(3),
            "what enters is in front of the rows"
        );
    }
}
