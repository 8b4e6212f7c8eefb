//! Parts of splits as `datasets` writes them: `train`, `train[:100]`, `train[10%:20%]`, `train[-5:]`, `train+validation`.

use std::ops::Range;

/// A part of a split.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Slice {
    pub(super) split: String,
    from: Option<i64>,
    to: Option<i64>,
    percent: bool,
    /// Whether a percent is the same whole number of rows everywhere (`pct1_dropremainder`); otherwise borders are rounded (`closest`).
    whole: bool,
}

/// The parts of a text, in order. The error says what is wrong with it.
pub(super) fn parse(text: &str) -> Result<Vec<Slice>, String> {
    text.split('+').map(|part| one(part.trim())).collect()
}

fn one(text: &str) -> Result<Slice, String> {
    let bad = || {
        format!(
            "`{text}` is no split: `train`, `train[:100]`, `train[10%:20%]`, `train[-5:]`, several joined by `+`"
        )
    };
    let end = text
        .find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '.' || c == '-'))
        .unwrap_or(text.len());
    let (split, rest) = text.split_at(end);
    let mut slice = Slice::whole(split);
    if split.is_empty() {
        return Err(bad());
    }
    let (inside, rest) = match rest.strip_prefix('[') {
        Some(rest) => {
            let (inside, rest) = rest.split_once(']').ok_or_else(bad)?;
            (Some(inside.split_once(':').ok_or_else(bad)?), rest)
        }
        None => (None, rest),
    };
    if let Some((from, to)) = inside {
        let mut border = |text: &str| -> Option<Option<i64>> {
            if text.is_empty() {
                return Some(None);
            }
            let number = text.strip_suffix('%');
            slice.percent |= number.is_some();
            number
                .unwrap_or(text)
                .replace('_', "")
                .parse()
                .ok()
                .map(Some)
        };
        slice.from = border(from).ok_or_else(bad)?;
        slice.to = border(to).ok_or_else(bad)?;
    }
    slice.whole = match rest {
        "" | "(closest)" => false,
        "(pct1_dropremainder)" => true,
        _ => return Err(bad()),
    };
    if !rest.is_empty() && !slice.percent {
        return Err(format!("`{text}` is rounded, and has no percents"));
    }
    let most = |x: &i64| x.unsigned_abs() > 100;
    if slice.percent && slice.from.iter().chain(&slice.to).any(most) {
        return Err(format!("`{text}` has more than 100 percent"));
    }
    Ok(slice)
}

impl std::fmt::Display for Slice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let border = |x: Option<i64>| {
            let percent = if self.percent { "%" } else { "" };
            x.map_or_else(String::new, |x| format!("{x}{percent}"))
        };
        match (self.from, self.to) {
            (None, None) => f.write_str(&self.split),
            (from, to) => write!(f, "{}[{}:{}]", self.split, border(from), border(to)),
        }
    }
}

impl Slice {
    /// All of a split.
    pub(super) fn whole(split: &str) -> Slice {
        Slice {
            split: split.to_owned(),
            from: None,
            to: None,
            percent: false,
            whole: false,
        }
    }

    /// Whether this is `all`, which stands for all splits one after the other.
    pub(super) fn is_all(&self) -> bool {
        self.split == "all" && self.from.is_none() && self.to.is_none()
    }

    /// The rows, where their number does not depend on how many there are.
    pub(super) fn fixed(&self) -> Option<Range<u64>> {
        let border = |x: Option<i64>, open: u64| match x {
            None => Some(open),
            Some(x) if !self.percent => u64::try_from(x).ok(),
            Some(_) => None,
        };
        Some(border(self.from, 0)?..border(self.to, u64::MAX)?)
    }

    /// The rows of a split with so many.
    pub(super) fn of(&self, rows: u64) -> Result<Range<u64>, String> {
        let n = i64::try_from(rows).unwrap_or(i64::MAX);
        if self.whole && n < 100 {
            return Err(format!(
                "`pct1_dropremainder` of the {n} rows of `{}` is nothing",
                self.split
            ));
        }
        let border = |x: i64| {
            let x = match (self.percent, self.whole) {
                (false, _) => x,
                (true, true) => x * (n / 100),
                // Python's `round`: half to even.
                (true, false) => (x as f64 * n as f64 / 100.0).round_ties_even() as i64,
            };
            let x = if x < 0 { (n + x).max(0) } else { x };
            u64::try_from(x.min(n)).unwrap_or_default()
        };
        Ok(self.from.map_or(0, border)..self.to.map_or(rows, border))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_split_is_told() {
        for bad in [
            "",
            "train[",
            "train[5]",
            "train[:a]",
            "train[:1]x",
            "train[:5](closest)",
            "+train",
            "train[:50%](floor)",
            "train[:101%]",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        let e = parse("train[:50%](pct1_dropremainder)").unwrap()[0].of(99);
        assert!(e.unwrap_err().contains("99 rows"));
        assert_eq!(parse("train[5:1_0]").unwrap()[0].fixed(), Some(5..10));
        assert_eq!(parse("a+b").unwrap()[1].fixed(), Some(0..u64::MAX));
        assert_eq!(parse("train[-5:]").unwrap()[0].fixed(), None);
    }
}
