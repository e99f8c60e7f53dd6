//! The machine's compute devices, and a backend that runs graphs on one.

use std::ffi::CStr;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::{Mutex, MutexGuard, PoisonError};

use llama_sys as sys;

use super::stream::{settle, Stream};
use super::{ffi, Context, Error, Result, Tensor};

/// What kind of device it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    Cpu,
    /// A GPU with memory of its own.
    Gpu,
    /// A GPU that shares the host's memory.
    Igpu,
    /// A GPU's interface implemented in software, such as lavapipe. Never chosen unless named.
    Software,
}

/// What a device can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct DeviceLimits {
    /// Bytes in all.
    pub memory: usize,
    /// Bytes of its largest buffer; null where nothing but memory limits it.
    pub max_buffer: Option<usize>,
    /// Bytes that a tensor's place in a buffer is a multiple of.
    pub alignment: usize,
}

/// A device that can run graphs.
#[derive(Clone, Debug)]
pub struct Device {
    ptr: NonNull<sys::ggml_backend_device>,
    name: String,
    description: String,
    kind: DeviceKind,
}

impl Device {
    /// All devices, in upstream's order.
    pub fn list() -> Vec<Self> {
        super::init();
        // SAFETY: reads the registry, which `init` has filled.
        (0..unsafe { sys::ggml_backend_dev_count() })
            // SAFETY: the index is in range; devices live as long as the process.
            .filter_map(|i| NonNull::new(unsafe { sys::ggml_backend_dev_get(i) }))
            .filter_map(Self::from_raw)
            .collect()
    }

    fn from_raw(ptr: NonNull<sys::ggml_backend_device>) -> Option<Self> {
        // SAFETY: a registered device; its strings are static.
        let (name, description, kind, software) = unsafe {
            let text = |s: *const std::ffi::c_char| CStr::from_ptr(s).to_string_lossy().into_owned();
            (
                text(sys::ggml_backend_dev_name(ptr.as_ptr())),
                text(sys::ggml_backend_dev_description(ptr.as_ptr())),
                sys::ggml_backend_dev_type(ptr.as_ptr()),
                sys::ggml_backend_dev_is_software(ptr.as_ptr()),
            )
        };
        let kind = match kind {
            _ if software => DeviceKind::Software,
            sys::GGML_BACKEND_DEVICE_TYPE_CPU => DeviceKind::Cpu,
            sys::GGML_BACKEND_DEVICE_TYPE_GPU => DeviceKind::Gpu,
            sys::GGML_BACKEND_DEVICE_TYPE_IGPU => DeviceKind::Igpu,
            // Accelerators (BLAS and the like) run single operations, not graphs.
            _ => return None,
        };
        // Upstream calls Metal's devices MTL0, MTL1, ...
        let name = name.to_lowercase().replace("mtl", "metal");
        Some(Self { ptr, name, description, kind })
    }

    /// The device of that name (`cpu`, `vulkan0`, `metal0`), whatever its case.
    pub fn by_name(name: &str) -> Result<Self> {
        let mut devices = Self::list();
        match devices.iter().position(|d| d.name.eq_ignore_ascii_case(name)) {
            Some(i) => Ok(devices.swap_remove(i)),
            None => Err(Error::NoSuchDevice {
                name: name.into(),
                found: devices.into_iter().map(|d| d.name).collect(),
            }),
        }
    }

    /// The device that work goes to when none is named: the first GPU, else the first GPU that shares the host's
    /// memory, else the CPU.
    pub fn best() -> Result<Self> {
        let devices = Self::list();
        let first = |kind| devices.iter().find(|d| d.kind == kind).cloned();
        first(DeviceKind::Gpu).or_else(|| first(DeviceKind::Igpu)).map_or_else(|| Self::by_name("cpu"), Ok)
    }

    /// The name that `--device` takes.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The hardware's name.
    pub fn description(&self) -> &str {
        &self.description
    }

    pub fn kind(&self) -> DeviceKind {
        self.kind
    }

    /// Whether it is a GPU, of its own memory or not; software that behaves as one is none.
    pub fn is_gpu(&self) -> bool {
        matches!(self.kind(), DeviceKind::Gpu | DeviceKind::Igpu)
    }

