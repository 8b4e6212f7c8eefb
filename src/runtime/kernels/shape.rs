//! Operators that change or read the shape only: views, no copies.

use super::{BuildCx, Cx, Entry, Ins, Kernel, Outs, axis_of, one, plain, size_of};
use crate::ir::{AttrValue, DType, TensorData};
use crate::runtime::value::{Data, Fault, Floats, Host, KResult, Value, Weight};
use crate::runtime::walk::{self, count};

/// The value in another shape of the same size; a view wherever the layout allows.
pub(crate) fn reshaped(cx: &Cx<'_>, v: Value, dims: Vec<usize>) -> KResult<Value> {
    if v.dims() == dims {
        return Ok(v);
    }
    if count(&dims)? != count(v.dims())? {
        return Err(Fault(format!(
            "{:?} does not fit the shape {dims:?}",
            v.dims()
        )));
    }
    match v {
        Value::Float(x) => {
            let x = cx.dense(x)?;
            Ok(Value::Float(x.view(|t| t.reshape(dims))?))
        }
        Value::Host(h) => Ok(Value::Host(h.reshaped(dims)?)),
        Value::Weight(w) => match w.reshaped(dims.clone()) {
            Some(w) => Ok(Value::Weight(w)),
            None => reshaped(cx, w.value()?, dims),
        },
    }
}

/// `Reshape(data, shape)`: 0 copies a size (unless `allowzero`), -1 is inferred.
struct Reshape {
    allow_zero: bool,
    fixed: Option<Vec<i64>>,
}

impl Kernel for Reshape {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let want = match &self.fixed {
            Some(s) => s.clone(),
            None => ins.ints(1)?,
        };
        let v = ins.take(0)?;
        let dims = target(v.dims(), &want, self.allow_zero)?;
        one(reshaped(cx, v, dims)?)
    }

    fn is_view(&self) -> bool {
        true
    }
}

fn target(dims: &[usize], want: &[i64], allow_zero: bool) -> KResult<Vec<usize>> {
    let bad = || Fault(format!("{dims:?} does not fit the shape {want:?}"));
    let mut out = Vec::with_capacity(want.len());
    let mut open = None;
    for (i, &w) in want.iter().enumerate() {
        out.push(match w {
            -1 if open.is_none() => {
                open = Some(i);
                1
            }
            0 if !allow_zero => *dims.get(i).ok_or_else(bad)?,
            w => usize::try_from(w).map_err(|_| bad())?,
        });
    }
    if let Some(i) = open {
        let rest = count(&out)?;
        let total = count(dims)?;
        out[i] = total.checked_div(rest).unwrap_or(0);
    }
    if count(&out)? == count(dims)? {
        Ok(out)
    } else {
        Err(bad())
    }
}

/// Axes from the second input (opset 13 and later) or the attribute.
struct Axes {
    fixed: Option<Vec<i64>>,
    insert: bool,
}

impl Kernel for Axes {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let axes = match &self.fixed {
            Some(a) => Some(a.clone()),
            None => ins.ints_opt(1)?,
        };
        let v = ins.take(0)?;
        let dims = if self.insert {
            let axes = axes.ok_or("the axes are missing")?;
            inserted(v.dims(), &axes)?
        } else {
            removed(v.dims(), axes.as_deref())?
        };
        one(reshaped(cx, v, dims)?)
    }

    fn is_view(&self) -> bool {
        true
    }
}

fn inserted(dims: &[usize], axes: &[i64]) -> KResult<Vec<usize>> {
    let rank = dims.len() + axes.len();
    let mut at = vec![false; rank];
    for &a in axes {
        let a = axis_of(a, rank)?;
        if std::mem::replace(&mut at[a], true) {
            return Err(Fault(format!("axis {a} twice")));
        }
    }
    let mut rest = dims.iter();
    Ok(at
        .into_iter()
        .map(|new| {
            if new {
                1
            } else {
                rest.next().copied().unwrap_or(1)
            }
        })
        .collect())
}

fn removed(dims: &[usize], axes: Option<&[i64]>) -> KResult<Vec<usize>> {
    let Some(axes) = axes else {
        return Ok(dims.iter().copied().filter(|&d| d != 1).collect());
    };
    let mut gone = vec![false; dims.len()];
    for &a in axes {
        let a = axis_of(a, dims.len())?;
        if dims[a] != 1 {
            return Err(Fault(format!("axis {a} has size {}, expected 1", dims[a])));
        }
        gone[a] = true;
    }
    let keep = dims.iter().zip(gone).filter(|(_, g)| !g);
    Ok(keep.map(|(&d, _)| d).collect())
}

