//! A handle to one tensor: its shape, type and name, and its data on whatever device holds it.

use std::ptr::NonNull;

use llama_sys as sys;

use super::stream::settle;
use super::{ffi, Context, Dtype, Error, Result};

/// A type whose values can be copied to and from a tensor byte for byte.
pub trait Element: Copy + Default + sealed::Sealed {
    /// The tensor type that holds such elements.
    const DTYPE: Dtype;
}

mod sealed {
    /// Implemented for plain numbers only: any bit pattern is a value and there is no padding.
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for i32 {}
}

impl Element for f32 {
    const DTYPE: Dtype = Dtype::F32;
}
impl Element for i32 {
    const DTYPE: Dtype = Dtype::I32;
}

/// A tensor of a [`Context`]. Cheap to clone; keeps its context (and through it its data) alive.
#[derive(Clone)]
pub struct Tensor {
    ptr: NonNull<sys::ggml_tensor>,
    ctx: Context,
}

impl Tensor {
    /// # Safety
    /// `ptr` is a tensor made in `ctx`.
    pub(super) unsafe fn from_raw(ptr: *mut sys::ggml_tensor, ctx: &Context) -> Self {
        let ptr = NonNull::new(ptr).expect("ggml returns a tensor or aborts");
        Self { ptr, ctx: ctx.clone() }
    }

    pub(super) fn raw(&self) -> *mut sys::ggml_tensor {
        self.ptr.as_ptr()
    }

    pub(super) fn get(&self) -> &sys::ggml_tensor {
        // SAFETY: the context, kept alive by `self.ctx`, owns the description; one thread uses it.
        unsafe { self.ptr.as_ref() }
    }

    /// The context it was made in.
    pub fn context(&self) -> &Context {
        &self.ctx
    }

    /// Elements per dimension, the fastest first.
    pub fn ne(&self) -> [i64; 4] {
        self.get().ne
    }

    /// Bytes from one element to the next, per dimension.
    pub fn nb(&self) -> [usize; 4] {
        self.get().nb
    }

    /// The type of the elements.
    pub fn dtype(&self) -> Dtype {
        // C's enums are signed on Windows.
        #[allow(clippy::unnecessary_cast)]
        let dtype = self.get().type_ as u32;
        Dtype::from_u32(dtype).expect("a tensor made here has a known type")
    }

    /// Number of elements.
    pub fn n_elements(&self) -> usize {
        self.ne().iter().product::<i64>() as usize
    }

    /// Number of rows: all dimensions but the first.
    pub fn n_rows(&self) -> i64 {
        self.ne()[1..].iter().product()
    }

    /// Bytes from the first element to the end of the last.
    pub fn nbytes(&self) -> usize {
        // SAFETY: a pure function of a live tensor.
        unsafe { sys::ggml_nbytes(self.raw()) }
    }

    /// Whether the elements lie in memory in order and without gaps.
    pub fn is_contiguous(&self) -> bool {
        // SAFETY: a pure function of a live tensor.
        unsafe { sys::ggml_is_contiguous(self.raw()) }
    }

