//! Texts that a model goes on with, and the losses of tokens.

use super::Looker;
use crate::error::Result;
use crate::generate::{
    Decoder, DecoderOptions, GenerationArguments, Heard, Prompt, Scored, Scorer, Settings,
    generate, generation_config,
};
use crate::runtime::Feeds;
use crate::train::watch::{Guess, Look, Sample, TokenLoss};
use crate::train::{DecoderStart, Example, IGNORE, Labels};
use serde_json::Map;
use std::time::Instant;

/// New tokens of an answer.
const NEW: usize = 32;
/// Tokens of a prompt that is answered, and of a text whose losses are shown.
const PROMPT: usize = 512;
const TOKENS: usize = 160;
/// Tokens of a text without a prompt that it is continued behind.
const BEGINNING: usize = 24;

impl Looker<'_> {
    /// Answers to the prompts of a few examples.
    pub(super) fn texts(&self, look: &mut Look, until: Instant) -> Result<()> {
        let most = self.files.positions().unwrap_or(usize::MAX);
        let fits = |e: &Example| {
            let (prompt, _) = parts(e);
            !prompt.is_empty() && prompt.len() <= PROMPT && prompt.len() + NEW < most
        };
        let examples = self.first(fits)?;
        if examples.is_empty() || Instant::now() >= until {
            return Ok(());
        }
        let mut settings = self.generation()?;
        settings.until.time = Some(until);
        let options = DecoderOptions {
            use_cache: true,
            portable: self.settings.model.portable,
            decoder_start_token_id: settings.args.decoder_start_token_id,
            cache_size: self.files.cache_size(),
            compile: self.compile()?,
        };
        let mut decoder = Decoder::new(self.model.clone(), Some(self.selection), options)?;
        let prompt = |e: &Example| Prompt {
            ids: parts(e).0,
            chosen: e.task_id,
        };
        let prompts: Vec<Prompt> = examples.iter().map(prompt).collect();
        let mut answered = |given: Feeds| -> Result<Vec<Option<Vec<Guess>>>> {
            if Instant::now() >= until {
                return Ok(vec![None; prompts.len()]);
            }
            decoder.give(given);
            let silent = &mut |_: usize, _: Heard<'_>| Ok(());
            let made = generate(&decoder, self.tokenizer, &prompts, &settings, silent)?;
            let guess = |ids: &[i64]| Guess {
                text: self.text(ids),
                share: None,
            };
            Ok(made.iter().map(|g| Some(vec![guess(&g.ids)])).collect())
        };
        let after = answered(Feeds(self.given.0.clone()))?;
        let before = answered(Feeds::new())?;
        for ((e, before), after) in examples.iter().zip(before).zip(after) {
            let (prompt, expected) = parts(e);
            look.samples.push(Sample {
                given: self.text(&prompt),
                expected: self.text(&expected),
                before,
                after,
            });
        }
        Ok(())
    }

    /// How an answer is generated: the most probable token, a few times.
    fn generation(&self) -> Result<Settings> {
        let (config, _) = generation_config(&self.files.path)?;
        let given = GenerationArguments::over(&config, Map::new())?;
        let start = match self.decoder_start {
            DecoderStart::Token(id) => Some(id),
            DecoderStart::Last => None,
        };
        let args = GenerationArguments {
            max_new_tokens: NEW,
            min_new_tokens: 0,
            do_sample: false,
            num_return_sequences: 1,
            decoder_start_token_id: given.decoder_start_token_id.or(start),
            ..given
        };
        Ok(Settings::new(args, self.tokenizer, self.files.positions()))
    }

    /// The losses of the tokens of a few examples.
    pub(super) fn tokens(&self, look: &mut Look, until: Instant) -> Result<()> {
        let scored = |e: &Example| match &e.labels {
            Labels::Tokens(labels) => Scored {
                ids: e.input_ids.iter().copied().take(TOKENS).collect(),
                labels: labels.iter().copied().take(TOKENS).collect(),
                task_id: e.task_id,
            },
            _ => Scored::default(),
        };
        let learned = |e: &Example| scored(e).labels.iter().skip(1).any(|l| *l != IGNORE);
        let rows: Vec<Scored> = self.first(learned)?.iter().map(scored).collect();
        if rows.is_empty() || Instant::now() >= until {
            return Ok(());
        }
        let portable = self.settings.model.portable;
        let scorer = Scorer::new(self.model.clone(), portable, &self.compile()?)?;
        let none = Feeds::new();
        for row in &rows {
            if Instant::now() >= until {
                break;
            }
            // One by one: what depends on the whole row is computed for rows of one length only.
            let row = std::slice::from_ref(row);
            let after = scorer.tokens(row, &self.given)?;
            let before = scorer.tokens(row, &none)?;
            let mut text: Vec<TokenLoss> = self.pieces(&row[0].ids);
            for (after, before) in after.iter().flatten().zip(before.iter().flatten()) {
                if let Some(token) = text.get_mut(after.at) {
                    (token.before, token.after) = (Some(before.loss), Some(after.loss));
                }
            }
            look.tokens.push(text);
        }
        Ok(())
    }

    /// The text of each token, beside its neighbours.
    fn pieces(&self, ids: &[i64]) -> Vec<TokenLoss> {
        let Some(tokenizer) = self.tokenizer else {
            let word = |id: &i64| TokenLoss {
                text: format!("{id} "),
                ..TokenLoss::default()
            };
            return ids.iter().map(word).collect();
        };
        let mut whole = String::new();
        let mut out = Vec::with_capacity(ids.len());
        for end in 1..=ids.len() {
            let text = tokenizer.decode(&ids[..end], false).unwrap_or_default();
            // A character whose bytes have not all come is shown with its last token.
            let text = text.trim_end_matches('\u{fffd}');
            let same = text.chars().zip(whole.chars()).take_while(|(a, b)| a == b);
            let same: usize = same.map(|(c, _)| c.len_utf8()).sum();
            out.push(TokenLoss {
                text: text[same..].to_owned(),
                ..TokenLoss::default()
            });
            text.clone_into(&mut whole);
        }
        out
    }
}

