//! Kernels: one file per operator family. A kernel is made once, with its attributes parsed, and run many times.
//!
//! A kernel owns what it is given: an operand that nobody else holds can be overwritten, and its buffer becomes the result.
//! Constants arrive as [`Weight`](super::value::Weight) views of the mapped file; a kernel that can work on the bytes does, the others ask for the
//! converted form, which is made once per plan.

#![allow(
    clippy::unnecessary_wraps,
    reason = "the makers of all kernels have one signature"
)]
#![allow(
    clippy::needless_pass_by_value,
    reason = "a kernel owns its operands: they die where it says so"
)]
#![allow(
    clippy::float_cmp,
    reason = "operators are defined by exact comparisons"
)]
#![allow(
    clippy::needless_for_each,
    clippy::single_match_else,
    reason = "loops over zipped slices read as what they do"
)]

use super::value::{Data, Fault, Floats, Host, KResult, Value};
use super::walk;
use crate::ir::{AttrValue, DType, Node};
use candle_core::Device;
use onnx_graft_kernels::gemm::Precision;
use onnx_graft_kernels::pool::Pool;
use std::sync::Arc;

pub(crate) mod attention;
pub(crate) mod binary;
pub(crate) mod cast;
pub(crate) mod control;
pub(crate) mod conv;
pub(crate) mod dropout;
pub(crate) mod einsum;
pub(crate) mod embed;
pub(crate) mod flex;
pub(crate) mod fused;
pub(crate) mod gather;
pub(crate) mod gemm;
pub(crate) mod gradient;
pub(crate) mod integer;
pub(crate) mod loss;
pub(crate) mod matmul;
pub(crate) mod movement;
pub(crate) mod nbits;
pub(crate) mod norm;
pub(crate) mod places;
pub(crate) mod quant;
pub(crate) mod recurrent;
pub(crate) mod reduce;
pub(crate) mod resize;
pub(crate) mod rotary;
pub(crate) mod sample;
pub(crate) mod scatter;
pub(crate) mod sequence;
pub(crate) mod shape;
pub(crate) mod signal;
pub(crate) mod softmax;
pub(crate) mod tfidf;
pub(crate) mod topk;
pub(crate) mod unary;
pub(crate) mod unpad;
pub(crate) mod unusual;
pub(crate) mod where_;
pub(crate) mod window;

/// The kernels of all files.
fn families() -> impl Iterator<Item = &'static Entry> {
    let files: &[&'static [Entry]] = &[
        attention::KERNELS,
        binary::KERNELS,
        cast::KERNELS,
        control::KERNELS,
        conv::KERNELS,
        dropout::KERNELS,
        einsum::KERNELS,
        embed::KERNELS,
        flex::KERNELS,
        fused::KERNELS,
        gather::KERNELS,
        gemm::KERNELS,
        gradient::KERNELS,
        integer::KERNELS,
        loss::KERNELS,
        matmul::KERNELS,
        movement::KERNELS,
        nbits::KERNELS,
        norm::KERNELS,
        places::KERNELS,
        quant::KERNELS,
        recurrent::KERNELS,
        reduce::KERNELS,
        resize::KERNELS,
        rotary::KERNELS,
        sample::KERNELS,
        scatter::KERNELS,
        sequence::KERNELS,
        shape::KERNELS,
        signal::KERNELS,
        softmax::KERNELS,
        tfidf::KERNELS,
        topk::KERNELS,
        unary::KERNELS,
        unpad::KERNELS,
        unusual::KERNELS,
        where_::KERNELS,
        window::KERNELS,
    ];
    files.iter().flat_map(|kernels| kernels.iter())
}

/// The domain of this library's own operators.
pub(crate) const OWN: &str = crate::ops::DOMAIN;
/// The domain of ONNX Runtime's operators.
pub(crate) const MS: &str = crate::ops::MS;

