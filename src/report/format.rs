//! Numbers as people read them, with their units.

/// What a number counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Nats, norms: four significant digits.
    Plain,
    /// A learning rate.
    Rate,
    TokensPerSecond,
    Bytes,
    /// A share of one.
    Percent,
    /// A quotient.
    Times,
    Milliseconds,
}

impl Unit {
    /// The number with its unit.
    pub fn text(self, x: f64) -> String {
        match self {
            Self::Plain => significant(x, 4),
            Self::Rate if x == 0.0 => "0".into(),
            Self::Rate => shortest_exponent(x),
            Self::TokensPerSecond => format!("{} tok/s", grouped(x)),
            Self::Bytes => bytes(x),
            Self::Percent => format!("{:.1}%", 100.0 * x),
            Self::Times if x < 10.0 => format!("{x:.2}x"),
            Self::Times => format!("{}x", grouped(x)),
            Self::Milliseconds => format!("{} ms", grouped(x)),
        }
    }

    /// The same without the unit, where a title names it.
    pub fn bare(self, x: f64) -> String {
        match self {
            Self::TokensPerSecond | Self::Milliseconds => grouped(x),
            _ => self.text(x),
        }
    }

    /// On an axis whose ticks lie `step` apart and end at `largest`: all with as many digits as they need to differ.
    pub fn tick(self, x: f64, step: f64, largest: f64) -> String {
        let decimals = |step: f64| (-step.log10()).ceil().clamp(0.0, 9.0) as usize;
        let fixed = |x: f64, step: f64| match (x, decimals(step * 1.000_001)) {
            (0.0, _) => "0".into(),
            (x, 0) => thousands(x, 0),
            (x, n) => format!("{x:.n$}"),
        };
        match self {
            Self::Rate => self.text(x),
            Self::Bytes => {
                let (divisor, unit) = byte_unit(largest);
                match x {
                    0.0 => "0".into(),
                    x => format!("{} {unit}", fixed(x / divisor, step / divisor)),
                }
            }
            Self::Percent => format!("{}%", fixed(100.0 * x, 100.0 * step)),
            Self::Times => format!("{}x", fixed(x, step)),
            _ => fixed(x, step),
        }
    }
}

/// Decimal megabytes and gigabytes, as drivers and the docs count them.
fn byte_unit(largest: f64) -> (f64, &'static str) {
    match largest {
        x if x >= 1e9 => (1e9, "GB"),
        x if x >= 1e6 => (1e6, "MB"),
        _ => (1e3, "kB"),
    }
}

fn bytes(x: f64) -> String {
    let (divisor, unit) = byte_unit(x);
    format!("{} {unit}", significant(x / divisor, 3))
}

/// Thousands apart; a digit behind the point below 100, two below 10.
fn grouped(x: f64) -> String {
    match x.abs() {
        a if a >= 99.95 => thousands(x, 0),
        a if a >= 9.995 => format!("{x:.1}"),
        _ => format!("{x:.2}"),
    }
}

/// With commas: `18,980`.
fn thousands(x: f64, decimals: usize) -> String {
    let text = format!("{:.decimals$}", x.abs());
    let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    let mut out = String::new();
    for (i, digit) in whole.chars().enumerate() {
        if i > 0 && (whole.len() - i) % 3 == 0 {
            out.push(',');
        }
        out.push(digit);
    }
    format!("{}{out}{rest}", if x < 0.0 { "-" } else { "" })
}

/// A whole number with commas.
pub fn count(n: u64) -> String {
    thousands(n as f64, 0)
}

/// `digits` of them, never in exponents, at most six behind the point.
fn significant(x: f64, digits: i32) -> String {
    if x == 0.0 || !x.is_finite() {
        return "0".into();
    }
    let decimals = (digits - 1 - x.abs().log10().floor() as i32).clamp(0, 6) as usize;
    thousands(x, decimals)
}

/// `2e-4`, `1.5e-4`.
fn shortest_exponent(x: f64) -> String {
    let text = format!("{x:.2e}");
    match text.split_once('e') {
        Some((digits, exponent)) if digits.contains('.') => {
            format!("{}e{exponent}", digits.trim_end_matches('0').trim_end_matches('.'))
        }
        _ => text,
    }
}

/// Seconds as a clock reads: `42.1 s`, `3 min 20 s`, `2 h 5 min`.
pub fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match seconds {
        s if s < 1.0 => format!("{:.0} ms", 1e3 * s),
        s if s < 60.0 => format!("{s:.1} s"),
        s if s < 3600.0 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_as_people_write_them() {
        for (unit, x, text) in [
            (Unit::TokensPerSecond, 18_980.4, "18,980 tok/s"),
            (Unit::TokensPerSecond, 39.46, "39.5 tok/s"),
            (Unit::TokensPerSecond, 99.96, "100 tok/s"),
            (Unit::Bytes, 812e6, "812 MB"),
            (Unit::Bytes, 2.4e9, "2.40 GB"),
            (Unit::Bytes, 24.13e9, "24.1 GB"),
            (Unit::Percent, 0.6, "60.0%"),
            (Unit::Plain, 5.33912, "5.339"),
            (Unit::Plain, 0.0, "0"),
            (Unit::Rate, 2e-4, "2e-4"),
            (Unit::Rate, 1.5e-4, "1.5e-4"),
            (Unit::Times, 1.148, "1.15x"),
            (Unit::Times, 138.6, "139x"),
        ] {
            assert_eq!(unit.text(x), text);
        }
    }

    #[test]
    fn ticks_have_the_digits_that_tell_them_apart() {
        assert_eq!(Unit::Plain.tick(2.5, 0.5, 4.0), "2.5");
        assert_eq!(Unit::Plain.tick(0.0, 0.5, 4.0), "0");
        assert_eq!(Unit::Bytes.tick(1.5e9, 5e8, 2e9), "1.5 GB");
        assert_eq!(Unit::Bytes.tick(200e6, 2e8, 8e8), "200 MB");
        assert_eq!(Unit::Percent.tick(0.4, 0.1, 0.6), "40%");
        assert_eq!(Unit::TokensPerSecond.tick(20_000.0, 5_000.0, 3e4), "20,000");
        assert_eq!(Unit::Times.tick(10.0, 10.0, 3e1), "10x");
    }

    #[test]
    fn durations_read_as_clocks_do() {
        assert_eq!(duration(0.25), "250 ms");
        assert_eq!(duration(42.13), "42.1 s");
        assert_eq!(duration(200.0), "3 min 20 s");
        assert_eq!(duration(7500.0), "2 h 5 min");
    }
}
