"""Runs of a tiny model, for the tests: what they are made of, and what must be equal in two of them."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from gpt2lib import TrainConfig, load_corpus
from gpt2lib.checkpoint import latest_checkpoint

TRAIN = """
import json, sys
from gpt2lib import TrainConfig, train

if __name__ == "__main__":
    train(TrainConfig(**json.loads(sys.argv[1])))
"""


def write_corpus(path: Path) -> str:
    path.write_text("".join(load_corpus().train[0].splitlines(keepends=True)[:400]), encoding="utf-8")
    return str(path)


def small(corpus: str, out: Path, **changes) -> TrainConfig:
    settings = dict(
        tokenizer="bytes", block_size=16, n_layer=2, n_head=2, n_embd=12, batch_size=4, grad_accum_steps=1,
        max_steps=20, warmup_steps=3, eval_interval=5, eval_tokens=64, sample_interval=10, checkpoint_interval=2,
        device="cpu",
    )  # fmt: skip
    return TrainConfig(corpus=corpus, out=str(out), **{**settings, **changes})


def flags(config: TrainConfig) -> list[str]:
    """The command that starts this run."""
    words = []
    for name, value in asdict(config).items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            words += [f"--{flag}", str(value)]
    return ["train", *words]


def start(code: str, config: TrainConfig, *words: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen:
    """A process that runs `code` with the configuration as its first argument."""
    script = Path(config.out).parent / "script.py"
    script.write_text(code)
    command = [sys.executable, *launcher, str(script), json.dumps(asdict(config)), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )


def tensors(run: Path) -> dict[str, bytes]:
    """Weights and optimizer state, as they lie on the disk."""
    return {path.name: path.read_bytes() for path in latest_checkpoint(run).glob("*.safetensors")}


def ledger(run: Path) -> list[dict]:
    """What the run wrote down, without the header and the times."""
    lines = [json.loads(line) for line in Path(run, "ledger.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines[0]["kind"] == "header"
    return [{k: v for k, v in line.items() if k != "tokens_per_second"} for line in lines[1:]]
