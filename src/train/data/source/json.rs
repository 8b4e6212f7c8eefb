//! JSON lines, one JSON list of objects, and objects one behind another, each read object by object. Lines of text are read alike.

use super::{Fault, LONGEST, Row};
use crate::error::Error;
use serde_json::{Map, Value};
use std::io::{BufRead, Read};
use std::path::{Path, PathBuf};

type Item = Result<Row, Fault>;

/// One object a line; empty lines do not count. Or one text a line, in the column `text`; empty lines do.
pub(super) struct Lines<R> {
    plain: bool,
    reader: R,
    path: PathBuf,
    line: u64,
    done: bool,
    buffer: Vec<u8>,
}

impl<R: BufRead> Lines<R> {
    pub(super) fn new(reader: R, path: &Path) -> Self {
        Lines {
            plain: false,
            reader,
            path: path.to_path_buf(),
            line: 0,
            done: false,
            buffer: Vec::new(),
        }
    }

    /// The lines of a text.
    pub(super) fn of_text(reader: R, path: &Path) -> Self {
        Lines {
            plain: true,
            ..Lines::new(reader, path)
        }
    }

    /// Reads a line into the buffer. `None` at the end, an error for a line that is too long, of which the rest is passed over.
    fn read(&mut self) -> std::io::Result<Option<Result<(), String>>> {
        self.buffer.clear();
        self.line += 1;
        let mut limited = (&mut self.reader).take(LONGEST as u64);
        if limited.read_until(b'\n', &mut self.buffer)? == 0 {
            return Ok(None);
        }
        if self.buffer.len() < LONGEST || self.buffer.ends_with(b"\n") {
            return Ok(Some(Ok(())));
        }
        loop {
            let chunk = self.reader.fill_buf()?;
            let end = chunk.iter().position(|&b| b == b'\n');
            let (used, last) = (
                end.map_or(chunk.len(), |n| n + 1),
                end.is_some() || chunk.is_empty(),
            );
            self.reader.consume(used);
            if last {
                return Ok(Some(Err(too_long())));
            }
        }
    }
}

impl<R: BufRead> Iterator for Lines<R> {
    type Item = Item;

    fn next(&mut self) -> Option<Item> {
        while !self.done {
            let row = match self.read() {
                Err(e) => {
                    self.done = true;
                    return Some(Err(Fault::File(Error::io(
                        &self.path,
                        &format!("cannot read line {} of the data", self.line),
                        e,
                    ))));
                }
                Ok(None) => break,
                Ok(Some(Err(reason))) => Err(reason),
                Ok(Some(Ok(()))) if self.plain => plain(&self.buffer),
                Ok(Some(Ok(()))) if self.buffer.trim_ascii().is_empty() => continue,
                Ok(Some(Ok(()))) => object(&self.buffer),
            };
            let at = self.line;
            return Some(
                row.map(|values| Row { values, at })
                    .map_err(|reason| Fault::Row { at, reason }),
            );
        }
        self.done = true;
        None
    }
}

/// Whether the first character is the bracket of a list; leaves it to be read.
pub(super) fn is_list(reader: &mut impl BufRead) -> std::io::Result<bool> {
    loop {
        let chunk = reader.fill_buf()?;
        let Some(at) = chunk.iter().position(|b| !b.is_ascii_whitespace()) else {
            let n = chunk.len();
            if n == 0 {
                return Ok(false);
            }
            reader.consume(n);
            continue;
        };
        return Ok(chunk[at] == b'[');
    }
}

/// Whether the first line begins an object and does not end it, as far as the reader has it at hand.
pub(super) fn spans_lines<R: Read>(reader: &mut std::io::BufReader<R>) -> bool {
    let head = reader.buffer();
    let Some(end) = head.iter().position(|&b| b == b'\n') else {
        return false;
    };
    let line = head[..end].trim_ascii();
    let whole = serde_json::from_slice::<serde::de::IgnoredAny>(line);
    line.starts_with(b"{") && whole.is_err_and(|e| e.is_eof())
}

/// Objects one behind another, whatever the lines.
pub(super) struct Objects<R> {
    bytes: std::io::Bytes<R>,
    path: PathBuf,
    row: u64,
    done: bool,
    buffer: Vec<u8>,
}

impl<R: BufRead> Objects<R> {
    pub(super) fn new(reader: R, path: &Path) -> Self {
        Objects {
            bytes: reader.bytes(),
            path: path.to_path_buf(),
            row: 0,
            done: false,
            buffer: Vec::new(),
        }
    }

    /// Collects the bytes of an object, or what stands in its place to the end of the line. False at the end of the file.
    fn object(&mut self) -> std::io::Result<Result<bool, String>> {
        self.buffer.clear();
        let (mut depth, mut quoted, mut escaped, mut long) = (0u64, false, false, false);
        for byte in self.bytes.by_ref() {
            let byte = byte?;
            if self.buffer.is_empty() && byte.is_ascii_whitespace() {
                continue;
            }
            if self.buffer.len() < LONGEST {
                self.buffer.push(byte);
            } else {
                long = true;
            }
            match byte {
                _ if escaped => escaped = false,
                b'\\' if quoted => escaped = true,
                b'"' => quoted = !quoted,
                _ if quoted => {}
                b'[' | b'{' => depth += 1,
                b']' | b'}' => depth = depth.saturating_sub(1),
                _ => {}
            }
            let ends = matches!(byte, b'}' | b'\n') && !quoted;
            if depth == 0 && ends {
                return Ok(if long { Err(too_long()) } else { Ok(true) });
            }
        }
        Ok(Ok(!self.buffer.is_empty()))
    }
}