struct Flatten(i64);

impl Kernel for Flatten {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let v = ins.take(0)?;
        let rank = v.dims().len() as i64;
        let axis = if self.0 < 0 { self.0 + rank } else { self.0 };
        let axis = size_of(axis)?;
        let (Some(a), Some(b)) = (v.dims().get(..axis), v.dims().get(axis..)) else {
            return Err(Fault(format!(
                "axis {} is outside a tensor of rank {rank}",
                self.0
            )));
        };
        let dims = vec![count(a)?, count(b)?];
        one(reshaped(cx, v, dims)?)
    }

    fn is_view(&self) -> bool {
        true
    }
}

struct Identity;

impl Kernel for Identity {
    fn run(&self, _: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        one(ins.take(0)?)
    }

    fn is_view(&self) -> bool {
        true
    }
}

/// `Shape(data)`, with `start` and `end` clamped as slices are (opset 15).
struct Shape {
    start: i64,
    end: Option<i64>,
}

impl Kernel for Shape {
    fn run(&self, _: &Cx<'_>, ins: Ins) -> KResult<Outs> {
        let dims = ins.need(0)?.dims();
        let rank = dims.len() as i64;
        let clamp = |x: i64| (if x < 0 { x + rank } else { x }).clamp(0, rank) as usize;
        let (from, to) = (clamp(self.start), clamp(self.end.unwrap_or(rank)));
        let part = dims.get(from..to).unwrap_or_default();
        let data: Vec<i64> = part.iter().map(|&d| d as i64).collect();
        one(Value::from_i64(&[data.len()], data)?)
    }

    fn is_view(&self) -> bool {
        true
    }
}

struct Size;

impl Kernel for Size {
    fn run(&self, _: &Cx<'_>, ins: Ins) -> KResult<Outs> {
        let n = count(ins.need(0)?.dims())?;
        one(Value::from_i64(&[], vec![n as i64])?)
    }

    fn is_view(&self) -> bool {
        true
    }
}

/// `Expand(data, shape)`: broadcasting in both directions. Floats become a view without copies.
struct Expand;

impl Kernel for Expand {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let want = ins
            .ints(1)?
            .into_iter()
            .map(size_of)
            .collect::<KResult<Vec<_>>>()?;
        one(expanded(cx, ins.take(0)?, &want)?)
    }
}

pub(crate) fn expanded(cx: &Cx<'_>, v: Value, want: &[usize]) -> KResult<Value> {
    let dims = walk::broadcast(&[v.dims(), want])?;
    if v.dims() == dims {
        return Ok(v);
    }
    match plain(v)? {
        Value::Float(x) => Ok(Value::Float(x.view(|t| t.broadcast_as(dims))?)),
        v => {
            let from = v.dims().to_vec();
            Ok(super::each_kind!(cx, v, &dims, |src, out| {
                let view = crate::runtime::walk::View::dense(src, &from);
                let strides = walk::broadcast_strides(&from, &view.strides, &dims);
                let view = crate::runtime::walk::View {
                    data: src,
                    dims: dims.as_slice().into(),
                    strides: strides.into(),
                };
                walk::copy(&view, out);
            }))
        }
    }
}

/// `ConstantOfShape(shape)`.
struct Fill(TensorData);

impl Kernel for Fill {
    fn run(&self, cx: &Cx<'_>, ins: Ins) -> KResult<Outs> {
        let dims = ins
            .ints(0)?
            .into_iter()
            .map(size_of)
            .collect::<KResult<Vec<_>>>()?;
        let n = count(&dims)?;
        let one_value = Weight::new(&self.0, cx.device)?.value()?;
        match one_value {
            Value::Float(x) => {
                let fill = x.to_vec()?.first().copied().unwrap_or(0.0);
                let mut out = cx.alloc(n);
                out.fill(fill);
                let x = cx.floats(out, &dims, x.dtype())?;
                one(super::cast::on_device(cx, x)?)
            }
            Value::Host(h) => {
                let data = match h.data() {
                    Data::I64(v) => Data::I64(vec![v[0]; n]),
                    Data::U8(v) => Data::U8(vec![v[0]; n]),
                    Data::F64(v) => Data::F64(vec![v[0]; n]),
                };
                one(Host::new(h.dtype(), dims, data)?)
            }
            Value::Weight(_) => Err("a weight converts to a tensor".into()),
        }
    }
}

fn fill(cx: &mut BuildCx<'_>) -> KResult<Box<dyn Kernel>> {
    let value = match cx.node.attr("value") {
        Some(AttrValue::Tensor(t)) => t.clone(),
        _ => TensorData::scalar(0.0),
    };
    if value.count() != Some(1) {
        return Err("`value` must have one element".into());
    }
    Ok(Box::new(Fill(value)))
}

