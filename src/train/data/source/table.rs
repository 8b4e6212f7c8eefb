//! CSV and TSV with a line of column names. Every value is text here; `columns` says what it is.

use super::{Fault, LONGEST, Row};
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use serde_json::Value;
use std::cell::Cell;
use std::io::Read;
use std::path::Path;
use std::rc::Rc;

/// Hands on no more than is allowed until it is allowed more, so that one quote that is never closed does not read a whole file into a row.
///
/// Ends every file with a line break of its own. It ends a row that has none, and is an empty line behind one that has; only a row in an
/// open quote reads on to the end of the file.
struct Metered<R> {
    inner: R,
    meter: Rc<Meter>,
    last: u8,
}

struct Meter {
    left: Cell<usize>,
    end: Cell<End>,
    /// Whether the first line ends with CR LF, once it is known. The parser ends a row at the CR, on the line of the row.
    crlf: Cell<Option<bool>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Ahead,
    LineBreak,
    Reached,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let meter = &self.meter;
        let n = buffer.len().min(meter.left.get());
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
        meter.left.set(meter.left.get() - read);
        if read > 0 || buffer.is_empty() {
            let bytes = &buffer[..read];
            let line_break = bytes.iter().position(|&b| b == b'\n');
            if let (Some(at), None) = (line_break, meter.crlf.get()) {
                let before = if at == 0 { self.last } else { bytes[at - 1] };
                meter.crlf.set(Some(before == b'\r'));
            }
            self.last = bytes.last().copied().unwrap_or(self.last);
            return Ok(read);
        }
        if meter.end.get() == End::Ahead {
            meter.end.set(End::LineBreak);
            buffer[0] = if meter.crlf.get() == Some(true) {
                b'\r'
            } else {
                b'\n'
            };
            return Ok(1);
        }
        meter.end.set(End::Reached);
        Ok(0)
    }
}

pub(super) fn rows<R: Read>(
    reader: R,
    delimiter: u8,
    path: &Path,
) -> Result<impl Iterator<Item = std::result::Result<Row, Fault>> + use<R>> {
    let meter = Rc::new(Meter {
        left: Cell::new(LONGEST),
        end: Cell::new(End::Ahead),
        crlf: Cell::new(None),
    });
    let metered = Metered {
        inner: reader,
        meter: Rc::clone(&meter),
        last: 0,
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
    let more = reader.read_record(&mut names).map_err(&broken)?;
    if more && meter.end.get() == End::Reached {
        let reason = unclosed(names.as_byte_record(), reader.position().line());
        let e = std::io::Error::new(std::io::ErrorKind::InvalidData, reason);
        return Err(broken(e.into()));
    }
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
        meter.left.set(LONGEST);
        let more = reader.read_byte_record(&mut record);
        let line = reader.position().line();
        let open = meter.end.get() == End::Reached;
        // The line break that ended the row has been counted, unless it is the LF of a CR LF.
        let ended = line - u64::from(!open && meter.crlf.get() != Some(true)).min(line);
        let at = ended - record.iter().map(breaks).sum::<u64>().min(ended);
        match more {
            Ok(true) if open => Some(Err(Fault::Row {
                at,
                reason: unclosed(&record, line),
            })),
            Ok(true) => Some(row(&names, &record, at).map_err(|reason| Fault::Row { at, reason })),
            Ok(false) => None,
            Err(e) => {
                done = true;
                Some(Err(Fault::File(broken(e))))
            }
        }
    }))
}

/// What is wrong with a row that the end of the file ended: `line` is the line there. The quote opens the last value.
fn unclosed(record: &csv::ByteRecord, line: u64) -> String {
    let last = record.iter().next_back().unwrap_or_default();
    format!(
        "the quote that opens on line {} never closes, and all that follows is part of this row; close it, or write a quote in a quoted value twice",
        line - breaks(last).min(line)
    )
}

fn breaks(value: &[u8]) -> u64 {
    value.split(|&b| b == b'\n').skip(1).count() as u64
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
