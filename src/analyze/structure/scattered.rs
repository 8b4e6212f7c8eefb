//! Attention whose scores are no one product, as Longformer's, which are put together from chunks.
//!
//! What holds for any attention holds here: two projections of a value go into a softmax, a third one does not, and what all three make
//! runs into the same linear.

use super::super::softmax;
use super::{Core, Projection, Structure};
use crate::ir::{Use, ValueId};
use rustc_hash::{FxHashMap, FxHashSet};
use std::collections::VecDeque;

/// How far such an attention is followed. It bounds the work for each linear.
const FAR: usize = 4096;

/// Where a linear's result goes.
#[derive(Default)]
struct Way {
    /// The linears that it runs into.
    next: Vec<usize>,
    /// Whether a softmax lies between, on any way.
    softened: bool,
    /// The operand of the first product that it is.
    slot: Option<u32>,
}

impl Structure<'_> {
    /// Cores by where projections of the same value go.
    pub(super) fn scattered(&self) -> Vec<Core> {
        let mut groups: Vec<Vec<usize>> = Vec::new();
        let mut of: FxHashMap<ValueId, usize> = FxHashMap::default();
        for (i, l) in self.linears.flowing() {
            let at = *of.entry(self.view.root(l.input)).or_insert_with(|| {
                groups.push(Vec::new());
                groups.len() - 1
            });
            groups[at].push(i);
        }
        let groups = groups.iter().filter(|g| g.len() >= 3);
        groups.filter_map(|g| self.scattered_core(g)).collect()
    }

    fn scattered_core(&self, projections: &[usize]) -> Option<Core> {
        let ways: Vec<(usize, Way)> = projections.iter().map(|l| (*l, self.way(*l))).collect();
        let softened: Vec<_> = ways.iter().filter(|(_, w)| w.softened).collect();
        let [(a, from_a), (b, from_b)] = softened[..] else {
            return None;
        };
        let &[o] = &from_a.next[..] else { return None };
        let mut values = ways.iter().filter(|(_, w)| !w.softened && w.next == [o]);
        let (v, None) = (values.next()?.0, values.next()) else {
            return None;
        };
        if from_b.next != [o] {
            return None;
        }
        let (q, k) = if from_a.slot > from_b.slot {
            (*b, *a)
        } else {
            (*a, *b)
        };
        let whole = |linear| {
            Some(Projection {
                linear,
                columns: None,
            })
        };
        Some(Core {
            heart: {
                let mixed = self.view.producer(self.linears.all[o].input);
                mixed.unwrap_or(self.linears.all[o].core)
            },
            q: whole(q),
            k: whole(k),
            v: whole(v),
            o,
            input: self.linears.all[q].input,
            cross: false,
        })
    }

    /// Follows what a linear makes up to the next linears.
    fn way(&self, linear: usize) -> Way {
        let view = self.view;
        let mut way = Way::default();
        let mut seen: FxHashSet<ValueId> = FxHashSet::default();
        let mut open = VecDeque::from([self.linears.all[linear].output]);
        while let Some(v) = open.pop_front() {
            if !seen.insert(v) || seen.len() > FAR {
                continue;
            }
            for u in view.graph.uses(v) {
                let Use::Input(n, slot) = u else { continue };
                if view.measures(n) {
                    continue;
                }
                if let Some(next) = self.linears.of(n) {
                    if !way.next.contains(&next) {
                        way.next.push(next);
                    }
                    continue;
                }
                way.softened |= view.op(n) == "Softmax";
                if softmax::is_product(view, n) {
                    way.slot = way.slot.or(Some(slot));
                }
                let made = view.graph.node_outputs(n).into_iter().flatten();
                open.extend(made.filter(|v| view.carries(*v)));
            }
        }
        way
    }
}