/// `EyeLike`: ones on a diagonal, in the shape of a matrix.
struct Eye {
    /// How far to the right of the main diagonal.
    k: i64,
    dtype: Option<DType>,
}

impl Kernel for Eye {
    fn run(&self, cx: &Cx<'_>, ins: Ins) -> KResult<Outs> {
        let x = ins.need(0)?;
        let dims = x.dims().to_vec();
        let [rows, columns] = dims[..] else {
            return Err(Fault(format!("an input of {dims:?}, expected a matrix")));
        };
        let ones = (0..rows).filter_map(|i| {
            let j = usize::try_from(i as i64 + self.k).ok()?;
            (j < columns).then_some(i * columns + j)
        });
        let dtype = self.dtype.unwrap_or(x.dtype());
        if dtype.is_float() && dtype != DType::Double {
            let mut out = cx.zeros(count(&dims)?);
            ones.for_each(|i| out[i] = 1.0);
            return one(super::cast::on_device(cx, cx.floats(out, &dims, dtype)?)?);
        }
        let mut out = vec![0i64; count(&dims)?];
        ones.for_each(|i| out[i] = 1);
        if dtype == DType::Double {
            let out = out.into_iter().map(|x| x as f64).collect();
            return one(Host::new(dtype, dims, Data::F64(out))?);
        }
        one(Host::from_ints(dtype, dims, out)?)
    }
}

fn eye(cx: &mut BuildCx<'_>) -> KResult<Box<dyn Kernel>> {
    let named = cx.node.attr("dtype").is_some();
    let dtype = cx.dtype("dtype", DType::Float)?;
    Ok(Box::new(Eye {
        k: cx.int("k", 0),
        dtype: named.then_some(dtype),
    }))
}

/// `Constant`: one of several attributes.
struct Constant(Value);

impl Kernel for Constant {
    fn run(&self, _: &Cx<'_>, _: Ins) -> KResult<Outs> {
        one(self.0.clone())
    }

    fn is_view(&self) -> bool {
        true
    }
}

fn constant(cx: &mut BuildCx<'_>) -> KResult<Box<dyn Kernel>> {
    let attrs = &cx.node.attrs;
    let value = [
        "value",
        "value_int",
        "value_ints",
        "value_float",
        "value_floats",
    ]
    .into_iter()
    .find_map(|n| attrs.get(n));
    let value = match value.map(|a| &a.value) {
        Some(AttrValue::Tensor(t)) => {
            let w = Weight::new(t, &candle_core::Device::Cpu)?;
            if t.stored_len() <= 64 * 1024 {
                w.value()?
            } else {
                Value::Weight(w)
            }
        }
        Some(AttrValue::Int(i)) => Value::from_i64(&[], vec![*i])?,
        Some(AttrValue::Ints(v)) => Value::from_i64(&[v.len()], v.clone())?,
        Some(AttrValue::Float(x)) => float(vec![*x], &[])?,
        Some(AttrValue::Floats(v)) => float(v.clone(), &[v.len()])?,
        _ => return Err("the constant has no value of a kind that is computed with".into()),
    };
    Ok(Box::new(Constant(value)))
}

fn float(data: Vec<f32>, dims: &[usize]) -> KResult<Value> {
    Ok(Value::Float(Floats::new(data, dims, DType::Float, None)?))
}

fn axes(cx: &BuildCx<'_>, insert: bool) -> Box<dyn Kernel> {
    Box::new(Axes {
        fixed: cx.ints("axes"),
        insert,
    })
}

pub(super) const KERNELS: &[Entry] = &[
    ("", "Reshape", |cx| {
        Ok(Box::new(Reshape {
            allow_zero: cx.flag("allowzero"),
            fixed: cx.ints("shape"),
        }))
    }),
    ("", "Squeeze", |cx| Ok(axes(cx, false))),
    ("", "Unsqueeze", |cx| Ok(axes(cx, true))),
    ("", "Flatten", |cx| Ok(Box::new(Flatten(cx.int("axis", 1))))),
    ("", "Identity", |_| Ok(Box::new(Identity))),
    ("", "Shape", |cx| {
        Ok(Box::new(Shape {
            start: cx.int("start", 0),
            end: cx.node.attr("end").and_then(AttrValue::as_int),
        }))
    }),
    ("", "Size", |_| Ok(Box::new(Size))),
    ("", "Expand", |_| Ok(Box::new(Expand))),
    ("", "ConstantOfShape", fill),
    ("", "EyeLike", eye),
    ("", "Constant", constant),
];
