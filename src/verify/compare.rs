//! Two results compared, bit for bit and by their distance.

use serde::Serialize;

use super::Class;
use crate::ggml::Dtype;

/// Where two results first differ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mismatch {
    /// Counted in values of the result's memory.
    pub index: usize,
    /// The bit patterns, in hexadecimal.
    pub device: String,
    pub reference: String,
}

/// What a comparison found.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    pub values: usize,
    /// Values whose bits differ. Two NaN are equal, whatever their bits.
    pub differing: usize,
    pub first: Option<Mismatch>,
    /// The sum of squared differences over that of the reference's squares; none of values that are no floats.
    pub nmse: Option<f64>,
    /// The largest distance in representable values between; none of values that are no floats.
    pub ulp: Option<u64>,
}

impl Comparison {
    /// Compares what a device gave with a reference, both of `dtype`.
    pub fn of(dtype: Dtype, device: &[u8], reference: &[u8]) -> Self {
        let width = match dtype {
            Dtype::F32 | Dtype::I32 => 4,
            Dtype::F16 | Dtype::BF16 => 2,
            _ => 1,
        };
        let value: Option<fn(u32) -> f32> = match dtype {
            Dtype::F32 => Some(f32::from_bits),
            Dtype::F16 => Some(|bits| half::f16::from_bits(bits as u16).to_f32()),
            Dtype::BF16 => Some(|bits| half::bf16::from_bits(bits as u16).to_f32()),
            _ => None,
        };
        let words = |bytes: &[u8]| -> Vec<u32> { bytes.chunks_exact(width).map(word).collect() };
        let mut found = Self::of_words(&words(device), &words(reference), width, value);
        // Bytes beyond the shorter one have nothing to be compared with.
        if device.len() != reference.len() {
            found.differing += device.len().abs_diff(reference.len()) / width;
        }
        found
    }

    /// Compares f32 values.
    pub fn of_floats(device: &[f32], reference: &[f32]) -> Self {
        let words = |values: &[f32]| -> Vec<u32> { values.iter().map(|v| v.to_bits()).collect() };
        Self::of_words(&words(device), &words(reference), 4, Some(f32::from_bits))
    }

    fn of_words(device: &[u32], reference: &[u32], width: usize, value: Option<fn(u32) -> f32>) -> Self {
        let is_nan = |bits| value.is_some_and(|value| value(bits).is_nan());
        let differs = |(a, b): (&u32, &u32)| a != b && !(is_nan(*a) && is_nan(*b));
        let pairs = || device.iter().zip(reference);
        let text = |bits: u32| format!("0x{bits:0digits$x}", digits = 2 * width);
        let first = pairs().position(differs).map(|index| Mismatch {
            index,
            device: text(device[index]),
            reference: text(reference[index]),
        });
        let differing = pairs().filter(|&pair| differs(pair)).count();
        let (nmse, ulp) = match value {
            Some(value) => {
                (Some(nmse(pairs(), value)), pairs().map(|(&a, &b)| ulps(value(a), value(b))).max())
            }
            None => (None, None),
        };
        Self { values: reference.len().max(device.len()), differing, first, nmse, ulp }
    }

    /// Joins two parts of one comparison; the other one's values come behind.
    pub fn join(self, other: Self) -> Self {
        let moved = other.first.map(|m| Mismatch { index: m.index + self.values, ..m });
        let worse = |a: Option<f64>, b: Option<f64>| a.into_iter().chain(b).reduce(f64::max);
        Self {
            values: self.values + other.values,
            differing: self.differing + other.differing,
            first: self.first.or(moved),
            nmse: worse(self.nmse, other.nmse),
            ulp: self.ulp.max(other.ulp),
        }
    }

    /// Whether it is as `class` asks.
    pub fn meets(&self, class: Class) -> bool {
        match class {
            Class::Exact => self.differing == 0,
            Class::Ulp(most) => self.ulp.map_or(self.differing == 0, |ulp| ulp <= most),
            Class::Nmse(most) => self.nmse.map_or(self.differing == 0, |nmse| nmse <= most),
        }
    }
}

fn word(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |word, &byte| word << 8 | u32::from(byte))
}

