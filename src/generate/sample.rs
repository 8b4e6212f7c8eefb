//! The next token from logits. The same scores as Hugging Face's logits processors, in their order: repetition penalty, least length,
//! then, where one is drawn, temperature, top-k, top-p, min-p.

use super::{GenerationArguments, failed};
use crate::draw;
use crate::error::Result;

/// What happens to logits before a token is taken.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Processors {
    repetition_penalty: f32,
    min_new_tokens: usize,
    eos: Vec<i64>,
    draws: bool,
    temperature: f32,
    top_k: usize,
    top_p: f64,
    min_p: f64,
}

impl Processors {
    /// As the arguments say; `eos` are the tokens that may not come before the least length.
    pub(crate) fn new(args: &GenerationArguments, eos: &[i64]) -> Self {
        Processors {
            repetition_penalty: args.repetition_penalty as f32,
            min_new_tokens: args.min_new_tokens,
            eos: eos.to_vec(),
            draws: args.do_sample,
            temperature: args.temperature as f32,
            top_k: args.top_k,
            top_p: args.top_p,
            min_p: args.min_p.unwrap_or(0.0),
        }
    }

    /// Changes the logits of the token behind `text`, of which `generated` tokens are new. What cannot be taken has minus infinity.
    pub(crate) fn apply(&self, scores: &mut [f32], text: &[i64], generated: usize) {
        penalize(scores, text, self.repetition_penalty);
        if generated < self.min_new_tokens {
            for &id in &self.eos {
                if let Some(s) = usize::try_from(id).ok().and_then(|i| scores.get_mut(i)) {
                    *s = f32::NEG_INFINITY;
                }
            }
        }
        if !self.draws {
            return;
        }
        if self.temperature.to_bits() != 1f32.to_bits() {
            for s in &mut *scores {
                *s /= self.temperature;
            }
        }
        keep_most(scores, self.top_k);
        keep_nucleus(scores, self.top_p);
        keep_likely(scores, self.min_p);
    }
}

/// `RepetitionPenaltyLogitsProcessor`: every token of the text once.
fn penalize(scores: &mut [f32], text: &[i64], penalty: f32) {
    if penalty.to_bits() == 1f32.to_bits() {
        return;
    }
    let mut ids: Vec<usize> = text
        .iter()
        .filter_map(|&i| usize::try_from(i).ok())
        .collect();
    ids.sort_unstable();
    ids.dedup();
    for id in ids {
        if let Some(s) = scores.get_mut(id) {
            *s = if *s < 0.0 { *s * penalty } else { *s / penalty };
        }
    }
}

/// `TopKLogitsWarper`: tokens as good as the last one stay, too.
fn keep_most(scores: &mut [f32], k: usize) {
    if k == 0 || k >= scores.len() {
        return;
    }
    let mut sorted = scores.to_vec();
    let (_, &mut least, _) = sorted.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
    for s in scores.iter_mut().filter(|s| **s < least) {
        *s = f32::NEG_INFINITY;
    }
}

/// `TopPLogitsWarper`: what has at most `1 - p` together, from the least probable on, is left out; the most probable one stays.
fn keep_nucleus(scores: &mut [f32], p: f64) {
    if p >= 1.0 {
        return;
    }
    let mut order: Vec<usize> = (0..scores.len())
        .filter(|&i| scores[i] > f32::NEG_INFINITY)
        .collect();
    order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]).then(b.cmp(&a)));
    let probabilities = softmax(scores);
    let mut sum = 0.0;
    for &i in &order[..order.len().saturating_sub(1)] {
        sum += probabilities[i];
        if sum > 1.0 - p {
            break;
        }
        scores[i] = f32::NEG_INFINITY;
    }
}

/// `MinPLogitsWarper`.
fn keep_likely(scores: &mut [f32], p: f64) {
    if p <= 0.0 {
        return;
    }
    let probabilities = softmax(scores);
    let least = p * probabilities.iter().copied().fold(0.0, f64::max);
    let best = greedy(scores).unwrap_or(0) as usize;
    for (i, s) in scores.iter_mut().enumerate() {
        if probabilities[i] < least && i != best {
            *s = f32::NEG_INFINITY;
        }
    }
}

