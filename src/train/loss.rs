//! The head and the loss: cross entropy of the next token, over the rows that count.
//!
//! Only hidden states with a target go through the output matrix, in chunks of [`Head::chunk`] rows; each chunk gives
//! its losses and its gradient before the next starts, so no `[n_vocab, n_tokens]` tensor is ever made. The gradient is
//! divided by the number of targets of the whole optimizer step, which the caller knows beforehand: how the step is
//! cut into micro-batches does not change it.

use crate::ggml::{Context, Dtype, Executor, Graph, Plan, Tensor};
use crate::model::Net;

use super::batch::Prediction;
use super::error::Result;

/// Bytes that the logits of one chunk may take.
const LOGITS_BYTES: usize = 64 << 20;
/// Rows of a chunk at most: a chunk is computed whole, so the last of a micro-batch wastes half of them on average.
const MOST_ROWS: usize = 256;

/// The head of a network over the hidden states of one micro-batch; its graphs are `Graph`s until they are planned.
pub struct Head<G = Plan> {
    /// i32 `[chunk]`: rows of the hidden states.
    ids: Tensor,
    /// i32 `[chunk]`: class ids, -1 where a chunk is not full.
    labels: Tensor,
    /// f32 `[chunk]`
    losses: Tensor,
    /// f32 `[1]`: one over the targets of the optimizer step.
    grad: Tensor,
    chunk: usize,
    /// The row after the last token: what a chunk that is not full reads and writes.
    spare: i32,
    pub forward: G,
    pub backward: Option<G>,
    pub device_bytes: usize,
}

impl Head<Graph> {
    /// Rows per chunk for a vocabulary of `n_vocab` and micro-batches of `n_tokens`.
    pub fn chunk_for(n_vocab: usize, n_tokens: usize) -> usize {
        let fits = LOGITS_BYTES / (n_vocab * size_of::<f32>());
        (fits / 16 * 16).clamp(16, MOST_ROWS).min(n_tokens.next_multiple_of(16))
    }

    /// Builds the head's graphs over `hidden` f32 `[n_embd, n_tokens + 1]`; with `dhidden` of the same shape also the
    /// backward, which writes the gradient of each row that has a target.
    pub fn new(net: &Net, hidden: &Tensor, dhidden: Option<&Tensor>, exec: &Executor) -> Result<Self> {
        let n_tokens = hidden.ne()[1] - 1;
        let chunk = Self::chunk_for(net.hp.n_vocab, n_tokens as usize);
        let state = Context::new(4, 0)?;
        let ids = state.new_tensor("head.ids", Dtype::I32, &[chunk as i64])?;
        let labels = state.new_tensor("head.labels", Dtype::I32, &[chunk as i64])?;
        let losses = state.new_tensor("head.losses", Dtype::F32, &[chunk as i64])?;
        let grad = state.new_tensor("head.grad", Dtype::F32, &[1])?;
        let device_bytes = exec.backend().alloc(&state, "the head's inputs")?;

        let ctx = Context::new(64, 256)?;
        let build = |dhidden: Option<&Tensor>| -> Result<Graph> {
            let mut graph = Graph::new(&ctx, 64, false)?;
            let x = ctx.get_rows(hidden, &ids)?; // [n_embd, chunk]
            let logits = net.head(&ctx, &x)?; // [n_vocab, chunk]
            let nll = ctx.cross_entropy_loss_labels(&logits, &labels, 1.0)?; // [chunk]
            graph.expand(&ctx.cpy(&nll, &losses)?)?;
            if let Some(dhidden) = dhidden {
                let dlogits = ctx.cross_entropy_loss_labels_back(&grad, &logits, &labels, 1.0)?; // [n_vocab, chunk]
                let dx = net.head_back(&ctx, &dlogits, &x)?; // [n_embd, chunk]
                graph.expand(&ctx.set_rows(dhidden, &dx, &ids)?)?;
            }
            Ok(graph)
        };
        let forward = build(None)?;
        let backward = dhidden.map(|d| build(Some(d))).transpose()?;
        Ok(Self { ids, labels, losses, grad, chunk, spare: n_tokens as i32, forward, backward, device_bytes })
    }

    /// The same head with its graphs planned by `plan`.
    pub fn planned<E>(self, mut plan: impl FnMut(Graph) -> Result<Plan, E>) -> Result<Head, E> {
        let Self { ids, labels, losses, grad, chunk, spare, forward, backward, device_bytes } = self;
        let (forward, backward) = (plan(forward)?, backward.map(plan).transpose()?);
        Ok(Head { ids, labels, losses, grad, chunk, spare, forward, backward, device_bytes })
    }
}

impl Head {
    /// The loss of every target. Their hidden states have been computed.
    pub fn losses(&self, exec: &Executor, targets: &[Prediction]) -> Result<Vec<f32>> {
        self.run(exec, &self.forward, targets)
    }

    /// As [`Self::losses`]; also writes the gradient of `weight * sum of losses` in the hidden states.
    pub fn losses_and_grad(&self, exec: &Executor, targets: &[Prediction], weight: f32) -> Result<Vec<f32>> {
        let backward = self.backward.as_ref().expect("a head built for training has a backward");
        self.grad.upload(&[weight])?;
        self.run(exec, backward, targets)
    }

    fn run(&self, exec: &Executor, plan: &Plan, targets: &[Prediction]) -> Result<Vec<f32>> {
        let mut losses = Vec::with_capacity(targets.len());
        for chunk in targets.chunks(self.chunk) {
            let mut ids = vec![self.spare; self.chunk];
            let mut labels = vec![-1; self.chunk];
            for (i, target) in chunk.iter().enumerate() {
                ids[i] = target.at as i32;
                labels[i] = target.label;
            }
            self.ids.upload(&ids)?;
            self.labels.upload(&labels)?;
            exec.compute(plan)?;
            losses.extend_from_slice(&self.losses.download::<f32>()?[..chunk.len()]);
        }
        Ok(losses)
    }
}
