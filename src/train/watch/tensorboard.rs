//! TensorBoard's event files: TFRecord framing around protobuf messages of two levels, of which four fields are used.
//!
//! Written here because no kept crate does: `tboard` needs protoc to build, `tensorboard-rs` depends on a protobuf version with an
//! advisory and on an image library, `tfrecord` on a second prost.

use crate::error::{Error, Result};
use crate::train::event::Event;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// An event file, under Hugging Face's tags: `train/loss`, `eval/loss`, …
pub(crate) struct EventFile {
    file: File,
    path: PathBuf,
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |d| d.as_secs_f64())
}

impl EventFile {
    /// Makes a file in a folder of runs. TensorBoard reads all files of a folder as one run.
    ///
    /// # Errors
    /// A folder that cannot be written to.
    pub(crate) fn create(folder: &Path) -> Result<EventFile> {
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, "cannot be made", e))?;
        let start = now();
        let id = std::process::id();
        let mut n = 0;
        let (file, path) = loop {
            let name = format!("events.out.tfevents.{:.0}.{id}.{n}", start.floor());
            let path = folder.join(name);
            match File::create_new(&path) {
                Ok(file) => break (file, path),
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists && n < 1000 => n += 1,
                Err(e) => return Err(Error::io(&path, "cannot be made", e)),
            }
        };
        let mut out = EventFile { file, path };
        let mut event = double(1, start);
        event.extend(bytes(3, b"brain.Event:2"));
        out.record(&event)?;
        Ok(out)
    }

    /// Takes an event.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub(crate) fn event(&mut self, event: &Event) -> Result<()> {
        match event {
            Event::Log(e) => self.scalars(
                e.step,
                &[
                    ("train/loss".to_owned(), e.loss),
                    ("train/learning_rate".to_owned(), e.learning_rate),
                    ("train/grad_norm".to_owned(), e.grad_norm),
                    ("train/epoch".to_owned(), e.epoch),
                    ("train/tokens_per_second".to_owned(), e.tokens_per_second),
                ],
            ),
            Event::Evaluate(e) => {
                let mut values: Vec<(String, f64)> = e
                    .metrics
                    .iter()
                    .map(|(k, v)| (format!("eval/{k}"), *v))
                    .collect();
                values.push(("eval/runtime".to_owned(), e.runtime));
                values.push((
                    "eval/samples_per_second".to_owned(),
                    e.samples as f64 / e.runtime.max(1e-9),
                ));
                self.scalars(e.step, &values)
            }
            Event::Begin {
                resumed_from: Some(step),
                ..
            } => self.restart(step + 1),
            Event::End {
                steps,
                runtime,
                train_loss,
                ..
            } => self.scalars(
                *steps,
                &[
                    ("train/train_runtime".to_owned(), *runtime),
                    ("train/train_loss".to_owned(), *train_loss),
                ],
            ),
            Event::Begin { .. }
            | Event::Step(_)
            | Event::Evaluating { .. }
            | Event::Save { .. }
            | Event::Warning { .. } => Ok(()),
        }
    }

    /// Says that what an earlier file has from a step on is void: a session log with status START.
    fn restart(&mut self, step: u64) -> Result<()> {
        let mut event = double(1, now());
        event.push(2 << 3);
        event.extend(varint(step));
        event.extend(bytes(7, &[1 << 3, 1]));
        self.record(&event)
    }

    /// One event with several scalars.
    fn scalars(&mut self, step: u64, values: &[(String, f64)]) -> Result<()> {
        let mut summary = Vec::new();
        for (tag, value) in values {
            let mut one = bytes(1, tag.as_bytes());
            one.push(2 << 3 | 5);
            one.extend((*value as f32).to_le_bytes());
            summary.extend(bytes(1, &one));
        }
        let mut event = double(1, now());
        event.push(2 << 3);
        event.extend(varint(step));
        event.extend(bytes(5, &summary));
        self.record(&event)
    }

    /// A record: length, its checksum, data, its checksum.
    fn record(&mut self, data: &[u8]) -> Result<()> {
        let length = (data.len() as u64).to_le_bytes();
        let mut out = length.to_vec();
        out.extend(masked(&length).to_le_bytes());
        out.extend(data);
        out.extend(masked(data).to_le_bytes());
        self.file
            .write_all(&out)
            .map_err(|e| Error::io(&self.path, "cannot be written", e))
    }
}

fn varint(mut x: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while x >= 0x80 {
        out.push(x as u8 | 0x80);
        x >>= 7;
    }
    out.push(x as u8);
    out
}

/// A field of length-delimited bytes.
fn bytes(field: u8, data: &[u8]) -> Vec<u8> {
    let mut out = vec![field << 3 | 2];
    out.extend(varint(data.len() as u64));
    out.extend(data);
    out
}

/// A field of eight bytes.
fn double(field: u8, x: f64) -> Vec<u8> {
    let mut out = vec![field << 3 | 1];
    out.extend(x.to_le_bytes());
    out
}

/// TFRecord's masked CRC-32C.
fn masked(data: &[u8]) -> u32 {
    let mut crc = !0u32;
    for byte in data {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            // Castagnoli's polynomial, reversed.
            crc = crc >> 1 ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
        }
    }
    (!crc).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_castagnolis() {
        // RFC 3720, B.4: 32 bytes of zeros.
        let crc = masked(&[0; 32]).wrapping_sub(0xa282_ead8).rotate_left(15);
        assert_eq!(crc, 0x8a91_36aa);
    }

    #[test]
    fn numbers_are_varints() {
        assert_eq!(varint(300), [0xac, 0x02]);
        assert_eq!(varint(0), [0]);
    }
}
