//! The tokens of a row: columns of ids, and the cut to the longest length.

use super::args::Side;
use super::roles::Roles;
use super::{Example, Labels};
use crate::text::Token;
use std::ops::Range;

type Found<T> = std::result::Result<T, String>;

/// The token columns of a row, without what the attention mask leaves out.
pub(super) struct Columns {
    pub(super) ids: Vec<i64>,
    types: Option<Vec<i64>>,
    mask: Option<Vec<i64>>,
    /// Number of ids in the row.
    pub(super) given: usize,
}

impl Columns {
    pub(super) fn read(roles: &Roles<'_>) -> Found<Self> {
        let ids = roles.integers("input_ids")?;
        let given = ids.len();
        let same = |role: &str| -> Found<Option<Vec<i64>>> {
            if !roles.has(role) {
                return Ok(None);
            }
            let values = roles.integers(role)?;
            if values.len() == given {
                Ok(Some(values))
            } else {
                Err(format!("{role} of {} for {given} input_ids", values.len()))
            }
        };
        let mut out = Columns {
            mask: same("attention_mask")?,
            types: None,
            ids: Vec::new(),
            given,
        };
        out.types = same("token_type_ids")?.map(|t| out.kept(t));
        out.ids = out.kept(ids);
        Ok(out)
    }

    pub(super) fn kept(&self, values: Vec<i64>) -> Vec<i64> {
        match &self.mask {
            Some(mask) => values
                .into_iter()
                .zip(mask)
                .filter(|(_, m)| **m != 0)
                .map(|(v, _)| v)
                .collect(),
            None => values,
        }
    }

    pub(super) fn cut(&mut self, labels: &mut Vec<i64>, max: usize, side: Side) -> bool {
        if self.ids.len() <= max {
            return false;
        }
        for list in [Some(&mut self.ids), Some(labels), self.types.as_mut()]
            .into_iter()
            .flatten()
        {
            match side {
                Side::Right => list.truncate(max),
                Side::Left => drop(list.drain(..list.len().saturating_sub(max))),
            }
        }
        true
    }

    pub(super) fn example(self, labels: Labels) -> Example {
        Example {
            input_ids: self.ids,
            labels,
            token_type_ids: self.types.filter(|t| t.iter().any(|&t| t != 0)),
            task_id: None,
        }
    }
}

pub(super) fn overlap(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start < b.end && b.start < a.end
}

/// What a token cut from a text has to tell.
pub(super) trait Cut {
    fn text(&self) -> Option<u8>;
}

impl Cut for Token {
    fn text(&self) -> Option<u8> {
        self.text
    }
}

impl Cut for (Token, bool) {
    fn text(&self) -> Option<u8> {
        self.0.text
    }
}

/// Cuts tokens to the longest length, and says whether it did. The tokens that the post-processor added stay; of a pair the longer text
/// is cut first, as the strategy `longest_first` of transformers does.
pub(super) fn cut<T: Cut>(tokens: Vec<T>, max: usize, side: Side) -> Found<(Vec<T>, bool)> {
    if tokens.len() <= max {
        return Ok((tokens, false));
    }
    let count = |text: Option<u8>| tokens.iter().filter(|t| t.text() == text).count();
    let lengths = [count(Some(0)), count(Some(1))];
    let Some(room) = max.checked_sub(count(None)).filter(|&r| r > 0) else {
        return Err(format!(
            "{max} tokens have no room for more than the {} special ones",
            count(None)
        ));
    };
    let short = lengths[0].min(lengths[1]);
    let (short, long) = if 2 * short <= room {
        (short, room - short)
    } else {
        (room / 2, room - room / 2)
    };
    let keep = if lengths[0] <= lengths[1] {
        [short, long]
    } else {
        [long, short]
    };
    let mut seen = [0, 0];
    let kept = |t: &T| {
        let Some(text) = t.text() else {
            return true;
        };
        let k = usize::from(text.min(1));
        let at = seen[k];
        seen[k] += 1;
        match side {
            Side::Right => at < keep[k],
            Side::Left => at >= lengths[k] - keep[k],
        }
    };
    Ok((tokens.into_iter().filter(kept).collect(), true))
}
