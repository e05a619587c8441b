"""A run may be killed, resumed, moved and watched, and comes out the same."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from gpt2lib import TrainConfig, load_corpus, train
from gpt2lib.checkpoint import checkpoint_folders, latest_checkpoint, load_run, verify_checkpoint

TRAIN = """
import json, sys
from gpt2lib import TrainConfig, train

if __name__ == "__main__":
    train(TrainConfig(**json.loads(sys.argv[1])))
"""
DIE = """
import json, os, signal, sys
import gpt2lib.checkpoint as checkpoint
from gpt2lib import TrainConfig, train

left = int(sys.argv[2])


def counted(function):
    def call(*args, **kwargs):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    return call


for module, names in ((checkpoint, ("sync", "digest", "save_file")), (os, ("replace", "mkdir", "unlink", "rmdir"))):
    for name in names:
        setattr(module, name, counted(getattr(module, name)))
train(TrainConfig(**json.loads(sys.argv[1])))
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("corpus") / "hamlet.txt"
    path.write_text("".join(load_corpus().train[0].splitlines(keepends=True)[:400]), encoding="utf-8")
    return str(path)


def small(corpus: str, out: Path, **changes) -> TrainConfig:
    settings = dict(
        tokenizer="bytes", block_size=16, n_layer=2, n_head=2, n_embd=12, batch_size=4, grad_accum_steps=1,
        max_steps=20, warmup_steps=3, eval_interval=5, eval_tokens=64, sample_interval=10, checkpoint_interval=2,
        device="cpu",
    )  # fmt: skip
    return TrainConfig(corpus=corpus, out=str(out), **{**settings, **changes})


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory) -> Path:
    """The run that nobody disturbed."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("whole") / "run"
    train(small(corpus, out))
    return out


def start(code: str, config: TrainConfig, *words: str) -> subprocess.Popen:
    script = Path(config.out).parent / "script.py"
    script.write_text(code)
    command = [sys.executable, str(script), json.dumps(asdict(config)), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )


def tensors(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in latest_checkpoint(run).glob("*.safetensors")}


def ledger(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in Path(run, "ledger.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines[0]["kind"] == "header"
    return [{k: v for k, v in line.items() if k != "tokens_per_second"} for line in lines[1:]]


@pytest.mark.parametrize("operation", [2, 9, 23, 48, 77, 111])
def test_a_run_killed_at_any_operation_ends_as_if_it_had_not_been(corpus, whole, tmp_path, operation):
    config = small(corpus, tmp_path / "run")
    process = start(DIE, config, str(operation))
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    with warnings.catch_warnings():
        warnings.simplefilter(
            "error", UserWarning
        )  # a killed save leaves nothing that looks like a checkpoint
        train(config)
    assert tensors(config.out) == tensors(whole)
    assert ledger(config.out) == ledger(whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_saves_and_exits_with_0(corpus, tmp_path, number):
    config = small(
        corpus, tmp_path / "run", max_steps=10**6, eval_interval=0, sample_interval=0, checkpoint_interval=0
    )
    process = start(TRAIN, config)
    path = Path(config.out, "ledger.jsonl")
    while process.poll() is None and (not path.exists() or path.stat().st_size < 3000):
        time.sleep(0.01)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert latest_checkpoint(config.out).name == f"step_{ledger(config.out)[-1]['step'] + 1:06d}"


@pytest.mark.parametrize(
    "cadence",
    [
        dict(eval_interval=1, sample_interval=1),
        dict(eval_interval=0, sample_interval=0, checkpoint_interval=0),
    ],
)
def test_looking_at_a_run_does_not_change_it(corpus, whole, tmp_path, cadence):
    train(small(corpus, tmp_path / "run", **cadence))
    assert tensors(tmp_path / "run") == tensors(whole)


def test_each_step_stands_in_the_ledger_once(corpus, tmp_path):
    config = small(corpus, tmp_path / "run", max_steps=10**6, checkpoint_interval=7)
    process = start(TRAIN, config)
    while process.poll() is None and latest_checkpoint(config.out) is None:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    steps = int(latest_checkpoint(config.out).name[5:]) + 9
    train(small(corpus, tmp_path / "run", max_steps=steps, checkpoint_interval=7, extend=True))
    for kind in ("step", "eval", "sample"):
        found = [line["step"] for line in ledger(config.out) if line["kind"] == kind]
        assert found == sorted(set(found))
    assert [line["step"] for line in ledger(config.out) if line["kind"] == "step"] == list(range(steps))


def test_a_finished_run_is_left_alone(corpus, whole):
    def files():
        return {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}

    before = files()
    train(small(corpus, whole))
    assert files() == before


@pytest.mark.parametrize(
    "change",
    [
        dict(seed=7),
        dict(n_layer=3),
        dict(batch_size=8),
        dict(max_steps=30),
        dict(weight_decay=0.0),
        dict(max_lr=1e-3),
    ],
    ids=str,
)
def test_resuming_with_what_would_change_the_result_is_refused(corpus, whole, change):
    with pytest.raises(ValueError) as error:
        train(small(corpus, whole, **change))
    name = "sequences_per_step" if "batch_size" in change else next(iter(change))
    assert name in str(error.value)


def truncate(folder: Path):
    path = folder / "optimizer.safetensors"
    path.write_bytes(path.read_bytes()[:-9])


def flip(folder: Path):
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "truncated": truncate,
    "bit flipped": flip,
    "file missing": lambda folder: (folder / "state.json").unlink(),
    "manifest missing": lambda folder: (folder / "manifest.json").unlink(),
    "manifest empty": lambda folder: (folder / "manifest.json").write_text("{}"),
    "manifest no JSON": lambda folder: (folder / "manifest.json").write_text("{"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(corpus, whole, tmp_path, damage):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    newest, before = checkpoint_folders(run)[:2]
    DAMAGES[damage](newest)
    with pytest.raises((ValueError, FileNotFoundError), match=newest.name):
        verify_checkpoint(newest)
    with pytest.warns(UserWarning, match=newest.name):
        assert latest_checkpoint(run) == before
    with pytest.warns(UserWarning):
        train(small(corpus, run))
    assert tensors(run) == tensors(whole) and ledger(run) == ledger(whole)


def test_an_altered_checkpoint_is_not_loaded(whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    for folder in checkpoint_folders(run):
        flip(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises((ValueError, FileNotFoundError), match="run"):
            load_run(run)


def test_a_loss_that_is_not_finite_stops_before_it_spoils_the_weights(corpus, tmp_path):
    config = small(corpus, tmp_path / "run", max_lr=1e18, warmup_steps=0, grad_clip=0, checkpoint_interval=1)
    with pytest.raises(FloatingPointError, match="step"):
        train(config)
    assert all(parameter.isfinite().all() for parameter in load_run(config.out)[0].parameters())


@pytest.mark.parametrize("text", ["hello", "x\n" * 5, "hello world " * 2])
def test_a_corpus_too_short_for_one_batch_is_refused_with_both_lengths(tmp_path, text):
    (tmp_path / "short.txt").write_text(text)
    with pytest.raises(ValueError, match=r"\d+ tokens"):
        train(small(str(tmp_path / "short.txt"), tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_any_text_trains_from_the_command_line(tmp_path):
    text = "Es war einmal ein König, der hatte eine Tochter. 🂡\n" * 200
    (tmp_path / "märchen.txt").write_text(text, encoding="utf-8")
    flags = "--n-layer 1 --n-embd 16 --n-head 2 --block-size 24 --batch-size 3 --max-steps 3".split()

    def gpt2(*words: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "gpt2lib", *words],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )

    done = gpt2("train", "--preset", "nano", "--out", "run", "--corpus", "märchen.txt", *flags)
    assert done.returncode == 0, done.stderr
    done = gpt2(
        "generate", "--checkpoint", "run", "--prompt", "Es war", "--max-new-tokens", "5", "--seed", "1"
    )
    assert done.returncode == 0 and done.stdout.startswith("Es war"), done.stderr
    done = gpt2("eval", "--checkpoint", "run")
    assert done.returncode == 0 and "perplexity" in done.stdout, done.stderr
    done = gpt2("generate", "--checkpoint", "nowhere")
    assert done.returncode == 2 and "nowhere" in done.stderr and "Traceback" not in done.stderr
