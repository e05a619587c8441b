"""A training step beside `transformers`' GPT-2: time and peak memory, against the budgets; and what each choice is worth.

    python benchmarks/train_step.py

A step is forward pass, backward pass, clipping, optimizer step and zero_grad, in fp32 on the CPU. Theirs is
`transformers.GPT2LMHeadModel(labels=...)` with `torch.optim.AdamW`, ours what `gpt2lib.train` does; both compute the
same numbers (dropout 0). Each side lives in its own process, because allocator settings hold for a whole process; they
take turns, never both at once, and ratios are taken round by round. Peak memory is that of a further fresh process.
"""

import math
import statistics
import time
from collections.abc import Callable

import common
import torch
import torch.nn as nn
import tyro

from gpt2lib import GPT, GPTConfig
from gpt2lib.train import OneDNN, keep_freed_memory, onednn_pays

# The shape; B sequences of T tokens; steps in a round.
SIZES = {
    "nano": dict(
        model=dict(block_size=256, vocab_size=50304, n_layer=4, n_head=4, n_embd=128), B=8, T=256, steps=3
    ),
    "124M": dict(
        model=dict(block_size=1024, vocab_size=50257, n_layer=12, n_head=12, n_embd=768), B=1, T=512, steps=2
    ),
}
TINY = dict(model=dict(block_size=32, vocab_size=8192, n_layer=2, n_head=2, n_embd=16), B=2, T=32, steps=2)
TIME, MEMORY = {"nano": 0.45, "124M": 0.6}, {"nano": 0.5}  # the budgets: ours over theirs

# What a side does. Each rung keeps what those above it turned on. `train` stops at OURS; what follows is tried on top of it.
THEIRS, OURS = "transformers", "+ oneDNN: gpt2lib"
OFF = dict(chunked=False, keep=False, fused=False, onednn=False, bf16=False, compile=False)
FUSED = {**OFF, "chunked": True, "keep": True, "fused": True}
RUNGS = {
    "plain": OFF,
    "+ head and loss in chunks": {**OFF, "chunked": True},
    "+ freed memory kept": {**OFF, "chunked": True, "keep": True},
    "+ fused AdamW": FUSED,
    OURS: {**FUSED, "onednn": onednn_pays()},  # on other processors the rung before, once more
    "tried: bf16": {**FUSED, "bf16": True},
    "tried: torch.compile": {**FUSED, "compile": True},
}


def build(side: str, size: dict) -> tuple[nn.Module, torch.optim.Optimizer, Callable[[], torch.Tensor], int]:
    """Model, optimizer, forward pass (it returns the loss), and the bytes that this process held before them."""
    shape, B, T = size["model"], size["B"], size["T"]
    V = shape["vocab_size"]
    torch.manual_seed(0)
    ids = torch.randint(min(V, 50257), (B, T + 1))
    x, y = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()  # (B, T) each
    if side == THEIRS:
        from transformers import GPT2Config, GPT2LMHeadModel, logging

        logging.set_verbosity_error()
        imported = common.resident_memory()
        shape = {"n_positions" if name == "block_size" else name: value for name, value in shape.items()}
        model = GPT2LMHeadModel(GPT2Config(**shape, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))
        return model, torch.optim.AdamW(model.parameters()), lambda: model(x, labels=x).loss, imported

    imported, choice = common.resident_memory(), RUNGS[side]
    if choice["keep"]:
        keep_freed_memory()
    model = GPT(GPTConfig(**shape))
    model.chunked_head = choice["chunked"]
    optimizer = model.configure_optimizers(fused=choice["fused"])
    run = torch.compile(model) if choice["compile"] else model

    def forward() -> torch.Tensor:
        around = (
            OneDNN() if choice["onednn"] else torch.autocast("cpu", torch.bfloat16, enabled=choice["bf16"])
        )
        with around:
            return run(x, y)[1]

    return model, optimizer, forward, imported


def make(side: str, size: dict) -> Callable[[int], dict]:
    """Build one side; the function that is returned takes steps, and says how long each took."""
    model, optimizer, forward, _ = build(side, size)
    parameters = sum(p.numel() for p in model.parameters())

    def run(steps: int) -> dict:
        seconds, losses = [], []
        for _ in range(steps):
            begin = time.perf_counter()
            loss = forward()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            seconds.append(time.perf_counter() - begin)
            losses.append(loss.item())
        return dict(seconds=seconds, losses=losses, parameters=parameters, peak=common.peak_memory())

    return run


