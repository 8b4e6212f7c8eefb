//! Float tensors: candle's container, with buffers that come from a pool and return to it.

use super::fault::{Fault, KResult};
use super::walk::{self, View};
use crate::ir::DType;
use candle_core::{CpuStorage, Device, InplaceOp1, Layout, Storage, StorageRef, Tensor};
use onnx_graft_kernels::pool::Pool;
use std::borrow::Cow;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// A float tensor. Clones and views share storage; the last owner's buffer is recycled.
pub(crate) struct Floats {
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
        // A part without elements may begin behind the end.
        if from == to {
            return Ok(&[]);
        }
        data.get(from..to)
            .ok_or_else(|| "the storage is too short".into())
    }
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
    pub(crate) fn from_candle(tensor: Tensor) -> KResult<Self> {
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
    pub(crate) fn to_candle(&self) -> Tensor {
        self.token.escaped.store(true, Ordering::Relaxed);
        self.tensor.clone()
    }

    /// The candle tensor, for use inside one kernel.
    pub(crate) fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// ONNX element type.
    pub(crate) fn dtype(&self) -> DType {
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
    pub(crate) fn dims(&self) -> &[usize] {
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
    pub(crate) fn to_vec(&self) -> KResult<Vec<f32>> {
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
        walk::copy(&read.view()?, &mut out);
        Ok(out)
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
