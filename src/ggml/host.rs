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

/// The bytes of main memory that this process holds now, or none where the system does not tell cheaply.
pub fn host_bytes() -> Option<u64> {
    #[cfg(target_os = "linux")]
    {
        let pages = std::fs::read_to_string("/proc/self/statm").ok()?;
        let resident: u64 = pages.split_whitespace().nth(1)?.parse().ok()?;
        // SAFETY: asks for a constant of the system.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        Some(resident * u64::try_from(page).ok()?)
    }
    #[cfg(not(target_os = "linux"))]
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn what_is_held_is_at_most_the_peak() {
        let held = host_bytes().unwrap();
        // The kernel counts both in batches.
        assert!(held > 0 && held <= peak_host_bytes().unwrap() + (1 << 22));
    }
}
