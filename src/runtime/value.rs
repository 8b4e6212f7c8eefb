//! What flows through a plan: floats as candle tensors on the plan's device, integers and booleans on the host, and frozen weights
//! as ranges of the mapped file.
//!
//! Every value keeps its ONNX element type. On the CPU all float types except `f64` are stored as `f32`: a model in half precision
//! is computed in single precision and narrowed where the graph casts and where a result leaves the plan.

use super::cpu::pool::Pool;
use crate::ir::{DType, TensorData};
use bytes::Bytes;
use candle_core::{CpuStorage, Device, InplaceOp1, Layout, Storage, StorageRef, Tensor};
use std::borrow::Cow;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Why a kernel cannot compute: what was found and what was expected. The plan adds the node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Fault(pub String);

/// What kernels answer.
pub type KResult<T> = Result<T, Fault>;

impl From<candle_core::Error> for Fault {
    fn from(e: candle_core::Error) -> Self {
        Fault(e.to_string())
    }
}

impl From<String> for Fault {
    fn from(e: String) -> Self {
        Fault(e)
    }
}

impl From<&str> for Fault {
    fn from(e: &str) -> Self {
        Fault(e.to_owned())
    }
}

/// A value of a running plan.
#[derive(Clone, Debug)]
pub enum Value {
    /// Floating-point elements on the plan's device.
    Float(Floats),
    /// Integers, booleans and `f64` on the host.
    Host(Host),
    /// A constant of the model, as a view of the mapped file.
    Weight(Weight),
}

/// A float tensor. Clones and views share storage; the last owner's buffer is recycled.
pub struct Floats {
    tensor: Tensor,
    dtype: DType,
    token: Arc<Token>,
}

/// Shared by all views of one storage: counts them, and knows where the buffer goes in the end.
struct Token {
    pool: Option<Arc<Pool>>,
    /// The candle tensor left our hands: its storage is not ours to take.
    escaped: AtomicBool,
}

impl Clone for Floats {
    fn clone(&self) -> Self {
        Floats {
            tensor: self.tensor.clone(),
            dtype: self.dtype,
            token: self.token.clone(),
        }
    }
}

impl fmt::Debug for Floats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.dtype, self.tensor.dims())
    }
}

impl Drop for Floats {
    fn drop(&mut self) {
        if let Some(pool) = self.token.pool.clone()
            && let Some(buffer) = self.take_buffer()
        {
            pool.give(buffer);
        }
    }
}

/// Moves the buffer out of a CPU storage.
struct Take(Mutex<Option<Vec<f32>>>);

impl InplaceOp1 for Take {
    fn name(&self) -> &'static str {
        "take"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, _: &Layout) -> candle_core::Result<()> {
        if let CpuStorage::F32(v) = storage {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(std::mem::take(v));
        }
        Ok(())
    }
}

/// Read access to the elements of a float tensor on the CPU.
pub(crate) struct FloatRead<'a> {
    guard: StorageRef<'a>,
    layout: &'a Layout,
}

impl FloatRead<'_> {
    /// The whole storage, the offset and the strides of the view.
    pub(crate) fn view(&self) -> KResult<View<'_, f32>> {
        let Storage::Cpu(CpuStorage::F32(data)) = &*self.guard else {
            return Err("the kernel works on f32 in host memory".into());
        };
        Ok(View {
            data: data.get(self.layout.start_offset()..).unwrap_or_default(),
            dims: Cow::Borrowed(self.layout.dims()),
            strides: Cow::Borrowed(self.layout.stride()),
        })
    }

    /// The elements of a contiguous tensor.
    pub(crate) fn slice(&self) -> KResult<&[f32]> {
        let Storage::Cpu(CpuStorage::F32(data)) = &*self.guard else {
            return Err("the kernel works on f32 in host memory".into());
        };
        let (from, to) = self
            .layout
            .contiguous_offsets()
            .ok_or_else(|| Fault("the kernel needs a contiguous tensor".into()))?;
        data.get(from..to)
            .ok_or_else(|| "the storage is too short".into())
    }
}

