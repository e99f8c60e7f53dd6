//! Never compiled: this package exists for its `Cargo.lock`.
