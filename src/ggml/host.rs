//! What the operating system knows of this process's memory.

/// The most bytes of main memory that this process has held at once, or none where the system does not tell.
pub fn peak_host_bytes() -> Option<u64> {
    #[cfg(unix)]
    {
        let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
        // SAFETY: `getrusage` fills the struct it is given; all zeros is a value of it.
        let usage = unsafe {
            if libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) != 0 {
                return None;
            }
            usage.assume_init()
        };
        // Apple's systems count bytes, the others kilobytes.
        let unit = if cfg!(target_vendor = "apple") { 1 } else { 1024 };
        Some(usage.ru_maxrss as u64 * unit)
    }
    #[cfg(not(unix))]
    None
}
