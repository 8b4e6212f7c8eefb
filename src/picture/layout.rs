//! The picture as boxes with places: how large each is, what stands in it, and where its lines go.

use super::route::{Edge as At, Laid, Line, Link, Tile, lay};
use super::text::{short, width};
use super::{Block, Edge, Operators, Part, Place, Port};
use crate::diag::{count, grouped};

/// What a box is, for those who draw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// A module with modules in it.
    Frame,
    /// A module without.
    Leaf,
    /// An adapter, by its row.
    Adapter { adapter: usize, trains: bool },
    /// Operators; on the side, if no hidden state passes.
    Operators { aside: bool },
    /// One operator that joins two hidden states: a sum, or a product.
    Joint { sum: bool },
    /// A graph input or output.
    Port { aside: bool },
}

/// How a text is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    Name,
    Plain,
    Soft,
    Role,
    Mark,
}

/// A text, at its left end on the base line.
#[derive(Clone, Debug)]
pub(super) struct Words {
    pub(super) x: i32,
    pub(super) y: i32,
    pub(super) text: String,
    pub(super) style: Style,
}

/// A box with all that is in it, relative to its left upper corner.
#[derive(Clone, Debug)]
pub(super) struct Sketch {
    pub(super) x: i32,
    pub(super) y: i32,
    pub(super) w: i32,
    pub(super) h: i32,
    pub(super) look: Look,
    /// Whether it stands for several equal ones.
    pub(super) stacked: bool,
    pub(super) words: Vec<Words>,
    /// What a pointer on it is told.
    pub(super) about: String,
    pub(super) inner: Vec<Sketch>,
    pub(super) lines: Vec<Drawn>,
    /// Where lines enter and leave, from the left edge.
    pub(super) axis: i32,
    /// Points where something enters.
    pub(super) entries: Vec<(i32, i32)>,
}

/// A line with its places.
#[derive(Clone, Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent facts, not states"
)]
pub(super) struct Drawn {
    pub(super) points: Vec<(i32, i32)>,
    pub(super) curved: bool,
    pub(super) aside: bool,
    pub(super) back: bool,
    /// Whether it ends at the box around it, behind which it goes on.
    pub(super) out: bool,
    pub(super) label: Option<Words>,
}

const PAD: i32 = 12;
/// How far the cards behind a box for several stand out.
pub(super) const CARDS: i32 = 8;
/// Height of a name, and of a line below it.
const HIGH: i32 = 17;
const LOW: i32 = 15;
/// Widest line of an adapter's parameters.
const WIDE: i32 = 230;
/// Most lines of them.
const TENSORS: usize = 4;

const fn size(style: Style) -> i32 {
    match style {
        Style::Name => 13,
        Style::Plain | Style::Soft | Style::Mark => 11,
        Style::Role => 10,
    }
}

fn measure(text: &str, style: Style) -> i32 {
    width(
        text,
        size(style),
        matches!(style, Style::Name | Style::Mark),
    )
}

/// Lines of text below each other, and how wide and high they are.
#[derive(Default)]
struct Column {
    words: Vec<Words>,
    w: i32,
    h: i32,
}

impl Column {
    /// Adds a line of pieces behind each other.
    fn line(&mut self, pieces: &[(&str, Style)]) {
        let named = pieces.iter().any(|p| p.1 == Style::Name);
        self.h += if named { HIGH } else { LOW };
        let mut x = 0;
        for (text, style) in pieces.iter().filter(|p| !p.0.is_empty()) {
            self.words.push(Words {
                x,
                y: self.h - 4,
                text: (*text).to_owned(),
                style: *style,
            });
            x += measure(text, *style) + 6;
        }
        self.w = self.w.max(x - 6);
    }

    fn moved(mut self, dx: i32, dy: i32) -> Vec<Words> {
        for w in &mut self.words {
            (w.x, w.y) = (w.x + dx, w.y + dy);
        }
        self.words
    }
}

