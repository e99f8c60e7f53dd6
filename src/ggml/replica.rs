//! Operations looked at while a graph is computed, and computed once more on another device.
//!
//! An [`Operation`] is a copy of one node with the bytes of all that it reads, in the same types, shapes, strides and views.
//! What the two devices made of it is then compared by who asked.

use llama_sys as sys;

use super::{Backend, Context, Dtype, Executor, Graph, Result, Tensor};

/// Looks at operations while they are computed, one after another.
pub trait Watch {
    /// What `op` reads is there, its result is not.
    fn before(&self, op: &Tensor) -> Result<()>;
    /// The result is there; what `op` read may be overwritten by it.
    fn after(&self, op: &Tensor) -> Result<()>;
}

/// Shows `watch` a tensor that a graph of libllama's computes, before or after it does.
///
/// # Safety
/// `op` and its sources are live tensors during the call, and none of them is used behind it.
pub(crate) unsafe fn show(op: *mut sys::ggml_tensor, watch: &dyn Watch, computed: bool) -> Result<()> {
    let ctx = Context::new(0, 0)?;
    // SAFETY: the caller keeps the tensor alive while the handle lives.
    let op = unsafe { Tensor::from_raw(op, &ctx) };
    match computed {
        false => watch.before(&op),
        true => watch.after(&op),
    }
}

/// What decides which kernel computes an operation: its name, its parameters, and the layout of its result and of what it
/// reads. Two operations of one signature differ in their numbers alone.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Signature {
    op: String,
    params: Vec<i32>,
    parts: Vec<([i64; 4], [usize; 4], Dtype, usize)>,
}

/// One operation, with copies of what it reads.
pub struct Operation {
    name: String,
    op: sys::ggml_op,
    params: Vec<i32>,
    /// The tensors that memory belongs to.
    roots: Vec<Root>,
    result: Part,
    sources: Vec<Part>,
}

struct Root {
    dtype: Dtype,
    ne: [i64; 4],
    /// Empty for a result that nothing of is read.
    bytes: Vec<u8>,
}

/// A root, or a view of one.
struct Part {
    root: usize,
    dtype: Dtype,
    ne: [i64; 4],
    nb: [usize; 4],
    /// Of a view.
    offset: Option<usize>,
}

impl Signature {
    pub fn of(op: &Tensor) -> Self {
        let part = |t: &Tensor| {
            let root = t.base();
            (t.ne(), t.nb(), t.dtype(), t.get().view_offs.min(root.nbytes()))
        };
        let parts = std::iter::once(op).chain(&op.sources()).map(part).collect();
        Self { op: op.op_name(), params: op.get().op_params.to_vec(), parts }
    }
}

impl Tensor {
    /// Whether its graph computes it: it does not only stand for other memory, and is not of a branch that upstream's
    /// `ggml_build_forward_select` left out.
    pub fn is_computed(&self) -> bool {
        let stands_for_other = matches!(
            self.get().op,
            sys::GGML_OP_NONE
                | sys::GGML_OP_RESHAPE
                | sys::GGML_OP_VIEW
                | sys::GGML_OP_PERMUTE
                | sys::GGML_OP_TRANSPOSE
        );
        !stands_for_other && self.get().flags & sys::GGML_TENSOR_FLAG_COMPUTE as i32 != 0
    }
}

impl Operation {
    /// Copies `op` and what it reads, which has been computed.
    pub fn capture(op: &Tensor) -> Result<Self> {
        let mut operation = Self {
            name: op.name(),
            op: op.get().op,
            params: op.get().op_params.to_vec(),
            roots: Vec::new(),
            result: Part::of(op, 0),
            sources: Vec::new(),
        };
        let mut known: Vec<Tensor> = Vec::new();
        for source in op.sources() {
            let root = operation.root(&source.base(), &mut known)?;
            operation.sources.push(Part::of(&source, root));
        }
        operation.result.root = match operation.result.offset {
            Some(_) => operation.root(&op.base(), &mut known)?,
            None => {
                operation.roots.push(Root { dtype: op.dtype(), ne: op.ne(), bytes: Vec::new() });
                operation.roots.len() - 1
            }
        };
        Ok(operation)
    }

