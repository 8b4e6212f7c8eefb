//! Compute kernels for running and training Transformers on the CPU, as functions on slices.
//!
//! Every public function checks its sizes and answers with a [`KernelError`]; none panics, none allocates per element. The kernels
//! know nothing about graphs, tensors or devices. Within [`team::Team::run`] they share their tasks with the team's threads, as many as the
//! size is worth; elsewhere they run on the caller's.
//!
//! Results do not depend on the number of threads: each output element is computed by one task, and a reduction over rows sums
//! fixed blocks in a fixed order. They may depend on the instruction set, which is probed at run time: AVX-512, AVX2 or what the
//! compiler may assume, and for products in bfloat16 AMX tiles or the AVX-512 dot product. Inside, it is an argument, so that the tests
//! force every one that the machine has.
//!
//! ```
//! use onnx_graft_kernels::gemm::{Mat, MatMut, Precision, Term, gemm};
//!
//! let (a, b) = ([1.0, 2.0, 3.0, 4.0], [5.0, 6.0]);
//! let mut c = [0.0; 2];
//! let product = Term::new(Mat::new(&a, 2, 2)?, Mat::new(&b, 2, 1)?);
//! gemm(Precision::F32, &[product], false, MatMut::new(&mut c, 2, 1)?)?;
//! assert_eq!(c, [17.0, 39.0]);
//! # Ok::<(), onnx_graft_kernels::KernelError>(())
//! ```

mod scratch;
#[macro_use]
mod isa;
mod simd;

pub mod activation;
pub mod adamw;
pub mod attention;
pub mod cross_entropy;
pub mod gemm;
mod heads;
pub mod norm;
pub mod pool;
pub mod rotary;
pub mod softmax;
pub mod team;
mod widen;

pub use heads::Heads;
pub use widen::{DType, widen};

/// What a kernel refuses to compute.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// A slice is shorter or longer than its shape says.
    #[error("{what} has {found} elements, its shape needs {expected}")]
    Length {
        /// Which operand.
        what: &'static str,
        /// Elements in the slice.
        found: usize,
        /// Elements the shape asks for.
        expected: usize,
    },
    /// Two operands disagree about a dimension, or a dimension is not allowed.
    #[error("{what} is {found}, expected {expected}")]
    Dim {
        /// Which dimension of which operand.
        what: &'static str,
        /// The value given.
        found: usize,
        /// The value that fits.
        expected: usize,
    },
    /// A shape whose element count does not fit in memory.
    #[error("the size of {what} overflows")]
    Overflow {
        /// Which operand.
        what: &'static str,
    },
    /// An index outside its table.
    #[error("{what} {index} is outside 0..{bound}")]
    Index {
        /// What the index selects.
        what: &'static str,
        /// The index given.
        index: i64,
        /// The first index that is too large.
        bound: usize,
    },
}

/// What a kernel answers.
pub type Result<T, E = KernelError> = std::result::Result<T, E>;

/// Checks that `found` is exactly `expected` elements long.
pub(crate) fn check_len(what: &'static str, found: usize, expected: usize) -> Result<()> {
    if found == expected {
        Ok(())
    } else {
        Err(KernelError::Length {
            what,
            found,
            expected,
        })
    }
}

/// Checks that a dimension has the value the other operands imply.
pub(crate) fn check_dim(what: &'static str, found: usize, expected: usize) -> Result<()> {
    if found == expected {
        Ok(())
    } else {
        Err(KernelError::Dim {
            what,
            found,
            expected,
        })
    }
}

/// The product of `dims`, or an error naming `what`.
pub(crate) fn product(what: &'static str, dims: &[usize]) -> Result<usize> {
    dims.iter()
        .try_fold(1usize, |acc, &dim| acc.checked_mul(dim))
        .filter(|&len| len <= isize::MAX as usize / 8)
        .ok_or(KernelError::Overflow { what })
}

/// How many rows of `width` elements one task should take: enough work to be worth a thread, never zero.
pub(crate) fn rows_per_task(width: usize) -> usize {
    const ELEMENTS: usize = 16 * 1024;
    (ELEMENTS / width.max(1)).max(1)
}

/// Elements of an element-wise task.
pub(crate) const CHUNK: usize = 16 * 1024;

/// Whether `elements` of simple work are worth several threads.
pub(crate) fn is_large(elements: usize) -> bool {
    elements > 2 * CHUNK && team::threads() > 1
}

/// How many rows of `width` elements lie in `len`, or an error naming `what` if they do not fill it.
pub(crate) fn rows_of(what: &'static str, len: usize, width: usize) -> Result<usize> {
    if width == 0 || !len.is_multiple_of(width) {
        let expected = (len / width.max(1)) * width;
        return Err(KernelError::Length {
            what,
            found: len,
            expected,
        });
    }
    Ok(len / width)
}

#[cfg(test)]
mod testing;
