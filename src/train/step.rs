//! The engine: a network on a device that gives losses, accumulates gradients and applies them.
//!
//! One block is one graph. The forward keeps only each block's input; the backward goes through the blocks in
//! reverse, computes a block again from its input and goes back through it with the gradient that came from the block
//! after it. All blocks share one compute buffer. With [`Recompute::Off`] each block has a buffer of its own and keeps
//! what its backward needs.
//!
//! Nothing is allocated and no graph is built after [`Engine::new`].

use crate::ggml::{self, Context, Dtype, Executor, Graph, Plan, Tensor};
use crate::model::{Lora, LoraConfig, Model, Net, Place};

use super::batch::{MicroBatch, Prediction};
use super::error::{Error, Result};
use super::loss::Head;
use super::memory::Memory;
use super::optimizer::{AdamW, Optimizer};

/// Tokens over which an exact gradient is added up before it joins the others: rows are whole segments, so that it does not
/// matter how they are spread over micro-batches.
pub const EXACT_SEGMENT: usize = 32;

/// Whether rows of `seq_len` tokens can be trained on in exact arithmetic.
pub fn check_exact(seq_len: usize) -> Result<()> {
    match seq_len % EXACT_SEGMENT {
        0 => Ok(()),
        _ => Err(Error::ExactRow { seq_len }),
    }
}

/// Whether the backward computes a block's forward again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Recompute {
    /// Yes: memory for one block, whatever the depth.
    On,
    /// No: a quarter less work, memory for all blocks.
    Off,
}

/// The shape and the parts of an engine.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    pub seq_len: usize,
    /// Rows per micro-batch.
    pub n_rows: usize,
    /// The adapter, if there is to be one.
    pub lora: Option<LoraConfig>,
    /// How to train it; without, the engine only evaluates.
    pub training: Option<TrainingConfig>,
}

/// How an engine trains.
#[derive(Clone, Debug)]
pub struct TrainingConfig {
    pub recompute: Recompute,
    pub adamw: AdamW,
    /// 8-bit integers that a gradient is cut into before a ternary weight multiplies it: 2 or 1.
    pub backward_limbs: i64,
}

/// A network on a device, for micro-batches of one shape.
pub struct Engine {
    exec: Executor,
    lora: Option<Lora>,
    optimizer: Option<Optimizer>,
    config: EngineConfig,
    inputs: Inputs,
    /// The gradient of the hidden states after the block that the backward has reached.
    dhidden: Option<Tensor>,
    embed: Plan,
    blocks: Vec<Block>,
    head: Head,
    memory: Memory,
}

struct Inputs {
    tokens: Tensor,
    pos: Tensor,
    segments: Tensor,
}

/// The graphs of one block.
enum Block<G = Plan> {
    Forward(G),
    Recompute { forward: G, backward: G },
    Keep { graph: G, n_forward: usize },
}

