//! From examples to batches: which examples stand together, and how they become tensors.

use super::data::{Dataset, Example, IGNORE, Labels};
use super::masking::Masking;
use crate::budget;
use crate::diag::Diagnostic;
use crate::draw::{self, Draws};
use crate::error::{Error, ErrorKind, Result};
use crate::ir::contract;
use crate::options::Options;
use crate::runtime::{Feeds, Value};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The examples of one micro-batch by index: a list for each row, with one example each unless rows are packed.
pub(crate) type Rows = Vec<Vec<usize>>;

/// Where padding goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum PaddingSide {
    /// Behind the tokens.
    #[default]
    Right,
    /// Before them.
    Left,
}

/// How examples become batches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct CollateArguments {
    /// Where padding goes (default: where `tokenizer_config.json` says, else right).
    pub padding_side: Option<PaddingSide>,
    /// Makes the length of a batch a multiple of this.
    pub pad_to_multiple_of: Option<usize>,
    /// Puts examples of similar length together, in a random order otherwise.
    pub group_by_length: bool,
    /// Puts several examples into one row of at most `max_seq_length` tokens, with attention and positions of each kept apart, so
    /// that no time is spent on padding. `per_device_train_batch_size` counts such rows.
    pub packing: bool,
}

impl Options for CollateArguments {
    fn wrong(&self) -> Vec<Diagnostic> {
        let none = (self.pad_to_multiple_of == Some(0)).then(|| {
            Diagnostic::error("option", "`pad_to_multiple_of` must be at least 1")
                .help("leave it out to pad to the longest")
        });
        none.into_iter().collect()
    }
}

/// The tensors of one micro-batch.
#[derive(Clone, Debug)]
pub(crate) struct Batch {
    /// Every input that the batch can serve, by name of the graph input. Who runs a graph takes what the graph reads.
    pub feeds: Feeds,
    /// Number of examples.
    pub examples: usize,
    /// Number of labels, as Hugging Face's Trainer counts `num_items_in_batch`: before the shift of a causal language model.
    pub items: usize,
    /// Number of labels that the loss sees: after the shift.
    pub scored: usize,
    /// Number of tokens, padding not counted.
    pub tokens: usize,
    /// Number of positions, padding counted.
    pub positions: usize,
}

impl Batch {
    /// What the batch adds to the number that its window's summed loss is divided by: [`items`](Self::items), and
    /// [`scored`](Self::scored) where labels are smoothed, because Hugging Face's label smoother takes the mean after the shift.
    pub(crate) fn divisor(&self, smoothed: bool) -> usize {
        if smoothed { self.scored } else { self.items }
    }
}

/// Decides which examples stand together, epoch by epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sampler {
    /// Rows of one micro-batch.
    pub batch_size: usize,
    /// Seed of the order.
    pub seed: u64,
    /// Draws a new order each epoch; otherwise that of the file.
    pub shuffle: bool,
    /// Drops the last incomplete micro-batch.
    pub drop_last: bool,
    /// Puts examples of similar length together.
    pub group_by_length: bool,
    /// Packs rows of at most so many tokens.
    pub pack: Option<usize>,
}

/// Rows are packed within so many examples of the shuffled order, so that the order stays random.
const PACK_WINDOW: usize = 1024;

impl Sampler {
    /// The micro-batches of an epoch over examples of these lengths in tokens. The same on every machine. `O(n log n)`.
    pub(crate) fn epoch(&self, lengths: &[u32], epoch: u64) -> Vec<Rows> {
        let mut order = if self.shuffle {
            epoch_order(lengths.len(), self.seed, epoch)
        } else {
            (0..lengths.len()).collect()
        };
        let size = self.batch_size.max(1);
        if self.group_by_length {
            group(&mut order, lengths, size);
        }
        let rows: Vec<Vec<usize>> = match self.pack {
            Some(capacity) => order
                .chunks(PACK_WINDOW)
                .flat_map(|w| packed(w, lengths, capacity))
                .collect(),
            None => order.into_iter().map(|i| vec![i]).collect(),
        };
        let keep = if self.drop_last {
            rows.len() / size
        } else {
            rows.len().div_ceil(size)
        };
        rows.chunks(size)
            .take(keep)
            .map(<[Vec<usize>]>::to_vec)
            .collect()
    }
}

