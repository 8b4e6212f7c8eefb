//! Places in one box: parts in rows by what flows, from top to bottom, and the lines between them.
//!
//! Coordinates are whole pixels. The middle of the main flow is at x = 0 and the first row at y = 0 while a box is laid out; the caller
//! moves everything to where the box is. What passes parts by runs in lanes: hidden states on the right, everything else on the left.

use super::End;

/// A part as it is laid out.
#[derive(Clone, Debug, Default)]
pub(super) struct Tile {
    pub(super) w: i32,
    pub(super) h: i32,
    /// Where lines enter and leave, from the left edge.
    pub(super) axis: i32,
    /// Whether it stands on the side: no hidden state passes.
    pub(super) aside: bool,
    /// Whether lines may come in from its right.
    pub(super) round: bool,
    /// The first row, or the last one, is its place.
    pub(super) edge: Option<Edge>,
}

/// Which end of the picture a part stands at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Edge {
    First,
    Last,
}

/// An edge as it is laid out.
#[derive(Clone, Debug)]
pub(super) struct Link {
    pub(super) from: End,
    pub(super) to: End,
    pub(super) aside: bool,
    /// Width of a text beside it; 0 without.
    pub(super) label: i32,
}

/// A line: straight pieces with round corners, or a curve through points.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) link: usize,
    pub(super) points: Vec<(i32, i32)>,
    pub(super) curved: bool,
    /// Whether it goes back to what was there before.
    pub(super) back: bool,
    /// Where its text begins.
    pub(super) label: Option<(i32, i32)>,
}

/// A box's inside.
#[derive(Clone, Debug, Default)]
pub(super) struct Laid {
    /// Left upper corners.
    pub(super) at: Vec<(i32, i32)>,
    pub(super) lines: Vec<Line>,
    pub(super) left: i32,
    pub(super) right: i32,
    pub(super) bottom: i32,
    /// Where things enter, at the top.
    pub(super) entries: Vec<i32>,
}

const GAP: i32 = 24;
const ROW: i32 = 28;
const LANE: i32 = 10;
const TEXT: i32 = 16;
/// Distance of what enters a box.
const ENTRY: i32 = 44;

/// One thing in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slot {
    Tile(usize),
    /// A line that goes through, by its link.
    Through(usize),
}

struct Plan<'t> {
    tiles: &'t [Tile],
    links: &'t [Link],
    ranks: Vec<usize>,
    last: usize,
    back: Vec<bool>,
    /// Links that run in a lane.
    lanes: Vec<bool>,
    rows: Vec<Vec<Slot>>,
    /// x of each tile's left edge, and of lines in rows that they go through.
    x: Vec<i32>,
    through: Vec<Vec<(usize, i32)>>,
    entries: Vec<i32>,
}

/// Lays out the inside of a box.
pub(super) fn lay(tiles: &[Tile], links: &[Link]) -> Laid {
    if tiles.is_empty() {
        return Laid::default();
    }
    let back = backward(tiles.len(), links);
    let ranks = ranks(tiles, links, &back);
    let last = ranks.iter().copied().max().unwrap_or(0);
    let entered = links.iter().filter_map(|l| match l.from {
        End::In(k) => Some(k),
        End::Part(_) | End::Out => None,
    });
    let n = entered.max().map_or(0, |k| k as i32 + 1);
    let mut plan = Plan {
        tiles,
        links,
        last,
        lanes: vec![false; links.len()],
        rows: vec![Vec::new(); last + 1],
        x: vec![0; tiles.len()],
        through: vec![Vec::new(); links.len()],
        entries: (0..n).map(|k| (2 * k - (n - 1)) * ENTRY / 2).collect(),
        ranks,
        back,
    };
    plan.choose();
    plan.order();
    plan.draw()
}

/// Which links close a circle, walking from the first parts on.
fn backward(n: usize, links: &[Link]) -> Vec<bool> {
    let mut out = vec![false; links.len()];
    let mut next: Vec<Vec<(usize, usize)>> = vec![Vec::new(); n];
    for (i, l) in links.iter().enumerate() {
        if let (End::Part(a), End::Part(b)) = (l.from, l.to) {
            next[a].push((i, b));
        }
    }
    // 0: not seen, 1: on the way, 2: done.
    let mut state = vec![0u8; n];
    for start in 0..n {
        let mut way = vec![(start, 0)];
        while let Some((at, k)) = way.pop() {
            if k == 0 {
                if state[at] != 0 {
                    continue;
                }
                state[at] = 1;
            }
            match next[at].get(k) {
                None => state[at] = 2,
                Some(&(link, b)) => {
                    way.push((at, k + 1));
                    match state[b] {
                        0 => way.push((b, 0)),
                        1 => out[link] = true,
                        _ => {}
                    }
                }
            }
        }
    }
    out
}