    /// The place of a root among those known, copied if it is new.
    fn root(&mut self, root: &Tensor, known: &mut Vec<Tensor>) -> Result<usize> {
        if let Some(i) = known.iter().position(|k| k.raw() == root.raw()) {
            return Ok(i);
        }
        self.roots.push(Root { dtype: root.dtype(), ne: root.ne(), bytes: root.download_bytes()? });
        known.push(root.clone());
        Ok(known.len() - 1)
    }

    /// What was computed for `op`, with all of the memory that it lies in.
    pub fn result_of(op: &Tensor) -> Result<(Dtype, Vec<u8>)> {
        let root = op.base();
        Ok((root.dtype(), root.download_bytes()?))
    }

    /// Computes it on another device: the bytes of the result's memory, or none if the device cannot.
    pub fn compute_on(&self, backend: &Backend) -> Result<Option<Vec<u8>>> {
        let n = self.roots.len() + self.sources.len() + 2;
        let ctx = Context::new(n, 4 * n + 16)?;
        let roots = self.roots.iter().map(|r| ctx.new_tensor("operand", r.dtype, &r.ne));
        let roots = roots.collect::<Result<Vec<_>>>()?;
        let sources = self.sources.iter().map(|part| match part.offset {
            Some(_) => part.view(&ctx, &roots[part.root]),
            None => Ok(roots[part.root].clone()),
        });
        let sources = sources.collect::<Result<Vec<_>>>()?;
        let result = match self.result.offset {
            Some(_) => self.result.view(&ctx, &roots[self.result.root])?,
            None => roots[self.result.root].clone(),
        };
        let result = result.named(&self.name);
        // SAFETY: live tensors of a context that nothing computes yet. The operation is one that ggml made with sources of
        // these very types, shapes and strides, so what it asserts of them holds.
        unsafe {
            let raw = &mut *result.raw();
            raw.op = self.op;
            raw.op_params.copy_from_slice(&self.params);
            raw.src.fill(std::ptr::null_mut());
            for (to, from) in raw.src.iter_mut().zip(&sources) {
                *to = from.raw();
            }
        }
        backend.alloc(&ctx, "an operation by itself")?;
        for (tensor, root) in roots.iter().zip(&self.roots).filter(|(_, root)| !root.bytes.is_empty()) {
            tensor.upload_bytes(0, &root.bytes)?;
        }
        if !backend.device().supports(&result) {
            return Ok(None);
        }
        let mut graph = Graph::new(&ctx, n, false)?;
        graph.expand(&result)?;
        Executor::new(backend, None).run(graph.raw())?;
        Ok(Some(roots[self.result.root].download_bytes()?))
    }
}

impl Part {
    fn of(t: &Tensor, root: usize) -> Self {
        let is_view = !t.get().view_src.is_null();
        let offset = is_view.then(|| t.get().view_offs);
        Self { root, dtype: t.dtype(), ne: t.ne(), nb: t.nb(), offset }
    }

    /// A view of `root`, of this layout.
    fn view(&self, ctx: &Context, root: &Tensor) -> Result<Tensor> {
        let view = ctx.new_tensor("view", self.dtype, &self.ne)?;
        // SAFETY: a tensor of this context, not yet allocated; the layout is one that lay within a tensor of `root`'s size.
        unsafe {
            let raw = &mut *view.raw();
            raw.nb = self.nb;
            raw.op = sys::GGML_OP_VIEW;
            raw.src[0] = root.raw();
            raw.view_src = root.raw();
            raw.view_offs = self.offset.unwrap_or(0);
        }
        Ok(view)
    }
}
