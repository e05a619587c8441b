"""A run may be resumed, moved, divided and watched, and comes out the same."""

import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from small_runs import TRAIN, ledger, small, start, tensors, write_corpus

from gpt2lib import train
from gpt2lib.checkpoint import checkpoint_folders, latest_checkpoint, load_run


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> str:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "hamlet.txt")


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory) -> Path:
    """The run that nobody disturbed."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("whole") / "run"
    train(small(corpus, out))
    return out


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


def flip(folder: Path):
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


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
