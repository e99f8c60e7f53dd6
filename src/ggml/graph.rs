//! A compute graph: which tensors to compute, in which order, and how gradients flow back.

use std::collections::HashSet;
use std::ptr::NonNull;

use llama_sys as sys;

use super::{Context, Error, Result, Tensor};

/// A graph of tensors; lives in its context.
pub struct Graph {
    ptr: NonNull<sys::ggml_cgraph>,
    ctx: Context,
    size: usize,
}

impl Graph {
    /// An empty graph for at most `size` nodes. `grads` makes room for gradients.
    pub fn new(ctx: &Context, size: usize, grads: bool) -> Result<Self> {
        // SAFETY: a pure function.
        let needed = unsafe { sys::ggml_graph_overhead_custom(size, grads) };
        ctx.take_bytes(needed)?;
        // SAFETY: the context has room for a graph of that size.
        let ptr = unsafe { sys::ggml_new_graph_custom(ctx.raw(), size, grads) };
        Ok(Self { ptr: NonNull::new(ptr).ok_or(Error::ContextFull)?, ctx: ctx.clone(), size })
    }

    /// The operations of `ctx` that `targets` need, in the order in which they were made: who builds a graph also says
    /// which independent operations stand together, for a device to run them side by side.
    pub fn in_order(ctx: &Context, targets: &[Tensor]) -> Result<Self> {
        let reach = Reach::from(targets);
        let graph = Self::new(ctx, reach.len(), false)?;
        // SAFETY: walks the live tensors of a live context.
        let mut next = unsafe { sys::ggml_get_first_tensor(ctx.raw()) };
        while !next.is_null() {
            if reach.0.contains(&next) {
                // SAFETY: the tensor is live, and the graph has room for all that is reached.
                unsafe { sys::ggml_build_forward_expand(graph.raw(), next) };
            }
            // SAFETY: as above.
            next = unsafe { sys::ggml_get_next_tensor(ctx.raw(), next) };
        }
        Ok(graph)
    }

    pub(super) fn raw(&self) -> *mut sys::ggml_cgraph {
        self.ptr.as_ptr()
    }

    /// Adds `tensor` and everything it needs.
    pub fn expand(&mut self, tensor: &Tensor) -> Result<()> {
        self.ctx.keep_context(tensor.context());
        let new = Reach::from(std::slice::from_ref(tensor)).len();
        if self.n_nodes() + new > self.size {
            return Err(Error::ContextFull);
        }
        // SAFETY: the tensor is live and the graph has room for all it reaches.
        unsafe { sys::ggml_build_forward_expand(self.raw(), tensor.raw()) };
        Ok(())
    }

    /// Adds the gradients of every parameter in the graph, going back from its loss tensor.
    ///
    /// `accs` gives the tensor into which the gradient of a parameter (or of the loss, as its seed) is added up;
    /// the gradient of a parameter without one is a new tensor, see [`Self::grad`].
    pub fn backward_expand(&mut self, accs: &[(&Tensor, &Tensor)]) -> Result<()> {
        let nodes = self.nodes();
        let flagged = |flag: sys::ggml_tensor_flag| nodes.iter().any(|n| n.get().flags & flag as i32 != 0);
        for (flag, what) in
            [(sys::GGML_TENSOR_FLAG_PARAM, "a parameter"), (sys::GGML_TENSOR_FLAG_LOSS, "a loss")]
        {
            if !flagged(flag) {
                return Err(Error::Graph { expected: what });
            }
        }
        // Each node's backward rule makes a handful of tensors; 8 is more than any rule used here.
        if self.ctx.free_tensors() < nodes.len() * 8 {
            return Err(Error::ContextFull);
        }
        let mut table = vec![std::ptr::null_mut(); nodes.len()];
        for (tensor, acc) in accs {
            if tensor.ne() != acc.ne() {
                return Err(acc.shape_error("backward_expand", &tensor.describe(), &acc.describe()));
            }
            self.ctx.keep_context(acc.context());
            if let Some(i) = nodes.iter().position(|n| n.raw() == tensor.raw()) {
                table[i] = acc.raw();
            }
        }
        let before = self.n_nodes();
        // SAFETY: the graph has a parameter and a loss, the table is as long as the graph, there is room.
        unsafe { sys::ggml_build_backward_expand(self.ctx.raw(), self.raw(), table.as_mut_ptr()) };
        self.ctx.take((self.n_nodes() - before).min(self.ctx.free_tensors()))
    }

    /// The gradient of `tensor` after [`Self::backward_expand`], if it has one.
    pub fn grad(&self, tensor: &Tensor) -> Option<Tensor> {
        // SAFETY: looks up a table of a live graph.
        let grad = unsafe { sys::ggml_graph_get_grad(self.raw(), tensor.raw()) };
        // SAFETY: gradients are made in the graph's context, or are accumulators that it keeps alive.
        (!grad.is_null()).then(|| unsafe { Tensor::from_raw(grad, &self.ctx) })
    }

    /// A new graph of those nodes of this one that `targets` need, in the same order.
    pub fn pruned(&self, targets: &[Tensor]) -> Result<Self> {
        let reach = Reach::from(targets);
        let mut graph = Self::new(&self.ctx, self.size, false)?;
        for node in self.nodes().iter().chain(targets) {
            if reach.contains(node) {
                graph.expand(node)?;
            }
        }
        Ok(graph)
    }

    /// Where `tensor` stands in the order of computation.
    pub fn position(&self, tensor: &Tensor) -> Option<usize> {
        self.nodes().iter().position(|n| n.raw() == tensor.raw())
    }

    /// The most nodes it can hold.
    pub(super) fn capacity(&self) -> usize {
        self.size
    }

    /// Number of operations.
    pub fn n_nodes(&self) -> usize {
        // SAFETY: reads a field of a live graph.
        unsafe { sys::ggml_graph_n_nodes(self.raw()) as usize }
    }

    /// The tensors to compute, in order.
    pub fn nodes(&self) -> Vec<Tensor> {
        (0..self.n_nodes())
            // SAFETY: the index is in range; the graph's context keeps its nodes alive.
            .map(|i| unsafe { Tensor::from_raw(sys::ggml_graph_node(self.raw(), i as i32), &self.ctx) })
            .collect()
    }
}

/// The tensors that others are computed from, themselves included.
struct Reach(HashSet<*mut sys::ggml_tensor>);

impl Reach {
    fn from(targets: &[Tensor]) -> Self {
        let mut seen = HashSet::new();
        let mut todo: Vec<_> = targets.iter().map(Tensor::raw).collect();
        while let Some(t) = todo.pop() {
            if !t.is_null() && seen.insert(t) {
                // SAFETY: every tensor reached from a live one is kept alive by its context.
                let t = unsafe { &*t };
                todo.extend_from_slice(&t.src);
                todo.push(t.view_src);
            }
        }
        Self(seen)
    }

    fn contains(&self, tensor: &Tensor) -> bool {
        self.0.contains(&tensor.raw())
    }

    fn len(&self) -> usize {
        self.0.len()
    }
}
