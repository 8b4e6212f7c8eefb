//! How probable a model finds given texts.

use super::failed;
use crate::analyze::logits::logits;
use crate::diag::Diagnostic;
use crate::error::Result;
use crate::infer::Verified;
use crate::ir::contract;
use crate::rewrite::pipelines::{self, Mode};
use crate::runtime::{CompileOptions, Plan, Value};

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
    /// Adds others.
    pub(crate) fn add(&mut self, other: Self) {
        self.loss += other.loss;
        self.items += other.items;
        self.correct += other.correct;
        self.samples += other.samples;
    }

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

/// Scores texts. Logits are computed at labelled positions only.
///
/// `next` gives the texts of one batch after the other until there are none.
pub(crate) fn score(
    model: Verified,
    portable: bool,
    compile: &CompileOptions,
    mut next: impl FnMut() -> Result<Option<Vec<Scored>>>,
) -> Result<TokenScores> {
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
    let mut sum = TokenScores::default();
    while let Some(rows) = next()? {
        sum.add(batch(&plan, &name, &rows)?);
    }
    Ok(sum)
}

fn batch(plan: &Plan, name: &str, rows: &[Scored]) -> Result<TokenScores> {
    let wrong = |e: &dyn std::fmt::Display| failed("score", e.to_string());
    let width = rows.iter().map(|r| r.ids.len()).max().unwrap_or(0);
    // The logits of a position say the token behind it.
    let labelled = |labels: &[i64]| -> Vec<(i64, i64)> {
        let pairs = labels.iter().enumerate().skip(1).filter(|(_, l)| **l >= 0);
        pairs.map(|(i, l)| (i as i64 - 1, *l)).collect()
    };
    let chosen: Vec<Vec<(i64, i64)>> = rows.iter().map(|r| labelled(&r.labels)).collect();
    let most = chosen.iter().map(Vec::len).max().unwrap_or(0);
    let mut out = TokenScores {
        samples: rows.len(),
        ..TokenScores::default()
    };
    if most == 0 {
        return Ok(out);
    }
    let fill = |rows: Vec<Vec<i64>>, width: usize| {
        let mut data = vec![0; rows.len() * width];
        for (row, to) in rows.iter().zip(data.chunks_mut(width)) {
            to[..row.len()].copy_from_slice(row);
        }
        Value::from_i64(&[rows.len(), width], data).map_err(|e| wrong(&e))
    };
    let each = |f: &dyn Fn(&[i64]) -> Vec<i64>| rows.iter().map(|r| f(&r.ids)).collect::<Vec<_>>();
    let mut feeds = crate::runtime::Feeds::new();
    for spec in plan.feeds() {
        let value = match spec.name.as_str() {
            contract::INPUT_IDS => fill(each(&<[i64]>::to_vec), width)?,
            contract::ATTENTION_MASK => fill(each(&|r| vec![1; r.len()]), width)?,
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
            _ => match spec.empty_cache(rows.len()) {
                Some(empty) => empty,
                None => continue,
            },
        };
        feeds.insert(&spec.name, value);
    }
    let results = plan.run(&feeds)?;
    let value = results
        .get(name)
        .ok_or_else(|| wrong(&format!("no output `{name}`")))?;
    let vocab = value.dims().last().copied().unwrap_or(0);
    if value.dims() != [rows.len(), most, vocab] {
        return Err(wrong(&format!("`{name}` has the shape {:?}", value.dims())));
    }
    let data = value.to_f32().map_err(|e| wrong(&e))?;
    for (r, labels) in chosen.iter().enumerate() {
        for (i, &(_, label)) in labels.iter().enumerate() {
            let start = (r * most + i) * vocab;
            let scores = &data[start..start + vocab];
            let Some(&own) = usize::try_from(label).ok().and_then(|l| scores.get(l)) else {
                return Err(wrong(&format!(
                    "label {label} is outside the vocabulary of {vocab}"
                )));
            };
            let (best, top) =
                scores
                    .iter()
                    .enumerate()
                    .fold(
                        (0, f32::NEG_INFINITY),
                        |b, (i, &s)| if s > b.1 { (i, s) } else { b },
                    );
            let sum: f64 = scores.iter().map(|&s| f64::from(s - top).exp()).sum();
            out.loss += sum.ln() + f64::from(top) - f64::from(own);
            out.items += 1;
            out.correct += usize::from(best as i64 == label);
        }
    }
    Ok(out)
}
