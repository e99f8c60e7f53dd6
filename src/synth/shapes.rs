//! The shapes that can be made: those of the BitNet family, small ones for tests, and some to compare with.

use super::Family;

/// Sizes of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    pub name: &'static str,
    /// Whose shape it is; a model of another family can have it too.
    pub family: Family,
    pub n_embd: usize,
    pub n_layer: usize,
    pub n_head: usize,
    pub n_head_kv: usize,
    /// Values of a head.
    pub n_embd_head: usize,
    pub n_ff: usize,
    pub n_vocab: usize,
}

const fn shape(name: &'static str, sizes: [usize; 4], n_vocab: usize) -> Shape {
    let [n_embd, n_layer, n_head, n_ff] = sizes;
    b158(name, [n_embd, n_layer, n_head, n_head, n_ff], n_vocab).of(Family::Bitnet)
}

/// Of `bitnet-b1.58`, with grouped queries.
const fn b158(name: &'static str, sizes: [usize; 5], n_vocab: usize) -> Shape {
    let [n_embd, n_layer, n_head, n_head_kv, n_ff] = sizes;
    let (family, n_embd_head) = (Family::BitnetB158, n_embd / n_head);
    Shape { name, family, n_embd, n_layer, n_head, n_head_kv, n_embd_head, n_ff, n_vocab }
}

/// Of `llama`, with grouped queries, heads of their own size and a tied head: for memory and speed beside models of other
/// architectures.
const fn llama(name: &'static str, sizes: [usize; 6], n_vocab: usize) -> Shape {
    let [n_embd, n_layer, n_head, n_head_kv, n_embd_head, n_ff] = sizes;
    let family = Family::Llama;
    Shape { name, family, n_embd, n_layer, n_head, n_head_kv, n_embd_head, n_ff, n_vocab }
}

impl Shape {
    const fn of(self, family: Family) -> Self {
        Self { family, ..self }
    }

    /// Values of all heads.
    pub const fn n_embd_q(&self) -> usize {
        self.n_embd_head * self.n_head
    }
}

/// Every shape, the smallest first.
pub const SHAPES: &[Shape] = &[
    shape("bitnet-nano", [256, 2, 4, 768], 512),
    shape("bitnet-tiny", [512, 4, 8, 1536], 32000),
    b158("bitnet-b1.58-tiny", [512, 4, 8, 2, 1536], 32000),
    shape("bitnet-125m", [768, 12, 12, 2048], 32000),
    shape("bitnet-0.7b", [1536, 24, 16, 4096], 32000),
    shape("bitnet-1b", [2048, 24, 32, 5632], 32000),
    b158("bitnet-b1.58-2b-4t", [2560, 30, 20, 5, 6912], 128256),
    shape("bitnet-2.7b", [2560, 30, 20, 6912], 32000),
    shape("bitnet-7b", [4096, 32, 32, 11008], 32000),
    shape("bitnet-13b", [5120, 40, 40, 13824], 32000),
    // Matrices and caches of the real ones' sizes; Gemma has more norms and Qwen norms of heads.
    llama("gemma-3-1b-like", [1152, 26, 4, 1, 256, 6912], 262144),
    llama("gemma-3-4b-like", [2560, 34, 8, 4, 256, 10240], 262144),
    llama("qwen3-1.7b-like", [2048, 28, 16, 8, 128, 6144], 151936),
    llama("qwen3-4b-like", [2560, 36, 32, 8, 128, 9728], 151936),
];

/// The shape of that name, with or without `bitnet-`.
pub fn find(name: &str) -> Option<&'static Shape> {
    SHAPES.iter().find(|s| s.name == name || s.name.strip_prefix("bitnet-") == Some(name))
}
