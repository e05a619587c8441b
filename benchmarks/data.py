"""`gpt2 data prepare` on a synthetic gigabyte: memory, speed beside plain `tiktoken`, and the loader's `batch_at(10**6)`.

    python benchmarks/data.py

The corpus is made of Shakespeare's lines, drawn at random into documents of about 4 kB, as JSON lines in several files; it lies
in a temporary folder, which is deleted. Plain is what a short script does: one process, `encode_ordinary` for each document,
ids in a list, then an array of uint16. Both sides encode the same sample, in turn, in a process of their own; ratios are
taken round by round. Then the whole corpus is prepared, and the loader opened, each in a fresh process.
"""

import json
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import common
import numpy as np
import tyro

from gpt2lib.data import DataLoaderLite, load_corpus
from gpt2lib.prepare import PrepareConfig, prepare
from gpt2lib.tokenizer import get_tokenizer

FILES, B, T, STEP = 8, 8, 1024, 10**6


@dataclass
class Options(common.Options):
    size: int = 1024  # MB of text in the corpus
    sample: int = 32  # MB of text that both sides encode in each round
    folder: Path | None = None  # where to put the temporary folder; it takes twice the size


def write_corpus(folder: Path, megabytes: float) -> int:
    """Write JSON lines until they hold that much text; the bytes of text."""
    lines = "".join(load_corpus().train).splitlines(keepends=True)
    rng, written = random.Random(1337), 0
    folder.mkdir()
    for number in range(FILES):
        with open(folder / f"{number}.jsonl", "w", encoding="utf-8") as file:
            while written < megabytes * 1e6 * (number + 1) / FILES:
                text = "".join(rng.choices(lines, k=rng.randrange(20, 200)))
                file.write(json.dumps({"text": text}) + "\n")
                written += len(text.encode())
    return written


def documents(folder: Path) -> Iterator[str]:
    for path in sorted(folder.iterdir()):
        with open(path, encoding="utf-8") as file:
            yield from (json.loads(line)["text"] for line in file)


def plain(source: Path, out: Path, workers: int) -> Callable[[], dict]:
    encoding = get_tokenizer()  # both sides have the vocabulary before the clock starts

    def run() -> dict:
        begin, ids = time.perf_counter(), []
        for text in documents(source):
            ids.append(encoding.eot_token)
            ids.extend(encoding.encode_ordinary(text))
        np.array(ids, dtype=np.uint16).tofile(out)
        return dict(seconds=time.perf_counter() - begin, tokens=len(ids))

    return run


def ours(source: Path, out: Path, workers: int) -> Callable[[], dict]:
    get_tokenizer()

    def run() -> dict:
        shutil.rmtree(out, ignore_errors=True)
        begin = time.perf_counter()
        prepare(PrepareConfig(str(source), str(out), workers=workers), progress=False)
        seconds = time.perf_counter() - begin
        tokens = json.loads((out / "manifest.json").read_text())["tokens"]
        return dict(seconds=seconds, tokens=sum(tokens.values()))

    return run


def with_memory(make: Callable, source: Path, out: Path, workers: int) -> dict:
    """Run it once in this fresh process; also the memory before (imports and vocabulary), and the peak."""
    run, before = make(source, out, workers), common.resident_memory()
    return {**run(), "before": before, "peak": common.peak_memory()}


