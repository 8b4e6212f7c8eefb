//! `TfIdfVectorizer`: how often each of the n-grams of a list occurs in a row, with places left out between their parts or without.

use super::{BuildCx, Cx, Entry, Ins, Kernel, Outs, size_of};
use crate::ir::{AttrValue, DType};
use crate::runtime::value::{Fault, KResult};
use crate::runtime::walk::count;
use rustc_hash::FxHashMap;

#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Counts,
    Weights,
    Both,
}

struct Grams {
    mode: Mode,
    lengths: std::ops::RangeInclusive<usize>,
    skips: usize,
    /// By n-gram: its column, and its weight.
    known: FxHashMap<Vec<i64>, (usize, f32)>,
    width: usize,
}

impl Kernel for Grams {
    fn run(&self, cx: &Cx<'_>, ins: Ins) -> KResult<Outs> {
        let x = ins.need(0)?;
        let (rows, n) = match *x.dims() {
            [n] => (1, n),
            [rows, n] => (rows, n),
            _ => return Err(Fault(format!("an input of {:?}", x.dims()))),
        };
        let ids = x.to_ints()?;
        let mut out = cx.zeros(count(&[rows, self.width])?);
        for (row, o) in ids.chunks(n.max(1)).zip(out.chunks_mut(self.width.max(1))) {
            for length in self.lengths.clone() {
                // One element has no places between its parts.
                for step in 1..=if length == 1 { 1 } else { self.skips + 1 } {
                    let span = (length - 1) * step;
                    for first in 0..n.saturating_sub(span) {
                        let gram: Vec<i64> = (0..length).map(|i| row[first + i * step]).collect();
                        if let Some(&(at, weight)) = self.known.get(&gram) {
                            match self.mode {
                                Mode::Counts => o[at] += 1.0,
                                Mode::Weights => o[at] = weight,
                                Mode::Both => o[at] += weight,
                            }
                        }
                    }
                }
            }
        }
        let mut dims = x.dims().to_vec();
        if let Some(last) = dims.last_mut() {
            *last = self.width;
        }
        cx.one(out, &dims, DType::Float)
    }
}

fn make(cx: &mut BuildCx<'_>) -> KResult<Box<dyn Kernel>> {
    let list = |name: &str| {
        cx.ints(name)
            .ok_or_else(|| Fault(format!("the attribute `{name}` is missing")))
    };
    if cx.node.attr("pool_strings").is_some() {
        return Err("n-grams of strings".into());
    }
    let (pool, counts, indexes) = (
        list("pool_int64s")?,
        list("ngram_counts")?,
        list("ngram_indexes")?,
    );
    let weights = cx.node.attr("weights").and_then(AttrValue::as_floats);
    let mut known = FxHashMap::default();
    let mut nth = 0;
    for (i, &start) in counts.iter().enumerate() {
        let end = counts.get(i + 1).copied().unwrap_or(pool.len() as i64);
        let part = pool
            .get(size_of(start)?..size_of(end)?)
            .ok_or("ngram_counts beyond the pool")?;
        for gram in part.chunks_exact(i + 1) {
            let column = size_of(*indexes.get(nth).ok_or("fewer ngram_indexes than n-grams")?)?;
            let weight = weights.and_then(|w| w.get(nth).copied()).unwrap_or(1.0);
            known.insert(gram.to_vec(), (column, weight));
            nth += 1;
        }
    }
    let width = indexes
        .iter()
        .copied()
        .max()
        .map_or(Ok(0), |m| size_of(m + 1))?;
    Ok(Box::new(Grams {
        mode: match cx.node.str("mode") {
            Some("TF") => Mode::Counts,
            Some("IDF") => Mode::Weights,
            Some("TFIDF") => Mode::Both,
            other => return Err(Fault(format!("mode = {other:?}"))),
        },
        lengths: size_of(cx.need_int("min_gram_length")?)?.max(1)
            ..=size_of(cx.need_int("max_gram_length")?)?,
        skips: size_of(cx.need_int("max_skip_count")?)?,
        known,
        width,
    }))
}

pub(super) const KERNELS: &[Entry] = &[("", "TfIdfVectorizer", make)];