impl Engine {
    /// Puts the graphs for `model` together and allocates all that they need.
    pub fn new(model: &Model, exec: Executor, config: EngineConfig) -> Result<Self> {
        let backend = exec.backend().clone();
        let train = config.training.is_some();
        if train && ggml::is_exact() {
            check_exact(config.seq_len)?;
        }
        let lora = match &config.lora {
            Some(lora) => Some(Lora::new(lora, &model.weights, &backend, train)?),
            None => None,
        };
        let backward_limbs = config.training.as_ref().map_or(2, |t| t.backward_limbs);
        let net = Net {
            arch: model.arch,
            hp: &model.hp,
            weights: &model.weights,
            lora: lora.as_ref(),
            backward_limbs,
        };

        let state = Context::new(model.hp.n_layer + 8, 0)?;
        let (inputs, hidden, dhidden) = state_tensors(&state, &net, &config)?;
        let boundaries = backend.alloc(&state, "the hidden states")?;
        // The spare row is read by chunks of the head that are not full: it has to be finite.
        hidden.iter().chain(&dhidden).try_for_each(Tensor::zero)?;

        let builder = Builder::new(&net, &inputs, &hidden, dhidden.as_ref())?;
        let embed = builder.embed()?;
        let recompute = config.training.as_ref().map(|t| t.recompute);
        let blocks =
            (0..net.hp.n_layer).map(|il| builder.block(il, recompute)).collect::<Result<Vec<_>>>()?;
        let last = &hidden[hidden.len() - 1];
        let head = Head::new(&net, last, dhidden.as_ref(), &exec)?;
        let mut inputs_bytes = head.device_bytes;

        let placed = Placed::new(&exec, embed, blocks, head)?;
        let optimizer = match (&config.training, &lora) {
            (Some(training), Some(lora)) => Some(Optimizer::new(training.adamw.clone(), lora, &exec)?),
            _ => None,
        };
        inputs_bytes += optimizer.as_ref().map_or(0, |o| o.device_bytes);
        let Placed { embed, blocks, head, needs } = placed;
        // Values, gradients and both moments are four buffers of one size.
        let lora_bytes = lora.as_ref().map_or(0, |l| l.device_bytes);
        let adapter = if train { lora_bytes / 4 } else { lora_bytes };
        let memory = Memory {
            weights: model.weights.device_bytes,
            adapter,
            gradients_and_moments: lora_bytes - adapter,
            boundaries,
            inputs: inputs_bytes,
            compute: exec.compute_bytes(),
            ..needs
        };
        Ok(Self { exec, lora, optimizer, config, inputs, dhidden, embed, blocks, head, memory })
    }

    /// The shape and the parts.
    pub fn config(&self) -> &EngineConfig {
        &self.config
    }

    /// The adapter.
    pub fn lora(&self) -> Option<&Lora> {
        self.lora.as_ref()
    }

    /// Bytes allocated on the device, the weights' among them.
    pub fn device_bytes(&self) -> usize {
        self.memory.total()
    }

    /// What they hold.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// The loss of each of `targets` over the tokens of `batch`.
    pub fn losses(&self, batch: &MicroBatch, targets: &[Prediction]) -> Result<Vec<f32>> {
        self.forward(batch)?;
        let mut losses = Vec::with_capacity(targets.len());
        // There may be more targets than tokens: several labels after one.
        for targets in targets.chunks(self.head.capacity()) {
            self.head.upload(targets, 0.0)?;
            self.head.compute(&self.exec, targets.len(), false)?;
            losses.extend(self.head.losses(targets.len())?);
        }
        Ok(losses)
    }

    /// Sets all gradients to zero: a new optimizer step begins.
    pub fn zero_grad(&self) -> Result<()> {
        let training = self.lora.as_ref().and_then(|l| l.training.as_ref());
        Ok(training.ok_or(Error::NotTraining)?.grad.zero()?)
    }

    /// The loss of each target of `batch`; adds the gradient of `weight * their sum` to the adapter's gradients.
    pub fn accumulate(&self, batch: &MicroBatch, weight: f32) -> Result<Vec<f32>> {
        let dhidden = self.dhidden.as_ref().ok_or(Error::NotTraining)?;
        // All that the host writes comes first: it waits for the device before it touches a tensor, and from here to the
        // losses it need not.
        dhidden.zero()?;
        self.head.upload(&batch.targets, weight)?;
        self.forward(batch)?;
        self.head.compute(&self.exec, batch.targets.len(), true)?;
        for block in self.blocks.iter().rev() {
            match block {
                Block::Forward(_) => return Err(Error::NotTraining),
                Block::Recompute { backward, .. } => self.exec.compute(backward)?,
                Block::Keep { graph, n_forward } => self.exec.compute_from(graph, *n_forward)?,
            }
        }
        self.head.losses(batch.targets.len())
    }

    /// Applies the accumulated gradients as optimizer step `step` (counted from 0); gives their norm before clipping.
    pub fn apply(&self, step: u64, lr: f64) -> Result<f64> {
        let optimizer = self.optimizer.as_ref().ok_or(Error::NotTraining)?;
        let norm = optimizer.grad_norm(&self.exec)?;
        if norm.is_finite() {
            optimizer.apply(&self.exec, step, lr, norm)?;
        }
        Ok(norm)
    }

