//! A picture in pixels: the SVG that `plot` drew, by resvg, with DejaVu Sans, so that it looks the same on a machine
//! without fonts.

use std::sync::{Arc, OnceLock};

use resvg::tiny_skia::{Pixmap, Transform};
use resvg::usvg::{self, fontdb};

use super::chart::Chart;
use super::error::{Error, Result};
use super::plot::{svg, Look};

/// Pixels for each of the SVG's.
const SCALE: f32 = 2.0;

/// Draws `chart` as PNG, on light ground.
pub fn png(chart: &Chart) -> Result<Vec<u8>> {
    let failed = |reason: String| Error::Draw { chart: chart.id.into(), reason };
    let options =
        usvg::Options { fontdb: fonts(), font_family: "DejaVu Sans".into(), ..usvg::Options::default() };
    let tree =
        usvg::Tree::from_str(&svg(chart, Look::Alone)?.svg, &options).map_err(|e| failed(e.to_string()))?;
    let size = tree.size().to_int_size().scale_by(SCALE).ok_or_else(|| failed("it has no size".into()))?;
    let mut pixels =
        Pixmap::new(size.width(), size.height()).ok_or_else(|| failed("it is too large".into()))?;
    resvg::render(&tree, Transform::from_scale(SCALE, SCALE), &mut pixels.as_mut());
    pixels.encode_png().map_err(|e| failed(e.to_string()))
}

fn fonts() -> Arc<fontdb::Database> {
    static FONTS: OnceLock<Arc<fontdb::Database>> = OnceLock::new();
    let load = || {
        let mut fonts = fontdb::Database::new();
        fonts.load_font_data(dejavu::sans::regular().to_vec());
        fonts.load_font_data(dejavu::sans::bold().to_vec());
        fonts.set_sans_serif_family("DejaVu Sans");
        Arc::new(fonts)
    };
    FONTS.get_or_init(load).clone()
}
