//! Calls into C++ that may throw, through the shim that catches.

use std::ffi::{c_char, CStr};

use super::log::Mark;

/// Bytes for an exception's message; longer ones are cut by the shim.
const MESSAGE_SIZE: usize = 512;

/// Why a call failed, if it turns out that it did.
pub(super) struct Reason {
    mark: Mark,
    message: [u8; MESSAGE_SIZE],
}

/// Runs `call` with room for an exception's message.
pub(super) fn guarded<R>(call: impl FnOnce(*mut c_char, usize) -> R) -> (R, Reason) {
    let mut reason = Reason { mark: Mark::now(), message: [0; MESSAGE_SIZE] };
    let result = call(reason.message.as_mut_ptr().cast(), MESSAGE_SIZE);
    (result, reason)
}

impl Reason {
    /// The exception's message, else what was logged during the call.
    pub(super) fn text(&self) -> String {
        match CStr::from_bytes_until_nul(&self.message) {
            Ok(text) if !text.is_empty() => text.to_string_lossy().into_owned(),
            _ => self.mark.reason(),
        }
    }
}
