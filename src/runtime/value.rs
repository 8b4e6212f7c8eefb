//! What flows through a plan: floats as candle tensors on the plan's device, integers and booleans on the host, and frozen weights
//! as ranges of the mapped file.
//!
//! Every value keeps its ONNX element type. On the CPU all float types except `f64` are stored as `f32`: a model in half precision
//! is computed in single precision and narrowed where the graph casts and where a result leaves the plan.

use super::packed::Packed;
use super::walk::{count, row_major};
use crate::ir::{DType, TensorData};
use bytes::Bytes;
use candle_core::{Device, Tensor};
use std::fmt;
use std::sync::{Arc, OnceLock};

pub(crate) use super::fault::{Fault, KResult};
pub(crate) use super::floats::Floats;
pub(crate) use super::floats::{FloatRead, candle_float};
pub(crate) use super::host::wrap_int;
pub(crate) use super::host::{Data, Host};

/// A value of a running plan.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    /// Floating-point elements on the plan's device.
    Float(Floats),
    /// Integers, booleans and `f64` on the host.
    Host(Host),
    /// A constant of the model, as a view of the mapped file.
    Weight(Weight),
}

/// A constant of the model: a possibly permuted view of its bytes in the mapped file.
#[derive(Clone)]
pub(crate) struct Weight {
    inner: Arc<WeightInner>,
    dims: Vec<usize>,
    /// Dimensions of the bytes in row-major order, and their permutation into `dims`.
    stored: Option<(Vec<usize>, Vec<usize>)>,
}

struct WeightInner {
    dtype: DType,
    len: usize,
    bytes: Bytes,
    device: Device,
    /// Where the elements are stored as small integers, how; `bytes` is empty then.
    packed: Option<Packed>,
    /// The elements in the runtime's own form, made when a kernel first asks for them; one-dimensional.
    converted: OnceLock<Value>,
}

impl fmt::Debug for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.inner.dtype, self.dims)
    }
}

/// Elements of a float weight as stored.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WeightBytes<'a> {
    /// Element type.
    pub(crate) dtype: DType,
    /// Little-endian elements, at any alignment.
    pub(crate) bytes: &'a [u8],
    /// Whether the matrix is stored with its last two axes exchanged.
    pub(crate) transposed: bool,
}

impl Weight {
    /// A constant; its payload must be there and fit its dimensions.
    pub(crate) fn new(t: &TensorData, device: &Device) -> KResult<Self> {
        let bytes = t.bytes().ok_or_else(|| {
            Fault(format!(
                "the tensor has no payload that fits {}{:?}",
                t.dtype, t.dims
            ))
        })?;
        let dims = t
            .dims
            .iter()
            .map(|&d| usize::try_from(d).map_err(|_| Fault(format!("a dimension of {d}"))))
            .collect::<KResult<Vec<_>>>()?;
        let len = count(&dims)?;
        Ok(Weight {
            inner: Arc::new(WeightInner {
                dtype: t.dtype,
                len,
                bytes,
                device: device.clone(),
                packed: None,
                converted: OnceLock::new(),
            }),
            dims,
            stored: None,
        })
    }

    /// A float constant that is stored as small integers; it is widened where and when it is read.
    pub(crate) fn packed(
        packed: Packed,
        dtype: DType,
        dims: Vec<usize>,
        device: &Device,
    ) -> KResult<Self> {
        let len = count(&dims)?;
        if len != count(&packed.shape())? {
            return Err(Fault(format!("{:?} as {dims:?}", packed.shape())));
        }
        Ok(Weight {
            inner: Arc::new(WeightInner {
                dtype,
                len,
                bytes: Bytes::new(),
                device: device.clone(),
                packed: Some(packed),
                converted: OnceLock::new(),
            }),
            dims,
            stored: None,
        })
    }

    /// The stored form of a matrix of small integers, and whether this is its transpose.
    pub(crate) fn codes(&self) -> Option<(&Packed, bool)> {
        let packed = self.inner.packed.as_ref()?;
        let transposed = match &self.stored {
            None => false,
            Some((_, perm)) if *perm == [1, 0] => true,
            Some(_) => return None,
        };
        let dims = match &self.stored {
            None => &self.dims,
            Some((base, _)) => base,
        };
        (*dims == packed.shape()).then_some((packed, transposed))
    }

    /// Bytes of a constant in row-major order, to be held on to.
    pub(crate) fn shared(&self) -> Option<Bytes> {
        self.is_plain().then(|| self.inner.bytes.clone())
    }

    /// Whether the elements lie in row-major order, as what they are.
    fn is_plain(&self) -> bool {
        self.stored.is_none() && self.inner.packed.is_none()
    }

    /// ONNX element type.
    pub(crate) fn dtype(&self) -> DType {
        self.inner.dtype
    }

    /// Dimensions.
    pub(crate) fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// The bytes in row-major order; `None` for a permuted view, and for floats stored as integers.
    pub(crate) fn bytes(&self) -> Option<&[u8]> {
        self.is_plain().then_some(&self.inner.bytes[..])
    }