    fn forward(&self, batch: &MicroBatch) -> Result<()> {
        self.inputs.tokens.upload(&batch.tokens)?;
        self.inputs.pos.upload(&batch.positions)?;
        self.inputs.segments.upload(&batch.segments)?;
        self.exec.compute(&self.embed)?;
        for block in &self.blocks {
            match block {
                Block::Forward(forward) | Block::Recompute { forward, .. } => self.exec.compute(forward)?,
                Block::Keep { graph, n_forward } => self.exec.compute_to(graph, *n_forward)?,
            }
        }
        Ok(())
    }
}

/// The tensors that live as long as the engine: inputs, the hidden states at the block boundaries (with one spare row
/// at the end), and their gradient. An engine that only evaluates needs two boundaries, whatever the depth.
fn state_tensors(
    state: &Context,
    net: &Net,
    config: &EngineConfig,
) -> Result<(Inputs, Vec<Tensor>, Option<Tensor>)> {
    let n_tokens = (config.seq_len * config.n_rows) as i64;
    let inputs = Inputs {
        tokens: state.new_tensor("tokens", Dtype::I32, &[n_tokens])?,
        pos: state.new_tensor("positions", Dtype::I32, &[n_tokens])?,
        segments: state.new_tensor("segments", Dtype::I32, &[2, n_tokens])?,
    };
    let wide = [net.hp.n_embd as i64, n_tokens + 1];
    let train = config.training.is_some();
    let n_boundaries = net.hp.n_layer + 1;
    let n_made = if train { n_boundaries } else { 2.min(n_boundaries) };
    let made = (0..n_made)
        .map(|i| Ok(state.new_tensor(&format!("hidden-{i}"), Dtype::F32, &wide)?))
        .collect::<Result<Vec<Tensor>>>()?;
    let hidden = (0..n_boundaries).map(|i| made[i % n_made].clone()).collect();
    let dhidden = match train {
        true => Some(state.new_tensor("hidden.grad", Dtype::F32, &wide)?),
        false => None,
    };
    Ok((inputs, hidden, dhidden))
}

/// Builds the graphs of the embedding and the blocks.
struct Builder<'a> {
    net: &'a Net<'a>,
    inputs: &'a Inputs,
    /// Boundaries without the spare row: f32 `[n_embd, n_tokens]`.
    hidden: Vec<Tensor>,
    dhidden: Option<Tensor>,
}

/// Room for one block, forward and backward.
const BLOCK_TENSORS: usize = 512;
/// Tables of its graphs: one forward, and one forward and backward.
const BLOCK_NODES: usize = 4 * BLOCK_TENSORS;

impl<'a> Builder<'a> {
    fn new(
        net: &'a Net<'a>,
        inputs: &'a Inputs,
        hidden: &[Tensor],
        dhidden: Option<&Tensor>,
    ) -> Result<Self> {
        let ctx = Context::new(hidden.len() + 4, 0)?;
        let [n_embd, n_spare, ..] = hidden[0].ne();
        let without_spare = |t: &Tensor| -> Result<Tensor> {
            let placed = ctx.new_tensor(&t.name(), Dtype::F32, &[n_embd, n_spare - 1])?;
            placed.place_in(t, 0)?;
            Ok(placed)
        };
        let dhidden = dhidden.map(without_spare).transpose()?;
        let hidden = hidden.iter().map(without_spare).collect::<Result<_>>()?;
        Ok(Self { net, inputs, hidden, dhidden })
    }

    fn embed(&self) -> Result<Graph> {
        let ctx = Context::new(4, 64)?;
        let x = ctx.get_rows(&self.net.weights.tok_embd, &self.inputs.tokens)?; // [n_embd, n_tokens]
        x.place_in(&self.hidden[0], 0)?;
        Ok(Graph::in_order(&ctx, &[x])?)
    }

