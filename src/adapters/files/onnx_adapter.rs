//! ONNX Runtime's adapter files (`.onnx_adapter`): named tensors in a flat buffer, which `LoraAdapter` maps and hands to a session as
//! inputs.
//!
//! Specification: `onnxruntime/lora/adapter_format/adapter_schema.fbs`, format version 1. What is read is a slice of the file; every offset
//! is checked, because the file is not trusted. What is written is aligned to 8 bytes, so that a runtime can use it where it is mapped.

use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use crate::ir::{DType, TensorData};
use bytes::Bytes;
use indexmap::IndexMap;

/// The end of such a file's name.
pub(crate) const EXTENSION: &str = "onnx_adapter";

/// What stands at byte 4.
const IDENTIFIER: &[u8; 4] = b"TORT";

/// The version of the format.
const VERSION: i32 = 1;

/// An adapter as ONNX Runtime loads it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct OnnxAdapter {
    /// Version of the adapter, its author's.
    pub adapter_version: i32,
    /// Version of the model, its author's.
    pub model_version: i32,
    /// The parameters, by the names of the graph's inputs.
    pub tensors: IndexMap<Box<str>, TensorData>,
}

/// The fields of the two tables, in the order of the schema: four each.
mod field {
    pub(super) const FORMAT_VERSION: usize = 0;
    pub(super) const ADAPTER_VERSION: usize = 1;
    pub(super) const MODEL_VERSION: usize = 2;
    pub(super) const PARAMETERS: usize = 3;
    pub(super) const NAME: usize = 0;
    pub(super) const DIMS: usize = 1;
    pub(super) const DATA_TYPE: usize = 2;
    pub(super) const RAW_DATA: usize = 3;
}

/// Reads a file; the tensors are ranges of `bytes`, in the order of the file.
///
/// # Errors
/// [`ErrorKind::Decode`]: a file that is none, one of another version, one that is cut off or contradicts itself.
pub(crate) fn read(bytes: &Bytes) -> Result<OnnxAdapter> {
    let reader = Reader { bytes };
    if bytes.get(4..8) != Some(IDENTIFIER) {
        let found = "this is no adapter file of ONNX Runtime: bytes 4 to 7 are not `TORT`";
        return Err(wrong(found).with_help("make one with `rewrite export-adapter`"));
    }
    let root = reader.table(0)?;
    let version = reader.int(&root, field::FORMAT_VERSION)?;
    if version != VERSION {
        let found = format!("the adapter file is of format version {version}");
        return Err(
            wrong(found).with_help("version 1 is the one that ONNX Runtime 1.20 and later write")
        );
    }
    let mut tensors = IndexMap::new();
    if let Some(at) = reader.reference(&root, field::PARAMETERS)? {
        let (start, count) = reader.vector(at, 4)?;
        for i in 0..count {
            let param = reader.table(start + 4 * i)?;
            let (name, tensor) = reader.parameter(&param)?;
            if tensors.insert(name.clone(), tensor).is_some() {
                return Err(wrong(format!("the adapter file has two parameters `{name}`")).into());
            }
        }
    }
    Ok(OnnxAdapter {
        adapter_version: reader.int(&root, field::ADAPTER_VERSION)?,
        model_version: reader.int(&root, field::MODEL_VERSION)?,
        tensors,
    })
}

/// The bytes of a file.
///
/// # Errors
/// [`ErrorKind::Unsupported`]: a tensor without elements in memory, of a type that the format does not have, or more than 2 GiB in all.
pub(crate) fn write(adapter: &OnnxAdapter) -> Result<Vec<u8>> {
    let refused = |what: String| {
        let d = Diagnostic::error("onnx-adapter", what);
        Error::new(ErrorKind::Unsupported, d)
    };
    let mut w = Writer::default();
    // The root's offset, the identifier, and the one table of offsets that both kinds of table have.
    w.bytes.extend([0; 4]);
    w.bytes.extend(IDENTIFIER);
    for n in [12u16, 20, 4, 8, 12, 16] {
        w.bytes.extend(n.to_le_bytes());
    }
    let root = w.table([VERSION, adapter.adapter_version, adapter.model_version, 0]);
    w.point(0, root);
    w.point(root + 16, w.bytes.len());
    w.length(adapter.tensors.len());
    let offsets = w.bytes.len();
    w.bytes.resize(offsets + 4 * adapter.tensors.len(), 0);
    for (i, (name, tensor)) in adapter.tensors.iter().enumerate() {
        let data = tensor.bytes();
        let data = data.ok_or_else(|| refused(format!("`{name}` has no elements")))?;
        let code = tensor.dtype.code();
        if !(1..=LAST_TYPE).contains(&code) || tensor.dtype == DType::String {
            let found = format!(
                "`{name}` is {}, which an adapter file cannot hold",
                tensor.dtype
            );
            return Err(refused(found));
        }
        let table = w.table([0, 0, code, 0]);
        w.point(offsets + 4 * i, table);
        w.point(table + 4, w.bytes.len());
        w.length(name.len());
        w.bytes.extend(name.as_bytes());
        w.bytes.push(0);
        w.pad(4, 8);
        w.point(table + 8, w.bytes.len());
        w.length(tensor.dims.len());
        for d in &tensor.dims {
            w.bytes.extend(d.to_le_bytes());
        }
        w.pad(4, 8);
        w.point(table + 16, w.bytes.len());
        w.length(data.len());
        w.bytes.extend(&*data);
        w.pad(0, 4);
    }
    if i32::try_from(w.bytes.len()).is_err() {
        let found = "the adapter has more than 2 GiB, which its format has no offsets for";
        return Err(refused(found.to_owned()));
    }
    Ok(w.bytes)
}

