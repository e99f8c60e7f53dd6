//! What training will take, before anything is loaded: memory to the byte, and time from a short calibration.
//!
//! There are no formulas here. Memory is asked of the engine itself, put together on a backend that gives out addresses
//! instead of memory; time is that of the real engine on the first layers of the model.
//!
//! ```text
//! fit        memory of a setting, the largest micro-batch that fits, and what would fit where nothing does
//! calibrate  what a whole model takes, from one of a few layers; or from the whole
//! pace       seconds of an engine's steps, and of an epoch
//! weights    what a few layers are filled with
//! ```
//! It never prints and never chooses a model or a device.

mod calibrate;
mod fit;
mod pace;
mod weights;

pub use calibrate::{calibrate, measure, Calibration, Whole};
pub use fit::{free_bytes, Fit, Planner, Request, Room};
pub use pace::{Pace, Times};