/// A strided view of elements.
#[derive(Clone, Debug)]
pub(crate) struct View<'a, T> {
    pub(crate) data: &'a [T],
    pub(crate) dims: Cow<'a, [usize]>,
    pub(crate) strides: Cow<'a, [usize]>,
}

impl<'a, T> View<'a, T> {
    /// A row-major view.
    pub(crate) fn dense(data: &'a [T], dims: &'a [usize]) -> Self {
        View {
            data,
            dims: Cow::Borrowed(dims),
            strides: Cow::Owned(row_major(dims)),
        }
    }
}

/// Row-major strides.
pub(crate) fn row_major(dims: &[usize]) -> Vec<usize> {
    let mut strides = vec![1usize; dims.len()];
    for i in (0..dims.len().saturating_sub(1)).rev() {
        strides[i] = strides[i + 1].saturating_mul(dims[i + 1].max(1));
    }
    strides
}

/// Number of elements; an error when it cannot be held in memory.
pub(crate) fn count(dims: &[usize]) -> KResult<usize> {
    dims.iter()
        .try_fold(1usize, |n, &d| n.checked_mul(d))
        .filter(|&n| n <= isize::MAX as usize / 8)
        .ok_or_else(|| Fault(format!("a tensor of shape {dims:?} does not fit in memory")))
}

impl Floats {
    /// A tensor on the host, in row-major order.
    pub(crate) fn new(
        data: Vec<f32>,
        dims: &[usize],
        dtype: DType,
        pool: Option<&Arc<Pool>>,
    ) -> KResult<Self> {
        Ok(Self::wrap(
            Tensor::from_vec(data, dims, &Device::Cpu)?,
            dtype,
            pool,
        ))
    }

    /// Wraps a candle tensor that nobody else holds.
    pub(crate) fn wrap(tensor: Tensor, dtype: DType, pool: Option<&Arc<Pool>>) -> Self {
        Floats {
            tensor,
            dtype,
            token: Arc::new(Token {
                pool: pool.cloned(),
                escaped: AtomicBool::new(false),
            }),
        }
    }

    /// From a candle tensor; its storage stays the caller's, too.
    pub fn from_candle(tensor: Tensor) -> KResult<Self> {
        let dtype = match tensor.dtype() {
            candle_core::DType::F32 => DType::Float,
            candle_core::DType::F16 => DType::Float16,
            candle_core::DType::BF16 => DType::Bfloat16,
            other => return Err(Fault(format!("{other:?} is no float type of the runtime"))),
        };
        let tensor = if tensor.device().is_cpu() {
            tensor.to_dtype(candle_core::DType::F32)?
        } else {
            tensor
        };
        let out = Self::wrap(tensor, dtype, None);
        out.token.escaped.store(true, Ordering::Relaxed);
        Ok(out)
    }

    /// The candle tensor. Its storage is not recycled from now on.
    pub fn to_candle(&self) -> Tensor {
        self.token.escaped.store(true, Ordering::Relaxed);
        self.tensor.clone()
    }

    /// The candle tensor, for use inside one kernel.
    pub(crate) fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// ONNX element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The same elements under another ONNX type.
    #[must_use]
    pub(crate) fn tagged(&self, dtype: DType) -> Self {
        let mut out = self.clone();
        out.dtype = dtype;
        out
    }

    /// Dimensions.
    pub fn dims(&self) -> &[usize] {
        self.tensor.dims()
    }

    /// Whether the elements are in row-major order without gaps.
    pub(crate) fn is_contiguous(&self) -> bool {
        self.tensor.is_contiguous()
    }

    /// A view of the same storage.
    pub(crate) fn view(
        &self,
        f: impl FnOnce(&Tensor) -> candle_core::Result<Tensor>,
    ) -> KResult<Self> {
        Ok(Floats {
            tensor: f(&self.tensor)?,
            dtype: self.dtype,
            token: self.token.clone(),
        })
    }

