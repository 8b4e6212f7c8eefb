//! The closer look at a model, as the page shows it.

use super::chart::{Chart, Curve, drawable, scatter};
use super::digits;
use crate::diag::grouped;
use crate::error::Result;
use crate::train::watch::{Classes, Estimate, Guess, Look, Sample, TokenLoss};
use serde::Serialize;
use std::collections::BTreeMap;

/// Classes of a matrix. Of more, those pairs are shown that were mistaken most often.
const CLASSES: usize = 20;
/// Mistaken pairs, and rows of a table.
const PAIRS: usize = 20;
const ROWS: usize = 100;
/// Tokens that are listed as the hardest.
const HARDEST: usize = 10;
/// From these losses on, a token is marked: its probability is below a half, an eighth, 2 % and 1 in 400.
const LEVELS: [f64; 4] = [0.7, 2.0, 4.0, 6.0];

#[derive(Debug, Serialize)]
pub(super) struct Shown {
    of: &'static str,
    seconds: String,
    notes: Vec<String>,
    samples: Vec<Answered>,
    texts: Vec<Vec<Token>>,
    hardest: Vec<[String; 3]>,
    matrix: Option<Matrix>,
    mistaken: Vec<[String; 3]>,
    classes: Vec<[String; 5]>,
    right: String,
    scatter: Option<Chart>,
}

/// An example with its answers.
#[derive(Debug, Serialize)]
struct Answered {
    given: String,
    expected: String,
    before: Option<Vec<Answer>>,
    after: Option<Vec<Answer>>,
}

#[derive(Debug, Serialize)]
struct Answer {
    text: String,
    /// Its probability in percent, where it has one.
    share: Option<String>,
    /// Whether it is what is right.
    right: bool,
}

/// A token of a text, and how hard it is: 0 to 4; nothing for one that is not learned.
#[derive(Debug, Serialize)]
struct Token {
    text: String,
    level: Option<usize>,
    said: String,
}

/// A confusion matrix: a row for each class that is right.
#[derive(Debug, Serialize)]
struct Matrix {
    names: Vec<String>,
    rows: Vec<Vec<Cell>>,
}

#[derive(Debug, Serialize)]
struct Cell {
    count: String,
    /// Share of the row in percent.
    share: u64,
    right: bool,
}

pub(super) fn shown(look: &Look) -> Result<Shown> {
    let classes = look.classes.as_ref();
    Ok(Shown {
        of: if look.evaluation {
            "evaluation"
        } else {
            "training"
        },
        seconds: format!("{:.1}", look.seconds),
        notes: look.notes.clone(),
        samples: look.samples.iter().map(answered).collect(),
        texts: look.tokens.iter().map(|t| tokens(t)).collect(),
        hardest: hardest(&look.tokens),
        matrix: classes.and_then(matrix),
        mistaken: classes.map(mistaken).unwrap_or_default(),
        classes: classes.map(by_class).unwrap_or_default(),
        right: classes.map(right).unwrap_or_default(),
        scatter: scattered(&look.numbers)?,
    })
}

fn answered(sample: &Sample) -> Answered {
    let expected = sample.expected.trim();
    let answers = |guesses: &Option<Vec<Guess>>| {
        let answer = |(i, g): (usize, &Guess)| Answer {
            text: g.text.clone(),
            share: g.share.map(|s| format!("{:.0}", 100.0 * s)),
            right: i == 0 && !expected.is_empty() && g.text.trim() == expected,
        };
        let guesses = guesses.as_ref();
        guesses.map(|all| all.iter().enumerate().map(answer).collect())
    };
    Answered {
        given: sample.given.clone(),
        expected: sample.expected.clone(),
        before: answers(&sample.before),
        after: answers(&sample.after),
    }
}

fn change(t: &TokenLoss) -> (String, String) {
    let say = |x: Option<f64>| x.map_or_else(|| "–".to_owned(), |x| format!("{x:.2}"));
    (say(t.before), say(t.after))
}

fn tokens(text: &[TokenLoss]) -> Vec<Token> {
    let token = |t: &TokenLoss| {
        let (before, after) = change(t);
        let level = t
            .after
            .map(|loss| LEVELS.iter().filter(|l| loss >= **l).count());
        Token {
            text: t.text.clone(),
            level,
            said: match (t.before, t.after) {
                (_, None) => "read, not learned".to_owned(),
                (None, Some(_)) => format!("loss {after}"),
                (Some(_), Some(_)) => format!("loss {before} → {after}"),
            },
        }
    };
    text.iter().map(token).collect()
}