/// Executes one node.
pub(crate) trait Kernel: Send + Sync {
    /// Computes the outputs, by slot.
    fn run(&self, cx: &Cx<'_>, ins: Ins) -> KResult<Outs>;

    /// Whether equal inputs give equal outputs, so that the node may be folded.
    fn pure(&self) -> bool {
        true
    }

    /// Whether the first output is a view of the first input, so that folding costs no memory.
    fn is_view(&self) -> bool {
        false
    }
}

/// Outputs by slot.
pub(crate) type Outs = Vec<Option<Value>>;

/// A single output.
pub(crate) fn one(v: impl Into<Value>) -> KResult<Outs> {
    Ok(vec![Some(v.into())])
}

impl From<Floats> for Value {
    fn from(x: Floats) -> Self {
        Value::Float(x)
    }
}

impl From<Host> for Value {
    fn from(x: Host) -> Self {
        Value::Host(x)
    }
}

/// Makes the kernel of a node.
pub(crate) type Make = fn(&mut BuildCx<'_>) -> KResult<Box<dyn Kernel>>;

/// One row of the table: domain, operator, maker.
pub(crate) type Entry = (&'static str, &'static str, Make);

/// The maker of an operator's kernel.
pub(crate) fn lookup(domain: &str, op: &str) -> Option<Make> {
    use rustc_hash::FxHashMap;
    use std::sync::OnceLock;
    static INDEX: OnceLock<FxHashMap<(&'static str, &'static str), Make>> = OnceLock::new();
    INDEX
        .get_or_init(|| families().map(|&(d, n, m)| ((d, n), m)).collect())
        .get(&(domain, op))
        .copied()
}

/// What a kernel's maker sees.
pub(crate) struct BuildCx<'a> {
    /// The node.
    pub(crate) node: &'a Node,
    /// Imported version of the node's domain.
    pub(crate) opset: i64,
    /// Number of input slots.
    pub(crate) n_in: usize,
    /// Which outputs are read.
    pub(crate) wants: &'a [bool],
    /// Subgraphs of control flow, compiled, in attribute order.
    pub(crate) graphs: Vec<(Box<str>, super::exec::Program)>,
}

impl BuildCx<'_> {
    /// An integer attribute with a default.
    pub(crate) fn int(&self, name: &str, default: i64) -> i64 {
        self.node.int(name, default)
    }

    /// A float attribute with a default.
    pub(crate) fn float(&self, name: &str, default: f32) -> f32 {
        self.node.float(name, default)
    }

    /// A boolean attribute.
    pub(crate) fn flag(&self, name: &str) -> bool {
        self.node.int(name, 0) != 0
    }

    /// A list of integers.
    pub(crate) fn ints(&self, name: &str) -> Option<Vec<i64>> {
        self.node.ints(name).map(<[i64]>::to_vec)
    }

    /// A required integer attribute.
    pub(crate) fn need_int(&self, name: &str) -> KResult<i64> {
        self.node
            .attr(name)
            .and_then(AttrValue::as_int)
            .ok_or_else(|| Fault(format!("the attribute `{name}` is missing")))
    }

    /// An element type attribute.
    pub(crate) fn dtype(&self, name: &str, default: DType) -> KResult<DType> {
        let Some(code) = self.node.attr(name).and_then(AttrValue::as_int) else {
            return Ok(default);
        };
        i32::try_from(code)
            .ok()
            .and_then(DType::from_code)
            .ok_or_else(|| Fault(format!("`{name}` = {code} is no element type")))
    }

    /// Whether an output is read.
    pub(crate) fn wants(&self, slot: usize) -> bool {
        self.wants.get(slot).copied().unwrap_or(false)
    }
}

/// What a kernel sees of the run.
pub(crate) struct Cx<'a> {
    /// Where buffers come from.
    pub(crate) pool: &'a Arc<Pool>,
    /// Where float tensors live.
    pub(crate) device: &'a Device,
    /// The random state of this run; `None` means inference.
    pub(crate) random: Option<u64>,
    /// In which precision products may be computed.
    pub(crate) precision: Precision,
}

