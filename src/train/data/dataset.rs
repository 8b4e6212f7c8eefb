//! Tokenized examples in a compact form: in memory while they are few, in a mapped temporary file when they are many.
//!
//! An example is a few flags and variable-length integers. The memory that a dataset holds is bounded by what the caller allows, plus
//! twelve bytes for each example.

use super::{Example, IGNORE, Labels};
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::sync::Arc;

/// A tokenized dataset.
#[derive(Clone, Debug, Default)]
pub(crate) struct Dataset {
    bytes: Store,
    offsets: Vec<u64>,
    lengths: Vec<u32>,
    truncated: usize,
    fingerprint: String,
}

/// Where the examples lie.
#[derive(Clone, Debug, Default)]
enum Store {
    #[default]
    Empty,
    Memory(Arc<Vec<u8>>),
    File(Arc<memmap2::Mmap>),
}

impl Store {
    fn bytes(&self) -> &[u8] {
        match self {
            Store::Empty => &[],
            Store::Memory(bytes) => bytes,
            Store::File(map) => map,
        }
    }
}

impl Dataset {
    /// A dataset of examples in memory.
    #[cfg(test)]
    pub(crate) fn from_examples(examples: Vec<Example>) -> Self {
        let mut builder = Builder::new(u64::MAX, None);
        for example in examples {
            builder.append(&example, false);
        }
        builder.in_memory()
    }

    /// Number of examples.
    pub(crate) fn len(&self) -> usize {
        self.lengths.len()
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.lengths.is_empty()
    }

    /// Tokens of each example.
    pub(crate) fn lengths(&self) -> &[u32] {
        &self.lengths
    }

    /// The example of an index below [`len`](Self::len).
    pub(crate) fn get(&self, index: usize) -> Result<Example> {
        let Some(&offset) = self.offsets.get(index) else {
            let d = Diagnostic::error(
                "dataset-index",
                format!("no example {index} among {}", self.len()),
            );
            return Err(Error::new(ErrorKind::Train, d));
        };
        let bytes = self
            .bytes
            .bytes()
            .get(offset as usize..)
            .unwrap_or_default();
        decode(&mut Reader(bytes)).ok_or_else(|| {
            let d = Diagnostic::error(
                "dataset-store",
                format!("example {index} of the tokenized data cannot be read back"),
            );
            Error::new(
                ErrorKind::Train,
                d.help("the temporary file of the tokenized data was changed while it was in use"),
            )
        })
    }

    /// Number of examples that were cut to the longest length allowed.
    #[cfg(test)]
    pub(crate) fn truncated(&self) -> usize {
        self.truncated
    }

    /// Whether the examples lie in a temporary file.
    #[cfg(test)]
    pub(crate) fn spilled(&self) -> bool {
        matches!(self.bytes, Store::File(_))
    }

    /// A hash of the examples and their order.
    pub(crate) fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// The examples of these indices, in this order; they share the store. An index out of range is left out.
    #[must_use]
    pub(crate) fn select(&self, indices: impl IntoIterator<Item = usize>) -> Dataset {
        let mut out = Dataset {
            bytes: self.bytes.clone(),
            ..Dataset::default()
        };
        let mut hash = blake3::Hasher::new();
        hash.update(self.fingerprint.as_bytes());
        for i in indices {
            let (Some(&offset), Some(&length)) = (self.offsets.get(i), self.lengths.get(i)) else {
                continue;
            };
            hash.update(&(i as u64).to_le_bytes());
            out.offsets.push(offset);
            out.lengths.push(length);
            let flags = self.bytes.bytes().get(offset as usize).copied();
            out.truncated += usize::from(flags.is_some_and(|f| f & TRUNCATED != 0));
        }
        out.fingerprint = hash.finalize().to_hex().to_string();
        out
    }
}

