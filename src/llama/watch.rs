//! libllama's graphs shown operation by operation, through the scheduler's callback.

use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::panic::{catch_unwind, AssertUnwindSafe};

use llama_sys as sys;

use super::Result;
use crate::ggml::{self, Watch};

/// What a context's callback finds: who watches now, if anybody does.
#[derive(Debug, Default)]
pub(super) struct Slot {
    watch: Cell<Option<*const dyn Watch>>,
    error: RefCell<Option<ggml::Error>>,
}

impl Slot {
    /// The callback and its argument, for contexts that do not outlive this.
    pub(super) fn callback(&self) -> (sys::ggml_backend_sched_eval_callback, *mut c_void) {
        (Some(shown), std::ptr::from_ref(self).cast_mut().cast())
    }

    /// Calls `decode` with `watch` looking on; its error comes first.
    pub(super) fn during(&self, watch: &dyn Watch, decode: impl FnOnce() -> Result<()>) -> Result<()> {
        // SAFETY: only the lifetime is left out; the pointer is taken back before the borrow ends.
        let pointer = unsafe { std::mem::transmute::<*const (dyn Watch + '_), *const dyn Watch>(watch) };
        self.watch.set(Some(pointer));
        let decoded = decode();
        self.watch.set(None);
        match self.error.take() {
            Some(error) => Err(error.into()),
            None => decoded,
        }
    }

    fn show(&self, op: *mut sys::ggml_tensor, ask: bool) -> bool {
        let Some(watch) = self.watch.get() else { return false };
        // SAFETY: `during` holds the borrow that this points at, and libllama calls from within it.
        let watch = unsafe { &*watch };
        // SAFETY: the scheduler passes a live tensor, and its sources are there while this lasts.
        let seen = unsafe { ggml::show(op, watch, !ask) };
        let failed = seen.is_err();
        if let Err(error) = seen {
            self.error.borrow_mut().get_or_insert(error);
        }
        // When asked: yes, compute it by itself. Afterwards: go on, unless there is no point.
        ask || !failed
    }
}

extern "C" fn shown(op: *mut sys::ggml_tensor, ask: bool, slot: *mut c_void) -> bool {
    // SAFETY: `Slot::callback` passes the address of a slot that lives as long as the context.
    let slot = unsafe { &*slot.cast::<Slot>() };
    catch_unwind(AssertUnwindSafe(|| slot.show(op, ask))).unwrap_or(false)
}