/// The last element type of the format: `FLOAT8E5M2FNUZ`.
const LAST_TYPE: i32 = 20;

/// Where the table of offsets stands that all tables have.
const FIELDS: i32 = 8;

/// What was written so far.
#[derive(Default)]
struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// Fills up until the length is `rest` above a multiple of `of`.
    fn pad(&mut self, rest: usize, of: usize) {
        while self.bytes.len() % of != rest % of {
            self.bytes.push(0);
        }
    }

    /// A table of four fields. Where it stands.
    fn table(&mut self, fields: [i32; 4]) -> usize {
        self.pad(0, 4);
        let at = self.bytes.len();
        let back = i32::try_from(at).unwrap_or(i32::MAX) - FIELDS;
        self.bytes.extend(back.to_le_bytes());
        for f in fields {
            self.bytes.extend(f.to_le_bytes());
        }
        at
    }

    fn length(&mut self, n: usize) {
        let n = u32::try_from(n).unwrap_or(u32::MAX);
        self.bytes.extend(n.to_le_bytes());
    }

    /// Has the offset at one place say another one, which is behind it.
    fn point(&mut self, at: usize, to: usize) {
        let distance = u32::try_from(to - at).unwrap_or(u32::MAX);
        self.bytes[at..at + 4].copy_from_slice(&distance.to_le_bytes());
    }
}

/// A table: where it stands, and where its table of offsets stands with how many bytes.
struct Table {
    at: usize,
    offsets: usize,
    len: usize,
}

struct Reader<'b> {
    bytes: &'b Bytes,
}

impl Reader<'_> {
    fn array<const N: usize>(&self, at: usize) -> Result<[u8; N]> {
        let found = at.checked_add(N).and_then(|end| self.bytes.get(at..end));
        let found = found.and_then(|b| b.try_into().ok());
        found.ok_or_else(|| cut_off(at))
    }

    fn u32(&self, at: usize) -> Result<usize> {
        Ok(u32::from_le_bytes(self.array(at)?) as usize)
    }

    /// Where the offset at a place points to.
    fn target(&self, at: usize) -> Result<usize> {
        at.checked_add(self.u32(at)?).ok_or_else(|| cut_off(at))
    }

    /// The table that the offset at a place points to.
    fn table(&self, at: usize) -> Result<Table> {
        let at = self.target(at)?;
        let back = i64::from(i32::from_le_bytes(self.array(at)?));
        let offsets = i64::try_from(at).ok().and_then(|at| at.checked_sub(back));
        let offsets = offsets.and_then(|o| usize::try_from(o).ok());
        let offsets = offsets.ok_or_else(|| cut_off(at))?;
        let len = usize::from(u16::from_le_bytes(self.array(offsets)?));
        Ok(Table { at, offsets, len })
    }

    /// Where a field of a table stands; `None` for one that has its default.
    fn field(&self, table: &Table, index: usize) -> Result<Option<usize>> {
        let slot = 4 + 2 * index;
        if slot + 2 > table.len {
            return Ok(None);
        }
        let offset = u16::from_le_bytes(self.array(table.offsets + slot)?);
        Ok((offset > 0).then(|| table.at + usize::from(offset)))
    }

    fn int(&self, table: &Table, index: usize) -> Result<i32> {
        let at = self.field(table, index)?;
        at.map_or(Ok(0), |at| Ok(i32::from_le_bytes(self.array(at)?)))
    }

    /// Where what a field refers to stands.
    fn reference(&self, table: &Table, index: usize) -> Result<Option<usize>> {
        let at = self.field(table, index)?;
        at.map(|at| self.target(at)).transpose()
    }

    /// First byte and length of a vector whose elements have `size` bytes.
    fn vector(&self, at: usize, size: usize) -> Result<(usize, usize)> {
        let count = self.u32(at)?;
        let start = at + 4;
        let end = count.checked_mul(size).and_then(|n| start.checked_add(n));
        match end {
            Some(end) if end <= self.bytes.len() => Ok((start, count)),
            Some(_) | None => Err(cut_off(at)),
        }
    }

    fn parameter(&self, table: &Table) -> Result<(Box<str>, TensorData)> {
        let missing = |what: &str| wrong(format!("a parameter of the adapter file has no {what}"));
        let name = self.reference(table, field::NAME)?;
        let (start, len) = self.vector(name.ok_or_else(|| missing("name"))?, 1)?;
        let name = std::str::from_utf8(&self.bytes[start..start + len]);
        let name = name.map_err(|_| wrong("a name in the adapter file is not UTF-8"))?;
        let code = self.int(table, field::DATA_TYPE)?;
        let known = (1..=LAST_TYPE).contains(&code);
        let dtype = DType::from_code(code).filter(|d| known && *d != DType::String);
        let dtype = dtype.ok_or_else(|| {
            wrong(format!(
                "`{name}` has the element type {code}, which is none"
            ))
        })?;
        let mut dims: Vec<u64> = Vec::new();
        if let Some(at) = self.reference(table, field::DIMS)? {
            let (start, count) = self.vector(at, 8)?;
            for i in 0..count {
                let d = i64::from_le_bytes(self.array(start + 8 * i)?);
                let d =
                    u64::try_from(d).map_err(|_| wrong(format!("`{name}` has the size {d}")))?;
                dims.push(d);
            }
        }
        let (start, len) = match self.reference(table, field::RAW_DATA)? {
            Some(at) => self.vector(at, 1)?,
            None => (0, 0),
        };
        let count = dims.iter().try_fold(1u64, |n, d| n.checked_mul(*d));
        let wanted = count.and_then(|n| dtype.bytes_for(n));
        if wanted != Some(len as u64) {
            let found = format!("`{name}` is {dtype} {dims:?}, and has {len} bytes");
            return Err(wrong(found).into());
        }
        let data = self.bytes.slice(start..start + len);
        Ok((name.into(), TensorData::raw(dtype, dims, data)))
    }
}