/// The row of each part: behind all that it reads.
fn ranks(tiles: &[Tile], links: &[Link], back: &[bool]) -> Vec<usize> {
    let n = tiles.len();
    let inputs = tiles.iter().any(|t| t.edge == Some(Edge::First));
    let inner: Vec<(usize, usize)> = links
        .iter()
        .zip(back)
        .filter(|(_, back)| !**back)
        .filter_map(|(l, _)| match (l.from, l.to) {
            (End::Part(a), End::Part(b)) if a != b => Some((a, b)),
            _ => None,
        })
        .collect();
    let first = |i: usize| usize::from(inputs && tiles[i].edge != Some(Edge::First));
    let mut ranks: Vec<usize> = (0..n).map(first).collect();
    // As many rounds as the longest way has parts.
    for _ in 0..n {
        let mut moved = false;
        for &(a, b) in &inner {
            if ranks[b] <= ranks[a] {
                ranks[b] = ranks[a] + 1;
                moved = true;
            }
        }
        if !moved {
            break;
        }
    }
    // What reads nothing stands near what reads it.
    let fed = |i: usize| links.iter().any(|l| l.to == End::Part(i));
    for i in (0..n).filter(|i| tiles[*i].edge.is_none() && !fed(*i)) {
        let readers = inner
            .iter()
            .filter(|(a, _)| *a == i)
            .map(|(_, b)| ranks[*b]);
        if let Some(nearest) = readers.min() {
            ranks[i] = ranks[i].max(nearest.saturating_sub(1));
        }
    }
    let most = ranks.iter().copied().max().unwrap_or(0);
    let inside = (0..n).filter(|i| tiles[*i].edge != Some(Edge::Last));
    let most = inside.map(|i| ranks[i]).max().unwrap_or(most);
    for (i, t) in tiles.iter().enumerate() {
        if t.edge == Some(Edge::Last) {
            ranks[i] = most + 1;
        }
    }
    // Rows without parts are no rows.
    let mut used: Vec<usize> = ranks.clone();
    used.sort_unstable();
    used.dedup();
    ranks
        .iter()
        .map(|r| used.binary_search(r).unwrap_or(0))
        .collect()
}