    /// The name, as errors show it.
    pub fn name(&self) -> String {
        let bytes: Vec<u8> = self.get().name.iter().map(|&c| c as u8).take_while(|&c| c != 0).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Sets the name, cut to upstream's limit at a character border.
    pub fn named(self, name: &str) -> Self {
        let mut end = name.len().min(sys::GGML_MAX_NAME as usize - 1);
        while !name.is_char_boundary(end) {
            end -= 1;
        }
        let text: Vec<u8> = name.as_bytes()[..end].iter().copied().filter(|&b| b != 0).chain([0]).collect();
        // SAFETY: a live tensor and a terminated string; ggml copies it.
        unsafe { sys::ggml_set_name(self.raw(), text.as_ptr().cast()) };
        self
    }

    /// Marks a tensor without operation as a parameter: the backward graph computes its gradient.
    pub fn set_param(&self) -> Result<()> {
        if self.get().op != sys::GGML_OP_NONE {
            return Err(self.shape_error("set_param", "a tensor without operation", "an operation's result"));
        }
        // SAFETY: the precondition that ggml asserts was checked.
        unsafe { sys::ggml_set_param(self.raw()) };
        Ok(())
    }

    /// Marks a scalar as the loss that the backward graph starts from.
    pub fn set_loss(&self) -> Result<()> {
        if self.n_elements() != 1 || self.dtype() != Dtype::F32 {
            return Err(self.shape_error("set_loss", "one f32", &self.describe()));
        }
        // SAFETY: the preconditions that ggml asserts were checked.
        unsafe { sys::ggml_set_loss(self.raw()) };
        Ok(())
    }

    /// Tells the graph allocator that nothing may overwrite this tensor's data within its graph.
    pub fn set_output(&self) {
        // SAFETY: sets a flag of a live tensor.
        unsafe { sys::ggml_set_output(self.raw()) }
    }

    /// Copies `data` to the device. Its length is the number of elements, its type the tensor's.
    pub fn upload<T: Element>(&self, data: &[T]) -> Result<()> {
        self.check_copy::<T>("upload", data.len())?;
        // SAFETY: the tensor has a buffer and exactly as many bytes as `data`; `T` is plain numbers.
        self.copied("upload", |err, size| unsafe {
            sys::qvac_tensor_set(self.raw(), data.as_ptr().cast(), 0, size_of_val(data), err, size)
        })
    }

    /// Copies the data from the device.
    pub fn download<T: Element>(&self) -> Result<Vec<T>> {
        let mut data = vec![T::default(); self.n_elements()];
        self.download_into(&mut data)?;
        Ok(data)
    }

    /// Copies the data from the device into `data`, whose length is the number of elements.
    pub fn download_into<T: Element>(&self, data: &mut [T]) -> Result<()> {
        self.check_copy::<T>("download", data.len())?;
        self.check_memory("download")?;
        // SAFETY: the tensor has a buffer and exactly as many bytes as `data`; any bits are a value of `T`.
        self.copied("download", |err, size| unsafe {
            sys::qvac_tensor_get(self.raw(), data.as_mut_ptr().cast(), 0, size_of_val(data), err, size)
        })
    }

    /// Copies raw bytes, as the type stores them, to `offset` of the data.
    pub fn upload_bytes(&self, offset: usize, bytes: &[u8]) -> Result<()> {
        self.check_range("upload_bytes", offset, bytes.len())?;
        // SAFETY: the tensor has a buffer and the range lies within its data.
        self.copied("upload_bytes", |err, size| unsafe {
            sys::qvac_tensor_set(self.raw(), bytes.as_ptr().cast(), offset, bytes.len(), err, size)
        })
    }

    /// Copies all bytes of the data, as the type stores them, from the device.
    pub fn download_bytes(&self) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.nbytes()];
        self.check_range("download_bytes", 0, bytes.len())?;
        self.check_memory("download_bytes")?;
        // SAFETY: the tensor has a buffer and `bytes` is as long as its data.
        self.copied("download_bytes", |err, size| unsafe {
            sys::qvac_tensor_get(self.raw(), bytes.as_mut_ptr().cast(), 0, bytes.len(), err, size)
        })?;
        Ok(bytes)
    }

    /// Sets all bytes of the data to zero.
    pub fn zero(&self) -> Result<()> {
        let n = self.nbytes();
        self.check_range("zero", 0, n)?;
        // SAFETY: the tensor has a buffer and the range is its data.
        self.copied("zero", |err, size| unsafe { sys::qvac_tensor_memset(self.raw(), 0, 0, n, err, size) })
    }

    /// The buffer that holds the data, if there is one.
    fn buffer(&self) -> Option<NonNull<sys::ggml_backend_buffer>> {
        let t = self.get();
        // SAFETY: the tensor that a view looks at is kept alive by the context.
        let viewed = unsafe { t.view_src.as_ref() };
        NonNull::new(viewed.map_or(t.buffer, |v| v.buffer))
    }

    /// Whether its buffer is of a [`Backend::sizing`](super::Backend::sizing).
    fn is_sized_only(&self) -> bool {
        // SAFETY: a live buffer.
        self.buffer().is_some_and(|b| unsafe { sys::ggml_backend_buffer_get_size(b.as_ptr()) } == 0)
    }

    fn check_memory(&self, op: &'static str) -> Result<()> {
        match self.is_sized_only() {
            true => Err(self.shape_error(op, "memory", "an address only")),
            false => Ok(()),
        }
    }

    fn check_copy<T: Element>(&self, op: &'static str, len: usize) -> Result<()> {
        let fits = self.dtype() == T::DTYPE && self.is_contiguous() && self.n_elements() == len;
        if !fits {
            let expected = format!("{len} contiguous {}", T::DTYPE.name());
            return Err(self.shape_error(op, &expected, &self.describe()));
        }
        self.check_range(op, 0, self.nbytes())
    }

    fn check_range(&self, op: &'static str, offset: usize, len: usize) -> Result<()> {
        let t = self.get();
        if t.buffer.is_null() && (t.view_src.is_null() || t.data.is_null()) {
            return Err(self.shape_error(op, "data on a device", "no data"));
        }
        if offset.checked_add(len).is_none_or(|end| end > self.nbytes()) {
            return Err(self.shape_error(
                op,
                &format!("at most {} bytes", self.nbytes()),
                &format!("{offset}+{len}"),
            ));
        }
        Ok(())
    }

    /// The only way for the host to this tensor's data: waits for what its device was given, then calls.
    fn copied(
        &self,
        op: &'static str,
        call: impl FnOnce(*mut std::ffi::c_char, usize) -> sys::qvac_status,
    ) -> Result<()> {
        if self.is_sized_only() {
            return Ok(());
        }
        settle(self.buffer())?;
        ffi::status(call).map_err(|f| Error::Copy { tensor: self.name(), op, reason: f.reason })
    }

    /// The tensor whose memory it is: itself, unless it is a view.
    pub fn base(&self) -> Self {
        match NonNull::new(self.get().view_src) {
            // SAFETY: a view's context keeps alive what it views.
            Some(base) => unsafe { Self::from_raw(base.as_ptr(), &self.ctx) },
            None => self.clone(),
        }
    }

    /// Puts a tensor that has no data over `flat`'s data, `offset` bytes from its start. The two share the memory.
    pub fn place_in(&self, flat: &Self, offset: usize) -> Result<()> {
        flat.check_range("place_in", offset, self.nbytes())?;
        let (t, f) = (self.get(), flat.get());
        if !t.data.is_null() || f.buffer.is_null() {
            return Err(self.shape_error(
                "place_in",
                "a tensor without data, over one with a buffer",
                &flat.describe(),
            ));
        }
        // SAFETY: a live buffer.
        let align = unsafe { sys::ggml_backend_buffer_get_alignment(f.buffer) };
        if offset % align != 0 {
            return Err(self.shape_error("place_in", &format!("a multiple of {align}"), &offset.to_string()));
        }
        self.ctx.keep_context(&flat.ctx);
        if flat.is_sized_only() {
            // SAFETY: two fields of a live tensor; nothing follows an address in a buffer without memory.
            unsafe {
                (*self.raw()).buffer = f.buffer;
                (*self.raw()).data = f.data.cast::<u8>().wrapping_add(offset).cast();
            }
            return Ok(());
        }
        // SAFETY: the range lies within `flat`'s data, which lies within the buffer.
        let status = unsafe {
            let address = f.data.cast::<u8>().wrapping_add(offset).cast();
            sys::ggml_backend_tensor_alloc(f.buffer, self.raw(), address)
        };
        match status {
            sys::GGML_STATUS_SUCCESS => Ok(()),
            _ => Err(Error::Copy {
                tensor: self.name(),
                op: "place_in",
                reason: "the buffer refused it".into(),
            }),
        }
    }

    /// The operation that computes it, by upstream's name or, for a fused one, ours.
    pub fn op_name(&self) -> String {
        // SAFETY: a live tensor; the string is static.
        unsafe { std::ffi::CStr::from_ptr(sys::ggml_train_op_desc(self.raw())) }
            .to_string_lossy()
            .into_owned()
    }

    /// The tensors it is computed from.
    pub fn sources(&self) -> Vec<Self> {
        let live = self.get().src.iter().filter(|s| !s.is_null());
        // SAFETY: an operation's context keeps its operands alive.
        live.map(|&s| unsafe { Self::from_raw(s, &self.ctx) }).collect()
    }

    /// Type and shape, for errors: `f32[64, 2]`.
    pub fn describe(&self) -> String {
        let ne = self.ne();
        let n = (1..4).rev().find(|&i| ne[i] > 1).map_or(1, |i| i + 1);
        format!("{}{:?}", self.dtype().name(), &ne[..n])
    }

    pub(super) fn shape_error(&self, op: &'static str, expected: &str, found: &str) -> Error {
        Error::Shape { tensor: self.name(), op, expected: expected.into(), found: found.into() }
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}` {}", self.name(), self.describe())
    }
}
