//! Checkpoints: all that a run needs to go on as if it had never stopped.
//!
//! `checkpoint-N/` holds the adapters as they would be saved at the end, `optimizer.safetensors` (the exact parameters and both moments,
//! in `f32`), `trainer_state.json` with Hugging Face's keys, and `checkpoint.json`, the manifest, with the state of the loop, the hash of
//! every other file, and a seal: the hash of the manifest itself. The folder is put together under another name and renamed when all of it
//! is on the disk, and loses its name before it is deleted, so that a folder of this name is complete, or was changed later, which the
//! hashes show.

use super::event::{EvalEntry, LogEntry};
use crate::adapters::folder::{read_safetensors, to_safetensors};
use crate::diag::Diagnostic;
use crate::disk;
use crate::error::{Error, ErrorKind, Result};
use crate::ir::TensorData;
use crate::runtime::Trainable;
use crate::staging::{self, StagedFolder};
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Files of a checkpoint.
pub(crate) mod file {
    /// The manifest.
    pub(crate) const MANIFEST: &str = "checkpoint.json";
    /// Parameters and moments.
    pub(crate) const OPTIMIZER: &str = "optimizer.safetensors";
    /// Hugging Face's state.
    pub(crate) const STATE: &str = "trainer_state.json";
}

/// Version of the manifest.
const FORMAT: u32 = 2;
const PREFIX: &str = "checkpoint-";
/// Begins the name of a folder that is being put together.
const STAGED: &str = ".checkpoint-";

/// The state of the loop between two steps.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Progress {
    /// Optimizer steps done.
    pub step: u64,
    /// Updates done: steps without any label make none.
    pub updates: u32,
    /// Epochs done.
    pub epoch: u64,
    /// Accumulation windows done in the current epoch.
    pub window: usize,
    /// Sum of the losses of all steps.
    pub total_loss: f64,
    /// Sum of the losses since the last log entry.
    pub logged_loss: f64,
    /// The updates at the last log entry.
    #[serde(default)]
    pub logged_updates: u32,
    /// Best measure so far.
    pub best_metric: Option<f64>,
    /// The step it belongs to.
    pub best_step: Option<u64>,
    /// Evaluations in a row without an improvement.
    pub without_improvement: usize,
    /// Tokens read.
    pub tokens: u64,
    /// What was logged.
    pub history: Vec<Value>,
}

impl Progress {
    /// Adds a log entry under Hugging Face's keys.
    pub(super) fn log(&mut self, e: &LogEntry) {
        self.history.push(json!({
            "epoch": e.epoch, "grad_norm": e.grad_norm, "learning_rate": e.learning_rate, "loss": e.loss, "step": e.step,
        }));
    }

    /// Adds an evaluation under Hugging Face's keys.
    pub(super) fn evaluated(&mut self, e: &EvalEntry) {
        let mut entry = Map::from_iter([("epoch".to_owned(), e.epoch.into())]);
        entry.extend(
            e.metrics
                .iter()
                .map(|(k, v)| (format!("eval_{k}"), (*v).into())),
        );
        entry.insert("step".to_owned(), e.step.into());
        self.history.push(Value::Object(entry));
    }
}

/// The manifest.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Manifest {
    format: u32,
    tool: String,
    progress: Progress,
    /// What must be the same for a run to go on.
    run: Map<String, Value>,
    /// blake3 of the other files, by path.
    files: BTreeMap<String, String>,
    /// blake3 of this file's text, with zeros in the place of the seal.
    seal: String,
}

/// The format alone: other formats may have other fields.
#[derive(Deserialize)]
struct Format {
    format: u32,
}

/// The place of a seal that is not known yet.
const UNSEALED: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// The text of a manifest, sealed.
fn sealed(manifest: &Manifest) -> String {
    let text = pretty(&json!(manifest));
    let seal = blake3::hash(text.as_bytes()).to_hex();
    // The seal is the last of the fields.
    match text.rsplit_once(UNSEALED) {
        Some((before, after)) => format!("{before}{seal}{after}"),
        None => text,
    }
}

