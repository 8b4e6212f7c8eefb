//! CSV and TSV with a line of column names. Every value is text.

use super::{Fault, LONGEST, Row};
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use serde_json::Value;
use std::cell::Cell;
use std::io::Read;
use std::path::Path;
use std::rc::Rc;

/// Hands on no more than is allowed until it is allowed more, so that one quote that is never closed does not read a whole file into a row.
struct Metered<R> {
    inner: R,
    left: Rc<Cell<usize>>,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = buffer.len().min(self.left.get());
        if n == 0 && !buffer.is_empty() {
            let message = format!(
                "a row is longer than {} MiB: is a quote left open?",
                LONGEST >> 20
            );
            return Err(std::io::Error::new(
                std::io::ErrorKind::InvalidData,
                message,
            ));
        }
        let read = self.inner.read(&mut buffer[..n])?;
        self.left.set(self.left.get() - read);
        Ok(read)
    }
}

pub(super) fn rows<R: Read>(
    reader: R,
    delimiter: u8,
    path: &Path,
) -> Result<impl Iterator<Item = std::result::Result<Row, Fault>> + use<R>> {
    let left = Rc::new(Cell::new(LONGEST));
    let metered = Metered {
        inner: reader,
        left: Rc::clone(&left),
    };
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(delimiter)
        .has_headers(false)
        .flexible(true)
        .from_reader(metered);
    let path = path.to_path_buf();
    let broken = move |e: csv::Error| {
        let at = e
            .position()
            .map_or_else(String::new, |p| format!(", line {}", p.line()));
        let d =
            Diagnostic::error("dataset-table", e.to_string()).at(format!("{}{at}", path.display()));
        Error::new(ErrorKind::Train, d)
    };
    let mut names = csv::StringRecord::new();
    reader.read_record(&mut names).map_err(&broken)?;
    let mut seen = std::collections::BTreeSet::new();
    if let Some(twice) = names.iter().find(|n| !seen.insert(*n)) {
        let e = std::io::Error::new(
            std::io::ErrorKind::InvalidData,
            format!("two columns are named `{twice}`"),
        );
        return Err(broken(e.into()));
    }
    let mut record = csv::ByteRecord::new();
    let mut done = false;
    Ok(std::iter::from_fn(move || {
        if done {
            return None;
        }
        left.set(LONGEST);
        let more = reader.read_byte_record(&mut record);
        let at = record
            .position()
            .map_or_else(|| reader.position().line(), csv::Position::line);
        match more {
            Ok(true) => Some(row(&names, &record, at).map_err(|reason| Fault::Row { at, reason })),
            Ok(false) => None,
            Err(e) => {
                done = true;
                Some(Err(Fault::File(broken(e))))
            }
        }
    }))
}

fn row(
    names: &csv::StringRecord,
    record: &csv::ByteRecord,
    at: u64,
) -> std::result::Result<Row, String> {
    if record.len() != names.len() {
        return Err(format!(
            "{} values for the {} columns of the first line",
            record.len(),
            names.len()
        ));
    }
    let value = |(name, bytes): (&str, &[u8])| {
        let text = std::str::from_utf8(bytes).map_err(|_| format!("`{name}` is not UTF-8 text"))?;
        Ok((name.to_owned(), Value::from(text)))
    };
    let values = names
        .iter()
        .zip(record)
        .map(value)
        .collect::<std::result::Result<_, String>>()?;
    Ok(Row { values, at })
}
