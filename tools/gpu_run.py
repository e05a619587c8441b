"""Train GPT-2 (124 M) on one GPU, and measure what the machine does: `make gpu-run`.

    python tools/gpu_run.py              # again and again, until it says that all is done
    python tools/gpu_run.py --rehearse   # the same with a tiny model on the CPU, in seconds

Needs a CUDA build of torch, numpy, safetensors, tiktoken and tqdm, and this source tree; nothing is installed and
nothing is downloaded. Each call works for at most nine minutes, saves, and ends with exit status 0; the next one goes
on. In runs/gpu it leaves `train/` (a run directory: 5000 steps of the preset gpt2 on the default corpus, the samples
in its ledger), `sweep.jsonl` (throughput by speed-up and by batch), `profile.json` and `report.md`. All but
`train/checkpoints` is small. Chapter 9 replays the run once `train/ledger.jsonl` stands in gpt2lib/assets/gpt2/.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402

from gpt2lib.checkpoint import latest_checkpoint  # noqa: E402
from gpt2lib.gpt import GPTConfig  # noqa: E402
from gpt2lib.ledger import FORMULAS, flops_per_token, mfu, peak_flops, read_ledger  # noqa: E402
from gpt2lib.train import TrainConfig, train  # noqa: E402

SEGMENT = 9 * 60  # seconds that a call works for, at most
SAVING = 45  # of them, kept for the last step, its checkpoint and the report
ROW = 150  # least seconds left to begin a row of the sweep: most of it is compilation
BUDGET = 600_000  # tokens a second of GPT-2 on one H100

GPT2 = dict(preset="gpt2", device="cuda", checkpoint_interval=1000)
TINY = dict(
    preset="nano", device="cpu", tokenizer="bytes", n_layer=2, n_head=2, n_embd=32, block_size=24, batch_size=4,
    grad_accum_steps=2, max_steps=40, eval_interval=20, eval_tokens=480, sample_interval=20, compile=False,
)  # fmt: skip


# ---------------------------------------------------------------------------------------------- what is measured


def sweep_rows(rehearse: bool) -> list[dict]:
    """Fields of TrainConfig by row, and `attention`; a ladder in which each rung keeps the ones before, then batches."""
    plain = dict(dtype="float32", compile=False, fused=False, tf32=False, pad_vocab=False, prefetch=False)
    ladder = {
        "plain fp32": plain | {"attention": "math"},
        "+ TF32": dict(tf32=True),
        "+ bf16": dict(dtype="bfloat16"),
        "+ fused attention": dict(attention="fused"),
        "+ padded vocabulary": dict(pad_vocab=True),
        "+ fused AdamW": dict(fused=True),
        "+ prefetch": dict(prefetch=True),
        "+ torch.compile": dict(compile=True),
    }
    size, batches = 16, (4, 8, 32, 64)
    if rehearse:
        ladder = {name: ladder[name] for name in ("plain fp32", "+ bf16")}
        size, batches = 2, (4,)
    rows, on = [], {"batch_size": size, "grad_accum_steps": 1}
    for name, change in ladder.items():
        on = on | change
        rows.append({"name": name, **on})
    return rows + [{"name": f"batch of {n}", **on, "batch_size": n} for n in batches]


class Enough(Exception):
    """Ends a run from its callback, without the checkpoint that its end would write."""


def does_not_fit(error: Exception) -> bool:
    """Whether `train` ran out of memory, or says beforehand that it would."""
    return isinstance(error, torch.OutOfMemoryError) or "lower --batch-size" in str(error)


def steps_of(config: TrainConfig, attention: str, warm: int, on_step: Callable[[int, dict], None]) -> dict:
    """Call `on_step` with the number and the ledger line of each step after `warm`, until it raises Enough.

    Returns the ledger's header.
    """
    math_only = sdpa_kernel(SDPBackend.MATH) if attention == "math" else contextlib.nullcontext()
    header: dict = {}

    def watch(line: dict) -> None:
        if line["kind"] == "header":
            header.update(line)
        elif line["kind"] == "step" and line["step"] >= warm:
            on_step(line["step"] - warm, line)

    with math_only, contextlib.suppress(Enough):
        train(config, on_line=watch)
    return header


def measuring(fields: dict, folder: str) -> TrainConfig:
    """A run in which steps are all that happens."""
    never = dict(eval_interval=0, sample_interval=0, checkpoint_interval=0)
    return TrainConfig(**fields | never | {"out": folder})


def measure(base: dict, row: dict, warm: int, steps: int) -> dict:
    """Time `steps` steps after `warm`; the row with what was found, or with `error` where it does not run."""
    fields = base | {name: value for name, value in row.items() if name not in ("name", "attention")}
    rates, begin = [], time.perf_counter()

    def count(step: int, line: dict) -> None:
        rates.append(line["tokens_per_second"])
        if len(rates) == steps:
            raise Enough

    with tempfile.TemporaryDirectory() as folder:
        config = measuring(fields, folder)
        try:
            header = steps_of(config, row["attention"], warm, count)
        except Exception as error:  # whatever it is, the next row is measured
            what = "out of memory" if does_not_fit(error) else f"{type(error).__name__}: {error}"[:300]
            return row | {"error": what}
    cuda, rate, model = (
        config.device.startswith("cuda"),
        statistics.median(rates),
        GPTConfig(**header["model"]),
    )
    name = header["device"]["name"] if cuda else "CPU"
    return row | {
        "tokens_per_second": round(rate),
        "spread": [round(min(rates)), round(max(rates))],
        "milliseconds": round(1000 * header["tokens_per_step"] / rate, 2),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if cuda else None,
        "seconds_in_all": round(time.perf_counter() - begin, 1),
        "without": {
            what: why for what, why in header["speed"].items() if row.get(what) and why not in ("on", "off")
        },
        "mfu": {
            formula: round(flops_per_token(model, formula) * rate / peak, 4)
            for formula in FORMULAS
            if (peak := peak_flops(name, formula))
        },
    }


def profiled(base: dict, warm: int, steps: int) -> dict:
    """What the device did in `steps` steps after `warm`: kernels (operators on a CPU) by their own time."""
    from torch.profiler import ProfilerActivity, profile

    cuda = base["device"].startswith("cuda")
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda
    profiler, begin, wall = profile(activities=activities), 0.0, 0.0

    def trace(step: int, line: dict) -> None:
        nonlocal begin, wall
        if step == 0:
            profiler.start()
            begin = time.perf_counter()
        if step == steps:
            wall = time.perf_counter() - begin
            profiler.stop()
            raise Enough

    with tempfile.TemporaryDirectory() as folder:
        steps_of(measuring(base, folder), "fused", warm, trace)
    kind = torch.autograd.DeviceType.CUDA if cuda else torch.autograd.DeviceType.CPU
    own = "self_device_time_total" if cuda else "self_cpu_time_total"
    rows = [
        {"name": event.key[:120], "calls": event.count / steps, "ms": getattr(event, own) / steps / 1000}
        for event in profiler.key_averages()
        if event.device_type == kind
        and not getattr(event, "is_user_annotation", False)
        and getattr(event, own) > 0
    ]
    rows.sort(key=lambda row: -row["ms"])
    busy = sum(row["ms"] for row in rows)
    return {"steps": steps, "wall_ms": 1000 * wall / steps, "busy_ms": busy, "top": rows[:40]}


# ---------------------------------------------------------------------------------------------- what is run


def finished(run: Path, config: TrainConfig) -> bool:
    newest = latest_checkpoint(run)
    return newest is not None and newest.name == f"step_{config.max_steps:06d}"


def free_memory() -> None:
    """Give the device back what a finished run held, for the processes that follow."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def train_until(fields: dict, folder: Path, deadline: float) -> bool:
    """Train to the end or to the deadline, and tell which. A micro-batch that does not fit is halved, for good."""
    config = TrainConfig(**fields)
    late = False

    def watch(line: dict) -> None:
        nonlocal late
        if line["kind"] == "eval":
            print(f"step {line['step']:5}  validation loss {line['loss']:.4f}", flush=True)
        if line["kind"] == "step" and not late and time.monotonic() > deadline:
            late = True
            signal.raise_signal(signal.SIGTERM)  # as a cluster would: the step is finished and saved

    while not finished(folder / "train", config):
        try:
            train(config, on_line=watch)
            break
        except (torch.OutOfMemoryError, ValueError) as error:
            if config.batch_size % 2 or not does_not_fit(error):
                raise
        half = {"batch_size": config.batch_size // 2, "grad_accum_steps": config.grad_accum_steps * 2}
        print(f"{config.batch_size} sequences do not fit; going on with {half}", flush=True)
        (folder / "batch.json").write_text(json.dumps(half))
        config = TrainConfig(**fields | half)
        free_memory()
    free_memory()
    return finished(folder / "train", config)


def in_a_process_of_its_own(flags: list[str], seconds: float) -> dict:
    """Run this file with `flags`, so that memory, compiled code and a crash stay apart; the JSON that it prints last."""
    command = [sys.executable, str(Path(__file__).resolve()), *flags]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
        return json.loads(run.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {seconds:.0f} s"}
    except (IndexError, ValueError):
        said = run.stderr.strip().splitlines() or ["nothing was said"]
        return {"error": f"exit status {run.returncode}: {said[-1][:300]}"}


def sweep(rows: list[dict], flags: list[str], folder: Path, deadline: float, least: float) -> bool:
    """Measure the rows that `sweep.jsonl` lacks, while there is time; return whether it has them all."""
    path = folder / "sweep.jsonl"
    known = {row["name"] for row in read_rows(path)}
    for row in rows:
        if row["name"] in known:
            continue
        left = deadline - time.monotonic()
        if left < least:
            return False
        found = row | in_a_process_of_its_own([*flags, "--row", json.dumps(row)], left)
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")
        print(
            f"{row['name']:20} {found.get('error') or format(found['tokens_per_second'], ',') + ' tokens/s'}",
            flush=True,
        )
    return True


def read_rows(path: Path) -> list[dict]:
    """The rows measured so far; half a line, left by a kill, is dropped."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return rows


def profile_once(flags: list[str], folder: Path, deadline: float, least: float) -> bool:
    path = folder / "profile.json"
    if path.exists() and "top" in json.loads(path.read_text()):
        return True
    left = deadline - time.monotonic()
    if left < least:
        return False
    found = in_a_process_of_its_own([*flags, "--profile"], left)
    path.write_text(json.dumps(found, indent=1) + "\n")
    return True


# ---------------------------------------------------------------------------------------------- what is reported


def table(head: list[str], rows: Iterable[list]) -> list[str]:
    cells = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in cells] + [""]


def report(folder: Path, fields: dict) -> str:
    """What was found so far, as Markdown."""
    cuda = fields["device"].startswith("cuda")
    out = ["# One GPU" if cuda else "# A rehearsal on the CPU", ""]
    machine = [["Python", platform.python_version()], ["torch", torch.__version__]]
    if cuda:
        properties = torch.cuda.get_device_properties(0)
        machine += [
            ["GPU", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"],
            ["CUDA", torch.version.cuda],
        ]
    out += table(["", ""], machine)
    if (folder / "train" / "ledger.jsonl").exists():
        out += report_training(folder / "train", cuda)
    rows = read_rows(folder / "sweep.jsonl")
    if rows:
        out += ["## Throughput by speed-up and by batch", ""]
        out += [
            "A rung of the ladder keeps what the rungs above it turned on; the batches have all of it.",
            "",
        ]
        out += table(
            ["", "sequences", "tokens/s", "slowest to fastest step", "ms a step", "peak GiB", "MFU (llm.c)"],
            [
                [row["name"], row["batch_size"], row["error"], "", "", "", ""]
                if "error" in row
                else [
                    row["name"] + "".join(f" (not {what}: {why})" for what, why in row["without"].items()),
                    row["batch_size"],
                    f"{row['tokens_per_second']:,}",
                    " to ".join(f"{rate:,}" for rate in row["spread"]),
                    row["milliseconds"],
                    row["peak_gib"] or "–",
                    f"{row['mfu']['llm.c']:.1%}" if "llm.c" in row["mfu"] else "–",
                ]
                for row in rows
            ],
        )
    if (folder / "profile.json").exists():
        found = json.loads((folder / "profile.json").read_text())
        out += ["## Where a step's time goes", ""]
        if "error" in found:
            out += [found["error"], ""]
        else:
            share = found["busy_ms"] / found["wall_ms"]
            out += [
                f"{found['wall_ms']:.1f} ms a step under the profiler; the device computes in {share:.0%} of it.",
                "",
            ]
            out += table(
                ["kernel" if cuda else "operator", "calls a step", "ms a step", "share"],
                [
                    [
                        f"`{row['name']}`",
                        f"{row['calls']:g}",
                        f"{row['ms']:.3f}",
                        f"{row['ms'] / found['busy_ms']:.1%}",
                    ]
                    for row in found["top"][:15]
                ],
            )
    return "\n".join(out)


def report_training(run: Path, cuda: bool) -> list[str]:
    record = read_ledger(run)
    config, steps = record.header["config"], len(record.steps["step"])
    if not steps:
        return []
    rates = sorted(record.steps["tokens_per_second"])
    rows = [
        ["steps", f"{steps} of {config['max_steps']}"],
        ["tokens a step", f"{record.header['tokens_per_step']:,}"],
        ["training loss, mean of the last 100 steps", f"{record.steps['loss'][-100:].mean():.4f}"],
        ["validation loss, last", f"{record.evals['loss'][-1]:.4f} at step {record.evals['step'][-1]}"],
        ["validation loss, lowest", f"{record.evals['loss'].min():.4f}"],
        ["tokens/s, all tokens divided by all time in steps", f"{record.tokens_per_second:,.0f}"],
        ["tokens/s, median step", f"{rates[len(rates) // 2]:,.0f}"],
        *(
            [f"MFU, {formula}", f"{share:.1%}"]
            for formula in FORMULAS
            if cuda and (share := mfu(record, formula))
        ),
    ]
    if cuda:
        met = "met" if rates[len(rates) // 2] >= BUDGET else "missed"
        rows.append([f"budget for an H100: {BUDGET:,} tokens/s", f"{met} by the median step"])
    out = ["## The run", "", *table(["", ""], rows)]
    if len(record.samples["text"]):
        out += [f"What it wrote after {record.samples['step'][-1]} steps:", ""]
        out += ["> " + line for line in record.samples["text"][-1].splitlines()] + [""]
    return out


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rehearse", action="store_true", help="a tiny model on the CPU, in seconds")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "gpu", help="where everything goes")
    parser.add_argument("--seconds", type=float, default=SEGMENT, help="how long this call may work")
    parser.add_argument("--row", type=json.loads, help=argparse.SUPPRESS)  # measure one row, print it
    parser.add_argument("--profile", action="store_true", help=argparse.SUPPRESS)  # profile, print
    chosen = parser.parse_args(arguments)
    rehearse, folder = chosen.rehearse, chosen.out.resolve()
    if not rehearse and not torch.cuda.is_available():
        sys.exit("no CUDA device is here; add --rehearse to try this with a tiny model on the CPU")
    fields = TINY if rehearse else GPT2
    warm, steps = (1, 3) if rehearse else (8, 20)
    if chosen.row:
        return print(json.dumps(measure(fields, chosen.row, warm, steps)))
    if (folder / "batch.json").exists():
        fields = fields | json.loads((folder / "batch.json").read_text())
    if chosen.profile:
        return print(json.dumps(profiled(fields, warm, 3)))

    deadline = time.monotonic() + chosen.seconds - (0 if rehearse else SAVING)
    least = 0 if rehearse else ROW
    folder.mkdir(parents=True, exist_ok=True)
    flags = ["--out", str(folder), *["--rehearse"] * rehearse]
    done = (
        train_until(fields | {"out": str(folder / "train")}, folder, deadline)
        and sweep(sweep_rows(rehearse), flags, folder, deadline, least)
        and profile_once(flags, folder, deadline, least)
    )
    (folder / "report.md").write_text(report(folder, fields), encoding="utf-8")
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and "checkpoints" not in p.parts)
    print(f"{folder / 'report.md'}; all but the checkpoints: {size / 1e6:.2f} MB")
    print("all is done" if done else "not done yet: run the same command again")


if __name__ == "__main__":
    main()