    /// Read access; CPU only.
    pub(crate) fn read(&self) -> FloatRead<'_> {
        let (guard, layout) = self.tensor.storage_and_layout();
        FloatRead { guard, layout }
    }

    fn take_buffer(&mut self) -> Option<Vec<f32>> {
        if Arc::strong_count(&self.token) != 1
            || self.token.escaped.load(Ordering::Relaxed)
            || !self.tensor.device().is_cpu()
        {
            return None;
        }
        let take = Take(Mutex::new(None));
        self.tensor.inplace_op1(&take).ok()?;
        take.0.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// The buffer itself, when this is the last handle of a contiguous tensor that fills it; otherwise the handle back.
    pub(crate) fn into_buffer(mut self) -> Result<Vec<f32>, Self> {
        let fills = self.tensor.is_contiguous()
            && self.tensor.layout().start_offset() == 0
            && {
                let (guard, _) = self.tensor.storage_and_layout();
                matches!(&*guard, Storage::Cpu(CpuStorage::F32(v)) if v.len() == self.tensor.elem_count())
            };
        if !fills {
            return Err(self);
        }
        self.take_buffer().ok_or(self)
    }

    /// The elements in row-major order.
    pub fn to_vec(&self) -> KResult<Vec<f32>> {
        if !self.tensor.device().is_cpu() {
            let t = self
                .tensor
                .to_dtype(candle_core::DType::F32)?
                .to_device(&Device::Cpu)?;
            return Ok(t.flatten_all()?.to_vec1()?);
        }
        let read = self.read();
        if self.is_contiguous() {
            return Ok(read.slice()?.to_vec());
        }
        let mut out = vec![0.0; self.tensor.elem_count()];
        super::kernels::walk::copy(&read.view()?, &mut out);
        Ok(out)
    }
}

/// Integers, booleans or `f64` on the host, in row-major order.
#[derive(Clone, Debug)]
pub struct Host {
    dtype: DType,
    dims: Vec<usize>,
    data: Arc<Data>,
}

/// Elements of any kind. Integers of 16 bits and more are widened to `i64`; `u64` is kept by its bits.
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    /// Floats that are on their way into a tensor.
    F32(Vec<f32>),
    /// Double precision.
    F64(Vec<f64>),
    /// Integers of 16 to 64 bits.
    I64(Vec<i64>),
    /// `bool`, `u8`, and `i8` by its bits.
    U8(Vec<u8>),
}

impl Data {
    /// Number of elements.
    pub(crate) fn len(&self) -> usize {
        match self {
            Data::F32(v) => v.len(),
            Data::F64(v) => v.len(),
            Data::I64(v) => v.len(),
            Data::U8(v) => v.len(),
        }
    }
}

/// Brings an integer into the range of its type, as C does.
pub(crate) fn wrap_int(dtype: DType, x: i64) -> i64 {
    match dtype {
        DType::Int32 => i64::from(x as i32),
        DType::Uint32 => i64::from(x as u32),
        DType::Int16 => i64::from(x as i16),
        DType::Uint16 => i64::from(x as u16),
        DType::Int8 => i64::from(x as i8),
        DType::Uint8 => i64::from(x as u8),
        DType::Bool => i64::from(x != 0),
        _ => x,
    }
}

impl Host {
    /// A host tensor from elements of the kind that `dtype` is stored as.
    pub(crate) fn new(dtype: DType, dims: Vec<usize>, data: Data) -> KResult<Self> {
        if count(&dims)? != data.len() {
            return Err(Fault(format!(
                "{} elements do not fill the shape {dims:?}",
                data.len()
            )));
        }
        Ok(Host {
            dtype,
            dims,
            data: Arc::new(data),
        })
    }

    /// Integers or booleans from wide integers, wrapped to the type.
    pub fn from_ints(dtype: DType, dims: Vec<usize>, data: Vec<i64>) -> KResult<Self> {
        let data = match dtype {
            DType::Bool => Data::U8(data.into_iter().map(|x| u8::from(x != 0)).collect()),
            DType::Uint8 | DType::Int8 | DType::Uint4 | DType::Int4 => {
                Data::U8(data.into_iter().map(|x| x as u8).collect())
            }
            DType::Int64 | DType::Uint64 => Data::I64(data),
            DType::Int32 | DType::Uint32 | DType::Int16 | DType::Uint16 => {
                Data::I64(data.into_iter().map(|x| wrap_int(dtype, x)).collect())
            }
            other => return Err(Fault(format!("{other} is no integer type of the runtime"))),
        };
        Self::new(dtype, dims, data)
    }

