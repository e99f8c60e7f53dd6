//! Charts as SVG, by plotters.
//!
//! plotters places things on whole pixels, so it is given four for each; the picture's own size is put back afterwards.
//! Text is measured in DejaVu Sans, which `png` draws with; a browser takes the reader's own font.

use std::sync::Once;

use plotters::coord::ranged1d::{BoldPoints, Ranged};
use plotters::coord::types::RangedCoordf64;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{register_font, FontStyle};

use super::chart::{BarSeries, Body, Chart, Mark, Series};
use super::error::{Error, Result};
use super::format::Unit;
use super::theme::{self, AXIS, GRID, GROUND, MUTED, TEXT};

/// Pixels of plotters' for one of the picture.
const SCALE: u32 = 4;
const WIDTH: u32 = 640;
/// Of the plotting area of lines, with its axis.
const LINES_HEIGHT: u32 = 280;
/// Below bars.
const AXIS_HEIGHT: u32 = 30;
const BAR: u32 = 15;
const BETWEEN_BARS: u32 = 3;
const BETWEEN_GROUPS: u32 = 15;
const FONT: &str = "sans-serif";

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Where a picture stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// In a page, which has the title and the colours for dark screens.
    Inline,
    /// By itself, with both.
    Alone,
}

/// A drawn chart.
#[derive(Clone, Debug)]
pub struct Picture {
    pub svg: String,
    /// For pictures over steps: what a page needs to tell the value under the pointer.
    pub hover: Option<serde_json::Value>,
}

/// Draws `chart`.
pub fn svg(chart: &Chart, look: Look) -> Result<Picture> {
    fonts();
    let failed = |reason: String| Error::Draw { chart: chart.id.into(), reason };
    let legend = legend(chart);
    let heading = if look == Look::Alone { 46 } else { 4 };
    let legend_height = legend_rows(&legend) * 20;
    let height = heading + legend_height + body_height(&chart.body);
    let mut text = String::new();
    let hover = {
        let size = (WIDTH * SCALE, height * SCALE);
        let root = SVGBackend::with_string(&mut text, size).into_drawing_area();
        let draw = || -> Drawn<Option<serde_json::Value>> {
            if look == Look::Alone {
                root.fill(&GROUND.light)?;
                root.draw_text(&chart.title, &font(15, TEXT.light, true), (px(12), px(10)))?;
                root.draw_text(&chart.note, &font(11, MUTED.light, false), (px(12), px(30)))?;
            }
            draw_legend(&root, &legend, heading)?;
            let (_, body) = root.split_vertically((heading + legend_height) * SCALE);
            let hover = match &chart.body {
                Body::Lines { unit, from_zero, series } => lines(&body, *unit, *from_zero, series)?,
                Body::Bars { unit, groups, series } => {
                    bars(&body, *unit, groups, series, &Rows::of(&chart.body))?;
                    None
                }
                Body::Stacked { unit, groups, parts } => {
                    stacked(&body, *unit, groups, parts, &Rows::of(&chart.body))?;
                    None
                }
            };
            root.present()?;
            Ok(hover)
        };
        draw().map_err(|e| failed(e.to_string()))?
    };
    Ok(Picture { svg: finished(&text, chart, look, height), hover })
}

/// plotters finds no font by itself: it was built without a system's.
fn fonts() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // The bytes are fonts: `text_is_measured` would fail otherwise.
        let _ = register_font(FONT, FontStyle::Normal, dejavu::sans::regular());
        let _ = register_font(FONT, FontStyle::Bold, dejavu::sans::bold());
    });
}

fn px(n: u32) -> i32 {
    (n * SCALE) as i32
}

/// plotters takes a font's line height for its size; this is the size.
fn font(size: u32, color: RGBColor, bold: bool) -> TextStyle<'static> {
    let style = if bold { FontStyle::Bold } else { FontStyle::Normal };
    let font: FontDesc<'static> = (FONT, f64::from(size * SCALE) * 1.24, style).into();
    font.color(&color)
}

/// Width of a text in pixels of the picture.
fn width(text: &str, size: u32) -> u32 {
    fonts();
    let measured = font(size, TEXT.light, false).font.box_size(text).map_or(0, |(w, _)| w);
    // Measured is a font whose ascent and descent, 1.164 of its size, are 1.24 of the size that is written.
    (f64::from(measured) * 1.164 / 1.24 / f64::from(SCALE)).ceil() as u32
}