/// Sorts within groups of at most fifty batches, the longest first, as Hugging Face's length-grouped sampler does. The longest example of
/// all comes first, so that memory that does not suffice shows at once.
fn group(order: &mut [usize], lengths: &[u32], size: usize) {
    let batches = (order.len() / size.saturating_mul(4)).clamp(1, 50);
    let longest = (0..order.len()).max_by_key(|&at| (lengths[order[at]], std::cmp::Reverse(at)));
    if let Some(at) = longest {
        order[..=at].rotate_right(1);
    }
    for part in order.chunks_mut(batches.saturating_mul(size)) {
        part.sort_by_key(|&i| std::cmp::Reverse(lengths[i]));
    }
}

/// Best-fit decreasing: each example, longest first, goes into the fullest row that has room.
fn packed(window: &[usize], lengths: &[u32], capacity: usize) -> Vec<Vec<usize>> {
    let mut longest: Vec<usize> = (0..window.len()).collect();
    longest.sort_by_key(|&at| std::cmp::Reverse(lengths[window[at]]));
    let mut rows: Vec<Vec<usize>> = Vec::new();
    // Rows by the room they have.
    let mut rooms: std::collections::BTreeMap<usize, Vec<usize>> =
        std::collections::BTreeMap::new();
    for at in longest {
        let need = (lengths[window[at]] as usize).min(capacity);
        let fit = rooms.range(need..).next().map(|(room, _)| *room);
        let found = fit.and_then(|room| Some((room, rooms.get_mut(&room)?.pop()?)));
        let (room, row) = found.unwrap_or_else(|| {
            rows.push(Vec::new());
            (capacity, rows.len() - 1)
        });
        if rooms.get(&room).is_some_and(Vec::is_empty) {
            rooms.remove(&room);
        }
        rows[row].push(at);
        rooms.entry(room - need).or_default().push(row);
    }
    // In the order of the window again.
    for row in &mut rows {
        row.sort_unstable();
    }
    rows.sort_by_key(|row| row.first().copied());
    rows.into_iter()
        .map(|row| row.into_iter().map(|at| window[at]).collect())
        .collect()
}

/// Turns examples into tensors.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Collator {
    /// The id of padding.
    pub pad_id: i64,
    /// Where it goes.
    pub side: PaddingSide,
    /// Makes the length a multiple of this.
    pub multiple_of: Option<usize>,
    /// Whether rows say which example each position belongs to.
    pub packing: bool,
    /// What an encoder-decoder's decoder begins with.
    pub decoder_start: DecoderStart,
    /// How tokens are masked that are to be told.
    pub masking: Option<Masking>,
}

/// What a decoder reads in front of the shifted labels (`shift_tokens_right` of Transformers).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DecoderStart {
    /// This token: `decoder_start_token_id`.
    Token(i64),
    /// The last token of the labels, moved to the front: mBART and `PLBart`, where it says the language.
    Last,
}

impl Default for DecoderStart {
    fn default() -> Self {
        DecoderStart::Token(0)
    }
}

/// Columns of a batch under construction: rows of equal width.
struct Grid {
    rows: usize,
    width: usize,
    left: bool,
}

impl Grid {
    /// A tensor from the content of each row, padded.
    fn fill(&self, pad: i64, content: impl Iterator<Item = Vec<i64>>) -> Result<Value> {
        let what = || format!("a batch of {} rows of {} tokens", self.rows, self.width);
        let bytes = budget::bytes_of([self.rows as u64, self.width as u64], 8);
        budget::check(what, bytes).map_err(|e| failed(&e.to_string()))?;
        let mut out = vec![pad; self.rows * self.width];
        for (r, row) in content.enumerate() {
            let at = r * self.width + if self.left { self.width - row.len() } else { 0 };
            out[at..at + row.len()].copy_from_slice(&row);
        }
        Value::from_i64(&[self.rows, self.width], out).map_err(|e| failed(&e.to_string()))
    }
}

