//! Two sets of results side by side: how many times as fast the new one is, and how sure that is.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use super::bars::labels;
use super::error::{Error, Result};
use super::input::Measurement;
use super::Range;

/// What was measured in both.
#[derive(Clone, Debug, Serialize)]
pub struct Ratio {
    /// Model, type, and what else tells it from the others.
    pub name: String,
    pub device: String,
    pub test: String,
    pub old: Range,
    pub new: Range,
    /// New throughput over old: of the medians, from the least over the most to the most over the least.
    pub ratio: Range,
    /// New memory over old: on the device, and of the process.
    pub device_memory: Option<f64>,
    pub host_memory: Option<f64>,
}

/// Two sets of results, compared.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    pub ratios: Vec<Ratio>,
    /// Measured in one of them only.
    pub only_old: Vec<String>,
    pub only_new: Vec<String>,
    /// Devices of one name that are not the same hardware: the old one's, the new one's.
    pub other_hardware: Vec<(String, String)>,
}

impl Comparison {
    /// Those whose medians fell below `limit` times the old.
    pub fn below(&self, limit: f64) -> impl Iterator<Item = &Ratio> {
        self.ratios.iter().filter(move |r| r.ratio.median < limit)
    }
}

/// Compares throughputs where model, type, device, test and settings are the same. Several results of one thing count as
/// one.
pub fn compare(old: (&[Measurement], &Path), new: (&[Measurement], &Path)) -> Result<Comparison> {
    let all: Vec<&Measurement> = old.0.iter().chain(new.0).collect();
    let labels = labels(&all);
    let mut found: BTreeMap<usize, [Vec<&Measurement>; 2]> = BTreeMap::new();
    let mut keys: Vec<Key> = Vec::new();
    let mut names = Vec::new();
    for (i, m) in all.iter().enumerate().filter(|(_, m)| m.tokens_per_second.is_some()) {
        let key = key(m);
        let at = keys.iter().position(|k| *k == key).unwrap_or_else(|| {
            keys.push(key);
            names.push(labels[i].clone());
            keys.len() - 1
        });
        found.entry(at).or_default()[usize::from(i >= old.0.len())].push(m);
    }
    let mut comparison = Comparison {
        ratios: Vec::new(),
        only_old: Vec::new(),
        only_new: Vec::new(),
        other_hardware: Vec::new(),
    };
    for (at, [old, new]) in found {
        let full = |m: &Measurement| format!("{}, {}, {}", names[at], m.test, m.device);
        match (old.first(), new.first()) {
            (Some(a), Some(b)) => {
                let hardware = (a.device_description.clone(), b.device_description.clone());
                if hardware.0 != hardware.1 && !comparison.other_hardware.contains(&hardware) {
                    comparison.other_hardware.push(hardware);
                }
                let (before, after) = (pooled(&old), pooled(&new));
                let most = |of: fn(&Measurement) -> Option<f64>| {
                    let peak = |some: &[&Measurement]| some.iter().filter_map(|m| of(m)).reduce(f64::max);
                    Some(peak(&new)? / peak(&old).filter(|x| *x > 0.0)?)
                };
                comparison.ratios.push(Ratio {
                    name: names[at].clone(),
                    device: a.device.clone(),
                    test: a.test.clone(),
                    old: before,
                    new: after,
                    ratio: after.over(before),
                    device_memory: most(|m| m.peak_device_bytes),
                    host_memory: most(|m| m.peak_host_bytes),
                });
            }
            (Some(m), None) => comparison.only_old.push(full(m)),
            (None, Some(m)) => comparison.only_new.push(full(m)),
            (None, None) => {}
        }
    }
    if comparison.ratios.is_empty() {
        return Err(Error::NothingInCommon { old: old.1.into(), new: new.1.into() });
    }
    Ok(comparison)
}

type Key<'a> = (&'a str, &'a str, &'a str, &'a str, &'a [(&'static str, String)]);

fn key(m: &Measurement) -> Key<'_> {
    (&m.model, &m.dtype, &m.device, &m.test, &m.settings)
}

/// One figure of several: the median of medians, between the least and the most of all.
fn pooled(some: &[&Measurement]) -> Range {
    let ranges: Vec<Range> = some.iter().filter_map(|m| m.tokens_per_second).collect();
    let mut medians: Vec<f64> = ranges.iter().map(|r| r.median).collect();
    medians.sort_by(f64::total_cmp);
    let n = medians.len();
    Range {
        median: (medians[(n - 1) / 2] + medians[n / 2]) / 2.0,
        min: ranges.iter().map(|r| r.min).fold(f64::INFINITY, f64::min),
        max: ranges.iter().map(|r| r.max).fold(0.0, f64::max),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measurement(device: &str, tokens: &str, speed: f64) -> Measurement {
        Measurement::sample(device, &[("tokens a step", tokens)], speed)
    }

    fn compared(old: &[Measurement], new: &[Measurement]) -> Result<Comparison> {
        compare((old, Path::new("old.json")), (new, Path::new("new.json")))
    }

    #[test]
    fn the_same_is_compared_with_the_same() {
        let old = [measurement("cpu", "512", 10.0), measurement("cpu", "4096", 10.0)];
        let new = [measurement("cpu", "4096", 8.0), measurement("vulkan0", "512", 99.0)];
        let found = compared(&old, &new).unwrap();
        let [ratio] = found.ratios.as_slice() else { panic!("{found:?}") };
        assert_eq!(ratio.ratio.median, 0.8);
        let near = |x: f64, y: f64| (x - y).abs() < 1e-12;
        assert!(near(ratio.ratio.min, 7.2 / 11.0) && near(ratio.ratio.max, 8.8 / 9.0));
        assert_eq!((ratio.device_memory, ratio.host_memory), (Some(1.0), None));
        assert_eq!(found.only_old, ["m TQ2_0, 512 tokens, train512, cpu"]);
        assert_eq!(found.only_new, ["m TQ2_0, 512 tokens, train512, vulkan0"]);
        assert_eq!(found.below(0.95).count(), 1);
        assert_eq!(found.below(0.8).count(), 0, "the limit itself passes");
    }

    #[test]
    fn results_of_one_thing_are_pooled() {
        let old = [10.0, 30.0, 20.0].map(|x| measurement("cpu", "512", x));
        let found = compared(&old, &[measurement("cpu", "512", 20.0)]).unwrap();
        assert_eq!(found.ratios[0].old, Range { median: 20.0, min: 9.0, max: 33.0 });
        assert_eq!(found.ratios[0].ratio.median, 1.0);
    }

    #[test]
    fn nothing_in_common_is_an_error() {
        let error = compared(&[measurement("cpu", "512", 1.0)], &[measurement("vulkan0", "512", 1.0)]);
        assert!(matches!(error, Err(Error::NothingInCommon { .. })));
    }
}
