//! Exact arithmetic (docs/exactness.md), op by op: the same bits on the CPU with 1 and 2 threads and on Vulkan (a GPU where
//! there is one, else lavapipe).

mod bits;
mod definition;
#[path = "../common/device.rs"]
mod device;
mod low_rank;
mod products;

use std::sync::Mutex;

/// ggml-vulkan sets a device up when it is first used, and two threads that do so at once find it half made.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
