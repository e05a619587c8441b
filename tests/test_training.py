"""A run may be resumed, moved, divided and watched, and comes out the same."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import types
import warnings
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_runs import TRAIN, ledger, small, start, tensors, write_corpus

from gpt2lib import GPT, DataLoaderLite, GPTConfig, TrainConfig, get_lr, load_corpus, train
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
from gpt2lib.train import evaluate_loss, evaluation_windows, memory_needed, pick_device, pick_dtype

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


def test_looking_at_a_run_does_not_change_it(corpus, tmp_path):
    often = dict(eval_interval=1, sample_interval=1)
    seldom = dict(eval_interval=3, sample_interval=0, checkpoint_interval=0)
    never = dict(eval_interval=0, sample_interval=0, checkpoint_interval=0)
    runs = [tmp_path / "often", tmp_path / "seldom", tmp_path / "never"]
    for run, cadence in zip(runs, (often, seldom, never)):
        train(small(corpus, run, dropout=0.1, **cadence))
    assert tensors(runs[0]) == tensors(runs[1]) == tensors(runs[2])


def test_the_loop_takes_the_steps_that_are_written_out_here(corpus, tmp_path):
    config = small(
        corpus, tmp_path / "run", max_steps=7, grad_accum_steps=2, warmup_steps=2, grad_clip=0.5, weight_decay=0.3,
        max_lr=3e-2, eval_interval=4, sample_interval=0,
    )  # fmt: skip
    train(config, quiet)
    lines = {(line["kind"], line["step"]): line for line in ledger(config.out)}
    tokens, held_out = (load_corpus(corpus).tokens(split, "bytes") for split in ("train", "validation"))
    loader = DataLoaderLite(tokens, 4, 16, seed=config.seed)
    torch.manual_seed(config.seed)
    model = GPT(config.model)
    matrices, vectors = ([p for p in model.parameters() if (p.dim() > 1) == many] for many in (True, False))
    groups = [dict(params=matrices, weight_decay=0.3), dict(params=vectors, weight_decay=0.0)]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    for step in range(7):
        lr = get_lr(step, 3e-2, 3e-3, 2, 7)
        for group in optimizer.param_groups:
            group["lr"] = lr
        loss = sum(model(*loader.next_batch())[1] for _ in range(2)) / 2
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        for name, expected, tolerance in (
            ("loss", loss.item(), 1e-3),
            ("grad_norm", norm.item(), 0.03),
            ("lr", lr, 1e-9),
        ):
            assert lines["step", step][name] == pytest.approx(expected, rel=tolerance), (step, name)
        optimizer.step()
        optimizer.zero_grad()
    last = load_run(config.out)[0]
    first, *_, final = np.linspace(0, (len(held_out) - 1) // 16 - 1, 4).round().astype(int) * 16
    rows = torch.from_numpy(evaluation_windows(held_out, 16, 64))  # (4, 17)
    assert rows[0].tolist() == held_out[first : first + 17].tolist()
    assert rows[3].tolist() == held_out[final : final + 17].tolist()
    for each, tolerance in ((last, 1e-5), (model, 1e-3)):
        expected = each(rows[:, :-1], rows[:, 1:])[1].item()
        assert lines["eval", 7]["loss"] == pytest.approx(expected, rel=tolerance)
    assert lines["eval", 7]["tokens"] == 64
    assert [step for kind, step in lines if kind == "eval"] == [0, 4, 7]


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


def test_what_was_seen_at_the_step_of_a_resume_is_kept(corpus, whole, tmp_path):
    """Stopped after step 10, at which a validation and a sample were due, and saved there."""
    config = small(corpus, tmp_path / "run")

    def stop(line):
        if (line["kind"], line["step"]) == ("step", 9):
            os.kill(os.getpid(), signal.SIGTERM)

    train(config, stop)
    assert latest_checkpoint(config.out).name == "step_000010"
    train(config, quiet)
    assert ledger(config.out) == ledger(whole)


def test_clipping_is_turned_off_by_0(corpus, tmp_path):
    for name, grad_clip in (("off", 0), ("beyond", 1e9), ("on", 0.1)):
        train(small(corpus, tmp_path / name, max_steps=4, grad_clip=grad_clip), quiet)
    assert tensors(tmp_path / "off") == tensors(tmp_path / "beyond") != tensors(tmp_path / "on")


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
        dict(min_lr=1e-5),
        dict(warmup_steps=4),
        dict(grad_clip=0.5),
        dict(dropout=0.1),
        dict(dtype="bfloat16"),
        dict(n_head=3),
        dict(n_embd=24),
        dict(block_size=32),
        dict(vocab_size=300),
        dict(seed=7, extend=True),
    ],
    ids=str,
)
def test_resuming_with_what_would_change_the_result_is_refused(corpus, whole, change):
    with pytest.raises(ValueError) as error:
        train(small(corpus, whole, **change))
    name = "sequences_per_step" if "batch_size" in change else next(iter(change))
    assert name in str(error.value)


def test_resuming_with_another_text_is_refused(corpus, whole, tmp_path):
    other = tmp_path / Path(corpus).name
    other.write_text(Path(corpus).read_text(encoding="utf-8") + "!", encoding="utf-8")
    with pytest.raises(ValueError, match="corpus_sha256 was"):
        train(small(str(other), whole))


def test_a_run_is_not_made_shorter_than_it_is(corpus, whole):
    with pytest.raises(ValueError, match="has taken 20 steps already"):
        train(small(corpus, whole, max_steps=12, extend=True))


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
        with pytest.raises(ValueError, match="model.safetensors is damaged"):
            load_run(folder)
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
    # 320 positions: the head takes 256, then the rest
    settings = dict(vocab_size=8192, batch_size=20, max_steps=8, eval_interval=0, sample_interval=0)
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


def test_bfloat16_computes_in_16_bits_and_keeps_the_weights_in_32(corpus, whole, tmp_path):
    config = small(corpus, tmp_path / "run", dtype="bfloat16")
    train(config, quiet)
    assert 1e-5 < largest_difference(config.out, whole) < 0.02
    weights = load_file(latest_checkpoint(config.out) / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


def test_the_scale_of_float16_goes_on_where_it_was(corpus, tmp_path):
    def stop(line):
        if (line["kind"], line["step"]) == ("step", 2):
            os.kill(os.getpid(), signal.SIGTERM)

    runs = [small(corpus, tmp_path / name, dtype="float16", max_steps=5) for name in ("whole", "parts")]
    for config, on_line in zip([*runs, runs[1]], (quiet, stop, quiet)):
        train(config, on_line)
    states = [read_state(latest_checkpoint(config.out)) for config in runs]
    assert states[0] == states[1] and "scale" in states[0]["scaler"]
    assert tensors(runs[0].out) == tensors(runs[1].out)


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float16)])
def test_a_type_that_is_only_emulated_is_not_chosen(monkeypatch, native, dtype):
    def supported(including_emulation=True):
        return including_emulation or native

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert pick_dtype("auto", "cuda:0") == dtype and pick_dtype("auto", "cpu") == torch.float32


def test_a_compiled_model_is_evaluated_uncompiled():
    def refuse(graph, inputs):
        raise AssertionError("compiled")

    model = GPT(GPTConfig(block_size=8, vocab_size=50, n_layer=1, n_head=2, n_embd=6))
    compiled, tokens = torch.compile(model, backend=refuse), np.arange(48)  # five windows of 8, and 7 tokens
    assert evaluate_loss(compiled, tokens, 48, 2) == evaluate_loss(model, tokens, 48, 2)


def test_a_loss_is_widened_on_the_cpu():
    """Apple's GPUs have no float64."""

    class OnApple(torch.Tensor):
        def double(self):
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")

        def cpu(self):
            return self.as_subclass(torch.Tensor)

    model = GPT(GPTConfig(block_size=8, vocab_size=50, n_layer=1, n_head=2, n_embd=6))
    expected = evaluate_loss(model, np.arange(50), 48, 2)
    model.register_forward_hook(lambda layer, inputs, output: (None, output[1].as_subclass(OnApple)))
    assert evaluate_loss(model, np.arange(50), 48, 2) == expected