    /// Bytes free and bytes in all.
    pub fn memory(&self) -> (usize, usize) {
        let (mut free, mut total) = (0, 0);
        // SAFETY: a live device and two places to write to.
        unsafe { sys::ggml_backend_dev_memory(self.ptr.as_ptr(), &mut free, &mut total) };
        (free, total)
    }

    /// What its driver allows.
    pub fn limits(&self) -> DeviceLimits {
        let _one_at_a_time = setup();
        // SAFETY: a live device; its default buffer type lives as long as the process.
        let (max_buffer, alignment) = unsafe {
            let buft = sys::ggml_backend_dev_buffer_type(self.ptr.as_ptr());
            (sys::ggml_backend_buft_get_max_size(buft), sys::ggml_backend_buft_get_alignment(buft))
        };
        let max_buffer = (max_buffer != usize::MAX).then_some(max_buffer);
        DeviceLimits { memory: self.memory().1, max_buffer, alignment }
    }

    /// Whether the device can compute `op`.
    pub fn supports(&self, op: &Tensor) -> bool {
        let _one_at_a_time = setup();
        // SAFETY: a live device and a live tensor.
        unsafe { sys::ggml_backend_dev_supports_op(self.ptr.as_ptr(), op.raw()) }
    }

    pub(crate) fn raw(&self) -> *mut sys::ggml_backend_device {
        self.ptr.as_ptr()
    }
}

/// Held while a device may be set up: ggml-vulkan does so at first use and is not ready for two threads at once.
fn setup() -> MutexGuard<'static, ()> {
    static SETUP: Mutex<()> = Mutex::new(());
    SETUP.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A stream of work on a device. Cheap to clone.
#[derive(Clone)]
pub struct Backend {
    stream: Rc<Stream>,
    /// See [`Backend::sizing`].
    sizing: bool,
}

impl Backend {
    /// Opens `device`; on a CPU it computes with `n_threads` threads.
    pub fn new(device: &Device, n_threads: usize) -> Result<Self> {
        let _one_at_a_time = setup();
        let ptr = ffi::pointer(|err, size| {
            // SAFETY: a live device; no parameters.
            unsafe { sys::qvac_dev_init(device.raw(), std::ptr::null(), err, size) }
        })
        .map_err(|f| Error::DeviceInit { device: device.name.clone(), reason: f.reason })?;
        let backend = Self { stream: Stream::new(ptr, device), sizing: false };
        backend.set_n_threads(n_threads);
        Ok(backend)
    }

    fn set_n_threads(&self, n_threads: usize) {
        type SetThreads = unsafe extern "C" fn(*mut sys::ggml_backend, i32);
        if let Some(f) = self.proc_address(c"ggml_backend_set_n_threads") {
            // SAFETY: the function of that name has that type; a live backend of its registry.
            unsafe {
                std::mem::transmute::<*mut std::ffi::c_void, SetThreads>(f)(
                    self.raw(),
                    n_threads.max(1) as i32,
                )
            }
        }
    }

    /// Computes by plain reference kernels from now on, where the backend has them; whether it does.
    pub fn use_references(&self) -> bool {
        type SetUseRef = unsafe extern "C" fn(*mut sys::ggml_backend, bool);
        let f = self.proc_address(c"ggml_backend_cpu_set_use_ref");
        if let Some(f) = f {
            // SAFETY: the function of that name has that type; a live backend of its registry, the CPU's.
            unsafe { std::mem::transmute::<*mut std::ffi::c_void, SetUseRef>(f)(self.raw(), true) }
        }
        f.is_some()
    }

    /// A function of the backend's registry: it also knows those of a CPU variant that was loaded at run time.
    fn proc_address(&self, name: &std::ffi::CStr) -> Option<*mut std::ffi::c_void> {
        // SAFETY: a live device has a registry.
        let f = unsafe {
            let reg = sys::ggml_backend_dev_backend_reg(self.device().raw());
            sys::ggml_backend_reg_get_proc_address(reg, name.as_ptr())
        };
        (!f.is_null()).then_some(f)
    }

    /// The same device, to find out how much memory something needs: tensors get addresses, as they would, but no memory.
    /// What is written to them goes nowhere; to read them or to compute is an error.
    pub fn sizing(&self) -> Self {
        Self { sizing: true, ..self.clone() }
    }