impl Collator {
    /// The same in this epoch.
    pub(crate) fn at(&self, epoch: u64) -> Collator {
        Collator {
            masking: self.masking.map(|m| Masking { epoch, ..m }),
            ..self.clone()
        }
    }

    fn grid(&self, widths: impl Iterator<Item = usize>) -> Grid {
        let (mut rows, mut width) = (0, 0);
        for w in widths {
            rows += 1;
            width = width.max(w);
        }
        let multiple = self.multiple_of.unwrap_or(1).max(1);
        Grid {
            rows,
            width: width
                .checked_next_multiple_of(multiple)
                .unwrap_or(usize::MAX),
            left: self.side == PaddingSide::Left,
        }
    }

    /// A batch of the rows of a dataset that are named by the indices of their examples.
    ///
    /// # Errors
    /// Those of [`collate`](Self::collate), and data that cannot be read.
    pub(crate) fn rows(&self, data: &Dataset, rows: &[Vec<usize>]) -> Result<Batch> {
        let example = |&i: &usize| {
            let mut e = data.get(i)?;
            if let Some(masking) = &self.masking {
                masking.apply(i, &mut e);
            }
            Ok(e)
        };
        let examples = |row: &Vec<usize>| row.iter().map(example).collect();
        let rows: Vec<Vec<Example>> = rows.iter().map(examples).collect::<Result<_>>()?;
        self.collate(&rows)
    }

    /// A batch of rows, padded to the longest.
    ///
    /// # Errors
    /// Rows whose labels are of different kinds; several examples in a row whose labels are not one for each token.
    pub(crate) fn collate(&self, rows: &[Vec<Example>]) -> Result<Batch> {
        let width = |row: &Vec<Example>| row.iter().map(|e| e.input_ids.len()).sum();
        let grid = self.grid(rows.iter().map(width));
        let tokens = rows.iter().map(width).sum();
        let join = |f: &dyn Fn(&Example) -> Vec<i64>| -> Vec<Vec<i64>> {
            rows.iter()
                .map(|row| row.iter().flat_map(f).collect())
                .collect()
        };
        let ids = join(&|e| e.input_ids.clone());
        let places = join(&|e| (0..e.input_ids.len() as i64).collect());
        let types = join(&|e| {
            e.token_type_ids
                .clone()
                .unwrap_or_else(|| vec![0; e.input_ids.len()])
        });
        let ones = join(&|e| vec![1; e.input_ids.len()]);
        // Padding on the right counts on, as `arange` does; a packed row may be longer than positions go. On the left it has the position
        // of Hugging Face's generation, 1.
        let positions = places.into_iter().map(|mut row| {
            if !grid.left && !self.packing {
                row.extend(row.len() as i64..grid.width as i64);
            }
            row
        });
        let mut feeds = Feeds::new()
            .with(
                contract::INPUT_IDS,
                grid.fill(self.pad_id, ids.into_iter())?,
            )
            .with(contract::ATTENTION_MASK, grid.fill(0, ones.into_iter())?)
            .with(contract::POSITION_IDS, grid.fill(1, positions)?)
            .with(contract::TOKEN_TYPE_IDS, grid.fill(0, types.into_iter())?);
        if self.packing {
            let segments = rows.iter().map(|row| {
                let each = row.iter().enumerate();
                each.flat_map(|(i, e)| vec![i as i64 + 1; e.input_ids.len()])
                    .collect()
            });
            feeds = feeds.with(contract::SEGMENT_IDS, grid.fill(0, segments)?);
        }
        let examples: Vec<&Example> = rows.iter().flatten().collect();
        if let Some(tasks) = examples
            .iter()
            .map(|e| e.task_id)
            .collect::<Option<Vec<i64>>>()
        {
            let ids = vector(tasks)?;
            // A graph has one of the two inputs.
            feeds = feeds
                .with(contract::TASK_IDS, ids.clone())
                .with(contract::ADAPTER_IDS, ids);
        }
        let (feeds, items, scored) = self.labels(rows, &grid, feeds)?;
        Ok(Batch {
            feeds,
            examples: examples.len(),
            items,
            scored,
            tokens,
            positions: grid.rows * grid.width,
        })
    }