/// Makes a [`Dataset`] example by example.
pub(super) struct Builder {
    limit: u64,
    folder: Option<PathBuf>,
    memory: Vec<u8>,
    file: Option<BufWriter<std::fs::File>>,
    size: u64,
    hash: blake3::Hasher,
    out: Dataset,
}

impl Builder {
    /// Keeps up to `limit` bytes in memory; what is more goes to an unnamed file in the folder, or in the system's temporary folder.
    pub(super) fn new(limit: u64, folder: Option<PathBuf>) -> Self {
        Builder {
            limit,
            folder,
            memory: Vec::new(),
            file: None,
            size: 0,
            hash: blake3::Hasher::new(),
            out: Dataset::default(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.out.len()
    }

    pub(super) fn push(&mut self, example: &Example, truncated: bool) -> Result<()> {
        self.append(example, truncated);
        if let Some(file) = &mut self.file {
            let written = file.write_all(&self.memory);
            self.memory.clear();
            return written.map_err(|e| self.failed(e));
        }
        if self.memory.len() as u64 > self.limit {
            let file = match &self.folder {
                Some(folder) => tempfile::tempfile_in(folder),
                None => tempfile::tempfile(),
            };
            let mut file = BufWriter::new(file.map_err(|e| self.failed(e))?);
            file.write_all(&self.memory).map_err(|e| self.failed(e))?;
            self.memory = Vec::new();
            self.file = Some(file);
        }
        Ok(())
    }

    /// Encodes an example to the end of what is in memory.
    fn append(&mut self, example: &Example, truncated: bool) {
        let start = self.memory.len();
        self.out.offsets.push(self.size);
        let length = u32::try_from(example.input_ids.len()).unwrap_or(u32::MAX);
        self.out.lengths.push(length);
        self.out.truncated += usize::from(truncated);
        encode(example, truncated, &mut self.memory);
        let added = &self.memory[start..];
        self.hash.update(added);
        self.size += added.len() as u64;
    }

    fn in_memory(mut self) -> Dataset {
        self.out.bytes = Store::Memory(Arc::new(self.memory));
        self.out.fingerprint = self.hash.finalize().to_hex().to_string();
        self.out
    }

    pub(super) fn finish(mut self) -> Result<Dataset> {
        let Some(file) = self.file.take() else {
            return Ok(self.in_memory());
        };
        let file = file.into_inner().map_err(|e| self.failed(e.into_error()))?;
        // SAFETY: the file has no name and no other handle than this one, so nobody else can write or cut it while it is mapped.
        #[allow(unsafe_code, reason = "mapping a file")]
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|e| self.failed(e))?;
        self.out.bytes = Store::File(Arc::new(map));
        self.out.fingerprint = self.hash.finalize().to_hex().to_string();
        Ok(self.out)
    }

    fn failed(&self, e: std::io::Error) -> Error {
        let folder = self.folder.clone().unwrap_or_else(std::env::temp_dir);
        let mut d = Diagnostic::error(
            "dataset-store",
            format!("cannot write the tokenized data to a temporary file: {e}"),
        );
        d = d.at(folder.display().to_string());
        Error::new(
            ErrorKind::Io,
            d.help("give a folder with room as `cache_dir`"),
        )
        .with_source(e)
    }
}

const TRUNCATED: u8 = 1 << 7;
const TYPES: u8 = 1 << 3;
const TASK: u8 = 1 << 4;

fn encode(e: &Example, truncated: bool, out: &mut Vec<u8>) {
    let aligned = |labels: &[i64]| {
        labels.len() == e.input_ids.len()
            && labels
                .iter()
                .zip(&e.input_ids)
                .all(|(l, i)| l == i || *l == IGNORE)
    };
    let kind = match &e.labels {
        Labels::Tokens(l) if aligned(l) => 0,
        Labels::Tokens(_) => 1,
        Labels::Sequence(_) => 2,
        Labels::Class(_) => 3,
        Labels::Values(_) => 4,
        Labels::Each(l) if aligned(l) => 5,
        Labels::Each(_) => 6,
        Labels::Span(..) => 7,
    };
    let flag = |on: bool, bit: u8| if on { bit } else { 0 };
    out.push(
        kind | flag(truncated, TRUNCATED)
            | flag(e.token_type_ids.is_some(), TYPES)
            | flag(e.task_id.is_some(), TASK),
    );
    list(&e.input_ids, out);
    match &e.labels {
        // Which of the ids are labels: the lengths of the runs, the ignored first.
        Labels::Tokens(l) | Labels::Each(l) if matches!(kind, 0 | 5) => {
            runs(l.iter().map(|&l| i64::from(l != IGNORE)), out);
        }
        Labels::Tokens(l) | Labels::Sequence(l) | Labels::Each(l) => list(l, out),
        Labels::Span(from, until) => {
            signed(*from, out);
            signed(*until, out);
        }
        Labels::Class(c) => signed(*c, out),
        Labels::Values(v) => {
            unsigned(v.len() as u64, out);
            out.extend(v.iter().flat_map(|x| x.to_le_bytes()));
        }
    }
    if let Some(types) = &e.token_type_ids {
        runs(types.iter().copied(), out);
    }
    if let Some(task) = e.task_id {
        signed(task, out);
    }
}

fn decode(r: &mut Reader<'_>) -> Option<Example> {
    let flags = r.byte()?;
    let input_ids = r.list()?;
    let labels = match flags & 0b111 {
        kind @ (0 | 5) => {
            let kept = r.runs(input_ids.len())?;
            let label = |(id, kept): (&i64, i64)| if kept != 0 { *id } else { IGNORE };
            let labels = input_ids.iter().zip(kept).map(label).collect();
            if kind == 0 {
                Labels::Tokens(labels)
            } else {
                Labels::Each(labels)
            }
        }
        1 => Labels::Tokens(r.list()?),
        2 => Labels::Sequence(r.list()?),
        3 => Labels::Class(r.signed()?),
        4 => Labels::Values(r.values()?),
        6 => Labels::Each(r.list()?),
        7 => Labels::Span(r.signed()?, r.signed()?),
        _ => return None,
    };
    let token_type_ids = if flags & TYPES != 0 {
        Some(r.runs(input_ids.len())?)
    } else {
        None
    };
    let task_id = if flags & TASK != 0 {
        Some(r.signed()?)
    } else {
        None
    };
    Some(Example {
        input_ids,
        labels,
        token_type_ids,
        task_id,
    })
}

fn list(values: &[i64], out: &mut Vec<u8>) {
    unsigned(values.len() as u64, out);
    for &v in values {
        signed(v, out);
    }
}

/// Runs of equal values: their number, then length and value of each.
fn runs(values: impl Iterator<Item = i64>, out: &mut Vec<u8>) {
    let mut found: Vec<(i64, u64)> = Vec::new();
    for v in values {
        match found.last_mut() {
            Some((value, n)) if *value == v => *n += 1,
            _ => found.push((v, 1)),
        }
    }
    unsigned(found.len() as u64, out);
    for (value, n) in found {
        unsigned(n, out);
        signed(value, out);
    }
}

/// Little-endian groups of seven bits (LEB128).
fn unsigned(mut v: u64, out: &mut Vec<u8>) {
    while v >= 0x80 {
        out.push(v as u8 | 0x80);
        v >>= 7;
    }
    out.push(v as u8);
}

/// Zigzag: small negative numbers are short as well.
fn signed(v: i64, out: &mut Vec<u8>) {
    unsigned(((v << 1) ^ (v >> 63)) as u64, out);
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }

    fn unsigned(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let b = self.byte()?;
            value |= u64::from(b & 0x7f) << shift;
            if b & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn signed(&mut self) -> Option<i64> {
        let v = self.unsigned()?;
        Some((v >> 1) as i64 ^ -((v & 1) as i64))
    }

    /// A length that the bytes left can hold, `width` bytes each.
    fn count(&mut self, width: usize) -> Option<usize> {
        let n = usize::try_from(self.unsigned()?).ok()?;
        (n.checked_mul(width)? <= self.0.len()).then_some(n)
    }

    fn list(&mut self) -> Option<Vec<i64>> {
        (0..self.count(1)?).map(|_| self.signed()).collect()
    }

    fn runs(&mut self, total: usize) -> Option<Vec<i64>> {
        let mut out = Vec::with_capacity(total);
        for _ in 0..self.count(2)? {
            let n = usize::try_from(self.unsigned()?).ok()?;
            let value = self.signed()?;
            if n > total - out.len() {
                return None;
            }
            out.resize(out.len() + n, value);
        }
        (out.len() == total).then_some(out)
    }

    fn values(&mut self) -> Option<Vec<f32>> {
        let n = self.count(4)?;
        let (bytes, rest) = self.0.split_at_checked(4 * n)?;
        self.0 = rest;
        Some(
            bytes
                .as_chunks()
                .0
                .iter()
                .map(|&b| f32::from_le_bytes(b))
                .collect(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn examples(n: usize) -> Vec<Example> {
        let ids = |i: usize| {
            (0..(i * 7 % 40 + 1) as i64)
                .map(|k| k * 1000 + i as i64)
                .collect::<Vec<_>>()
        };
        let one = |i: usize| Example {
            input_ids: ids(i),
            labels: match i % 5 {
                0 => Labels::Tokens(
                    ids(i)
                        .into_iter()
                        .enumerate()
                        .map(|(k, id)| if k % 3 == 0 { IGNORE } else { id })
                        .collect(),
                ),
                1 => Labels::Tokens(vec![7; ids(i).len()]),
                2 => Labels::Sequence(vec![1, IGNORE, 3]),
                3 => Labels::Class(-1),
                _ => Labels::Values(vec![0.1, -2.0]),
            },
            token_type_ids: i
                .is_multiple_of(2)
                .then(|| ids(i).iter().map(|id| i64::from(*id > 5000)).collect()),
            task_id: i.is_multiple_of(3).then_some(i as i64),
        };
        (0..n).map(one).collect()
    }

    #[test]
    fn what_went_in_comes_out_also_from_a_file() {
        let all = examples(300);
        let mut builder = Builder::new(256, None);
        for (i, e) in all.iter().enumerate() {
            builder.push(e, i % 10 == 0).unwrap();
        }
        let spilled = builder.finish().unwrap();
        let memory = Dataset::from_examples(all.clone());
        assert!(spilled.spilled() && !memory.spilled());
        assert_eq!((spilled.len(), spilled.truncated()), (300, 30));
        assert_eq!(spilled.lengths(), memory.lengths());
        for (i, e) in all.iter().enumerate().rev() {
            assert_eq!(spilled.get(i).unwrap(), *e);
            assert_eq!(memory.get(i).unwrap(), *e);
        }
        assert!(spilled.get(300).is_err());
    }

    #[test]
    fn a_selection_shares_the_store_and_has_its_own_counts() {
        let mut builder = Builder::new(0, None);
        for (i, e) in examples(4).iter().enumerate() {
            builder.push(e, i > 1).unwrap();
        }
        let all = builder.finish().unwrap();
        let some = all.select([3, 0]);
        assert_eq!((some.len(), some.truncated()), (2, 1));
        assert_eq!(some.get(0).unwrap(), all.get(3).unwrap());
        assert_ne!(some.fingerprint(), all.select([0, 3]).fingerprint());
    }

    #[test]
    fn bytes_that_are_no_example_are_an_error() {
        let mut bytes = Vec::new();
        encode(&examples(3)[2], false, &mut bytes);
        for cut in 0..bytes.len() {
            assert!(decode(&mut Reader(&bytes[..cut])).is_none(), "{cut}");
        }
        assert!(
            decode(&mut Reader(&[
                0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff
            ]))
            .is_none()
        );
    }
}
