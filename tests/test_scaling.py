"""Several processes take the steps of one, and no run is lost when one of them dies."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from small_runs import flags, ledger, tensors, write_corpus

from gpt2lib import GPT, DataLoaderLite, GPTConfig, TrainConfig, load_corpus, train
from gpt2lib.checkpoint import latest_checkpoint
from gpt2lib.train import evaluate_loss

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
STEPS = 50

# `train`, in a process that can be told to stop or die at a step, and that lists the files it changes.
TRAIN = """
import json, os, signal, sys
import torch
from gpt2lib import DataLoaderLite, TrainConfig, train

settings, stop, die, how = json.loads(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
rank, out, read = int(os.environ["RANK"]), os.path.realpath(settings["out"]), DataLoaderLite.batch_at
changed = set()
if how == "elsewhere" and rank == 1:  # a machine that does not share the disk
    settings["out"] += "_of_rank_1"


def watch(event, args):
    writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if writes or event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree"):
        path = args[0]
        if isinstance(path, (str, bytes, os.PathLike)) and os.path.realpath(os.fsdecode(path)).startswith(out):
            changed.add(os.path.basename(os.fsdecode(path)))


def batch_at(loader, micro):
    step = micro / settings["grad_accum_steps"]
    if rank == 1 and step == stop:
        os.kill(os.getpid(), signal.SIGTERM)
    if rank == 1 and step == die:
        print("dies now", flush=True)
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise RuntimeError("the disk of this rank is gone")
    return read(loader, micro)


DataLoaderLite.batch_at = batch_at
module = sys.modules["gpt2lib.train"]  # the package has the function under this name
shard, module.shard = module.shard, lambda *args: (print("splits the model"), shard(*args))
sys.addaudithook(watch)
seeds, manual_seed = [], torch.manual_seed
torch.manual_seed = lambda seed: (seeds.append(seed), manual_seed(seed))
train(TrainConfig(**settings))
print(f"rank {rank} has the seeds {seeds}", flush=True)
print(f"rank {rank} changed {sorted(changed)}", flush=True)
"""

# The gradient of one step before it is clipped, its length, and the share of the weights that a process holds.
GRADIENT = """
import json, sys
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.nn.parallel import DistributedDataParallel
from gpt2lib import GPT, DataLoaderLite, TrainConfig, load_corpus
from gpt2lib.checkpoint import model_tensors
from gpt2lib.train import accumulate, shard

config = TrainConfig(**json.loads(sys.argv[1]))
dist.init_process_group("gloo")
tokens = load_corpus(config.corpus).tokens("train", config.tokenizer)
shape = (config.batch_size, config.model.block_size, dist.get_rank(), dist.get_world_size(), config.seed)
loader = DataLoaderLite(tokens, *shape)
batches = [loader.batch_at(micro) for micro in range(config.grad_accum_steps)]
found = {}
for dtype in (torch.float32, torch.bfloat16):
    for split in (False, True):
        torch.manual_seed(config.seed)
        model = GPT(config.model)
        before = {name: tensor.clone() for name, tensor in model_tensors(model).items()}
        if split:
            shard(model, torch.device("cpu"), dtype)
            assert model.lm_head.weight is model.transformer.wte.weight
            parts = sum(p.to_local().nbytes for p in model.parameters())
            found["share"] = torch.tensor(parts / sum(p.nbytes for p in model.parameters()))
        wrapped = model if split else DistributedDataParallel(model)
        after = model_tensors(wrapped)
        assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16)
        accumulate(wrapped, batches, autocast, torch.amp.GradScaler("cpu", enabled=False))
        kind = f"{str(dtype)[6:]}.{'split' if split else 'whole'}"
        for name, p in model.named_parameters():
            found[f"{kind}.{name}"] = (p.grad.full_tensor() if split else p.grad).clone()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        found[f"{kind}.norm"] = norm.full_tensor() if split else norm
        clipped = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
        found[f"{kind}.clipped"] = clipped.full_tensor() if split else clipped
both = DistributedDataParallel(torch.compile(GPT(config.model)))
assert model_tensors(both).keys() == before.keys()
if dist.get_rank() == 0:
    save_file(found, sys.argv[2])
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> str:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "hamlet.txt")


def small(corpus: str, out: Path, world_size: int = 1, **changes) -> TrainConfig:
    """A run of 8 sequences a step: with accumulation, and with a validation that does not divide by 2."""
    settings = dict(
        max_lr=2e-3, tokenizer="bytes", block_size=16, n_layer=2, n_head=2, n_embd=12, batch_size=4 // world_size,
        grad_accum_steps=2, max_steps=STEPS, warmup_steps=3, eval_interval=10, eval_tokens=16 * 13,
        sample_interval=25, checkpoint_interval=7, device="cpu", prefetch=False,
    )  # fmt: skip
    return TrainConfig(corpus=corpus, out=str(out), **{**settings, **changes})