impl Cx<'_> {
    /// A buffer with arbitrary contents.
    pub(crate) fn alloc(&self, len: usize) -> Vec<f32> {
        self.pool.take(len)
    }

    /// A buffer of zeros.
    pub(crate) fn zeros(&self, len: usize) -> Vec<f32> {
        self.pool.zeros(len)
    }

    /// A float tensor over a buffer.
    pub(crate) fn floats(&self, data: Vec<f32>, dims: &[usize], dtype: DType) -> KResult<Floats> {
        Floats::new(data, dims, dtype, Some(self.pool))
    }

    /// The same, as the only output.
    pub(crate) fn one(&self, data: Vec<f32>, dims: &[usize], dtype: DType) -> KResult<Outs> {
        one(self.floats(data, dims, dtype)?)
    }

    /// The tensor in row-major order; itself if it is already.
    pub(crate) fn dense(&self, x: Floats) -> KResult<Floats> {
        if x.is_contiguous() {
            return Ok(x);
        }
        if !x.tensor().device().is_cpu() {
            return Ok(Floats::wrap(x.tensor().contiguous()?, x.dtype(), None));
        }
        let mut out = self.alloc(x.tensor().elem_count());
        walk::copy(&x.read().view()?, &mut out);
        self.floats(out, x.dims(), x.dtype())
    }

    /// The tensor's own buffer if nobody else holds it, otherwise a copy of its elements.
    pub(crate) fn buffer(&self, x: Floats) -> KResult<Vec<f32>> {
        match x.into_buffer() {
            Ok(v) => Ok(v),
            Err(x) => {
                let mut out = self.alloc(x.tensor().elem_count());
                walk::copy(&x.read().view()?, &mut out);
                Ok(out)
            }
        }
    }
}

/// Inputs of a kernel, by slot.
pub(crate) struct Ins(pub(crate) Vec<Option<Value>>);

impl Ins {
    /// An input, if it is there.
    pub(crate) fn get(&self, slot: usize) -> Option<&Value> {
        self.0.get(slot)?.as_ref()
    }

    /// An input that must be there.
    pub(crate) fn need(&self, slot: usize) -> KResult<&Value> {
        self.get(slot)
            .ok_or_else(|| Fault(format!("input {slot} is absent")))
    }

    /// Whether an input is there.
    pub(crate) fn has(&self, slot: usize) -> bool {
        self.get(slot).is_some()
    }

    /// Number of input slots.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Moves an input out.
    pub(crate) fn take(&mut self, slot: usize) -> KResult<Value> {
        self.0
            .get_mut(slot)
            .and_then(Option::take)
            .ok_or_else(|| Fault(format!("input {slot} is absent")))
    }

    /// Moves a float input out; constants in the converted form.
    pub(crate) fn floats(&mut self, slot: usize) -> KResult<Floats> {
        to_floats(self.take(slot)?, slot)
    }

    /// Moves a float input out, in row-major order.
    pub(crate) fn dense(&mut self, slot: usize, cx: &Cx<'_>) -> KResult<Floats> {
        cx.dense(self.floats(slot)?)
    }

    /// A float input that may be absent, in row-major order.
    pub(crate) fn dense_opt(&mut self, slot: usize, cx: &Cx<'_>) -> KResult<Option<Floats>> {
        if self.has(slot) {
            self.dense(slot, cx).map(Some)
        } else {
            Ok(None)
        }
    }

    /// Moves a host input out.
    pub(crate) fn host(&mut self, slot: usize) -> KResult<Host> {
        let v = match self.take(slot)? {
            Value::Weight(w) => w.value()?,
            v => v,
        };
        match v {
            Value::Host(h) => Ok(h),
            other => Err(Fault(format!(
                "input {slot} is {}, expected integers or bool",
                other.dtype()
            ))),
        }
    }

    /// The integers of an input.
    pub(crate) fn ints(&self, slot: usize) -> KResult<Vec<i64>> {
        self.need(slot)?.to_ints()
    }

