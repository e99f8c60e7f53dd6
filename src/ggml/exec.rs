//! Runs graphs on a device: checks that it can, gives their tensors memory, computes.
//!
//! Graphs that never need each other's insides share an [`Arena`], whose one buffer is as large as the hungriest of
//! them. An operation that the device lacks is an error, unless the executor was told to compute it on the CPU; then
//! upstream's scheduler splits each graph between the two, and each graph has memory of its own.
//!
//! Computing a graph means submitting it. The host goes on at once, and waits where it reads a tensor (see `stream`).

use std::cell::{Cell, RefCell};
use std::ptr::NonNull;
use std::rc::Rc;

use llama_sys as sys;

use super::stream::settle;
use super::{ffi, Backend, Error, Graph, Result, Watch};

/// Runs graphs on one device.
pub struct Executor {
    backend: Backend,
    /// The CPU, if it may compute what the device cannot.
    fallback: Option<Backend>,
    arenas: RefCell<Vec<Rc<Allocator>>>,
    schedulers: Cell<usize>,
    watch: Option<Rc<dyn Watch>>,
}

impl Executor {
    /// An executor on `backend`; with `fallback`, a CPU's, for what `backend`'s device cannot compute.
    pub fn new(backend: &Backend, fallback: Option<&Backend>) -> Self {
        let (backend, fallback) = (backend.clone(), fallback.cloned());
        Self { backend, fallback, arenas: RefCell::default(), schedulers: Cell::new(0), watch: None }
    }

    /// The same, computing one operation after another, each shown to `watch` before and after. Graphs that are split
    /// between two devices are not shown.
    pub fn watched(self, watch: Rc<dyn Watch>) -> Self {
        Self { watch: Some(watch), ..self }
    }

    pub fn backend(&self) -> &Backend {
        &self.backend
    }

    /// Bytes of device memory that this executor's graphs use for intermediate results.
    pub fn compute_bytes(&self) -> usize {
        // SAFETY: live allocators with one buffer each.
        let arenas = self
            .arenas
            .borrow()
            .iter()
            .map(|a| unsafe { sys::ggml_gallocr_get_buffer_size(a.ptr.as_ptr(), 0) }.max(a.sized.get()))
            .sum::<usize>();
        arenas + self.schedulers.get()
    }

