//! Rows of data files, one after the other: JSON lines, JSON lists, CSV, TSV, text and Parquet. Knows no roles and no tokens.
//!
//! A file is read as a stream: what is held are the rows whose columns are looked at together, or what the format itself needs (a page of
//! Parquet).

mod columns;
mod json;
mod parquet;
mod table;

use crate::diag::Diagnostic;
use crate::disk;
use crate::error::{Error, ErrorKind, Result};
use crate::fence;
pub(super) use columns::Columns;
use serde_json::{Map, Value};
use std::cell::Cell;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::ops::Range;
use std::path::Path;
use std::rc::Rc;

/// The longest row of a text format in bytes; short in tests, which write one.
const LONGEST: usize = if cfg!(test) { 1 << 20 } else { 64 << 20 };

/// A row, and its place in the file: its line, or its number where rows have no lines.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) values: Map<String, Value>,
    pub(super) at: u64,
}

/// Why there is no row.
#[derive(Debug)]
pub(super) enum Fault {
    /// This row is bad; the next can be read.
    Row { at: u64, reason: String },
    /// Nothing more can be read.
    File(Error),
}

/// The rows of a file.
pub(super) struct Source {
    /// What the place of a row is called.
    pub(super) unit: &'static str,
    rows: Box<dyn Iterator<Item = std::result::Result<Row, Fault>>>,
}

impl Iterator for Source {
    type Item = std::result::Result<Row, Fault>;

    fn next(&mut self) -> Option<Self::Item> {
        self.rows.next()
    }
}

impl Source {
    /// The rows whose number is in the range; `at` is the number of the first, and counts on through several sources.
    pub(super) fn within(mut self, at: Rc<Cell<u64>>, range: Range<u64>) -> Source {
        let rows = std::iter::from_fn(move || {
            while at.get() < range.end {
                let row = self.rows.next()?;
                let number = at.replace(at.get() + 1);
                if number >= range.start || matches!(row, Err(Fault::File(_))) {
                    return Some(row);
                }
            }
            None
        });
        Source {
            unit: self.unit,
            rows: Box::new(rows),
        }
    }
}

/// The ends of the names of data files.
pub(super) const FORMATS: &str = ".jsonl, .json, .csv, .tsv, .txt (each also with .gz) or .parquet";

/// What a data file holds, by the end of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Format {
    Parquet,
    JsonLines,
    Csv,
    Tsv,
    Json,
    /// Lines of text, each a row with the column `text`.
    Text,
}

impl Format {
    /// The format, and whether the file is compressed with gzip.
    pub(super) fn of(path: &Path) -> Option<(Format, bool)> {
        let name = path.file_name()?.to_str()?.to_ascii_lowercase();
        let (name, gzip) = match name.strip_suffix(".gz") {
            Some(name) => (name, true),
            None => (name.as_str(), false),
        };
        let format = match Path::new(name).extension()?.to_str()? {
            "parquet" if !gzip => Format::Parquet,
            "jsonl" | "ndjson" => Format::JsonLines,
            "json" => Format::Json,
            "csv" => Format::Csv,
            "tsv" => Format::Tsv,
            "txt" => Format::Text,
            _ => return None,
        };
        Some((format, gzip))
    }
}

/// Opens a data file; its name says what it holds. `columns` are those of the files before it, if there are any.
///
/// What reads it is third-party code for the most part, and stands behind the fence, row by row.
pub(super) fn open(path: &Path, columns: &Columns) -> Result<Source> {
    let path = path.to_owned();
    let opened = fence::guarded(|| opened(&path, columns));
    let Source { unit, mut rows } = opened.unwrap_or_else(|f| Err(fallen(&path, f)))?;
    let mut done = false;
    let rows = std::iter::from_fn(move || {
        if done {
            return None;
        }
        fence::guarded(|| rows.next()).unwrap_or_else(|f| {
            done = true;
            Some(Err(Fault::File(fallen(&path, f))))
        })
    });
    Ok(Source {
        unit,
        rows: Box::new(rows),
    })
}

/// The error of a reader that fell.
fn fallen(path: &Path, why: fence::Fallen) -> Error {
    let d = Diagnostic::error("dataset-broken", format!("the data cannot be read: {why}"))
        .at(path.display().to_string());
    Error::new(
        ErrorKind::Train,
        d.help("is the file complete, and what its name says?"),
    )
}

fn opened(path: &Path, columns: &Columns) -> Result<Source> {
    let Some((format, gzip)) = Format::of(path) else {
        let d = Diagnostic::error(
            "dataset-format",
            "the name does not say what the file holds",
        )
        .at(path.display().to_string());
        let help = format!("names of data files end in {FORMATS}");
        return Err(Error::new(ErrorKind::Train, d.help(help)));
    };
    if format == Format::Parquet {
        return Ok(Source {
            unit: "row",
            rows: Box::new(parquet::rows(regular(path)?, path)?),
        });
    }
    let file = regular(path)?;
    let reader: Box<dyn Read> = if gzip {
        Box::new(flate2::bufread::MultiGzDecoder::new(BufReader::new(file)))
    } else {
        Box::new(file)
    };
    text(format, reader, path, columns)
}

/// The rows of a text format that can be used.
#[cfg(any(test, fuzzing))]
pub(crate) fn rows_of(format: Format, bytes: Vec<u8>) -> Vec<Map<String, Value>> {
    let reader = Box::new(std::io::Cursor::new(bytes));
    let source = text(format, reader, Path::new("rows"), &Columns::default());
    let rows = source.into_iter().flat_map(|s| s.rows);
    rows.filter_map(|row| Some(row.ok()?.values)).collect()
}

/// Opens a file of JSON lines, whatever its name.
#[cfg(test)]
pub(super) fn json_lines(path: &Path) -> Result<Source> {
    let reader = Box::new(regular(path)?);
    text(Format::JsonLines, reader, path, &Columns::default())
}

fn text(format: Format, reader: Box<dyn Read>, path: &Path, columns: &Columns) -> Result<Source> {
    let mut reader = BufReader::with_capacity(1 << 16, reader);
    let head = reader
        .fill_buf()
        .map_err(|e| Error::io(path, "cannot read the data", e))?;
    if head.starts_with(&[0xef, 0xbb, 0xbf]) {
        reader.consume(3);
    }
    let source = |unit, rows, table| Source {
        unit,
        rows: Box::new(columns::typed(rows, columns.clone(), table)),
    };
    Ok(match format {
        Format::Csv => source("line", Box::new(table::rows(reader, b',', path)?), true),
        Format::Tsv => source("line", Box::new(table::rows(reader, b'\t', path)?), true),
        Format::Text => Source {
            unit: "line",
            rows: Box::new(json::Lines::of_text(reader, path)),
        },
        Format::Json
            if json::is_list(&mut reader)
                .map_err(|e| Error::io(path, "cannot read the data", e))? =>
        {
            source("row", Box::new(json::List::new(reader, path)), false)
        }
        Format::Json | Format::JsonLines if json::spans_lines(&mut reader) => {
            source("row", Box::new(json::Objects::new(reader, path)), false)
        }
        Format::Json | Format::JsonLines | Format::Parquet => {
            source("line", Box::new(json::Lines::new(reader, path)), false)
        }
    })
}

/// Opens what is a file: no folder, device or pipe.
fn regular(path: &Path) -> Result<File> {
    disk::open(path).map_err(|e| Error::io(path, "cannot open the data", e))
}
