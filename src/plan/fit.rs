//! Which settings fit into a device's memory.

use serde::Serialize;

use crate::ggml::{self, free_host_bytes, Backend, Device, DeviceKind, Executor, GgufFile};
use crate::model::{LoraConfig, Model};
use crate::train::{Engine, EngineConfig, Error, Memory, Recompute, Result, TrainingConfig};

/// What is to be run.
#[derive(Clone, Debug)]
pub struct Request {
    pub seq_len: usize,
    /// Rows of an optimizer step: no more are ever run at a time.
    pub rows_per_step: usize,
    /// Rows to run at a time; as many as fit if `None`.
    pub n_rows: Option<usize>,
    pub lora: Option<LoraConfig>,
    pub training: Option<TrainingConfig>,
    /// Whether recompute may be turned off where everything fits, or on where it does not.
    pub any_recompute: bool,
}

/// A setting and what it takes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fit {
    #[serde(rename = "micro_batch_rows")]
    pub n_rows: usize,
    /// `None` where nothing is trained.
    pub recompute: Option<Recompute>,
    pub seq_len: usize,
    /// 0 without an adapter.
    pub rank: usize,
    pub memory: Memory,
}

/// How much memory there is to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Room {
    /// What is free now; `None` where the driver does not tell.
    pub free_bytes: Option<u64>,
    /// What the user allows.
    pub limit_bytes: Option<u64>,
    /// What may be planned with: the lesser of the two, less what is left alone; `None` is without end.
    pub usable_bytes: Option<u64>,
}

/// Of what is free, one part in this many stays so: others take and give memory too.
const MARGIN: u64 = 20;
/// What a GPU's driver keeps for itself beyond what it was asked for: compiled programs, queues, staging.
const DRIVER: u64 = 96 << 20;

impl Room {
    /// What there is on `device`, of which no more than `limit` may be used.
    pub fn of(device: &Device, limit: Option<u64>) -> Self {
        let free_bytes = free_bytes(device);
        let driver = if device.is_gpu() { DRIVER } else { 0 };
        let free = free_bytes.map(|n| (n - n / MARGIN).saturating_sub(driver));
        let limit = limit.map(|n| n.saturating_sub(driver));
        let usable_bytes = match (free, limit) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        Self { free_bytes, limit_bytes: limit.map(|n| n + driver), usable_bytes }
    }

    fn holds(&self, memory: &Memory) -> bool {
        self.usable_bytes.is_none_or(|usable| memory.total() as u64 <= usable)
    }
}

/// Bytes that can be had on `device`, as far as that is known. What a CPU or a software device uses is main memory.
pub fn free_bytes(device: &Device) -> Option<u64> {
    let (free, total) = device.memory();
    // Drivers that cannot tell what is free say 0.
    let own = (free > 0).then_some(free as u64).or((total > 0).then_some(total as u64));
    match device.kind() {
        DeviceKind::Gpu => own,
        DeviceKind::Igpu => own.into_iter().chain(free_host_bytes()).min(),
        DeviceKind::Cpu | DeviceKind::Software => free_host_bytes().or(own),
    }
}

/// A model on a device without memory.
pub struct Planner {
    backend: Backend,
    model: Model,
}

impl Planner {
    /// Lays `file`'s tensors out as they would lie on `backend`'s device.
    pub fn new(file: &GgufFile, backend: &Backend) -> Result<Self> {
        let backend = backend.sizing();
        let model = Model::load(file, &backend, &mut |_, _| ())?;
        Ok(Self { backend, model })
    }

    /// The model; its tensors have no values.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// What an engine of this setting holds.
    pub fn memory(&self, config: &EngineConfig) -> Result<Memory> {
        let exec = Executor::new(&self.backend, None);
        Ok(*Engine::new(&self.model, exec, config.clone())?.memory())
    }

    /// The setting of `request` that fits `room` with the most rows at a time, computing nothing twice where there is
    /// room and a choice; or `None`.
    pub fn choose(&self, request: &Request, room: &Room) -> Result<Option<Fit>> {
        let Some(training) = request.training.as_ref().filter(|_| request.any_recompute) else {
            return self.most_rows(request, room);
        };
        let with = |recompute| Request {
            training: Some(TrainingConfig { recompute, ..training.clone() }),
            ..request.clone()
        };
        // Without recompute a quarter of the work falls away; smaller micro-batches cost about as much at a time.
        let off = self.most_rows(&with(Recompute::Off), room)?;
        let whole = request.n_rows.unwrap_or(request.rows_per_step);
        match off {
            Some(fit) if fit.n_rows >= whole => Ok(Some(fit)),
            _ => self.most_rows(&with(Recompute::On), room),
        }
    }

