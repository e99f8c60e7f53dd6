//! A model's tokenizer: text to tokens and back, and the tokens with a meaning of their own.
//!
//! No chat template is rendered here (`data` does, by the template's own Jinja source).

use std::ffi::c_char;

use llama_sys as sys;

use super::ffi::guarded;
use super::{Error, Model, Result, Token};

/// The vocabulary of a model, which it keeps loaded. Tokenizing is thread-safe.
#[derive(Debug, Clone)]
pub struct Vocab {
    model: Model,
    n_tokens: usize,
}

impl Vocab {
    pub(super) fn new(model: Model) -> Result<Self> {
        // SAFETY: the model is alive; its vocabulary is a part of it.
        let (kind, n_tokens) = unsafe {
            let raw = sys::llama_model_get_vocab(model.raw());
            (sys::llama_vocab_type(raw), sys::llama_vocab_n_tokens(raw))
        };
        // libllama aborts the process when asked to tokenize without a tokenizer.
        if kind == sys::LLAMA_VOCAB_TYPE_NONE || n_tokens <= 0 {
            return Err(Error::NoVocab { path: model.path().to_owned() });
        }
        Ok(Self { model, n_tokens: n_tokens as usize })
    }

    /// The model it belongs to.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Number of tokens, `n_vocab`.
    pub fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    /// Turns text into tokens. `add_special` adds BOS and EOS where the model wants them; `parse_special` takes
    /// `<|im_end|>` and the like in the text for the token of that name instead of for its characters.
    pub fn tokenize(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<Token>> {
        let too_long = || Error::TextTooLong { len: text.len(), max: i32::MAX as usize };
        let text_len = i32::try_from(text.len()).map_err(|_| too_long())?;
        // Rarely more tokens than bytes; a second call with the exact number follows if so.
        let mut tokens = vec![0 as Token; text.len() / 2 + 8];
        loop {
            let room = i32::try_from(tokens.len()).map_err(|_| too_long())?;
            let mut n = i32::MIN;
            // SAFETY: text and tokens are passed with their lengths.
            let (status, reason) = guarded(|err, err_size| unsafe {
                sys::qvac_llama_tokenize(
                    self.raw(),
                    text.as_ptr().cast::<c_char>(),
                    text_len,
                    tokens.as_mut_ptr(),
                    room,
                    add_special,
                    parse_special,
                    &mut n,
                    err,
                    err_size,
                )
            });
            if status != sys::QVAC_STATUS_OK {
                return Err(Error::Exception { function: "llama_tokenize", reason: reason.text() });
            }
            match usize::try_from(n) {
                Ok(n) => {
                    tokens.truncate(n);
                    return Ok(tokens);
                }
                Err(_) if n == i32::MIN => return Err(too_long()),
                Err(_) => tokens.resize(n.unsigned_abs() as usize, 0),
            }
        }
    }

    /// The bytes of a token, control tokens as their name (`<|im_end|>`). They need not be whole UTF-8 characters.
    pub fn piece(&self, token: Token) -> Result<Vec<u8>> {
        self.render(token, true)
    }

    /// The bytes of a token as a reader of the text should see it: nothing for a control token.
    pub fn text_piece(&self, token: Token) -> Result<Vec<u8>> {
        self.render(token, false)
    }

    /// The text of some tokens, control tokens left out; bytes that are no UTF-8 become U+FFFD.
    pub fn text(&self, tokens: &[Token]) -> Result<String> {
        let mut bytes = Vec::new();
        for &token in tokens {
            bytes.extend(self.text_piece(token)?);
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn render(&self, token: Token, special: bool) -> Result<Vec<u8>> {
        self.check(token)?;
        let mut piece = vec![0u8; 32];
        loop {
            // SAFETY: the token is in the vocabulary; C writes at most `piece.len()` bytes.
            let n = unsafe {
                sys::llama_token_to_piece(
                    self.raw(),
                    token,
                    piece.as_mut_ptr().cast::<c_char>(),
                    piece.len() as i32,
                    0,
                    special,
                )
            };
            match usize::try_from(n) {
                Ok(n) => {
                    piece.truncate(n);
                    return Ok(piece);
                }
                Err(_) => piece.resize(n.unsigned_abs() as usize, 0),
            }
        }
    }

    /// An error unless the token is one of this vocabulary's.
    pub fn check(&self, token: Token) -> Result<()> {
        match usize::try_from(token) {
            Ok(index) if index < self.n_tokens => Ok(()),
            _ => Err(Error::NoSuchToken { token, n_vocab: self.n_tokens }),
        }
    }

    /// Whether the token ends a generation (end of text, of a turn ...).
    pub fn is_eog(&self, token: Token) -> bool {
        // SAFETY: the vocabulary is alive; the function is false for tokens it does not know.
        self.check(token).is_ok() && unsafe { sys::llama_vocab_is_eog(self.raw(), token) }
    }

    /// Whether the token is a control token, which has no text of its own.
    pub fn is_control(&self, token: Token) -> bool {
        // SAFETY: the token is in the vocabulary.
        self.check(token).is_ok() && unsafe { sys::llama_vocab_is_control(self.raw(), token) }
    }

    /// Beginning of a text.
    pub fn bos(&self) -> Option<Token> {
        // SAFETY: the vocabulary is alive.
        self.known(unsafe { sys::llama_vocab_bos(self.raw()) })
    }

    /// End of a text.
    pub fn eos(&self) -> Option<Token> {
        // SAFETY: the vocabulary is alive.
        self.known(unsafe { sys::llama_vocab_eos(self.raw()) })
    }

    /// End of a turn.
    pub fn eot(&self) -> Option<Token> {
        // SAFETY: the vocabulary is alive.
        self.known(unsafe { sys::llama_vocab_eot(self.raw()) })
    }

    /// Whether the model wants BOS before a text.
    pub fn add_bos(&self) -> bool {
        // SAFETY: the vocabulary is alive.
        unsafe { sys::llama_vocab_get_add_bos(self.raw()) }
    }

    /// Whether the model wants EOS after a text.
    pub fn add_eos(&self) -> bool {
        // SAFETY: the vocabulary is alive.
        unsafe { sys::llama_vocab_get_add_eos(self.raw()) }
    }

    /// The chat template in the model's file, Jinja source.
    pub fn chat_template(&self) -> Option<String> {
        self.model.chat_template(None)
    }

    /// `LLAMA_TOKEN_NULL` says that the model has no such token.
    fn known(&self, token: Token) -> Option<Token> {
        self.check(token).is_ok().then_some(token)
    }

    fn raw(&self) -> *const sys::llama_vocab {
        // SAFETY: the model is alive and outlives the pointer, which is used within one call only.
        unsafe { sys::llama_model_get_vocab(self.model.raw()) }
    }
}