    /// Booleans.
    pub fn from_bools(dims: Vec<usize>, data: Vec<u8>) -> KResult<Self> {
        Self::new(DType::Bool, dims, Data::U8(data))
    }

    /// ONNX element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Dimensions.
    pub fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// The elements as stored.
    pub fn data(&self) -> &Data {
        &self.data
    }

    /// The same elements in another shape of the same size.
    pub(crate) fn reshaped(&self, dims: Vec<usize>) -> KResult<Self> {
        if count(&dims)? != self.data.len() {
            return Err(Fault(format!(
                "{} elements do not fill the shape {dims:?}",
                self.data.len()
            )));
        }
        Ok(Host {
            dtype: self.dtype,
            dims,
            data: self.data.clone(),
        })
    }

    /// The elements as integers.
    pub fn ints(&self) -> KResult<Cow<'_, [i64]>> {
        Ok(match &*self.data {
            Data::I64(v) => Cow::Borrowed(v.as_slice()),
            Data::U8(v) if matches!(self.dtype, DType::Int8 | DType::Int4) => {
                v.iter().map(|&x| i64::from(x as i8)).collect()
            }
            Data::U8(v) => v.iter().map(|&x| i64::from(x)).collect(),
            Data::F32(_) | Data::F64(_) => {
                return Err(Fault(format!("found {}, expected integers", self.dtype)));
            }
        })
    }

    /// The elements as bytes, for `bool`, `u8` and `i8`.
    pub(crate) fn bytes(&self) -> KResult<&[u8]> {
        match &*self.data {
            Data::U8(v) => Ok(v),
            _ => Err(Fault(format!(
                "found {}, expected bool or 8-bit integers",
                self.dtype
            ))),
        }
    }
}

/// A constant of the model: a possibly permuted view of its bytes in the mapped file.
#[derive(Clone)]
pub struct Weight {
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
pub struct WeightBytes<'a> {
    /// Element type.
    pub dtype: DType,
    /// Little-endian elements, at any alignment.
    pub bytes: &'a [u8],
    /// Whether the matrix is stored with its last two axes exchanged.
    pub transposed: bool,
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
                converted: OnceLock::new(),
            }),
            dims,
            stored: None,
        })
    }

    /// ONNX element type.
    pub fn dtype(&self) -> DType {
        self.inner.dtype
    }

    /// Dimensions.
    pub fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// The bytes in row-major order; `None` for a permuted view.
    pub fn bytes(&self) -> Option<&[u8]> {
        self.stored.is_none().then_some(&self.inner.bytes[..])
    }

    /// The bytes of a matrix, or of its transpose; `None` for any other permutation.
    pub fn matrix(&self) -> Option<WeightBytes<'_>> {
        let transposed = match &self.stored {
            None => false,
            Some((_, perm)) if *perm == [1, 0] => true,
            Some(_) => return None,
        };
        (self.dims.len() == 2).then_some(WeightBytes {
            dtype: self.inner.dtype,
            bytes: &self.inner.bytes,
            transposed,
        })
    }

    /// Rows of a row-major `f32`, `f16` or `bf16` constant, without converting the rest: `out` gets `width` elements from `start`.
    pub(crate) fn read_f32(&self, start: usize, out: &mut [f32]) -> KResult<()> {
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
        let flat = if let Some(v) = self.inner.converted.get() {
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
                    Some(p) => super::kernels::movement::permute(&x, p, None),
                    None => Ok(x),
                }
            }
            Value::Weight(_) => Err("a weight converts to a tensor".into()),
        }
    }
}