fn body_height(body: &Body) -> u32 {
    match body {
        Body::Lines { .. } => LINES_HEIGHT,
        Body::Bars { .. } | Body::Stacked { .. } => Rows::of(body).total + AXIS_HEIGHT,
    }
}

/// Where groups of bars stand: those of a group together, without room for what was not measured.
struct Rows {
    /// From the top, for each group.
    tops: Vec<u32>,
    heights: Vec<u32>,
    total: u32,
}

impl Rows {
    fn of(body: &Body) -> Self {
        let counts: Vec<usize> = match body {
            Body::Lines { .. } => Vec::new(),
            Body::Bars { groups, series, .. } => {
                (0..groups.len()).map(|i| series.iter().filter(|s| s.values[i].is_some()).count()).collect()
            }
            Body::Stacked { groups, .. } => vec![1; groups.len()],
        };
        let mut rows = Self { tops: Vec::new(), heights: Vec::new(), total: BETWEEN_GROUPS / 2 };
        for n in counts {
            let height = (n.max(1) as u32) * (BAR + BETWEEN_BARS) - BETWEEN_BARS;
            rows.tops.push(rows.total);
            rows.heights.push(height);
            rows.total += height + BETWEEN_GROUPS;
        }
        rows.total -= BETWEEN_GROUPS / 2;
        rows
    }
}

/// Entry of a legend: name, colour, whether it is faint or dots.
type Key = (String, RGBColor, Mark);

/// None where there is one series only: the title says what it is.
fn legend(chart: &Chart) -> Vec<Key> {
    let keys: Vec<Key> = match &chart.body {
        Body::Lines { series, .. } => {
            series.iter().map(|s| (s.name.clone(), theme::series(s.color), s.mark)).collect()
        }
        Body::Bars { series, .. } => {
            series.iter().enumerate().map(|(i, s)| (s.name.clone(), theme::series(i), Mark::Line)).collect()
        }
        Body::Stacked { parts, .. } => {
            parts.iter().enumerate().map(|(i, p)| (p.0.clone(), theme::series(i), Mark::Line)).collect()
        }
    };
    let named: Vec<Key> = keys.into_iter().filter(|k| !k.0.is_empty()).collect();
    match (named.len(), &chart.body) {
        // What the only bars were measured on stands nowhere else in the picture.
        (1, Body::Lines { .. }) => Vec::new(),
        _ => named,
    }
}

/// Where each entry begins: its row and the distance from the left.
fn legend_places(keys: &[Key]) -> Vec<(u32, u32)> {
    let (mut row, mut x) = (0, 12);
    let place = |key: &Key| {
        let wide = 34 + width(&key.0, 12);
        if x > 12 && x + wide > WIDTH - 12 {
            (row, x) = (row + 1, 12);
        }
        let at = (row, x);
        x += wide;
        at
    };
    keys.iter().map(place).collect()
}

fn legend_rows(keys: &[Key]) -> u32 {
    legend_places(keys).last().map_or(0, |(row, _)| row + 1)
}

fn draw_legend(root: &Area, keys: &[Key], top: u32) -> Drawn {
    for (key, (row, x)) in keys.iter().zip(legend_places(keys)) {
        let y = top + row * 20 + 10;
        let color = key.1;
        match key.2 {
            Mark::Dots => {
                root.draw(&Circle::new((px(x + 7), px(y)), px(4), color.filled()))?;
            }
            mark => {
                let color = if mark == Mark::Faint { color.mix(0.35) } else { color.to_rgba() };
                root.draw(&Rectangle::new([(px(x), px(y - 4)), (px(x + 14), px(y + 4))], color.filled()))?;
            }
        }
        let style = font(12, MUTED.light, false).pos(Pos::new(HPos::Left, VPos::Center));
        root.draw_text(&key.0, &style, (px(x + 20), px(y)))?;
    }
    Ok(())
}

/// The least and the most that an axis shows.
fn span(values: impl Iterator<Item = f64>, from_zero: bool) -> std::ops::Range<f64> {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| (a.min(v), b.max(v)));
    if low > high {
        return 0.0..1.0;
    }
    let room = match high - low {
        // A flat line lies in the middle.
        0.0 => (high.abs() * 0.1).max(f64::MIN_POSITIVE),
        wide => 0.06 * wide,
    };
    let low = if from_zero || (low >= 0.0 && low < room) { 0.0f64.min(low) } else { low - room };
    // Flat at zero.
    low..if high + room > low + f64::EPSILON { high + room } else { low + 1.0 }
}

