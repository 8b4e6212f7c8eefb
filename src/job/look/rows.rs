//! Tasks whose answers need no text to be generated: classes, numbers, tags, spans and masked words.

use super::Looker;
use crate::error::Result;
use crate::ir::contract;
use crate::rewrite::pipelines;
use crate::runtime::{Feeds, Plan};
use crate::train::watch::{Classes, Estimate, Guess, Look, Sample};
use crate::train::{IGNORE, Task, answers_of, labels_of};
use std::collections::BTreeMap;
use std::time::Instant;

/// Rows that are looked at.
const ROWS: usize = 500;
/// Answers of a row that are shown.
const GUESSES: usize = 3;
/// Words of a row whose answers are shown.
const WORDS: usize = 40;
/// Tokens of an answer to a question.
const SPAN: usize = 30;

/// What a model answers to a row.
struct Row {
    ids: Vec<i64>,
    /// For each output, its values.
    found: Vec<Vec<f32>>,
    /// For each output, what is right: classes, places or numbers.
    right: Vec<Vec<f64>>,
}

impl Looker<'_> {
    /// Answers to the rows, before and after.
    pub(super) fn rows(&self, look: &mut Look, until: Instant) -> Result<()> {
        let task = self.settings.data.task;
        let model = pipelines::inference(self.settings.model.mode())
            .run(self.model.clone())?
            .model;
        let names = answers_of(&model, task)?;
        let mut options = self.compile()?;
        options.outputs = Some(names.clone());
        let plan = Plan::compile(&model, &options)?;
        let after = self.answered(&plan, &names, &self.given, until)?;
        let before = self.answered(&plan, &names, &Feeds::new(), until)?;
        let all = self.data().len();
        if after.len() < all {
            let n = after.len();
            look.notes
                .push(format!("The first {n} of {all} examples were looked at"));
        }
        match task {
            Task::Classification | Task::TokenClassification => {
                look.classes = Some(self.classes(&after, &before));
            }
            Task::Regression => look.numbers = estimates(&after, &before),
            Task::MultiLabel
            | Task::QuestionAnswering
            | Task::MaskedLm
            | Task::CausalLm
            | Task::Seq2seq => {}
        }
        let shown = after.iter().take(self.settings.job.report_samples);
        for (i, row) in shown.enumerate() {
            look.samples.push(Sample {
                given: self.text(&self.trimmed(&row.ids)),
                expected: self.expected(row),
                before: before.get(i).map(|row| self.guesses(row)),
                after: Some(self.guesses(row)),
            });
        }
        Ok(())
    }

    /// Runs the plan on rows, in their order, as long as there is time.
    fn answered(
        &self,
        plan: &Plan,
        names: &[String],
        given: &Feeds,
        until: Instant,
    ) -> Result<Vec<Row>> {
        let (data, collator) = (self.data(), self.collator());
        let rows: Vec<Vec<usize>> = (0..data.len().min(ROWS)).map(|i| vec![i]).collect();
        let mut out = Vec::new();
        for chunk in rows.chunks(self.settings.training.per_device_eval_batch_size) {
            if Instant::now() >= until {
                break;
            }
            let feeds = collator.rows(data, chunk)?.feeds;
            let labels = labels_of(&feeds);
            let ids = feeds
                .0
                .get(contract::INPUT_IDS)
                .and_then(|v| v.to_ints().ok());
            let ids = ids.unwrap_or_default();
            let mut feeds = feeds.for_plan(plan);
            for (name, value) in &given.0 {
                feeds.insert(name, value.clone());
            }
            let results = plan.run(&feeds)?;
            let part = |all: usize, r: usize| {
                let each = all / chunk.len().max(1);
                r * each..(r + 1) * each
            };
            for r in 0..chunk.len() {
                let mut row = Row {
                    ids: ids[part(ids.len(), r)].to_vec(),
                    found: Vec::new(),
                    right: Vec::new(),
                };
                for (name, labels) in names.iter().zip(&labels) {
                    let found = results[name.as_str()].0.to_f32().unwrap_or_default();
                    row.found.push(found[part(found.len(), r)].to_vec());
                    let right: Vec<f64> = match labels.to_ints() {
                        Ok(ints) => ints.iter().map(|&i| i as f64).collect(),
                        Err(_) => labels
                            .to_f32()
                            .unwrap_or_default()
                            .iter()
                            .map(|&x| f64::from(x))
                            .collect(),
                    };
                    row.right.push(right[part(right.len(), r)].to_vec());
                }
                out.push(row);
            }
        }
        Ok(out)
    }

    /// Ids without padding in front and behind.
    fn trimmed(&self, ids: &[i64]) -> Vec<i64> {
        let pad = self.loaded.pad_id;
        let first = ids.iter().position(|i| *i != pad).unwrap_or(0);
        let last = ids.iter().rposition(|i| *i != pad).map_or(0, |i| i + 1);
        ids.get(first..last).unwrap_or_default().to_vec()
    }

    fn class(&self, class: usize) -> String {
        let names = &self.loaded.report.label_names;
        names
            .get(class)
            .map_or_else(|| class.to_string(), Clone::clone)
    }

    fn classes(&self, after: &[Row], before: &[Row]) -> Classes {
        let mut pairs: BTreeMap<(i64, i64), u64> = BTreeMap::new();
        for (right, found) in after.iter().flat_map(|r| places(r).collect::<Vec<_>>()) {
            *pairs.entry((right, best(found) as i64)).or_default() += 1;
        }
        let (mut hits, mut all) = (0usize, 0usize);
        for (right, found) in before.iter().flat_map(|r| places(r).collect::<Vec<_>>()) {
            hits += usize::from(right == best(found) as i64);
            all += 1;
        }
        Classes {
            names: self.loaded.report.label_names.clone(),
            pairs: pairs.into_iter().map(|(k, n)| (k.0, k.1, n)).collect(),
            before: (all > 0 && before.len() == after.len()).then(|| hits as f64 / all as f64),
        }
    }

    /// What is right for a row, in words.
    fn expected(&self, row: &Row) -> String {
        let right = || row.right.first().map_or(&[][..], Vec::as_slice);
        match self.settings.data.task {
            Task::Classification => {
                let class = right().first().copied().unwrap_or(-1.0);
                self.class(class as usize)
            }
            Task::TokenClassification => {
                let tags = marked(row).map(|(at, right, _)| (at, right as usize));
                self.tagged(row, tags)
            }
            Task::MaskedLm => {
                let words = marked(row).map(|(_, right, _)| self.text(&[right]));
                words.take(WORDS).collect::<Vec<_>>().join(", ")
            }
            Task::MultiLabel => {
                let set = right().iter().enumerate().filter(|(_, x)| **x > 0.5);
                listed(&set.map(|(c, _)| self.class(c)).collect::<Vec<_>>())
            }
            Task::QuestionAnswering => {
                let at = |i: usize| row.right.get(i).and_then(|r| r.first()).copied();
                self.span(row, at(0).zip(at(1)).map(|(a, b)| (a as usize, b as usize)))
            }
            Task::Regression | Task::CausalLm | Task::Seq2seq => numbers(right().iter().copied()),
        }
    }

    /// What the model answers to a row, in words.
    fn guesses(&self, row: &Row) -> Vec<Guess> {
        let found = row.found.first().map_or(&[][..], Vec::as_slice);
        let one = |text: String| vec![Guess { text, share: None }];
        match self.settings.data.task {
            Task::Classification => {
                let mut shares: Vec<(usize, f64)> =
                    softmax(found).into_iter().enumerate().collect();
                shares.sort_by(|a, b| b.1.total_cmp(&a.1));
                let guess = |(class, share): (usize, f64)| Guess {
                    text: self.class(class),
                    share: Some(share),
                };
                shares.into_iter().take(GUESSES).map(guess).collect()
            }
            Task::TokenClassification => {
                let tags = marked(row).map(|(at, _, found)| (at, best(found)));
                one(self.tagged(row, tags))
            }
            Task::MaskedLm => {
                let words = marked(row).map(|(_, _, found)| self.text(&[best(found) as i64]));
                one(words.take(WORDS).collect::<Vec<_>>().join(", "))
            }
            Task::MultiLabel => {
                let set = found.iter().enumerate().filter(|(_, x)| **x > 0.0);
                one(listed(&set.map(|(c, _)| self.class(c)).collect::<Vec<_>>()))
            }
            Task::QuestionAnswering => one(self.span(row, answer(row))),
            Task::Regression | Task::CausalLm | Task::Seq2seq => {
                one(numbers(found.iter().map(|&x| f64::from(x))))
            }
        }
    }

    /// Words with their tags.
    fn tagged(&self, row: &Row, tags: impl Iterator<Item = (usize, usize)>) -> String {
        let word = |(at, tag): (usize, usize)| {
            let id = row.ids.get(at).copied().unwrap_or(IGNORE);
            // One that is unknown to the tokenizer is said as it says that.
            let text = self.tokenizer.and_then(|t| t.decode(&[id], false).ok());
            let text = text.unwrap_or_else(|| id.to_string());
            format!("{} {}", text.trim(), self.class(tag))
        };
        let words: Vec<String> = tags.take(WORDS).map(word).collect();
        words.join("\n")
    }

    /// The tokens of an answer.
    fn span(&self, row: &Row, span: Option<(usize, usize)>) -> String {
        let ids = span.and_then(|(from, until)| row.ids.get(from..=until));
        self.text(ids.unwrap_or_default()).trim().to_owned()
    }
}