class Job:
    """Two processes that `torchrun` starts. What they print goes into a file: nobody has to read it in time."""

    def __init__(self, config: TrainConfig, *words: object):
        self.printed = Path(config.out).parent / "printed.txt"
        with open(self.printed, "w") as file:
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            self.process = subprocess.Popen(
                [*TORCHRUN, *map(str, words)], stdout=file, stderr=subprocess.STDOUT, env=environment
            )

    def wait_for(self, text: str) -> None:
        while text not in self.printed.read_text():
            assert self.process.poll() is None, self.printed.read_text()
            time.sleep(0.02)

    def end(self, timeout: float = 300) -> tuple[int, str]:
        """Exit status and what was printed."""
        return self.process.wait(timeout), self.printed.read_text()


def launch(script: str, config: TrainConfig, *words: object) -> Job:
    path = Path(config.out).parent / "script.py"
    path.write_text(script)
    return Job(config, path, json.dumps(asdict(config)), *words)


def on_two(config: TrainConfig, stop: int = -1) -> str:
    """Train with two processes, up to and with the step `stop`; returns what was printed."""
    status, printed = launch(TRAIN, config, stop, -1, "").end()
    assert status == 0, printed
    return printed


def on_one(config: TrainConfig, stop: int = -1) -> None:
    def on_line(line: dict) -> None:
        if line["kind"] == "step" and line["step"] == stop:
            os.kill(os.getpid(), signal.SIGTERM)

    train(config, on_line)


def losses(run: Path, kind: str, value: str = "loss") -> dict[int, float]:
    return {line["step"]: line[value] for line in ledger(run) if line["kind"] == kind}


def assert_same_curves(run: Path, other: Path) -> None:
    for kind, value, tolerance in (
        ("step", "loss", 1e-5),
        ("eval", "loss", 1e-5),
        ("step", "grad_norm", 1e-4),
    ):
        mine, theirs = losses(run, kind, value), losses(other, kind, value)
        assert list(mine) == list(theirs)
        assert max(abs(mine[step] / theirs[step] - 1) for step in mine) < tolerance, (kind, value)


@pytest.fixture(scope="module")
def one(corpus, tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("one") / "run"
    train(small(corpus, out))
    return out


@pytest.fixture(scope="module")
def two(corpus, tmp_path_factory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("two") / "run"
    return out, on_two(small(corpus, out, 2))


@pytest.fixture(scope="module")
def split(corpus, tmp_path_factory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("split") / "run"
    return out, on_two(small(corpus, out, 2, preset="gpt2-large"))


def test_two_processes_take_the_steps_of_one(one, two, split):
    assert len(losses(one, "step")) == STEPS
    for run, _ in (two, split):
        assert_same_curves(run, one)
        samples = [[line["text"] for line in ledger(path) if line["kind"] == "sample"] for path in (run, one)]
        assert samples[0] == samples[1]


def test_only_a_large_model_is_split_unless_asked_for(two, split):
    assert "splits the model" not in two[1] and split[1].count("splits the model") == 2


def test_only_the_first_process_writes(two, split):
    for _, output in (two, split):
        changed = dict(re.findall(r"rank (\d) changed (.*)", output))
        assert "ledger.jsonl" in changed["0"] and "state.json" in changed["0"]
        assert changed["1"] == "[]"


def test_each_process_and_step_has_dropout_of_its_own(two):
    (first, *mine), (again, *others) = (json.loads(s) for s in re.findall(r"has the seeds (.*)", two[1]))
    assert first == again  # the same weights
    assert len({*mine, *others}) == 2 * STEPS


def test_tokens_a_step_are_stated_and_the_same(one, two):
    headers = [json.loads(Path(run, "ledger.jsonl").read_text().splitlines()[0]) for run in (one, two[0])]
    assert [header["world_size"] for header in headers] == [1, 2]
    assert [header["tokens_per_step"] for header in headers] == [8 * 16, 8 * 16]


def test_another_number_of_processes_must_not_change_the_batch(corpus, two, tmp_path):
    with pytest.raises(ValueError, match="sequences_per_step was 8, now 4"):
        train(small(corpus, two[0], 2))  # the same flags, on one process


@settings(deadline=None, max_examples=40)
@given(
    B=st.integers(1, 3), world_size=st.integers(1, 5), n_windows=st.integers(15, 40), seed=st.integers(0, 9)
)
def test_each_window_is_read_once_an_epoch_by_any_number_of_processes(B, world_size, n_windows, seed):
    tokens = np.arange(n_windows * 2 + 1)
    ranks = [DataLoaderLite(tokens, B, 2, rank, world_size, seed) for rank in range(world_size)]
    stream = [w for step in range(2 * n_windows) for loader in ranks for w in loader.windows_at(step)]
    for epoch in range(2):
        read = stream[epoch * n_windows : (epoch + 1) * n_windows]
        assert sorted(read) == list(range(n_windows))


@pytest.mark.parametrize("world_size", [2, 3, 5])
@pytest.mark.parametrize("n_windows", [1, 4, 13])
def test_any_number_of_processes_evaluates_on_the_same_tokens(monkeypatch, n_windows, world_size):
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: None)  # each process keeps its own part of the sum
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=7, vocab_size=31, n_layer=1, n_head=2, n_embd=6))
    passes: list[int] = []
    model.register_forward_hook(lambda *_: passes.append(1))
    arguments = (model, np.random.default_rng(0).integers(31, size=7 * n_windows + 3), 7 * n_windows, 2)
    whole = evaluate_loss(*arguments)
    passes.clear()
    parts, counts = [], set()
    for rank in range(world_size):
        parts.append(evaluate_loss(*arguments, rank, world_size))
        counts.add(len(passes))
        passes.clear()
    assert sum(parts) == pytest.approx(whole, rel=1e-6)
    assert len(counts) == 1  # as many passes in each process, or sharded ones would wait for each other


