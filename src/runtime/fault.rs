//! What kernels answer when they cannot compute.

/// Why a kernel cannot compute: what was found and what was expected. The plan adds the node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Fault(pub(crate) String);

/// What kernels answer.
pub(crate) type KResult<T> = Result<T, Fault>;

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

impl From<onnx_graft_kernels::KernelError> for Fault {
    fn from(e: onnx_graft_kernels::KernelError) -> Self {
        Fault(e.to_string())
    }
}