    /// Memory for graphs to share.
    pub fn arena(&self) -> Result<Arena<'_>> {
        let allocator = Rc::new(self.allocator()?);
        self.arenas.borrow_mut().push(allocator.clone());
        Ok(Arena { exec: self, allocator, reserved: 0, placed: false })
    }

    fn allocator(&self) -> Result<Allocator> {
        let buft = self.backend.buffer_type();
        // SAFETY: a live buffer type.
        let ptr = ffi::pointer(|err, size| unsafe { sys::qvac_gallocr_new(buft, err, size) })
            .map_err(|f| self.out_of_memory(f.reason, 0))?;
        Ok(Allocator { ptr, sized: Cell::new(0), _backend: self.backend.clone() })
    }

    /// Places `graphs` into one arena.
    pub fn plan(&self, graphs: Vec<Graph>) -> Result<Vec<Plan>> {
        let mut arena = self.arena()?;
        graphs.iter().try_for_each(|g| arena.reserve(g).map(drop))?;
        graphs.into_iter().map(|g| arena.place(g)).collect()
    }

    /// Submits all of a graph, behind what was submitted before. Returns before it is computed, and a failure may show
    /// only where a result is read; a graph that is split between two devices is waited for.
    pub fn compute(&self, plan: &Plan) -> Result<()> {
        match &plan.memory {
            Memory::Arena(_) if self.watch.is_some() => self.compute_part(plan, 0, plan.graph.n_nodes()),
            Memory::Arena(_) => self.run(plan.graph.raw()),
            Memory::Scheduler(s) => {
                // The scheduler copies between the devices and knows only of what it submitted itself.
                settle(None)?;
                self.checked(|err, size| {
                    // SAFETY: the scheduler has allocated this very graph.
                    unsafe { sys::qvac_sched_graph_compute(s.ptr.as_ptr(), plan.graph.raw(), err, size) }
                })
            }
        }
    }

    /// Submits the first `n` nodes.
    pub fn compute_to(&self, plan: &Plan, n: usize) -> Result<()> {
        self.compute_part(plan, 0, n)
    }

    /// Submits all nodes from the `n`th on.
    pub fn compute_from(&self, plan: &Plan, n: usize) -> Result<()> {
        self.compute_part(plan, n, plan.graph.n_nodes())
    }

    fn compute_part(&self, plan: &Plan, start: usize, end: usize) -> Result<()> {
        if matches!(plan.memory, Memory::Scheduler(_)) {
            return Err(Error::SplitGraph);
        }
        if let Some(watch) = &self.watch {
            return plan.graph.nodes()[start..end].iter().zip(start..).try_for_each(|(op, i)| {
                watch.before(op)?;
                self.run(plan.part(i, i + 1)?)?;
                watch.after(op)
            });
        }
        let view = plan.part(start, end)?;
        self.run(view)
    }

    pub(super) fn run(&self, graph: *mut sys::ggml_cgraph) -> Result<()> {
        if self.backend.is_sizing() {
            return Err(Error::Graph { expected: "memory to compute in" });
        }
        self.backend.submits()?;
        // SAFETY: a live graph whose tensors have memory that this backend can use. Graph, tensors and memory stay until
        // it is computed: what frees them waits.
        self.checked(|err, size| unsafe {
            sys::qvac_graph_compute_async(self.backend.raw(), graph, err, size)
        })
    }

    fn checked(&self, f: impl FnOnce(*mut std::ffi::c_char, usize) -> sys::qvac_status) -> Result<()> {
        ffi::status(f).map_err(|failure| match failure.out_of_memory {
            true => self.out_of_memory("a graph's values".into(), self.compute_bytes()),
            false => Error::Compute { device: self.backend.device().name().into(), reason: failure.reason },
        })
    }

    fn out_of_memory(&self, what: String, bytes: usize) -> Error {
        Error::OutOfDeviceMemory { device: self.backend.device().name().into(), what, bytes }
    }

    /// Every operation of `graph` can run on the device, or the first that cannot is named.
    fn check(&self, graph: &Graph) -> Result<()> {
        let device = self.backend.device();
        for node in graph.nodes() {
            if !device.supports(&node) {
                return Err(Error::Unsupported {
                    tensor: node.name(),
                    op: node.op_name(),
                    operands: node.sources().iter().map(|s| s.describe()).collect::<Vec<_>>().join(", "),
                    device: device.name().into(),
                    exact: super::is_exact(),
                });
            }
        }
        Ok(())
    }
}

/// Memory that graphs share: reserve for all of them, then place each.
pub struct Arena<'e> {
    exec: &'e Executor,
    allocator: Rc<Allocator>,
    reserved: usize,
    placed: bool,
}

impl Arena<'_> {
    /// Makes the buffer large enough for `graph`, and says how large that is by itself (0 where a graph gets memory of its
    /// own). All reservations come before the first placement, which fixes the buffer.
    pub fn reserve(&mut self, graph: &Graph) -> Result<usize> {
        if self.placed {
            return Err(Error::Graph { expected: "all reservations before the first placement" });
        }
        self.reserved += 1;
        if self.exec.fallback.is_some() {
            return Ok(0);
        }
        self.exec.check(graph)?;
        let bytes = self.exec.allocator()?.bytes_with(graph);
        if self.exec.backend.is_sizing() {
            self.allocator.sized.set(self.allocator.bytes_with(graph));
            return Ok(bytes);
        }
        let reserved = self.exec.checked(|err, size| {
            // SAFETY: a live allocator and a live graph.
            unsafe { sys::qvac_gallocr_reserve(self.allocator.ptr.as_ptr(), graph.raw(), err, size) }
        });
        match reserved {
            Err(Error::OutOfDeviceMemory { what, .. }) => Err(self.exec.out_of_memory(what, bytes)),
            result => result.map(|()| bytes),
        }
    }

    /// Gives the tensors of a graph that was reserved for their places.
    pub fn place(&mut self, graph: Graph) -> Result<Plan> {
        self.placed = true;
        if self.reserved == 0 {
            return Err(Error::Graph { expected: "a reservation for each placement" });
        }
        self.reserved -= 1;
        let memory = match &self.exec.fallback {
            Some(cpu) => Memory::Scheduler(self.schedule(&graph, cpu)?),
            None if self.exec.backend.is_sizing() => Memory::Arena(self.allocator.clone()),
            None => {
                self.exec.checked(|err, size| {
                    // SAFETY: a live allocator, and a graph for which its buffer is large enough.
                    unsafe {
                        sys::qvac_gallocr_alloc_graph(self.allocator.ptr.as_ptr(), graph.raw(), err, size)
                    }
                })?;
                Memory::Arena(self.allocator.clone())
            }
        };
        Ok(Plan { parts: RefCell::default(), graph, memory })
    }

    fn schedule(&self, graph: &Graph, cpu: &Backend) -> Result<Scheduler> {
        let mut backends = [self.exec.backend.raw(), cpu.raw()];
        let size = graph.capacity();
        let ptr = ffi::pointer(|err, err_size| {
            // SAFETY: two live backends; default buffer types.
            unsafe {
                sys::qvac_sched_new(
                    backends.as_mut_ptr(),
                    std::ptr::null_mut(),
                    2,
                    size,
                    false,
                    false,
                    err,
                    err_size,
                )
            }
        })
        .map_err(|f| self.exec.out_of_memory(f.reason, 0))?;
        let scheduler = Scheduler { ptr, _backends: [self.exec.backend.clone(), cpu.clone()] };
        self.exec.checked(|err, size| {
            // SAFETY: a live scheduler and a live graph no larger than it was made for.
            unsafe { sys::qvac_sched_alloc_graph(ptr.as_ptr(), graph.raw(), err, size) }
        })?;
        // SAFETY: a live scheduler and one of its backends.
        let bytes = unsafe { sys::ggml_backend_sched_get_buffer_size(ptr.as_ptr(), self.exec.backend.raw()) };
        self.exec.schedulers.set(self.exec.schedulers.get() + bytes);
        Ok(scheduler)
    }
}

