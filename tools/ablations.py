"""Train chapter 9's ablations: one small model with the full recipe, and without each ingredient, three seeds each.

    python tools/ablations.py

Each run goes through `gpt2lib.train.train`. Those that are not in book/runs/ablations yet are trained, one after
another on one thread, a minute or two each; then gpt2lib/assets/ablations.json, what the chapter draws, is written.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import tempfile
from pathlib import Path
from unittest import mock

import torch
import torch.nn as nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from gpt2lib.gpt import GPT, GPTConfig  # noqa: E402
from gpt2lib.train import TrainConfig, train  # noqa: E402

LEDGERS = ROOT / "book" / "runs" / "ablations"
ASSET = ROOT / "gpt2lib" / "assets" / "ablations.json"
SEEDS = (1, 2, 3)
EVERY = 10  # one step line in this many is kept
MAX_LR = 4e-3
RECIPE = dict(
    tokenizer="bytes", n_layer=6, n_head=4, n_embd=64, block_size=80, batch_size=10, grad_accum_steps=1,
    max_lr=MAX_LR, min_lr=0.1 * MAX_LR, warmup_steps=100, max_steps=1000, weight_decay=0.1, grad_clip=1.0, dropout=0.05,
    device="cpu", eval_interval=100, eval_tokens=16384, sample_interval=0, checkpoint_interval=0,
)  # fmt: skip


class UnscaledGPT(GPT):
    """Projections into the residual stream start as large as all other weights."""

    def __init__(self, config: GPTConfig):
        super().__init__(config)
        for name, weight in self.named_parameters():
            if name.endswith("c_proj.weight"):
                weight.data *= math.sqrt(2 * config.n_layer)


class UntiedGPT(GPT):
    """The head starts as a copy of the token embedding and is trained apart from it."""

    def __init__(self, config: GPTConfig):
        super().__init__(config)
        self.lm_head.weight = nn.Parameter(self.lm_head.weight.detach().clone())


class PostNormGPT(GPT):
    """LayerNorm after each sum, as in GPT-1. The last block ends in one, so none follows it."""

    def __init__(self, config: GPTConfig):
        super().__init__(config)
        self.transformer.ln_f = nn.Identity()
        for block in self.transformer.h:
            block.forward = _post_norm.__get__(block)


def _post_norm(block: nn.Module, x: torch.Tensor, cache=None) -> torch.Tensor:
    """In place of `Block.forward`."""
    x = block.ln_1(x + block.attn(x, cache))  # (B, T, C)
    return block.ln_2(x + block.mlp(x))  # (B, T, C)


# name: the model that is built, and the fields of TrainConfig that differ from RECIPE
VARIANTS: dict[str, tuple[type[GPT], dict]] = {
    "full recipe": (GPT, {}),
    "no warm-up": (GPT, {"warmup_steps": 0}),
    "no cosine decay": (GPT, {"min_lr": MAX_LR}),
    "no residual scaling": (UnscaledGPT, {}),
    "no weight decay": (GPT, {"weight_decay": 0.0}),
    "no clipping": (GPT, {"grad_clip": 0.0}),
    "untied head": (UntiedGPT, {}),
    "post-norm": (PostNormGPT, {}),
    "no dropout": (GPT, {"dropout": 0.0}),
}


def run_one(path: Path, variant: str, seed: int, recipe: dict) -> None:
    """Train one variant and write its ledger to `path`: every evaluation, one step in `EVERY`, and no timings.

    A run that diverges has a line of kind `diverged` at the end.
    """
    model, changes = VARIANTS[variant]
    lines: list[dict] = []
    # `train` builds what `gpt2lib.train.GPT` names.
    with tempfile.TemporaryDirectory() as folder, mock.patch("gpt2lib.train.GPT", model):
        try:
            config = TrainConfig(**{**recipe, **changes, "seed": seed, "out": folder})
            train(config, on_line=lines.append)
        except FloatingPointError as error:
            lines.append({"kind": "diverged", "step": lines[-1]["step"], "error": str(error).split(";")[0]})
    if lines[-1]["kind"] != "diverged" and sum(line["kind"] == "step" for line in lines) < config.max_steps:
        sys.exit("stopped; the same command begins this run again and keeps the finished ones")
    header = lines[0]
    header["config"]["out"] = path.stem
    header |= {"variant": variant, "model_class": model.__name__}
    with open(beside := path.with_suffix(".tmp"), "w", encoding="utf-8") as file:
        for line in lines:
            if line["kind"] == "step":
                if line["step"] % EVERY:
                    continue
                line = {"kind": "step", "step": line["step"]} | {
                    name: float(f"{line[name]:.6g}") for name in ("loss", "lr", "grad_norm")
                }
            file.write(json.dumps(line) + "\n")
    os.replace(beside, path)


def file_of(folder: Path, variant: str, seed: int) -> Path:
    return folder / f"{variant.replace(' ', '-')}-{seed}.jsonl"


def record(folder: Path, recipe: dict, seeds: tuple[int, ...] = SEEDS) -> None:
    """Train what `folder` does not hold yet."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        for variant in VARIANTS:
            path = file_of(folder, variant, seed)
            if not path.exists():
                print(f"{variant}, seed {seed} …", flush=True)
                run_one(path, variant, seed, recipe)


def collect(folder: Path, recipe: dict, seeds: tuple[int, ...] = SEEDS) -> str:
    """The evaluations of all runs in `folder` as JSON, after a look at the settings they were made with."""
    runs, headers = [], []
    for variant, (_, changes) in VARIANTS.items():
        for seed in seeds:
            path = file_of(folder, variant, seed)
            header, *lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
            for name, value in {**recipe, **changes, "seed": seed}.items():
                if header["config"][name] != value:
                    sys.exit(
                        f"{path}: {name} is {header['config'][name]!r}, not {value!r}; delete the file and run again"
                    )
            headers.append(header)
            evals = [line for line in lines if line["kind"] == "eval"]
            runs.append(
                {
                    "variant": variant,
                    "seed": seed,
                    "diverged": lines[-1]["step"] if lines[-1]["kind"] == "diverged" else None,
                    "steps": [line["step"] for line in evals],
                    "losses": [round(line["loss"], 5) for line in evals],
                }
            )
    shared = {name: headers[0][name] for name in ("model", "corpus", "parameters", "tokens_per_step")}
    head = json.dumps({"recipe": recipe, **shared}, indent=1)[:-2]
    return head + ',\n "runs": [\n  ' + ",\n  ".join(map(json.dumps, runs)) + "\n ]\n}\n"


def main() -> None:
    if sys.argv[1:]:
        sys.exit(__doc__)
    torch.set_num_threads(1)  # matrices this small are quicker without company
    record(LEDGERS, RECIPE)
    data = collect(LEDGERS, RECIPE).encode()
    ASSET.write_bytes(data)
    print(f"{ASSET}: {len(data):,} bytes, SHA-256 {hashlib.sha256(data).hexdigest()}")


if __name__ == "__main__":
    main()