/// The distance between an axis' ticks, about `n` of them.
fn tick_step(range: &std::ops::Range<f64>, n: usize) -> f64 {
    let points = RangedCoordf64::from(range.clone()).key_points(BoldPoints(n));
    points.windows(2).map(|w| w[1] - w[0]).next().unwrap_or(range.end - range.start)
}

fn lines(area: &Area, unit: Unit, from_zero: bool, series: &[Series]) -> Drawn<Option<serde_json::Value>> {
    const X_TICKS: usize = 9;
    const Y_TICKS: usize = 6;
    let points = || series.iter().flat_map(|s| &s.points);
    let xs = points().map(|p| p.0).fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), x| (a.min(x), b.max(x)));
    let from = if xs.0 <= 0.5 * xs.1 { 0.0 } else { xs.0 };
    let x = from..if xs.1 > from { xs.1 } else { from + 1.0 };
    let y = span(points().map(|p| p.1), from_zero);
    let (x_step, y_step) = (tick_step(&x, X_TICKS).max(1.0), tick_step(&y, Y_TICKS));
    let (largest, low) = (y.end, y.start);
    let y_text = move |v: &f64| unit.tick(if v.abs() < 1e-9 * y_step { 0.0 } else { *v }, y_step, largest);
    // Where steps are few, ticks fall between them and stay bare.
    let x_text = move |v: &f64| match v.fract().abs() < 1e-6 {
        true => Unit::Plain.tick(v.round(), x_step, 1.0),
        false => String::new(),
    };
    let widest = (0..=20).map(|i| width(&y_text(&(low + y_step * f64::from(i))), 11)).max().unwrap_or(0);
    let mut chart = ChartBuilder::on(area)
        .margin_top(px(8))
        .margin_right(px(18))
        .margin_left(px(4))
        .x_label_area_size(px(40))
        .y_label_area_size(px(widest.max(24) + 12))
        .build_cartesian_2d(x.clone(), y.clone())?;
    let tick = font(11, MUTED.light, false);
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(X_TICKS)
        .y_labels(Y_TICKS)
        .max_light_lines(0)
        .bold_line_style(GRID.light.stroke_width(SCALE))
        .light_line_style(TRANSPARENT)
        .axis_style(AXIS.light.stroke_width(SCALE))
        .set_all_tick_mark_size(px(4))
        .label_style(tick.clone())
        .x_label_formatter(&x_text)
        .y_label_formatter(&y_text)
        .x_desc("step")
        .axis_desc_style(tick)
        .draw()?;
    // What is in the background is drawn first.
    let behind = series.iter().filter(|s| s.mark == Mark::Faint);
    for s in behind.chain(series.iter().filter(|s| s.mark != Mark::Faint)) {
        let color = theme::series(s.color);
        let style = match s.mark {
            Mark::Faint => color.mix(0.35).stroke_width(SCALE),
            _ => color.stroke_width(SCALE * 2),
        };
        chart.draw_series(LineSeries::new(s.points.iter().copied(), style))?;
        if s.mark == Mark::Dots || s.points.len() == 1 {
            // A ring of the ground keeps dots and lines apart.
            let dot = |p: &(f64, f64), r: u32, c: RGBColor| Circle::new(*p, px(r), c.filled());
            chart.draw_series(s.points.iter().map(|p| dot(p, 5, GROUND.light)))?;
            chart.draw_series(s.points.iter().map(|p| dot(p, 4, color)))?;
        }
    }
    let (px_x, px_y) = chart.plotting_area().get_pixel_range();
    let digits = |v: f64| (v * 1e6).round() / 1e6;
    let told = series.iter().map(|s| {
        serde_json::json!({
            "name": s.name,
            "color": theme::hex(theme::series(s.color)),
            "faint": s.mark == Mark::Faint,
            "points": s.points.iter().map(|p| (p.0, digits(p.1), unit.text(p.1))).collect::<Vec<_>>(),
        })
    });
    Ok(Some(serde_json::json!({
        "x": [x.start, x.end],
        "y": [y.start, y.end],
        "left": px_x.start, "right": px_x.end, "top": px_y.start, "bottom": px_y.end,
        "series": told.collect::<Vec<_>>(),
    })))
}

