//! The proof that libllama was initialised.

use std::sync::Once;

use llama_sys as sys;

use super::log;

/// Holding one means that the backend was initialised and its log routed. It stays initialised until the process ends:
/// `llama_backend_free` only gives back what another `Backend` would need again.
#[derive(Debug, Clone, Copy)]
pub struct Backend(());

impl Backend {
    /// Initialises libllama and finds its devices, the first time; any thread may call this at any time.
    pub fn init() -> Self {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            log::ensure_installed();
            // SAFETY: no preconditions.
            unsafe {
                sys::llama_backend_init();
            }
        });
        Self(())
    }
}
