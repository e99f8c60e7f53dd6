//! Colours. A picture is drawn in those of light paper; a style sheet puts those of the dark in their place where the
//! reader's screen is dark.
//!
//! The palette's neighbours stay apart for colour-blind eyes, on both grounds.

use plotters::style::RGBColor;

/// A colour on light and on dark ground.
#[derive(Clone, Copy)]
pub struct Color {
    pub light: RGBColor,
    dark: RGBColor,
}

const fn color(light: u32, dark: u32) -> Color {
    const fn rgb(c: u32) -> RGBColor {
        RGBColor((c >> 16) as u8, (c >> 8) as u8, c as u8)
    }
    Color { light: rgb(light), dark: rgb(dark) }
}

pub const GROUND: Color = color(0xFCFCFB, 0x1A1A19);
pub const TEXT: Color = color(0x1F1F1E, 0xF2F2F0);
pub const MUTED: Color = color(0x65645F, 0xB3B2AB);
pub const GRID: Color = color(0xE8E7E3, 0x32322F);
pub const AXIS: Color = color(0xBAB9B3, 0x5C5B56);

const SERIES: [Color; 8] = [
    color(0x2A78D6, 0x3987E5),
    color(0xEB6834, 0xD95926),
    color(0x1BAF7A, 0x199E70),
    color(0xEDA100, 0xC98500),
    color(0xE87BA4, 0xD55181),
    color(0x008300, 0x0B8F0B),
    color(0x4A3AA7, 0x9085E9),
    color(0xE34948, 0xE66767),
];

/// The colour of the `i`-th series.
pub fn series(i: usize) -> RGBColor {
    SERIES[i % SERIES.len()].light
}

/// `#2A78D6`, as plotters writes it.
pub fn hex(RGBColor(r, g, b): RGBColor) -> String {
    format!("#{r:02X}{g:02X}{b:02X}")
}

/// Rules that turn a picture's colours into the dark's, for below `@media (prefers-color-scheme: dark)`.
pub fn dark_rules() -> String {
    let rule = |c: &Color| {
        let (light, dark) = (hex(c.light), hex(c.dark));
        format!("svg [fill=\"{light}\"]{{fill:{dark}}}svg [stroke=\"{light}\"]{{stroke:{dark}}}")
    };
    [GROUND, TEXT, MUTED, GRID, AXIS].iter().chain(&SERIES).map(rule).collect()
}