/// A graph whose tensors have their places.
pub struct Plan {
    /// Ranges of nodes that were computed by themselves; kept, because a backend may look at a graph until it is done.
    parts: RefCell<Vec<Part>>,
    graph: Graph,
    memory: Memory,
}

impl Plan {
    /// The nodes `[start, end)` as a graph that lives as long as the plan.
    fn part(&self, start: usize, end: usize) -> Result<*mut sys::ggml_cgraph> {
        let mut parts = self.parts.borrow_mut();
        if let Some(part) = parts.iter().find(|p| p.range == (start, end)) {
            return Ok(part.ptr.as_ptr());
        }
        // SAFETY: a live graph; the shim checks the range and returns null when it is not within the graph.
        let ptr = unsafe { sys::qvac_graph_view(self.graph.raw(), start as i32, end as i32) };
        let ptr = NonNull::new(ptr).ok_or(Error::Graph { expected: "nodes in that range" })?;
        parts.push(Part { range: (start, end), ptr });
        Ok(ptr.as_ptr())
    }
}

struct Part {
    range: (usize, usize),
    ptr: NonNull<sys::ggml_cgraph>,
}

impl Drop for Part {
    fn drop(&mut self) {
        // A device that fails is told of where its results are read.
        let _ = settle(None);
        // SAFETY: made by `qvac_graph_view`, freed once, before its graph, when nothing computes it any more.
        unsafe { sys::qvac_graph_view_free(self.ptr.as_ptr()) }
    }
}

enum Memory {
    /// Held so that the buffer outlives the graph.
    Arena(#[allow(dead_code)] Rc<Allocator>),
    Scheduler(Scheduler),
}

struct Allocator {
    ptr: NonNull<sys::ggml_gallocr>,
    /// Bytes that it would have, where none are allocated.
    sized: Cell<usize>,
    _backend: Backend,
}

impl Allocator {
    /// The bytes that suffice for `graph` and for all that were asked for before it. Allocates nothing; a buffer that is too
    /// small is given back.
    fn bytes_with(&self, graph: &Graph) -> usize {
        let mut bytes = 0;
        // SAFETY: a live allocator of one buffer, whose size is written, and a live graph.
        unsafe {
            sys::ggml_gallocr_reserve_n_size(
                self.ptr.as_ptr(),
                graph.raw(),
                std::ptr::null(),
                std::ptr::null(),
                &mut bytes,
            );
        }
        bytes
    }
}

impl Drop for Allocator {
    fn drop(&mut self) {
        // A device that fails is told of where its results are read.
        let _ = settle(None);
        // SAFETY: made by `qvac_gallocr_new`, freed once, after the last plan that lies in it.
        unsafe { sys::ggml_gallocr_free(self.ptr.as_ptr()) }
    }
}

struct Scheduler {
    ptr: NonNull<sys::ggml_backend_sched>,
    _backends: [Backend; 2],
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        // SAFETY: made by `qvac_sched_new`, freed once, before its backends.
        unsafe { sys::ggml_backend_sched_free(self.ptr.as_ptr()) }
    }
}
