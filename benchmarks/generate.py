"""Generation beside `transformers`' `generate`: time per token, and the floor that memory sets, against the budgets.

    python benchmarks/generate.py

GPT-2's 124M shape with random weights, greedy, batch 1 and 8. Each side writes as many tokens as the longest run asks for,
after a prompt of 16, and notes when each step is done; the shorter runs are the beginning of the same one. The sides take
turns, each in its own process. In fp32 all sides should write the same tokens, which is counted. The floor is what has to be read for a token,
weights, keys and values, over what this machine's memory delivers: the best time of a sum over a tensor that fits no cache.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import common
import torch
import tyro

from gpt2lib import GPT, GPTConfig, stream
from gpt2lib.generate import KVCache, LayerCache, for_generation

SIZES = {"124M": dict(model=dict(), prompt=16, tokens=(32, 128, 512), batches=(1, 8))}
TINY = {
    "tiny": dict(
        model=dict(block_size=64, vocab_size=997, n_layer=2, n_head=2, n_embd=64),
        prompt=4,
        tokens=(4, 8, 40),
        batches=(1, 3),
    )
}
THEIRS, THEIRS_BF16 = "transformers, fp32", "transformers, bf16"
PLAIN, COLUMNS, INT8 = "gpt2lib, fp32", "gpt2lib, fp32, by columns", "gpt2lib, int8"
BF16, COMPILED, INT8_COMPILED = "gpt2lib, bf16", "gpt2lib, fp32, compiled", "gpt2lib, int8, compiled"
SIDES = (THEIRS, PLAIN, COLUMNS, COMPILED, INT8, INT8_COMPILED, THEIRS_BF16, BF16)
SAME = (PLAIN, COLUMNS, COMPILED)  # sides that should write what THEIRS writes
FASTER = {PLAIN: 1.0, COLUMNS: 1.0, INT8: 2.5}  # budgets at batch 1: their time over ours
FLAT = 1.25  # budget: time of a late token over that of an early one
TIE = 1e-4  # budget: relative difference of two logits that counts as a tie, as when logits are compared


@dataclass
class Options(common.Options):
    rounds: int = 3  # how often each side is measured; the sides take turns
    compile: bool = True  # also the sides that compile, which takes minutes; never with --tiny


def weights(size: dict) -> GPT:
    """The same random weights on every side; larger than fresh ones, so that greedy text does not repeat one token."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(**size["model"])).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
    return model.requires_grad_(False)


def prompts(size: dict, B: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(GPTConfig(**size["model"]).vocab_size, (B, size["prompt"]), generator=generator)


def theirs(size: dict) -> torch.nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    ours = weights(size)
    c = ours.config
    shape = {"n_positions": c.block_size, "n_embd": c.n_embd, "n_layer": c.n_layer, "n_head": c.n_head}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=c.vocab_size, **shape))
    flipped = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
    model.load_state_dict({k: v.t() if k.endswith(flipped) else v for k, v in ours.state_dict().items()})
    return model.eval()


def side(name: str, size: dict) -> Callable[[int, int], dict]:
    """A function that continues B prompts by n tokens, and returns the seconds after each step and the new tokens."""

    if name in (THEIRS, THEIRS_BF16):
        model = theirs(size)
        if name == THEIRS_BF16:
            model = model.bfloat16()

        def write(B: int, n: int) -> dict:
            idx, done = prompts(size, B), []
            begin = time.perf_counter()
            out = model.generate(
                idx,
                attention_mask=torch.ones_like(idx),
                max_new_tokens=n,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
                stopping_criteria=[Clock(done, begin)],
            )
            return {"seconds": done, "tokens": out[:, idx.size(1) :].tolist()}

        return write

    model = weights(size)
    if name == BF16:
        model = model.bfloat16()
    elif name != PLAIN:
        model = for_generation(model, int8=name in (INT8, INT8_COMPILED))
    if name in (COMPILED, INT8_COMPILED):
        # The cache counts in Python, and what it counts changes with every token: it stays outside.
        KVCache.positions = torch.compiler.disable(KVCache.positions)
        LayerCache.append = torch.compiler.disable(LayerCache.append)
        model.compile()

    def write(B: int, n: int) -> dict:
        idx, done, tokens = prompts(size, B), [], []
        begin = time.perf_counter()
        for token in stream(model, idx, n, temperature=0, n_tokens=model.config.vocab_size):
            tokens.append(token)
            done.append(time.perf_counter() - begin)
        return {"seconds": done, "tokens": torch.stack(tokens, dim=1).tolist()}

    return write


class Clock:
    """For `transformers`: is asked after each token whether to stop; says no, and notes the time."""

    def __init__(self, done: list[float], begin: float):
        self.done, self.begin = done, begin

    def __call__(self, idx: torch.Tensor, scores: torch.Tensor, **_: object) -> torch.Tensor:
        self.done.append(time.perf_counter() - self.begin)
        return torch.zeros(len(idx), dtype=torch.bool)


