//! Which tokens are labels when only completions are learned: the rules of TRL's `DataCollatorForCompletionOnlyLM` (TRL 0.19.1).

use super::IGNORE;

/// Finds the completions in a sequence by the tokens that stand before them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CompletionMask {
    /// The tokens that a response begins with; they are no labels themselves.
    pub response: Vec<i64>,
    /// The tokens that an instruction begins with, in conversations of several turns.
    pub instruction: Option<Vec<i64>>,
    /// The padding token: never a label, wherever it stands. Where it is the end-of-sequence token too, that is not learned.
    pub pad_id: Option<i64>,
}

/// One of the two templates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Marker {
    Response,
    Instruction,
}

impl CompletionMask {
    /// The template that is missing in a sequence in which not everything was found.
    pub(super) fn missing(&self, ids: &[i64]) -> Marker {
        let label = |&id: &i64| if Some(id) == self.pad_id { IGNORE } else { id };
        let labels: Vec<i64> = ids.iter().map(label).collect();
        match matches(&labels, &self.response).next() {
            Some(_) => Marker::Instruction,
            None => Marker::Response,
        }
    }

    /// The labels of a sequence, and whether everything was found that had to be. Where not, every label is [`IGNORE`].
    ///
    /// Without an instruction template, what follows the last response template counts. With one, what follows each response template
    /// counts up to the next instruction template. Linear in the length of the sequence times that of a template.
    pub(crate) fn labels(&self, ids: &[i64]) -> (Vec<i64>, bool) {
        let label = |&id: &i64| if Some(id) == self.pad_id { IGNORE } else { id };
        let mut labels: Vec<i64> = ids.iter().map(label).collect();
        let ends: Vec<usize> = matches(&labels, &self.response)
            .map(|at| at + self.response.len())
            .collect();
        let starts: Option<Vec<usize>> = self
            .instruction
            .as_ref()
            .map(|t| matches(&labels, t).collect());
        let Some(&last) = ends.last() else {
            labels.fill(IGNORE);
            return (labels, false);
        };
        let Some(mut starts) = starts else {
            labels[..last].fill(IGNORE);
            return (labels, true);
        };
        let Some(&first) = starts.first() else {
            labels.fill(IGNORE);
            return (labels, false);
        };
        // A response before the first instruction: as if an instruction stood at the beginning.
        if first > ends[0] {
            starts.insert(0, 0);
        }
        for (k, (&start, &end)) in starts.iter().zip(&ends).enumerate() {
            let start = if k == 0 { 0 } else { start };
            if start < end {
                labels[start..end].fill(IGNORE);
            }
        }
        if let Some(&rest) = starts.last().filter(|_| ends.len() < starts.len()) {
            labels[rest..].fill(IGNORE);
        }
        (labels, true)
    }
}

fn matches<'a>(labels: &'a [i64], template: &'a [i64]) -> impl Iterator<Item = usize> + 'a {
    let windows = labels.windows(template.len().max(1)).enumerate();
    windows
        .filter(move |(_, w)| *w == template)
        .map(|(at, _)| at)
}