impl WeightInner {
    fn convert(&self) -> KResult<Value> {
        let b = &self.bytes;
        let dtype = self.dtype;
        if dtype.is_float() && dtype != DType::Double {
            let n = b.len() / (dtype.bits() as usize / 8);
            let mut out = vec![0.0; n];
            widen(dtype, b, &mut out)?;
            let tensor = Tensor::from_vec(out, &[n][..], &Device::Cpu)?;
            let tensor = if self.device.is_cpu() {
                tensor
            } else {
                tensor
                    .to_dtype(candle_float(dtype))?
                    .to_device(&self.device)?
            };
            return Ok(Value::Float(Floats::wrap(tensor, dtype, None)));
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
        if matches!(dtype, DType::Uint4 | DType::Int4) {
            // onnx.proto: two numbers a byte, the first in the low bits.
            let nibble = |i: usize| (b[i / 2] >> (4 * (i % 2))) & 15;
            let signed = |x: u8| if x > 7 { x | 0xF0 } else { x };
            let all = (0..self.len).map(nibble);
            let data = if dtype == DType::Int4 {
                all.map(signed).collect()
            } else {
                all.collect()
            };
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

/// The candle type of an ONNX float type.
pub(crate) fn candle_float(dtype: DType) -> candle_core::DType {
    match dtype {
        DType::Float16 => candle_core::DType::F16,
        DType::Bfloat16 => candle_core::DType::BF16,
        DType::Double => candle_core::DType::F64,
        _ => candle_core::DType::F32,
    }
}

/// Little-endian floats of any alignment as `f32`.
pub(crate) fn widen(dtype: DType, bytes: &[u8], out: &mut [f32]) -> KResult<()> {
    use half::{bf16, f16};
    match dtype {
        DType::Float => out
            .iter_mut()
            .zip(bytes.as_chunks().0)
            .for_each(|(o, c)| *o = f32::from_le_bytes(*c)),
        DType::Float16 => out
            .iter_mut()
            .zip(bytes.as_chunks().0)
            .for_each(|(o, c)| *o = f16::from_le_bytes(*c).to_f32()),
        DType::Bfloat16 => out
            .iter_mut()
            .zip(bytes.as_chunks().0)
            .for_each(|(o, c)| *o = bf16::from_le_bytes(*c).to_f32()),
        other => return Err(Fault(format!("found {other}, expected f32, f16 or bf16"))),
    }
    Ok(())
}

impl Value {
    /// ONNX element type.
    pub fn dtype(&self) -> DType {
        match self {
            Value::Float(x) => x.dtype,
            Value::Host(x) => x.dtype,
            Value::Weight(x) => x.inner.dtype,
        }
    }

    /// Dimensions.
    pub fn dims(&self) -> &[usize] {
        match self {
            Value::Float(x) => x.dims(),
            Value::Host(x) => &x.dims,
            Value::Weight(x) => &x.dims,
        }
    }

    /// `f32` elements in row-major order.
    pub fn from_f32(dims: &[usize], data: Vec<f32>) -> KResult<Self> {
        Ok(Value::Float(Floats::new(data, dims, DType::Float, None)?))
    }

    /// `i64` elements in row-major order.
    pub fn from_i64(dims: &[usize], data: Vec<i64>) -> KResult<Self> {
        Ok(Value::Host(Host::from_ints(
            DType::Int64,
            dims.to_vec(),
            data,
        )?))
    }

    /// The elements as `f32`; integers are converted.
    pub fn to_f32(&self) -> KResult<Vec<f32>> {
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
    pub fn to_ints(&self) -> KResult<Vec<i64>> {
        match self {
            Value::Host(x) => Ok(x.ints()?.into_owned()),
            Value::Weight(w) => w.value()?.to_ints(),
            Value::Float(x) => Err(Fault(format!("found {}, expected integers", x.dtype))),
        }
    }

    /// Bytes of the elements in the runtime's own storage.
    pub(crate) fn size(&self) -> usize {
        let n: usize = self.dims().iter().product();
        n.saturating_mul(self.dtype().bits().div_ceil(8) as usize)
    }
}
