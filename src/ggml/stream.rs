//! Work that devices were given and that nobody has waited for yet.
//!
//! [`Executor::compute`](super::Executor::compute) only submits. Whatever then lets the host at memory that a device may
//! still be working on calls [`settle`] first: the copies of [`Tensor`](super::Tensor) all go through one function that
//! does, and so do the ends of buffers and of contexts (a backend looks at the tensors of its unfinished graphs). So no
//! user of a tensor can forget to wait, and none has to.
//!
//! Everything here belongs to one thread: nothing that computes or holds tensors can leave the thread it was made on.

use std::cell::{Cell, RefCell};
use std::ptr::NonNull;
use std::rc::{Rc, Weak};

use llama_sys as sys;

use super::{ffi, Device, Error, Result};

thread_local! {
    /// The streams that this thread has opened.
    static OPEN: RefCell<Vec<Weak<Stream>>> = const { RefCell::new(Vec::new()) };
}

/// The queue of one backend: graphs are computed in the order of their submission.
pub(super) struct Stream {
    ptr: NonNull<sys::ggml_backend>,
    device: Device,
    /// Lets the host sleep until the device is done, where upstream's own wait would spin.
    event: Option<NonNull<sys::ggml_backend_event>>,
    unfinished: Cell<bool>,
}

impl Stream {
    /// Takes over a backend that was made for `device`.
    pub(super) fn new(ptr: NonNull<sys::ggml_backend>, device: &Device) -> Rc<Self> {
        // SAFETY: a live device.
        let event = ffi::pointer(|err, size| unsafe { sys::qvac_event_new(device.raw(), err, size) }).ok();
        let stream = Rc::new(Self { ptr, device: device.clone(), event, unfinished: Cell::new(false) });
        OPEN.with_borrow_mut(|open| open.push(Rc::downgrade(&stream)));
        stream
    }

    pub(super) fn raw(&self) -> *mut sys::ggml_backend {
        self.ptr.as_ptr()
    }

    pub(super) fn device(&self) -> &Device {
        &self.device
    }

    /// To be called before a graph is submitted (one that fails half-way has left work behind, too). Waits for what the
    /// device's other streams were given: the graph may read what those compute.
    pub(super) fn submits(&self) -> Result<()> {
        settle_where(|s| s.device.raw() == self.device.raw() && s.ptr != self.ptr)?;
        self.unfinished.set(true);
        Ok(())
    }

    pub(super) fn is_unfinished(&self) -> bool {
        self.unfinished.get()
    }

    /// Returns once the device has done all it was given. What went wrong there shows here.
    pub(super) fn wait(&self) -> Result<()> {
        if !self.unfinished.get() {
            return Ok(());
        }
        let event = self.event.map_or(std::ptr::null_mut(), NonNull::as_ptr);
        // SAFETY: a live backend, and no event or a live one of its device.
        ffi::status(|err, size| unsafe { sys::qvac_wait(self.raw(), event, err, size) }).map_err(|f| {
            let device = self.device.name().into();
            match f.out_of_memory {
                true => Error::OutOfDeviceMemory { device, what: "a graph's values".into(), bytes: 0 },
                false => Error::Compute { device, reason: f.reason },
            }
        })?;
        self.unfinished.set(false);
        Ok(())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // A device that fails now has no one left to tell.
        let _ = self.wait();
        // SAFETY: made in `new`, freed once, before the backend that they were recorded on.
        self.event.inspect(|event| unsafe { sys::ggml_backend_event_free(event.as_ptr()) });
        // SAFETY: given over in `new`, freed once; what was allocated on it holds an `Rc` of this.
        unsafe { sys::ggml_backend_free(self.raw()) }
        // The list is gone already when the thread ends.
        let _ = OPEN.try_with(|open| open.borrow_mut().retain(|s| s.strong_count() > 0));
    }
}

/// Waits for all that was submitted to the device that `buffer` lies on; without a buffer, to any device.
pub(super) fn settle(buffer: Option<NonNull<sys::ggml_backend_buffer>>) -> Result<()> {
    // SAFETY: a live buffer has a type; the device is null for a type that belongs to none.
    let device = buffer.and_then(|b| unsafe {
        NonNull::new(sys::ggml_backend_buft_get_device(sys::ggml_backend_buffer_get_type(b.as_ptr())))
    });
    settle_where(|s| device.is_none_or(|d| d.as_ptr() == s.device.raw()))
}