    /// The labels, with their count before and after the shift.
    fn labels(
        &self,
        rows: &[Vec<Example>],
        grid: &Grid,
        feeds: Feeds,
    ) -> Result<(Feeds, usize, usize)> {
        let Some(first) = rows.iter().flatten().next() else {
            return Ok((feeds, 0, 0));
        };
        let mixed = || failed("the examples of a batch have labels of different kinds");
        if let Labels::Tokens(_) = first.labels {
            let mut out = Vec::with_capacity(rows.len());
            let (mut items, mut scored) = (0, 0);
            for row in rows {
                let mut joined = Vec::new();
                for (i, e) in row.iter().enumerate() {
                    let Labels::Tokens(l) = &e.labels else {
                        return Err(mixed());
                    };
                    let start = joined.len();
                    joined.extend_from_slice(l);
                    items += count(l);
                    scored += count(l.get(1..).unwrap_or_default());
                    // What stands before the first token is another example, or padding: it does not predict it.
                    if let (true, Some(label)) = (i > 0 || grid.left, joined.get_mut(start)) {
                        *label = IGNORE;
                    }
                }
                out.push(joined);
            }
            return Ok((
                feeds.with(contract::LABELS, grid.fill(IGNORE, out.into_iter())?),
                items,
                scored,
            ));
        }
        if rows.iter().any(|r| r.len() != 1) {
            let d = Diagnostic::error(
                "batch",
                "rows are packed only where each token has its label",
            );
            let d = d.help("train without packing; `group_by_length` also saves padding");
            return Err(Error::new(ErrorKind::Train, d));
        }
        let examples: Vec<&Example> = rows.iter().flatten().collect();
        match first.labels {
            Labels::Tokens(_) => Err(mixed()),
            Labels::Each(_) => {
                let each = |e: &&Example| match &e.labels {
                    Labels::Each(l) => Some(l.clone()),
                    _ => None,
                };
                let all = examples.iter().map(each).collect::<Option<Vec<_>>>();
                let all = all.ok_or_else(mixed)?;
                let n = all.iter().map(|l| count(l)).sum();
                let labels = grid.fill(IGNORE, all.into_iter())?;
                Ok((feeds.with(contract::LABELS, labels), n, n))
            }
            Labels::Span(..) => {
                let mut ends = [Vec::new(), Vec::new()];
                for e in &examples {
                    let Labels::Span(from, until) = e.labels else {
                        return Err(mixed());
                    };
                    let shift = if grid.left {
                        (grid.width - e.input_ids.len()) as i64
                    } else {
                        0
                    };
                    ends[0].push(from + shift);
                    ends[1].push(until + shift);
                }
                let [from, until] = ends;
                let n = examples.len();
                let feeds = feeds
                    .with(contract::START_POSITIONS, vector(from)?)
                    .with(contract::END_POSITIONS, vector(until)?);
                Ok((feeds, n, n))
            }
            Labels::Sequence(_) => self
                .sequences(&examples, feeds)
                .and_then(|f| f.ok_or_else(mixed)),
            Labels::Class(_) => {
                let class = |e: &&Example| match e.labels {
                    Labels::Class(c) => Some(c),
                    _ => None,
                };
                let classes: Vec<i64> = examples
                    .iter()
                    .map(class)
                    .collect::<Option<_>>()
                    .ok_or_else(mixed)?;
                let n = classes.iter().filter(|&&c| c != IGNORE).count();
                Ok((feeds.with(contract::LABELS, vector(classes)?), n, n))
            }
            Labels::Values(ref one) => {
                let width = one.len();
                let mut values = Vec::new();
                for e in &examples {
                    match &e.labels {
                        Labels::Values(v) if v.len() == width => values.extend_from_slice(v),
                        _ => return Err(mixed()),
                    }
                }
                let labels = Value::from_f32(&[examples.len(), width], values)
                    .map_err(|e| failed(&e.to_string()))?;
                let n = examples.len() * width;
                Ok((feeds.with(contract::LABELS, labels), n, n))
            }
        }
    }