/// Infinite where one is not finite and the other is not the same.
fn nmse<'a>(pairs: impl Iterator<Item = (&'a u32, &'a u32)>, value: fn(u32) -> f32) -> f64 {
    let (mut error, mut square) = (0.0, 0.0);
    for (&a, &b) in pairs {
        let (a, b) = (value(a), value(b));
        if a == b || (a.is_nan() && b.is_nan()) {
            square += if b.is_finite() { f64::from(b) * f64::from(b) } else { 0.0 };
            continue;
        }
        if !a.is_finite() || !b.is_finite() {
            return f64::INFINITY;
        }
        let (a, b) = (f64::from(a), f64::from(b));
        error += (a - b) * (a - b);
        square += b * b;
    }
    match (error, square) {
        (0.0, _) => 0.0,
        (_, 0.0) => f64::INFINITY,
        (error, square) => error / square,
    }
}

/// Steps from one value to the next between `a` and `b`; the two zeros are one.
fn ulps(a: f32, b: f32) -> u64 {
    if a == b || (a.is_nan() && b.is_nan()) {
        return 0;
    }
    if a.is_nan() || b.is_nan() {
        return u64::MAX;
    }
    let place = |x: f32| {
        let magnitude = i64::from(x.to_bits() & 0x7fff_ffff);
        if x.is_sign_negative() {
            -magnitude
        } else {
            magnitude
        }
    };
    place(a).abs_diff(place(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bit_is_seen_and_shown() {
        let reference = [1.0f32, -2.0, 3.0];
        let mut device = reference;
        assert!(Comparison::of_floats(&device, &reference).meets(Class::Exact));
        device[1] = f32::from_bits(device[1].to_bits() + 1);
        let found = Comparison::of_floats(&device, &reference);
        assert_eq!((found.differing, found.ulp), (1, Some(1)));
        let mismatch = Mismatch { index: 1, device: "0xc0000001".into(), reference: "0xc0000000".into() };
        assert_eq!(found.first, Some(mismatch));
        assert!(!found.meets(Class::Exact) && found.meets(Class::Ulp(1)) && found.meets(Class::Nmse(1e-12)));
    }

    #[test]
    fn nan_equals_nan_and_nothing_else() {
        let other = f32::from_bits(f32::NAN.to_bits() ^ 1);
        assert!(Comparison::of_floats(&[f32::NAN], &[other]).meets(Class::Exact));
        for class in [Class::Exact, Class::Ulp(9), Class::Nmse(1.0)] {
            assert!(!Comparison::of_floats(&[f32::NAN], &[1.0]).meets(class));
            assert!(!Comparison::of_floats(&[1.0], &[f32::INFINITY]).meets(class));
        }
        // The bits of the zeros differ, their values do not.
        assert!(!Comparison::of_floats(&[-0.0], &[0.0]).meets(Class::Exact));
        assert!(Comparison::of_floats(&[-0.0], &[0.0]).meets(Class::Ulp(0)));
    }

    #[test]
    fn bytes_are_compared_by_their_type() {
        let found = Comparison::of(Dtype::F16, &[0, 0x3c, 1, 0x3c], &[0, 0x3c, 0, 0x3c]);
        assert_eq!((found.values, found.differing, found.ulp), (2, 1, Some(1 << 13)));
        assert_eq!(found.first.unwrap().device, "0x3c01");
        let found = Comparison::of(Dtype::I8, &[1, 2, 3], &[1, 2, 4]);
        assert_eq!((found.values, found.differing, found.nmse), (3, 1, None));
        assert!(!found.meets(Class::Nmse(1.0)));
        assert_eq!(Comparison::of(Dtype::I8, &[1], &[1, 2]).differing, 1);
    }

    #[test]
    fn parts_are_joined_in_order() {
        let same = Comparison::of_floats(&[1.0, 2.0], &[1.0, 2.0]);
        let joined = same.clone().join(Comparison::of_floats(&[0.0, 5.0], &[0.0, 4.0])).join(same);
        assert_eq!((joined.values, joined.differing), (6, 1));
        assert_eq!(joined.first.unwrap().index, 3);
    }
}
