//! Two devices compared on one model: operation by operation, then logits, then generated tokens, then adapters.
//!
//! ```text
//! ops        the operations of real graphs, each computed on both devices from the same operands
//! training   the graphs of a training step, and adapters after some steps
//! inference  libllama's graphs, its logits, and the tokens that they choose
//! class      how close two results have to be: by operation and tier
//! compare    whether they are
//! text       sentences to compare on where no data is given
//! ```
//! It never prints: an [`Observer`] is told what goes on, and the [`Report`] says what came out. Tiers are those of
//! docs/exactness.md; the arithmetic is the process's (`ggml::set_exact`), and is the caller's to switch.

mod class;
mod compare;
mod error;
mod inference;
mod ops;
mod text;
mod training;

use std::num::NonZeroU32;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Serialize, Serializer};

use crate::data::Sample;
use crate::ggml::{Backend, Device, GgufFile};
use crate::model::ARCHITECTURES;

pub use class::Class;
pub use compare::{Comparison, Mismatch};
pub use error::{Error, Result};
pub use text::samples as built_in_samples;

/// What is promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// Products with ternary weights are exact, always.
    T0,
    /// The whole forward is, in exact arithmetic.
    T1,
    /// Training is.
    T2,
}

/// What became of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Pass,
    Fail,
    Skip,
}

/// What was compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Op,
    Logits,
    Tokens,
    Adapter,
}

/// One comparison.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    pub kind: Kind,
    /// `RMS_NORM`, `one batch`, ..
    pub name: String,
    /// Types and shapes, or what was computed how.
    pub what: String,
    /// None where nothing is promised.
    pub class: Option<Class>,
    pub status: Status,
    /// Values that were compared.
    pub values: usize,
    /// Values whose bits differ.
    pub differing: usize,
    #[serde(serialize_with = "finite")]
    pub nmse: Option<f64>,
    pub ulp: Option<u64>,
    /// Where they first differ.
    pub mismatch: Option<Mismatch>,
    pub note: Option<String>,
}

/// JSON has no infinity.
fn finite<S: Serializer>(value: &Option<f64>, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    value.map(|v| v.min(f64::MAX)).serialize(serializer)
}

impl Check {
    /// A comparison that is held to a class.
    fn held(kind: Kind, name: &str, what: String, class: Class, found: Comparison) -> Self {
        let status = if found.meets(class) { Status::Pass } else { Status::Fail };
        let Comparison { values, differing, first, nmse, ulp } = found;
        let (name, class) = (name.into(), Some(class));
        Self { kind, name, what, class, status, values, differing, nmse, ulp, mismatch: first, note: None }
    }

    /// What was not compared, or is promised nothing of.
    fn not_held(kind: Kind, name: &str, what: String, status: Status, note: String) -> Self {
        Self {
            kind,
            name: name.into(),
            what,
            class: None,
            status,
            values: 0,
            differing: 0,
            nmse: None,
            ulp: None,
            mismatch: None,
            note: Some(note),
        }
    }
}

/// How to compare.
#[derive(Clone, Debug)]
pub struct Config {
    pub tier: Tier,
    /// Tokens per row of training graphs.
    pub seq_len: usize,
    /// Tokens to generate.
    pub tokens: usize,
    /// Optimizer steps before adapters are compared.
    pub steps: usize,
    pub seed: u64,
    pub interrupt: Option<&'static AtomicBool>,
}

/// A device, and with how many threads it computes if it is a CPU.
#[derive(Clone, Debug)]
pub struct Place {
    pub device: Device,
    pub threads: usize,
}

impl Place {
    fn backend(&self) -> Result<Backend> {
        Ok(Backend::new(&self.device, self.threads)?)
    }

    fn n_threads(&self) -> Option<NonZeroU32> {
        u32::try_from(self.threads).ok().and_then(NonZeroU32::new)
    }

