//! `Cast`, `CastLike`.

use super::{BuildCx, Cx, Entry, Ins, Kernel, Outs, one, plain};
use crate::ir::DType;
use crate::runtime::value::{Data, Fault, Floats, Host, KResult, Value};
use crate::runtime::walk;
use half::{bf16, f16};

/// `None`: the type of the second input.
struct Cast(Option<DType>);

impl Kernel for Cast {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let to = match self.0 {
            Some(to) => to,
            None => ins.need(1)?.dtype(),
        };
        let v = ins.take(0)?;
        if v.dtype() == to {
            return one(v);
        }
        one(cast(cx, plain(v)?, to)?)
    }

    fn is_view(&self) -> bool {
        false
    }
}

/// Converts a value to an element type. Float to integer truncates and saturates, as Rust does.
pub(crate) fn cast(cx: &Cx<'_>, v: Value, to: DType) -> KResult<Value> {
    if v.dtype() == to {
        return Ok(v);
    }
    let dims = v.dims().to_vec();
    match (v, to) {
        (Value::Float(x), DType::Float) if x.tensor().device().is_cpu() => {
            Ok(Value::Float(x.tagged(DType::Float)))
        }
        (Value::Float(x), DType::Float16 | DType::Bfloat16) => narrow(cx, x, to).map(Value::Float),
        (Value::Float(x), DType::Float) => Ok(Value::Float(Floats::wrap(
            x.tensor().to_dtype(candle_core::DType::F32)?,
            to,
            None,
        ))),
        (Value::Float(x), DType::Double) => {
            let data = x.to_vec()?.into_iter().map(f64::from).collect();
            Ok(Value::Host(Host::new(to, dims, Data::F64(data))?))
        }
        (Value::Float(x), DType::Bool) => {
            let data = x
                .to_vec()?
                .into_iter()
                .map(|x| u8::from(x != 0.0))
                .collect();
            Ok(Value::Host(Host::from_bools(dims, data)?))
        }
        (Value::Float(x), to) => {
            let data = x
                .to_vec()?
                .into_iter()
                .map(|x| saturate(to, f64::from(x)))
                .collect();
            Ok(Value::Host(Host::from_ints(to, dims, data)?))
        }
        (Value::Host(h), DType::Float | DType::Float16 | DType::Bfloat16) => {
            let mut out = cx.alloc(h.data().len());
            fill(&h, &mut out)?;
            let x = cx.floats(out, &dims, DType::Float)?;
            cast(cx, Value::Float(on_device(cx, x)?), to)
        }
        (Value::Host(h), DType::Double) => {
            let data = match h.data() {
                Data::F64(v) => v.clone(),
                _ => h.ints()?.iter().map(|&x| x as f64).collect(),
            };
            Ok(Value::Host(Host::new(to, dims, Data::F64(data))?))
        }
        (Value::Host(h), to) => {
            let data = match h.data() {
                Data::F64(v) if to == DType::Bool => {
                    v.iter().map(|&x| i64::from(x != 0.0)).collect()
                }
                Data::F64(v) => v.iter().map(|&x| saturate(to, x)).collect(),
                _ => h.ints()?.into_owned(),
            };
            Ok(Value::Host(Host::from_ints(to, dims, data)?))
        }
        (Value::Weight(w), to) => cast(cx, w.value()?, to),
    }
}

/// Moves a host tensor to the plan's device.
pub(crate) fn on_device(cx: &Cx<'_>, x: Floats) -> KResult<Floats> {
    if cx.device.is_cpu() {
        return Ok(x);
    }
    Ok(Floats::wrap(
        x.tensor().to_device(cx.device)?,
        x.dtype(),
        None,
    ))
}

fn fill(h: &Host, out: &mut [f32]) -> KResult<()> {
    match h.data() {
        Data::F64(v) => out.iter_mut().zip(v).for_each(|(o, &x)| *o = x as f32),
        Data::I64(v) => out.iter_mut().zip(v).for_each(|(o, &x)| *o = x as f32),
        Data::U8(v) if matches!(h.dtype(), DType::Int8 | DType::Int4 | DType::Int2) => {
            out.iter_mut()
                .zip(v)
                .for_each(|(o, &x)| *o = f32::from(x as i8));
        }
        Data::U8(v) => out.iter_mut().zip(v).for_each(|(o, &x)| *o = f32::from(x)),
    }
    Ok(())
}

fn narrow(cx: &Cx<'_>, x: Floats, to: DType) -> KResult<Floats> {
    if !x.tensor().device().is_cpu() {
        let kind = crate::runtime::value::candle_float(to);
        return Ok(Floats::wrap(x.tensor().to_dtype(kind)?, to, None));
    }
    let dims = x.dims().to_vec();
    let mut v = cx.buffer(x)?;
    if to == DType::Float16 {
        walk::map_in_place(&mut v, |x| f16::from_f32(x).to_f32());
    } else {
        walk::map_in_place(&mut v, |x| bf16::from_f32(x).to_f32());
    }
    cx.floats(v, &dims, to)
}

fn saturate(to: DType, x: f64) -> i64 {
    match to {
        DType::Int32 => i64::from(x as i32),
        DType::Uint32 => i64::from(x as u32),
        DType::Int16 => i64::from(x as i16),
        DType::Uint16 => i64::from(x as u16),
        DType::Int8 => i64::from(x as i8),
        DType::Uint8 => i64::from(x as u8),
        _ => x as i64,
    }
}

fn make(cx: &mut BuildCx<'_>) -> KResult<Box<dyn Kernel>> {
    let to = cx.dtype("to", DType::Undefined)?;
    supported(to)?;
    Ok(Box::new(Cast(Some(to))))
}

fn supported(to: DType) -> KResult<()> {
    match to {
        DType::Float
        | DType::Float16
        | DType::Bfloat16
        | DType::Double
        | DType::Bool
        | DType::Int8
        | DType::Uint8
        | DType::Int16
        | DType::Uint16
        | DType::Int32
        | DType::Uint32
        | DType::Int64
        | DType::Uint64 => Ok(()),
        DType::Undefined
        | DType::String
        | DType::Complex64
        | DType::Complex128
        | DType::Float8E4M3FN
        | DType::Float8E4M3FNUZ
        | DType::Float8E5M2
        | DType::Float8E5M2FNUZ
        | DType::Uint4
        | DType::Int4
        | DType::Float4E2M1
        | DType::Float8E8M0
        | DType::Uint2
        | DType::Int2
        | DType::Float6E2M3
        | DType::Float6E3M2 => Err(Fault(format!("values of type {to} are not computed with"))),
    }
}

pub(super) const KERNELS: &[Entry] = &[
    ("", "Cast", make),
    ("", "CastLike", |_| Ok(Box::new(Cast(None)))),
];
