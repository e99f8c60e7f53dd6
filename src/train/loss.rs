//! The head and the loss: cross entropy of the next token, over the rows that count.
//!
//! Only hidden states with a target go through the output matrix, in chunks of [`Head::chunk_for`] rows; each chunk gives
//! its losses and its gradient before the next starts, so no `[n_vocab, n_tokens]` tensor is ever made. Which rows those
//! are is uploaded once for all chunks, and all losses are read at the end: the device need not wait in between. The
//! gradient is divided by the number of targets of the whole optimizer step, which the caller knows beforehand: how the
//! step is cut into micro-batches does not change it.

use crate::ggml::{is_exact, Context, Dtype, Executor, Graph, Plan, Tensor};
use crate::model::Net;

use super::batch::Prediction;
use super::error::Result;

/// Bytes that the logits of one chunk may take.
const LOGITS_BYTES: usize = 64 << 20;
/// Rows of a chunk at most: a chunk is computed whole, so the last of a micro-batch wastes half of them on average.
const MOST_ROWS: usize = 256;
/// The same in exact arithmetic, where a sum is made by one invocation from its first term to its last: a product of few rows has too
/// few sums to keep a GPU at work.
const MOST_ROWS_EXACT: usize = 512;
/// Of those of a micro-batch, though, a chunk is a quarter at most.
const CHUNKS_EXACT: usize = 4;
/// Rows that a chunk is a multiple of, for the parts of the inputs to begin where every device can bind them.
const ROWS: usize = 64;

/// The head of a network over the hidden states of one micro-batch; its graphs are `Graph`s until they are planned.
pub struct Head<G = Plan> {
    /// i32 `[n_chunks * chunk]`: rows of the hidden states.
    ids: Tensor,
    /// i32 `[n_chunks * chunk]`: class ids, -1 where a chunk is not full.
    labels: Tensor,
    /// f32 `[n_chunks * chunk]`
    losses: Tensor,
    /// f32 `[1]`: one over the targets of the optimizer step.
    grad: Tensor,
    chunk: usize,
    /// The row after the last token: what a chunk that is not full reads and writes.
    spare: i32,
    /// A graph for each chunk.
    pub forward: Vec<G>,
    /// The same with gradients, in training; else none.
    pub backward: Vec<G>,
    pub device_bytes: usize,
}

impl Head<Graph> {
    /// Rows per chunk for a vocabulary of `n_vocab` and micro-batches of `n_tokens`.
    pub fn chunk_for(n_vocab: usize, n_tokens: usize) -> usize {
        let fits = LOGITS_BYTES / (n_vocab * size_of::<f32>());
        let most = match is_exact() {
            true => (n_tokens / CHUNKS_EXACT / ROWS * ROWS).clamp(MOST_ROWS, MOST_ROWS_EXACT),
            false => MOST_ROWS,
        };
        (fits / ROWS * ROWS).clamp(ROWS, most).min(n_tokens.next_multiple_of(ROWS))
    }

