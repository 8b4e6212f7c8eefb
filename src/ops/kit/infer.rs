//! Type and shape rules that several operators share: axes, broadcasting, and integer vectors followed element by element.

use super::{Inferred, wrong};
use crate::ir::{DType, Fact, Sym, TensorData};
use crate::ops::{InferCx, InferError};

/// Integer tensors of up to this many elements are followed element by element.
pub(in crate::ops) const MAX_INTS: usize = 128;

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

/// A fact of a type and, where it is known, a shape.
pub(in crate::ops) fn fact(dtype: Option<DType>, dims: Option<Vec<Sym>>) -> Fact {
    Fact {
        dtype,
        dims,
        ints: None,
    }
}

/// Two sizes that must be equal: their common value, a number if one of them is. An error when they are different numbers.
pub(in crate::ops) fn same_size(a: &Sym, b: &Sym, what: &str) -> Result<Sym, InferError> {
    match (a.as_const(), b.as_const()) {
        (Some(x), Some(y)) if x != y => wrong(format!("{what}: {x} and {y} differ")),
        (None, Some(_)) => Ok(b.clone()),
        _ => Ok(a.clone()),
    }
}

/// An axis counted from the front.
pub(in crate::ops) fn normal_axis(axis: i64, rank: usize) -> Result<usize, InferError> {
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
pub(in crate::ops) fn normal_axes(axes: &[i64], rank: usize) -> Result<Vec<usize>, InferError> {
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
    pub(in crate::ops) fn dtype(&self, slot: usize) -> Option<DType> {
        self.input(slot)?.dtype
    }

    /// The type that the inputs of these slots share.
    pub(in crate::ops) fn same_dtype(
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
    pub(in crate::ops) fn expect_dtype(&self, slot: usize, allowed: &[DType]) -> Inferred {
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

    /// Notes type and shape of an output, if the node has it.
    pub(in crate::ops) fn set(
        &mut self,
        slot: usize,
        dtype: Option<DType>,
        dims: Option<Vec<Sym>>,
    ) {
        if let Some(o) = self.outputs.get_mut(slot) {
            *o = fact(dtype, dims);
        }
    }

    /// Notes that an output has the type and shape of an input.
    pub(in crate::ops) fn set_like(&mut self, slot: usize, input: usize) {
        let (dtype, dims) = (self.dtype(input), self.dims_vec(input));
        self.set(slot, dtype, dims);
    }

    /// Notes the elements of the first output, when they are few.
    pub(in crate::ops) fn set_ints(&mut self, ints: Option<Vec<Sym>>) {
        if let Some(o) = self.outputs.first_mut() {
            o.ints = ints.filter(|v| v.len() <= MAX_INTS);
        }
    }

    /// Dimensions of an input as owned values.
    pub(in crate::ops) fn dims_vec(&self, slot: usize) -> Option<Vec<Sym>> {
        self.dims(slot).map(<[Sym]>::to_vec)
    }

    /// Rank of an input.
    pub(in crate::ops) fn rank(&self, slot: usize) -> Option<usize> {
        self.dims(slot).map(<[Sym]>::len)
    }

    /// Length of a one-dimensional input, when it is a known small number: how many axes or sizes it names.
    pub(in crate::ops) fn len_of(&self, slot: usize) -> Option<usize> {
        match self.dims(slot)? {
            [n] => usize::try_from(n.as_const()?)
                .ok()
                .filter(|n| *n <= MAX_INTS),
            _ => None,
        }
    }

    /// The integer attribute `name` as an axis of a tensor of this rank.
    pub(in crate::ops) fn axis(
        &self,
        name: &str,
        default: i64,
        rank: usize,
    ) -> Result<usize, InferError> {
        normal_axis(self.node.int(name, default), rank)
    }

    /// Axes from the input of this slot or, in older opsets, from the attribute `axes`.
    pub(in crate::ops) fn axes(&self, slot: usize) -> Axes {
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
    pub(in crate::ops) fn opaque(&self, text: &str) -> Sym {
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
    pub(in crate::ops) fn min(&self, a: &Sym, b: &Sym) -> Sym {
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
    pub(in crate::ops) fn floor_div(&self, a: &Sym, b: &Sym) -> Sym {
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
    pub(in crate::ops) fn broadcast_dim(&self, a: &Sym, b: &Sym) -> Option<Sym> {
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
    pub(in crate::ops) fn broadcast(&self, a: &[Sym], b: &[Sym]) -> Result<Vec<Sym>, InferError> {
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
    pub(in crate::ops) fn broadcast_inputs(
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

    /// The size that an element of a shape vector asks for: the element if it cannot be negative, else an unknown size.
    pub(in crate::ops) fn as_size(&self, s: &Sym) -> Sym {
        if s.is_size() {
            s.clone()
        } else {
            self.unknown()
        }
    }

    /// Elements of a small integer input, each unknown one as an unknown integer.
    pub(in crate::ops) fn ints_or_unknown(&self, slot: usize) -> Option<Vec<Sym>> {
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
pub(in crate::ops) enum Axes {
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

/// Product of sizes.
pub(in crate::ops) fn product<'a>(dims: impl IntoIterator<Item = &'a Sym>) -> Option<Sym> {
    dims.into_iter().try_fold(Sym::from(1), |p, d| p.mul(d))
}

/// The first output has the type and shape of the first input.
pub(in crate::ops) fn same_as_input(cx: &mut InferCx<'_>) -> Inferred {
    cx.set_like(0, 0);
    Ok(())
}

/// The first output has the type of the first input and the shape that an integer input gives.
pub(in crate::ops) fn shaped_by(cx: &mut InferCx<'_>, slot: usize) -> Inferred {
    let dtype = cx.dtype(0);
    let dims = cx
        .ints_or_unknown(slot)
        .map(|v| v.iter().map(|s| cx.as_size(s)).collect());
    cx.set(0, dtype, dims);
    Ok(())
}