/// Whether the seal of a manifest is that of its text.
fn is_sealed(text: &str, seal: &str) -> bool {
    let Some((before, after)) = text
        .rsplit_once(seal)
        .filter(|_| seal.len() == UNSEALED.len())
    else {
        return false;
    };
    let unsealed = format!("{before}{UNSEALED}{after}");
    blake3::hash(unsealed.as_bytes()).to_hex().as_str() == seal
}

/// A checkpoint that was read.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    /// Its folder.
    pub path: PathBuf,
    /// The state of the loop.
    pub progress: Progress,
    /// What must be the same for a run to go on.
    pub run: Map<String, Value>,
    tensors: IndexMap<Box<str>, TensorData>,
}

fn damaged(path: &Path, what: impl Into<String>) -> Error {
    let d = Diagnostic::error("checkpoint", what).at(path.display().to_string());
    Error::new(
        ErrorKind::Train,
        d.help("resume from another checkpoint, or start again without `resume_from_checkpoint`"),
    )
}

/// Checkpoints of a folder by step, the last first. What is being put together is none.
pub(crate) fn list(root: &Path) -> Vec<(u64, PathBuf)> {
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    let mut out: Vec<(u64, PathBuf)> = entries
        .filter_map(|e| {
            Some((
                e.file_name().to_str()?.strip_prefix(PREFIX)?.parse().ok()?,
                e.path(),
            ))
        })
        .collect();
    out.sort_unstable_by(|a, b| b.cmp(a));
    out
}

/// Writes the checkpoint of a step. `adapters` writes the adapters' folders into the folder it is given.
///
/// # Errors
/// What cannot be written; nothing is left behind then.
pub(super) fn write(
    root: &Path,
    progress: &Progress,
    state: &Value,
    run: &Map<String, Value>,
    params: &IndexMap<Box<str>, Trainable>,
    adapters: &dyn Fn(&Path) -> Result<()>,
) -> Result<PathBuf> {
    fs::create_dir_all(root).map_err(|e| Error::io(root, "cannot be made", e))?;
    let staged = StagedFolder::within(root, STAGED)
        .map_err(|e| Error::io(root, "cannot be written to", e))?;
    let folder = staged.path();
    adapters(folder)?;
    put(
        &folder.join(file::OPTIMIZER),
        &to_safetensors(&tensors(params))?,
    )?;
    put(&folder.join(file::STATE), pretty(state).as_bytes())?;
    let mut files = BTreeMap::new();
    hash(folder, folder, &mut files)?;
    let manifest = Manifest {
        format: FORMAT,
        tool: concat!("onnx-graft ", env!("CARGO_PKG_VERSION")).to_owned(),
        progress: progress.clone(),
        run: run.clone(),
        files,
        seal: UNSEALED.to_owned(),
    };
    put(&folder.join(file::MANIFEST), sealed(&manifest).as_bytes())?;
    sync(folder);
    let path = root.join(format!("{PREFIX}{}", progress.step));
    if path.exists() {
        // Written before the run was resumed from an older one.
        delete(&path)?;
    }
    let named = staged.name(&path);
    named.map_err(|e| Error::io(&path, "cannot be written", e))?;
    sync(root);
    Ok(path)
}

/// Deletes a checkpoint: it loses its name first, so that no half of one is taken for a whole.
///
/// # Errors
/// A folder that cannot be deleted.
pub(crate) fn delete(path: &Path) -> Result<()> {
    staging::discard(path, STAGED).map_err(|e| Error::io(path, "cannot be replaced", e))
}

fn pretty(v: &Value) -> String {
    serde_json::to_string_pretty(v).unwrap_or_default() + "\n"
}

