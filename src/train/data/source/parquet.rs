//! Parquet, as the Hub stores data sets.

use super::{Fault, LONGEST, Row};
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use crate::fence;
use parquet::basic::Compression;
use parquet::errors::ParquetError;
use parquet::file::metadata::RowGroupMetaData;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use parquet::record::reader::RowIter;
use serde_json::Value;
use std::fs::File;
use std::path::Path;

pub(super) fn rows(
    file: File,
    path: &Path,
) -> Result<impl Iterator<Item = std::result::Result<Row, Fault>> + use<>> {
    let path = path.to_path_buf();
    let reader = guarded(|| SerializedFileReader::new(file)).map_err(|m| broken(&path, &m))?;
    if let Some(compression) = unread(&reader) {
        let message = format!(
            "columns are compressed with {compression}, which is not read; Snappy, gzip, Zstandard and no compression are"
        );
        let d = Diagnostic::error("dataset-parquet", message).at(path.display().to_string());
        let help = "write the file with one of these, as with `compression=\"zstd\"` of pandas and pyarrow";
        return Err(Error::new(ErrorKind::Train, d.help(help)));
    }
    let open = || Ok(RowIter::from_file_into(Box::new(reader)));
    let mut rows = guarded(open).map_err(|m| broken(&path, &m))?;
    let (mut at, mut done) = (0, false);
    Ok(std::iter::from_fn(move || {
        if done {
            return None;
        }
        at += 1;
        let next = guarded(|| rows.next().transpose());
        let row = match next {
            Ok(None) => return None,
            Ok(Some(row)) => row,
            Err(message) => {
                done = true;
                return Some(Err(Fault::File(broken(
                    &path,
                    &format!("{message}, at row {at}"),
                ))));
            }
        };
        let long = row.get_column_iter().map(|(_, f)| length(f)).sum::<usize>();
        if long > LONGEST {
            done = true;
            let message = format!("row {at} is longer than {} MiB", LONGEST >> 20);
            return Some(Err(Fault::File(broken(&path, &message))));
        }
        Some(match row.to_json_value() {
            Value::Object(values) => Ok(Row { values, at }),
            _ => Err(Fault::Row {
                at,
                reason: "not a row of columns".to_owned(),
            }),
        })
    }))
}

/// Bytes of a value.
fn length(field: &Field) -> usize {
    match field {
        Field::Str(s) => s.len(),
        Field::Bytes(b) => b.len(),
        Field::Group(row) => row.get_column_iter().map(|(_, f)| length(f)).sum(),
        Field::ListInternal(list) => list.elements().iter().map(length).sum(),
        Field::MapInternal(map) => {
            let entries = map.entries().iter();
            entries.map(|(k, v)| length(k) + length(v)).sum()
        }
        _ => 16,
    }
}

/// The first compression of a column that is not read.
fn unread(reader: &SerializedFileReader<File>) -> Option<&'static str> {
    let groups = reader.metadata().row_groups().iter();
    let mut columns = groups.flat_map(RowGroupMetaData::columns);
    columns.find_map(|c| match c.compression() {
        Compression::UNCOMPRESSED
        | Compression::SNAPPY
        | Compression::GZIP(_)
        | Compression::ZSTD(_) => None,
        Compression::LZO => Some("LZO"),
        Compression::BROTLI(_) => Some("Brotli"),
        Compression::LZ4 | Compression::LZ4_RAW => Some("LZ4"),
    })
}

/// Runs the decoder. It checks most of what it reads and indexes with the rest, so a damaged file can make it panic.
fn guarded<T>(
    work: impl FnOnce() -> std::result::Result<T, ParquetError>,
) -> std::result::Result<T, String> {
    match fence::guarded(work) {
        Ok(done) => done.map_err(|e| e.to_string()),
        Err(fallen) => Err(format!("the decoder: {fallen}")),
    }
}

fn broken(path: &Path, message: &str) -> Error {
    let d = Diagnostic::error(
        "dataset-parquet",
        format!("not a readable Parquet file: {message}"),
    )
    .at(path.display().to_string());
    let help = "is the file complete? A pointer file of Git LFS or a page of the Hub's site is not the data";
    Error::new(ErrorKind::Train, d.help(help))
}
