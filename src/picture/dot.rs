//! A picture in the language of Graphviz: modules are clusters.

use super::layout::pill;
use super::text::short;
use super::{Block, End, Part, Picture};
use std::fmt::Write;

const COLOURS: [&str; 6] = [
    "#1f6fb2", "#c2600a", "#2f855a", "#b83280", "#6b46c1", "#5f6b7a",
];

/// A text between quotes; lines end at the left.
fn quoted(lines: &[String]) -> String {
    let mut out = String::from("\"");
    for line in lines.iter().filter(|l| !l.is_empty()) {
        for c in line.chars() {
            match c {
                '"' | '\\' => out.extend(['\\', c]),
                // Graphviz reads entities of HTML in every text.
                '&' => out.push_str("&amp;"),
                c => out.push(c),
            }
        }
        out.push_str("\\n");
    }
    out.push('"');
    out
}

/// The picture as a graph.
pub(super) fn graph(picture: &Picture) -> String {
    let mut out = String::from(
        "digraph model {\n  compound=true; rankdir=TB; nodesep=0.25; ranksep=0.35;\n  fontname=\"Helvetica\"; labelloc=t; labeljust=l;\n  \
         node [shape=box, style=\"rounded,filled\", fillcolor=\"white\", color=\"#8a949e\", fontname=\"Helvetica\", fontsize=11];\n  \
         edge [color=\"#4a5560\", arrowsize=0.6, fontname=\"Helvetica\", fontsize=9, fontcolor=\"#5b6670\"];\n",
    );
    let mut lines = vec![
        picture.title.clone(),
        format!("{} parameters", short(picture.parameters)),
    ];
    for a in &picture.adapters {
        lines.push(format!(
            "{}: {}, {} parameters, {}",
            a.name,
            a.kind,
            short(a.parameters),
            a.state()
        ));
    }
    lines.extend(
        (!picture.left_out.is_empty())
            .then(|| format!("left out: {}", picture.left_out.join(", "))),
    );
    let _ = writeln!(out, "  label={};", quoted(&lines));
    block(&mut out, &picture.model, "m", 1);
    out.push_str("}\n");
    out
}

/// What is in a module: its parts, then its edges.
fn block(out: &mut String, b: &Block, id: &str, depth: usize) {
    let pad = "  ".repeat(depth);
    for (i, part) in b.parts.iter().enumerate() {
        let id = format!("{id}_{i}");
        match part {
            Part::Module(inner) if !inner.is_leaf() => {
                let _ = writeln!(
                    out,
                    "{pad}subgraph cluster_{id} {{\n{pad}  label={}; style=\"rounded,filled\"; fillcolor=\"{}\"; color=\"#c3cbd3\";",
                    quoted(&named(inner)),
                    if depth.is_multiple_of(2) {
                        "#ffffff"
                    } else {
                        "#f4f6f8"
                    }
                );
                block(out, inner, &id, depth + 1);
                let _ = writeln!(out, "{pad}}}");
            }
            other => {
                let (label, look) = node(other);
                let _ = writeln!(out, "{pad}{id} [label={}{look}];", quoted(&label));
            }
        }
    }
    for e in &b.edges {
        let (End::Part(from), End::Part(to)) = (e.from, e.to) else {
            continue;
        };
        let (Some((tail, ltail)), Some((head, lhead))) =
            (end(b, id, from, false), end(b, id, to, true))
        else {
            continue;
        };
        let mut attrs: Vec<String> = Vec::new();
        attrs.extend(ltail.map(|c| format!("ltail={c}")));
        attrs.extend(lhead.map(|c| format!("lhead={c}")));
        if e.aside {
            attrs.push("style=dashed".to_owned());
        } else if let Some(shape) = &e.shape {
            attrs.push(format!("label={}", quoted(std::slice::from_ref(shape))));
        }
        let attrs = if attrs.is_empty() {
            String::new()
        } else {
            format!(" [{}]", attrs.join(", "))
        };
        let _ = writeln!(out, "{pad}{tail} -> {head}{attrs};");
    }
}

/// The node that stands for a part at an end of an edge, and the cluster, where the part is one.
fn end(b: &Block, id: &str, part: usize, first: bool) -> Option<(String, Option<String>)> {
    let whole = format!("{id}_{part}");
    let (mut at, mut id) = (b.parts.get(part)?, whole.clone());
    let cluster = matches!(at, Part::Module(m) if !m.is_leaf()).then(|| format!("cluster_{whole}"));
    while let Part::Module(m) = at {
        if m.is_leaf() {
            break;
        }
        // Where it enters, or leaves.
        let inner = m.edges.iter().find_map(|e| match (e.from, e.to) {
            (End::In(_), End::Part(k)) if first => Some(k),
            (End::Part(k), End::Out) if !first => Some(k),
            _ => None,
        });
        let k = inner.unwrap_or(0);
        (at, id) = (m.parts.get(k)?, format!("{id}_{k}"));
    }
    Some((id, cluster))
}

fn named(b: &Block) -> Vec<String> {
    let times = if b.count > 1 {
        format!(" × {}", b.count)
    } else {
        String::new()
    };
    let figures = match (b.count, b.parameters) {
        (_, 0) => String::new(),
        (1, n) => short(n),
        (_, n) => format!("{} each, {} in all", short(b.each), short(n)),
    };
    let stored = b.stored.clone().unwrap_or_default();
    let weight = b.weight.clone().filter(|_| b.is_leaf()).unwrap_or_default();
    let line = [weight, stored, figures]
        .into_iter()
        .filter(|t| !t.is_empty())
        .collect::<Vec<_>>()
        .join(" · ");
    vec![format!("{}{times}", b.name), line]
}

/// The lines of an adapter.
fn said(place: &super::Place) -> Vec<String> {
    let words = pill(place).words;
    let rows = words.chunk_by(|a, b| a.y == b.y);
    let line = |row: &[super::layout::Words]| {
        let words: Vec<&str> = row.iter().map(|w| w.text.as_str()).collect();
        words.join(" ")
    };
    rows.map(line).collect()
}

/// The look of what an adapter is in: thick where it trains, broken where it is frozen.
fn coloured(place: &super::Place) -> String {
    let colour = COLOURS[place.adapter % COLOURS.len()];
    let (pen, dashed) = if place.trains {
        (2, "")
    } else {
        (1, ",dashed")
    };
    format!(
        ", color=\"{colour}\", fillcolor=\"{colour}22\", penwidth={pen}, style=\"rounded,filled{dashed}\""
    )
}

/// Label and look of a part that is no cluster.
fn node(part: &Part) -> (Vec<String>, String) {
    match part {
        Part::Module(b) => {
            let mut lines = named(b);
            lines.extend(b.places().flat_map(said));
            (lines, b.places().next().map(coloured).unwrap_or_default())
        }
        Part::Adapter(p) => (said(p), coloured(p)),
        Part::Operators(o) if o.label == "+" || o.label == "×" => {
            let look = ", shape=circle, margin=0, width=0.25, fixedsize=true";
            (vec![o.label.clone()], look.to_owned())
        }
        Part::Operators(o) => (
            vec![o.label.clone()],
            ", style=\"rounded,dashed\"".to_owned(),
        ),
        Part::Input(p) | Part::Output(p) => {
            let times = if p.count > 1 {
                format!(" × {}", p.count)
            } else {
                String::new()
            };
            let lines = vec![format!("{}{times}", p.name), p.ty.clone()];
            (lines, ", peripheries=1".to_owned())
        }
    }
}
