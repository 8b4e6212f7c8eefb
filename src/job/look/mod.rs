//! A closer look at what was trained: what the model answers to a few examples, as the run found it and with what it learned.
//!
//! One plan serves both: the trained parameters are its variables, and have the values of the file where they are not fed. What does not
//! fit into the time is left out, and the page says so; a look that fails is no error of the run.

mod rows;
mod texts;

use super::files::ModelFiles;
use super::settings::JobSettings;
use crate::error::Result;
use crate::infer::Verified;
use crate::rewrite::passes::channel;
use crate::runtime::{CompileOptions, Feeds, Precision};
use crate::select::Selection;
use crate::text::Tokenizer;
use crate::train::watch::Look;
use crate::train::{Collator, Dataset, DecoderStart, Example, Loaded, Masking, Task};
use std::time::{Duration, Instant};

/// Least time that a look may take, and its share of the time of the run.
const LEAST: f64 = 2.0;
const SHARE: f64 = 0.05;
/// Characters of a text that are shown.
const SHOWN: usize = 1200;

/// What is looked at.
pub(super) struct Looker<'a> {
    pub(super) model: &'a Verified,
    pub(super) selection: &'a Selection,
    pub(super) files: &'a ModelFiles,
    pub(super) settings: &'a JobSettings,
    pub(super) tokenizer: Option<&'a Tokenizer>,
    pub(super) loaded: &'a Loaded,
    pub(super) decoder_start: DecoderStart,
    pub(super) masking: Option<Masking>,
    /// The trained parameters.
    pub(super) given: Feeds,
}

impl Looker<'_> {
    /// Looks, within the time that a run of so many seconds allows.
    pub(super) fn look(&self, run: f64) -> Look {
        let started = Instant::now();
        let allowed = (run * SHARE).max(LEAST);
        let until = started + Duration::from_secs_f64(allowed.min(600.0));
        let mut look = Look {
            evaluation: self.loaded.eval.is_some(),
            ..Look::default()
        };
        if let Err(e) = self.fill(&mut look, until) {
            let why = e.findings().first().map(|f| f.message.clone());
            let why = why.unwrap_or_else(|| e.to_string());
            look.notes
                .push(format!("Not all that a report has could be made: {why}"));
        }
        if Instant::now() >= until {
            look.notes.push(format!(
                "What did not fit into {allowed:.0} s was left out (the time for it is a twentieth of the run's, at least {LEAST} s)"
            ));
        }
        look.seconds = started.elapsed().as_secs_f64();
        look
    }

    fn fill(&self, look: &mut Look, until: Instant) -> Result<()> {
        let (settings, task) = (self.settings, self.settings.data.task);
        let own = settings.job.loss.as_deref();
        if own.is_some_and(|loss| loss != task.name()) {
            look.notes
                .push("The loss is one of its own, so there are no examples".to_owned());
            return Ok(());
        }
        if !channel::children(self.model)?.is_empty() {
            look.notes
                .push("Of several children of a `Parallel` there are no examples".to_owned());
            return Ok(());
        }
        match task {
            Task::CausalLm => {
                self.tokens(look, until)?;
                self.texts(look, until)
            }
            Task::Seq2seq => self.texts(look, until),
            Task::Classification
            | Task::Regression
            | Task::MultiLabel
            | Task::TokenClassification
            | Task::QuestionAnswering
            | Task::MaskedLm => self.rows(look, until),
        }
    }

    /// The examples that are looked at: those that are evaluated on, or those that are trained on.
    fn data(&self) -> &Dataset {
        self.loaded.eval.as_ref().unwrap_or(&self.loaded.train)
    }

    /// The first examples that something can be shown of.
    fn first(&self, fits: impl Fn(&Example) -> bool) -> Result<Vec<Example>> {
        let (data, wanted) = (self.data(), self.settings.job.report_samples);
        let mut out = Vec::new();
        // Behind so many that do not fit, no one is looked for.
        for i in 0..data.len().min(wanted.saturating_mul(20)) {
            let example = data.get(i)?;
            if fits(&example) {
                out.push(example);
            }
            if out.len() == wanted {
                break;
            }
        }
        Ok(out)
    }

    fn compile(&self) -> Result<CompileOptions> {
        let mut options = self.settings.model.compile_options()?;
        options.cache_size = self.files.cache_size();
        options.variables = self.given.0.keys().cloned().collect();
        if self.settings.training.bf16 {
            options.precision = Precision::Bf16;
        }
        Ok(options)
    }

    fn collator(&self) -> Collator {
        Collator {
            pad_id: self.loaded.pad_id,
            decoder_start: self.decoder_start,
            masking: self.masking,
            packing: self.settings.collate.packing,
            ..Collator::default()
        }
    }

    /// Tokens as text; without a tokenizer, their ids.
    fn text(&self, ids: &[i64]) -> String {
        let text = self.tokenizer.and_then(|t| t.decode(ids, true).ok());
        let text = text.unwrap_or_else(|| {
            let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
            ids.join(" ")
        });
        if text.chars().count() <= SHOWN {
            return text;
        }
        text.chars().take(SHOWN).collect::<String>() + "…"
    }
}