def reader(n_bytes: int) -> Callable[[], float]:
    """A function that returns how many bytes a second are read from memory."""
    numbers = torch.ones(n_bytes // 4)

    def read() -> float:
        times = []
        for _ in range(8):
            begin = time.perf_counter()
            numbers.sum()
            times.append(time.perf_counter() - begin)
        return numbers.nbytes / min(times)

    return read


def read_per_step(name: str, size: dict, B: int, n: int) -> float:
    """Bytes that a step has to read, on average over n new tokens: weights once, keys and values of every row."""
    config = GPTConfig(**size["model"])
    width = 1 if name in (INT8, INT8_COMPILED) else 2 if name in (BF16, THEIRS_BF16) else 4
    matrices = 12 * config.n_layer * config.n_embd**2 + config.vocab_size * config.n_embd
    held = 2 if width == 2 else 4  # keys and values are fp32 beside int8 weights
    kept = 2 * config.n_layer * config.n_embd * (size["prompt"] + (n - 1) / 2) * B
    return width * matrices + held * kept


def late_over_early(seconds: list[float]) -> float:
    """The time of a token near the end, over that of one near the beginning; medians of an eighth of the tokens."""
    steps = [b - a for a, b in zip(seconds, seconds[1:])]
    part = max(len(steps) // 8, 2)
    return statistics.median(steps[-part:]) / statistics.median(steps[1 : part + 1])


def partings(size: dict, B: int, ours: dict, theirs: dict) -> list[float | None]:
    """For each of B texts None if it is the same on both sides; else how much the two logits differ where they part.

    Two sides add in another order. Where the two best logits differ by less than that changes, either is the greedy token.
    """
    found = []
    for prompt, a, b in zip(prompts(size, B).tolist(), ours["tokens"], theirs["tokens"], strict=True):
        at = next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), None)
        if at is None:
            found.append(None)
            continue
        with torch.inference_mode():
            logits = weights(size)(torch.tensor([prompt + a[:at]]))[0][0, -1]
        found.append((1 - logits[b[at]] / logits[a[at]]).abs().item())
    return found


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    (label, size), *_ = (TINY if options.tiny else SIZES).items()
    compiled = options.compile and not options.tiny
    names = [name for name in SIDES if compiled or "compiled" not in name]
    longest, batches = max(size["tokens"]), size["batches"]
    sides = {name: common.Side(side, name, size, threads=options.threads) for name in names}
    memory = common.Side(reader, 2**24 if options.tiny else 2**28, threads=options.threads)
    for name in names:  # warm up, and compile for every batch
        for B in batches:
            sides[name].run(B, min(6, longest))
    found = common.interleave(
        {
            "memory": memory.run,
            **{
                (name, B): lambda name=name, B=B: sides[name].run(B, longest)
                for B in batches
                for name in names
            },
        },
        options.rounds,
    )
    for each in (memory, *sides.values()):
        each.close()
    bandwidth = max(found.pop("memory"))
    tables, budgets, data = {}, [], []
    for B in batches:
        for n in size["tokens"]:
            rows = []
            for name in names:
                times = [run["seconds"][n - 1] / n for run in found[name, B]]  # a step, prompt included
                other = [run["seconds"][n - 1] / n for run in found[THEIRS, B]]
                floor = read_per_step(name, size, B, n) / bandwidth
                faster = common.ratios(other, times)
                spread = common.spread(times)
                rows.append(
                    [
                        name,
                        f"{B / spread['median']:.1f}",
                        f"{1e3 * spread['median']:.1f}",
                        f"{1e3 * floor:.1f}",
                        f"{spread['median'] / floor:.1f}",
                        f"{faster['median']:.2f} ({faster['low']:.2f} to {faster['high']:.2f})",
                    ]
                )
                data.append(dict(side=name, batch=B, tokens=n, seconds=spread, floor=floor, faster=faster))
                if name in FASTER and B == 1 and n == longest:
                    what = f"{label}, batch 1, {n} tokens: {name}, how many times as fast as {THEIRS}"
                    budgets.append(common.budget(what, faster["median"], FASTER[name], at_most=False))
            tables[f"{label}, batch {B}, {n} new tokens:"] = common.table(
                rows, ["side", "tokens/s", "ms/step", "floor, ms", "of floor", "times as fast"]
            )
    for name in (PLAIN, COLUMNS, INT8):
        flat = statistics.median(late_over_early(run["seconds"]) for run in found[name, 1])
        what = f"{label}, batch 1: {name}, a late token over an early one"
        budgets.append(common.budget(what, flat, FLAT))
    rows, widest = [], 0.0
    for name in [name for name in SAME if name in names]:
        gaps = [gap for B in batches for gap in partings(size, B, found[name, B][0], found[THEIRS, B][0])]
        equal, most = gaps.count(None), max((gap for gap in gaps if gap is not None), default=0.0)
        rows.append([name, len(gaps), equal, f"{most:.1e}" if equal < len(gaps) else "–"])
        widest = max(widest, most)
    header = ["side", "texts", f"equal to those of {THEIRS}", "else: logits apart, relative, at most"]
    tables[f"{label}, greedy texts of {longest} tokens:"] = common.table(rows, header)
    what = f"{label}: where an fp32 text parts from that of {THEIRS}, the two logits differ by, relative"
    budgets.append(common.budget(what, widest, TIE))
    tables["Memory:"] = common.table([["read by a sum", f"{bandwidth / 1e9:.1f}"]], ["what", "GB/s"])
    common.publish("generate", options, tables, budgets, {"bandwidth": bandwidth, "results": data})


if __name__ == "__main__":
    main()
