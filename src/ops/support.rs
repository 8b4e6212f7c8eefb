//! What the operator files share: table entries, axes, broadcasting and integer vectors in inference, small pieces of gradients.

use super::{GradCx, GradError, Gradient, InferCx, InferError, OpDef};
use crate::ir::{DType, Fact, Sym, TensorData, Val, ValueId};

/// Integer tensors of up to this many elements are followed element by element.
pub(super) const MAX_INTS: usize = 128;
/// Any number of inputs or outputs.
pub(super) const MANY: usize = usize::MAX;
/// Operators that only our own runtime knows.
pub(super) const OWN: &str = "onnx_graft";

pub(super) type Infer = fn(&mut InferCx<'_>) -> Result<(), InferError>;
pub(super) type Inferred = Result<(), InferError>;
pub(super) type Differentiated = Result<(), GradError>;

/// A single-output operator of `ai.onnx`.
pub(super) const fn onnx(
    name: &'static str,
    inputs: (usize, usize),
    infer: Infer,
    gradient: Gradient,
) -> OpDef {
    OpDef {
        domain: "",
        name,
        inputs,
        outputs: (1, 1),
        infer,
        gradient,
    }
}

/// A single-output operator of our own domain.
pub(super) const fn own(
    name: &'static str,
    inputs: (usize, usize),
    infer: Infer,
    gradient: Gradient,
) -> OpDef {
    OpDef {
        domain: OWN,
        name,
        inputs,
        outputs: (1, 1),
        infer,
        gradient,
    }
}

/// `[batch, seq, 8]`.
pub(crate) fn shape_text(dims: &[Sym]) -> String {
    let dims: Vec<String> = dims.iter().map(Sym::to_string).collect();
    format!("[{}]", dims.join(", "))
}

/// What is known of a constant.
pub(crate) fn tensor_fact(t: &TensorData) -> Fact {
    let small = t.dims.len() <= 1 && t.count().is_some_and(|n| n <= MAX_INTS as u64);
    let ints = if small { t.to_i64() } else { None };
    Fact {
        dtype: Some(t.dtype),
        dims: Some(
            t.dims
                .iter()
                .map(|&d| Sym::from(i64::try_from(d).unwrap_or(i64::MAX)))
                .collect(),
        ),
        ints: ints.map(|v| v.into_iter().map(Sym::from).collect()),
    }
}

/// A contradiction.
pub(super) fn wrong<T>(message: impl Into<String>) -> Result<T, InferError> {
    Err(InferError(message.into()))
}

/// A gradient that does not exist.
pub(super) fn no_gradient<T>(message: impl Into<String>) -> Result<T, GradError> {
    Err(GradError(message.into()))
}

/// An axis counted from the front.
pub(super) fn normal_axis(axis: i64, rank: usize) -> Result<usize, InferError> {
    let at = if axis < 0 {
        axis.saturating_add(rank as i64)
    } else {
        axis
    };
    match usize::try_from(at) {
        Ok(a) if a < rank => Ok(a),
        _ => wrong(format!("axis {axis} of a tensor of rank {rank}")),
    }
}

/// Axes counted from the front, in the order given; an axis named twice is an error.
pub(super) fn normal_axes(axes: &[i64], rank: usize) -> Result<Vec<usize>, InferError> {
    let mut out = Vec::with_capacity(axes.len());
    for &a in axes {
        let a = normal_axis(a, rank)?;
        if out.contains(&a) {
            return wrong(format!("axis {a} is named twice"));
        }
        out.push(a);
    }
    Ok(out)
}

impl InferCx<'_> {
    /// Element type of an input.
    pub(super) fn dtype(&self, slot: usize) -> Option<DType> {
        self.input(slot)?.dtype
    }

    /// The type that the inputs of these slots share.
    pub(super) fn same_dtype(
        &self,
        slots: impl IntoIterator<Item = usize>,
    ) -> Result<Option<DType>, InferError> {
        let mut seen: Option<(usize, DType)> = None;
        for slot in slots {
            let Some(d) = self.dtype(slot) else { continue };
            match seen {
                Some((first, e)) if e != d => {
                    return wrong(format!(
                        "input {first} is {e} and input {slot} is {d}; they must be of one type"
                    ));
                }
                Some(_) => {}
                None => seen = Some((slot, d)),
            }
        }
        Ok(seen.map(|s| s.1))
    }

    /// An input that must be of one of these types.
    pub(super) fn expect_dtype(&self, slot: usize, allowed: &[DType]) -> Inferred {
        match self.dtype(slot) {
            Some(d) if !allowed.contains(&d) => {
                let names: Vec<&str> = allowed.iter().map(|d| d.name()).collect();
                wrong(format!(
                    "input {slot} is {d}, expected {}",
                    names.join(" or ")
                ))
            }
            _ => Ok(()),
        }
    }

    /// Notes an output.
    pub(super) fn set(&mut self, slot: usize, dtype: Option<DType>, dims: Option<Vec<Sym>>) {
        if let Some(o) = self.outputs.get_mut(slot) {
            *o = Fact {
                dtype,
                dims,
                ints: None,
            };
        }
    }

    /// Notes the elements of the first output, when they are few.
    pub(super) fn set_ints(&mut self, ints: Option<Vec<Sym>>) {
        if let Some(o) = self.outputs.first_mut() {
            o.ints = ints.filter(|v| v.len() <= MAX_INTS);
        }
    }

    /// Dimensions of an input as owned values.
    pub(super) fn dims_vec(&self, slot: usize) -> Option<Vec<Sym>> {
        self.dims(slot).map(<[Sym]>::to_vec)
    }

    /// Rank of an input.
    pub(super) fn rank(&self, slot: usize) -> Option<usize> {
        self.dims(slot).map(<[Sym]>::len)
    }

    /// Length of a one-dimensional input, when it is a known small number: how many axes or sizes it names.
    pub(super) fn len_of(&self, slot: usize) -> Option<usize> {
        match self.dims(slot)? {
            [n] => usize::try_from(n.as_const()?)
                .ok()
                .filter(|n| *n <= MAX_INTS),
            _ => None,
        }
    }

    /// The integer attribute `name` as an axis of a tensor of this rank.
    pub(super) fn axis(&self, name: &str, default: i64, rank: usize) -> Result<usize, InferError> {
        normal_axis(self.node.int(name, default), rank)
    }

    /// Axes from the input of this slot or, in older opsets, from the attribute `axes`. `Ok(None)` where there are none,
    /// `Err(())` inside where they are there but not known.
    pub(super) fn axes(&self, slot: usize) -> Axes {
        if let Some(list) = self.node.ints("axes") {
            return Axes::Known(list.to_vec());
        }
        if self.input(slot).is_none() {
            return Axes::Absent;
        }
        match self.const_ints(slot) {
            Some(list) => Axes::Known(list),
            None => Axes::Unknown(self.len_of(slot)),
        }
    }

    /// An expression that is no polynomial. It is unknown where the text would grow without bound.
    pub(super) fn opaque(&self, text: &str) -> Sym {
        if text.len() <= 160 {
            return Sym::symbol(text);
        }
        if text.contains('#') {
            self.unknown_int()
        } else {
            self.unknown()
        }
    }

    /// The smaller of two sizes.
    pub(super) fn min(&self, a: &Sym, b: &Sym) -> Sym {
        if a == b {
            return a.clone();
        }
        if let Some(d) = a.sub(b) {
            if d.is_size() {
                return b.clone();
            }
            if b.sub(a).is_some_and(|d| d.is_size()) {
                return a.clone();
            }
        }
        let (a, b) = if a <= b { (a, b) } else { (b, a) };
        self.opaque(&format!("min({a}, {b})"))
    }

    /// `a / b` rounded down.
    pub(super) fn floor_div(&self, a: &Sym, b: &Sym) -> Sym {
        if let (Some(x), Some(y)) = (a.as_const(), b.as_const())
            && let Some(q) = x.checked_div_euclid(y)
        {
            return Sym::from(q);
        }
        a.div(b)
            .unwrap_or_else(|| self.opaque(&format!("floor(({a}) / ({b}))")))
    }

    /// The size of two broadcast axes (ONNX broadcasting). `None` if they do not fit.
    ///
    /// Two different symbols give `broadcast(a, b)`, equal wherever the same two meet; `min(a, b)` against `a` can only be `a`.
    pub(super) fn broadcast_dim(&self, a: &Sym, b: &Sym) -> Option<Sym> {
        if a == b || b.is(1) {
            return Some(a.clone());
        }
        if a.is(1) {
            return Some(b.clone());
        }
        match (a.as_const(), b.as_const()) {
            (Some(_), Some(_)) => return None,
            (Some(_), None) => return Some(a.clone()),
            (None, Some(_)) => return Some(b.clone()),
            (None, None) => {}
        }
        if min_of(a, b) {
            return Some(b.clone());
        }
        if min_of(b, a) {
            return Some(a.clone());
        }
        let (a, b) = if a <= b { (a, b) } else { (b, a) };
        Some(self.opaque(&format!("broadcast({a}, {b})")))
    }

    /// The shape of two broadcast shapes.
    pub(super) fn broadcast(&self, a: &[Sym], b: &[Sym]) -> Result<Vec<Sym>, InferError> {
        let rank = a.len().max(b.len());
        let one = Sym::from(1);
        let at = |d: &[Sym], i: usize| {
            (i + d.len())
                .checked_sub(rank)
                .map_or_else(|| one.clone(), |k| d[k].clone())
        };
        (0..rank)
            .map(|i| {
                self.broadcast_dim(&at(a, i), &at(b, i)).ok_or_else(|| {
                    InferError(format!(
                        "shapes {} and {} do not broadcast",
                        shape_text(a),
                        shape_text(b)
                    ))
                })
            })
            .collect()
    }

    /// The broadcast shape of the inputs of these slots; `Ok(None)` if one of them has an unknown rank.
    pub(super) fn broadcast_inputs(
        &self,
        slots: impl IntoIterator<Item = usize>,
    ) -> Result<Option<Vec<Sym>>, InferError> {
        let mut out: Option<Vec<Sym>> = None;
        for slot in slots {
            let Some(d) = self.dims(slot) else {
                return Ok(None);
            };
            out = Some(match out {
                None => d.to_vec(),
                Some(o) => self.broadcast(&o, d)?,
            });
        }
        Ok(out)
    }

    /// Elements of a small integer input, each unknown one as an unknown integer.
    pub(super) fn ints_or_unknown(&self, slot: usize) -> Option<Vec<Sym>> {
        if let Some(v) = self.ints(slot) {
            return Some(v);
        }
        let fact = self.input(slot)?;
        if !matches!(fact.dtype?, DType::Int64 | DType::Int32) {
            return None;
        }
        let n = match fact.dims.as_deref()? {
            [] => 1,
            [n] => usize::try_from(n.as_const()?)
                .ok()
                .filter(|n| *n <= MAX_INTS)?,
            _ => return None,
        };
        Some((0..n).map(|_| self.unknown_int()).collect())
    }
}