/// A finding about the file.
struct Wrong(Diagnostic);

impl Wrong {
    fn with_help(self, help: &str) -> Error {
        Error::new(ErrorKind::Decode, self.0.help(help))
    }
}

impl From<Wrong> for Error {
    fn from(w: Wrong) -> Self {
        Error::new(ErrorKind::Decode, w.0)
    }
}

fn wrong(message: impl Into<String>) -> Wrong {
    Wrong(Diagnostic::error("onnx-adapter", message))
}

fn cut_off(at: usize) -> Error {
    let found = format!(
        "the adapter file is cut off or damaged: what stands at byte {at} leads outside of it"
    );
    wrong(found).with_help("download or export it again")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> OnnxAdapter {
        let a = TensorData::from_f32([2, 3], &[1., 2., 3., 4., 5., 6.]);
        let none = TensorData::from_f32([0, 3], &[]);
        let half = TensorData::raw(DType::Float16, [1], Bytes::from_static(&[0, 60]));
        let tensors = [("q_proj.lora_A.weight", a), ("none", none), ("half", half)];
        OnnxAdapter {
            adapter_version: 3,
            model_version: 7,
            tensors: tensors.map(|(n, t)| (n.into(), t)).into_iter().collect(),
        }
    }

    /// What is written reads as what it was, and its elements are aligned.
    #[test]
    fn adapters_come_back() {
        let bytes = Bytes::from(write(&sample()).unwrap());
        assert_eq!(read(&bytes).unwrap(), sample());
        let base = bytes.as_ptr() as usize;
        for t in read(&bytes).unwrap().tensors.values() {
            let own = t.bytes().unwrap();
            assert!(own.is_empty() || (own.as_ptr() as usize - base).is_multiple_of(8));
        }
    }

    /// No cut and no changed byte is a panic, or gives a tensor whose bytes are not there.
    #[test]
    fn damaged_files_are_errors() {
        let bytes = write(&sample()).unwrap();
        for end in 0..bytes.len() {
            let _ = read(&Bytes::copy_from_slice(&bytes[..end]));
        }
        assert!(read(&Bytes::copy_from_slice(&bytes[..bytes.len() - 8])).is_err());
        for at in 0..bytes.len() {
            for flip in [1u8, 0x80, 0xff] {
                let mut other = bytes.clone();
                other[at] ^= flip;
                if let Ok(found) = read(&other.into()) {
                    for t in found.tensors.values() {
                        assert_eq!(t.bytes().map(|b| b.len()), Some(t.stored_len()));
                    }
                }
            }
        }
    }

    /// Other files are refused by what they are.
    #[test]
    fn other_files_are_refused() {
        let found = read(&Bytes::from_static(b"not a flat buffer")).unwrap_err();
        assert!(found.to_string().contains("TORT"), "{found}");
        let mut newer = write(&sample()).unwrap();
        let at = newer.windows(4).position(|w| w == 1i32.to_le_bytes());
        newer[at.unwrap()] = 9;
        let found = read(&newer.into()).unwrap_err();
        assert!(found.to_string().contains("format version 9"), "{found}");
    }
}
