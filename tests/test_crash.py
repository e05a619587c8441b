"""A run may be killed at any instant, its disk may fill up and its files may rot: it ends as if nothing had been.

`CRASH_KILLS=2000 python -m pytest tests/test_crash.py -k random` kills that often.
"""

import errno
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_runs import TRAIN, flags, ledger, small, start, tensors, write_corpus

import gpt2lib.checkpoint as checkpoint
from gpt2lib import GPT, TrainConfig, train
from gpt2lib.checkpoint import checkpoint_folders, latest_checkpoint, load_run, save_checkpoint

KILLS = int(os.environ.get("CRASH_KILLS", 100))
posix = pytest.mark.skipif(os.name == "nt", reason="SIGKILL and fork")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> str:
    torch.set_num_threads(1)
    return write_corpus(tmp_path_factory.mktemp("corpus") / "hamlet.txt")


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory) -> Path:
    """The run that nobody disturbed: `gpt2 train` from a shell, start to end."""
    config = small(corpus, tmp_path_factory.mktemp("whole") / "run", max_steps=40, dropout=0.1)
    shell(config).communicate(timeout=300)
    assert latest_checkpoint(config.out).name == "step_000040"
    return Path(config.out)


@pytest.fixture(scope="module")
def spawn(tmp_path_factory):
    """Runs `gpt2 train` in a process, and kills it `after` seconds or at an `operation`; the answer has its status."""
    log = tmp_path_factory.mktemp("log") / "log"
    command = [sys.executable, Path(__file__).with_name("crash_server.py")]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as server:

        def order(config: TrainConfig, **when) -> dict:
            words = json.dumps({"arguments": flags(config), "log": str(log), **when})
            server.stdin.write(words + "\n")
            server.stdin.flush()
            answer = json.loads(server.stdout.readline())
            assert answer["status"] in (0, -signal.SIGKILL), log.read_text()
            return answer

        yield order
        server.stdin.close()


def shell(config: TrainConfig) -> subprocess.Popen:
    """`gpt2 train`, as from a shell."""
    command = [sys.executable, "-m", "gpt2lib", *flags(config)]
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, **quiet)


def has_steps(process: subprocess.Popen, run: str, n: int = 3) -> None:
    """Wait until the process has taken `n` steps."""
    path = Path(run, "ledger.jsonl")
    while process.poll() is None and not (path.exists() and path.read_text().count('"kind": "step"') >= n):
        time.sleep(0.01)


def same(run: str | Path, whole: Path) -> bool:
    return tensors(run) == tensors(whole) and ledger(run) == ledger(whole)


@posix
def test_a_run_killed_at_random_instants_ends_as_if_it_had_not_been(spawn, corpus, whole, tmp_path):
    """The run is killed again and again until it gets through; then another one begins."""
    chance = random.Random(1337)
    settings = dict(max_steps=40, dropout=0.1)
    seconds = spawn(small(corpus, tmp_path / "first", **settings))["seconds"]
    kills = inside_a_save = runs = 0
    while kills < KILLS:
        config = small(corpus, tmp_path / "run", **settings)
        before = kills
        while (answer := spawn(config, after=chance.uniform(0, seconds)))["status"] != 0:
            kills += 1
            inside_a_save += any(tmp_path.glob("run/checkpoints/*.tmp"))
            if kills >= KILLS:
                spawn(config)
                break
        if kills == before:  # it was quicker than the last kill: aim at what a run takes now
            seconds = answer["seconds"]
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # nothing half-written looks like a checkpoint
            assert same(config.out, whole), f"after {kills} kills"
        assert not any(tmp_path.glob("run/checkpoints/*.tmp"))
        shutil.rmtree(config.out)
        runs += 1
    print(
        f"{kills} kills, {inside_a_save} of them inside a save; {runs} runs, all equal to the one never killed"
    )
    assert inside_a_save >= KILLS // 10


@posix
@pytest.mark.parametrize("first", range(1, 9))
def test_a_run_killed_at_any_operation_of_a_save_ends_as_if_it_had_not_been(spawn, corpus, tmp_path, first):
    """Every eighth operation from `first` on: from the first file of the run to the end of its second save."""
    settings = dict(max_steps=4, keep_last=1, keep_best=False, eval_interval=0, sample_interval=0)
    spawn(small(corpus, tmp_path / "whole", **settings))
    config = small(corpus, tmp_path / "run", **settings)
    operation = first
    while spawn(config, operation=operation)["status"] != 0:
        spawn(config)
        assert same(config.out, tmp_path / "whole"), f"killed at operation {operation}"
        shutil.rmtree(config.out)
        operation += 8
    assert operation > 48, "a save has fewer operations than it had: are they still counted?"


@posix
def test_a_process_from_the_shell_is_no_other_than_a_fork(corpus, whole, tmp_path):
    config = small(corpus, tmp_path / "run", max_steps=40, dropout=0.1)
    for seed in range(2):
        process = shell(config)
        has_steps(process, config.out, 2 + 9 * seed)
        time.sleep(random.Random(seed).uniform(0, 0.1))
        process.kill()
        process.wait()
    train(config)
    assert same(config.out, whole)


