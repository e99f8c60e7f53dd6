//! The tokens of one decode: each with its place, its sequence, and whether its logits are wanted.

use llama_sys as sys;

use super::{Pos, Token};

/// Tokens to decode together. Filled, decoded, cleared and filled again without new allocations.
#[derive(Debug, Default, Clone)]
pub struct Batch {
    pub(super) token: Vec<Token>,
    pub(super) pos: Vec<Pos>,
    pub(super) seq: Vec<i32>,
    pub(super) logits: Vec<i8>,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a token; its row is the number of tokens before it.
    pub fn push(&mut self, token: Token, pos: Pos, seq: i32, logits: bool) {
        self.token.push(token);
        self.pos.push(pos);
        self.seq.push(seq);
        self.logits.push(i8::from(logits));
    }

    /// Adds tokens of one sequence from `pos` on, all or none of them with logits.
    pub fn extend(&mut self, tokens: &[Token], pos: Pos, seq: i32, logits: bool) {
        for (place, &token) in (pos..).zip(tokens) {
            self.push(token, place, seq, logits);
        }
    }

    /// Number of tokens in it.
    pub fn len(&self) -> usize {
        self.token.len()
    }

    /// Whether there is no token in it.
    pub fn is_empty(&self) -> bool {
        self.token.is_empty()
    }

    /// Takes all tokens out.
    pub fn clear(&mut self) {
        self.token.clear();
        self.pos.clear();
        self.seq.clear();
        self.logits.clear();
    }

    /// Calls `decode` with the batch as C wants it. The pointers live during the call only; C reads through them.
    pub(super) fn with_raw<R>(&mut self, decode: impl FnOnce(sys::llama_batch) -> R) -> R {
        let mut n_seq_id = vec![1i32; self.len()];
        let mut seq_id: Vec<*mut i32> = self.seq.iter_mut().map(std::ptr::from_mut).collect();
        decode(sys::llama_batch {
            n_tokens: self.token.len() as i32,
            token: self.token.as_mut_ptr(),
            embd: std::ptr::null_mut(),
            pos: self.pos.as_mut_ptr(),
            n_seq_id: n_seq_id.as_mut_ptr(),
            seq_id: seq_id.as_mut_ptr(),
            logits: self.logits.as_mut_ptr(),
        })
    }
}
