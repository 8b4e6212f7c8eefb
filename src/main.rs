//! The `rewrite` binary: everything is in [`onnx_graft::cli`].

use std::process::ExitCode;

/// Work of third-party code has a limit of memory.
#[global_allocator]
static ALLOCATOR: onnx_graft::cli::Allocator = onnx_graft::cli::Allocator;

fn main() -> ExitCode {
    onnx_graft::cli::main()
}