impl Plan<'_> {
    /// Row before the first for what enters, behind the last for what leaves.
    fn rank(&self, end: End) -> i32 {
        match end {
            End::In(_) => -1,
            End::Part(i) => self.ranks[i] as i32,
            End::Out => self.last as i32 + 1,
        }
    }

    fn span(&self, link: usize) -> (i32, i32) {
        let l = &self.links[link];
        (self.rank(l.from), self.rank(l.to))
    }

    /// Decides which long lines run in lanes: those that pass by what else reads the same, and those on the side.
    fn choose(&mut self) {
        for i in 0..self.links.len() {
            let (a, b) = self.span(i);
            if self.back[i] {
                self.lanes[i] = true;
            } else if b > a + 1 {
                let l = &self.links[i];
                let nearer = self.links.iter().enumerate().any(|(k, other)| {
                    other.from == l.from && !other.aside && !self.back[k] && self.span(k).1 < b
                });
                let through = matches!(l.from, End::In(_)) || l.to == End::Out;
                self.lanes[i] = nearer || l.aside || through;
            }
        }
    }

    /// Orders the rows: each part below what it reads.
    fn order(&mut self) {
        for (i, r) in self.ranks.iter().enumerate() {
            self.rows[*r].push(Slot::Tile(i));
        }
        for i in 0..self.links.len() {
            let (a, b) = self.span(i);
            if !self.lanes[i] && !self.back[i] {
                for r in (a + 1)..b {
                    self.rows[r as usize].push(Slot::Through(i));
                }
            }
        }
        for r in 0..self.rows.len() {
            let mut row = std::mem::take(&mut self.rows[r]);
            row.sort_by_cached_key(|s| self.weight(*s, r));
            self.spread(&row, r);
            self.rows[r] = row;
        }
    }

    /// Where a slot wants to be: at the mean of what it reads.
    fn weight(&self, slot: Slot, row: usize) -> (i32, usize) {
        match slot {
            Slot::Through(link) => (self.source_x(link, row), self.tiles.len() + link),
            Slot::Tile(i) => {
                let read = self.links.iter().enumerate();
                let read = read.filter(|(k, l)| l.to == End::Part(i) && !self.lanes[*k]);
                let at: Vec<i32> = read.map(|(k, _)| self.source_x(k, row)).collect();
                let mean = at.iter().sum::<i32>() / (at.len() as i32).max(1);
                (mean, i)
            }
        }
    }

    /// x of a link just above a row.
    fn source_x(&self, link: usize, row: usize) -> i32 {
        let passed = self.through[link].iter().rev().find(|(r, _)| *r < row);
        match (passed, self.links[link].from) {
            (Some((_, x)), _) => *x,
            (None, End::Part(i)) => self.x[i] + self.tiles[i].axis,
            (None, End::In(k)) => self.entries[k],
            (None, End::Out) => 0,
        }
    }

    /// Gives the slots of a row their x: those of the main flow around the middle, the others left of them.
    fn spread(&mut self, row: &[Slot], r: usize) {
        let width = |s: &Slot| match s {
            Slot::Tile(i) => self.tiles[*i].w,
            Slot::Through(_) => LANE,
        };
        let aside = |s: &&Slot| match s {
            Slot::Tile(i) => self.tiles[*i].aside,
            Slot::Through(link) => self.links[*link].aside,
        };
        let mut main: Vec<Slot> = row.iter().filter(|s| !aside(s)).copied().collect();
        let mut side: Vec<Slot> = row.iter().filter(aside).copied().collect();
        // Ports stand on both sides.
        let ports = row
            .iter()
            .all(|s| matches!(s, Slot::Tile(i) if self.tiles[*i].edge.is_some()));
        let mut right = if ports {
            side.split_off(side.len().div_ceil(2))
        } else {
            Vec::new()
        };
        if main.is_empty() {
            main.append(&mut side);
            main.append(&mut right);
        }
        let total: i32 = main.iter().map(width).sum::<i32>() + GAP * (main.len() as i32 - 1).max(0);
        let begin = match &main[..] {
            [Slot::Tile(i)] => -self.tiles[*i].axis,
            _ => -total / 2,
        };
        let mut placed: Vec<(Slot, i32)> = Vec::new();
        let mut x = begin;
        for s in &main {
            placed.push((*s, x));
            x += width(s) + GAP;
        }
        for s in &right {
            placed.push((*s, x));
            x += width(s) + GAP;
        }
        // Nothing of the side stands on the way of the main flow.
        let mut x = begin.min(-GAP / 2);
        for s in side.iter().rev() {
            x -= width(s) + GAP;
            placed.push((*s, x));
        }
        for (slot, x) in placed {
            match slot {
                Slot::Tile(i) => self.x[i] = x,
                Slot::Through(link) => self.through[link].push((r, x + LANE / 2)),
            }
        }
    }

    /// Left and right end of a row.
    fn extent(&self, r: usize) -> (i32, i32) {
        let mut out = (0, 0);
        for s in &self.rows[r] {
            let (a, b) = match s {
                Slot::Tile(i) => (self.x[*i], self.x[*i] + self.tiles[*i].w),
                Slot::Through(link) => {
                    let x = self.through[*link]
                        .iter()
                        .find(|t| t.0 == r)
                        .map_or(0, |t| t.1);
                    (x - LANE / 2, x + LANE / 2)
                }
            };
            out = (out.0.min(a), out.1.max(b));
        }
        out
    }

    /// x of the lanes: as near to the parts that they pass as others allow.
    fn lane_x(&self) -> Vec<i32> {
        let mut out = vec![0; self.links.len()];
        let mut all: Vec<usize> = (0..self.links.len()).filter(|i| self.lanes[*i]).collect();
        let rows = |i: usize| {
            let (a, b) = self.span(i);
            (a.min(b), a.max(b))
        };
        all.sort_by_key(|i| (rows(*i).1 - rows(*i).0, *i));
        let mut taken: Vec<(bool, i32, i32, i32)> = Vec::new();
        for i in all {
            let (a, b) = rows(i);
            let left = self.links[i].aside;
            let round = matches!(self.links[i].to, End::Part(t) if self.tiles[t].round);
            let to = if round || self.back[i] { b } else { b - 1 };
            let from = if self.back[i] { a } else { a + 1 };
            let passed = (from.max(0)..=to.min(self.last as i32)).map(|r| self.extent(r as usize));
            let far = passed.fold(0, |far, (l, r)| if left { far.max(-l) } else { far.max(r) });
            let mut x = far + 16;
            while let Some(other) = taken
                .iter()
                .find(|(l, y, p, q)| *l == left && (x - *y).abs() < LANE && *p < b && a < *q)
            {
                x = other.1 + LANE;
            }
            taken.push((left, x, a, b));
            out[i] = if left { -x } else { x };
        }
        out
    }

    fn draw(self) -> Laid {
        let lane_x = self.lane_x();
        let heights: Vec<i32> = self
            .rows
            .iter()
            .map(|row| {
                row.iter()
                    .map(|s| match s {
                        Slot::Tile(i) => self.tiles[*i].h,
                        Slot::Through(_) => 0,
                    })
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        // Above each row, and below the last one.
        let gaps: Vec<i32> = (0..=self.rows.len()).map(|r| self.gap(r as i32)).collect();
        let mut tops = Vec::new();
        let mut y = 0;
        for (r, h) in heights.iter().enumerate() {
            y += gaps[r];
            tops.push(y);
            y += h;
        }
        let bottom = y + gaps[self.rows.len()];
        let mut at = Vec::new();
        for i in 0..self.tiles.len() {
            let r = self.ranks[i];
            at.push((self.x[i], tops[r] + (heights[r] - self.tiles[i].h) / 2));
        }
        let frame = Frame {
            at,
            tops,
            heights,
            gaps,
            bottom,
            lane_x,
            ends: self.ends(),
        };
        let lines: Vec<Line> = (0..self.links.len())
            .map(|i| self.line(i, &frame))
            .collect();
        let (left, right) = self.sides(&lines);
        Laid {
            at: frame.at,
            lines,
            left,
            right,
            bottom,
            entries: self.entries,
        }
    }

    /// How far everything goes to the left and to the right.
    fn sides(&self, lines: &[Line]) -> (i32, i32) {
        let (mut left, mut right) = (0, 0);
        for r in 0..self.rows.len() {
            let (a, b) = self.extent(r);
            (left, right) = (left.min(a), right.max(b));
        }
        for line in lines {
            for (x, _) in &line.points {
                (left, right) = (left.min(*x), right.max(*x));
            }
            if let Some((x, _)) = line.label {
                right = right.max(x + self.links[line.link].label);
            }
        }
        for x in &self.entries {
            (left, right) = (left.min(*x), right.max(*x));
        }
        (left, right)
    }

    /// Whether a link has its text: beside others there is no room.
    fn labelled(&self, link: usize) -> bool {
        let End::Part(i) = self.links[link].to else {
            return false;
        };
        let main = self.rows[self.ranks[i]].iter();
        let main = main.filter(|s| matches!(s, Slot::Tile(t) if !self.tiles[*t].aside));
        self.links[link].label > 0 && main.count() == 1
    }

    /// Height of the gap above a row.
    fn gap(&self, r: i32) -> i32 {
        let (mut turns, mut text) = (0, 0);
        for i in 0..self.links.len() {
            let (a, b) = self.span(i);
            if self.lanes[i] {
                turns += i32::from(a + 1 == r) + i32::from(b == r);
            }
            if b == r && self.labelled(i) {
                text = TEXT;
            }
        }
        (ROW + text).max(ROW - 6 + 7 * turns)
    }

    /// For each link where it enters its part, from the part's axis: those from the left further left.
    fn ends(&self) -> Vec<i32> {
        let mut out = vec![0; self.links.len()];
        for (i, tile) in self.tiles.iter().enumerate() {
            let mut into: Vec<usize> = (0..self.links.len())
                .filter(|k| self.links[*k].to == End::Part(i) && !self.sideways(*k))
                .collect();
            into.sort_by_key(|k| {
                let lane = i32::from(self.lanes[*k])
                    * if self.links[*k].aside {
                        -100_000
                    } else {
                        100_000
                    };
                (lane + self.source_x(*k, self.ranks[i]), *k)
            });
            // The main flow comes in in the middle, everything else left of it.
            let (aside, main): (Vec<usize>, Vec<usize>) =
                into.into_iter().partition(|k| self.links[*k].aside);
            let (n, m) = (main.len() as i32, aside.len() as i32);
            let step = ((tile.w - 24).max(0) / n.max(1)).min(28);
            for (k, link) in main.into_iter().enumerate() {
                out[link] = (2 * k as i32 - (n - 1)) * step / 2;
            }
            let first = if n == 0 {
                (1 - m) * 7
            } else {
                -(n - 1) * step / 2 - 14 * m
            };
            for (k, link) in aside.into_iter().enumerate() {
                let x = first + 14 * k as i32;
                out[link] = x.max(12 - tile.axis).min(tile.w - tile.axis - 12);
            }
        }
        out
    }

    /// Whether a line comes in from the right.
    fn sideways(&self, link: usize) -> bool {
        let round = matches!(self.links[link].to, End::Part(t) if self.tiles[t].round);
        round && self.lanes[link] && !self.links[link].aside && !self.back[link]
    }
}

/// Where everything is.
struct Frame {
    at: Vec<(i32, i32)>,
    tops: Vec<i32>,
    heights: Vec<i32>,
    gaps: Vec<i32>,
    bottom: i32,
    lane_x: Vec<i32>,
    ends: Vec<i32>,
}

impl Plan<'_> {
    fn line(&self, i: usize, f: &Frame) -> Line {
        let l = &self.links[i];
        let begin = match l.from {
            End::In(k) => (self.entries[k], 0),
            End::Part(p) => (f.at[p].0 + self.tiles[p].axis, f.at[p].1 + self.tiles[p].h),
            End::Out => (0, 0),
        };
        let end = match l.to {
            End::Part(p) => (f.at[p].0 + self.tiles[p].axis + f.ends[i], f.at[p].1),
            End::Out | End::In(_) => (0, f.bottom),
        };
        if self.back[i] {
            return self.backward(i, f);
        }
        if self.lanes[i] {
            return self.lane(i, begin, end, f);
        }
        // It bends between rows only, where no part is in its way.
        let (a, b) = self.span(i);
        let mut points = vec![begin];
        if a >= 0 {
            points.push((begin.0, f.tops[a as usize] + f.heights[a as usize]));
        }
        for (r, x) in &self.through[i] {
            points.push((*x, f.tops[*r]));
            points.push((*x, f.tops[*r] + f.heights[*r]));
        }
        let at = points[points.len() - 1];
        if b <= self.last as i32 {
            points.push((end.0, f.tops[b as usize]));
        }
        points.push(end);
        points.dedup();
        let label = self.labelled(i).then(|| {
            (
                i32::midpoint(at.0, end.0) + 8,
                i32::midpoint(
                    at.1.max(end.1 - f.gaps[self.span(i).1.max(0) as usize]),
                    end.1,
                ) + 4,
            )
        });
        Line {
            link: i,
            points,
            curved: true,
            back: false,
            label,
        }
    }

    /// A line in a lane: down, aside, down past everything, and back in.
    fn lane(&self, i: usize, begin: (i32, i32), end: (i32, i32), f: &Frame) -> Line {
        let x = f.lane_x[i];
        let (a, b) = self.span(i);
        // Lines of one part leave it together; those that come in turn one after the other.
        let turn = |r: i32| {
            let before = (0..i).filter(|k| {
                self.lanes[*k] && !self.back[*k] && self.span(*k).1 == r && !self.sideways(*k)
            });
            7 * before.count() as i32
        };
        let row_end = if a < 0 {
            0
        } else {
            f.tops[a as usize] + f.heights[a as usize]
        };
        let from = if self.links[i].aside { 9 } else { 6 };
        let out = (x, row_end.max(begin.1) + from);
        let mut points = vec![begin, (begin.0, out.1), out];
        if self.sideways(i)
            && let End::Part(p) = self.links[i].to
        {
            let tile = &self.tiles[p];
            let y = f.at[p].1 + tile.h / 2;
            points.extend([(x, y), (f.at[p].0 + tile.w, y)]);
        } else {
            let top = if b > self.last as i32 {
                f.bottom
            } else {
                f.tops[b as usize]
            };
            let y = top - 12 - turn(b);
            points.extend([(x, y), (end.0, y), end]);
        }
        let label = self.labelled(i).then(|| (end.0 + 8, end.1 - 5));
        Line {
            link: i,
            points,
            curved: false,
            back: false,
            label,
        }
    }

    /// A line back up to a part that is there already.
    fn backward(&self, i: usize, f: &Frame) -> Line {
        let x = f.lane_x[i];
        let (End::Part(p), End::Part(q)) = (self.links[i].from, self.links[i].to) else {
            return Line {
                link: i,
                points: Vec::new(),
                curved: false,
                back: true,
                label: None,
            };
        };
        let side = |k: usize| {
            let tile = &self.tiles[k];
            let left = x < 0;
            (
                f.at[k].0 + if left { 0 } else { tile.w },
                f.at[k].1 + tile.h / 2,
            )
        };
        let (from, to) = (side(p), side(q));
        let points = vec![from, (x, from.1), (x, to.1), to];
        Line {
            link: i,
            points,
            curved: false,
            back: true,
            label: None,
        }
    }
}
