"""Trains the student on the teacher's chats and logits, ternary from the first step on (quantization-aware training).

usage: train.py --teacher FILE.gguf --rows rows.npz --out DIR [--minutes 5] [--lr 3e-3] [--seed 1]

The number of steps is set after the first ones, from how long they took and from `--minutes`; `--steps` sets it
outright, which repeats a run. The learning rate goes linearly to zero; weight decay ends half-way, as BitNet's does
(its masters only say how sure a ternary value is). Loss: the teacher's sharpened distribution where its tokens are the
student's, and the text itself everywhere.
Writes metrics.jsonl, student.pt (to go on with `--resume`, or for `export.py`).
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

import compute
import student as bitnet
import teacher as smollm

WARMUP = 200
BETAS, DECAY, CLIP = (0.9, 0.95), 0.1, 1.0
# Steps that are not timed (compilation), and those that are.
UNTIMED, TIMED = 5, 15
# Weight of the teacher's distribution; the rest is the text's.
DISTILLATION = 0.7
# The chats were sampled colder than 1 as well.
TEACHER_TEMPERATURE = 0.7
# Positions whose logits are there at a time.
CHUNK = 16384


class Batch:
    """Rows on the device. chat: which chat of its row a token belongs to, 255 for none."""

    def __init__(self, tokens, chat, shared, dtype):
        self.tokens = tokens.long()
        n_ctx = tokens.shape[1]
        place = torch.arange(n_ctx, device=tokens.device)
        starts = F.pad(chat[:, 1:] != chat[:, :-1], (1, 0), value=True)
        self.positions = place - torch.where(starts, place, 0).cummax(1).values
        seen = (chat[:, :, None] == chat[:, None, :]) & (place[:, None] >= place)
        self.bias = torch.zeros(seen.shape, dtype=dtype, device=tokens.device).masked_fill_(~seen, -torch.inf)[:, None]
        self.targets = F.pad(self.tokens[:, 1:], (0, 1))
        trained = (chat[:, 1:] == chat[:, :-1]) & (chat[:, 1:] != 255)
        self.trained = F.pad(trained, (0, 1)).float()
        # Where the next token is a piece of one of the teacher's, the teacher was asked something else.
        self.distilled = self.trained * F.pad(shared[:, 1:], (0, 1)).float()


def chunk_loss(hidden, head, teacher_hidden, teacher_head, targets, trained, distilled):
    """Sums over positions: what is minimised, the text's, the teacher's. hidden: [n, n_embd]"""
    log_p = F.log_softmax(F.linear(hidden, head).float(), -1)
    text = -log_p.gather(1, targets[:, None])[:, 0]
    log_t = F.log_softmax(F.linear(teacher_hidden, teacher_head).float() / TEACHER_TEMPERATURE, -1)
    distance = (log_t.exp() * (log_t - log_p)).sum(-1)
    weighed = (trained - DISTILLATION * distilled) * text + DISTILLATION * distilled * distance
    return torch.stack((weighed.sum(), (trained * text).sum(), (distilled * distance).sum()))


class Run:
    def __init__(self, args, device):
        self.args, self.device = args, device
        self.dtype = compute.dtype(device)
        data = np.load(args.rows)
        put = lambda name: torch.from_numpy(data[name].astype(np.int32) if name == "tokens" else data[name]).to(device)
        arrays = [put(name) for name in ("tokens", "chat", "shared")]
        self.held_out = [a[: args.eval_rows] for a in arrays]
        self.rows = [a[args.eval_rows :] for a in arrays]
        shape = bitnet.Shape(n_vocab=args.n_vocab, n_layer=args.n_layer)
        self.student = bitnet.Student(shape).to(device)
        self.teacher = smollm.Teacher(args.teacher, args.n_vocab, arrays[0].shape[1], self.dtype, device)
        self.chunk_loss = chunk_loss
        if args.compile:
            for block in self.student.blocks:
                block.compile()
            self.teacher.row_block = torch.compile(smollm.row_block)
            self.chunk_loss = torch.compile(chunk_loss)
        matrices = [p for p in self.student.parameters() if p.ndim == 2]
        others = [p for p in self.student.parameters() if p.ndim != 2]
        groups = [{"params": matrices, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=BETAS, fused=device == "cuda")
        self.n_steps, self.step, self.epoch, self.at = args.steps, 0, -1, 0
        self.order = None

    def batch(self, arrays, which):
        return Batch(*(a[which] for a in arrays), self.dtype)

    def next_batch(self):
        n = self.args.batch_rows
        if self.order is None or self.at + n > len(self.order):
            self.epoch, self.at = self.epoch + 1, 0
            generator = torch.Generator().manual_seed(self.args.seed + 1000 * self.epoch)
            self.order = torch.randperm(len(self.rows[0]), generator=generator).to(self.device)
        which = self.order[self.at : self.at + n]
        self.at += n
        return self.batch(self.rows, which)

    def losses(self, batch):
        with torch.no_grad():
            taught = self.teacher.hidden(batch.tokens, batch.positions, batch.bias).flatten(0, 1)
        hidden = self.student(batch.tokens, batch.positions, batch.bias, self.dtype).flatten(0, 1)
        head = self.student.embedding.to(self.dtype)
        flat = [t.flatten() for t in (batch.targets, batch.trained, batch.distilled)]
        total = 0
        for at in range(0, len(hidden), CHUNK):
            here = slice(at, at + CHUNK)
            total = total + checkpoint(
                self.chunk_loss,
                hidden[here],
                head,
                taught[here],
                self.teacher.token_embd,
                *(t[here] for t in flat),
                use_reentrant=False,
            )
        return total, batch.trained.sum(), batch.distilled.sum()

    def lr(self):
        warm = min(1.0, (self.step + 1) / WARMUP)
        return self.args.lr * warm * (1 - self.step / self.n_steps if self.n_steps else 1.0)

    def train_step(self):
        total, n, n_distilled = self.losses(self.next_batch())
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr()
        if self.n_steps and self.step == self.n_steps // 2:
            self.optimizer.param_groups[0]["weight_decay"] = 0.0
        self.optimizer.zero_grad(set_to_none=True)
        (total[0] / n).backward()
        norm = torch.nn.utils.clip_grad_norm_(self.student.parameters(), CLIP)
        self.optimizer.step()
        self.step += 1
        return total.detach(), n, n_distilled, norm

    @torch.no_grad()
    def evaluate(self):
        sums = torch.zeros(5, device=self.device)
        n = self.args.batch_rows
        for at in range(0, len(self.held_out[0]) // n * n, n):
            total, trained, distilled = self.losses(self.batch(self.held_out, slice(at, at + n)))
            sums += torch.cat((total, torch.stack((trained, distilled))))
        _, text, distance, trained, distilled = sums.tolist()
        return {"eval_text": text / max(trained, 1), "eval_teacher": distance / max(distilled, 1)}

    def save(self, path):
        state = {
            "model": self.student.state_dict(),
            "shape": self.student.shape.config(),
            "step": self.step,
            "n_steps": self.n_steps,
            "epoch": self.epoch,
            "at": self.at,
            "order": self.order,
        }
        if self.args.keep_optimizer:
            state["optimizer"] = self.optimizer.state_dict()
        torch.save(state, path.with_suffix(".part"))
        path.with_suffix(".part").rename(path)

    def resume(self, path):
        state = torch.load(path, map_location=self.device)
        self.student.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.n_steps, self.epoch, self.at, self.order = (
            state[k] for k in ("step", "n_steps", "epoch", "at", "order")
        )

    def train(self):
        """Until the steps are done, or time is up where they were set by hand; True if they are done."""
        args, out = self.args, Path(self.args.out)
        limit = time.monotonic() + 60 * args.minutes
        began, tokens, counted = time.monotonic(), 0, self.step
        with open(out / "metrics.jsonl", "a") as log:
            while self.n_steps is None or self.step < self.n_steps:
                if time.monotonic() > limit:
                    break
                total, n, n_distilled, norm = self.train_step()
                tokens += args.batch_rows * self.rows[0].shape[1]
                if self.step == counted + UNTIMED or self.n_steps is None and self.step == counted + UNTIMED + TIMED:
                    if self.device == "cuda":
                        torch.cuda.synchronize()
                    now = time.monotonic()
                    if self.step == counted + UNTIMED:
                        warm, warm_tokens = now, tokens
                    if self.n_steps is None and self.step == counted + UNTIMED + TIMED:
                        pace = (now - warm) / TIMED
                        # A little is kept for evaluations and for what slows down.
                        self.n_steps = self.step + max(1, int(0.97 * (limit - now) / pace))
                if self.step % args.log_every == 0 or self.step == self.n_steps:
                    seconds = time.monotonic() - began
                    line = {
                        "step": self.step,
                        "of": self.n_steps,
                        "loss": (total[0] / n).item(),
                        "text": (total[1] / n).item(),
                        "teacher": (total[2] / n_distilled).item(),
                        "lr": self.optimizer.param_groups[0]["lr"],
                        "grad_norm": norm.item(),
                        "epoch": self.epoch,
                        "seconds": round(seconds, 2),
                    }
                    if self.step > counted + UNTIMED:
                        line["tokens_per_second"] = round((tokens - warm_tokens) / (time.monotonic() - warm))
                    if self.step % args.eval_every == 0 or self.step == self.n_steps:
                        line |= self.evaluate()
                    print(json.dumps(line), file=log, flush=True)
                    print(json.dumps(line), flush=True)
                if self.step % args.eval_every == 0:
                    self.save(out / "student.pt")
        self.save(out / "student.pt")
        return self.step == self.n_steps


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--rows", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--batch-rows", type=int, default=64)
    parser.add_argument("--eval-rows", type=int, default=512)
    parser.add_argument("--eval-every", type=int, default=1000)
    parser.add_argument("--log-every", type=int, default=50)
    parser.add_argument("--n-vocab", type=int, default=16384)
    parser.add_argument("--n-layer", type=int, default=8)
    compute.add_arguments(parser)
    parser.add_argument("--keep-optimizer", action="store_true", help="keep what `--resume` needs")
    parser.add_argument("--resume", action="store_true")
    return parser.parse_args()


def main():
    args = arguments()
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    run = Run(args, args.device)
    if args.resume:
        run.resume(out / "student.pt")
    print(
        json.dumps(
            {
                "ternary": run.student.n_ternary(),
                "parameters": sum(p.numel() for p in run.student.parameters()),
                "rows": len(run.rows[0]),
                "torch": torch.__version__,
            }
        ),
        flush=True,
    )
    finished = run.train()
    compute.print_peak_memory(args.device)
    print("done" if finished else "stopped: time is up", flush=True)


if __name__ == "__main__":
    main()
