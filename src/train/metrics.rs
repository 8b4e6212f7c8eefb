//! Measures of predictions against references: pure functions, defined as scikit-learn and Hugging Face's `evaluate` define them.
//!
//! Where a measure is not defined (a correlation of constants, a share of nothing) it is NaN.

use std::collections::BTreeMap;

/// How F1, precision and recall of several classes become one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Average {
    /// Those of one class.
    Binary {
        /// The class.
        positive: i64,
    },
    /// From the counts of all classes together.
    Micro,
    /// The mean over classes.
    Macro,
    /// The mean over classes, weighted by how often the references have them.
    Weighted,
}

/// Precision, recall and F1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Scores {
    /// Share of predictions that are right.
    pub precision: f64,
    /// Share of references that are found.
    pub recall: f64,
    /// Harmonic mean of both.
    pub f1: f64,
}

/// Share of equal pairs.
pub(crate) fn accuracy(predictions: &[i64], references: &[i64]) -> f64 {
    let same = predictions
        .iter()
        .zip(references)
        .filter(|(p, r)| p == r)
        .count();
    same as f64 / references.len() as f64
}

#[derive(Clone, Copy, Default)]
struct Counts {
    both: f64,
    predicted: f64,
    there: f64,
}

impl Counts {
    /// 0 for a share of nothing, as with `zero_division=0`.
    fn scores(self) -> Scores {
        let share = |a: f64, b: f64| if b > 0.0 { a / b } else { 0.0 };
        Scores {
            precision: share(self.both, self.predicted),
            recall: share(self.both, self.there),
            f1: share(2.0 * self.both, self.predicted + self.there),
        }
    }
}

/// Precision, recall and F1. Classes are those that predictions or references have.
pub(crate) fn precision_recall_f1(
    predictions: &[i64],
    references: &[i64],
    average: Average,
) -> Scores {
    let mut classes: BTreeMap<i64, Counts> = BTreeMap::new();
    for (&p, &r) in predictions.iter().zip(references) {
        classes.entry(p).or_default().predicted += 1.0;
        classes.entry(r).or_default().there += 1.0;
        if p == r {
            classes.entry(p).or_default().both += 1.0;
        }
    }
    match average {
        Average::Binary { positive } => {
            classes.get(&positive).copied().unwrap_or_default().scores()
        }
        Average::Micro => {
            let add = |a: Counts, b: &Counts| Counts {
                both: a.both + b.both,
                predicted: a.predicted + b.predicted,
                there: a.there + b.there,
            };
            classes.values().fold(Counts::default(), add).scores()
        }
        Average::Macro => mean(classes.values().map(|c| (c.scores(), 1.0))),
        Average::Weighted => mean(classes.values().map(|c| (c.scores(), c.there))),
    }
}

fn mean(scores: impl Iterator<Item = (Scores, f64)>) -> Scores {
    let (mut sum, mut weights) = ([0.0; 3], 0.0);
    for (s, w) in scores {
        for (to, x) in sum.iter_mut().zip([s.precision, s.recall, s.f1]) {
            *to += w * x;
        }
        weights += w;
    }
    let [precision, recall, f1] = sum.map(|x| x / weights);
    Scores {
        precision,
        recall,
        f1,
    }
}

/// Matthews' correlation of classes, in Gorodkin's form for several of them. 0 where one side has one class only.
pub(crate) fn matthews_correlation(predictions: &[i64], references: &[i64]) -> f64 {
    let n = references.len() as f64;
    let mut classes: BTreeMap<i64, (f64, f64)> = BTreeMap::new();
    let mut right = 0.0;
    for (&p, &r) in predictions.iter().zip(references) {
        classes.entry(p).or_default().0 += 1.0;
        classes.entry(r).or_default().1 += 1.0;
        right += f64::from(u8::from(p == r));
    }
    let sum = |f: &dyn Fn(&(f64, f64)) -> f64| classes.values().map(f).sum::<f64>();
    let both = right * n - sum(&|c| c.0 * c.1);
    let spread = (n * n - sum(&|c| c.0 * c.0)) * (n * n - sum(&|c| c.1 * c.1));
    if spread > 0.0 {
        both / spread.sqrt()
    } else {
        0.0
    }
}

/// Mean squared difference.
pub(crate) fn mean_squared_error(predictions: &[f64], references: &[f64]) -> f64 {
    let sum: f64 = predictions
        .iter()
        .zip(references)
        .map(|(p, r)| (p - r) * (p - r))
        .sum();
    sum / references.len() as f64
}