/// What is known of the axes of a node.
pub(super) enum Axes {
    /// Not given.
    Absent,
    /// These.
    Known(Vec<i64>),
    /// Given, but not known; perhaps how many.
    Unknown(Option<usize>),
}

/// Whether `a` is `min(b, …)` or `min(…, b)`.
fn min_of(a: &Sym, b: &Sym) -> bool {
    let Some(text) = a.as_symbol() else {
        return false;
    };
    let Some(args) = text.strip_prefix("min(").and_then(|t| t.strip_suffix(')')) else {
        return false;
    };
    let b = b.to_string();
    args.strip_prefix(&*b).is_some_and(|r| r.starts_with(", "))
        || args.strip_suffix(&*b).is_some_and(|r| r.ends_with(", "))
}

/// A size that a shape vector asks for: the element if it cannot be negative, else an unknown size.
pub(super) fn as_size(cx: &InferCx<'_>, s: &Sym) -> Sym {
    if s.is_size() { s.clone() } else { cx.unknown() }
}

/// Product of sizes.
pub(super) fn product<'a>(dims: impl IntoIterator<Item = &'a Sym>) -> Option<Sym> {
    dims.into_iter().try_fold(Sym::from(1), |p, d| p.mul(d))
}

/// The output is like the first input in type and shape.
pub(super) fn same_as_input(cx: &mut InferCx<'_>) -> Inferred {
    let (dtype, dims) = (cx.dtype(0), cx.dims_vec(0));
    cx.set(0, dtype, dims);
    Ok(())
}