/// The tokens with the largest losses.
fn hardest(texts: &[Vec<TokenLoss>]) -> Vec<[String; 3]> {
    let mut all: Vec<&TokenLoss> = texts
        .iter()
        .flatten()
        .filter(|t| t.after.is_some())
        .collect();
    all.sort_by(|a, b| b.after.unwrap_or(0.0).total_cmp(&a.after.unwrap_or(0.0)));
    let row = |t: &&TokenLoss| {
        let (before, after) = change(t);
        [t.text.clone(), before, after]
    };
    all.iter().take(HARDEST).map(row).collect()
}

/// The classes that occur, and how often each pair does.
fn counts(classes: &Classes) -> (Vec<i64>, BTreeMap<(i64, i64), u64>) {
    let mut pairs: BTreeMap<(i64, i64), u64> = BTreeMap::new();
    for &(right, found, n) in &classes.pairs {
        *pairs.entry((right, found)).or_default() += n;
    }
    let mut ids: Vec<i64> = pairs.keys().flat_map(|k| [k.0, k.1]).collect();
    if classes.names.len() <= CLASSES {
        ids.extend(0..classes.names.len() as i64);
    }
    ids.sort_unstable();
    ids.dedup();
    (ids, pairs)
}

fn percent(part: u64, all: u64) -> u64 {
    (100.0 * part as f64 / all.max(1) as f64).round() as u64
}

fn matrix(classes: &Classes) -> Option<Matrix> {
    let (ids, pairs) = counts(classes);
    if ids.len() > CLASSES || pairs.is_empty() {
        return None;
    }
    let count = |right: i64, found: i64| pairs.get(&(right, found)).copied().unwrap_or(0);
    let row = |&right: &i64| {
        let all: u64 = ids.iter().map(|&found| count(right, found)).sum();
        let cell = |&found: &i64| Cell {
            count: grouped(count(right, found)),
            share: percent(count(right, found), all),
            right: right == found,
        };
        ids.iter().map(cell).collect()
    };
    Some(Matrix {
        names: ids.iter().map(|&c| classes.name(c)).collect(),
        rows: ids.iter().map(row).collect(),
    })
}

/// Pairs that were mistaken most often: of many classes, in the place of a matrix.
fn mistaken(classes: &Classes) -> Vec<[String; 3]> {
    let (ids, pairs) = counts(classes);
    if ids.len() <= CLASSES {
        return Vec::new();
    }
    let mut wrong: Vec<_> = pairs.into_iter().filter(|(k, _)| k.0 != k.1).collect();
    wrong.sort_by_key(|(k, n)| (std::cmp::Reverse(*n), *k));
    let row = |((right, found), n): ((i64, i64), u64)| {
        [classes.name(right), classes.name(found), grouped(n)]
    };
    wrong.into_iter().take(PAIRS).map(row).collect()
}

/// Precision, recall and F1 of each class, and how often it is right; the commonest classes first.
fn by_class(classes: &Classes) -> Vec<[String; 5]> {
    let (ids, pairs) = counts(classes);
    let sum = |of: &dyn Fn(&(i64, i64)) -> bool| -> u64 {
        pairs.iter().filter(|(k, _)| of(k)).map(|(_, n)| n).sum()
    };
    let share = |a: u64, b: u64| {
        if b == 0 {
            "–".to_owned()
        } else {
            format!("{:.3}", a as f64 / b as f64)
        }
    };
    let mut rows: Vec<(u64, [String; 5])> = Vec::new();
    for &c in &ids {
        let both = pairs.get(&(c, c)).copied().unwrap_or(0);
        let (there, found) = (sum(&|k| k.0 == c), sum(&|k| k.1 == c));
        let row = [
            classes.name(c),
            share(both, found),
            share(both, there),
            share(2 * both, there + found),
            grouped(there),
        ];
        rows.push((there, row));
    }
    rows.sort_by_key(|(there, _)| std::cmp::Reverse(*there));
    rows.into_iter().take(ROWS).map(|(_, row)| row).collect()
}

/// How many are right.
fn right(classes: &Classes) -> String {
    let all: u64 = classes.pairs.iter().map(|p| p.2).sum();
    let right = classes.pairs.iter().filter(|p| p.0 == p.1);
    let right: u64 = right.map(|p| p.2).sum();
    let before = classes.before.map_or_else(String::new, |b| {
        format!("; before the run, {:.0} % were", 100.0 * b)
    });
    format!(
        "{} of {} are right ({} %){before}",
        grouped(right),
        grouped(all),
        percent(right, all)
    )
}