/// The axis below horizontal bars, names of the groups to the left; what is drawn has x in the unit, y in pixels from the top.
fn bar_frame<'a, 'b>(
    area: &'b Area<'a>,
    unit: Unit,
    groups: &[String],
    rows: &Rows,
    most: f64,
) -> Drawn<ChartContext<'b, SVGBackend<'a>, Cartesian2d<RangedCoordf64, RangedCoordf64>>> {
    const TICKS: usize = 5;
    let label_width = groups.iter().map(|g| width(g, 12)).max().unwrap_or(0).min(WIDTH / 2) + 12;
    let x = 0.0..most;
    let step = tick_step(&x, TICKS);
    let mut chart = ChartBuilder::on(area)
        .margin_right(px(18))
        .margin_left(px(8))
        .x_label_area_size(px(AXIS_HEIGHT))
        .y_label_area_size(px(label_width))
        .build_cartesian_2d(x, f64::from(rows.total)..0.0)?;
    let text = move |v: &f64| unit.tick(*v, step, most);
    chart
        .configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .axis_style(TRANSPARENT)
        .x_labels(TICKS)
        .max_light_lines(0)
        .bold_line_style(GRID.light.stroke_width(SCALE))
        .light_line_style(TRANSPARENT)
        .set_all_tick_mark_size(px(4))
        .label_style(font(11, MUTED.light, false))
        .x_label_formatter(&text)
        .draw()?;
    let style = font(12, TEXT.light, false).pos(Pos::new(HPos::Right, VPos::Center));
    let (pixels, _) = chart.plotting_area().get_pixel_range();
    let (_, top) = area.get_base_pixel();
    for (i, group) in groups.iter().enumerate() {
        let y = f64::from(rows.tops[i]) + f64::from(rows.heights[i]) / 2.0;
        let at = chart.plotting_area().map_coordinate(&(0.0, y));
        area.draw_text(&fitting(group, label_width - 12), &style, (pixels.start - px(8), at.1 - top))?;
    }
    Ok(chart)
}

/// `text`, cut where it is wider than `room`.
fn fitting(text: &str, room: u32) -> String {
    let mut cut = text.to_owned();
    while width(&cut, 12) > room && cut.pop().is_some() {}
    match cut.len() == text.len() {
        true => cut,
        false => cut.chars().take(cut.chars().count().saturating_sub(1)).chain(['…']).collect(),
    }
}

fn bars(area: &Area, unit: Unit, groups: &[String], series: &[BarSeries], rows: &Rows) -> Drawn {
    let values = || series.iter().flat_map(|s| s.values.iter().flatten());
    let most = values().map(|v| v.max).fold(0.0, f64::max).max(f64::MIN_POSITIVE);
    // Room for the figure at a bar's end.
    let widest = values().map(|v| width(&unit.text(v.median), 11)).max().unwrap_or(0);
    let labels = groups.iter().map(|g| width(g, 12)).max().unwrap_or(0).min(WIDTH / 2);
    let room = f64::from(WIDTH.saturating_sub(labels + 38).max(120));
    let most = most * room / (room - f64::from(widest + 14)).max(60.0);
    let mut chart = bar_frame(area, unit, groups, rows, most)?;
    let mut tops = rows.tops.clone();
    for (k, s) in series.iter().enumerate() {
        for (i, value) in s.values.iter().enumerate() {
            let Some(v) = value else { continue };
            let top = f64::from(tops[i]);
            tops[i] += BAR + BETWEEN_BARS;
            let (bottom, middle) = (top + f64::from(BAR), top + f64::from(BAR) / 2.0);
            let bar = Rectangle::new([(0.0, top), (v.median, bottom)], theme::series(k).filled());
            chart.draw_series([bar])?;
            if v.max > v.min {
                let line = |a, b| PathElement::new(vec![a, b], TEXT.light.stroke_width(SCALE));
                chart.draw_series([
                    line((v.min, middle), (v.max, middle)),
                    line((v.min, middle - 3.0), (v.min, middle + 3.0)),
                    line((v.max, middle - 3.0), (v.max, middle + 3.0)),
                ])?;
            }
            let style = font(11, TEXT.light, false).pos(Pos::new(HPos::Left, VPos::Center));
            let text = Text::new(unit.text(v.median), (px(6), 0), style);
            chart.draw_series([EmptyElement::at((v.max, middle)) + text])?;
        }
    }
    baseline(&mut chart, 0.0, rows.total)?;
    if unit == Unit::Times {
        baseline(&mut chart, 1.0, rows.total)?;
    }
    Ok(())
}

