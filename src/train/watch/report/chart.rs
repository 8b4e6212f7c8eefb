//! Curves as SVG. A chart scales with the page, is drawn in the page's colours, and says in words what it shows.

use super::{digits, failed};
use crate::error::Result;
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::{
    ChartBuilder, Circle, Color, IntoDrawingArea, IntoLogRange, LineSeries, RGBColor, Ranged,
    SVGBackend, ShapeStyle,
};
use serde::Serialize;
use serde_json::Value;
use std::ops::Range;

/// Sizes of a drawing: that of most, and that of the first chart on a wide page.
const SIZE: (u32, u32) = (480, 270);
const WIDE: (u32, u32) = (980, 300);
/// The page knows these colours and gives them the theme's; the second is dashed, too.
const COLOURS: [RGBColor; 6] = [
    RGBColor(0x1f, 0x6f, 0xb2),
    RGBColor(0xd9, 0x77, 0x06),
    RGBColor(0x2f, 0x85, 0x5a),
    RGBColor(0xb8, 0x32, 0x80),
    RGBColor(0x6b, 0x46, 0xc1),
    RGBColor(0x71, 0x80, 0x96),
];
/// Their names on the page.
const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
/// Points of a curve: of more, the least and the most of each stretch are drawn.
const POINTS: usize = 800;
/// Up to so many points are shown as points.
const MARKED: usize = 30;
/// A curve of more points than these is smoothed, over this share of it.
const ROUGH: usize = 100;
const SMOOTHED: f64 = 0.05;
/// How many times the least the most must be for a scale that is logarithmic.
const SPAN: f64 = 100.0;
/// The title of the chart of the learning rate.
pub(super) const RATE: &str = "Learning rate";
/// What is beyond is no measure of a run, and cannot be drawn.
const BOUND: f64 = 1e30;

/// Steps and values.
pub(super) type Line = Vec<(f64, f64)>;

/// A line of a chart.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Curve {
    /// What it is.
    pub name: String,
    /// Its points.
    pub points: Line,
    /// Which colour it has.
    pub colour: usize,
    /// Whether it stands behind the others: every point of what another one smooths.
    pub faint: bool,
}