    /// Inputs and labels of a decoder. Its input is the label sequence shifted right, behind the start token.
    fn sequences(
        &self,
        examples: &[&Example],
        feeds: Feeds,
    ) -> Result<Option<(Feeds, usize, usize)>> {
        let mut targets = Vec::with_capacity(examples.len());
        for e in examples {
            match &e.labels {
                Labels::Sequence(l) => targets.push(l.clone()),
                _ => return Ok(None),
            }
        }
        let grid = Grid {
            left: false,
            ..self.grid(targets.iter().map(Vec::len))
        };
        let shifted = targets.iter().map(|l| {
            let token = |&l: &i64| if l == IGNORE { self.pad_id } else { l };
            let before = l.iter().take(l.len().saturating_sub(1)).map(token);
            let last = || l.iter().rev().find(|l| **l != IGNORE && **l != self.pad_id);
            let first = match self.decoder_start {
                DecoderStart::Token(id) => id,
                DecoderStart::Last => last().copied().unwrap_or(self.pad_id),
            };
            std::iter::once(first).chain(before).collect()
        });
        let decoder = grid.fill(self.pad_id, shifted)?;
        let mask = grid.fill(0, targets.iter().map(|l| vec![1; l.len()]))?;
        let items = targets.iter().map(|l| count(l)).sum();
        let feeds = feeds
            .with(contract::DECODER_INPUT_IDS, decoder)
            .with(contract::DECODER_ATTENTION_MASK, mask)
            .with(contract::LABELS, grid.fill(IGNORE, targets.into_iter())?);
        Ok(Some((feeds, items, items)))
    }
}

fn count(labels: &[i64]) -> usize {
    labels.iter().filter(|&&l| l != IGNORE).count()
}

fn vector(data: Vec<i64>) -> Result<Value> {
    Value::from_i64(&[data.len()], data).map_err(|e| failed(&e.to_string()))
}

/// The order of `n` examples in an epoch: a seeded shuffle, the same on every machine.
pub(crate) fn epoch_order(n: usize, seed: u64, epoch: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    let mut draws = Draws::new(draw::of_epoch(seed, epoch));
    for i in (1..n).rev() {
        let j = ((u128::from(draws.next()) * (i as u128 + 1)) >> 64) as usize;
        order.swap(i, j);
    }
    order
}