fn stacked(area: &Area, unit: Unit, groups: &[String], parts: &[(String, Vec<f64>)], rows: &Rows) -> Drawn {
    let total = |i: usize| parts.iter().map(|p| p.1[i]).sum::<f64>();
    let most = (0..groups.len()).map(total).fold(f64::MIN_POSITIVE, f64::max);
    let mut chart = bar_frame(area, unit, groups, rows, most)?;
    for i in 0..groups.len() {
        let top = f64::from(rows.tops[i]);
        let bottom = top + f64::from(BAR);
        let mut from = 0.0;
        for (k, (_, values)) in parts.iter().enumerate() {
            let to = from + values[i];
            let style = theme::series(k).filled();
            chart.draw_series([Rectangle::new([(from, top), (to, bottom)], style)])?;
            // Neighbours are kept apart by the ground.
            let edge = PathElement::new(vec![(to, top), (to, bottom)], GROUND.light.stroke_width(SCALE));
            chart.draw_series([edge])?;
            from = to;
        }
    }
    baseline(&mut chart, 0.0, rows.total)
}

fn baseline(
    chart: &mut ChartContext<'_, SVGBackend<'_>, Cartesian2d<RangedCoordf64, RangedCoordf64>>,
    x: f64,
    height: u32,
) -> Drawn {
    let line = vec![(x, 0.0), (x, f64::from(height))];
    chart.draw_series([PathElement::new(line, AXIS.light.stroke_width(SCALE))])?;
    Ok(())
}

/// The picture in its own size, with its name for those who do not see it.
fn finished(text: &str, chart: &Chart, look: Look, height: u32) -> String {
    let (_, rest) = text.split_once('>').unwrap_or(("", text));
    let escaped = |s: &str| s.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;");
    let style = match look {
        Look::Inline => String::new(),
        Look::Alone => format!(
            "<style>text{{font-family:system-ui,\"Segoe UI\",\"DejaVu Sans\",sans-serif}}\
             @media (prefers-color-scheme:dark){{{}}}</style>\n",
            theme::dark_rules()
        ),
    };
    let (w, h) = (WIDTH * SCALE, height * SCALE);
    format!(
        "<svg width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {w} {h}\" role=\"img\" aria-label=\"{}\" \
         xmlns=\"http://www.w3.org/2000/svg\">\n{style}{}",
        escaped(&format!("{}: {}", chart.title, chart.note)),
        rest.trim_start().replace("\n</text>", "</text>")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_measured() {
        let (narrow, wide) = (width("iii", 12), width("mmm", 12));
        assert!(narrow > 5 && wide > 2 * narrow && wide < 60, "{narrow} {wide}");
    }

    #[test]
    fn a_long_legend_takes_rows() {
        let key = |n: usize| ("x".repeat(n), TEXT.light, Mark::Line);
        let rows = |n| legend_rows(&vec![key(n); 4]);
        assert_eq!((legend_rows(&[]), rows(3), rows(40)), (0, 1, 4));
    }

    #[test]
    fn axes_hold_what_is_flat_and_what_is_far_from_zero() {
        let of = |values: &[f64], from_zero| span(values.iter().copied(), from_zero);
        for (values, from_zero) in
            [(&[2.0, 2.0][..], false), (&[0.0][..], true), (&[5.0, 6.0][..], false), (&[-3.0, 1.0][..], true)]
        {
            let range = of(values, from_zero);
            assert!(values.iter().all(|v| range.start <= *v && *v < range.end), "{range:?}");
        }
        assert_eq!(of(&[5.0, 6.0], true).start, 0.0);
        assert!(of(&[5.0, 6.0], false).start > 4.0);
    }

    #[test]
    fn long_names_are_cut() {
        assert_eq!(fitting("short", 200), "short");
        let cut = fitting(&"long ".repeat(40), 200);
        assert!(cut.ends_with('…') && width(&cut, 12) <= 212, "{cut}");
    }
}