/// The prompt of an example, and what is to follow it.
fn parts(example: &Example) -> (Vec<i64>, Vec<i64>) {
    let ids = &example.input_ids;
    match &example.labels {
        Labels::Tokens(labels) => {
            let first = labels.iter().position(|l| *l != IGNORE).unwrap_or(0);
            // Without a prompt, the text goes on behind its beginning.
            let cut = if first == 0 {
                (ids.len() / 2).clamp(1, BEGINNING).min(ids.len())
            } else {
                first
            };
            let learned = labels.get(cut..).unwrap_or_default();
            // Up to where something else is read, as in a conversation.
            let learned = learned.iter().copied().take_while(|l| *l != IGNORE);
            (ids[..cut].to_vec(), learned.collect())
        }
        Labels::Sequence(labels) => {
            let labels = labels.iter().copied().filter(|l| *l != IGNORE);
            (ids.clone(), labels.collect())
        }
        Labels::Class(_) | Labels::Each(_) | Labels::Span(..) | Labels::Values(_) => {
            (Vec::new(), Vec::new())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_example_is_a_prompt_and_what_follows_it() {
        let example =
            |labels: &[i64]| Example::tokens((1..=labels.len() as i64).collect(), labels.to_vec());
        let talk = example(&[IGNORE, IGNORE, 3, 4, IGNORE, 6]);
        assert_eq!(parts(&talk), (vec![1, 2], vec![3, 4]));
        let text = example(&[1, 2, 3, 4]);
        assert_eq!(parts(&text), (vec![1, 2], vec![3, 4]));
        assert_eq!(parts(&example(&[1])), (vec![1], vec![]));
    }
}
