//! The memory that tensor and graph descriptions live in.
//!
//! A `Context` holds descriptions only (`no_alloc`); the numbers live in a [`Buffer`](super::Buffer) of a device.
//! It is reference counted and remembers every other context, buffer and allocator that its tensors point into,
//! so that no tensor can outlive what it reads. It is not `Sync`: graphs are built and run by one thread.

use std::cell::{Cell, RefCell};
use std::ptr::NonNull;
use std::rc::Rc;

use llama_sys as sys;

use super::stream::settle;
use super::{Dtype, Error, Result, Tensor};

/// Bytes of description that one graph node costs: the tensor and its share of the graph's tables and hash set.
const BYTES_PER_NODE: usize = 256;

/// A pool of tensor and graph descriptions.
#[derive(Clone)]
pub struct Context {
    inner: Rc<Inner>,
}

struct Inner {
    ptr: NonNull<sys::ggml_context>,
    free_tensors: Cell<usize>,
    free_graph_bytes: Cell<usize>,
    keep: RefCell<Vec<Rc<dyn std::any::Any>>>,
}

impl Context {
    /// A context with room for `n_tensors` tensors and for graphs of `n_graph_nodes` nodes in all.
    pub fn new(n_tensors: usize, n_graph_nodes: usize) -> Result<Self> {
        // SAFETY: a pure function of no arguments.
        let overhead = unsafe { sys::ggml_tensor_overhead() };
        let graph_bytes = n_graph_nodes * BYTES_PER_NODE;
        // The slack is for ggml's own padding.
        let mem_size = (n_tensors + 1) * overhead + graph_bytes + (1 << 12);
        let params = sys::ggml_init_params { mem_size, mem_buffer: std::ptr::null_mut(), no_alloc: true };
        // SAFETY: the parameters are valid; ggml allocates the pool itself when `mem_buffer` is null.
        let ptr = NonNull::new(unsafe { sys::ggml_init(params) })
            .ok_or(Error::OutOfHostMemory { bytes: mem_size })?;
        Ok(Self {
            inner: Rc::new(Inner {
                ptr,
                free_tensors: Cell::new(n_tensors),
                free_graph_bytes: Cell::new(graph_bytes),
                keep: RefCell::default(),
            }),
        })
    }

    /// A new tensor without data, of 1 to 4 dimensions, the fastest first.
    pub fn new_tensor(&self, name: &str, dtype: Dtype, ne: &[i64]) -> Result<Tensor> {
        let shape = |expected: &str| Error::Shape {
            tensor: name.into(),
            op: "new_tensor",
            expected: expected.into(),
            found: format!("{ne:?}"),
        };
        if ne.is_empty() || ne.len() > 4 || ne.iter().any(|&n| n < 1) {
            return Err(shape("1 to 4 positive dimensions"));
        }
        if ne[0] % dtype.block_size() as i64 != 0 {
            return Err(shape(&format!("a first dimension that is a multiple of {}", dtype.block_size())));
        }
        self.take(1)?;
        // SAFETY: the shape was checked and the pool has room for one more tensor.
        let ptr = unsafe { sys::ggml_new_tensor(self.raw(), dtype.as_raw(), ne.len() as i32, ne.as_ptr()) };
        // SAFETY: `ptr` was made in this context just now.
        let tensor = unsafe { Tensor::from_raw(ptr, self) };
        Ok(tensor.named(name))
    }

    /// Reserves room for `n` more tensors; ggml itself would abort when the pool is full.
    pub(super) fn take(&self, n: usize) -> Result<()> {
        let free = self.inner.free_tensors.get();
        let left = free.checked_sub(n).ok_or(Error::ContextFull)?;
        self.inner.free_tensors.set(left);
        Ok(())
    }

    /// Reserves room for a graph's tables.
    pub(super) fn take_bytes(&self, n: usize) -> Result<()> {
        let left = self.inner.free_graph_bytes.get().checked_sub(n).ok_or(Error::ContextFull)?;
        self.inner.free_graph_bytes.set(left);
        Ok(())
    }

    /// Tensors that still fit.
    pub(super) fn free_tensors(&self) -> usize {
        self.inner.free_tensors.get()
    }

    pub(super) fn raw(&self) -> *mut sys::ggml_context {
        self.inner.ptr.as_ptr()
    }

    pub(super) fn is(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.inner, &other.inner)
    }

    /// Keeps `other` alive for as long as this context lives.
    pub(super) fn keep<T: 'static>(&self, other: &Rc<T>) {
        let address = Rc::as_ptr(other).cast::<()>();
        let mut keep = self.inner.keep.borrow_mut();
        if !keep.iter().any(|k| Rc::as_ptr(k).cast::<()>() == address) {
            keep.push(other.clone());
        }
    }

    /// Keeps the context of a tensor that this context's tensors point at.
    pub(super) fn keep_context(&self, other: &Self) {
        if !self.is(other) {
            self.keep(&other.inner);
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // A backend compares new graphs with the tensors of those it has not finished. One that fails is told of where
        // its results are read.
        let _ = settle(None);
        // SAFETY: made by `ggml_init`, freed once; every tensor of it holds an `Rc` of this.
        unsafe { sys::ggml_free(self.ptr.as_ptr()) }
    }
}