/// A chart, with its legend.
#[derive(Debug, Serialize)]
pub(super) struct Chart {
    pub title: String,
    /// How it is drawn, in words.
    pub note: String,
    pub svg: String,
    /// The same for a wide page, where it is to be wide.
    pub wide: String,
    /// Name of a line, and that of its colour.
    pub legend: Vec<(String, &'static str)>,
}

/// Step and value of each entry.
pub(super) fn series(entries: &[Value], path: &[&str]) -> Line {
    let value = |e: &Value| path.iter().try_fold(e, |v, k| v.get(*k))?.as_f64();
    let all = entries
        .iter()
        .filter_map(|e| Some((e["step"].as_f64()?, value(e)?)));
    drawable(all)
}

/// The points that can be drawn, in order of their steps.
pub(super) fn drawable(points: impl Iterator<Item = (f64, f64)>) -> Line {
    let bounded = |x: f64| x.is_finite() && x.abs() <= BOUND;
    let mut line: Line = points.filter(|p| bounded(p.0) && bounded(p.1)).collect();
    line.sort_by(|a, b| a.0.total_cmp(&b.0));
    line
}

/// A line, with its smoothed form before it where it is long.
pub(super) fn told(name: &str, points: Line, colour: usize) -> Vec<Curve> {
    let curve = |points, faint| Curve {
        name: name.to_owned(),
        points,
        colour,
        faint,
    };
    if points.len() <= ROUGH {
        return vec![curve(points, false)];
    }
    let smooth = if spans(&points) {
        // What a logarithmic scale shows is smoothed there: else the large values decide.
        let logarithms: Line = points.iter().map(|p| (p.0, p.1.ln())).collect();
        let means = smoothed(&logarithms);
        means.into_iter().map(|(x, y)| (x, y.exp())).collect()
    } else {
        smoothed(&points)
    };
    vec![
        curve(thinned_out(&points), true),
        curve(thinned_out(&smooth), false),
    ]
}

/// Whether values are on a logarithmic scale.
fn spans(line: &[(f64, f64)]) -> bool {
    let least = line.iter().map(|p| p.1).fold(f64::INFINITY, f64::min);
    let most = line.iter().map(|p| p.1).fold(f64::NEG_INFINITY, f64::max);
    least > 0.0 && most / least >= SPAN
}

/// The mean of the values around each, those that are farther away counting exponentially less.
fn smoothed(line: &[(f64, f64)]) -> Line {
    let keep = 1.0 - 2.0 / (line.len() as f64 * SMOOTHED / 2.0 + 1.0);
    // Sum and weight of the values up to each, from either side; each is in both.
    let sums = |values: &mut dyn Iterator<Item = f64>| -> Vec<(f64, f64)> {
        let (mut sum, mut weight) = (0.0, 0.0);
        let next = |y: f64| {
            (sum, weight) = (keep * sum + y, keep * weight + 1.0);
            (sum, weight)
        };
        values.map(next).collect()
    };
    let before = sums(&mut line.iter().map(|p| p.1));
    let behind = sums(&mut line.iter().rev().map(|p| p.1));
    let both = line.iter().zip(before.iter().zip(behind.iter().rev()));
    both.map(|(&(x, y), (a, b))| (x, (a.0 + b.0 - y) / (a.1 + b.1 - 1.0)))
        .collect()
}

/// A line of a bounded number of points: the least and the most of each stretch, so that what stands out stays.
fn thinned_out(line: &[(f64, f64)]) -> Line {
    if line.len() <= POINTS {
        return line.to_vec();
    }
    let each = line.len().div_ceil(POINTS / 2);
    let mut out = Vec::with_capacity(POINTS + 2);
    for part in line.chunks(each) {
        let least = part
            .iter()
            .enumerate()
            .min_by(|a, b| a.1.1.total_cmp(&b.1.1));
        let most = part
            .iter()
            .enumerate()
            .max_by(|a, b| a.1.1.total_cmp(&b.1.1));
        if let (Some(a), Some(b)) = (least, most) {
            let (first, second) = if a.0 <= b.0 { (a, b) } else { (b, a) };
            out.push(*first.1);
            if second.0 != first.0 {
                out.push(*second.1);
            }
        }
    }
    out
}

/// A chart of curves; none where there is nothing to draw.
///
/// `named`: whether a single curve is named, too.
pub(super) fn chart(
    title: &str,
    curves: Vec<Curve>,
    (wide, named): (bool, bool),
) -> Result<Option<Chart>> {
    let curves: Vec<Curve> = curves
        .into_iter()
        .filter(|c| !c.points.is_empty())
        .collect();
    if curves.is_empty() {
        return Ok(None);
    }
    let y = range(&curves, |p| p.1);
    // A rate that goes to nothing spans any range.
    let logarithmic = title != RATE && spans(&[(0.0, y.0), (0.0, y.1)]);
    let mut notes = Vec::new();
    if curves.iter().any(|c| c.faint) {
        notes.push("smoothed, with single values behind it");
    }
    if logarithmic {
        notes.push("logarithmic scale");
    }
    let said: Vec<String> = curves.iter().filter(|c| !c.faint).map(described).collect();
    let drawn = |size: (u32, u32)| -> Result<String> {
        let mut svg = String::new();
        draw(&mut svg, &curves, size, logarithmic)?;
        // It scales with the page, and says what it shows to those who do not see it.
        let (w, h) = size;
        let head = format!("<svg width=\"{w}\" height=\"{h}\" viewBox=\"0 0 {w} {h}\"");
        let new = format!(
            "<svg role=\"img\" aria-label=\"{}\" viewBox=\"0 0 {w} {h}\"",
            escaped(&said.join("; "))
        );
        Ok(svg.replacen(&head, &new, 1))
    };
    let clear: Vec<&Curve> = curves.iter().filter(|c| !c.faint).collect();
    let mut legend = Vec::new();
    if named || clear.len() > 1 {
        let entry = |c: &&Curve| (c.name.clone(), NAMES[c.colour % NAMES.len()]);
        legend = clear.iter().map(entry).collect();
    }
    Ok(Some(Chart {
        title: title.to_owned(),
        note: notes.join("; "),
        svg: drawn(SIZE)?,
        wide: if wide { drawn(WIDE)? } else { String::new() },
        legend,
    }))
}

/// A chart of what was estimated against what is right: each a point, and the line that they would be on.
pub(super) fn scatter(points: &[Curve]) -> Result<Option<Chart>> {
    let (x, y) = (range(points, |p| p.0), range(points, |p| p.1));
    let (low, high) = (x.0.min(y.0), x.1.max(y.1));
    if !(low.is_finite() && high.is_finite()) {
        return Ok(None);
    }
    let room = ((high - low) * 0.05).max(1e-9);
    let (low, high) = (low - room, high + room);
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        let mut chart = framed(&area)
            .build_cartesian_2d(low..high, low..high)
            .map_err(failed)?;
        mesh(&mut chart, "expected", &|v| digits(*v))?;
        let line = LineSeries::new([(low, low), (high, high)], RGBColor(0, 0, 0).mix(0.4));
        chart.draw_series(line).map_err(failed)?;
        for curve in points {
            let colour = COLOURS[curve.colour % COLOURS.len()];
            let style = if curve.faint {
                ShapeStyle::from(colour.mix(0.6)).stroke_width(1)
            } else {
                ShapeStyle::from(colour).filled()
            };
            let dots = curve.points.iter().map(|p| Circle::new(*p, 3, style));
            chart.draw_series(dots).map_err(failed)?;
        }
        area.present().map_err(failed)?;
    }
    let (w, h) = SIZE;
    let head = format!("<svg width=\"{w}\" height=\"{h}\" viewBox=\"0 0 {w} {h}\"");
    let said = format!(
        "<svg role=\"img\" aria-label=\"answers against what is right, each a point, between {} and {}\" viewBox=\"0 0 {w} {h}\"",
        digits(low),
        digits(high)
    );
    let entry = |c: &Curve| (c.name.clone(), NAMES[c.colour % NAMES.len()]);
    Ok(Some(Chart {
        title: "Answers against what is right".to_owned(),
        note: "on the line, they are the same".to_owned(),
        svg: svg.replacen(&head, &said, 1),
        wide: String::new(),
        legend: points.iter().map(entry).collect(),
    }))
}

