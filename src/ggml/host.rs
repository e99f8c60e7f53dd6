//! What the operating system knows of this process's memory.

/// Bytes of main memory that could be had without swapping, or none where the system does not tell.
pub fn free_host_bytes() -> Option<u64> {
    proc_field("/proc/meminfo", "MemAvailable")
}

/// Bytes of main memory that this process holds, or none where the system does not tell.
pub fn host_bytes() -> Option<u64> {
    proc_field("/proc/self/status", "VmRSS")
}

/// Bytes of main memory that this process holds and no file backs, or none where the system does not tell. What was freed
/// and kept for later is given back first: glibc keeps so much that a process would seem not to grow.
pub fn own_host_bytes() -> Option<u64> {
    trim();
    let of = |field| proc_field("/proc/self/status", field);
    Some(of("RssAnon")? + of("RssShmem")?)
}

/// Gives back to the system what was freed.
fn trim() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: frees only what nothing refers to.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// A field of a file of lines `Field:  123 kB`, in bytes.
fn proc_field(path: &str, field: &str) -> Option<u64> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix(field)?.strip_prefix(':'))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

/// Forgets the peak, so that [`peak_host_bytes`] tells the most from here on; Linux can, others go on telling of all.
pub fn reset_peak_host_bytes() {
    trim();
    // Where that is not allowed, the peak stays one of the whole process, which is what others tell, too.
    #[cfg(target_os = "linux")]
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// The most bytes of main memory that this process has held at once, or none where the system does not tell.
pub fn peak_host_bytes() -> Option<u64> {
    #[cfg(target_os = "linux")]
    {
        proc_field("/proc/self/status", "VmHWM")
    }
    #[cfg(all(unix, not(target_os = "linux")))]
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

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_peak_is_above_what_is_held_until_it_is_forgotten() {
        const MUCH: u64 = 1 << 28;
        drop(std::hint::black_box(vec![1u8; MUCH as usize]));
        let before = peak_host_bytes().unwrap();
        assert!(before > MUCH && host_bytes().unwrap() <= before);
        reset_peak_host_bytes();
        // Other tests hold memory, too, but not as much.
        assert!(peak_host_bytes().unwrap() + MUCH / 2 < before);
    }
}