fn settle_where(concerns: impl Fn(&Stream) -> bool) -> Result<()> {
    // Collected first: the last handle of a stream may be the one taken here, and its end changes the list.
    let open = OPEN.try_with(|open| -> Vec<Rc<Stream>> {
        open.borrow().iter().filter_map(Weak::upgrade).filter(|s| s.is_unfinished() && concerns(s)).collect()
    });
    // All of them, whatever becomes of the first.
    open.unwrap_or_default().iter().map(|s| s.wait()).fold(Ok(()), Result::and)
}

#[cfg(test)]
mod tests {
    use super::super::{Backend, Context, Dtype, Executor, Graph, Plan, Tensor};
    use super::*;

    /// A graph that doubles `x` into `y`.
    struct Case {
        backend: Backend,
        exec: Executor,
        x: Tensor,
        y: Tensor,
        plan: Plan,
    }

    impl Case {
        fn new() -> Self {
            let backend = Backend::new(&Device::by_name("cpu").unwrap(), 1).unwrap();
            let inputs = Context::new(2, 0).unwrap();
            let x = inputs.new_tensor("x", Dtype::F32, &[4]).unwrap();
            let y = inputs.new_tensor("y", Dtype::F32, &[4]).unwrap();
            backend.alloc(&inputs, "the inputs").unwrap();
            x.upload(&[1.0f32, 2.0, 3.0, 4.0]).unwrap();
            let ctx = Context::new(4, 32).unwrap();
            let mut graph = Graph::new(&ctx, 8, false).unwrap();
            graph.expand(&ctx.cpy(&ctx.scale(&x, 2.0).unwrap(), &y).unwrap()).unwrap();
            let exec = Executor::new(&backend, None);
            let plan = exec.plan(vec![graph]).unwrap().remove(0);
            Self { backend, exec, x, y, plan }
        }

        fn submit(&self) {
            self.exec.compute(&self.plan).unwrap();
            assert!(self.backend.is_unfinished(), "to compute is to submit");
        }
    }

    #[test]
    fn every_access_of_the_host_waits() {
        type Access = fn(&Tensor) -> Result<()>;
        let accesses: [(&str, Access); 6] = [
            ("upload", |t| t.upload(&[0f32; 4])),
            ("download", |t| t.download::<f32>().map(drop)),
            ("download_into", |t| t.download_into(&mut [0f32; 4])),
            ("upload_bytes", |t| t.upload_bytes(4, &[0; 8])),
            ("download_bytes", |t| t.download_bytes().map(drop)),
            ("zero", Tensor::zero),
        ];
        let case = Case::new();
        let ctx = Context::new(1, 0).unwrap();
        let view_of_y = ctx.view(&case.y, &[4], 0).unwrap();
        for (name, access) in accesses {
            for tensor in [&case.x, &case.y, &view_of_y] {
                case.submit();
                access(tensor).unwrap();
                assert!(!case.backend.is_unfinished(), "`{name}` of {tensor:?} does not wait");
            }
        }
        case.submit();
        case.backend.wait().unwrap();
        assert!(!case.backend.is_unfinished());
    }

    #[test]
    fn so_does_the_end_of_what_a_device_may_be_looking_at() {
        let case = Case::new();
        case.submit();
        drop(Context::new(1, 0).unwrap());
        assert!(!case.backend.is_unfinished(), "a context's");

        let other = Context::new(1, 0).unwrap();
        other.new_tensor("other", Dtype::F32, &[4]).unwrap();
        case.backend.alloc(&other, "another buffer").unwrap();
        case.submit();
        drop(other);
        assert!(!case.backend.is_unfinished(), "a buffer's");

        let Case { backend, exec, plan, x, y } = case;
        exec.compute(&plan).unwrap();
        drop(plan);
        assert!(!backend.is_unfinished(), "a plan's");
        drop((exec, x, backend));
        assert_eq!(y.download::<f32>().unwrap(), [2.0, 4.0, 6.0, 8.0]);
    }

    #[test]
    fn a_part_of_a_graph_is_kept_until_its_plan_ends() {
        let case = Case::new();
        for _ in 0..3 {
            case.exec.compute_to(&case.plan, 1).unwrap();
            case.exec.compute_from(&case.plan, 1).unwrap();
        }
        assert_eq!(case.y.download::<f32>().unwrap(), [2.0, 4.0, 6.0, 8.0]);
        assert!(case.exec.compute_to(&case.plan, 3).is_err(), "beyond its nodes");
    }
}