/// The model as a box.
pub(super) fn sketch(model: &Block) -> Sketch {
    frame(model, true)
}

fn part(part: &Part) -> Sketch {
    match part {
        Part::Module(block) if block.is_leaf() => leaf(block),
        Part::Module(block) => frame(block, false),
        Part::Operators(o) => operators(o),
        Part::Adapter(place) => pill(place),
        Part::Input(port) | Part::Output(port) => port_box(port),
    }
}

/// What stands at the top of a module's box.
fn heading(block: &Block) -> Column {
    let mut out = Column::default();
    let times = if block.count > 1 {
        format!("× {}", block.count)
    } else {
        String::new()
    };
    let class = block.class.as_deref().unwrap_or_default();
    let leaf = block.is_leaf();
    let named = [
        (&*block.name, Style::Name),
        (&*times, Style::Mark),
        (class, Style::Soft),
    ];
    out.line(&named[..if leaf { 2 } else { 3 }]);
    let figures = figures(block);
    if !figures.is_empty() {
        out.line(&[(&figures, Style::Plain)]);
    }
    if !block.roles.is_empty() {
        out.line(&[(&block.roles.join(", "), Style::Role)]);
    }
    out
}

/// Shape and number of parameters.
fn figures(block: &Block) -> String {
    let mut out: Vec<String> = Vec::new();
    if block.is_leaf() {
        out.extend(block.weight.clone());
    }
    if block.is_leaf() || block.count > 1 {
        out.extend(block.stored.clone());
    }
    let own = block.parameters;
    match (block.count, own, block.each) {
        (_, 0, 0) => {}
        (1, 0, each) => out.push(format!("{} shared", short(each))),
        (1, own, _) | (_, own, 0) => out.push(short(own)),
        (_, own, each) => {
            out.push(format!("{} each", short(each)));
            out.push(format!("{} in all", short(own)));
        }
    }
    out.join(" · ")
}

/// What a pointer on a module is told.
fn about(block: &Block) -> String {
    let mut out = vec![block.path.clone()];
    out.extend(block.class.clone());
    out.push(count(block.nodes, "node", "nodes"));
    if block.parameters > 0 {
        out.push(format!("{} parameters", grouped(block.parameters)));
    }
    out.extend(block.weight.clone());
    out.retain(|t| !t.is_empty());
    out.join(" · ")
}

/// A module without modules in it: a few lines, and the adapters in it below them.
fn leaf(block: &Block) -> Sketch {
    let head = heading(block);
    let mut pills: Vec<Sketch> = block.places().map(pill).collect();
    let inner = pills.iter().map(|p| p.w).max().unwrap_or(0);
    let w = head.w.max(inner) + 2 * PAD;
    let mut y = PAD - 5 + head.h;
    for p in &mut pills {
        (p.x, p.y, p.w) = (PAD, y + 5, w - 2 * PAD);
        y += 5 + p.h;
    }
    let cards = if block.count > 1 { CARDS } else { 0 };
    Sketch {
        x: 0,
        y: 0,
        w: w + cards,
        h: y + PAD - 4 + cards,
        look: Look::Leaf,
        stacked: block.count > 1,
        words: head.moved(PAD, PAD - 5),
        about: about(block),
        inner: pills,
        lines: Vec::new(),
        axis: w / 2,
        entries: Vec::new(),
    }
}