def test_a_time_is_taken_when_the_device_has_done_its_work(corpus, tmp_path, monkeypatch):
    rates = []
    monkeypatch.setattr(MODULE, "_wait_for", lambda device: time.sleep(0.1))  # as for a GPU
    train(
        small(corpus, tmp_path / "run", max_steps=3),
        lambda line: rates.append(line.get("tokens_per_second", 0)),
    )
    assert 0 < max(rates) < 4 * 16 / 0.1


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
    left = Path(config.out, "checkpoints", "step_000003.tmp")  # by a save that was killed
    left.mkdir(parents=True)

    def stop(line):
        if (line["kind"], line["step"]) == ("step", 12):
            os.kill(os.getpid(), signal.SIGTERM)

    train(config, stop)
    assert [f.name for f in checkpoint_folders(config.out)] == ["step_000013", "step_000008"]
    assert not left.exists()
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


def test_the_newest_checkpoint_is_that_of_the_highest_number(tmp_path):
    model = GPT(GPTConfig(block_size=8, vocab_size=50, n_layer=1, n_head=2, n_embd=6))
    for step in (999_999, 1_000_000):
        save_checkpoint(tmp_path / "checkpoints" / f"step_{step:06d}", model, None, {"step": step})
    (tmp_path / "checkpoints" / "step_best").mkdir()
    assert latest_checkpoint(tmp_path).name == "step_1000000"


