//! How probable a model finds given texts.

use super::failed;
use crate::analyze::logits::logits;
use crate::diag::Diagnostic;
use crate::error::Result;
use crate::infer::Verified;
use crate::ir::contract;
use crate::rewrite::pipelines::{self, Mode};
use crate::runtime::{CompileOptions, Feeds, Plan, Value};

/// Sums over labelled tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct TokenScores {
    /// Negative log-likelihood of the labels.
    pub loss: f64,
    /// Labelled tokens.
    pub items: usize,
    /// Labels that were the most probable token.
    pub correct: usize,
    /// Texts.
    pub samples: usize,
}

impl TokenScores {
    /// Mean loss.
    pub(crate) fn mean(&self) -> f64 {
        self.loss / self.items as f64
    }

    /// `exp` of the mean loss.
    pub(crate) fn perplexity(&self) -> f64 {
        self.mean().exp()
    }

    /// Share of the labels that were the most probable token.
    pub(crate) fn accuracy(&self) -> f64 {
        self.correct as f64 / self.items as f64
    }
}

/// A text to score.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Scored {
    /// Token ids.
    pub ids: Vec<i64>,
    /// A label for each token, or -100.
    pub labels: Vec<i64>,
    /// Which adapter of a `MultiTask` it is for.
    pub task_id: Option<i64>,
}

/// A labelled token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct TokenScore {
    /// Where it is in its text.
    pub at: usize,
    /// Negative log-likelihood of its label.
    pub loss: f64,
    /// Whether its label was the most probable token.
    pub correct: bool,
}

/// Scores texts. Logits are computed at labelled positions only.
///
/// `next` gives the texts of one batch after the other until there are none.
pub(crate) fn score(
    model: Verified,
    portable: bool,
    compile: &CompileOptions,
    mut next: impl FnMut() -> Result<Option<Vec<Scored>>>,
) -> Result<TokenScores> {
    let scorer = Scorer::new(model, portable, compile)?;
    let mut sum = TokenScores::default();
    while let Some(rows) = next()? {
        sum.samples += rows.len();
        for token in scorer.tokens(&rows, &Feeds::new())?.iter().flatten() {
            sum.loss += token.loss;
            sum.items += 1;
            sum.correct += usize::from(token.correct);
        }
    }
    Ok(sum)
}

/// A model that is ready to score texts.
#[derive(Debug)]
pub(crate) struct Scorer {
    plan: Plan,
    logits: String,
}

impl Scorer {
    /// Prepares a model.
    ///
    /// # Errors
    /// A graph that has no logits of tokens.
    pub(crate) fn new(model: Verified, portable: bool, compile: &CompileOptions) -> Result<Self> {
        let g = &model.model().graph;
        let id = logits(g, None)
            .map_err(|d: Diagnostic| crate::error::Error::new(crate::error::ErrorKind::Run, d))?;
        let name = g.name_of(id).to_owned();
        let mode = if portable {
            Mode::Portable
        } else {
            Mode::Native
        };
        let model = pipelines::scoring(name.clone(), mode).run(model)?.model;
        let options = CompileOptions {
            outputs: Some(vec![name.clone()]),
            ..compile.clone()
        };
        let plan = Plan::compile(&model, &options)?;
        Ok(Scorer { plan, logits: name })
    }

    /// The labelled tokens of each row. `given`: parameters that the plan is fed with.
    ///
    /// # Errors
    /// Those of a run, and labels outside the vocabulary.
    pub(crate) fn tokens(&self, rows: &[Scored], given: &Feeds) -> Result<Vec<Vec<TokenScore>>> {
        let wrong = |e: &dyn std::fmt::Display| failed("score", e.to_string());
        let chosen: Vec<Vec<(i64, i64)>> = rows.iter().map(labelled).collect();
        let most = chosen.iter().map(Vec::len).max().unwrap_or(0);
        if most == 0 {
            return Ok(vec![Vec::new(); rows.len()]);
        }
        let feeds = feeds(&self.plan, rows, &chosen, given)?;
        let results = self.plan.run(&feeds)?;
        let name = &self.logits;
        let value = results
            .get(name)
            .ok_or_else(|| wrong(&format!("no output `{name}`")))?;
        let vocab = value.dims().last().copied().unwrap_or(0);
        if value.dims() != [rows.len(), most, vocab] {
            return Err(wrong(&format!("`{name}` has the shape {:?}", value.dims())));
        }
        let data = value.to_f32().map_err(|e| wrong(&e))?;
        let row = |(r, labels): (usize, &Vec<(i64, i64)>)| {
            let each = labels.iter().enumerate();
            each.map(|(i, &(at, label))| {
                let start = (r * most + i) * vocab;
                one(&data[start..start + vocab], at as usize + 1, label)
            })
            .collect()
        };
        chosen.iter().enumerate().map(row).collect()
    }
}