def fresh(side: str, size: dict) -> dict:
    return make(side, size)(3)


def compare(name: str, size: dict, options: common.Options) -> tuple[str, list[dict], dict]:
    """Measure all sides at one size: a table, the budgets, and the numbers behind them."""
    chosen = (THEIRS, OURS) if options.tiny else (THEIRS, *RUNGS)
    if name == "124M":  # each side holds gigabytes
        chosen = (THEIRS, "plain", "+ fused AdamW", OURS, "tried: bf16")
    sides = {side: common.Side(make, side, size, threads=options.threads) for side in chosen}
    try:
        warm = {side: there.run(2) for side, there in sides.items()}  # the first step also compiles
        first = {side: result["losses"][0] for side, result in warm.items()}
        for side, loss in first.items():  # chapter 5: what a fresh model should say
            expected = math.log(size["model"]["vocab_size"]) + size["model"]["n_embd"] * 0.02**2 / 2
            if not abs(loss - expected) < 0.1:
                raise RuntimeError(
                    f"{side}: first loss {loss:.3f}, expected {expected:.3f}: not the same work"
                )
        runs = {side: (lambda there=there: there.run(size["steps"])) for side, there in sides.items()}
        results = common.interleave(runs, options.rounds)
    finally:
        for there in sides.values():
            there.close()
    parameters = {results[side][0]["parameters"] for side in sides}
    if len(parameters) != 1:
        raise RuntimeError(f"the sides have {sorted(parameters)} parameters: not the same model")

    seconds = {side: [statistics.median(r["seconds"]) for r in results[side]] for side in sides}
    memory = {side: common.alone(fresh, side, size, threads=options.threads) for side in sides}
    peak = {side: memory[side]["peak"] for side in sides}
    rows, before = [], THEIRS
    for side in sides:
        time_, ratio = common.spread(seconds[side]), common.ratios(seconds[side], seconds[THEIRS])
        gain = f"{common.ratios(seconds[before], seconds[side])['median']:.2f} ×" if side in RUNGS else "–"
        rows.append([
            side,
            f"{1e3 * time_['median']:,.0f} ({1e3 * time_['low']:,.0f}–{1e3 * time_['high']:,.0f})",
            f"{ratio['median']:.2f} ({ratio['low']:.2f}–{ratio['high']:.2f})",
            gain,
            f"{peak[side] / 1e6:,.0f}",
            f"{peak[side] / peak[THEIRS]:.2f}",
        ])  # fmt: skip
        if not side.startswith("tried"):
            before = side
    header = ["side", "ms a step (range)", "of theirs", "faster than the rung before", "peak MB", "of theirs"]
    budgets = []
    if name in TIME:
        measured = common.ratios(seconds[OURS], seconds[THEIRS])["median"]
        budgets.append(common.budget(f"{name}: time of a step, ours / theirs", measured, TIME[name]))
    if name in MEMORY:
        measured = peak[OURS] / peak[THEIRS]
        budgets.append(common.budget(f"{name}: peak memory, ours / theirs", measured, MEMORY[name]))
    data = {
        "seconds": seconds,
        "peak_bytes": peak,
        "parameters": parameters.pop(),
        "first_loss": first,
        "first_step_seconds": {side: result["seconds"][0] for side, result in warm.items()},
    }
    return common.table(rows, header), budgets, data


def main() -> None:
    options = tyro.cli(common.Options, description=__doc__)
    tables, budgets, data = {}, [], {}
    for name, size in {"nano": TINY}.items() if options.tiny else SIZES.items():
        text, found, data[name] = compare(name, size, options)
        shape = size["model"]
        caption = (
            f"{name}: {shape['n_layer']} layers, C={shape['n_embd']}, V={shape['vocab_size']}, B={size['B']}, "
            f"T={size['T']}, fp32; {size['steps']} steps a round:"
        )
        tables[caption] = text
        budgets += found
    common.publish("train_step", options, tables, budgets, {"sizes": data})


if __name__ == "__main__":
    main()
