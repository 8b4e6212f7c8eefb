//! Files of `torch.save`: a zip archive with a pickle of tensors, or, before torch 1.6, pickles one behind the other. Reads and writes dictionaries of tensors and nothing else: the
//! pickle machine knows the handful of functions that rebuild tensors, and never runs anything.

mod pickle;
mod zip;

use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use crate::ir::TensorData;
use bytes::Bytes;
use indexmap::IndexMap;
use rustc_hash::FxHashMap;

/// Reads a dictionary of tensors. Contiguous tensors are ranges of `bytes`.
///
/// # Errors
/// For anything that is not such a dictionary; nothing is allocated beyond the size of the file.
pub(crate) fn read(bytes: &Bytes) -> Result<IndexMap<Box<str>, TensorData>> {
    inner(bytes).map_err(|message| {
        Error::new(
            ErrorKind::Decode,
            Diagnostic::error("torch-file", message)
                .help("save it again with a current torch, as a dictionary of tensors, or use safetensors"),
        )
    })
}

fn inner(bytes: &Bytes) -> Result<IndexMap<Box<str>, TensorData>, String> {
    if pickle::is_old(bytes) {
        return pickle::old_tensors(bytes);
    }
    // Of entries with the same path, the first one counts.
    let mut entries: FxHashMap<String, Bytes> = FxHashMap::default();
    for (path, content) in zip::entries(bytes)? {
        if let Some((_, inside)) = path.split_once('/') {
            entries.entry(inside.to_owned()).or_insert(content);
        }
    }
    let find = |name: &str| entries.get(name).cloned();
    if find("byteorder").is_some_and(|b| &b[..] == b"big") {
        return Err("the numbers are big-endian".into());
    }
    let data = find("data.pkl").ok_or("there is no data.pkl in the archive")?;
    pickle::tensors(&data, &|key| find(&format!("data/{key}")), bytes.len())
}

/// Writes a dictionary of tensors, such that `torch.load(weights_only=True)` gives it back.
///
/// # Errors
/// For element types that torch has no storage class for, and beyond 4 GB.
pub(crate) fn write(name: &str, tensors: &IndexMap<Box<str>, TensorData>) -> Result<Vec<u8>> {
    let wrong = |message: String| {
        Error::new(
            ErrorKind::Unsupported,
            Diagnostic::error("torch-file", message),
        )
    };
    let mut entries: Vec<(String, Bytes)> = Vec::with_capacity(tensors.len() + 3);
    entries.push((
        "data.pkl".into(),
        pickle::write(tensors).map_err(wrong)?.into(),
    ));
    entries.push(("byteorder".into(), Bytes::from_static(b"little")));
    for (i, (key, tensor)) in tensors.iter().enumerate() {
        let data = tensor
            .bytes()
            .ok_or_else(|| wrong(format!("`{key}` has no elements")))?;
        entries.push((format!("data/{i}"), data));
    }
    entries.push(("version".into(), Bytes::from_static(b"3\n")));
    zip::write(name, &entries).map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> IndexMap<Box<str>, TensorData> {
        let mut t = IndexMap::new();
        t.insert(
            "a.weight".into(),
            TensorData::from_f32([2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
        );
        t.insert("b".into(), TensorData::from_f32([], &[7.5]));
        t.insert("c".into(), TensorData::ints(&[-1, 2]));
        t
    }

    #[test]
    fn what_is_written_is_read() {
        let bytes = Bytes::from(write("pytorch_adapter", &sample()).unwrap());
        assert_eq!(read(&bytes).unwrap(), sample());
    }

    fn fixture(name: &str) -> Bytes {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        std::fs::read(path.join("fixtures/torch").join(name))
            .unwrap()
            .into()
    }

    /// Views of one storage, a transposed one among them, and half precision; saved with `_use_new_zipfile_serialization=False`.
    #[test]
    fn the_container_of_torch_before_1_6_is_read() {
        let file = fixture("old.bin");
        let found = read(&file).unwrap();
        for (name, tensor) in sample() {
            assert_eq!(found[&name], tensor, "{name}");
        }
        let floats = |name: &str| found[name].to_f32().unwrap();
        assert_eq!(floats("d"), [1.0, 2.0]);
        assert_eq!(&*found["e"].dims, [3, 2]);
        assert_eq!(floats("e"), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        assert_eq!(found["f"].dtype, crate::ir::DType::Float16);
        assert_eq!(floats("f"), [0.5, -2.0]);
        for n in 0..file.len() {
            assert!(read(&file.slice(..n)).is_err(), "cut at {n}");
            let mut bad = file.to_vec();
            bad[n] ^= 0x55;
            let _ = read(&bad.into());
        }
    }

    #[test]
    fn an_expanded_tensor_has_its_numbers_again() {
        let found = read(&fixture("expanded.bin")).unwrap();
        assert_eq!(found["a"], TensorData::from_f32([3], &[2.0; 3]));
        assert_eq!(
            found["b"],
            TensorData::from_f32([2, 2], &[1.0, 1.0, 2.0, 2.0])
        );
    }

    /// Every prefix, and every file with one byte changed, is read or refused, without a panic.
    #[test]
    fn damaged_files_are_refused() {
        let good = write("x", &sample()).unwrap();
        for n in 0..good.len() {
            let _ = read(&Bytes::copy_from_slice(&good[..n]));
            for flip in [0x01, 0x80, 0xff] {
                let mut bad = good.clone();
                bad[n] ^= flip;
                let _ = read(&bad.into());
            }
        }
        assert!(read(&Bytes::new()).is_err());
    }
}