fn scattered(numbers: &[Estimate]) -> Result<Option<Chart>> {
    let curve = |name: &str, colour, of: fn(&Estimate) -> Option<f64>| Curve {
        name: name.to_owned(),
        points: drawable(numbers.iter().filter_map(|e| Some((e.right, of(e)?)))),
        colour,
        faint: colour > 0,
    };
    let mut curves = vec![
        curve("before", 1, |e| e.before),
        curve("after", 0, |e| e.after),
    ];
    curves.retain(|c| !c.points.is_empty());
    let mut chart = scatter(&curves)?;
    if let Some(chart) = &mut chart {
        let error = |of: fn(&Estimate) -> Option<f64>| {
            let each: Vec<f64> = numbers
                .iter()
                .filter_map(|e| Some((of(e)? - e.right).abs()))
                .collect();
            let mean = each.iter().sum::<f64>() / each.len().max(1) as f64;
            (!each.is_empty()).then(|| digits(mean))
        };
        let (before, after) = (error(|e| e.before), error(|e| e.after));
        if let Some(after) = after {
            let before = before.map_or_else(String::new, |b| format!("{b} → "));
            chart.note += &format!("; mean error {before}{after}");
        }
    }
    Ok(chart)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classes(names: &[&str], pairs: &[(i64, i64, u64)]) -> Classes {
        Classes {
            names: names.iter().map(|n| (*n).to_owned()).collect(),
            pairs: pairs.to_vec(),
            before: Some(0.5),
        }
    }

    #[test]
    fn classes_are_counted_by_what_is_right() {
        let c = classes(&["no", "yes", "maybe"], &[(0, 0, 3), (0, 1, 1), (1, 1, 2)]);
        let m = matrix(&c).unwrap();
        assert_eq!(m.names, ["no", "yes", "maybe"]);
        let row: Vec<(String, u64, bool)> = m.rows[0]
            .iter()
            .map(|c| (c.count.clone(), c.share, c.right))
            .collect();
        let want = [("3", 75, true), ("1", 25, false), ("0", 0, false)];
        assert_eq!(row, want.map(|(n, s, r)| (n.to_owned(), s, r)));
        // Precision, recall, F1 and number, as scikit-learn's classification_report gives them.
        assert_eq!(by_class(&c)[0], ["no", "1.000", "0.750", "0.857", "4"]);
        assert_eq!(by_class(&c)[1], ["yes", "0.667", "1.000", "0.800", "2"]);
        assert_eq!(by_class(&c)[2], ["maybe", "–", "–", "–", "0"]);
        assert_eq!(
            right(&c),
            "5 of 6 are right (83 %); before the run, 50 % were"
        );
        assert!(mistaken(&c).is_empty());
    }

    #[test]
    fn of_many_classes_the_pairs_are_shown_that_were_mistaken_most() {
        let pairs: Vec<_> = (0..200).map(|c| (c, (c + 1) % 200, 1 + c as u64)).collect();
        let c = classes(&[], &pairs);
        assert!(matrix(&c).is_none());
        assert_eq!((mistaken(&c).len(), by_class(&c).len()), (PAIRS, ROWS));
        assert_eq!(mistaken(&c)[0], ["199", "0", "200"]);
    }

    #[test]
    fn tokens_are_marked_by_their_losses() {
        let token = |text: &str, before, after| TokenLoss {
            text: text.to_owned(),
            before,
            after,
        };
        let text = [
            token("Q", None, None),
            token("easy", Some(3.0), Some(0.1)),
            token("hard", Some(3.0), Some(6.5)),
        ];
        let levels: Vec<_> = tokens(&text).iter().map(|t| t.level).collect();
        assert_eq!(levels, [None, Some(0), Some(4)]);
        assert_eq!(hardest(&[text.to_vec()])[0], ["hard", "3.00", "6.50"]);
    }

    #[test]
    fn numbers_are_points() {
        let e = Estimate {
            right: 1.0,
            before: Some(3.0),
            after: Some(1.5),
        };
        let chart = scattered(&[e, e]).unwrap().unwrap();
        assert!(chart.note.ends_with("mean error 2 → 0.5"), "{}", chart.note);
        assert_eq!(chart.svg.matches("<circle").count(), 4);
        assert!(scattered(&[]).unwrap().is_none());
    }
}
