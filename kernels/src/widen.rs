//! Stored floats: their types, and how they become `f32`.

use crate::{Result, check_len, product};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// Element type of stored floats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DType {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a single.
    Bf16,
}

impl DType {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            DType::F32 => 4,
            DType::F16 | DType::Bf16 => 2,
        }
    }
}

/// Converts little-endian elements of any alignment to `f32`.
pub fn widen(dtype: DType, bytes: &[u8], out: &mut [f32]) -> Result<()> {
    check_len(
        "stored bytes",
        bytes.len(),
        product("stored elements", &[out.len(), dtype.size()])?,
    )?;
    widen_all(dtype, bytes, out);
    Ok(())
}

/// [`widen()`] for lengths that are known to agree.
pub(crate) fn widen_all(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    match dtype {
        DType::F32 => {
            for (out, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *out = f32::from_le_bytes(*b);
            }
        }
        DType::F16 => {
            // Eight at a time, for which processors have an instruction.
            for (out, b) in out.chunks_mut(8).zip(bytes.chunks(16)) {
                let mut few = [f16::ZERO; 8];
                for (few, b) in few.iter_mut().zip(b.as_chunks::<2>().0) {
                    *few = f16::from_le_bytes(*b);
                }
                few[..out.len()].convert_to_f32_slice(out);
            }
        }
        DType::Bf16 => {
            for (out, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *out = bf16::from_le_bytes(*b).to_f32();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_at_an_odd_address() {
        let single: &[u8] = &[0xaa, 0, 0, 0x80, 0x3f, 0, 0, 0x20, 0xc0];
        let half: &[u8] = &[0xaa, 0, 0x3c, 0, 0xc1];
        let brain: &[u8] = &[0xaa, 0x80, 0x3f, 0x20, 0xc0];
        let mut out = [0.0; 2];
        for (dtype, bytes) in [
            (DType::F32, single),
            (DType::F16, half),
            (DType::Bf16, brain),
        ] {
            widen(dtype, &bytes[1..], &mut out).unwrap();
            assert_eq!(out.map(f32::to_bits), [1f32, -2.5].map(f32::to_bits));
        }
        assert!(widen(DType::Bf16, &[0; 3], &mut out).is_err());
    }
}
