//! The training engine and the loop around it.
//!
//! ```text
//! config      what a run is, as its folder stores it
//! batch       packed rows -> tokens, positions, bounds of samples, targets
//! step        the engine: one block is one graph; forward, backward, update
//! loss        the head in chunks, and the cross entropy
//! memory      what the engine's device memory holds
//! optimizer   AdamW and the gradient norm over the flat adapter
//! schedule    the learning rate
//! trainer     epochs, steps, evaluation, checkpoints
//! eval        loss, perplexity and accuracy over a data set
//! checkpoint  a run's state on disk, written atomically
//! metrics     one JSON line a step
//! tensorboard the same as TensorBoard's event files
//! ```
//! It never prints: what a user sees goes through [`Observer`].

mod batch;
mod checkpoint;
mod config;
mod error;
mod eval;
mod loss;
mod memory;
mod metrics;
mod optimizer;
mod schedule;
mod step;
mod tensorboard;
mod trainer;

pub use batch::{MicroBatch, Prediction};
pub use checkpoint::{latest as latest_checkpoint, Checkpoint, Cursor};
pub use config::{data_hash, model_hash, Build, How, RunConfig};
pub use error::{Error, Result};
pub use eval::{evaluate, Accuracy, Evaluation};
pub use memory::Memory;
pub use metrics::{EvalRecord, StepRecord};
pub use optimizer::AdamW;
pub use schedule::{Decay, Schedule};
pub use step::{check_exact, Engine, EngineConfig, Recompute, TrainingConfig};
pub use trainer::{steps_in, Observer, Report, Stop, Trainer, Watch};
