//! Operations as they come by in a real graph, computed once more on the other device.

use std::cell::RefCell;
use std::collections::HashSet;

use super::{Check, Class, Comparison, Kind, Result, Session, Status, Tier};
use crate::ggml::{self, Backend, Operation, Signature, Tensor, Watch};

/// Looks at the reference's graphs, and compares the first operation of each signature.
pub(super) struct Watcher {
    tier: Tier,
    device: Backend,
    /// Which graphs: `training`, `inference`.
    graph: RefCell<String>,
    seen: RefCell<HashSet<Signature>>,
    waiting: RefCell<Option<Operation>>,
    checks: RefCell<Vec<Check>>,
}

impl Watcher {
    pub(super) fn new(session: &Session) -> Result<Self> {
        Ok(Self {
            tier: session.config.tier,
            device: session.pair.device.backend()?,
            graph: RefCell::default(),
            seen: RefCell::default(),
            waiting: RefCell::default(),
            checks: RefCell::default(),
        })
    }

    /// What the graphs that come are called.
    pub(super) fn graph(&self, name: &str) {
        *self.graph.borrow_mut() = name.into();
    }

    /// Hands over what was compared since the last time.
    pub(super) fn report(&self, session: &mut Session) -> Result<()> {
        let checks = std::mem::take(&mut *self.checks.borrow_mut());
        checks.into_iter().try_for_each(|check| session.add(check))
    }
}

impl Watch for Watcher {
    fn before(&self, op: &Tensor) -> ggml::Result<()> {
        if op.is_computed() && self.seen.borrow_mut().insert(Signature::of(op)) {
            *self.waiting.borrow_mut() = Some(Operation::capture(op)?);
        }
        Ok(())
    }

    fn after(&self, op: &Tensor) -> ggml::Result<()> {
        let Some(operation) = self.waiting.borrow_mut().take() else { return Ok(()) };
        let (dtype, reference) = Operation::result_of(op)?;
        let operands = op.sources().iter().map(Tensor::describe).collect::<Vec<_>>().join(", ");
        let what = format!("{}: {operands} -> {}", self.graph.borrow(), op.describe());
        let name = op.op_name();
        let check = match operation.compute_on(&self.device)? {
            Some(device) => {
                let found = Comparison::of(dtype, &device, &reference);
                Check::held(Kind::Op, &name, what, Class::of(op, self.tier), found)
            }
            None => {
                let device = self.device.device().name();
                // Where all is promised, what is missing is a promise broken.
                let (status, how) = match self.tier {
                    Tier::T0 => (Status::Skip, ""),
                    _ => (Status::Fail, " in exact arithmetic"),
                };
                let note = format!("device `{device}` cannot compute it{how}");
                Check::not_held(Kind::Op, &name, what, status, note)
            }
        };
        self.checks.borrow_mut().push(check);
        Ok(())
    }
}
