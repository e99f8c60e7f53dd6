//! The linear layers of a block with their adapters, forward and backward, by group: the layers that read one activation
//! share its quantization, and their adapters' As are one matrix.
//!
//! Ternary weights are multiplied in integers (`tq_*`), others by upstream's `mul_mat` and by `out_prod`.
//! Operations that do not depend on each other are made next to each other, for the device to run them side by side, and a
//! quantization behind what makes its operand, for the device to do both in one pass.

use crate::ggml::{Context, Tensor, TERNARY_SUM_STEP};

use super::block::Net;
use super::error::Result;
use super::lora::{Group, Param};
use super::spec::Target;
use super::weights::Linear;

/// What a group's backward needs of its forward.
pub(super) struct Saved {
    il: usize,
    group: usize,
    /// What the layers read, `[n_in, n_tokens]`.
    x: Tensor,
    /// `A x` of all adapters of the group, `[n_adapters * rank, n_tokens]`.
    ax: Option<Tensor>,
}

impl Net<'_> {
    /// The results of the layers of group `group` of block `il` for `x` `[n_in, n_tokens]`: `[n_out, n_tokens]` each.
    /// `residual` is added to each of them.
    pub(super) fn linears(
        &self,
        ctx: &Context,
        il: usize,
        group: usize,
        x: &Tensor,
        residual: Option<&Tensor>,
    ) -> Result<(Vec<Tensor>, Saved)> {
        let lora = self.lora.and_then(|l| Some((l.group(il, group)?, l.scale())));
        let layers = self.layers_of(il, group);
        let xq = match layers.iter().any(|(_, l)| l.weight.dtype().is_ternary()) {
            true => Some(ctx.tq_quantize(x, 1)?), // [n_in + 16, n_tokens]
            false => None,
        };
        let ax = match lora {
            Some((adapters, _)) => Some(ctx.low_rank_project(&adapters.a.value, x, 1.0)?), // [n_adapters * rank, n_tokens]
            None => None,
        };
        // The residual is added with the adapter's product where nothing comes behind that.
        let update = |y: Tensor, target: Target, layer: &Linear| -> Result<(Tensor, Option<&Tensor>)> {
            let (Some((adapters, scale)), Some(ax)) = (lora, &ax) else { return Ok((y, residual)) };
            let Some((i, b)) = member(adapters, target) else { return Ok((y, residual)) };
            let last = layer.bias.is_none() && !self.scaled_late(target, layer);
            let bt = ctx.transpose(&b.value)?; // [n_out, rank]
            let z = rows_of(ctx, ax, i, b.value.ne()[0])?; // [rank, n_tokens]
            let y = ctx.low_rank_add(&y, &bt, &z, residual.filter(|_| last), scale)?; // [n_out, n_tokens]
            Ok((y, residual.filter(|_| !last)))
        };
        // An update that stands right behind a ternary product is part of it where the device can do that.
        let at_once = |target: Target, layer: &Linear| {
            layer.weight.dtype().is_ternary() && (layer.scale.is_none() || self.scaled_late(target, layer))
        };
        let products = layers.iter().map(|&(target, layer)| {
            let y = match &xq {
                Some(xq) if layer.weight.dtype().is_ternary() => ctx.tq_mul_mat(&layer.weight, xq)?,
                _ => ctx.mul_mat(&layer.weight, x)?,
            };
            let y = y.named(&format!("{}-{il}", target.name())); // [n_out, n_tokens]
            match at_once(target, layer) {
                true => update(y, target, layer),
                false => Ok((y, residual)),
            }
        });
        let products = products.collect::<Result<Vec<_>>>()?;
        let results = layers.iter().zip(products).map(|(&(target, layer), (mut y, mut rest))| {
            let late = self.scaled_late(target, layer);
            if let Some(scale) = layer.scale.as_ref().filter(|_| !late) {
                y = ctx.mul(&y, scale)?; // [n_out, n_tokens]
            }
            if !at_once(target, layer) {
                (y, rest) = update(y, target, layer)?;
            }
            if let Some(bias) = &layer.bias {
                y = ctx.add(&y, bias)?; // [n_out, n_tokens]
            }
            // A scale that covers the adapter covers the bias too.
            if let Some(scale) = layer.scale.as_ref().filter(|_| late) {
                y = ctx.mul(&y, scale)?; // [n_out, n_tokens]
            }
            match rest {
                Some(rest) => Ok(ctx.add(&y, rest)?), // [n_out, n_tokens]
                None => Ok(y),
            }
        });
        let ys = results.collect::<Result<Vec<_>>>()?;
        Ok((ys, Saved { il, group, x: x.clone(), ax }))
    }

    /// The gradient in what the layers of a group read, from those of their results; adds to the adapters' gradients, and
    /// appends what computes those to `gradients`. Without `needs_dx` there is no need of the first.
    pub(super) fn linears_back(
        &self,
        ctx: &Context,
        saved: &Saved,
        dys: &[&Tensor],
        needs_dx: bool,
        gradients: &mut Vec<Tensor>,
    ) -> Result<Option<Tensor>> {
        let &Saved { il, group, .. } = saved;
        let layers = self.layers_of(il, group);
        let scaled = |dy: &Tensor, layer: &Linear, when: bool| -> Result<Tensor> {
            match layer.scale.as_ref().filter(|_| when) {
                Some(scale) => Ok(ctx.mul(dy, scale)?), // as dy
                None => Ok(dy.clone()),
            }
        };
        // The gradients of `W x * scale + B A x` or of `(W x + B A x) * scale`, and of `W x` alone.
        let mut dys: Vec<Tensor> = dys.iter().map(|&dy| dy.clone()).collect();
        for ((target, layer), dy) in layers.iter().zip(&mut dys) {
            *dy = scaled(dy, layer, self.arch.scale_covers_adapter(*target))?;
        }
        let lora = self.lora.and_then(|l| Some((l.group(il, group)?, l.scale())));
        let own = layers
            .iter()
            .zip(&dys)
            .map(|((target, layer), dy)| scaled(dy, layer, !self.arch.scale_covers_adapter(*target)));
        let operands = match needs_dx {
            true => Some(self.operands_back(ctx, &layers, own.collect::<Result<_>>()?)?),
            false => None,
        };
        let dz = match lora {
            Some((adapters, scale)) => Some(self.projected(ctx, adapters, scale, &layers, &dys)?), // [n_adapters * rank, n_tokens]
            None => None,
        };
        let mut dx = match operands {
            Some(operands) => Some(self.products_back(ctx, &layers, &operands)?), // [n_in, n_tokens]
            None => None,
        };
        let (Some((adapters, scale)), Some(ax), Some(dz)) = (lora, &saved.ax, dz) else { return Ok(dx) };
        if let Some(dx) = &mut dx {
            *dx = ctx.low_rank_add(dx, &adapters.a.value, &dz, None, 1.0)?; // [n_in, n_tokens]
        }
        if let Some(grad) = &adapters.a.grad {
            gradients.push(ctx.low_rank_grad(grad, &saved.x, &dz, 1.0)?); // [n_in, n_adapters * rank]
        }
        for ((target, _), dy) in layers.iter().zip(&dys) {
            let Some((i, b)) = member(adapters, *target) else { continue };
            let Some(grad) = &b.grad else { continue };
            let z = rows_of(ctx, ax, i, grad.ne()[0])?; // [rank, n_tokens]
            let db = ctx.low_rank_grad(&ctx.transpose(grad)?, dy, &z, scale)?; // [n_out, rank]
            gradients.push(db);
        }
        Ok(dx)
    }

    /// Whether a layer's scale covers the product of its adapter.
    fn scaled_late(&self, target: Target, layer: &Linear) -> bool {
        layer.scale.is_some() && self.arch.scale_covers_adapter(target)
    }

    fn layers_of(&self, il: usize, group: usize) -> Vec<(Target, &Linear)> {
        Target::GROUPS[group].iter().map(|&t| (t, self.weights.layers[il].linear(t))).collect()
    }

    /// `scale * B^T dy` of each adapted layer of a group, below each other.
    fn projected(
        &self,
        ctx: &Context,
        adapters: &Group,
        scale: f32,
        layers: &[(Target, &Linear)],
        dys: &[Tensor],
    ) -> Result<Tensor> {
        let adapted = layers.iter().zip(dys).filter_map(|((t, _), dy)| Some((member(adapters, *t)?.1, dy)));
        let dzs = adapted.map(|(b, dy)| Ok(ctx.low_rank_project(&ctx.transpose(&b.value)?, dy, scale)?)); // [rank, n_tokens]
        let dzs = dzs.collect::<Result<Vec<_>>>()?;
        let (first, others) = dzs.split_first().expect("a group has an adapter at least");
        others.iter().try_fold(first.clone(), |dz, other| Ok(ctx.concat_rows(&dz, other)?))
    }

    /// What `W^T dy` is made of: a gradient of a layer's result, quantized where the product is exact.
    fn operands_back(
        &self,
        ctx: &Context,
        layers: &[(Target, &Linear)],
        dys: Vec<Tensor>,
    ) -> Result<Vec<Operand>> {
        let exact = |layer: &Linear| {
            let [_, n_out, ..] = layer.weight.ne();
            layer.weight.dtype().is_ternary() && n_out % TERNARY_SUM_STEP == 0
        };
        let operands = layers.iter().zip(dys).map(|((_, layer), dy)| match exact(layer) {
            true => Ok(Operand::Quantized(ctx.tq_quantize(&dy, self.backward_limbs)?)), // [limbs * n_out + 16, n_tokens]
            false => Ok(Operand::Floats(dy)),                                           // [n_out, n_tokens]
        });
        operands.collect()
    }

    /// The sum of `W^T dy` over layers that read the same.
    fn products_back(&self, ctx: &Context, layers: &[(Target, &Linear)], dys: &[Operand]) -> Result<Tensor> {
        // A ternary product adds what comes before it by itself.
        let mut sum = None;
        for ((_, layer), dy) in layers.iter().zip(dys) {
            sum = Some(match (dy, sum) {
                (Operand::Quantized(q), sum) => ctx.tq_mul_mat_back(&layer.weight, q, sum.as_ref())?, // [n_in, n_tokens]
                (Operand::Floats(dy), sum) => {
                    let product = ctx.out_prod(&layer.weight, &ctx.transpose(dy)?)?; // [n_in, n_tokens]
                    match sum {
                        Some(sum) => ctx.add(&sum, &product)?, // [n_in, n_tokens]
                        None => product,
                    }
                }
            });
        }
        Ok(sum.expect("a group has a layer at least"))
    }
}

/// A gradient as `W^T dy` takes it.
enum Operand {
    Quantized(Tensor),
    Floats(Tensor),
}

/// The place of a layer among a group's adapters, and its B.
fn member(adapters: &Group, target: Target) -> Option<(usize, &Param)> {
    let found = adapters.b.iter().enumerate().find(|(_, (t, _))| *t == target);
    found.map(|(i, (_, b))| (i, b))
}

/// The part of `A x` that belongs to the `i`th adapter of a group.
fn rows_of(ctx: &Context, ax: &Tensor, i: usize, rank: i64) -> Result<Tensor> {
    Ok(ctx.view_rows(ax, i as i64 * rank, rank)?)
}