/// A module with its parts laid out.
fn frame(block: &Block, root: bool) -> Sketch {
    let mut inner: Vec<Sketch> = block.parts.iter().map(part).collect();
    let (tiles, links) = (tiles(block, &inner), links(block, root));
    let laid = lay(&tiles, &links);
    let head = if root {
        Column::default()
    } else {
        heading(block)
    };
    let top = if root { 0 } else { PAD - 4 + head.h + 8 };
    let (dx, right) = across(&laid, head.w, root);
    for (s, (x, y)) in inner.iter_mut().zip(&laid.at) {
        (s.x, s.y) = (x + dx, y + top);
    }
    let lines = laid
        .lines
        .iter()
        .map(|l| drawn(l, block, &links, (dx, top)))
        .collect();
    let cards = if block.count > 1 { CARDS } else { 0 };
    Sketch {
        x: 0,
        y: 0,
        w: dx + right + cards,
        h: top + laid.bottom + cards,
        look: Look::Frame,
        stacked: block.count > 1,
        words: head.moved(PAD, PAD - 6),
        about: about(block),
        inner,
        lines,
        axis: dx,
        entries: laid.entries.iter().map(|x| (x + dx, top)).collect(),
    }
}

/// The parts of a module as they are laid out.
fn tiles(block: &Block, inner: &[Sketch]) -> Vec<Tile> {
    let each = inner.iter().zip(&block.parts).enumerate();
    let each = each.map(|(i, (s, p))| {
        let at = super::End::Part(i);
        let mut own = block.edges.iter().filter(|e| e.from == at || e.to == at);
        let aside = own.all(|e| e.aside) && block.parts.len() > 1;
        tile(s, p, aside)
    });
    each.collect()
}

/// The edges of a module as they are laid out.
fn links(block: &Block, root: bool) -> Vec<Link> {
    let main = |e: &&Edge| !e.aside && e.shape.is_some();
    let mut entering = block.edges.iter().filter(main);
    let entering = entering.find(|e| matches!(e.from, super::End::In(_)));
    let known = entering.and_then(|e| e.shape.as_deref()).filter(|_| !root);
    // A port says its shape itself.
    let port = |end: super::End| match end {
        super::End::Part(i) => matches!(block.parts.get(i), Some(Part::Input(_) | Part::Output(_))),
        super::End::In(_) | super::End::Out => false,
    };
    let lone = |e: &Edge| {
        let into = block.edges.iter().filter(|o| o.to == e.to && !o.aside);
        into.count() == 1 && !port(e.from) && !port(e.to)
    };
    block
        .edges
        .iter()
        .map(|e| link(e, known, lone(e)))
        .collect()
}

/// Where the middle of the main flow is in a box, and what is right of it.
fn across(laid: &Laid, head: i32, root: bool) -> (i32, i32) {
    let pad = if root { 4 } else { PAD + 2 };
    let (left, right) = (pad - laid.left, laid.right + pad);
    // A narrow box is as wide as its head, half on either side.
    let more = (head + 2 * PAD - left - right).max(0);
    (left + more / 2, right + more - more / 2)
}

fn tile(s: &Sketch, part: &Part, aside: bool) -> Tile {
    let (aside, edge) = match part {
        Part::Input(p) => (p.aside || aside, Some(At::First)),
        Part::Output(p) => (p.aside || aside, Some(At::Last)),
        Part::Operators(o) => (o.aside || aside, None),
        Part::Module(_) | Part::Adapter(_) => (aside, None),
    };
    Tile {
        w: s.w,
        h: s.h,
        axis: s.axis,
        aside,
        round: matches!(s.look, Look::Joint { .. }),
        edge,
    }
}

/// An edge has a text where its shape is another than that of what entered, and where nothing else goes to the same part.
fn link(e: &Edge, known: Option<&str>, lone: bool) -> Link {
    let shape = e.shape.as_deref().filter(|s| !e.aside && Some(*s) != known);
    let text = shape.filter(|_| lone && !matches!(e.to, super::End::Out));
    Link {
        from: e.from,
        to: e.to,
        aside: e.aside,
        label: text.map_or(0, |t| measure(t, Style::Soft)),
    }
}

