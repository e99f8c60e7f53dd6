//! What a driver says of a device beyond what work on it needs: for `devices` to show.

use std::ffi::{c_char, c_void, CStr};

use llama_sys as sys;

use crate::ggml::Device;

/// Facts about a device, as its ggml backend reports them.
#[derive(Debug, Clone, serde::Serialize)]
pub struct DeviceFacts {
    /// The ggml backend that drives it (`Vulkan`, `CPU`, `MTL`).
    pub backend: String,
    /// PCI address, where there is one.
    pub device_id: Option<String>,
    /// The driver's name and version, where the backend knows them.
    pub driver: Option<String>,
    /// Computes while the host goes on.
    pub r#async: bool,
    /// Has pinned host memory.
    pub host_buffer: bool,
    /// Can use host memory in place.
    pub buffer_from_host_ptr: bool,
    /// What the backend was built with, or found at run time (`AVX2`, `VNNI`).
    pub features: Vec<String>,
}

impl DeviceFacts {
    /// Asks the device's backend.
    pub fn of(device: &Device) -> Self {
        let raw = device.raw();
        // SAFETY: `ggml_backend_dev_props` is plain data for which all zeroes are valid.
        let mut props: sys::ggml_backend_dev_props = unsafe { std::mem::zeroed() };
        // SAFETY: a registered device; the strings belong to it or its registry and live as long as the process.
        unsafe {
            sys::ggml_backend_dev_get_props(raw, &mut props);
            let reg = sys::ggml_backend_dev_backend_reg(raw);
            Self {
                backend: text(sys::ggml_backend_reg_name(reg)).unwrap_or_default(),
                device_id: text(props.device_id),
                driver: text(sys::ggml_backend_dev_driver(raw)),
                r#async: props.caps.async_,
                host_buffer: props.caps.host_buffer,
                buffer_from_host_ptr: props.caps.buffer_from_host_ptr,
                features: features(reg),
            }
        }
    }
}

/// # Safety
/// `reg` is a registered backend.
unsafe fn features(reg: sys::ggml_backend_reg_t) -> Vec<String> {
    type GetFeatures = unsafe extern "C" fn(sys::ggml_backend_reg_t) -> *const sys::ggml_backend_feature;
    let mut features = Vec::new();
    // SAFETY: what is registered under this name has the type that ggml-backend.h gives it, and returns a list that
    // ends with a null name, of strings that live as long as the process.
    unsafe {
        let get = sys::ggml_backend_reg_get_proc_address(reg, c"ggml_backend_get_features".as_ptr());
        if get.is_null() {
            return features;
        }
        let get = std::mem::transmute::<*mut c_void, GetFeatures>(get);
        let mut at = get(reg);
        while let Some(name) = at.as_ref().and_then(|feature| text(feature.name)) {
            if text((*at).value).as_deref() == Some("1") {
                features.push(name);
            }
            at = at.add(1);
        }
    }
    features
}

/// # Safety
/// `text` is null or a NUL-terminated string that lives while it is copied.
unsafe fn text(text: *const c_char) -> Option<String> {
    // SAFETY: not null; the rest is the caller's promise.
    (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
}