/// Mean absolute difference.
pub(crate) fn mean_absolute_error(predictions: &[f64], references: &[f64]) -> f64 {
    let sum: f64 = predictions
        .iter()
        .zip(references)
        .map(|(p, r)| (p - r).abs())
        .sum();
    sum / references.len() as f64
}

/// Pearson's correlation.
pub(crate) fn pearson(x: &[f64], y: &[f64]) -> f64 {
    let n = x.len().min(y.len()) as f64;
    let center = |v: &[f64]| v.iter().sum::<f64>() / n;
    let (mx, my) = (center(x), center(y));
    let (mut xy, mut xx, mut yy) = (0.0, 0.0, 0.0);
    for (a, b) in x.iter().zip(y) {
        xy += (a - mx) * (b - my);
        xx += (a - mx) * (a - mx);
        yy += (b - my) * (b - my);
    }
    if xx > 0.0 && yy > 0.0 {
        xy / (xx * yy).sqrt()
    } else {
        f64::NAN
    }
}

/// Spearman's correlation: Pearson's of ranks, equal values having the mean of theirs.
pub(crate) fn spearman(x: &[f64], y: &[f64]) -> f64 {
    pearson(&ranks(x), &ranks(y))
}

fn ranks(x: &[f64]) -> Vec<f64> {
    // Zeros of either sign are equal.
    let x: Vec<f64> = x.iter().map(|x| x + 0.0).collect();
    let mut order: Vec<usize> = (0..x.len()).collect();
    order.sort_by(|&a, &b| x[a].total_cmp(&x[b]));
    let mut out = vec![0.0; x.len()];
    let mut start = 0;
    while start < order.len() {
        let same = |i: &&usize| x[**i].total_cmp(&x[order[start]]).is_eq();
        let count = order[start..].iter().take_while(same).count();
        let rank = start as f64 + f64::midpoint(count as f64, 1.0);
        for &i in &order[start..start + count] {
            out[i] = rank;
        }
        start += count;
    }
    out
}

/// What makes no difference between texts. Spaces never do: ends are cut off, and several are one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Normalization {
    /// Upper and lower case.
    pub ignore_case: bool,
    /// ASCII punctuation.
    pub ignore_punctuation: bool,
}

