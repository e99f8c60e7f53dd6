//! The devices that numerical tests run on.

// Each test program uses its part of this.
#![allow(dead_code)]

use qvac_ft::ggml::{Device, DeviceKind};

/// The CPU.
pub fn cpu() -> Device {
    Device::by_name("cpu").expect("the CPU is a device")
}

/// A Vulkan device: a GPU where there is one, else lavapipe. None is a failure, not a skip, unless `QVAC_NO_VULKAN=1`
/// says that this machine has none, or the build has no Vulkan backend; both are said aloud.
pub fn vulkan() -> Option<Device> {
    let all = Device::list();
    let first = |kind| all.iter().find(|d| d.kind() == kind && d.name().starts_with("vulkan")).cloned();
    let found = [DeviceKind::Gpu, DeviceKind::Igpu, DeviceKind::Software].into_iter().find_map(first);
    if found.is_none() {
        let excused = std::env::var_os("QVAC_NO_VULKAN").is_some_and(|v| v == "1");
        let built = cfg!(feature = "vulkan") && !cfg!(target_vendor = "apple");
        assert!(
            excused || !built,
            "no Vulkan device: install lavapipe (`scripts/bootstrap --ci`), or set QVAC_NO_VULKAN=1"
        );
        eprintln!("NOT TESTED ON VULKAN: this machine or build has no Vulkan device");
    }
    found
}
