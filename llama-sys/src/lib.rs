//! Declarations of the C API of ggml, gguf and llama, as bound by `build.rs`.
