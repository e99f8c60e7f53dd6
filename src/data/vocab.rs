//! libllama's vocabulary, as this room sees one.

use super::error::{Error, Result};
use super::tokenizer::Tokenizer;
use crate::llama::{self, Vocab};

fn refused(error: llama::Error) -> Error {
    Error::Tokenizer { reason: error.to_string() }
}

impl Tokenizer for Vocab {
    fn encode(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<i32>> {
        self.tokenize(text, add_special, parse_special).map_err(refused)
    }

    fn piece(&self, token: i32) -> Result<Vec<u8>> {
        self.piece(token).map_err(refused)
    }

    fn bos(&self) -> Option<i32> {
        self.bos()
    }

    fn eos(&self) -> Option<i32> {
        self.eos()
    }

    fn eot(&self) -> Option<i32> {
        self.eot()
    }

    fn add_bos(&self) -> bool {
        self.add_bos()
    }

    fn is_eog(&self, token: i32) -> bool {
        self.is_eog(token)
    }

    fn is_special(&self, token: i32) -> bool {
        self.is_control(token)
    }
}