    fn block(&self, il: usize, recompute: Option<Recompute>) -> Result<Block<Graph>> {
        Ok(match recompute {
            None => Block::Forward(self.forward(il)?),
            Some(Recompute::On) => {
                Block::Recompute { forward: self.forward(il)?, backward: self.whole(il, false)?.0 }
            }
            Some(Recompute::Off) => {
                let (graph, stored) = self.whole(il, true)?;
                let n_forward = graph.position(&stored).expect("the result is computed") + 1;
                Block::Keep { graph, n_forward }
            }
        })
    }

    fn place(&self) -> Place<'_> {
        Place { pos: &self.inputs.pos, segments: &self.inputs.segments }
    }

    /// A block's forward, whose result is the next block's input.
    fn forward(&self, il: usize) -> Result<Graph> {
        let ctx = Context::new(BLOCK_TENSORS, BLOCK_NODES)?;
        let y = self.net.block(&ctx, il, &self.hidden[il], &self.place())?.y; // [n_embd, n_tokens]
        y.base().place_in(&self.hidden[il + 1], 0)?;
        Ok(Graph::in_order(&ctx, &[y])?)
    }

    /// Forward and backward of a block: the gradients of its adapters and the one of its input, written over the one of
    /// its result. With `keep` the forward goes to its end, its result; without, as far as the backward needs it.
    fn whole(&self, il: usize, keep: bool) -> Result<(Graph, Tensor)> {
        let dhidden = self.dhidden.as_ref().ok_or(Error::NotTraining)?;
        let ctx = Context::new(BLOCK_TENSORS, BLOCK_NODES)?;
        let forward = self.net.block(&ctx, il, &self.hidden[il], &self.place())?;
        if keep {
            forward.y.base().place_in(&self.hidden[il + 1], 0)?;
        }
        // Nothing before the first block is trained.
        let (dx, mut targets) = self.net.block_back(&ctx, il, &forward, dhidden, &self.place(), il > 0)?;
        if let Some(dx) = dx {
            dx.place_in(dhidden, 0)?;
            targets.push(dx);
        }
        if keep {
            targets.push(forward.y.clone());
        }
        Ok((Graph::in_order(&ctx, &targets)?, forward.y))
    }
}

/// The graphs of an engine, placed in memory.
struct Placed {
    embed: Plan,
    blocks: Vec<Block>,
    head: Head,
    /// What a block and the head need; the rest is zero.
    needs: Memory,
}

impl Placed {
    /// All graphs share one buffer, but for those that must keep their insides from forward to backward.
    fn new(exec: &Executor, embed: Graph, blocks: Vec<Block<Graph>>, head: Head<Graph>) -> Result<Self> {
        let mut shared = exec.arena()?;
        let mut needs = Memory::default();
        shared.reserve(&embed)?;
        for graph in head.forward.iter().chain(&head.backward) {
            needs.head = needs.head.max(shared.reserve(graph)?);
        }
        for block in &blocks {
            match block {
                Block::Forward(forward) => needs.note_block(forward, shared.reserve(forward)?),
                Block::Recompute { forward, backward } => {
                    needs.note_block(forward, shared.reserve(forward)?);
                    needs.note_block(backward, shared.reserve(backward)?);
                }
                Block::Keep { .. } => {}
            }
        }
        let embed = shared.place(embed)?;
        let blocks = blocks
            .into_iter()
            .map(|block| {
                Ok(match block {
                    Block::Forward(forward) => Block::Forward(shared.place(forward)?),
                    Block::Recompute { forward, backward } => Block::Recompute {
                        forward: shared.place(forward)?,
                        backward: shared.place(backward)?,
                    },
                    Block::Keep { graph, n_forward } => {
                        let mut own = exec.arena()?;
                        needs.note_block(&graph, own.reserve(&graph)?);
                        Block::Keep { graph: own.place(graph)?, n_forward }
                    }
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let head = head.planned(|g| shared.place(g))?;
        Ok(Self { embed, blocks, head, needs })
    }
}