# What is done to the newest checkpoint, what is said, and which one is used then: the newest, the one before, or none.


def truncated(run: Path, newest: Path, patch: pytest.MonkeyPatch):
    path = newest / "optimizer.safetensors"
    path.write_bytes(path.read_bytes()[:-9])


def bit_flipped(run: Path, newest: Path, patch: pytest.MonkeyPatch):
    path = newest / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def file_missing(run: Path, newest: Path, patch: pytest.MonkeyPatch):
    (newest / "state.json").unlink()


def extra_file(run: Path, newest: Path, patch: pytest.MonkeyPatch):
    (newest / ".DS_Store").write_bytes(b"\0")


def wrong_size(run: Path, newest: Path, patch: pytest.MonkeyPatch):
    with open(newest / "model.safetensors", "ab") as file:
        file.write(b"\0" * 8)


def empty_manifest(run: Path, newest: Path, patch: pytest.MonkeyPatch):
    (newest / "manifest.json").write_text("{}")


def permission_denied(run: Path, newest: Path, patch: pytest.MonkeyPatch):
    path = newest / "model.safetensors"
    path.chmod(0)
    if os.access(path, os.R_OK):  # root may read everything

        def deny(file, *args, **kwargs):
            if not Path(file).stat().st_mode & 0o777:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))
            return open(file, *args, **kwargs)

        patch.setattr(checkpoint, "open", deny, raising=False)


def disk_full_while_saving(run: Path, newest: Path, patch: pytest.MonkeyPatch):
    def full(tensors, path):
        path.write_bytes(b"half of the weights")
        raise checkpoint.SafetensorError("I/O error: No space left on device (os error 28)")

    model, _ = load_run(run)
    with patch.context() as inner, pytest.raises(OSError) as error:
        inner.setattr(checkpoint, "save_file", full)
        save_checkpoint(newest.with_name("step_000042"), model, None, {"step": 42})
    assert not list(newest.parent.glob("step_000042*"))  # its room is given back
    return str(error.value)


def older_version(run: Path, newest: Path, patch: pytest.MonkeyPatch):
    state = json.loads((newest / "state.json").read_text())
    (newest / "state.json").write_text(json.dumps({**state, "format": 0}))
    sign(newest)


def another_model(run: Path, newest: Path, patch: pytest.MonkeyPatch):
    other = GPT(replace(load_run(run)[0].config, n_layer=3))
    save_checkpoint(newest, other, other.configure_optimizers(), {"step": 40})


def sign(folder: Path) -> None:
    """Write a manifest that the files agree with."""
    names = [file.name for file in folder.iterdir() if file.name != "manifest.json"]
    entries = {
        n: {"bytes": (folder / n).stat().st_size, "sha256": checkpoint.digest(folder / n)} for n in names
    }
    (folder / "manifest.json").write_text(json.dumps(entries))


TABLE = [
    (truncated, ["optimizer.safetensors has", "bytes, the manifest says"], "before"),
    (bit_flipped, ["model.safetensors is damaged", "SHA-256"], "before"),
    (file_missing, ["state.json is missing"], "before"),
    (extra_file, [".DS_Store", "no part of it"], "newest"),
    (wrong_size, ["model.safetensors has", "bytes, the manifest says"], "before"),
    (empty_manifest, ["manifest.json is damaged", "does not name"], "before"),
    (permission_denied, ["model.safetensors", "Permission denied"], "before"),
    (disk_full_while_saving, ["step_000042 could not be written", "No space left", "as it was"], "newest"),
    (older_version, ["has format 0", "reads format 1"], "before"),
    (another_model, ["step_000040 does not fit this model", "transformer.h.2"], "none"),
]


@pytest.mark.parametrize(("damage", "said", "used"), TABLE, ids=[row[0].__name__ for row in TABLE])
def test_a_damage_is_said_and_costs_at_most_one_checkpoint(
    corpus, whole, tmp_path, monkeypatch, damage, said, used
):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    newest, before = checkpoint_folders(run)[:2]
    heard = [damage(run, newest, monkeypatch) or ""]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert latest_checkpoint(run) == (before if used == "before" else newest)
        try:
            train(small(corpus, run, max_steps=40, dropout=0.1), lambda line: None)
        except ValueError as error:
            assert used == "none"
            heard.append(str(error))
    heard += [str(warning.message) for warning in caught]
    assert all(any(words in text for text in heard) for words in said), heard
    assert all(folder.name in "".join(heard) for folder in [newest] if damage is not disk_full_while_saving)
    if used != "none":
        assert same(run, whole)
    print(f"{damage.__name__.replace('_', ' ')}: used {used}; said: {max(heard, key=len)}")


