//! libllama's vocabulary, as this room sees one.

use super::error::Result;
use super::tokenizer::Tokenizer;
use crate::llama::Vocab;

impl Tokenizer for Vocab {
    fn encode(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<i32>> {
        Ok(self.tokenize(text, add_special, parse_special)?)
    }

    fn piece(&self, token: i32) -> Result<Vec<u8>> {
        Ok(self.piece(token)?)
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