impl Normalization {
    /// The text without what makes no difference.
    pub(crate) fn apply(self, text: &str) -> String {
        let mut out = text.to_owned();
        if self.ignore_case {
            out = out.to_lowercase();
        }
        if self.ignore_punctuation {
            out.retain(|c| !c.is_ascii_punctuation());
        }
        out.split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

/// Whether two texts are the same.
pub(crate) fn exact_match(prediction: &str, reference: &str, normalization: Normalization) -> bool {
    normalization.apply(prediction) == normalization.apply(reference)
}

/// A decimal number, exactly: `1,000.50` is `1000.5`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Decimal(String);

impl Decimal {
    fn new(negative: bool, digits: &str) -> Option<Self> {
        let plain: String = digits.chars().filter(|c| *c != ',').collect();
        let (whole, part) = plain.split_once('.').unwrap_or((&plain, ""));
        if whole.is_empty() && part.is_empty() {
            return None;
        }
        let (whole, part) = (whole.trim_start_matches('0'), part.trim_end_matches('0'));
        let whole = if whole.is_empty() { "0" } else { whole };
        let point = if part.is_empty() { "" } else { "." };
        let zero = whole == "0" && part.is_empty();
        let sign = if negative && !zero { "-" } else { "" };
        Some(Decimal(format!("{sign}{whole}{point}{part}")))
    }
}

impl std::fmt::Display for Decimal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// The number a text comes to, as for GSM8K: the one behind the first `####`, or the last one of the text. Commas between digits, a
/// dollar sign and a point at the end do not count.
pub(crate) fn final_number(text: &str) -> Option<Decimal> {
    let mut rest = text;
    while let Some((_, behind)) = rest.split_once("####") {
        let start = behind.trim_start();
        if let Some((number, at)) = numbers(start).into_iter().next()
            && start[..at].chars().all(|c| "$€£ -+=:*".contains(c))
        {
            return Some(number);
        }
        rest = behind;
    }
    numbers(text).pop().map(|n| n.0)
}

/// All numbers of a text, and where each begins.
fn numbers(text: &str) -> Vec<(Decimal, usize)> {
    let bytes = text.as_bytes();
    let digit = |i: usize| bytes.get(i).is_some_and(u8::is_ascii_digit);
    let mut out = Vec::new();
    let mut i = 0;
    while i < bytes.len() {
        let begins = digit(i) || (bytes[i] == b'.' && digit(i + 1));
        if !begins {
            i += 1;
            continue;
        }
        let start = i;
        let mut point = false;
        while i < bytes.len() {
            match bytes[i] {
                b'0'..=b'9' => {}
                // Three digits behind a comma, else it ends the number.
                b',' if !point && (1..=3).all(|k| digit(i + k)) && !digit(i + 4) => {}
                b'.' if !point && digit(i + 1) => point = true,
                _ => break,
            }
            i += 1;
        }
        let before = text[..start].trim_end_matches(['$', '€', '£']);
        // A minus sign behind a letter or a number is an operator or a hyphen.
        let signed = before
            .strip_suffix('-')
            .or_else(|| before.strip_suffix('\u{2212}'));
        let negative =
            signed.is_some_and(|b| !b.ends_with(|c: char| c.is_alphanumeric() || c == ')'));
        out.extend(Decimal::new(negative, &text[start..i]).map(|d| (d, start)));
    }
    out
}

/// Whether two texts come to the same number.
pub(crate) fn same_final_number(prediction: &str, reference: &str) -> bool {
    let number = final_number(reference);
    number.is_some() && final_number(prediction) == number
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reference values are those of scikit-learn and of `scipy.stats`, in double precision.
    const EXACT: f64 = 1e-12;

    fn near(a: f64, b: f64) {
        assert!((a - b).abs() < EXACT, "{a} {b}");
    }

    #[test]
    fn classes_are_scored_as_scikit_learn_does() {
        let p = [0, 2, 1, 0, 0, 1, 2, 2, 3, 0];
        let r = [0, 1, 2, 0, 0, 1, 2, 1, 1, 2];
        near(accuracy(&p, &r), 0.5);
        let s = precision_recall_f1(&p, &r, Average::Macro);
        near(s.precision, 0.395_833_333_333_333_3);
        near(s.recall, 0.395_833_333_333_333_3);
        near(s.f1, 0.380_952_380_952_380_93);
        near(precision_recall_f1(&p, &r, Average::Micro).f1, 0.5);
        near(
            precision_recall_f1(&p, &r, Average::Weighted).f1,
            0.490_476_190_476_190_4,
        );
        near(matthews_correlation(&p, &r), 0.308_957_190_326_662_3);
        let b = precision_recall_f1(
            &[1, 0, 1, 1],
            &[1, 1, 0, 1],
            Average::Binary { positive: 1 },
        );
        near(b.f1, 2.0 / 3.0);
        near(
            precision_recall_f1(&[0], &[0], Average::Binary { positive: 1 }).f1,
            0.0,
        );
    }

    #[test]
    fn correlations_are_those_of_scipy() {
        let x = [1.0, 2.0, 2.0, 4.0, 7.0];
        let y = [0.5, 1.5, 3.0, 2.5, 9.0];
        near(pearson(&x, &y), 0.934_516_906_556_354_6);
        near(spearman(&x, &y), 0.820_782_681_668_123_4);
        near(mean_squared_error(&x, &y), 1.55);
        near(mean_absolute_error(&x, &y), 1.1);
        assert!(pearson(&x, &[1.0; 5]).is_nan());
    }

    #[test]
    fn texts_come_to_a_number() {
        for (text, number) in [
            ("He pays 5 * 3 = 15 dollars.\n#### 15", Some("15")),
            ("#### $1,234.50.", Some("1234.5")),
            ("####-7", Some("-7")),
            ("#### - 7 then #### 8", Some("7")),
            ("so 3 apples, that is 12.", Some("12")),
            ("10-3=7", Some("7")),
            ("it is -4", Some("-4")),
            ("from 2 to 1,000,000", Some("1000000")),
            ("1,2 and 3", Some("3")),
            ("#### none, but 0.50", Some("0.5")),
            ("#### 18\n\nQuestion: 4 + 5", Some("18")),
            ("-0.0", Some("0")),
            ("no number", None),
        ] {
            let found = final_number(text).map(|d| d.to_string());
            assert_eq!(found.as_deref(), number, "{text}");
        }
        assert!(same_final_number("#### 72.00", "long story #### 72"));
        assert!(!same_final_number("none", "none"));
    }

    #[test]
    fn texts_match_but_for_what_makes_no_difference() {
        let plain = Normalization::default();
        assert!(exact_match(" the  cat\n", "the cat", plain));
        assert!(!exact_match("The cat.", "the cat", plain));
        let loose = Normalization {
            ignore_case: true,
            ignore_punctuation: true,
        };
        assert!(exact_match("The cat.", "the cat", loose));
    }
}
