"""A run may be resumed, moved, divided and watched, and comes out the same."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import types
import warnings
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_runs import TRAIN, ledger, small, start, tensors, write_corpus

from gpt2lib import GPT, GPTConfig, get_lr, train
from gpt2lib.checkpoint import (
    best_checkpoint,
    checkpoint_folders,
    latest_checkpoint,
    load_checkpoint,
    load_run,
    model_tensors,
    read_state,
    save_checkpoint,
)
from gpt2lib.train import memory_needed, pick_device

MODULE = sys.modules["gpt2lib.train"]  # the name gpt2lib.train is that of the function


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


def header(run: Path | str) -> dict:
    return json.loads(Path(run, "ledger.jsonl").read_text(encoding="utf-8").splitlines()[0])


def quiet(line: dict) -> None:
    """Takes the place of the progress bar."""


def largest_difference(run: Path, other: Path) -> float:
    """Of the losses, relative."""
    pairs = zip(ledger(run), ledger(other), strict=True)
    return max(abs(a["loss"] / b["loss"] - 1) for a, b in pairs if "loss" in a)


# What makes a step quick can be turned off, and changes nothing, or the last digits.


@pytest.mark.parametrize("flag", ["prefetch", "keep_memory", "tf32", "compile", "deterministic"])
def test_a_choice_of_speed_does_not_change_the_run(corpus, whole, tmp_path, flag):
    config = small(corpus, tmp_path / "run", **{flag: flag == "deterministic"})
    train(config, quiet)
    assert tensors(config.out) == tensors(whole) and ledger(config.out) == ledger(whole)
    assert header(config.out)["speed"].get(flag, "off") == "off"
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("flag", ["fused", "chunked_head", "onednn"])
def test_a_choice_of_speed_changes_no_more_than_the_last_digits(corpus, tmp_path, flag, monkeypatch):
    module = sys.modules["gpt2lib.train"]  # the name gpt2lib.train is also that of the function
    monkeypatch.setattr(module, "onednn_pays", lambda: hasattr(torch.ops.mkldnn, "_linear_pointwise"))
    settings = dict(vocab_size=8192, max_steps=8, eval_interval=0, sample_interval=0)
    for value in (True, False):
        train(small(corpus, tmp_path / str(value), **{flag: value}, **settings), quiet)
    assert header(tmp_path / "False")["speed"][flag] == "off"
    assert header(tmp_path / "True")["speed"][flag] != "off"
    assert largest_difference(tmp_path / "True", tmp_path / "False") < 1e-5
    assert tensors(tmp_path / "True") != tensors(tmp_path / "False")  # else it was not turned off


def test_what_the_machine_lacks_is_said_in_one_line(corpus, tmp_path, capfd, monkeypatch):
    monkeypatch.delattr(torch.nn.functional, "linear_cross_entropy", raising=False)  # an older torch
    train(small(corpus, tmp_path / "run", vocab_size=8192, max_steps=2))
    said = "".join(capfd.readouterr())
    assert said.count("speed: ") == 1 and "no chunked_head: needs torch 2.13" in said
    assert said.count("one step takes about") == 1 and "memory: about" in said


def test_the_vocabulary_is_padded_in_a_new_run_only(corpus, tmp_path):
    settings = dict(tokenizer="gpt2", preset="gpt2", max_steps=1, eval_interval=0, sample_interval=0)
    plain, padded = (
        small(corpus, tmp_path / str(flag), pad_vocab=flag, **settings) for flag in (False, True)
    )
    for config, size in ((plain, 50257), (padded, 50304)):
        train(config, quiet)
        assert load_run(config.out)[0].config.vocab_size == size
        assert header(config.out)["model"]["vocab_size"] == size
    for config, size in ((plain, 50257), (padded, 50304)):  # resumed on another machine, with another default
        train(replace(config, pad_vocab=not config.pad_vocab, max_steps=2, extend=True), quiet)
        assert load_run(config.out)[0].config.vocab_size == size


def test_tokens_a_step_are_stated(corpus, tmp_path):
    config = small(corpus, tmp_path / "run", batch_size=2, grad_accum_steps=3, max_steps=1)
    train(config, quiet)
    assert header(config.out)["tokens_per_step"] == 2 * 3 * 1 * 16


def test_throughput_is_timed_without_evaluation(corpus, tmp_path, monkeypatch):
    def slow(*args):
        time.sleep(0.5)
        return 1.0

    monkeypatch.setattr(MODULE, "evaluate_loss", slow)
    rates = []
    config = small(corpus, tmp_path / "run", max_steps=4, eval_interval=1)
    train(config, lambda line: rates.append(line["tokens_per_second"]) if line["kind"] == "step" else None)
    assert min(rates) > 4 * 16 / 0.5


# Memory.


def test_a_batch_that_cannot_fit_says_which_flag_to_lower_and_to_what(corpus, tmp_path, monkeypatch):
    config = small(corpus, tmp_path / "run", batch_size=64, grad_accum_steps=2, max_steps=2)
    shape = config.model
    monkeypatch.setattr(MODULE, "memory_free", lambda device: memory_needed(shape, 20))
    with pytest.raises(
        ValueError, match="lower --batch-size from 64 to 16 and raise --grad-accum-steps from 2 to 8"
    ):
        train(config, quiet)
    assert not Path(config.out).exists()
    train(replace(config, batch_size=16, grad_accum_steps=8), quiet)
    monkeypatch.setattr(MODULE, "memory_free", lambda device: 1000)
    with pytest.raises(ValueError, match="--block-size"):
        train(config, quiet)


def test_out_of_memory_in_a_step_is_advice_too(corpus, tmp_path, monkeypatch):
    def full(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(MODULE, "accumulate", full)
    with pytest.raises(
        ValueError, match="lower --batch-size from 4 to 2 and raise --grad-accum-steps from 1 to 2"
    ):
        train(small(corpus, tmp_path / "run"), quiet)


def test_the_estimate_of_memory_is_near_what_is_kept():
    """Counted by PyTorch's hooks: every tensor that waits for the backward pass."""
    for half in (False, True):
        shape = GPTConfig(block_size=64, vocab_size=30, n_layer=3, n_head=4, n_embd=32)
        model, kept = GPT(shape), {}
        own = {p.untyped_storage().data_ptr() for p in model.parameters()}

        def weigh(tensor, kept=kept, own=own):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        idx = torch.randint(30, (5, 64))
        with torch.autograd.graph.saved_tensors_hooks(weigh, lambda tensor: tensor):
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                model(idx, idx)
        dtype = torch.bfloat16 if half else torch.float32
        estimate = memory_needed(shape, 5, dtype) - memory_needed(shape, 0, dtype)
        assert 0.7 < sum(kept.values()) / estimate < 1.3