    /// The integers of an input, if it is there.
    pub(crate) fn ints_opt(&self, slot: usize) -> KResult<Option<Vec<i64>>> {
        self.get(slot).map(Value::to_ints).transpose()
    }

    /// The only element of an input, as a float.
    pub(crate) fn scalar(&self, slot: usize) -> KResult<f32> {
        let v = self.need(slot)?;
        match v.to_f32()?.as_slice() {
            [x] => Ok(*x),
            many => Err(Fault(format!(
                "input {slot} has {} elements, expected one",
                many.len()
            ))),
        }
    }
}

/// A value as a float tensor.
pub(crate) fn to_floats(v: Value, slot: usize) -> KResult<Floats> {
    let v = match v {
        Value::Weight(w) => w.value()?,
        v => v,
    };
    match v {
        Value::Float(x) => Ok(x),
        Value::Host(h) => match h.data() {
            Data::F64(v) => Floats::new(
                v.iter().map(|&x| x as f32).collect(),
                h.dims(),
                DType::Double,
                None,
            ),
            _ => Err(Fault(format!(
                "input {slot} is {}, expected a float type",
                h.dtype()
            ))),
        },
        Value::Weight(_) => Err("a weight converts to a tensor".into()),
    }
}

/// A value without its file form: constants converted.
pub(crate) fn plain(v: Value) -> KResult<Value> {
    match v {
        Value::Weight(w) => w.value(),
        v => Ok(v),
    }
}

/// An axis counted from the front.
pub(crate) fn axis_of(axis: i64, rank: usize) -> KResult<usize> {
    let at = if axis < 0 { axis + rank as i64 } else { axis };
    usize::try_from(at)
        .ok()
        .filter(|&a| a < rank)
        .ok_or_else(|| Fault(format!("axis {axis} is outside a tensor of rank {rank}")))
}

/// A size that must not be negative.
pub(crate) fn size_of(n: i64) -> KResult<usize> {
    usize::try_from(n).map_err(|_| Fault(format!("a size of {n}")))
}

/// Computes `$body` for whatever kind of elements a value has: `$src` is the dense input slice, `$out` the output slice.
macro_rules! each_kind {
    ($cx:expr, $value:expr, $dims:expr, |$src:ident, $out:ident| $body:expr) => {{
        let dims: &[usize] = $dims;
        let len = $crate::runtime::walk::count(dims)?;
        match $crate::runtime::kernels::plain($value)? {
            $crate::runtime::value::Value::Float(x) => {
                let x = $cx.dense(x)?;
                let mut buffer = $cx.alloc(len);
                {
                    let read = x.read();
                    let $src = read.slice()?;
                    let $out = &mut buffer[..];
                    $body;
                }
                $crate::runtime::value::Value::Float($cx.floats(buffer, dims, x.dtype())?)
            }
            $crate::runtime::value::Value::Host(h) => {
                let data = match h.data() {
                    $crate::runtime::value::Data::I64(v) => {
                        let $src = v.as_slice();
                        let mut buffer = vec![0i64; len];
                        let $out = &mut buffer[..];
                        $body;
                        $crate::runtime::value::Data::I64(buffer)
                    }
                    $crate::runtime::value::Data::U8(v) => {
                        let $src = v.as_slice();
                        let mut buffer = vec![0u8; len];
                        let $out = &mut buffer[..];
                        $body;
                        $crate::runtime::value::Data::U8(buffer)
                    }
                    $crate::runtime::value::Data::F64(v) => {
                        let $src = v.as_slice();
                        let mut buffer = vec![0f64; len];
                        let $out = &mut buffer[..];
                        $body;
                        $crate::runtime::value::Data::F64(buffer)
                    }
                };
                $crate::runtime::value::Value::Host($crate::runtime::value::Host::new(
                    h.dtype(),
                    dims.to_vec(),
                    data,
                )?)
            }
            $crate::runtime::value::Value::Weight(_) => {
                return Err("a weight converts to a tensor".into());
            }
        }
    }};
}
pub(crate) use each_kind;
