//! Operations as they come by in a real graph, computed once more on the other device.

use std::cell::RefCell;
use std::collections::HashMap;

use super::{Check, Class, Comparison, Kind, Result, Session, Status, Tier};
use crate::ggml::{self, Backend, Operation, Signature, Tensor, Watch};

/// Looks at the reference's graphs and compares their operations: those of one signature are one check.
pub(super) struct Watcher {
    tier: Tier,
    device: Backend,
    /// Which graphs: `training`, `prompt`, `token`.
    graph: RefCell<String>,
    waiting: RefCell<Option<Operation>>,
    found: RefCell<Found>,
}

#[derive(Default)]
struct Found {
    /// Where the operations of a signature stand in `kinds`.
    places: HashMap<Signature, usize>,
    kinds: Vec<Seen>,
}

/// The operations of one signature.
struct Seen {
    name: String,
    what: String,
    class: Class,
    times: usize,
    /// None where the device cannot compute them.
    comparison: Option<Comparison>,
}

impl Watcher {
    pub(super) fn new(session: &Session) -> Result<Self> {
        Ok(Self {
            tier: session.config.tier,
            device: session.pair.device.backend()?,
            graph: RefCell::default(),
            waiting: RefCell::default(),
            found: RefCell::default(),
        })
    }

    /// What the graphs that come are called.
    pub(super) fn graph(&self, name: &str) {
        *self.graph.borrow_mut() = name.into();
    }

    /// Hands over what was compared.
    pub(super) fn report(&self, session: &mut Session) -> Result<()> {
        let found = std::mem::take(&mut *self.found.borrow_mut());
        found.kinds.into_iter().try_for_each(|seen| session.add(self.check(seen)))
    }

    fn check(&self, seen: Seen) -> Check {
        let Seen { name, what, class, times, comparison } = seen;
        let what = if times > 1 { format!("{what}, {times} times") } else { what };
        let Some(comparison) = comparison else {
            let device = self.device.device().name();
            // Where all is promised, what is missing is a promise broken.
            let (status, how) = match self.tier {
                Tier::T0 => (Status::Skip, ""),
                _ => (Status::Fail, " in exact arithmetic"),
            };
            let note = format!("device `{device}` cannot compute it{how}");
            return Check::not_held(Kind::Op, &name, what, status, note);
        };
        Check::held(Kind::Op, &name, what, class, comparison)
    }
}

impl Watch for Watcher {
    fn before(&self, op: &Tensor) -> ggml::Result<()> {
        if op.is_computed() {
            *self.waiting.borrow_mut() = Some(Operation::capture(op)?);
        }
        Ok(())
    }

    fn after(&self, op: &Tensor) -> ggml::Result<()> {
        let Some(operation) = self.waiting.borrow_mut().take() else { return Ok(()) };
        let (dtype, reference) = Operation::result_of(op)?;
        let device = operation.compute_on(&self.device)?;
        let comparison = device.map(|device| Comparison::of(dtype, &device, &reference));
        let found = &mut *self.found.borrow_mut();
        match found.places.get(&Signature::of(op)) {
            Some(&place) => {
                let seen = &mut found.kinds[place];
                seen.times += 1;
                seen.comparison = seen.comparison.take().zip(comparison).map(|(a, b)| a.join(b));
            }
            None => {
                found.places.insert(Signature::of(op), found.kinds.len());
                let operands = op.sources().iter().map(Tensor::describe).collect::<Vec<_>>().join(", ");
                found.kinds.push(Seen {
                    name: op.op_name(),
                    what: format!("{}: {operands} -> {}", self.graph.borrow(), op.describe()),
                    class: Class::of(op, self.tier),
                    times: 1,
                    comparison,
                });
            }
        }
        Ok(())
    }
}
