//! Integers, booleans and `f64`: tensors that stay on the host.

use super::fault::{Fault, KResult};
use super::walk::{self, View, count};
use crate::ir::DType;
use std::borrow::Cow;
use std::sync::Arc;

/// Integers, booleans or `f64` on the host, in row-major order.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    dtype: DType,
    dims: Vec<usize>,
    data: Arc<Data>,
}

/// Elements of any kind. Integers of 16 bits and more are widened to `i64`; `u64` is kept by its bits.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Data {
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
    pub(crate) fn from_ints(dtype: DType, dims: Vec<usize>, data: Vec<i64>) -> KResult<Self> {
        let data = match dtype {
            DType::Bool => Data::U8(data.into_iter().map(|x| u8::from(x != 0)).collect()),
            DType::Uint8
            | DType::Int8
            | DType::Uint4
            | DType::Int4
            | DType::Uint2
            | DType::Int2 => Data::U8(data.into_iter().map(|x| x as u8).collect()),
            DType::Int64 | DType::Uint64 => Data::I64(data),
            DType::Int32 | DType::Uint32 | DType::Int16 | DType::Uint16 => {
                Data::I64(data.into_iter().map(|x| wrap_int(dtype, x)).collect())
            }
            other => return Err(Fault(format!("{other} is no integer type of the runtime"))),
        };
        Self::new(dtype, dims, data)
    }

    /// Booleans.
    pub(crate) fn from_bools(dims: Vec<usize>, data: Vec<u8>) -> KResult<Self> {
        Self::new(DType::Bool, dims, Data::U8(data))
    }

    /// ONNX element type.
    pub(crate) fn dtype(&self) -> DType {
        self.dtype
    }

    /// Dimensions.
    pub(crate) fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// The elements as stored.
    pub(crate) fn data(&self) -> &Data {
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

    /// A strided part, copied.
    pub(crate) fn strided(
        &self,
        dims: Vec<usize>,
        offset: usize,
        strides: &[usize],
    ) -> KResult<Self> {
        fn copied<T: Copy + Default + Send + Sync>(
            v: &[T],
            dims: &[usize],
            offset: usize,
            strides: &[usize],
        ) -> KResult<Vec<T>> {
            let mut out = vec![T::default(); count(dims)?];
            let view = View {
                data: v.get(offset..).unwrap_or_default(),
                dims: dims.into(),
                strides: strides.into(),
            };
            walk::copy(&view, &mut out);
            Ok(out)
        }
        let data = match &*self.data {
            Data::I64(v) => Data::I64(copied(v, &dims, offset, strides)?),
            Data::U8(v) => Data::U8(copied(v, &dims, offset, strides)?),
            Data::F64(v) => Data::F64(copied(v, &dims, offset, strides)?),
        };
        Host::new(self.dtype, dims, data)
    }

    /// The elements as integers.
    pub(crate) fn ints(&self) -> KResult<Cow<'_, [i64]>> {
        Ok(match &*self.data {
            Data::I64(v) => Cow::Borrowed(v.as_slice()),
            Data::U8(v) if matches!(self.dtype, DType::Int8 | DType::Int4 | DType::Int2) => {
                v.iter().map(|&x| i64::from(x as i8)).collect()
            }
            Data::U8(v) => v.iter().map(|&x| i64::from(x)).collect(),
            Data::F64(_) => {
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