# Checkpoints: the best one, names, pickles.


def test_the_best_checkpoint_is_kept_and_found_again(corpus, tmp_path, monkeypatch):
    losses = {0: 9.0, 4: 3.0, 8: 2.0, 12: 4.0, 16: 5.0, 20: 2.5}
    step = iter(losses.values())
    monkeypatch.setattr(MODULE, "evaluate_loss", lambda *args: next(step))
    config = small(corpus, tmp_path / "run", eval_interval=4, keep_last=1)

    def stop(line):
        if (line["kind"], line["step"]) == ("step", 12):
            os.kill(os.getpid(), signal.SIGTERM)

    train(config, stop)
    assert [f.name for f in checkpoint_folders(config.out)] == ["step_000013", "step_000008"]
    train(config, quiet)  # after a resume
    best = Path(config.out, "checkpoints", "step_000008")
    assert checkpoint_folders(config.out) == [best.with_name("step_000020"), best]
    assert (
        best_checkpoint(checkpoint_folders(config.out)) == best and read_state(best)["validation_loss"] == 2.0
    )
    assert load_run(best)[1]["checkpoint"] == str(best.resolve())
    assert not torch.equal(load_run(best)[0].lm_head.weight, load_run(config.out)[0].lm_head.weight)
    train(replace(config, keep_best=False, max_steps=22, extend=True, eval_interval=0), quiet)
    assert [f.name for f in checkpoint_folders(config.out)] == ["step_000022"]