/// A line in words.
fn described(curve: &Curve) -> String {
    let (name, line) = (&curve.name, &curve.points);
    let (Some(first), Some(last)) = (line.first(), line.last()) else {
        return name.clone();
    };
    let least = line.iter().map(|p| p.1).fold(f64::INFINITY, f64::min);
    let most = line.iter().map(|p| p.1).fold(f64::NEG_INFINITY, f64::max);
    format!(
        "{name} by step, from {} at step {} to {} at step {}, between {} and {}",
        digits(first.1),
        first.0,
        digits(last.1),
        last.0,
        digits(least),
        digits(most)
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('"', "&quot;")
}

/// Least and most of the curves' coordinates.
fn range(curves: &[Curve], of: fn(&(f64, f64)) -> f64) -> (f64, f64) {
    let all = || curves.iter().flat_map(|c| &c.points).map(of);
    (
        all().fold(f64::INFINITY, f64::min),
        all().fold(f64::NEG_INFINITY, f64::max),
    )
}

type Area<'a> = plotters::drawing::DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn framed<'a, 'b>(area: &'a Area<'b>) -> ChartBuilder<'a, 'b, SVGBackend<'b>> {
    let mut builder = ChartBuilder::on(area);
    builder
        .margin(8)
        .margin_right(16)
        .x_label_area_size(38)
        .y_label_area_size(62);
    builder
}

fn draw(svg: &mut String, curves: &[Curve], size: (u32, u32), logarithmic: bool) -> Result<()> {
    let y = range(curves, |p| p.1);
    let area = SVGBackend::with_string(svg, size).into_drawing_area();
    if logarithmic {
        lines(&area, curves, ((y.0 / 1.2)..(y.1 * 1.2)).log_scale())?;
    } else {
        let room = if y.1 > y.0 {
            (y.1 - y.0) * 0.06
        } else {
            y.1.abs().max(1e-9) * 0.1
        };
        lines(&area, curves, (y.0 - room)..(y.1 + room))?;
    }
    area.present().map_err(failed)
}

fn lines<Y>(area: &Area<'_>, curves: &[Curve], y: Y) -> Result<()>
where
    Y: AsRangedCoord<Value = f64>,
    Y::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    let x = range(curves, |p| p.0);
    let x: Range<f64> = x.0..x.1.max(x.0 + 1.0);
    let mut chart = framed(area).build_cartesian_2d(x, y).map_err(failed)?;
    mesh(&mut chart, "step", &|v| {
        if v.fract() == 0.0 {
            format!("{v:.0}")
        } else {
            String::new()
        }
    })?;
    let ordered = curves.iter().filter(|c| c.faint);
    for curve in ordered.chain(curves.iter().filter(|c| !c.faint)) {
        let colour = COLOURS[curve.colour % COLOURS.len()];
        let (colour, width) = if curve.faint {
            (colour.mix(0.3), 1)
        } else {
            (colour.mix(1.0), 2)
        };
        let style = ShapeStyle::from(colour).stroke_width(width);
        let points = curve.points.iter().copied();
        let line = LineSeries::new(points.clone(), style);
        chart.draw_series(line).map_err(failed)?;
        if curve.points.len() <= MARKED {
            let dots = points.map(|p| Circle::new(p, 3, style.filled()));
            chart.draw_series(dots).map_err(failed)?;
        }
    }
    Ok(())
}

type Frame<'a, 'b, X, Y> = plotters::chart::ChartContext<
    'a,
    SVGBackend<'b>,
    plotters::coord::cartesian::Cartesian2d<X, Y>,
>;

/// Lines across, and words on both sides.
fn mesh<X, Y>(
    chart: &mut Frame<'_, '_, X, Y>,
    below: &str,
    across: &dyn Fn(&f64) -> String,
) -> Result<()>
where
    X: Ranged<ValueType = f64> + ValueFormatter<f64>,
    Y: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    chart
        .configure_mesh()
        .disable_x_mesh()
        .y_labels(5)
        .x_labels(6)
        .x_desc(below)
        .x_label_formatter(&|v| across(v))
        .y_label_formatter(&|v| digits(*v))
        .bold_line_style(RGBColor(0xee, 0xee, 0xee))
        .light_line_style(plotters::style::TRANSPARENT)
        .draw()
        .map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_line_is_smoothed_and_keeps_what_stands_out() {
        let points: Line = (0..10_001)
            .map(|i| (f64::from(i), if i == 7_000 { 9.0 } else { 2.0 }))
            .collect();
        let curves = told("loss", points, 0);
        assert_eq!(curves.len(), 2);
        assert!(curves.iter().all(|c| c.points.len() <= POINTS + 2));
        assert!(curves[0].faint && curves[0].points.contains(&(7_000.0, 9.0)));
        let most = curves[1].points.iter().map(|p| p.1).fold(0.0, f64::max);
        assert!(
            (curves[1].points[0].1 - 2.0).abs() < 1e-9 && most < 2.1,
            "{most}"
        );
        let falls: Line = (1..=200)
            .map(|i| (f64::from(i), (-f64::from(i) / 20.0).exp()))
            .collect();
        let smooth = &told("loss", falls.clone(), 0)[1].points;
        // Halfway, on both sides as much: the mean is the value.
        let (got, want) = (smooth[100].1, falls[100].1);
        assert!((got / want - 1.0).abs() < 1e-6, "{got} {want}");
    }

    #[test]
    fn a_scale_follows_what_it_shows() {
        let note = |points: &[f64]| {
            let points = points.iter().zip(1..).map(|(y, x)| (f64::from(x), *y));
            let curves = told("loss", points.collect(), 0);
            chart("Loss", curves, (false, false)).unwrap().unwrap().note
        };
        assert_eq!(note(&[5.0, 0.5, 0.0004]), "logarithmic scale");
        assert_eq!(note(&[5.0, 0.5, 0.4]), "");
        assert_eq!(note(&[5.0, 0.5, 0.0]), "");
    }

    #[test]
    fn what_no_run_has_is_not_drawn() {
        let hostile = [1e308, -1e308, f64::NAN, 1e300, 2.0];
        let points = hostile.iter().zip(1..).map(|(y, x)| (f64::from(x), *y));
        let line = drawable(points);
        assert_eq!(line, [(5.0, 2.0)]);
        assert!(drawable([(1e308, 1.0)].into_iter()).is_empty());
        for line in [
            vec![(0.0, 1e30), (1e30, -1e30)],
            vec![(3.0, 0.0)],
            vec![(-1e30, 1e-30), (2.0, 1e30)],
        ] {
            assert!(
                chart("x", told("x", line, 0), (true, false))
                    .unwrap()
                    .is_some()
            );
        }
    }
}