    /// `vulkan0`, and where it matters with what.
    pub fn name(&self) -> String {
        match self.device.kind() {
            crate::ggml::DeviceKind::Cpu => format!("{} ({} threads)", self.device.name(), self.threads),
            _ => self.device.name().into(),
        }
    }
}

/// What is compared with what.
pub struct Pair<'a> {
    pub model: &'a Path,
    pub device: Place,
    pub reference: Place,
    pub samples: &'a [Sample],
}

/// Is told what goes on.
pub trait Observer {
    /// Something else begins: `operations of a training step`.
    fn stage(&mut self, what: &str);
    /// A check is done.
    fn check(&mut self, check: &Check);
}

/// All checks, in the order they were made.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    pub checks: Vec<Check>,
}

impl Report {
    /// How many came out that way.
    pub fn count(&self, status: Status) -> usize {
        self.checks.iter().filter(|c| c.status == status).count()
    }

    /// Whether nothing failed.
    pub fn holds(&self) -> bool {
        self.count(Status::Fail) == 0
    }

    /// An error if no check was more than skipped.
    fn of_something(self) -> Result<Self> {
        match self.count(Status::Pass) + self.count(Status::Fail) {
            0 => Err(Error::NothingCompared { skipped: self.count(Status::Skip) }),
            _ => Ok(self),
        }
    }
}

/// A run of comparisons.
struct Session<'a> {
    config: &'a Config,
    pair: &'a Pair<'a>,
    observer: &'a mut dyn Observer,
    report: Report,
}

impl Session<'_> {
    fn add(&mut self, check: Check) -> Result<()> {
        self.observer.check(&check);
        self.report.checks.push(check);
        self.go_on()
    }

    fn go_on(&self) -> Result<()> {
        match self.config.interrupt.is_some_and(|flag| flag.load(Ordering::SeqCst)) {
            true => Err(Error::Interrupted),
            false => Ok(()),
        }
    }
}

/// Compares. That something differs is in the report; that nothing could be compared is an error.
pub fn verify(config: &Config, pair: &Pair, observer: &mut dyn Observer) -> Result<Report> {
    let mut session = Session { config, pair, observer, report: Report::default() };
    if pair.samples.iter().all(|s| s.tokens.len() < 2) {
        return Err(Error::NoText);
    }
    let file = GgufFile::open(pair.model)?;
    let architecture = file.require_str("general.architecture")?;
    match ARCHITECTURES.iter().any(|a| a.name == architecture) {
        true => training::ops(&mut session, &file)?,
        false => {
            let note = format!("architecture `{architecture}` cannot be trained");
            let what = "training graphs".into();
            session.add(Check::not_held(Kind::Op, "TRAINING", what, Status::Skip, note))?;
        }
    }
    inference::all(&mut session)?;
    if config.tier == Tier::T2 {
        training::adapters(&mut session, &file)?;
    }
    session.report.of_something()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checks(floats: &[(f32, f32)]) -> Report {
        let check = |&(a, b): &(f32, f32)| {
            Check::held(Kind::Op, "ADD", String::new(), Class::Exact, Comparison::of_floats(&[a], &[b]))
        };
        Report { checks: floats.iter().map(check).collect() }
    }

    #[test]
    fn one_difference_is_enough() {
        assert!(checks(&[(1.0, 1.0), (2.0, 2.0)]).of_something().unwrap().holds());
        let report = checks(&[(1.0, 1.0), (2.0, 2.0000002)]).of_something().unwrap();
        assert!(!report.holds());
        assert_eq!([Status::Pass, Status::Fail, Status::Skip].map(|s| report.count(s)), [1, 1, 0]);
    }

    #[test]
    fn nothing_compared_is_no_success() {
        let skipped = Check::not_held(Kind::Op, "ADD", String::new(), Status::Skip, "no kernel".into());
        for (checks, n) in [(Vec::new(), 0), (vec![skipped], 1)] {
            match (Report { checks }).of_something() {
                Err(Error::NothingCompared { skipped }) => assert_eq!(skipped, n),
                other => panic!("{other:?}"),
            }
        }
    }
}