/// The labelled positions of a row: the logits of a position say the token behind it.
fn labelled(row: &Scored) -> Vec<(i64, i64)> {
    let pairs = row.labels.iter().enumerate().skip(1);
    let pairs = pairs.filter(|(_, l)| **l >= 0);
    pairs.map(|(i, l)| (i as i64 - 1, *l)).collect()
}

/// The score of a label among logits.
fn one(scores: &[f32], at: usize, label: i64) -> Result<TokenScore> {
    let own = usize::try_from(label).ok().and_then(|l| scores.get(l));
    let Some(&own) = own else {
        let vocab = scores.len();
        let message = format!("label {label} is outside the vocabulary of {vocab}");
        return Err(failed("score", message));
    };
    let first = (0, f32::NEG_INFINITY);
    let more = |b: (usize, f32), (i, &s): (usize, &f32)| if s > b.1 { (i, s) } else { b };
    let (best, top) = scores.iter().enumerate().fold(first, more);
    let sum: f64 = scores.iter().map(|&s| f64::from(s - top).exp()).sum();
    Ok(TokenScore {
        at,
        loss: sum.ln() + f64::from(top) - f64::from(own),
        correct: best as i64 == label,
    })
}

/// The inputs of a plan for rows, of which these positions are asked for.
fn feeds(plan: &Plan, rows: &[Scored], chosen: &[Vec<(i64, i64)>], given: &Feeds) -> Result<Feeds> {
    let wrong = |e: &dyn std::fmt::Display| failed("score", e.to_string());
    let width = rows.iter().map(|r| r.ids.len()).max().unwrap_or(0);
    let most = chosen.iter().map(Vec::len).max().unwrap_or(0);
    let fill = |rows: Vec<Vec<i64>>, width: usize| {
        let mut data = vec![0; rows.len() * width];
        for (row, to) in rows.iter().zip(data.chunks_mut(width)) {
            to[..row.len()].copy_from_slice(row);
        }
        Value::from_i64(&[rows.len(), width], data).map_err(|e| wrong(&e))
    };
    let each = |f: &dyn Fn(&[i64]) -> Vec<i64>| rows.iter().map(|r| f(&r.ids)).collect::<Vec<_>>();
    let mut feeds = Feeds::new();
    for spec in plan.feeds() {
        let value = match spec.name.as_str() {
            contract::INPUT_IDS => fill(each(&<[i64]>::to_vec), width)?,
            contract::ATTENTION_MASK | contract::SEGMENT_IDS => {
                fill(each(&|r| vec![1; r.len()]), width)?
            }
            contract::POSITION_IDS => fill(each(&|r| (0..r.len() as i64).collect()), width)?,
            contract::TOKEN_TYPE_IDS => fill(each(&|r| vec![0; r.len()]), width)?,
            contract::TASK_IDS | contract::ADAPTER_IDS => {
                let ids: Option<Vec<i64>> = rows.iter().map(|r| r.task_id).collect();
                // Without one the plan says what is missing.
                let Some(ids) = ids else { continue };
                Value::from_i64(&[ids.len()], ids).map_err(|e| wrong(&e))?
            }
            contract::LOGIT_POSITIONS => {
                let places = chosen
                    .iter()
                    .map(|c| c.iter().map(|p| p.0 - width as i64).collect());
                let mut places: Vec<Vec<i64>> = places.collect();
                // Any position will do where a row has fewer labels.
                for p in &mut places {
                    p.resize(most, -1);
                }
                fill(places, most)?
            }
            name => match given.0.get(name) {
                Some(value) => value.clone(),
                None => match spec.empty_cache(rows.len()) {
                    Some(empty) => empty,
                    None => continue,
                },
            },
        };
        feeds.insert(&spec.name, value);
    }
    Ok(feeds)
}