    /// The bytes of a matrix, or of its transpose; `None` for any other permutation.
    pub(crate) fn matrix(&self) -> Option<WeightBytes<'_>> {
        let transposed = match &self.stored {
            None => false,
            Some((_, perm)) if *perm == [1, 0] => true,
            Some(_) => return None,
        };
        (self.dims.len() == 2 && self.inner.packed.is_none()).then_some(WeightBytes {
            dtype: self.inner.dtype,
            bytes: &self.inner.bytes,
            transposed,
        })
    }

    /// Whether [`read_f32`](Self::read_f32) reads it.
    pub(crate) fn has_rows(&self) -> bool {
        self.stored.is_none() && self.dtype().is_float() && self.dtype() != DType::Double
    }

    /// Elements of a row-major float constant, without converting the rest: `out` gets those from `start` on.
    pub(crate) fn read_f32(&self, start: usize, out: &mut [f32]) -> KResult<()> {
        if let Some(packed) = &self.inner.packed {
            if start.saturating_add(out.len()) > self.inner.len {
                return Err("beyond the end of the weight".into());
            }
            packed.read(start, out);
            return Ok(());
        }
        let size = usize::try_from(self.inner.dtype.bits() / 8).unwrap_or(0);
        let from = start.saturating_mul(size);
        let bytes = self
            .inner
            .bytes
            .get(from..from.saturating_add(out.len().saturating_mul(size)))
            .ok_or("beyond the end of the weight")?;
        widen(self.inner.dtype, bytes, out)
    }

    /// The same bytes in another shape; `None` for a permuted view.
    pub(crate) fn reshaped(&self, dims: Vec<usize>) -> Option<Self> {
        self.stored.is_none().then(|| Weight {
            inner: self.inner.clone(),
            dims,
            stored: None,
        })
    }

    /// The same bytes with permuted axes.
    pub(crate) fn permuted(&self, perm: &[usize]) -> Self {
        let dims: Vec<usize> = perm.iter().map(|&p| self.dims[p]).collect();
        let (base, perm) = match &self.stored {
            None => (self.dims.clone(), perm.to_vec()),
            Some((base, old)) => (base.clone(), perm.iter().map(|&p| old[p]).collect()),
        };
        let identity = perm.iter().enumerate().all(|(i, &p)| i == p);
        Weight {
            inner: self.inner.clone(),
            dims,
            stored: (!identity).then_some((base, perm)),
        }
    }

    /// The elements in the runtime's own form; converted once, then shared.
    pub(crate) fn value(&self) -> KResult<Value> {
        let flat = if let Some(packed) = &self.inner.packed {
            // Not kept: the small form is what a plan holds.
            let mut out = vec![0.0; self.inner.len];
            packed.all(&mut out);
            self.inner.floats(out)?
        } else if let Some(v) = self.inner.converted.get() {
            v.clone()
        } else {
            let v = self.inner.convert()?;
            self.inner.converted.get_or_init(|| v).clone()
        };
        let (base, perm) = match &self.stored {
            None => (&self.dims, None),
            Some((base, perm)) => (base, Some(perm)),
        };
        match flat {
            Value::Float(x) => {
                let x = x.view(|t| t.reshape(base.as_slice()))?;
                Ok(Value::Float(match perm {
                    Some(p) => x.view(|t| t.permute(p.as_slice()))?,
                    None => x,
                }))
            }
            Value::Host(x) => {
                let x = Value::Host(x.reshaped(base.clone())?);
                match perm {
                    Some(p) => x.permuted(p),
                    None => Ok(x),
                }
            }
            Value::Weight(_) => Err("a weight converts to a tensor".into()),
        }
    }
}

impl WeightInner {
    fn floats(&self, data: Vec<f32>) -> KResult<Value> {
        let tensor = Tensor::from_vec(data, &[self.len][..], &Device::Cpu)?;
        let tensor = if self.device.is_cpu() {
            tensor
        } else {
            tensor
                .to_dtype(candle_float(self.dtype))?
                .to_device(&self.device)?
        };
        Ok(Value::Float(Floats::wrap(tensor, self.dtype, None)))
    }

