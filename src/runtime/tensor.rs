//! Tensors as callers see them: what a plan is fed with and what it makes.

use super::io;
use super::value::Value;
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use crate::ir::DType;

/// A tensor of a plan, in the form in which the plan keeps it.
///
/// ```
/// use onnx_graft::runtime::Tensor;
///
/// let x = Tensor::from_f32(&[2, 1], vec![0.5, 1.0])?;
/// assert_eq!((x.dims(), x.to_f32()?), (&[2, 1][..], vec![0.5, 1.0]));
/// assert!(Tensor::from_i64(&[3], vec![1]).is_err());
/// # Ok::<(), onnx_graft::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Tensor(pub(crate) Value);

impl From<Value> for Tensor {
    fn from(value: Value) -> Self {
        Tensor(value)
    }
}

impl Tensor {
    /// `f32` elements in row-major order.
    ///
    /// # Errors
    /// [`ErrorKind::Run`]: more or fewer elements than the dimensions say.
    pub fn from_f32(dims: &[usize], data: Vec<f32>) -> Result<Self> {
        Value::from_f32(dims, data).map(Tensor).map_err(refused)
    }

    /// `i64` elements in row-major order.
    ///
    /// # Errors
    /// [`ErrorKind::Run`]: more or fewer elements than the dimensions say.
    pub fn from_i64(dims: &[usize], data: Vec<i64>) -> Result<Self> {
        Value::from_i64(dims, data).map(Tensor).map_err(refused)
    }

    /// Elements of any type in row-major order, little-endian, as files have them.
    ///
    /// ```
    /// use onnx_graft::ir::DType;
    /// use onnx_graft::runtime::Tensor;
    ///
    /// let x = Tensor::from_bytes(DType::Int32, &[2], &[7, 0, 0, 0, 255, 255, 255, 255])?;
    /// assert_eq!((x.to_i64()?, x.to_bytes()?), (vec![7, -1], vec![7, 0, 0, 0, 255, 255, 255, 255]));
    /// # Ok::<(), onnx_graft::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::Run`]: more or fewer bytes than type and dimensions say; a type that is not computed with.
    pub fn from_bytes(dtype: DType, dims: &[usize], bytes: &[u8]) -> Result<Self> {
        let count = super::walk::count(dims).map_err(refused)?;
        if dtype.bytes_for(count as u64) != Some(bytes.len() as u64) {
            let found = format!("{} bytes for {dtype} of shape {dims:?}", bytes.len());
            return Err(refused(super::value::Fault(found)));
        }
        io::value_of(dtype, dims.to_vec(), bytes)
            .map(Tensor)
            .map_err(refused)
    }

    /// The elements in row-major order, little-endian, as files have them.
    ///
    /// # Errors
    /// [`ErrorKind::Run`]: elements of a type that no file has, or that cannot be read from their device.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        io::pack(&self.0).map(|p| p.bytes).map_err(refused)
    }

    /// ONNX element type.
    pub fn dtype(&self) -> DType {
        self.0.dtype()
    }

    /// Dimensions.
    pub fn dims(&self) -> &[usize] {
        self.0.dims()
    }

    /// The elements as `f32`; integers are converted.
    ///
    /// # Errors
    /// [`ErrorKind::Run`]: the elements cannot be read from their device.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        self.0.to_f32().map_err(refused)
    }

    /// The elements as integers.
    ///
    /// # Errors
    /// [`ErrorKind::Run`]: the elements are floats.
    pub fn to_i64(&self) -> Result<Vec<i64>> {
        self.0.to_ints().map_err(refused)
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the form of `map_err`")]
fn refused(fault: super::value::Fault) -> Error {
    Error::new(
        ErrorKind::Run,
        Diagnostic::error("run-tensor", fault.to_string()),
    )
}
