//! Where a plan computes, and how precisely.

use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use std::sync::{Mutex, PoisonError};

/// Where float tensors live.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Device {
    /// Memory of the host.
    #[default]
    Cpu,
    /// A CUDA device, by its ordinal. Needs the feature `cuda`.
    Cuda(usize),
}

/// In which precision operands of matrix products may be rounded on the CPU; sums and everything else are `f32`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// Operands as they are.
    #[default]
    F32,
    /// Operands may be rounded to bfloat16 where the machine has instructions for it.
    Bf16,
}

impl Precision {
    /// The same, as the kernels say it.
    pub(crate) fn of_kernels(self) -> onnx_graft_kernels::gemm::Precision {
        match self {
            Precision::F32 => onnx_graft_kernels::gemm::Precision::F32,
            Precision::Bf16 => onnx_graft_kernels::gemm::Precision::Bf16,
        }
    }
}

/// A device by name: `cpu`, `cuda` or `cuda:N`.
///
/// # Errors
/// An unknown name, or a device that this build or machine does not have.
pub fn device(name: &str) -> Result<Device> {
    let device = named(name)?;
    device.open_as(name)?;
    Ok(device)
}

/// The device that a name means, whether or not it is there.
///
/// # Errors
/// An unknown name.
pub(crate) fn named(name: &str) -> Result<Device> {
    let device = match name.split_once(':') {
        None if name == "cpu" => Some(Device::Cpu),
        None if name == "cuda" => Some(Device::Cuda(0)),
        Some(("cuda", n)) => n.parse().ok().map(Device::Cuda),
        _ => None,
    };
    device.ok_or_else(|| {
        wrong(
            format!("there is no device `{name}`"),
            "cpu, cuda or cuda:N",
        )
    })
}

impl Device {
    /// candle's handle. Values move between plans, so one ordinal is one handle in the whole process.
    pub(crate) fn open(self) -> Result<candle_core::Device> {
        match self {
            Device::Cpu => Ok(candle_core::Device::Cpu),
            Device::Cuda(n) => self.open_as(&format!("cuda:{n}")),
        }
    }

    /// [`Device::open`], with the name by which the user asked for the device.
    fn open_as(self, name: &str) -> Result<candle_core::Device> {
        static OPENED: Mutex<Vec<(usize, candle_core::Device)>> = Mutex::new(Vec::new());
        let Device::Cuda(ordinal) = self else {
            return Ok(candle_core::Device::Cpu);
        };
        let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, device)) = opened.iter().find(|(n, _)| *n == ordinal) {
            return Ok(device.clone());
        }
        let device = candle_core::Device::new_cuda(ordinal).map_err(|e| {
            wrong(
                format!("`{name}` cannot be used: {e}"),
                "build with the feature `cuda` on a machine with its driver, or use cpu",
            )
        })?;
        opened.push((ordinal, device.clone()));
        Ok(device)
    }
}

fn wrong(message: String, help: &str) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        Diagnostic::error("device", message).help(help),
    )
}
