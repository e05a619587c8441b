"""Where the memory of a training step goes, beside `transformers`' GPT-2.

    python benchmarks/memory.py

Each line is a fresh process that takes two steps in fp32 on the CPU; the second is measured. What is counted: the tensors
that exist (weights, gradients, AdamW's averages) and what the forward pass keeps for the backward pass (activations, and of
these the logits). What is measured: the most memory that the process holds in each phase, its imports included.
"""

from dataclasses import dataclass
from pathlib import Path

import common
import torch
import torch.nn as nn
import tyro
from train_step import MEMORY, OURS, RUNGS, THEIRS, TINY, build
from train_step import SIZES as TIMED

from gpt2lib.gpt import PRESETS

MINI = dict(zip(("block_size", "vocab_size", "n_layer", "n_head", "n_embd"), PRESETS["mini"]))
SIZES = {
    "nano": TIMED["nano"],
    "mini": dict(model=MINI, B=4, T=512),
    "124M": TIMED["124M"],
    "124M, T=1024": {**TIMED["124M"], "T": 1024},
}
PLAIN = list(RUNGS)[0]
NAMES = {THEIRS: THEIRS, PLAIN: "gpt2lib, plain head", OURS: "gpt2lib"}


@dataclass
class Options(common.Options):
    rounds: int = 1  # fresh processes for each line; the largest peak counts


def forget_peak() -> None:
    """Let the peak of this process count from now on, where the system can do that (Linux)."""
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def kept_bytes(forward, parameters: set[int], n_vocab: int) -> tuple[torch.Tensor, int, int]:
    """Run `forward`; return the loss, and the bytes it keeps for the backward pass: logits, and all other."""
    kept: dict[int, tuple[int, bool]] = {}

    def weigh(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            is_logits = tensor.dim() > 1 and tensor.size(-1) == n_vocab
            kept[storage.data_ptr()] = storage.nbytes(), is_logits
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(weigh, lambda tensor: tensor):
        loss = forward()
    logits = sum(size for size, is_logits in kept.values() if is_logits)
    return loss, logits, sum(size for size, _ in kept.values()) - logits


def measure(side: str, size: dict) -> dict:
    """Take two steps, and say what the second one needs."""
    model, optimizer, forward, imported = build(side, size)
    weights = list(model.parameters())
    for step in range(2):
        forget_peak()
        loss = forward()
        peaks = {"forward": common.peak_memory()}
        forget_peak()
        loss.backward()
        peaks["backward"] = common.peak_memory()
        forget_peak()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        peaks["optimizer"] = common.peak_memory()
        if step == 0:
            optimizer.zero_grad()
    storages = {p.untyped_storage().data_ptr() for p in weights}
    counted = {
        "weights": sum(p.nbytes for p in weights),
        "gradients": sum(p.grad.nbytes for p in weights),
        "averages": sum(t.nbytes for s in optimizer.state.values() for t in s.values() if t.dim()),
    }
    _, counted["logits"], counted["activations"] = kept_bytes(forward, storages, size["model"]["vocab_size"])
    return {"imports": imported, **counted, "peaks": peaks, "peak": max(peaks.values())}


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    tables, budgets, data = {}, [], {}
    header = (
        "side imports weights gradients averages activations logits forward backward optimizer peak".split()
    )
    for name, size in {"nano": TINY}.items() if options.tiny else SIZES.items():
        found, rows = {}, []
        for side in (THEIRS, OURS) if options.tiny else NAMES:
            tries = [
                common.alone(measure, side, size, threads=options.threads) for _ in range(options.rounds)
            ]
            found[side] = max(tries, key=lambda result: result["peak"])
            values = {**found[side], **found[side]["peaks"]}
            rows.append([NAMES[side], *(f"{values[column] / 1e6:,.0f}" for column in header[1:])])
            rows[-1].append(f"{found[side]['peak'] / found[THEIRS]['peak']:.2f}")
        shape = size["model"]
        caption = (
            f"{name} ({shape['n_layer']} layers, C={shape['n_embd']}, V={shape['vocab_size']}, B={size['B']}, "
            f"T={size['T']}), in MB. Counted: weights to logits; measured: imports, the peak of each phase, and their peak:"
        )
        tables[caption] = common.table(rows, [*header, "of theirs"])
        if name in MEMORY:
            ratio = found[OURS]["peak"] / found[THEIRS]["peak"]
            budgets.append(common.budget(f"{name}: peak memory, ours / theirs", ratio, MEMORY[name]))
        data[name] = found
    common.publish("memory", options, tables, budgets, {"sizes": data})


if __name__ == "__main__":
    main()
