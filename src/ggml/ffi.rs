//! Calls that may throw in C++: the shim catches, this turns what it caught into Rust.

use std::ffi::{c_char, CStr};

use llama_sys as sys;

/// Why a shim call failed.
#[derive(Debug)]
pub(crate) struct Failure {
    pub out_of_memory: bool,
    /// The exception's message, or a word for the status.
    pub reason: String,
}

/// Room for an exception's message.
const MESSAGE: usize = 512;

fn message(f: impl FnOnce(*mut c_char, usize)) -> String {
    let mut buffer = [0u8; MESSAGE];
    f(buffer.as_mut_ptr().cast(), MESSAGE);
    CStr::from_bytes_until_nul(&buffer).map(|s| s.to_string_lossy().trim().to_owned()).unwrap_or_default()
}

/// Calls a function that returns a status; it is given a buffer for its message.
pub(crate) fn status(f: impl FnOnce(*mut c_char, usize) -> sys::qvac_status) -> Result<(), Failure> {
    let mut status = sys::QVAC_STATUS_FAILED;
    let reason = message(|err, size| status = f(err, size));
    if status == sys::QVAC_STATUS_OK {
        return Ok(());
    }
    let out_of_memory = status == sys::QVAC_STATUS_OUT_OF_MEMORY;
    let word = if out_of_memory { "out of memory" } else { "the backend reported failure" };
    Err(Failure { out_of_memory, reason: if reason.is_empty() { word.into() } else { reason } })
}

/// Calls a function that returns a pointer, null on failure.
pub(crate) fn pointer<T>(
    f: impl FnOnce(*mut c_char, usize) -> *mut T,
) -> Result<std::ptr::NonNull<T>, Failure> {
    let mut ptr = std::ptr::null_mut();
    let reason = message(|err, size| ptr = f(err, size));
    std::ptr::NonNull::new(ptr).ok_or(Failure { out_of_memory: false, reason })
}