    fn convert(&self) -> KResult<Value> {
        let b = &self.bytes;
        let dtype = self.dtype;
        if dtype.is_float() && dtype != DType::Double {
            let n = b.len() / (dtype.bits() as usize / 8);
            let mut out = vec![0.0; n];
            widen(dtype, b, &mut out)?;
            return self.floats(out);
        }
        if dtype == DType::Double {
            let v: Vec<f64> = b
                .as_chunks()
                .0
                .iter()
                .map(|c| f64::from_le_bytes(*c))
                .collect();
            return Ok(Value::Host(Host::new(dtype, vec![v.len()], Data::F64(v))?));
        }
        if matches!(dtype, DType::Uint8 | DType::Int8 | DType::Bool) {
            return Ok(Value::Host(Host::new(
                dtype,
                vec![b.len()],
                Data::U8(b.to_vec()),
            )?));
        }
        if matches!(
            dtype,
            DType::Uint4 | DType::Int4 | DType::Uint2 | DType::Int2
        ) {
            // onnx.proto: two or four numbers a byte, the first in the low bits.
            let bits = dtype.bits() as usize;
            let signed = matches!(dtype, DType::Int4 | DType::Int2);
            let code = super::packed::Code::Low { bits, signed };
            let all = (0..self.len).map(|i| code.get(b, i) as i8);
            let data = all.map(|x| x as u8).collect();
            return Ok(Value::Host(Host::new(
                dtype,
                vec![self.len],
                Data::U8(data),
            )?));
        }
        let size = dtype.bits() / 8;
        if size == 0 {
            return Err(Fault(format!(
                "constants of type {dtype} are not computed with"
            )));
        }
        let tensor = TensorData::raw(dtype, [b.len() as u64 / size], b.clone());
        let v = tensor
            .to_i64()
            .ok_or_else(|| Fault(format!("constants of type {dtype} are not computed with")))?;
        Ok(Value::Host(Host::from_ints(dtype, vec![v.len()], v)?))
    }
}

/// Little-endian floats of any alignment as `f32`.
pub(crate) fn widen(dtype: DType, bytes: &[u8], out: &mut [f32]) -> KResult<()> {
    let stored =
        stored(dtype).ok_or_else(|| Fault(format!("found {dtype}, expected f32, f16 or bf16")))?;
    Ok(onnx_graft_kernels::widen(stored, bytes, out)?)
}

/// The type by which the kernels read stored floats.
pub(crate) fn stored(dtype: DType) -> Option<onnx_graft_kernels::DType> {
    match dtype {
        DType::Float => Some(onnx_graft_kernels::DType::F32),
        DType::Float16 => Some(onnx_graft_kernels::DType::F16),
        DType::Bfloat16 => Some(onnx_graft_kernels::DType::Bf16),
        _ => None,
    }
}

impl Value {
    /// ONNX element type.
    pub(crate) fn dtype(&self) -> DType {
        match self {
            Value::Float(x) => x.dtype(),
            Value::Host(x) => x.dtype(),
            Value::Weight(x) => x.inner.dtype,
        }
    }

    /// Dimensions.
    pub(crate) fn dims(&self) -> &[usize] {
        match self {
            Value::Float(x) => x.dims(),
            Value::Host(x) => x.dims(),
            Value::Weight(x) => &x.dims,
        }
    }

    /// The value with permuted axes. Floats and weights become views.
    pub(crate) fn permuted(&self, perm: &[usize]) -> KResult<Self> {
        if perm.iter().enumerate().all(|(i, &p)| i == p) {
            return Ok(self.clone());
        }
        match self {
            Value::Float(x) => Ok(Value::Float(x.view(|t| t.permute(perm))?)),
            Value::Weight(w) => Ok(Value::Weight(w.permuted(perm))),
            Value::Host(h) => {
                let dims: Vec<usize> = perm.iter().map(|&p| h.dims()[p]).collect();
                let old = row_major(h.dims());
                let strides: Vec<usize> = perm.iter().map(|&p| old[p]).collect();
                h.strided(dims, 0, &strides).map(Value::Host)
            }
        }
    }

    /// `f32` elements in row-major order.
    pub(crate) fn from_f32(dims: &[usize], data: Vec<f32>) -> KResult<Self> {
        Ok(Value::Float(Floats::new(data, dims, DType::Float, None)?))
    }

    /// `i64` elements in row-major order.
    pub(crate) fn from_i64(dims: &[usize], data: Vec<i64>) -> KResult<Self> {
        Ok(Value::Host(Host::from_ints(
            DType::Int64,
            dims.to_vec(),
            data,
        )?))
    }

    /// The elements as `f32`; integers are converted.
    pub(crate) fn to_f32(&self) -> KResult<Vec<f32>> {
        match self {
            Value::Float(x) => x.to_vec(),
            Value::Host(x) => Ok(match x.data() {
                Data::F64(v) => v.iter().map(|&x| x as f32).collect(),
                _ => x.ints()?.iter().map(|&x| x as f32).collect(),
            }),
            Value::Weight(w) => w.value()?.to_f32(),
        }
    }

    /// The elements as integers.
    pub(crate) fn to_ints(&self) -> KResult<Vec<i64>> {
        match self {
            Value::Host(x) => Ok(x.ints()?.into_owned()),
            Value::Weight(w) => w.value()?.to_ints(),
            Value::Float(x) => Err(Fault(format!("found {}, expected integers", x.dtype()))),
        }
    }

    /// Bytes of the elements in the runtime's own storage.
    pub(crate) fn size(&self) -> usize {
        let n: usize = self.dims().iter().product();
        n.saturating_mul(self.dtype().bits().div_ceil(8) as usize)
    }
}
