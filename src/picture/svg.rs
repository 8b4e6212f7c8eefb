//! A picture as SVG: one file, no scripts, real text, light and dark by the reader's setting.

use super::layout::{CARDS, Drawn, Look, Sketch, Style, Words, sketch};
use super::text::{escaped, percent, short, width};
use super::{AdapterRow, Picture};
use crate::diag::count;
use std::fmt::Write;

/// Colours of adapters; more adapters begin again with the first.
const COLOURS: usize = 6;

/// What all pictures look like. `.g-` is in front of each class, so that a page around a picture keeps its own.
const STYLE: &str = "\
.g-p{--paper:#ffffff;--ink:#1c2126;--soft:#5b6670;--line:#c3cbd3;--fill:#f4f6f8;--leaf:#ffffff;--flow:#4a5560;\
--a:#1f6fb2;--b:#c2600a;--c:#2f855a;--d:#b83280;--e:#6b46c1;--f:#5f6b7a;--tint:12%;font-family:system-ui,-apple-system,'Segoe UI',Roboto,Helvetica,Arial,sans-serif}
@media (prefers-color-scheme:dark){.g-p{--paper:#14181c;--ink:#e6eaee;--soft:#9aa6b2;--line:#414c57;--fill:#1b2127;--leaf:#252d35;--flow:#a9b5c0;\
--a:#6cb4f0;--b:#f0a04b;--c:#68d391;--d:#f687b3;--e:#b794f4;--f:#a0aec0;--tint:22%}}
.g-paper{fill:var(--paper)}.g-frame{fill:var(--fill);stroke:var(--line)}.g-leaf{fill:var(--leaf);stroke:var(--line)}.g-ops{fill:var(--fill);stroke:var(--line);stroke-dasharray:2 3}
.g-deep{fill:var(--paper)}.g-port{fill:var(--paper);stroke:var(--flow);stroke-width:1.4}.g-aside{stroke-dasharray:3 3;stroke-width:1}.g-joint{fill:var(--leaf);stroke:var(--flow);stroke-width:1.4}
.g-flow{fill:none;stroke:var(--flow);stroke-width:1.4}.g-side{fill:none;stroke:var(--soft);stroke-width:1;stroke-dasharray:3 3}.g-back{fill:none;stroke:var(--flow);stroke-width:1.2;stroke-dasharray:6 4}
.g-head{fill:var(--flow)}.g-sidehead{fill:var(--soft)}.g-dot{fill:var(--paper);stroke:var(--flow);stroke-width:1.4}
.g-n{font-size:13px;font-weight:600;fill:var(--ink)}.g-t{font-size:11px;fill:var(--ink)}.g-s{font-size:11px;fill:var(--soft)}.g-r{font-size:10px;font-style:italic;fill:var(--soft)}.g-m{font-size:11px;font-weight:600;fill:var(--ink)}\
.g-title{font-size:19px;font-weight:650;fill:var(--ink)}
.g-l{stroke:var(--paper);stroke-width:3px;paint-order:stroke;stroke-linejoin:round}
";

/// Room around the picture.
const PAD: i32 = 20;

/// The picture as a file.
pub(super) fn file(picture: &Picture) -> String {
    let mut out = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    out.push_str(&element(picture));
    out
}

/// The picture as an element of a page.
pub(super) fn element(picture: &Picture) -> String {
    let body = sketch(&picture.model);
    let (legend, legend_w, legend_h) = legend(picture);
    let (title, facts) = (&picture.title, facts(picture));
    let head = width(title, 19, true).max(width(&facts, 11, false));
    let w = body.w.max(legend_w).max(head) + 2 * PAD;
    let top = PAD + 46 + legend_h;
    let rest = if picture.left_out.is_empty() { 0 } else { 20 };
    let h = top + body.h + PAD + rest;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"g-p\" viewBox=\"0 0 {w} {h}\" width=\"{w}\" height=\"{h}\" role=\"img\" aria-labelledby=\"g-title g-desc\">\n\
         <title id=\"g-title\">{}</title>\n<desc id=\"g-desc\">{}</desc>\n<style>{STYLE}{}</style>\n",
        escaped(title),
        escaped(&described(picture)),
        colours()
    );
    out.push_str(MARKERS);
    let _ = write!(
        out,
        "<rect class=\"g-paper\" width=\"{w}\" height=\"{h}\"/>\n<text class=\"g-title\" x=\"{PAD}\" y=\"{}\">{}</text>\n",
        PAD + 18,
        escaped(title)
    );
    let _ = writeln!(
        out,
        "<text class=\"g-s\" x=\"{PAD}\" y=\"{}\">{}</text>",
        PAD + 37,
        escaped(&facts)
    );
    out.push_str(&legend);
    // The picture stands in the middle.
    let x = (w - body.w) / 2;
    let _ = writeln!(out, "<g transform=\"translate({x} {top})\">");
    inside(&mut out, &body, 0);
    out.push_str("</g>\n");
    if !picture.left_out.is_empty() {
        let text = format!("left out: {}", picture.left_out.join(", "));
        let _ = writeln!(
            out,
            "<text class=\"g-s\" x=\"{PAD}\" y=\"{}\">{}</text>",
            h - 12,
            escaped(&text)
        );
    }
    out.push_str("</svg>\n");
    out
}

const MARKERS: &str = "<defs><marker id=\"g-h\" viewBox=\"0 0 8 8\" refX=\"7\" refY=\"4\" markerWidth=\"8\" markerHeight=\"8\" markerUnits=\"userSpaceOnUse\" orient=\"auto\"><path class=\"g-head\" d=\"M0 0.5 L8 4 L0 7.5 Z\"/></marker>\
<marker id=\"g-k\" viewBox=\"0 0 8 8\" refX=\"7\" refY=\"4\" markerWidth=\"7\" markerHeight=\"7\" markerUnits=\"userSpaceOnUse\" orient=\"auto\"><path class=\"g-sidehead\" d=\"M0 0.5 L8 4 L0 7.5 Z\"/></marker></defs>\n";

/// The colours of adapters: what trains has a thick, whole border, what is frozen a thin, broken one.
fn colours() -> String {
    let mut out = String::new();
    for name in ["a", "b", "c", "d", "e", "f"] {
        let _ = writeln!(
            out,
            ".g-{name}{{fill:var(--leaf);fill:color-mix(in srgb,var(--{name}) var(--tint),var(--leaf));stroke:var(--{name});stroke-width:2}}"
        );
    }
    out + ".g-frozen{stroke-width:1.2;stroke-dasharray:4 3}\n"
}

/// The model in a few figures.
fn facts(picture: &Picture) -> String {
    let mut out = vec![
        count(picture.nodes, "node", "nodes"),
        format!("{} parameters", short(picture.parameters)),
    ];
    let sum = |of: fn(&AdapterRow) -> u64| {
        picture
            .adapters
            .iter()
            .fold(0u64, |n, a| n.saturating_add(of(a)))
    };
    let (own, trained) = (sum(|a| a.parameters), sum(|a| a.trained));
    if own > 0 {
        out.push(format!(
            "adapters {} ({} of the base model)",
            short(own),
            percent(own, picture.parameters)
        ));
    }
    if trained > 0 {
        out.push(format!("{} of them train", short(trained)));
    }
    out.join(" · ")
}

/// The picture in words.
fn described(picture: &Picture) -> String {
    let mut out = format!("A model by module: {}.", facts(picture));
    for a in picture.adapters.iter().take(12) {
        let places = count(a.places, "place", "places");
        let _ = write!(
            out,
            " Adapter {}: {}, {} parameters in {places}, {}.",
            a.name,
            a.kind,
            short(a.parameters),
            a.state()
        );
    }
    out
}

/// The class of an adapter's colour, a letter.
fn colour(adapter: usize) -> char {
    char::from(b'a' + (adapter % COLOURS) as u8)
}

/// Most adapters that the legend names.
const ROWS: usize = 12;

/// What the legend says of an adapter.
fn said(a: &AdapterRow) -> String {
    let parameters = match (a.parameters, a.trained) {
        (n, t) if t > 0 && t < n => {
            format!("{} parameters, {} of them train", short(n), short(t))
        }
        (0, _) if a.active => String::new(),
        (n, _) => format!("{} parameters", short(n)),
    };
    let parameters = Some(parameters).filter(|p| !p.is_empty());
    let mark = if a.trained > 0 { "●" } else { "○" };
    let kind = Some(a.kind.clone()).filter(|k| *k != a.name && !k.is_empty());
    let places = a.active.then(|| count(a.places, "place", "places"));
    let state = format!("{mark} {}", a.state());
    let all = [kind, parameters, places, Some(state)];
    all.into_iter().flatten().collect::<Vec<_>>().join(" · ")
}

/// The adapters with their colours: the element, its width and height.
fn legend(picture: &Picture) -> (String, i32, i32) {
    let (mut out, mut w) = (String::new(), 0);
    let mut y = PAD + 48;
    let left = PAD + 32;
    for (i, a) in picture.adapters.iter().enumerate().take(ROWS) {
        let frozen = if a.trained > 0 { "" } else { " g-frozen" };
        let (name, rest) = (escaped(&a.name), said(a));
        let x = left + width(&a.name, 13, true) + 8;
        let (colour, base) = (colour(i), y + 11);
        let _ = writeln!(
            out,
            "<rect class=\"g-{colour}{frozen}\" x=\"{PAD}\" y=\"{y}\" width=\"24\" height=\"14\" rx=\"4\"/>\
             <text class=\"g-n\" x=\"{left}\" y=\"{base}\">{name}</text><text class=\"g-t\" x=\"{x}\" y=\"{base}\">{}</text>",
            escaped(&rest)
        );
        w = w.max(x + width(&rest, 11, false) - PAD);
        y += 20;
    }
    if picture.adapters.len() > ROWS {
        let more = picture.adapters.len() - ROWS;
        let more = count(more, "more adapter", "more adapters");
        let base = y + 11;
        let _ = writeln!(
            out,
            "<text class=\"g-s\" x=\"{left}\" y=\"{base}\">{more}</text>"
        );
        y += 20;
    }
    let rows = !picture.adapters.is_empty();
    (out, w, if rows { y - PAD - 42 } else { 0 })
}

/// A box with all that is in it.
fn shape(out: &mut String, s: &Sketch, depth: usize) {
    let _ = writeln!(out, "<g transform=\"translate({} {})\">", s.x, s.y);
    if !s.about.is_empty() {
        let _ = writeln!(out, "<title>{}</title>", escaped(&s.about));
    }
    let cards = if s.stacked { CARDS } else { 0 };
    let (w, h) = (s.w - cards, s.h - cards);
    let class = class(s.look, depth);
    if s.stacked {
        for d in [CARDS, CARDS / 2] {
            rect(out, &class, d, (w, h), radius(s));
        }
    }
    match s.look {
        Look::Joint { sum } => {
            let sign = if sum {
                "M11 5.5v11M5.5 11h11"
            } else {
                "M7 7l8 8M15 7l-8 8"
            };
            let _ = writeln!(
                out,
                "<circle class=\"{class}\" cx=\"11\" cy=\"11\" r=\"10\"/><path class=\"g-flow\" d=\"{sign}\"/>"
            );
        }
        Look::Frame
        | Look::Leaf
        | Look::Adapter { .. }
        | Look::Operators { .. }
        | Look::Port { .. } => {
            rect(out, &class, 0, (w, h), radius(s));
        }
    }
    inside(out, s, depth);
    out.push_str("</g>\n");
}

fn radius(s: &Sketch) -> i32 {
    match s.look {
        Look::Frame => 10,
        Look::Port { .. } => s.h / 2,
        Look::Leaf | Look::Adapter { .. } | Look::Operators { .. } | Look::Joint { .. } => 6,
    }
}

fn rect(out: &mut String, class: &str, d: i32, (w, h): (i32, i32), r: i32) {
    let at = if d == 0 {
        String::new()
    } else {
        format!(" x=\"{d}\" y=\"{d}\"")
    };
    let _ = writeln!(
        out,
        "<rect class=\"{class}\"{at} width=\"{w}\" height=\"{h}\" rx=\"{r}\"/>"
    );
}

fn class(look: Look, depth: usize) -> String {
    match look {
        // Every second one is lighter, so that one in the other can be told.
        Look::Frame if depth.is_multiple_of(2) => "g-frame g-deep".to_owned(),
        Look::Frame => "g-frame".to_owned(),
        Look::Leaf => "g-leaf".to_owned(),
        Look::Adapter {
            adapter,
            trains: true,
        } => format!("g-{}", colour(adapter)),
        Look::Adapter {
            adapter,
            trains: false,
        } => format!("g-{} g-frozen", colour(adapter)),
        Look::Operators { .. } => "g-ops".to_owned(),
        Look::Joint { .. } => "g-joint".to_owned(),
        Look::Port { aside: true } => "g-port g-aside".to_owned(),
        Look::Port { aside: false } => "g-port".to_owned(),
    }
}

/// The words, parts and lines of a box.
fn inside(out: &mut String, s: &Sketch, depth: usize) {
    for line in &s.lines {
        path(out, line);
    }
    for inner in &s.inner {
        shape(out, inner, depth + 1);
    }
    for (x, y) in &s.entries {
        let _ = writeln!(
            out,
            "<circle class=\"g-dot\" cx=\"{x}\" cy=\"{y}\" r=\"3\"/>"
        );
    }
    for w in &s.words {
        words(out, w, "");
    }
    for w in s.lines.iter().filter_map(|l| l.label.as_ref()) {
        words(out, w, " g-l");
    }
}

fn words(out: &mut String, w: &Words, more: &str) {
    let class = match w.style {
        Style::Name => "g-n",
        Style::Plain => "g-t",
        Style::Soft => "g-s",
        Style::Role => "g-r",
        Style::Mark => "g-m",
    };
    let _ = writeln!(
        out,
        "<text class=\"{class}{more}\" x=\"{}\" y=\"{}\">{}</text>",
        w.x,
        w.y,
        escaped(&w.text)
    );
}

/// Radius of a line's corners.
const CORNER: i32 = 7;

fn path(out: &mut String, line: &Drawn) {
    let Some(((x, y), rest)) = line.points.split_first() else {
        return;
    };
    let mut d = format!("M{x} {y}");
    let mut at = (*x, *y);
    for (i, &to) in rest.iter().enumerate() {
        if line.curved {
            if at.0 == to.0 {
                let _ = write!(d, " V{}", to.1);
            } else {
                let middle = i32::midpoint(at.1, to.1);
                let _ = write!(d, " C{} {middle} {} {middle} {} {}", at.0, to.0, to.0, to.1);
            }
        } else if let Some(&next) = rest.get(i + 1) {
            let (before, behind) = corner(at, to, next);
            let _ = write!(
                d,
                " L{} {} Q{} {} {} {}",
                before.0, before.1, to.0, to.1, behind.0, behind.1
            );
        } else {
            let _ = write!(d, " L{} {}", to.0, to.1);
        }
        at = to;
    }
    let (class, head) = match (line.aside, line.back) {
        (_, true) => ("g-back", "g-h"),
        (true, false) => ("g-side", "g-k"),
        (false, false) => ("g-flow", "g-h"),
    };
    let end = if line.out {
        String::new()
    } else {
        format!(" marker-end=\"url(#{head})\"")
    };
    let _ = writeln!(out, "<path class=\"{class}\"{end} d=\"{d}\"/>");
}

/// Where a line leaves its corner's sides: no further than half of them.
fn corner(from: (i32, i32), at: (i32, i32), to: (i32, i32)) -> ((i32, i32), (i32, i32)) {
    let toward = |p: (i32, i32)| {
        let (dx, dy) = (p.0 - at.0, p.1 - at.1);
        let long = dx.abs().max(dy.abs());
        let r = CORNER.min(long / 2);
        (
            at.0 + dx.signum() * r.min(dx.abs()),
            at.1 + dy.signum() * r.min(dy.abs()),
        )
    };
    (toward(from), toward(to))
}