// ---- gradients -------------------------------------------------------------------------------------------------------------

impl GradCx<'_> {
    /// Element type of the first floating-point output or input, for constants.
    pub(super) fn float_type(&self) -> DType {
        let outs = self.graph.node_outputs(self.id);
        let ins = self.graph.node_inputs(self.id);
        outs.into_iter()
            .chain(ins)
            .flatten()
            .filter_map(|v| (self.facts)(v)?.dtype)
            .find(|d| d.is_float())
            .unwrap_or_else(|| self.b.float())
    }

    /// A scalar constant of the node's floating-point type.
    pub(super) fn scalar(&self, x: f32) -> Val {
        self.b.scalar_of(x, self.float_type())
    }

    /// `v * x`, in the node's type; `v` itself where `x` is 1.
    pub(super) fn scaled(&self, v: Val, x: f32) -> Val {
        if x.to_bits() == 1f32.to_bits() {
            return v;
        }
        self.b.mul(v, self.scalar(x))
    }

    /// What is known of a value.
    pub(super) fn fact_of(&self, v: ValueId) -> Fact {
        (self.facts)(v).unwrap_or_default()
    }

    /// What is known of an output.
    pub(super) fn out_fact(&self, slot: usize) -> Fact {
        self.graph
            .output(self.id, slot)
            .map(|v| self.fact_of(v))
            .unwrap_or_default()
    }

    /// The shape of an existing value as an `i64` vector: a constant if it is known.
    pub(super) fn shape_of(&self, v: ValueId) -> Val {
        let fact = self.fact_of(v);
        let known: Option<Vec<i64>> = fact
            .dims
            .as_ref()
            .and_then(|d| d.iter().map(Sym::as_const).collect());
        match known {
            Some(dims) => self.b.ints(&dims),
            None => self.b.shape(v),
        }
    }

    /// The shape of an input, see [`shape_of`](Self::shape_of).
    pub(super) fn input_shape(&self, slot: usize) -> Result<Val, GradError> {
        Ok(self.shape_of(self.input_id(slot)?))
    }

    /// Zeros in the shape of an existing value and of its type.
    pub(super) fn zeros_like(&self, v: ValueId) -> Val {
        let dtype = self.fact_of(v).dtype.unwrap_or_else(|| self.float_type());
        let shape = self.shape_of(v);
        self.zeros(shape, dtype)
    }

    /// Zeros of a shape.
    pub(super) fn zeros(&self, shape: Val, dtype: DType) -> Val {
        let bytes = vec![0u8; (dtype.bits() / 8) as usize];
        let zero = TensorData::raw(dtype, [1], bytes.into());
        self.b
            .op("ConstantOfShape", &[shape], &[("value", zero.into())])
    }

    /// `cond ? v : 0`.
    pub(super) fn keep_where(&self, cond: Val, v: Val) -> Val {
        self.b.op("Where", &[cond, v, self.scalar(0.0)], &[])
    }

    /// Elements of an integer input: a constant of the graph, or known from inference.
    pub(super) fn const_ints(&self, slot: usize) -> Option<Vec<i64>> {
        self.fact(slot).ints?.iter().map(Sym::as_const).collect()
    }

    /// An input, if it is there.
    pub(super) fn optional(&self, slot: usize) -> Option<Val> {
        self.graph.input(self.id, slot).map(Val::from)
    }
}
