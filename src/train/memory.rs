//! Where an engine's memory goes.
//!
//! The figures are those of the allocations themselves, or, on a [`Backend::sizing`](crate::ggml::Backend::sizing), what
//! they would be: the same engine is put together in both cases.

use serde::Serialize;

use crate::ggml::Graph;

/// Bytes of device memory, by what they hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// The frozen weights.
    pub weights: usize,
    /// The adapter's values.
    pub adapter: usize,
    /// Their gradients and AdamW's two moments.
    pub gradients_and_moments: usize,
    /// The tokens, the hidden states between the blocks and the gradient of one of them.
    pub boundaries: usize,
    /// Which rows the head reads, and their losses; the optimizer's scalars.
    pub inputs: usize,
    /// The buffers that the graphs compute in: one that all share, and with recompute off one for each block.
    pub compute: usize,
    /// Of `compute`, what the hungriest block needs.
    pub block: usize,
    /// Of `compute`, what the head needs.
    pub head: usize,
    /// Of `block`, the results of attention: keys, values and scores are never held together.
    pub attention: usize,
}

impl Memory {
    /// All of it, each byte once.
    pub fn total(&self) -> usize {
        self.weights
            + self.adapter
            + self.gradients_and_moments
            + self.boundaries
            + self.inputs
            + self.compute
    }

    /// Notes a block's graph that takes `bytes`.
    pub(super) fn note_block(&mut self, graph: &Graph, bytes: usize) {
        if bytes <= self.block {
            return;
        }
        self.block = bytes;
        let nodes = graph.nodes();
        let attends = nodes.iter().filter(|n| n.op_name().to_lowercase().contains("attention"));
        self.attention = attends.map(|n| n.nbytes()).sum();
    }
}