impl<R: BufRead> Iterator for Objects<R> {
    type Item = Item;

    fn next(&mut self) -> Option<Item> {
        if self.done {
            return None;
        }
        self.row += 1;
        let at = self.row;
        let row = match self.object() {
            Err(e) => {
                self.done = true;
                let what = format!("cannot read row {at} of the data");
                return Some(Err(Fault::File(Error::io(&self.path, &what, e))));
            }
            Ok(Ok(false)) => {
                self.done = true;
                return None;
            }
            Ok(Ok(true)) => object(&self.buffer),
            Ok(Err(reason)) => Err(reason),
        };
        let row = row.map(|values| Row { values, at });
        Some(row.map_err(|reason| Fault::Row { at, reason }))
    }
}

/// The elements of one list.
pub(super) struct List<R> {
    bytes: std::io::Bytes<R>,
    path: PathBuf,
    row: u64,
    state: State,
    buffer: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Before,
    Inside,
    Done,
}

/// What ended an element.
enum End {
    Comma,
    Bracket,
    File,
}

impl<R: BufRead> List<R> {
    pub(super) fn new(reader: R, path: &Path) -> Self {
        List {
            bytes: reader.bytes(),
            path: path.to_path_buf(),
            row: 0,
            state: State::Before,
            buffer: Vec::new(),
        }
    }

    /// Collects the bytes of an element; what a comma or the bracket of the list ends.
    fn element(&mut self) -> std::io::Result<Result<End, String>> {
        self.buffer.clear();
        let (mut depth, mut quoted, mut escaped, mut long) = (0u64, false, false, false);
        for byte in self.bytes.by_ref() {
            let byte = byte?;
            match byte {
                _ if escaped => escaped = false,
                b'\\' if quoted => escaped = true,
                b'"' => quoted = !quoted,
                _ if quoted => {}
                b'[' | b'{' => depth += 1,
                b',' if depth == 0 => {
                    return Ok(if long {
                        Err(too_long())
                    } else {
                        Ok(End::Comma)
                    });
                }
                b']' if depth == 0 => {
                    return Ok(if long {
                        Err(too_long())
                    } else {
                        Ok(End::Bracket)
                    });
                }
                b']' | b'}' => depth = depth.saturating_sub(1),
                _ => {}
            }
            if self.buffer.len() < LONGEST {
                self.buffer.push(byte);
            } else {
                long = true;
            }
        }
        Ok(Ok(End::File))
    }

    fn step(&mut self) -> std::io::Result<Option<Result<Map<String, Value>, Stop>>> {
        if self.state == State::Before {
            self.state = State::Inside;
            // The bracket that `is_list` saw, with what may stand before it.
            for byte in self.bytes.by_ref() {
                if byte? == b'[' {
                    break;
                }
            }
        }
        self.row += 1;
        let end = match self.element()? {
            Ok(end) => end,
            Err(reason) => return Ok(Some(Err(Stop::Row(reason)))),
        };
        match end {
            End::File => {
                self.state = State::Done;
                return Ok(Some(Err(Stop::End)));
            }
            End::Bracket => {
                self.state = State::Done;
                if self.buffer.trim_ascii().is_empty() && self.row == 1 {
                    return Ok(None);
                }
            }
            End::Comma => {}
        }
        Ok(Some(object(&self.buffer).map_err(Stop::Row)))
    }
}

enum Stop {
    Row(String),
    End,
}

impl<R: BufRead> Iterator for List<R> {
    type Item = Item;

    fn next(&mut self) -> Option<Item> {
        if self.state == State::Done {
            return None;
        }
        let step = self.step();
        let at = self.row;
        let broken = |e: std::io::Error| {
            Fault::File(Error::io(
                &self.path,
                &format!("cannot read row {at} of the data"),
                e,
            ))
        };
        Some(match step {
            Err(e) => {
                self.state = State::Done;
                Err(broken(e))
            }
            Ok(None) => return None,
            Ok(Some(Ok(values))) => Ok(Row { values, at }),
            Ok(Some(Err(Stop::Row(reason)))) => Err(Fault::Row { at, reason }),
            Ok(Some(Err(Stop::End))) => Err(broken(std::io::Error::new(
                std::io::ErrorKind::UnexpectedEof,
                "the list does not end with `]`: is the file complete?",
            ))),
        })
    }
}

fn plain(line: &[u8]) -> Result<Map<String, Value>, String> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let text = std::str::from_utf8(line).map_err(|_| "not UTF-8 text".to_owned())?;
    Ok(Map::from_iter([("text".to_owned(), text.into())]))
}

fn object(bytes: &[u8]) -> Result<Map<String, Value>, String> {
    let bytes = bytes.trim_ascii();
    if !bytes.starts_with(b"{") {
        let start: String = String::from_utf8_lossy(bytes).chars().take(40).collect();
        return Err(format!("not a JSON object: {start:?}"));
    }
    serde_json::from_slice(bytes).map_err(|e| {
        let text = e.to_string();
        let (what, _) = text.split_once(" at line ").unwrap_or((&text, ""));
        format!("not valid JSON: {what}, at column {}", e.column())
    })
}

fn too_long() -> String {
    format!("longer than {} MiB", LONGEST >> 20)
}
