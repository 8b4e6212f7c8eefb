//! A difference for people: what is the same in many layers is shown once.

use super::super::layers::{numbered, ranges, without_numbers};
use super::{Change, Counts, Diff, Entry, Line, ModuleDiff};
use indexmap::IndexMap;
use std::fmt;

/// Number of characters of a line of the header that are shown.
const WIDTH: usize = 160;

/// A difference with equal layers folded.
#[derive(Debug)]
pub(crate) struct Folded<'d>(pub(super) &'d Diff);

/// Modules of equal layers, by the first of them.
#[derive(Debug)]
pub(crate) struct Alike<'d> {
    /// Its name, with `*` for the number of the layer where there are several.
    pub(crate) module: String,
    /// Numbers of the layers; empty where it stands alone.
    pub(crate) layers: Vec<usize>,
    /// The changes in the first one.
    pub(crate) first: &'d ModuleDiff,
}

impl Alike<'_> {
    /// Counts over the nodes of one of them.
    pub(crate) fn counts(&self) -> Counts {
        Counts::of(self.first.entries())
    }

    /// How many modules these are.
    pub(crate) fn count(&self) -> usize {
        self.layers.len().max(1)
    }
}

impl Diff {
    /// The difference with equal layers folded.
    pub(crate) fn folded(&self) -> Folded<'_> {
        Folded(self)
    }
}

impl<'d> Folded<'d> {
    /// The modules with changes, in graph order.
    pub(crate) fn modules(&self) -> Vec<Alike<'d>> {
        let mut by_text: IndexMap<(String, String), Alike<'d>> = IndexMap::new();
        for m in &self.0.modules {
            let (masked, layer) = numbered(&m.module);
            let key = if layer.is_some() { &masked } else { &m.module };
            // Unchanged nodes around a change may be those that all layers share.
            let lines = m.entries().map(|e| without_numbers(&e.to_string()) + "\n");
            let alike = by_text
                .entry((key.clone(), lines.collect()))
                .or_insert_with(|| Alike {
                    module: m.module.clone(),
                    layers: Vec::new(),
                    first: m,
                });
            alike.layers.extend(layer);
            if alike.layers.len() > 1 {
                alike.module = masked;
            }
        }
        let mut out: Vec<Alike<'_>> = by_text.into_values().collect();
        for alike in out.iter_mut().filter(|a| a.layers.len() == 1) {
            alike.layers.clear();
        }
        out
    }
}

/// A line of the text form without stamps and the node's name, which the names of values repeat.
fn without_origin(line: &str) -> &str {
    let ends = [" +onnx_graft.", "  // "];
    let at = ends.iter().filter_map(|e| line.find(e)).min();
    at.map_or(line, |at| &line[..at])
}

impl Entry {
    /// The same without what the names of values repeat.
    fn brief(&self) -> Entry {
        Entry {
            text: without_origin(&self.text).to_owned(),
            ..self.clone()
        }
    }

    /// The same with long lines cut: metadata may hold whole documents.
    fn shortened(&self) -> Entry {
        let cut = |text: &String| match text.char_indices().nth(WIDTH) {
            Some((at, _)) => format!("{}…", &text[..at]),
            None => text.clone(),
        };
        Entry {
            change: self.change,
            text: cut(&self.text),
            details: self.details.iter().map(cut).collect(),
        }
    }
}

/// Entries that are the same but for numbers in names: the first one, and how many there are.
fn alike(entries: &[Entry]) -> Vec<(&Entry, usize)> {
    let mut by_text: IndexMap<(Change, String), (&Entry, usize)> = IndexMap::new();
    for e in entries {
        let text = without_numbers(&e.to_string());
        by_text.entry((e.change, text)).or_insert((e, 0)).1 += 1;
    }
    by_text.into_values().collect()
}

impl fmt::Display for Folded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let diff = self.0;
        for (title, entries) in [
            ("header", &diff.header),
            ("interface", &diff.interface),
            ("functions", &diff.functions),
        ] {
            let short: Vec<Entry> = entries.iter().map(Entry::shortened).collect();
            super::section(f, title, &short)?;
        }
        for alike in self.modules() {
            let name = match &*alike.module {
                "" => "(no module)",
                name => name,
            };
            write!(f, "{name}")?;
            if alike.count() > 1 {
                let layers = ranges(alike.layers.iter().copied());
                write!(f, ", layers {layers}, each")?;
            }
            writeln!(f, ": {}", alike.counts())?;
            for line in &alike.first.lines {
                match line {
                    Line::Node(e) => writeln!(f, "{}", e.brief())?,
                    Line::Context(text) => writeln!(f, "    {}", without_origin(text))?,
                    Line::Gap => writeln!(f, "{line}")?,
                }
            }
        }
        if !diff.initializers.is_empty() {
            writeln!(f, "initializers: {}", Counts::of(&diff.initializers))?;
            for (entry, count) in alike(&diff.initializers) {
                write!(f, "{}", entry.brief())?;
                if count > 1 {
                    write!(f, "  ({count} alike)")?;
                }
                writeln!(f)?;
            }
        }
        diff.summary(f)
    }
}