    /// Builds the head's graphs over `hidden` f32 `[n_embd, n_tokens + 1]`; with `dhidden` of the same shape also the
    /// backward, which writes the gradient of each row that has a target.
    pub fn new(net: &Net, hidden: &Tensor, dhidden: Option<&Tensor>, exec: &Executor) -> Result<Self> {
        let n_tokens = hidden.ne()[1] - 1;
        let chunk = Self::chunk_for(net.hp.n_vocab, n_tokens as usize);
        let n_chunks = (n_tokens as usize).div_ceil(chunk);
        let n_rows = (n_chunks * chunk) as i64;
        let state = Context::new(4, 0)?;
        let ids = state.new_tensor("head.ids", Dtype::I32, &[n_rows])?;
        let labels = state.new_tensor("head.labels", Dtype::I32, &[n_rows])?;
        let losses = state.new_tensor("head.losses", Dtype::F32, &[n_rows])?;
        let grad = state.new_tensor("head.grad", Dtype::F32, &[1])?;
        let device_bytes = exec.backend().alloc(&state, "the head's inputs")?;

        let build = |i: usize, dhidden: Option<&Tensor>| -> Result<Graph> {
            let ctx = Context::new(64, 128)?;
            let part = |of: &Tensor| -> Result<Tensor> {
                let part = ctx.new_tensor(&format!("{}.{i}", of.name()), of.dtype(), &[chunk as i64])?;
                part.place_in(of, i * chunk * of.dtype().type_size())?;
                Ok(part)
            };
            let (ids, labels) = (part(&ids)?, part(&labels)?);
            let x = ctx.get_rows(hidden, &ids)?; // [n_embd, chunk]
            let logits = net.head(&ctx, &x)?; // [n_vocab, chunk]
            let nll = ctx.cross_entropy_loss_labels(&logits, &labels, 1.0)?; // [chunk]
            nll.place_in(&losses, i * chunk * size_of::<f32>())?;
            let mut targets = vec![nll];
            if let Some(dhidden) = dhidden {
                let dlogits = ctx.cross_entropy_loss_labels_back(&grad, &logits, &labels, 1.0)?; // [n_vocab, chunk]
                let dx = net.head_back(&ctx, &dlogits, &x)?; // [n_embd, chunk]
                targets.push(ctx.set_rows(dhidden, &dx, &ids)?);
            }
            Ok(Graph::in_order(&ctx, &targets)?)
        };
        // The chunks take the same memory one after the other: to know how much, one is enough.
        let n_chunks = if exec.backend().is_sizing() { 1 } else { n_chunks };
        let forward = (0..n_chunks).map(|i| build(i, None)).collect::<Result<_>>()?;
        let backward = match dhidden {
            Some(_) => (0..n_chunks).map(|i| build(i, dhidden)).collect::<Result<_>>()?,
            None => Vec::new(),
        };
        Ok(Self { ids, labels, losses, grad, chunk, spare: n_tokens as i32, forward, backward, device_bytes })
    }

    /// The same head with its graphs planned by `plan`.
    pub fn planned<E>(self, mut plan: impl FnMut(Graph) -> Result<Plan, E>) -> Result<Head, E> {
        let Self { ids, labels, losses, grad, chunk, spare, forward, backward, device_bytes } = self;
        let mut planned = |graphs: Vec<Graph>| graphs.into_iter().map(&mut plan).collect::<Result<_, E>>();
        let (forward, backward) = (planned(forward)?, planned(backward)?);
        Ok(Head { ids, labels, losses, grad, chunk, spare, forward, backward, device_bytes })
    }
}

impl Head {
    /// Targets that fit at once.
    pub fn capacity(&self) -> usize {
        self.losses.n_elements()
    }

    /// Says which rows count (at most [`Self::capacity`]) and, for the backward, what their losses weigh. Before anything is computed that the device
    /// could still be at: the host waits for it.
    pub fn upload(&self, targets: &[Prediction], weight: f32) -> Result<()> {
        let n = self.capacity();
        let mut ids = vec![self.spare; n];
        let mut labels = vec![-1; n];
        for (i, target) in targets.iter().enumerate() {
            ids[i] = target.at as i32;
            labels[i] = target.label;
        }
        self.ids.upload(&ids)?;
        self.labels.upload(&labels)?;
        Ok(self.grad.upload(&[weight])?)
    }

    /// Computes the losses of the `n` targets uploaded before, of hidden states that have been computed; with `backward`
    /// also the gradient of `weight * their sum` in those.
    pub fn compute(&self, exec: &Executor, n: usize, backward: bool) -> Result<()> {
        let plans = if backward { &self.backward } else { &self.forward };
        Ok(plans[..n.div_ceil(self.chunk)].iter().try_for_each(|plan| exec.compute(plan))?)
    }

    /// The losses of the `n` targets computed last.
    pub fn losses(&self, n: usize) -> Result<Vec<f32>> {
        if n == 0 {
            return Ok(Vec::new());
        }
        let mut losses = self.losses.download::<f32>()?;
        losses.truncate(n);
        Ok(losses)
    }
}