fn failed(message: &str) -> Error {
    Error::new(ErrorKind::Train, Diagnostic::error("batch", message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> [Vec<Example>; 2] {
        [
            vec![Example::tokens(vec![1, 2, 3], vec![1, 2, 3])],
            vec![Example::tokens(vec![4, 5], vec![IGNORE, 5])],
        ]
    }

    fn ints(b: &Batch, name: &str) -> Vec<i64> {
        b.feeds.0[name].to_ints().unwrap().into_iter().collect()
    }

    #[test]
    fn rows_are_padded_to_the_longest() {
        let b = Collator {
            pad_id: 9,
            ..Collator::default()
        }
        .collate(&rows())
        .unwrap();
        assert_eq!(ints(&b, "input_ids"), [1, 2, 3, 4, 5, 9]);
        assert_eq!(ints(&b, "attention_mask"), [1, 1, 1, 1, 1, 0]);
        assert_eq!(ints(&b, "position_ids"), [0, 1, 2, 0, 1, 2]);
        assert_eq!(ints(&b, "labels"), [1, 2, 3, -100, 5, -100]);
        assert_eq!((b.items, b.scored, b.tokens, b.positions), (4, 3, 5, 6));
    }

    #[test]
    fn padding_goes_left_and_to_a_multiple() {
        let c = Collator {
            pad_id: 9,
            side: PaddingSide::Left,
            multiple_of: Some(4),
            ..Collator::default()
        };
        let b = c.collate(&rows()).unwrap();
        assert_eq!(ints(&b, "input_ids"), [9, 1, 2, 3, 9, 9, 4, 5]);
        assert_eq!(ints(&b, "position_ids"), [1, 0, 1, 2, 1, 1, 0, 1]);
        assert_eq!(ints(&b, "labels"), [-100, -100, 2, 3, -100, -100, -100, 5]);
        // The same numbers as with padding on the right.
        assert_eq!((b.items, b.scored), (4, 3));
        assert_eq!((b.divisor(false), b.divisor(true)), (4, 3));
    }

    #[test]
    fn packed_rows_keep_their_examples_apart() {
        let row = rows().concat();
        let c = Collator {
            packing: true,
            ..Collator::default()
        };
        let b = c.collate(&[row]).unwrap();
        assert_eq!(ints(&b, "input_ids"), [1, 2, 3, 4, 5]);
        assert_eq!(ints(&b, "position_ids"), [0, 1, 2, 0, 1]);
        assert_eq!(ints(&b, "segment_ids"), [1, 1, 1, 2, 2]);
        assert_eq!(ints(&b, "labels"), [1, 2, 3, -100, 5]);
        assert_eq!((b.items, b.scored, b.positions), (4, 3, 5));
    }

    #[test]
    fn padding_of_a_packed_row_has_a_small_position() {
        let c = Collator {
            packing: true,
            multiple_of: Some(8),
            ..Collator::default()
        };
        let b = c.collate(&[rows().concat()]).unwrap();
        assert_eq!(ints(&b, "segment_ids"), [1, 1, 1, 2, 2, 0, 0, 0]);
        assert_eq!(ints(&b, "position_ids"), [0, 1, 2, 0, 1, 1, 1, 1]);
    }

    fn labelled(labels: Labels) -> Vec<Example> {
        let mut e = Example::tokens(vec![1, 2], vec![]);
        e.labels = labels;
        vec![e]
    }

    #[test]
    fn classes_and_values_are_one_row_each() {
        let c = Collator::default();
        let rows = [Labels::Class(3), Labels::Class(IGNORE), Labels::Class(0)].map(labelled);
        let b = c.collate(&rows).unwrap();
        assert_eq!(ints(&b, "labels"), [3, -100, 0]);
        assert_eq!((b.items, b.scored), (2, 2));
        let rows = [vec![0.5, 1.0], vec![2.0, -1.0]].map(|v| labelled(Labels::Values(v)));
        let b = c.collate(&rows).unwrap();
        assert_eq!(b.feeds.0["labels"].to_f32().unwrap(), [0.5, 1.0, 2.0, -1.0]);
        assert_eq!(b.feeds.0["labels"].dims(), [2, 2]);
        assert_eq!(b.items, 4);
    }

    #[test]
    fn sequences_are_padded_on_the_right_whatever_the_inputs_are() {
        let c = Collator {
            pad_id: 9,
            side: PaddingSide::Left,
            decoder_start: DecoderStart::Token(2),
            ..Collator::default()
        };
        let rows = [vec![5, 6, 1], vec![7]].map(|l| labelled(Labels::Sequence(l)));
        let rotated = Collator {
            decoder_start: DecoderStart::Last,
            ..c
        };
        let b = rotated.collate(&rows).unwrap();
        assert_eq!(ints(&b, "decoder_input_ids"), [1, 5, 6, 7, 9, 9]);
        let b = c.collate(&rows).unwrap();
        assert_eq!(ints(&b, "labels"), [5, 6, 1, 7, -100, -100]);
        assert_eq!(ints(&b, "decoder_input_ids"), [2, 5, 6, 2, 9, 9]);
        assert_eq!(ints(&b, "decoder_attention_mask"), [1, 1, 1, 1, 0, 0]);
    }

    #[test]
    fn types_and_tasks_come_along() {
        let [mut a, b] = rows();
        a[0].token_type_ids = Some(vec![0, 1, 1]);
        a[0].task_id = Some(4);
        let batch = Collator::default()
            .collate(&[a.clone(), b.clone()])
            .unwrap();
        assert_eq!(ints(&batch, "token_type_ids"), [0, 1, 1, 0, 0, 0]);
        // A task that some example does not have is none.
        assert!(!batch.feeds.0.contains_key("task_ids"));
        let batch = Collator::default().collate(&[a]).unwrap();
        assert_eq!(ints(&batch, "task_ids"), [4]);
    }

    #[test]
    fn labels_that_do_not_go_together_are_refused() {
        let c = Collator::default();
        let mixed = [
            labelled(Labels::Class(1)),
            labelled(Labels::Values(vec![1.0])),
        ];
        let e = c.collate(&mixed).unwrap_err().to_string();
        assert!(e.contains("different kinds"), "{e}");
        let two = [labelled(Labels::Class(1)), labelled(Labels::Class(2))].concat();
        let e = c.collate(&[two]).unwrap_err().to_string();
        assert!(
            e.contains("each token has its label") && e.contains("without packing"),
            "{e}"
        );
    }

    #[test]
    fn a_decoder_reads_its_labels_shifted() {
        let mut e = Example::tokens(vec![1, 2], vec![]);
        e.labels = Labels::Sequence(vec![7, 8, 1]);
        let b = Collator::default().collate(&[vec![e]]).unwrap();
        assert_eq!(ints(&b, "decoder_input_ids"), [0, 7, 8]);
        assert_eq!(ints(&b, "labels"), [7, 8, 1]);
        assert_eq!(b.items, 3);
    }

    #[test]
    fn an_epoch_is_a_permutation_that_depends_on_seed_and_epoch() {
        let mut a = epoch_order(100, 1, 0);
        assert_ne!(a, epoch_order(100, 1, 1));
        assert_ne!(a, epoch_order(100, 2, 0));
        assert_eq!(a, epoch_order(100, 1, 0));
        a.sort_unstable();
        assert_eq!(a, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn packing_wastes_little_and_loses_nothing() {
        let lengths: Vec<u32> = (0..3000).map(|i| 10 + (i * 7919) % 191).collect();
        let sampler = Sampler {
            batch_size: 2,
            shuffle: true,
            pack: Some(512),
            ..Sampler::default()
        };
        let rows: Vec<Vec<usize>> = sampler.epoch(&lengths, 0).concat();
        let mut all = rows.concat();
        all.sort_unstable();
        assert_eq!(all, (0..3000).collect::<Vec<_>>());
        let fill = |r: &Vec<usize>| r.iter().map(|&i| lengths[i]).sum::<u32>();
        assert!(rows.iter().all(|r| fill(r) <= 512));
        let tokens: u32 = lengths.iter().sum();
        assert!(f64::from(tokens) / (rows.len() * 512) as f64 > 0.95);
        assert_ne!(sampler.epoch(&lengths, 0), sampler.epoch(&lengths, 1));
    }

    #[test]
    fn grouping_puts_similar_lengths_together() {
        let lengths: Vec<u32> = (0..1000).map(|i| 1 + (i * 7919) % 500).collect();
        let spread = |group_by_length| {
            let sampler = Sampler {
                batch_size: 10,
                shuffle: true,
                group_by_length,
                ..Sampler::default()
            };
            let batches = sampler.epoch(&lengths, 0);
            let waste = |b: &Rows| {
                let l: Vec<u32> = b.concat().iter().map(|&i| lengths[i]).collect();
                l.iter().max().unwrap() * l.len() as u32 - l.iter().sum::<u32>()
            };
            batches.iter().map(waste).sum::<u32>()
        };
        assert!(spread(true) * 5 < spread(false));
    }
}
