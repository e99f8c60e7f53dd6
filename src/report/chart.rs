//! Which pictures a report has, as data: what is on the axes and how it is called. `plot` draws them.

use super::format::Unit;
use super::{bars, curves, Input, Range};

/// One picture.
#[derive(Clone, Debug)]
pub struct Chart {
    /// For file names: lower case, with hyphens.
    pub id: &'static str,
    pub title: String,
    /// Unit, and what the marks are.
    pub note: String,
    pub(super) body: Body,
}

#[derive(Clone, Debug)]
pub(super) enum Body {
    /// Over optimizer steps.
    Lines { unit: Unit, from_zero: bool, series: Vec<Series> },
    /// A bar for each group and series; whiskers from the least to the most.
    Bars { unit: Unit, groups: Vec<String>, series: Vec<BarSeries> },
    /// A bar for each group, its parts end to end.
    Stacked { unit: Unit, groups: Vec<String>, parts: Vec<(String, Vec<f64>)> },
}

#[derive(Clone, Debug)]
pub(super) struct Series {
    pub name: String,
    /// Place in the palette.
    pub color: usize,
    pub mark: Mark,
    pub points: Vec<(f64, f64)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    Line,
    /// In the background of a line.
    Faint,
    /// Joined points.
    Dots,
}

#[derive(Clone, Debug)]
pub(super) struct BarSeries {
    pub name: String,
    /// One for each group.
    pub values: Vec<Option<Range>>,
}

/// All pictures that `input` gives.
pub fn charts(input: &Input) -> Vec<Chart> {
    let mut charts = curves::charts(&input.runs);
    charts.extend(bars::charts(&input.measurements));
    charts.extend(bars::footprints(&input.footprints));
    charts
}