fn tensors(params: &IndexMap<Box<str>, Trainable>) -> IndexMap<Box<str>, TensorData> {
    let mut out = IndexMap::new();
    for (name, p) in params {
        let whole: Vec<u64> = p.dims.iter().map(|&d| d as u64).collect();
        for (kind, data) in [
            ("value", &p.value),
            ("first", &p.first),
            ("second", &p.second),
        ] {
            if !data.is_empty() {
                // The state of some optimizers is smaller than the parameter.
                let dims = if data.len() == p.value.len() {
                    whole.clone()
                } else {
                    vec![data.len() as u64]
                };
                out.insert(
                    format!("{kind}/{name}").into(),
                    TensorData::from_f32(dims, data),
                );
            }
        }
    }
    out
}

fn put(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || -> std::io::Result<()> {
        let mut f = fs::File::create(path)?;
        f.write_all(bytes)?;
        f.sync_all()
    };
    write().map_err(|e| Error::io(path, "cannot be written", e))
}

/// Makes the names in a folder durable, where the file system can.
fn sync(folder: &Path) {
    if let Ok(f) = fs::File::open(folder) {
        let _ = f.sync_all();
    }
}

/// Hashes of all files below a folder, by path with `/`.
fn hash(root: &Path, folder: &Path, out: &mut BTreeMap<String, String>) -> Result<()> {
    let failed = |e| Error::io(folder, "cannot be read", e);
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.is_dir() {
            hash(root, &path, out)?;
            continue;
        }
        let parts = path.strip_prefix(root).unwrap_or(&path).components();
        let name: Vec<_> = parts
            .map(|c| c.as_os_str().to_string_lossy().into_owned())
            .collect();
        let bytes = disk::own::tensors(&path).map_err(|e| Error::io(&path, "cannot be read", e))?;
        out.insert(name.join("/"), blake3::hash(&bytes).to_hex().to_string());
    }
    Ok(())
}

impl Checkpoint {
    /// Reads a checkpoint, all of it checked.
    ///
    /// # Errors
    /// A folder that is no checkpoint, is not complete or was changed.
    pub(crate) fn read(path: &Path) -> Result<Checkpoint> {
        let at = path.join(file::MANIFEST);
        let text = disk::own::text(&at).map_err(|_| {
            damaged(
                path,
                format!(
                    "there is no {}: this is no complete checkpoint",
                    file::MANIFEST
                ),
            )
        })?;
        let Format { format } =
            serde_json::from_str(&text).map_err(|e| damaged(&at, e.to_string()))?;
        if format != FORMAT {
            let message = format!("format {format} is not known; this version writes {FORMAT}");
            return Err(damaged(&at, message));
        }
        let manifest: Manifest =
            serde_json::from_str(&text).map_err(|e| damaged(&at, e.to_string()))?;
        if !is_sealed(&text, &manifest.seal) {
            let message = "the file was changed after it was written: its seal is another";
            return Err(damaged(&at, message));
        }
        let mut there = BTreeMap::new();
        hash(path, path, &mut there)?;
        let wrong: Vec<&str> = manifest
            .files
            .iter()
            .filter(|(k, v)| there.get(*k) != Some(v))
            .map(|(k, _)| k.as_str())
            .collect();
        if !wrong.is_empty() {
            return Err(damaged(
                path,
                format!("missing or changed: {}", wrong.join(", ")),
            ));
        }
        let file = path.join(file::OPTIMIZER);
        let bytes = disk::own::tensors(&file).map_err(|e| Error::io(&file, "cannot be read", e))?;
        let tensors =
            read_safetensors(&bytes.into()).map_err(|e| e.within(file.display().to_string()))?;
        Ok(Checkpoint {
            path: path.to_owned(),
            progress: manifest.progress,
            run: manifest.run,
            tensors,
        })
    }

