//! How much of a network is run at a time: the flags, the choice by `plan`, and the engine that comes of it.

use std::str::FromStr;

use super::network::{Machine, MachineArgs};
use super::ui::{Problem, Ui};
use crate::ggml::{self, own_host_bytes, Device, DeviceKind, Executor, GgufFile};
use crate::model::Model;
use crate::plan::{Fit, Planner, Request, Room};
use crate::train::{Engine, EngineConfig, Error, Recompute, TrainingConfig};

/// `--micro-batch`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MicroBatchArg {
    Auto,
    Rows(usize),
}

impl FromStr for MicroBatchArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse() {
            _ if text == "auto" => Ok(Self::Auto),
            Ok(n) if (1..=65536).contains(&n) => Ok(Self::Rows(n)),
            _ => Err("expected `auto` or a number of rows from 1 to 65536".into()),
        }
    }
}

/// Bytes from `6GiB`, `500 MB`, `6g` or a plain number.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let expected = || "expected a size such as `6GiB` or `500MB`".to_string();
    let text = text.trim().to_ascii_lowercase();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number: f64 = text[..end].parse().map_err(|_| expected())?;
    let unit: f64 = match text[end..].trim() {
        "" | "b" => 1.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "k" | "kib" => f64::from(1 << 10),
        "m" | "mib" => f64::from(1 << 20),
        "g" | "gib" => f64::from(1 << 30),
        _ => return Err(expected()),
    };
    match number * unit {
        bytes if bytes >= 1.0 => Ok(bytes as u64),
        _ => Err("nothing fits in no memory".into()),
    }
}

/// `1.23 GB`, `45.6 MB`.
pub fn size(bytes: u64) -> String {
    match bytes {
        1_000_000_000.. => format!("{:.2} GB", bytes as f64 / 1e9),
        _ => format!("{:.1} MB", bytes as f64 / 1e6),
    }
}

/// What is held on `device` by anyone, or, where its memory is the host's, by this process in pages of its own; none where
/// nobody tells. How much it grows says what was taken.
pub fn held_bytes(device: &Device) -> Option<u64> {
    match device.is_gpu() {
        true => Some((device.memory().1 - device.memory().0) as u64),
        false => own_host_bytes(),
    }
}

impl MachineArgs {
    /// Whether the number of rows was left to the program.
    pub fn chooses_rows(&self) -> bool {
        !matches!(self.micro_batch, Some(MicroBatchArg::Rows(_)))
    }

    /// `request` with the rows that the flags ask for; a CPU gains nothing from more than one.
    pub fn with_rows(&self, request: Request, machine: &Machine) -> Request {
        let on_cpu = machine.backend.device().kind() == DeviceKind::Cpu;
        let n_rows = match self.micro_batch {
            Some(MicroBatchArg::Rows(n)) => Some(n.min(request.rows_per_step).max(1)),
            _ => request.n_rows.or(on_cpu.then_some(1)),
        };
        Request { n_rows, ..request }
    }

    /// Chooses how much is run at a time, loads the model and builds the engine. What `--memory` does not allow is refused
    /// before anything is loaded; what seems not to be free is tried.
    pub fn ready(
        &self,
        file: &GgufFile,
        machine: &Machine,
        request: &Request,
        ui: &Ui,
    ) -> anyhow::Result<(Model, Engine)> {
        let request = self.with_rows(request.clone(), machine);
        // What is split between two devices cannot be foreseen.
        let fit = match machine.splits() {
            true => None,
            false => self.choose(file, machine, &request, ui)?,
        };
        let mut n_rows = fit.as_ref().map(|f| f.n_rows).or(request.n_rows).unwrap_or(request.rows_per_step);
        let training = match (request.training.clone(), fit.and_then(|f| f.recompute)) {
            (Some(training), Some(recompute)) => Some(TrainingConfig { recompute, ..training }),
            (training, _) => training,
        };
        let config = EngineConfig { seq_len: request.seq_len, n_rows, lora: request.lora.clone(), training };
        let model = self.load(file, request.seq_len, machine, ui)?;
        loop {
            let exec = Executor::new(&machine.backend, machine.fallback());
            match Engine::new(&model, exec, EngineConfig { n_rows, ..config.clone() }) {
                // What is free may have changed, or never have been known.
                Err(Error::Ggml(ggml::Error::OutOfDeviceMemory { .. }))
                    if n_rows > 1 && self.chooses_rows() =>
                {
                    n_rows /= 2;
                }
                result => return Ok((model, result?)),
            }
        }
    }

    fn choose(
        &self,
        file: &GgufFile,
        machine: &Machine,
        request: &Request,
        ui: &Ui,
    ) -> anyhow::Result<Option<Fit>> {
        let planner = Planner::new(file, &machine.backend)?;
        super::network::check_context(planner.model(), file.path(), request.seq_len)?;
        let room = Room::of(machine.backend.device(), self.memory);
        if let Some(fit) = planner.choose(request, &room)? {
            return Ok(Some(fit));
        }
        let least = planner.least(request)?;
        let needs = size(least.memory.total() as u64);
        let usable = size(room.usable_bytes.unwrap_or_default());
        if self.memory.is_some() {
            let fact = format!("training this takes {needs}, and {usable} may be used");
            let remedy = advice(&planner.remedies(request, &room)?, request);
            return Err(Problem::new(fact.replace("training", verb(request)), remedy).into());
        }
        ui.warn(format_args!("{} this takes {needs}, and only {usable} seem to be free", verb(request)));
        Ok(Some(least))
    }
}

fn verb(request: &Request) -> &'static str {
    if request.training.is_some() {
        "training"
    } else {
        "running"
    }
}

/// What to change for it to fit, as a hint is worded.
pub fn advice(remedies: &[Fit], asked: &Request) -> String {
    let change = |fit: &Fit| {
        let mut flags = Vec::new();
        if asked.n_rows.is_some_and(|n| n > fit.n_rows) {
            flags.push(format!("--micro-batch {}", fit.n_rows));
        }
        let keeps = asked.training.as_ref().is_some_and(|t| t.recompute == Recompute::Off);
        if keeps && fit.recompute == Some(Recompute::On) {
            flags.push("--recompute on".into());
        }
        if fit.seq_len != asked.seq_len {
            flags.push(format!("--seq-len {}", fit.seq_len));
        }
        if asked.lora.as_ref().is_some_and(|l| l.rank != fit.rank) {
            flags.push(format!("--rank {}", fit.rank));
        }
        format!("`{}` ({})", flags.join(" "), size(fit.memory.total() as u64))
    };
    match remedies {
        [] => "no setting makes it fit: take a smaller model or type, or another `--device`".into(),
        some => format!("pass {}", some.iter().map(change).collect::<Vec<_>>().join(" or ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_written() {
        for (text, bytes) in
            [("6GiB", 6 << 30), ("500MB", 500_000_000), ("1.5 g", 3 << 29), ("123", 123), ("2KiB", 2048)]
        {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "GiB", "6 apples", "-1", "0", "1..2"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
        assert_eq!((size(999_900_000), size(1_230_000_000)), ("999.9 MB".into(), "1.23 GB".into()));
    }

    #[test]
    fn rows_are_a_number_or_left_to_the_program() {
        assert_eq!("auto".parse(), Ok(MicroBatchArg::Auto));
        assert_eq!("3".parse(), Ok(MicroBatchArg::Rows(3)));
        assert!("0".parse::<MicroBatchArg>().is_err() && "many".parse::<MicroBatchArg>().is_err());
    }
}
