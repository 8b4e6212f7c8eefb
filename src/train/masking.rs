//! Words that are masked, to be told: drawn anew in every epoch.

use super::data::{DataArguments, Example, IGNORE, Labels, Task};
use crate::diag::Diagnostic;
use crate::draw::Draws;
use crate::error::{Error, ErrorKind, Result};
use crate::text::Tokenizer;

/// How tokens are masked: as Transformers' `DataCollatorForLanguageModeling` does it, drawn by the seed, the epoch and the example.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Masking {
    /// Share of the tokens that are to be told.
    pub probability: f64,
    /// The token that stands for a masked one.
    pub mask_id: i64,
    /// Number of words.
    pub vocabulary: i64,
    /// Seed.
    pub seed: u64,
    /// The epoch.
    pub epoch: u64,
}

impl Masking {
    /// The masking of a task, with the seed of the data.
    ///
    /// # Errors
    /// A tokenizer without a token for what is masked.
    pub(crate) fn of(
        data: &DataArguments,
        tokenizer: Option<&Tokenizer>,
        vocabulary: Option<i64>,
        seed: u64,
    ) -> Result<Option<Masking>> {
        if data.task != Task::MaskedLm {
            return Ok(None);
        }
        let words = tokenizer.and_then(|t| Some((t.mask_id()?, vocabulary?)));
        let Some((mask_id, vocabulary)) = words else {
            let d = Diagnostic::error(
                "mask-token",
                "the task masked-lm needs a tokenizer with a `mask_token`",
            );
            let help = "put tokenizer.json and tokenizer_config.json of the masked language model beside it";
            return Err(Error::new(ErrorKind::Train, d.help(help)));
        };
        Ok(Some(Masking {
            probability: data.mlm_probability,
            mask_id,
            vocabulary,
            seed,
            epoch: 0,
        }))
    }

    /// Masks an example: of the chosen tokens 80 % are masked, 10 % become another word, and 10 % stay; the others are not learned.
    pub(super) fn apply(&self, index: usize, e: &mut Example) {
        let Labels::Each(labels) = &mut e.labels else {
            return;
        };
        let seed = self.seed ^ self.epoch.rotate_left(40) ^ (index as u64).rotate_left(20);
        let mut draw = Draws::new(seed);
        for (id, label) in e.input_ids.iter_mut().zip(labels) {
            if *label == IGNORE {
                continue;
            }
            if draw.unit() >= self.probability {
                *label = IGNORE;
                continue;
            }
            let kind = draw.unit();
            if kind < 0.8 {
                *id = self.mask_id;
            } else if kind < 0.9 {
                *id = (draw.unit() * self.vocabulary as f64) as i64;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_the_tokens_is_masked_anew_in_every_epoch() {
        let masking = Masking {
            probability: 0.15,
            mask_id: 1,
            vocabulary: 1000,
            seed: 7,
            epoch: 0,
        };
        let example = || {
            let ids: Vec<i64> = (0..20_000).map(|i| 10 + i % 900).collect();
            let mut e = Example::tokens(ids.clone(), Vec::new());
            let special = |(at, id): (usize, i64)| if at % 2 == 0 { IGNORE } else { id };
            e.labels = Labels::Each(ids.into_iter().enumerate().map(special).collect());
            e
        };
        let masked = |masking: &Masking| {
            let mut e = example();
            masking.apply(3, &mut e);
            let Labels::Each(labels) = e.labels else {
                unreachable!()
            };
            (e.input_ids, labels)
        };
        let (ids, labels) = masked(&masking);
        let plain = example().input_ids;
        let told = labels.iter().filter(|l| **l != IGNORE).count();
        assert!((told as f64 / 10_000.0 - 0.15).abs() < 0.02, "{told}");
        let told: Vec<usize> = (0..ids.len()).filter(|i| labels[*i] != IGNORE).collect();
        assert!(told.iter().all(|i| i % 2 == 1 && labels[*i] == plain[*i]));
        let share = |f: &dyn Fn(usize) -> bool| {
            told.iter().filter(|i| f(**i)).count() as f64 / told.len() as f64
        };
        assert!((share(&|i| ids[i] == 1) - 0.8).abs() < 0.04);
        assert!((share(&|i| ids[i] == plain[i]) - 0.1).abs() < 0.03);
        // What is not told stays as it is.
        assert!((0..ids.len()).all(|i| labels[i] != IGNORE || ids[i] == plain[i]));
        assert_eq!(masked(&masking), masked(&masking));
        let next = Masking {
            epoch: 1,
            ..masking
        };
        assert_ne!(masked(&next).1, labels);
    }
}