    /// The last complete checkpoint of a folder, with warnings about those that are not.
    pub(crate) fn last(root: &Path) -> (Option<Checkpoint>, Vec<String>) {
        let mut warnings = Vec::new();
        for (_, path) in list(root) {
            match Checkpoint::read(&path) {
                Ok(c) => return (Some(c), warnings),
                Err(e) => warnings.push(format!("a checkpoint is passed over: {e}")),
            }
        }
        (None, warnings)
    }

    /// Puts parameters and moments back.
    ///
    /// # Errors
    /// Parameters that the checkpoint lacks, or has in another shape.
    pub(crate) fn restore(&self, params: &mut IndexMap<Box<str>, Trainable>) -> Result<()> {
        for (name, p) in params.iter_mut() {
            let get = |kind: &str| self.tensors.get(&*format!("{kind}/{name}"));
            let value = get("value")
                .and_then(TensorData::to_f32)
                .filter(|v| v.len() == p.value.len());
            let value = value.ok_or_else(|| {
                damaged(
                    &self.path,
                    format!("`{name}` is missing or has another shape"),
                )
            })?;
            p.value = value;
            p.first = get("first")
                .and_then(TensorData::to_f32)
                .unwrap_or_default();
            p.second = get("second")
                .and_then(TensorData::to_f32)
                .unwrap_or_default();
        }
        Ok(())
    }

    /// Which conditions of the run are different now.
    pub(crate) fn changed(&self, run: &Map<String, Value>) -> Vec<String> {
        let mut out = Vec::new();
        differences("", &self.run, run, &mut out);
        out
    }
}

/// What differs between objects, and between the objects in them.
fn differences(
    of: &str,
    old: &Map<String, Value>,
    new: &Map<String, Value>,
    out: &mut Vec<String>,
) {
    let keys: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let shown = |v: Option<&Value>| v.map_or_else(|| "nothing".to_owned(), ToString::to_string);
    for k in keys {
        match (old.get(k), new.get(k)) {
            (a, b) if a == b => {}
            (Some(Value::Object(a)), Some(Value::Object(b))) => {
                differences(&format!(" of `{k}`{of}"), a, b, out);
            }
            (a, b) => out.push(format!("`{k}`{of} was {}, is {}", shown(a), shown(b))),
        }
    }
}

