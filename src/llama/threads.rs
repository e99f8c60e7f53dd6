//! How many threads compute by default.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Physical cores that this process may use: a second thread on a core's shared units slows matrix work down.
/// Where the machine does not tell, the number of hardware threads.
pub fn physical_cores() -> u32 {
    let available = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    match count_cores(Path::new("/sys/devices/system/cpu")) {
        Some(cores) => cores.clamp(1, available),
        None => available,
    }
}

/// Threads of the CPU for a model whose layers are on `device`. On a GPU the CPU only looks tokens up in the embedding, and
/// more threads than a few would wait for each other longer than that takes.
pub fn default_threads(device: &str) -> u32 {
    const BESIDE_A_GPU: u32 = 4;
    match device.eq_ignore_ascii_case("cpu") {
        true => physical_cores(),
        false => physical_cores().min(BESIDE_A_GPU),
    }
}

/// Cores as Linux describes them: the distinct sets of hardware threads that share one.
fn count_cores(cpus: &Path) -> Option<u32> {
    let cores: BTreeSet<String> = fs::read_dir(cpus)
        .ok()?
        .filter_map(|entry| fs::read_to_string(entry.ok()?.path().join("topology/thread_siblings_list")).ok())
        .collect();
    u32::try_from(cores.len()).ok().filter(|&n| n > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_of_one_core_count_once() {
        let dir = tempfile::tempdir().unwrap();
        for (cpu, siblings) in [("cpu0", "0,2\n"), ("cpu1", "1,3\n"), ("cpu2", "0,2\n"), ("cpu3", "1,3\n")] {
            let topology = dir.path().join(cpu).join("topology");
            fs::create_dir_all(&topology).unwrap();
            fs::write(topology.join("thread_siblings_list"), siblings).unwrap();
        }
        fs::create_dir(dir.path().join("cpufreq")).unwrap();
        assert_eq!(count_cores(dir.path()), Some(2));
        assert_eq!(count_cores(&dir.path().join("none")), None);
        assert!(physical_cores() >= 1);
        assert_eq!(default_threads("cpu"), physical_cores());
        assert!((1..=4).contains(&default_threads("vulkan0")));
    }
}