def test_a_checkpoint_does_not_show_how_many_processes_wrote_it(one, two, split):
    runs = one, two[0], split[0]
    for file in ("model.safetensors", "optimizer.safetensors"):
        shapes = [
            {name: tensor.shape for name, tensor in load_file(latest_checkpoint(run) / file).items()}
            for run in runs
        ]
        assert shapes[0] == shapes[1] == shapes[2]


def test_gradients_of_two_processes_equal_those_of_one(corpus, tmp_path):
    config = small(corpus, tmp_path / "run", 2)
    status, printed = launch(GRADIENT, config, tmp_path / "gradient.safetensors").end()
    assert status == 0, printed
    found = load_file(tmp_path / "gradient.safetensors")
    tokens = load_corpus(corpus).tokens("train", "bytes")
    x, y = DataLoaderLite(tokens, 8, config.model.block_size, seed=config.seed).batch_at(0)  # in one piece
    for dtype, tolerance in (("float32", 1e-5), ("bfloat16", 2e-2)):
        torch.manual_seed(config.seed)
        model = GPT(config.model)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            _, loss = model(x, y)
        loss.backward()
        expected = {name: parameter.grad for name, parameter in model.named_parameters()}
        expected["norm"] = torch.nn.utils.get_total_norm(expected.values())
        expected["clipped"] = torch.tensor(0.1)
        for kind in ("whole", "split"):  # DDP and FSDP
            for name, value in expected.items():
                difference = found[f"{dtype}.{kind}.{name}"] - value
                assert difference.norm() <= tolerance * value.norm(), (dtype, kind, name)
    assert 0.5 <= found["share"] < 0.53  # an odd vocabulary does not halve


@pytest.mark.parametrize(
    "places",
    [("one", "whole", "one"), ("one", "split", "whole", "split", "one")],
    ids="-".join,
)
def test_a_run_moves_between_one_process_and_two(corpus, one, tmp_path, places):
    run = tmp_path / "run"
    for i, place in enumerate(places):
        stop = 8 * (i + 1) if i + 1 < len(places) else -1
        if place == "one":
            on_one(small(corpus, run), stop)
        else:
            on_two(small(corpus, run, 2, fsdp=place == "split"), stop)
        assert latest_checkpoint(run).name == f"step_{stop + 1 if stop > 0 else STEPS:06d}"
    assert_same_curves(run, one)


@pytest.mark.parametrize("how, fsdp", [("killed", False), ("raised", True)])
def test_a_process_that_dies_ends_the_job_and_the_run_goes_on(corpus, two, split, tmp_path, how, fsdp):
    config = small(corpus, tmp_path / "run", 2, fsdp=fsdp)
    undisturbed = (split if fsdp else two)[0]
    job = launch(TRAIN, config, -1, 23, how)
    job.wait_for("dies now")
    status, printed = job.end(timeout=60)
    assert status != 0
    assert ("SIGKILL" if how == "killed" else "RuntimeError: the disk of this rank is gone") in printed
    assert latest_checkpoint(config.out).name == "step_000021"
    on_two(config)
    assert ledger(config.out) == ledger(undisturbed)  # bit for bit
    assert tensors(config.out) == tensors(undisturbed)


def test_processes_that_find_different_checkpoints_do_not_drift_apart(corpus, two, tmp_path):
    shutil.copytree(two[0], tmp_path / "run")
    config = small(corpus, tmp_path / "run", 2, fsdp=True)
    status, printed = launch(TRAIN, config, -1, -1, "elsewhere").end(timeout=60)
    assert status != 0 and f"finds {STEPS} steps" in printed and "finds 0 steps" in printed


def test_a_signal_to_the_launcher_saves(corpus, tmp_path):
    config = replace(small(corpus, tmp_path / "run", 2), max_steps=10**6, checkpoint_interval=0)
    job = Job(config, "-m", "gpt2lib", *flags(config))
    path = Path(config.out, "ledger.jsonl")
    while job.process.poll() is None and (not path.exists() or path.stat().st_size < 3000):
        time.sleep(0.01)
    job.process.send_signal(signal.SIGTERM)
    _, printed = job.end(timeout=60)
    assert latest_checkpoint(config.out) is not None, printed
    assert latest_checkpoint(config.out).name == f"step_{max(losses(config.out, 'step')) + 1:06d}"
