//! Matrices, stored weights and the products of them: what [`gemm`](super::gemm()) takes.

use super::raw::{RawA, RawB, RawTerm};
use crate::{DType, KernelError, Result, check_dim, check_len, product};

/// A row-major `f32` matrix, possibly part of a wider one.
#[derive(Clone, Copy, Debug)]
pub struct Mat<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    stride: usize,
}

impl<'a> Mat<'a> {
    /// All of `data` as `[rows, cols]`.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Result<Self> {
        check_len("matrix", data.len(), product("matrix", &[rows, cols])?)?;
        Ok(Self {
            data,
            rows,
            cols,
            stride: cols,
        })
    }

    /// `[rows, cols]` from the start of `data`, rows `stride` elements apart.
    pub fn strided(data: &'a [f32], rows: usize, cols: usize, stride: usize) -> Result<Self> {
        check_strided("matrix", data.len(), rows, cols, stride)?;
        Ok(Self {
            data,
            rows,
            cols,
            stride,
        })
    }
}

/// A row-major `f32` matrix to write.
#[derive(Debug)]
pub struct MatMut<'a> {
    pub(super) data: &'a mut [f32],
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) stride: usize,
}

impl<'a> MatMut<'a> {
    /// All of `data` as `[rows, cols]`.
    pub fn new(data: &'a mut [f32], rows: usize, cols: usize) -> Result<Self> {
        check_len("result", data.len(), product("result", &[rows, cols])?)?;
        Ok(Self {
            data,
            rows,
            cols,
            stride: cols,
        })
    }

    /// `[rows, cols]` from the start of `data`, rows `stride` elements apart; what lies between is not touched.
    pub fn strided(data: &'a mut [f32], rows: usize, cols: usize, stride: usize) -> Result<Self> {
        check_strided("result", data.len(), rows, cols, stride)?;
        Ok(Self {
            data,
            rows,
            cols,
            stride,
        })
    }
}

fn check_strided(
    what: &'static str,
    len: usize,
    rows: usize,
    cols: usize,
    stride: usize,
) -> Result<()> {
    if stride < cols {
        return Err(KernelError::Dim {
            what: "row stride",
            found: stride,
            expected: cols,
        });
    }
    let last = product(what, &[rows.saturating_sub(1), stride])?;
    let needed = if rows == 0 { 0 } else { last + cols };
    if len < needed {
        Err(KernelError::Length {
            what,
            found: len,
            expected: needed,
        })
    } else {
        Ok(())
    }
}

/// A stored weight `[rows, cols]`, row-major, little endian, at any alignment.
#[derive(Clone, Copy, Debug)]
pub struct WeightRef<'a> {
    dtype: DType,
    bytes: &'a [u8],
    rows: usize,
    cols: usize,
}

impl<'a> WeightRef<'a> {
    /// A weight over the bytes of a file or a buffer.
    pub fn new(dtype: DType, bytes: &'a [u8], rows: usize, cols: usize) -> Result<Self> {
        check_len(
            "weight bytes",
            bytes.len(),
            product("weight", &[rows, cols, dtype.size()])?,
        )?;
        Ok(Self {
            dtype,
            bytes,
            rows,
            cols,
        })
    }
}

/// A right operand.
#[derive(Clone, Copy, Debug)]
pub enum Rhs<'a> {
    /// An activation or a trained parameter.
    Mat(Mat<'a>),
    /// A stored weight.
    Weight(WeightRef<'a>),
}

impl<'a> From<Mat<'a>> for Rhs<'a> {
    fn from(mat: Mat<'a>) -> Self {
        Rhs::Mat(mat)
    }
}

impl<'a> From<WeightRef<'a>> for Rhs<'a> {
    fn from(weight: WeightRef<'a>) -> Self {
        Rhs::Weight(weight)
    }
}

impl Rhs<'_> {
    /// Rows and columns as stored.
    pub(crate) fn dims(&self) -> (usize, usize) {
        match self {
            Rhs::Mat(mat) => (mat.rows, mat.cols),
            Rhs::Weight(weight) => (weight.rows, weight.cols),
        }
    }
}

/// One product `alpha · op(A) · op(B)`; `op` transposes if its flag is set.
#[derive(Clone, Copy, Debug)]
pub struct Term<'a> {
    /// Factor of the product.
    pub alpha: f32,
    /// Left operand, `[M, K]`, or `[K, M]` if `trans_a`.
    pub a: Mat<'a>,
    /// Whether A is stored transposed.
    pub trans_a: bool,
    /// Right operand, `[K, N]`, or `[N, K]` if `trans_b`.
    pub b: Rhs<'a>,
    /// Whether B is stored transposed.
    pub trans_b: bool,
}

impl<'a> Term<'a> {
    /// `A · B`, both as stored.
    pub fn new(a: Mat<'a>, b: impl Into<Rhs<'a>>) -> Self {
        Self {
            alpha: 1.0,
            a,
            trans_a: false,
            b: b.into(),
            trans_b: false,
        }
    }

    /// The same product with A transposed.
    #[must_use]
    pub fn trans_a(self) -> Self {
        Self {
            trans_a: !self.trans_a,
            ..self
        }
    }

    /// The same product with B transposed.
    #[must_use]
    pub fn trans_b(self) -> Self {
        Self {
            trans_b: !self.trans_b,
            ..self
        }
    }

    /// The same product, scaled.
    #[must_use]
    pub fn scaled(self, alpha: f32) -> Self {
        Self {
            alpha: self.alpha * alpha,
            ..self
        }
    }

    /// Checks the operands against `[m, n]` and drops the lifetimes.
    pub(super) fn raw(&self, m: usize, n: usize) -> Result<RawTerm> {
        let (a_rows, k) = if self.trans_a {
            (self.a.cols, self.a.rows)
        } else {
            (self.a.rows, self.a.cols)
        };
        check_dim("rows of the left operand", a_rows, m)?;
        let (b_rows, b_cols) = self.b.dims();
        let (b_k, b_n) = if self.trans_b {
            (b_cols, b_rows)
        } else {
            (b_rows, b_cols)
        };
        check_dim("depth of the right operand", b_k, k)?;
        check_dim("columns of the right operand", b_n, n)?;
        let a = RawA::new(self.a.data.as_ptr(), self.a.stride, self.trans_a);
        let b = match self.b {
            Rhs::Mat(mat) => RawB::new(
                DType::F32,
                mat.data.as_ptr().cast(),
                mat.stride,
                self.trans_b,
            ),
            Rhs::Weight(weight) => RawB::new(
                weight.dtype,
                weight.bytes.as_ptr(),
                weight.cols,
                self.trans_b,
            ),
        };
        Ok(RawTerm {
            alpha: self.alpha,
            a,
            b,
            k,
        })
    }
}
