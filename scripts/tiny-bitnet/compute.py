"""Where it is computed: flags, the type of numbers, the memory that was taken."""

import torch


def add_arguments(parser):
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--no-compile", dest="compile", action="store_false")


def dtype(device):
    return torch.bfloat16 if device == "cuda" else torch.float32


def print_peak_memory(device):
    if device == "cuda":
        print(f"peak memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB", flush=True)
