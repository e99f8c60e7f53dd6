//! `devices`: what this machine can compute on, and which of it is taken when nothing is said.

use serde::Serialize;

use super::ui::{Outcome, Ui};
use crate::ggml::{Device, DeviceKind};
use crate::llama::DeviceFacts;

/// List the devices of this machine, and which is the default
#[derive(Debug, clap::Args)]
pub struct Args {}

#[derive(Debug, Serialize)]
struct Report {
    /// Name of the device that is taken without `--device`.
    default: String,
    devices: Vec<Entry>,
}

#[derive(Debug, Serialize)]
struct Entry {
    name: String,
    description: String,
    kind: DeviceKind,
    /// Bytes.
    memory_total: usize,
    memory_free: usize,
    #[serde(flatten)]
    facts: DeviceFacts,
}

pub fn run(_: Args, ui: &Ui) -> anyhow::Result<Outcome> {
    let report = Report {
        default: Device::best()?.name().to_owned(),
        devices: Device::list().iter().map(entry).collect(),
    };
    if ui.json() {
        ui.result(&report)?;
        return Ok(Outcome::Done);
    }
    let width = |text: fn(&Entry) -> usize| report.devices.iter().map(text).max().unwrap_or(0);
    let (name_width, description_width) = (width(|d| d.name.len()), width(|d| d.description.len()));
    for device in &report.devices {
        let mark = if device.name == report.default { '*' } else { ' ' };
        ui.line(format_args!(
            "{mark} {:name_width$}  {:description_width$}  {:8}  {}",
            device.name,
            device.description,
            kind(device.kind),
            memory(device),
        ))?;
        for (what, value) in [
            ("backend", device.facts.backend.clone()),
            ("address", device.facts.device_id.clone().unwrap_or_default()),
            ("features", device.facts.features.join(" ")),
        ] {
            if !value.is_empty() {
                ui.detail(format_args!("    {what}: {value}"));
            }
        }
    }
    ui.info("* is taken when no `--device` is given");
    Ok(Outcome::Done)
}

fn entry(device: &Device) -> Entry {
    let (memory_free, memory_total) = device.memory();
    Entry {
        name: device.name().to_owned(),
        description: device.description().trim().to_owned(),
        kind: device.kind(),
        memory_total,
        memory_free,
        facts: DeviceFacts::of(device),
    }
}

fn kind(kind: DeviceKind) -> &'static str {
    match kind {
        DeviceKind::Cpu => "cpu",
        DeviceKind::Gpu => "gpu",
        DeviceKind::Igpu => "igpu",
        DeviceKind::Software => "software",
    }
}

fn memory(device: &Entry) -> String {
    let gib = |bytes: usize| bytes as f64 / f64::from(1 << 30);
    match (device.memory_free, device.memory_total) {
        (_, 0) => "memory unknown".into(),
        // Drivers that cannot tell what is free say 0, or all of it.
        (0, total) => format!("{:.1} GiB", gib(total)),
        (free, total) => format!("{:.1} of {:.1} GiB free", gib(free), gib(total)),
    }
}
