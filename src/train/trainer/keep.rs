//! What a trainer writes to checkpoints, and how it goes on from one.

use super::steps::Loop;
use super::{TrainData, Trainer};
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use crate::train::args::{Resume, SaveStrategy};
use crate::train::checkpoint::{self, Checkpoint};
use crate::train::event::{Event, OnEvent};
use serde_json::{Map, Value as Json, json};
use std::path::Path;
use std::time::Instant;

/// The fingerprint of the base model, among the conditions of a run.
pub(super) const BASE: &str = "base";
/// The configurations of the adapters, among the conditions.
pub(super) const ADAPTERS: &str = "adapters";
/// Number of steps of the whole run, among its conditions.
const TOTAL: &str = "total_steps";
/// A hash of the names and shapes of what is trained, among the conditions.
const PARAMETERS: &str = "parameters";

impl Trainer {
    pub(super) fn save(&mut self, l: &mut Loop<'_, '_>) -> Result<()> {
        let Some(output) = l.output else {
            return Ok(());
        };
        let store = self.store();
        let p = &self.progress;
        let state = self.state(output.folder);
        let path = checkpoint::write(
            output.folder,
            p,
            &state,
            &l.run,
            self.inner.params(),
            &|folder| (output.save)(&store, folder),
        )?;
        if let Some(keep) = self.args.save_total_limit {
            let best = p.best_step.filter(|_| {
                self.args.load_best_model_at_end || self.args.save_strategy == SaveStrategy::Best
            });
            checkpoint::prune(output.folder, keep, best);
        }
        let best = p.best_step == Some(p.step);
        l.since_log.0 = Instant::now();
        l.since_log.1 = 0;
        (l.on_event)(&Event::Save {
            step: p.step,
            path,
            best,
        })
    }

    /// `trainer_state.json` under Hugging Face's keys.
    fn state(&self, folder: &Path) -> Json {
        let (p, a) = (&self.progress, &self.args);
        let best = p
            .best_step
            .map(|s| folder.join(format!("checkpoint-{s}")).display().to_string());
        json!({
            "best_global_step": p.best_step,
            "best_metric": p.best_metric,
            "best_model_checkpoint": best,
            "epoch": p.history.last().map_or(Json::Null, |h| h["epoch"].clone()),
            "eval_steps": a.eval_steps(),
            "global_step": p.step,
            "is_hyper_param_search": false,
            "is_local_process_zero": true,
            "is_world_process_zero": true,
            "log_history": p.history,
            "logging_steps": a.log_every(self.total),
            "max_steps": self.total,
            "num_input_tokens_seen": p.tokens,
            "num_train_epochs": a.num_train_epochs,
            "save_steps": a.save_steps,
            "train_batch_size": a.per_device_train_batch_size,
        })
    }

    /// What must be the same for a run to go on: what decides the next step.
    pub(super) fn conditions(&self, data: &TrainData<'_>) -> Map<String, Json> {
        const FREE: [&str; 22] = [
            "gradient_checkpointing",
            "logging_strategy",
            "logging_steps",
            "logging_first_step",
            "eval_strategy",
            "eval_steps",
            "eval_delay",
            "eval_on_start",
            "save_strategy",
            "save_steps",
            "save_total_limit",
            "load_best_model_at_end",
            "metric_for_best_model",
            "greater_is_better",
            "early_stopping_patience",
            "early_stopping_threshold",
            "resume_from_checkpoint",
            "per_device_eval_batch_size",
            "num_train_epochs",
            "max_steps",
            "dataloader_num_workers",
            "disable_tqdm",
        ];
        let mut out = match json!(self.args) {
            Json::Object(o) => o,
            _ => Map::new(),
        };
        out.retain(|k, _| !FREE.contains(&k.as_str()));
        if let Json::Object(o) = json!(data.collate) {
            out.extend(o);
        }
        out.insert(TOTAL.into(), self.total.into());
        out.insert("data".into(), data.train.fingerprint().into());
        let mut shapes = blake3::Hasher::new();
        for (name, p) in self.inner.params() {
            shapes.update(format!("{name} {:?}\n", p.dims).as_bytes());
        }
        out.insert(PARAMETERS.into(), shapes.finalize().to_hex()[..16].into());
        out
    }

    /// Goes to the checkpoint that the arguments name, and says its step.
    pub(super) fn resume(
        &mut self,
        folder: &Path,
        run: &Map<String, Json>,
        on_event: OnEvent<'_>,
    ) -> Result<Option<u64>> {
        let found = match &self.args.resume_from_checkpoint {
            None | Some(Resume::Last(false)) => return Ok(None),
            Some(Resume::From(path)) => Some(Checkpoint::read(Path::new(path))?),
            Some(Resume::Last(true)) => {
                let (found, warnings) = Checkpoint::last(folder);
                for message in warnings {
                    on_event(&Event::Warning { message })?;
                }
                found
            }
        };
        let Some(found) = found else {
            let message = format!(
                "{} has no checkpoint: the run begins anew",
                folder.display()
            );
            on_event(&Event::Warning { message })?;
            return Ok(None);
        };
        let run = comparable(run, &found);
        // A run may be prolonged: what is done stays, and the schedule is that of the longer run from here on.
        let mut shorter = run.clone();
        if self.total > found.progress.step
            && let Some(planned) = found.run.get(TOTAL)
        {
            shorter.insert(TOTAL.into(), planned.clone());
        }
        let mut changed = found.changed(&run);
        if found.changed(&shorter).is_empty() {
            for change in changed.drain(..) {
                let message =
                    format!("{change}: the learning rate follows the new number from here on");
                on_event(&Event::Warning { message })?;
            }
        }
        if !changed.is_empty() {
            return Err(another(&found, changed));
        }
        found.restore(self.inner.params_mut())?;
        self.inner.set_steps(found.progress.updates);
        self.progress = found.progress;
        if let Some(best) = self
            .progress
            .best_step
            .filter(|_| self.args.load_best_model_at_end)
        {
            self.best = self.values_of(&folder.join(format!("checkpoint-{best}")))?;
        }
        Ok(Some(self.progress.step))
    }

    /// The parameters of a checkpoint, if it is still there.
    fn values_of(&self, path: &Path) -> Result<Option<Vec<Vec<f32>>>> {
        let Ok(found) = Checkpoint::read(path) else {
            return Ok(None);
        };
        let mut params = self.inner.params().clone();
        found.restore(&mut params)?;
        Ok(Some(params.into_values().map(|p| p.value).collect()))
    }
}

/// The run is not the one that a checkpoint belongs to: this is different.
fn another(found: &Checkpoint, changed: Vec<String>) -> Error {
    let message = "the run is not the one that the checkpoint belongs to";
    let d = Diagnostic::error("resume", message).at(found.path.display().to_string());
    let d = changed.into_iter().fold(d, Diagnostic::note);
    let help = "give the same model, adapters, data and options, or start anew in another folder";
    Error::new(ErrorKind::Train, d.help(help))
}

/// What of the conditions is compared with those of a checkpoint: configurations where it has them, and not the shapes that follow from
/// these where they differ.
fn comparable(run: &Map<String, Json>, found: &Checkpoint) -> Map<String, Json> {
    let mut run = run.clone();
    match found.run.get(ADAPTERS) {
        None => {
            run.shift_remove(ADAPTERS);
        }
        Some(old) if Some(old) != run.get(ADAPTERS) => {
            let shapes = found.run.get(PARAMETERS).cloned();
            run.insert(PARAMETERS.into(), shapes.unwrap_or_default());
        }
        Some(_) => {}
    }
    run
}