/// Deletes what an interrupted process left behind.
pub(super) fn sweep(root: &Path) {
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        if entry
            .file_name()
            .to_str()
            .is_some_and(|n| n.starts_with(STAGED))
        {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Deletes the oldest checkpoints above a number; the best one and the last one stay.
pub(super) fn prune(root: &Path, keep: usize, best: Option<u64>) {
    let all = list(root);
    let spare: Vec<&PathBuf> = all
        .iter()
        .skip(1)
        .filter(|(s, _)| Some(*s) != best)
        .map(|(_, p)| p)
        .collect();
    let best_apart = all.iter().skip(1).any(|(s, _)| Some(*s) == best);
    let left = keep.max(1).saturating_sub(1 + usize::from(best_apart));
    for path in spare.into_iter().skip(left) {
        let _ = delete(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(root: &Path, step: u64) -> PathBuf {
        let progress = Progress {
            step,
            ..Progress::default()
        };
        let mut params = IndexMap::new();
        let p = Trainable::new(&TensorData::from_f32([2], &[1.0, step as f32])).unwrap();
        params.insert("p".into(), p);
        write(root, &progress, &json!({}), &Map::new(), &params, &|_| {
            Ok(())
        })
        .unwrap()
    }

    #[test]
    fn what_was_written_is_read() {
        let root = tempfile::tempdir().unwrap();
        at(root.path(), 3);
        let (found, warnings) = Checkpoint::last(root.path());
        let found = found.unwrap();
        assert_eq!((found.progress.step, warnings.len()), (3, 0));
        let mut params = IndexMap::new();
        params.insert(
            "p".into(),
            Trainable::new(&TensorData::from_f32([2], &[0.0, 0.0])).unwrap(),
        );
        found.restore(&mut params).unwrap();
        assert_eq!(params["p"].value, [1.0, 3.0]);
        assert_eq!(
            fs::read_dir(root.path()).unwrap().count(),
            1,
            "nothing else is left"
        );
    }

    #[test]
    fn a_damaged_one_is_passed_over_and_named() {
        let root = tempfile::tempdir().unwrap();
        at(root.path(), 1);
        let newer = at(root.path(), 2);
        fs::write(newer.join(file::OPTIMIZER), b"half").unwrap();
        let (found, warnings) = Checkpoint::last(root.path());
        assert_eq!(found.unwrap().progress.step, 1);
        assert!(warnings[0].contains(file::OPTIMIZER), "{}", warnings[0]);
        assert!(Checkpoint::read(&newer).is_err());
        fs::remove_file(newer.join(file::MANIFEST)).unwrap();
        assert!(
            Checkpoint::read(&newer)
                .unwrap_err()
                .to_string()
                .contains("no complete")
        );
    }

    #[test]
    fn a_forged_one_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let path = at(root.path(), 2);
        let manifest = path.join(file::MANIFEST);
        let text = fs::read_to_string(&manifest).unwrap();
        let refused = || Checkpoint::read(&path).unwrap_err().to_string();
        // Of another step, in the same form.
        fs::write(&manifest, text.replace("\"step\": 2", "\"step\": 9")).unwrap();
        assert!(refused().contains("its seal is another"), "{}", refused());
        // Other parameters, with their hash.
        let other = at(&root.path().join("other"), 1);
        let bytes = fs::read(other.join(file::OPTIMIZER)).unwrap();
        let hash = |bytes: &[u8]| blake3::hash(bytes).to_hex().to_string();
        let old = fs::read(path.join(file::OPTIMIZER)).unwrap();
        fs::write(path.join(file::OPTIMIZER), &bytes).unwrap();
        fs::write(&manifest, text.replace(&hash(&old), &hash(&bytes))).unwrap();
        assert!(refused().contains("its seal is another"), "{}", refused());
        // Without a seal, or with one of another form.
        let found: Manifest = serde_json::from_str(&text).unwrap();
        for seal in ["", UNSEALED, "x"] {
            fs::write(&manifest, text.replace(&found.seal, seal)).unwrap();
            assert!(refused().contains("seal"), "{}", refused());
        }
        fs::write(path.join(file::OPTIMIZER), &old).unwrap();
        fs::write(&manifest, &text).unwrap();
        Checkpoint::read(&path).unwrap();
    }

    #[test]
    fn pruning_keeps_the_last_and_the_best() {
        let root = tempfile::tempdir().unwrap();
        let steps = |root: &Path| list(root).into_iter().map(|(s, _)| s).collect::<Vec<_>>();
        for step in 1..=5 {
            at(root.path(), step);
        }
        prune(root.path(), 3, Some(1));
        assert_eq!(steps(root.path()), [5, 4, 1]);
        prune(root.path(), 1, Some(1));
        assert_eq!(steps(root.path()), [5, 1]);
        prune(root.path(), 1, None);
        assert_eq!(steps(root.path()), [5]);
    }

    #[test]
    fn changed_conditions_are_listed() {
        let root = tempfile::tempdir().unwrap();
        let c = Checkpoint::read(&at(root.path(), 1)).unwrap();
        let now = Map::from_iter([("seed".to_owned(), json!(7))]);
        assert_eq!(c.changed(&now), ["`seed` was nothing, is 7"]);
        let adapters = |r: u32| json!({"math": {"r": r, "alpha": 8}});
        let run = |r| Map::from_iter([("adapters".to_owned(), adapters(r))]);
        let c = Checkpoint { run: run(8), ..c };
        assert_eq!(
            c.changed(&run(4)),
            ["`r` of `math` of `adapters` was 8, is 4"]
        );
    }
}