def test_a_checkpoint_from_before_formats_were_numbered_is_read(corpus, whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    for folder in checkpoint_folders(run):
        state = json.loads((folder / "state.json").read_text())
        (folder / "state.json").write_text(json.dumps({k: state[k] for k in ("step", "scaler")}))
        sign(folder)
    identity = json.loads((run / "config.json").read_text())
    identity["train"] = {k: v for k, v in identity["train"].items() if k != "keep_best"}
    (run / "config.json").write_text(json.dumps(identity))
    train(small(corpus, run, max_steps=40, dropout=0.1))
    assert same(run, whole)


def test_a_checkpoint_without_one_valid_copy_is_not_replaced(corpus, whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    for folder in checkpoint_folders(run):
        (folder / "model.safetensors").unlink()
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="none of the checkpoints"):
        train(small(corpus, run, max_steps=40, dropout=0.1))


FULL = """
import json, resource, sys
from gpt2lib import TrainConfig, train

def fill(line):
    if (line["kind"], line["step"]) == ("step", 9):  # from now on no file may grow beyond this
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))

try:
    train(TrainConfig(**json.loads(sys.argv[1])), fill)
except OSError as error:
    sys.exit(str(error))
"""


@posix
@pytest.mark.parametrize("room", [1000, 20_000], ids=["for nothing", "for half a file"])
def test_a_full_disk_loses_nothing_that_was_saved_before(corpus, whole, tmp_path, room):
    """A real write that fails half-way. With room for 1000 bytes the ledger is the first to notice."""
    config = small(corpus, tmp_path / "run", max_steps=40, dropout=0.1)
    process = start(FULL, config, str(room))
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 1 and "could not be written" in said and "Traceback" not in said, said
    assert said.count("\n") == 1
    assert latest_checkpoint(config.out).name in ("step_000008", "step_000010")
    train(config)
    assert same(config.out, whole)


@pytest.mark.parametrize("function", ["save_file", "sync"])
def test_a_save_that_fails_leaves_nothing_half_written(corpus, tmp_path, monkeypatch, function):
    config = small(corpus, tmp_path / "run")
    train(replace(config, max_steps=2, eval_interval=0, sample_interval=0))

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, function, full)
        with pytest.raises(OSError, match="No space left on device.*what was saved before is as it was"):
            train(replace(config, extend=True), lambda line: None)
    assert [f.name for f in Path(config.out, "checkpoints").iterdir()] == ["step_000002"]


# Two processes, one run directory.


@pytest.fixture
def running(corpus, tmp_path):
    """A run that goes on, saving at every second step."""
    config = small(corpus, tmp_path / "run", max_steps=10**6, eval_interval=0, sample_interval=0)
    process = start(TRAIN, config)
    has_steps(process, config.out)
    yield config, process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_process_on_a_run_is_refused_with_the_first_one_named(running):
    config, process = running
    before = Path(config.out, "ledger.jsonl").stat().st_size
    with pytest.raises(ValueError, match=rf"process {process.pid} on {platform.node()}"):
        train(config)
    has_steps(process, config.out, 30)
    assert process.poll() is None and Path(config.out, "ledger.jsonl").stat().st_size > before


@posix
def test_a_lock_ends_with_its_process_however_it_ends(running, corpus):
    config, process = running
    process.kill()
    process.wait()
    left = Path(config.out, "lock").read_text()
    assert str(process.pid) in left  # a killed process clears nothing away
    Path(config.out, "lock").write_text("process 12345678 on a machine of another name")
    done = int(latest_checkpoint(config.out).name[5:])
    names = []
    train(
        replace(config, max_steps=done + 1, extend=True),
        lambda line: names.append(Path(config.out, "lock").read_text()),
    )
    assert (
        set(names) == {f"process {os.getpid()} on {platform.node()}"}
        and not Path(config.out, "lock").read_text()
    )
    assert latest_checkpoint(config.out).name == f"step_{done + 1:06d}"


def test_a_run_that_goes_on_can_be_read(running):
    config, process = running
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        steps = [load_run(config.out)[1]["checkpoint"] for _ in range(40)]
    assert process.poll() is None and len(set(steps)) > 1


# Stopping politely, and less so.


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_saves_and_exits_with_0(corpus, tmp_path, number):
    config = small(
        corpus, tmp_path / "run", max_steps=10**6, eval_interval=0, sample_interval=0, checkpoint_interval=0
    )
    process = start(TRAIN, config)
    has_steps(process, config.out)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert latest_checkpoint(config.out).name == f"step_{ledger(config.out)[-1]['step'] + 1:06d}"


SLOW = """
import json, sys, time
from gpt2lib import TrainConfig, train

train(TrainConfig(**json.loads(sys.argv[1])), lambda line: time.sleep(600 if line["step"] == 5 else 0))
"""


@posix
def test_a_second_signal_exits_at_once(corpus, tmp_path):
    config = small(corpus, tmp_path / "run", eval_interval=0, sample_interval=0, checkpoint_interval=0)
    process = start(SLOW, config)
    has_steps(process, config.out, 6)
    process.terminate()
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.5)  # the step is not finished
    process.terminate()
    assert process.wait(timeout=10) == -signal.SIGTERM
    process.stdout.close()