    /// Whether it is one of [`Self::sizing`].
    pub fn is_sizing(&self) -> bool {
        self.sizing
    }

    pub fn device(&self) -> &Device {
        self.stream.device()
    }

    /// Returns once all that was submitted is done. For clocks: what reads a tensor waits by itself.
    pub fn wait(&self) -> Result<()> {
        self.stream.wait()
    }

    /// Whether graphs were submitted that nobody has waited for.
    pub fn is_unfinished(&self) -> bool {
        self.stream.is_unfinished()
    }

    /// See [`Stream::submits`].
    pub(super) fn submits(&self) -> Result<()> {
        self.stream.submits()
    }

    pub(super) fn raw(&self) -> *mut sys::ggml_backend {
        self.stream.raw()
    }

    pub(super) fn buffer_type(&self) -> *mut sys::ggml_backend_buffer_type {
        // SAFETY: a live backend.
        unsafe { sys::ggml_backend_get_default_buffer_type(self.raw()) }
    }

    /// Gives every tensor of `ctx` that has none yet its place in the device's memory, in as many buffers as the
    /// device's limits ask for; `what` names them in an error. Returns the bytes allocated.
    pub fn alloc(&self, ctx: &Context, what: &str) -> Result<usize> {
        let buft = self.buffer_type();
        // SAFETY: a live context and buffer type; allocates nothing.
        let bytes = unsafe { sys::ggml_backend_alloc_ctx_tensors_from_buft_size(ctx.raw(), buft) };
        if self.sizing {
            self.address(ctx)?;
            return Ok(bytes);
        }
        let buffer = ffi::pointer(|err, size| {
            // SAFETY: a live context and buffer type.
            unsafe { sys::qvac_alloc_ctx_tensors_from_buft(ctx.raw(), buft, err, size) }
        })
        .map_err(|_| Error::OutOfDeviceMemory {
            device: self.device().name.clone(),
            what: what.into(),
            bytes,
        })?;
        let buffer = Rc::new(Buffer { ptr: buffer, _backend: self.clone() });
        ctx.keep(&buffer);
        // SAFETY: the buffer was made above.
        Ok(unsafe { sys::ggml_backend_buffer_get_size(buffer.ptr.as_ptr()) })
    }

    /// Gives every tensor of `ctx` that has none yet an address in a buffer without memory.
    fn address(&self, ctx: &Context) -> Result<()> {
        let buft = self.buffer_type();
        // SAFETY: a live buffer type; of no bytes upstream makes a buffer that has none and is none of the device's.
        let buffer = NonNull::new(unsafe { sys::ggml_backend_buft_alloc_buffer(buft, 0) })
            .ok_or(Error::OutOfHostMemory { bytes: 0 })?;
        let buffer = Rc::new(Buffer { ptr: buffer, _backend: self.clone() });
        ctx.keep(&buffer);
        // SAFETY: a live buffer type.
        let align = unsafe { sys::ggml_backend_buft_get_alignment(buft) };
        let mut at = FIRST_ADDRESS;
        // SAFETY: walks the live tensors of a live context and writes to fields of those that lie nowhere yet.
        unsafe {
            let mut next = sys::ggml_get_first_tensor(ctx.raw());
            while let Some(t) = next.as_mut() {
                if t.data.is_null() && t.view_src.is_null() {
                    t.buffer = buffer.ptr.as_ptr();
                    t.data = std::ptr::without_provenance_mut(at);
                    at += sys::ggml_backend_buft_get_alloc_size(buft, t).next_multiple_of(align);
                }
                next = sys::ggml_get_next_tensor(ctx.raw(), next);
            }
        }
        Ok(())
    }
}

/// Where buffers without memory begin: a page that no pointer leads to, aligned for every device. ggml-vulkan takes offsets
/// in its buffers from this address.
const FIRST_ADDRESS: usize = 0x1000;

/// A device's memory; the context whose tensors lie in it keeps it alive.
struct Buffer {
    ptr: NonNull<sys::ggml_backend_buffer>,
    _backend: Backend,
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // A device that fails is told of where its results are read.
        let _ = settle(Some(self.ptr));
        // SAFETY: made by an allocation, freed once, when the context of its tensors is gone.
        unsafe { sys::ggml_backend_buffer_free(self.ptr.as_ptr()) }
    }
}
