//! The `rewrite` binary: everything is in [`onnx_graft::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    onnx_graft::cli::main()
}