def test_a_checkpoint_of_a_wrapped_model_is_that_of_the_model(tmp_path):
    model = GPT(GPTConfig(block_size=8, vocab_size=50, n_layer=1, n_head=2, n_embd=6))
    wrapped = torch.nn.Module()
    wrapped.module = torch.compile(model)  # as DistributedDataParallel names what it holds
    save_checkpoint(tmp_path / "step_000001", wrapped, None, {"step": 1})
    names = load_file(tmp_path / "step_000001" / "model.safetensors").keys()
    assert names == model_tensors(model).keys() and not any("_orig_mod" in n or "module" in n for n in names)
    load_checkpoint(tmp_path / "step_000001", GPT(model.config))


def test_no_pickle_is_written_or_read_and_nothing_is_loaded_to_a_gpu(corpus, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a pickle")

    devices = []

    def spy(path, *args, **kwargs):
        devices.append((args, kwargs))
        return load_file(path, *args, **kwargs)

    for name in ("torch.load", "torch.save", "pickle.load", "pickle.loads", "pickle.Unpickler"):
        monkeypatch.setattr(name, refuse)
    monkeypatch.setattr("gpt2lib.checkpoint.load_file", spy)
    train(small(corpus, tmp_path / "run", max_steps=4), quiet)
    train(small(corpus, tmp_path / "run", max_steps=6, extend=True), quiet)
    kinds = {path.suffix or path.name for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert kinds == {".safetensors", ".json", ".jsonl", "lock"}
    assert devices == [
        ((), {}),
        ((), {}),
    ]  # to the CPU, and from there into tensors that exist: no second copy on a GPU


# Curves elsewhere.


def test_tensorboard_gets_what_the_ledger_gets(corpus, tmp_path, monkeypatch):
    written, starts = {}, []

    class Writer(contextlib.AbstractContextManager):
        def __init__(self, folder, purge_step):
            starts.append((folder, purge_step))

        def add_scalar(self, name, value, step):
            written[name, step] = value

        def __exit__(self, *error):
            starts.append("closed")

    fake = types.ModuleType("torch.utils.tensorboard")
    fake.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    config = small(corpus, tmp_path / "run", tensorboard=True)
    train(config, quiet)
    assert starts == [(str(tmp_path / "run" / "tensorboard"), 0), "closed"]
    for line in ledger(config.out):
        if "loss" in line:
            assert written[f"{line['kind']}/loss", line["step"]] == line["loss"]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # not installed
    with pytest.raises(ValueError, match="pip install tensorboard"):
        train(small(corpus, tmp_path / "other", tensorboard=True), quiet)


# The schedule and the device.

GOLDEN = {0: 0.25, 1: 0.5, 2: 0.75, 3: 1.0, 4: 0.9554, 6: 0.6501, 9: 0.1446, 10: 0.1, 11: 0.1}


def test_the_schedule_has_its_golden_values():
    """4 steps of warm-up, 11 in all: the peak once, on step 3, and the end on the last step."""
    found = {step: round(get_lr(step, 1.0, 0.1, 4, 11), 4) for step in range(12)}
    for step, lr in GOLDEN.items():
        assert found[step] == lr, step
    assert [step for step, lr in found.items() if lr == 1.0] == [3]
    assert [get_lr(step, 1.0, 0.1, 5, 5) for step in (0, 4)] == [
        0.2,
        1.0,
    ]  # all of it warm-up: no division by zero


def test_apples_gpu_is_no_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device() == "mps"


NAN = """
import json, os, sys, time
import gpt2lib

module = sys.modules["gpt2lib.train"]
real, rank = module.accumulate, int(os.environ["RANK"])
module.accumulate = lambda *args: real(*args) * (float("nan") if rank == 1 and args[0].require_backward_grad_sync and
    json.loads(sys.argv[1])["max_steps"] == 9 else 1)
try:
    module.train(module.TrainConfig(**json.loads(sys.argv[1])))
except FloatingPointError as error:
    print("rank", rank, error, flush=True)
    time.sleep(3)  # the other one may still be waiting for the last words of this one
"""


def test_a_loss_that_is_not_finite_in_one_process_stops_all(corpus, tmp_path):
    config = small(corpus, tmp_path / "run", max_steps=9)
    script = tmp_path / "script.py"
    script.write_text(NAN)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(script),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, json.dumps(asdict(config))], capture_output=True, text=True, timeout=120, env=environment
    )
    assert "rank 0 step 0: loss nan" in done.stdout and "rank 1 step 0: loss nan" in done.stdout, done.stderr


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