def far(folder: Path) -> dict:
    """Ask for one batch far away: from the disk, again, and the next one; and the order of ten billion tokens."""
    for path in folder.glob("*.bin"):
        if hasattr(os, "posix_fadvise"):  # else the files may still be in memory
            with open(path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    before, begin = common.resident_memory(), time.perf_counter()
    tokens = load_corpus(folder).tokens("train")
    loader = DataLoaderLite(tokens, B, T)
    found = {"open": time.perf_counter() - begin, "tokens": len(tokens), "shards": len(tokens.shards)}
    for name, step in (("cold", STEP), ("warm", STEP), ("next", STEP + 1)):
        begin = time.perf_counter()
        x, y = loader.batch_at(step)
        found[name] = time.perf_counter() - begin
    found["memory"] = common.resident_memory() - before
    large = DataLoaderLite(np.broadcast_to(np.uint16(0), (10**10,)), B, T)  # takes no memory
    begin = time.perf_counter()
    large.batch_at(STEP)
    return {
        **found,
        "cold_large": time.perf_counter() - begin,
        "order_large": large.order(large._epoch).nbytes,
    }


def measure(options: Options, folder: Path) -> dict:
    sample = write_corpus(folder / "sample", options.sample)
    corpus = write_corpus(folder / "corpus", options.size)
    threads = options.threads
    sides = {
        make.__name__: common.Side(make, folder / "sample", folder / make.__name__, threads, threads=threads)
        for make in (plain, ours)
    }
    try:
        rounds = common.interleave({name: side.run for name, side in sides.items()}, options.rounds)
    finally:
        for side in sides.values():
            side.close()
    counts = {result["tokens"] for results in rounds.values() for result in results}
    if len(counts) != 1:
        raise RuntimeError(f"the sides have {sorted(counts)} tokens: not the same work")
    alone = {
        f"{make.__name__}, {source}": common.alone(
            with_memory,
            make,
            folder / source,
            folder / f"alone {make.__name__} {source}",
            threads,
            threads=threads,
        )
        for make, source in ((plain, "sample"), (ours, "sample"), (ours, "corpus"))
    }
    loader = common.alone(far, folder / "alone ours corpus", threads=threads)
    return {
        "text_bytes": {"sample": sample, "corpus": corpus},
        "seconds": {name: [result["seconds"] for result in results] for name, results in rounds.items()},
        "alone": alone,
        "loader": loader,
    }


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    if options.tiny:
        options.size, options.sample = 4, 1
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        data = measure(options, Path(folder))
    seconds, alone, loader = data["seconds"], data["alone"], data["loader"]
    sample, corpus = (size / 1e6 for size in data["text_bytes"].values())
    names = {"plain": "plain tiktoken, one process", "ours": f"gpt2 data prepare, threads: {options.threads}"}

    gain = common.ratios(seconds["plain"], seconds["ours"])
    rows = []
    for name, times in (("plain", dict(median=1, low=1, high=1)), ("ours", gain)):
        speed = common.spread([sample / s for s in seconds[name]])
        ratio = f"{times['median']:.2f} ({times['low']:.2f}–{times['high']:.2f})"
        rows.append(
            [names[name], f"{sample:,.0f}", *(f"{speed[k]:.1f}" for k in ("median", "low", "high")), ratio]
        )
    whole = alone["ours, corpus"]
    rows.append([names["ours"], f"{corpus:,.0f}", f"{corpus / whole['seconds']:.1f}", "–", "–", "–"])
    tables = {
        "Speed:": common.table(
            rows, ["what", "MB of text", "MB/s", "lowest", "highest", "times plain (range)"]
        )
    }

    rows, grown = [], {}
    for what, result in alone.items():
        side, source = what.split(", ")
        grown[what] = result["peak"] - result["before"]
        numbers = (data["text_bytes"][source], result["before"], result["peak"], grown[what])
        rows.append([names[side], *(f"{n / 1e6:,.0f}" for n in numbers)])
    caption = (
        "Memory in MB, each in a fresh process; all threads of it together, and there is no other process:"
    )
    tables[caption] = common.table(rows, ["what", "text", "imports and vocabulary", "peak", "difference"])

    rows = [
        ["open the folder", f"{1e3 * loader['open']:,.2f}"],
        [f"batch_at({STEP:,}), read from the disk", f"{1e3 * loader['cold']:,.2f}"],
        ["the same again", f"{1e3 * loader['warm']:,.2f}"],
        ["the step after it", f"{1e3 * loader['next']:,.2f}"],
        [f"batch_at({STEP:,}) of ten billion tokens", f"{1e3 * loader['cold_large']:,.0f}"],
    ]
    caption = (
        f"The loader on {loader['tokens']:,} tokens in {loader['shards']} shards, B={B}, T={T}, which takes "
        f"{loader['memory'] / 1e6:.1f} MB; the order of an epoch of ten billion tokens takes {loader['order_large'] / 1e6:.0f} MB:"
    )
    tables[caption] = common.table(rows, ["what", "ms"])

    budgets = [
        common.budget("MB/s, prepare / plain", gain["median"], 1, at_most=False),
        common.budget(
            f"memory, {corpus:,.0f} MB / {sample:,.0f} MB of text",
            grown["ours, corpus"] / grown["ours, sample"],
            1.25,
        ),
        common.budget(f"seconds for batch_at({STEP:,}), read from the disk", loader["cold"], 1),
    ]
    common.publish("data", options, tables, budgets, data)


if __name__ == "__main__":
    main()