def test_a_save_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    calls, checkpoint = [], sys.modules["gpt2lib.checkpoint"]
    sync, replace_file = checkpoint.sync, os.replace
    monkeypatch.setattr(checkpoint, "sync", lambda path: calls.append(path.name) or sync(path))
    monkeypatch.setattr(os, "replace", lambda a, b: calls.append(f"-> {b.name}") or replace_file(a, b))
    model = GPT(GPTConfig(block_size=8, vocab_size=50, n_layer=1, n_head=2, n_embd=6))
    save_checkpoint(tmp_path / "all" / "step_000001", model, None, {"step": 1})
    files = ["model.safetensors", "state.json", "manifest.json", "step_000001.tmp"]
    assert calls == [*files, "-> step_000001", "all"]
    calls.clear()
    checkpoint.atomic_write(tmp_path / "config.json", "{}")
    assert calls == ["config.json.tmp", "-> config.json", tmp_path.name]


def test_the_ledger_is_on_the_disk_before_its_checkpoint(corpus, tmp_path, monkeypatch):
    calls, save, sync = [], MODULE.save_checkpoint, os.fsync
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: calls.append(os.fstat(file).st_ino) or sync(file))
        patch.setattr(MODULE, "save_checkpoint", lambda *a, **k: calls.append("save") or save(*a, **k))
        train(small(corpus, tmp_path / "run", max_steps=2), quiet)
    assert calls[calls.index("save") - 1] == (tmp_path / "run" / "ledger.jsonl").stat().st_ino


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
    assert [get_lr(0, 1.0, 0.1, warmup_steps, 1) for warmup_steps in (0, 1)] == [
        0.1,
        1.0,
    ]  # a run of one step
    assert [get_lr(9), get_lr(49), get_lr(50)] == pytest.approx(
        [6e-4, 6e-5, 6e-5]
    )  # by default it ends on a tenth


def test_apples_gpu_is_no_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device() == "mps"


@pytest.mark.parametrize("device", ["banana", "meta", "cuda:99", ""])
def test_a_device_that_cannot_be_used_is_refused(device):
    with pytest.raises(ValueError, match=f"device='{device}' cannot be used here.*choose auto or cpu"):
        pick_device(device)


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


def test_a_gradient_that_is_not_finite_stops_as_well(corpus, tmp_path, monkeypatch):
    real, left = MODULE.accumulate, iter(range(2))

    def accumulate(model, *rest):
        total = real(model, *rest)
        if next(left, None) is None:
            next(model.parameters()).grad[3] = float("inf")
        return total

    monkeypatch.setattr(MODULE, "accumulate", accumulate)
    config = small(corpus, tmp_path / "run", checkpoint_interval=1)
    tokens = load_corpus(corpus).tokens("train", "bytes")
    windows = DataLoaderLite(tokens, 4, 16, seed=config.seed).windows_at(2)
    words = rf"step 2: loss \d.*gradient norm inf.*Windows of the batch: \[{re.escape(str(windows))}\].*step_000002"
    with pytest.raises(FloatingPointError, match=words):
        train(config, quiet)
    assert all(parameter.isfinite().all() for parameter in load_run(config.out)[0].parameters())


@pytest.mark.parametrize("text", ["hello", "x\n" * 5, "hello world " * 2])
def test_a_corpus_too_short_for_one_batch_is_refused_with_both_lengths(tmp_path, text):
    (tmp_path / "short.txt").write_text(text)
    with pytest.raises(ValueError, match=r"\d+ tokens"):
        train(small(str(tmp_path / "short.txt"), tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_paths_may_be_paths(corpus, tmp_path):
    settings = vars(small(corpus, tmp_path, max_steps=1))
    run = train(TrainConfig(**{**settings, "corpus": Path(corpus), "out": tmp_path / "run"}), quiet)
    assert header(run)["config"]["corpus"] == corpus


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
