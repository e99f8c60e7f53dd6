//! Runs and measurements as pages and pictures, and two sets of measurements side by side.
//!
//! ```text
//! input     folders of runs and files of results -> Run, Measurement
//! footprint results of `bench memory` and `bench kernels`
//! chart     which pictures they give, as data: titles, units, series
//! curves    those of runs
//! bars      those of measurements
//! plot      a chart drawn as SVG, by plotters
//! theme     its colours, in light and in dark
//! png       the same picture in pixels, by resvg with a font of its own
//! table     what is told in rows: results, settings
//! page      one HTML file that needs nothing else; Markdown
//! compare   ratios of two sets of results
//! ```
//! It reads what `train` and `bench` wrote, by the names of the JSON's fields and leniently: a field that an older
//! version did not write is left out of the page. To add a picture: a function in `curves` or `bars` and its line in `charts`.

mod bars;
mod chart;
mod compare;
mod curves;
mod error;
mod footprint;
mod format;
mod input;
mod page;
mod plot;
mod png;
mod table;
mod theme;

pub use chart::{charts, Chart};
pub use compare::{compare, Comparison, Ratio};
pub use error::{Error, Result};
pub use footprint::{Footprint, Kernel};
pub use input::{Input, Measurement, Run};
pub use page::{html, markdown, Note};
pub use plot::{svg, Look, Picture};
pub use png::png;

/// Several measurements of one thing, as results store them.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Range {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Range {
    /// One value, known exactly.
    fn exactly(x: f64) -> Self {
        Self { median: x, min: x, max: x }
    }

    /// The quotient of two figures, and between what it lies.
    fn over(self, old: Self) -> Self {
        Self { median: self.median / old.median, min: self.min / old.max, max: self.max / old.min }
    }

    fn is_sound(&self) -> bool {
        self.min.is_finite() && self.max.is_finite() && self.min <= self.median && self.median <= self.max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quotient_lies_between_its_extremes() {
        let new = Range { median: 10.0, min: 8.0, max: 12.0 };
        let quotient = new.over(Range { median: 5.0, min: 4.0, max: 6.0 });
        assert_eq!((quotient.median, quotient.max), (2.0, 3.0));
        assert!((quotient.min - 8.0 / 6.0).abs() < 1e-12);
    }
}