/// The place with the largest value; the first of equal ones.
fn best(values: &[f32]) -> usize {
    let first = (0, f32::NEG_INFINITY);
    let more = |b: (usize, f32), (i, &x): (usize, &f32)| if x > b.1 { (i, x) } else { b };
    values.iter().enumerate().fold(first, more).0
}

fn softmax(values: &[f32]) -> Vec<f64> {
    let most = f64::from(values.get(best(values)).copied().unwrap_or(0.0));
    let powers: Vec<f64> = values
        .iter()
        .map(|&x| (f64::from(x) - most).exp())
        .collect();
    let sum: f64 = powers.iter().sum();
    powers.into_iter().map(|p| p / sum).collect()
}

/// Where a row is labelled, the class that is right there, and the values of all classes.
fn marked(row: &Row) -> impl Iterator<Item = (usize, i64, &[f32])> {
    let right = row.right.first().map_or(&[][..], Vec::as_slice);
    let found = row.found.first().map_or(&[][..], Vec::as_slice);
    let width = found.len().checked_div(right.len()).unwrap_or(0).max(1);
    let each = right.iter().zip(found.chunks(width)).enumerate();
    let each = each.map(|(at, (right, found))| (at, *right as i64, found));
    each.filter(|(_, right, _)| *right != IGNORE)
}