fn softmax(scores: &[f32]) -> Vec<f64> {
    let top = f64::from(scores.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let mut out: Vec<f64> = scores.iter().map(|&s| (f64::from(s) - top).exp()).collect();
    let sum: f64 = out.iter().sum();
    for x in &mut out {
        *x /= sum;
    }
    out
}

/// The best token; of several, the one with the lowest id.
///
/// # Errors
/// No number is one: the model's logits are broken.
pub(crate) fn greedy(scores: &[f32]) -> Result<i64> {
    let mut best: Option<(usize, f32)> = None;
    for (i, &s) in scores.iter().enumerate() {
        if s.is_nan() || s == f32::INFINITY {
            return Err(broken(s));
        }
        if best.is_none_or(|(_, b)| s > b) {
            best = Some((i, s));
        }
    }
    match best {
        Some((i, s)) if s > f32::NEG_INFINITY => Ok(i as i64),
        _ => Err(broken(f32::NEG_INFINITY)),
    }
}

/// A token by its probability; `u` is uniform in `[0, 1)`.
///
/// # Errors
/// As [`greedy`].
pub(crate) fn draw(scores: &[f32], u: f64) -> Result<i64> {
    let best = greedy(scores)?;
    let probabilities = softmax(scores);
    let mut rest = u;
    for (i, &p) in probabilities.iter().enumerate() {
        if p > 0.0 {
            if rest < p {
                return Ok(i as i64);
            }
            rest -= p;
        }
    }
    // The sum of all is one but for rounding.
    Ok(best)
}

fn broken(s: f32) -> crate::error::Error {
    failed(
        "logits",
        format!("the model's logits are not numbers to choose by: {s}"),
    )
}

/// A number in `[0, 1)` for a step of a sequence; the same on every machine, and whatever is generated beside it.
pub(crate) fn uniform(seed: u64, sequence: u64, step: u64) -> f64 {
    let mut z = seed;
    for x in [sequence, step] {
        // Once for each number that goes in.
        z = draw::at(z, x);
    }
    draw::unit(z)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize)]
    struct Case {
        scores: Vec<f32>,
        text: Vec<i64>,
        args: GenerationArguments,
        /// Null for minus infinity.
        expected: Vec<Option<f32>>,
    }

    #[test]
    fn scores_are_those_of_the_transformers_processors() {
        let text = include_str!("../../fixtures/generate/processors.json");
        let cases: Vec<Case> = serde_json::from_str(text).unwrap();
        assert!(cases.len() >= 8);
        for (n, case) in cases.iter().enumerate() {
            let mut scores = case.scores.clone();
            Processors::new(&case.args, &[]).apply(&mut scores, &case.text, 0);
            for (i, (s, want)) in scores.iter().zip(&case.expected).enumerate() {
                match want {
                    None => assert!(*s < f32::MIN, "case {n}, token {i}"),
                    // One rounding more or less of a division.
                    Some(w) => assert!(
                        (s - w).abs() <= w.abs() * 1e-6,
                        "case {n}, token {i}: {s} {w}"
                    ),
                }
            }
        }
    }

    #[test]
    fn of_equals_the_lowest_id_is_taken() {
        assert_eq!(greedy(&[0.5, 2.0, 2.0]).unwrap(), 1);
        assert!(greedy(&[0.0, f32::NAN]).is_err());
        assert!(greedy(&[f32::NEG_INFINITY; 2]).is_err());
    }

    #[test]
    fn draws_have_the_probabilities() {
        let scores = [0.25f32.ln(), f32::NEG_INFINITY, 0.75f32.ln()];
        let n = 4000;
        let hits = (0..n)
            .filter(|&i| draw(&scores, uniform(7, 0, i)).unwrap() == 2)
            .count();
        // Four standard deviations of a binomial of 4000 and 0.75.
        assert!((hits as f64 - 3000.0).abs() < 4.0 * 27.4, "{hits}");
    }

    #[test]
    fn no_token_ends_the_text_before_the_least_length() {
        let args = GenerationArguments {
            min_new_tokens: 2,
            ..Default::default()
        };
        let processors = Processors::new(&args, &[1]);
        let mut scores = [0.0, 5.0];
        processors.apply(&mut scores, &[0], 1);
        assert_eq!(greedy(&scores).unwrap(), 0);
        let mut scores = [0.0, 5.0];
        processors.apply(&mut scores, &[0], 2);
        assert_eq!(greedy(&scores).unwrap(), 1);
    }
}