fn drawn(line: &Line, block: &Block, links: &[Link], (dx, dy): (i32, i32)) -> Drawn {
    let edge = &block.edges[line.link];
    let label = line.label.filter(|_| links[line.link].label > 0);
    let label = label.zip(edge.shape.clone()).map(|((x, y), text)| Words {
        x: x + dx,
        y: y + dy,
        text,
        style: Style::Soft,
    });
    Drawn {
        points: line.points.iter().map(|(x, y)| (x + dx, y + dy)).collect(),
        curved: line.curved,
        aside: edge.aside,
        back: line.back,
        out: edge.to == super::End::Out,
        label,
    }
}

/// A few lines in a box of their own.
fn card(column: Column, look: Look, about: String) -> Sketch {
    let (w, h) = (column.w + 2 * PAD - 6, column.h + 10);
    Sketch {
        x: 0,
        y: 0,
        w,
        h,
        look,
        stacked: false,
        words: column.moved(PAD - 3, 4),
        about,
        inner: Vec::new(),
        lines: Vec::new(),
        axis: w / 2,
        entries: Vec::new(),
    }
}

/// An adapter at one place.
pub(super) fn pill(place: &Place) -> Sketch {
    let mut column = Column::default();
    let state = if place.trains {
        "● trains"
    } else {
        "○ frozen"
    };
    let state = if place.parameters == 0 { "" } else { state };
    let n = if place.parameters == 0 {
        String::new()
    } else {
        short(place.parameters)
    };
    column.line(&[
        (&place.name, Style::Name),
        (state, Style::Mark),
        (&n, Style::Plain),
    ]);
    let mut line = String::new();
    let mut lines: Vec<String> = Vec::new();
    for (name, shape) in &place.tensors {
        let next = format!("{name} {shape}");
        if !line.is_empty() && measure(&format!("{line} · {next}"), Style::Soft) > WIDE {
            lines.push(std::mem::take(&mut line));
        }
        line = if line.is_empty() {
            next
        } else {
            format!("{line} · {next}")
        };
    }
    lines.extend((!line.is_empty()).then_some(line));
    for line in lines.iter().take(TENSORS) {
        column.line(&[(line, Style::Soft)]);
    }
    let about = format!(
        "adapter {}: {}",
        place.name,
        count(place.nodes, "node", "nodes")
    );
    let look = Look::Adapter {
        adapter: place.adapter,
        trains: place.trains,
    };
    card(column, look, about)
}

fn operators(o: &Operators) -> Sketch {
    let all: Vec<String> = o
        .operators
        .iter()
        .map(|(op, n)| format!("{op} × {n}"))
        .collect();
    let about = format!(
        "{}: {}",
        count(o.nodes, "operator", "operators"),
        all.join(", ")
    );
    if o.label == "+" || o.label == "×" {
        return Sketch {
            x: 0,
            y: 0,
            w: 22,
            h: 22,
            look: Look::Joint {
                sum: o.label == "+",
            },
            stacked: false,
            words: Vec::new(),
            about,
            inner: Vec::new(),
            lines: Vec::new(),
            axis: 11,
            entries: Vec::new(),
        };
    }
    let mut column = Column::default();
    let more = if o.nodes > 1 {
        count(o.nodes, "operator", "operators")
    } else {
        String::new()
    };
    let params = if o.parameters > 0 {
        format!("· {}", short(o.parameters))
    } else {
        String::new()
    };
    column.line(&[
        (&o.label, Style::Plain),
        (&more, Style::Soft),
        (&params, Style::Soft),
    ]);
    card(column, Look::Operators { aside: o.aside }, about)
}

fn port_box(port: &Port) -> Sketch {
    let mut column = Column::default();
    let times = if port.count > 1 {
        format!("× {}", port.count)
    } else {
        String::new()
    };
    column.line(&[(&port.name, Style::Name), (&times, Style::Mark)]);
    if !port.ty.is_empty() {
        column.line(&[(&port.ty, Style::Soft)]);
    }
    card(column, Look::Port { aside: port.aside }, String::new())
}