/// The same without places.
fn places(row: &Row) -> impl Iterator<Item = (i64, &[f32])> {
    marked(row).map(|(_, right, found)| (right, found))
}

/// The most probable answer: its first token, and the best last one behind it.
fn answer(row: &Row) -> Option<(usize, usize)> {
    let [starts, ends] = row.found.as_slice() else {
        return None;
    };
    let from = best(starts);
    let behind = ends.get(from..ends.len().min(from + SPAN))?;
    Some((from, from + best(behind)))
}

fn estimates(after: &[Row], before: &[Row]) -> Vec<Estimate> {
    let one = |values: &[f32]| match values {
        [x] => Some(f64::from(*x)),
        _ => None,
    };
    let found = |row: &Row| row.found.first().and_then(|f| one(f));
    let each = after.iter().enumerate().filter_map(|(i, row)| {
        let [right] = row.right.first()?.as_slice() else {
            return None;
        };
        Some(Estimate {
            right: *right,
            before: before.get(i).and_then(found),
            after: Some(found(row)?),
        })
    });
    each.collect()
}

fn numbers(values: impl Iterator<Item = f64>) -> String {
    let all: Vec<String> = values.map(|x| format!("{x:.4}")).collect();
    all.join(", ")
}

fn listed(names: &[String]) -> String {
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(found: &[&[f32]], right: &[&[f64]]) -> Row {
        Row {
            ids: vec![7, 8, 9],
            found: found.iter().map(|f| f.to_vec()).collect(),
            right: right.iter().map(|r| r.to_vec()).collect(),
        }
    }

    #[test]
    fn labelled_places_have_their_classes() {
        let r = row(&[&[1.0, 2.0, 5.0, 0.0, 0.0, 3.0]], &[&[-100.0, 1.0, 1.0]]);
        let all: Vec<_> = marked(&r).collect();
        assert_eq!(all, [(1, 1, &[5.0, 0.0][..]), (2, 1, &[0.0, 3.0][..])]);
        let whole = row(&[&[1.0, 4.0]], &[&[1.0]]);
        assert_eq!(places(&whole).collect::<Vec<_>>(), [(1, &[1.0, 4.0][..])]);
    }

    #[test]
    fn an_answer_ends_behind_its_beginning() {
        let r = row(&[&[0.0, 5.0, 1.0], &[9.0, 1.0, 2.0]], &[&[1.0], &[2.0]]);
        assert_eq!(answer(&r), Some((1, 2)));
    }

    #[test]
    fn shares_add_up() {
        let s = softmax(&[1000.0, 1000.0, f32::NEG_INFINITY]);
        assert!((s[0] - 0.5).abs() < 1e-12 && s[2] == 0.0);
    }

    #[test]
    fn numbers_are_paired() {
        let after = [
            row(&[&[1.5]], &[&[1.0]]),
            row(&[&[2.0, 3.0]], &[&[1.0, 2.0]]),
        ];
        let before = [row(&[&[4.0]], &[&[1.0]])];
        let found = estimates(&after, &before);
        let want = Estimate {
            right: 1.0,
            before: Some(4.0),
            after: Some(1.5),
        };
        assert_eq!(found, [want]);
    }
}