    /// The smallest setting that `request` allows: what it takes at least.
    pub fn least(&self, request: &Request) -> Result<Fit> {
        self.fit(request, request.n_rows.unwrap_or(1))
    }

    fn most_rows(&self, request: &Request, room: &Room) -> Result<Option<Fit>> {
        if let Some(n_rows) = request.n_rows {
            return Ok(Some(self.fit(request, n_rows)?).filter(|fit| room.holds(&fit.memory)));
        }
        // What one row cannot do is news; what only more rows cannot (a tensor beyond the device's limit) is none.
        let mut best = self.fit(request, 1)?;
        if !room.holds(&best.memory) {
            return Ok(None);
        }
        let most = request.rows_per_step.max(1);
        let (mut fits, mut fails) = (1, most + 1);
        while fails - fits > 1 {
            // The first question is whether all fit, which they mostly do.
            let middle = if fails == most + 1 { most.min(fails - 1) } else { fits.midpoint(fails) };
            match self.fit(request, middle) {
                Ok(fit) if room.holds(&fit.memory) => (fits, best) = (middle, fit),
                Ok(_) => fails = middle,
                Err(Error::Ggml(ggml::Error::Unsupported { .. })) => fails = middle,
                Err(e) => return Err(e),
            }
        }
        // The same number of micro-batches, evenly filled.
        let even = most.div_ceil(most.div_ceil(fits));
        if even != fits {
            best = self.fit(request, even)?;
        }
        Ok(Some(best))
    }

    fn fit(&self, request: &Request, n_rows: usize) -> Result<Fit> {
        let config = EngineConfig {
            seq_len: request.seq_len,
            n_rows,
            lora: request.lora.clone(),
            training: request.training.clone(),
        };
        Ok(Fit {
            n_rows,
            recompute: request.training.as_ref().map(|t| t.recompute),
            seq_len: request.seq_len,
            rank: request.lora.as_ref().map_or(0, |l| l.rank),
            memory: self.memory(&config)?,
        })
    }

    /// For a request that does not fit: the mildest changes that would make it, one kind at a time; where no one does,
    /// all together; where not even that, none.
    pub fn remedies(&self, request: &Request, room: &Room) -> Result<Vec<Fit>> {
        const SHORTEST: usize = 64;
        let recompute = |r: &Request| {
            let training = r.training.clone().map(|t| TrainingConfig { recompute: Recompute::On, ..t });
            Request { training, any_recompute: false, ..r.clone() }
        };
        let small = Request { n_rows: None, ..request.clone() };
        let mut found = Vec::new();
        if request.n_rows.is_some_and(|n| n > 1) {
            found.extend(self.most_rows(&small, room)?);
        }
        let keeps = request.training.as_ref().is_some_and(|t| t.recompute == Recompute::Off);
        if keeps && !request.any_recompute {
            found.extend(self.most_rows(&recompute(request), room)?);
        }
        let lengths = std::iter::successors(Some(request.seq_len / 2), |n| Some(n / 2));
        for seq_len in lengths.take_while(|&n| n >= SHORTEST) {
            if let Some(fit) = self.most_rows(&Request { seq_len, ..small.clone() }, room)? {
                found.push(fit);
                break;
            }
        }
        let ranked = |rank: usize| request.lora.clone().map(|lora| LoraConfig { rank, ..lora });
        let rank = request.lora.as_ref().map_or(0, |l| l.rank);
        for rank in std::iter::successors(Some(rank / 2), |n| Some(n / 2)).take_while(|&n| n >= 1) {
            if let Some(fit) = self.most_rows(&Request { lora: ranked(rank), ..small.clone() }, room)? {
                found.push(fit);
                break;
            }
        }
        if found.is_empty() {
            let seq_len = SHORTEST.min(request.seq_len);
            let least = Request { seq_len, lora: ranked(rank.clamp(0, 4)), ..recompute(&small) };
            found.extend(self.most_rows(&least, room)?);
        }
        Ok(found)
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
