"""What the benchmarks share: sides that run in turn, each in its own process; budgets; tables; the machine's name."""

import importlib.metadata
import json
import multiprocessing
import os
import platform
import re
import statistics
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

README = Path(__file__).resolve().parent.parent / "README.md"


@dataclass
class Options:
    """What every benchmark can be asked for. The comment beside a field is the help text of its flag."""

    rounds: int = 7  # how often each side is measured; the sides take turns
    threads: int = min(2, os.cpu_count() or 1)  # CPU threads of each side
    tiny: bool = False  # sizes that take seconds: to see that it runs, not how fast
    readme: bool = False  # also put the tables into README.md


# The machine


def machine() -> str:
    """One line: processor, cores, memory, system, and the versions that matter."""
    name = platform.processor() or platform.machine()
    if sys.platform == "linux":
        name = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text() + f"\nmodel name: {name}")[
            1
        ]
    elif sys.platform == "darwin":
        name = subprocess.check_output(["sysctl", "-n", "machdep.cpu.brand_string"], text=True).strip()
    if hasattr(os, "sysconf"):
        gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
        name += f", {os.cpu_count()} cores, {gib:.0f} GiB"
    versions = [f"{package} {importlib.metadata.version(package)}" for package in ("torch", "transformers")]
    return ", ".join([name, platform.system(), f"Python {platform.python_version()}", *versions])


def peak_memory() -> int:
    """The most memory that this process has held so far, in bytes."""
    if sys.platform == "linux":  # what a process had before `exec` does not count here
        return 1024 * int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def resident_memory() -> int:
    """The memory that this process holds now, in bytes; where it cannot be told, the most that it has held."""
    if sys.platform == "linux":
        return os.sysconf("SC_PAGE_SIZE") * int(Path("/proc/self/statm").read_text().split()[1])
    return peak_memory()


# Sides of a comparison


class Side:
    """One side of a comparison, in a process of its own.

    There `make(*args)` is called once, and returns the function that each `run(...)` calls. Both must be found by
    name in a module, and what is handed over must survive pickling: numbers, strings, lists, dictionaries.

    Args:
        make: called in the new process.
        *args: its arguments.
        threads: CPU threads of torch in that process.
        environment: variables that it sees, beside the usual ones.
    """

    def __init__(
        self, make: Callable, *args: Any, threads: int = 2, environment: dict[str, str] | None = None
    ):
        context = multiprocessing.get_context("spawn")  # nothing is inherited, as in a fresh interpreter
        self.pipe, theirs = context.Pipe()
        changes = {"OMP_NUM_THREADS": str(threads), **(environment or {})}
        before = {name: os.environ.get(name) for name in changes}
        os.environ.update(changes)
        try:
            self.process = context.Process(target=_serve, args=(theirs, make, args, threads), daemon=True)
            self.process.start()
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
        theirs.close()
        self._answer()  # wait until it is made: two sides never work at the same time

    def run(self, *args: Any) -> Any:
        """Call the function over there, and return what it returns."""
        self.pipe.send(args)
        return self._answer()

    def _answer(self) -> Any:
        try:
            result, error = self.pipe.recv()
        except EOFError:
            self.process.join()
            raise RuntimeError(
                f"a side of the benchmark died with exit code {self.process.exitcode}; -9 is a lack of memory"
            ) from None
        if error:
            raise RuntimeError(f"a side of the benchmark failed:\n{error}")
        return result

    def close(self) -> None:
        self.pipe.close()
        self.process.join()

    def __enter__(self) -> "Side":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _serve(pipe: Any, make: Callable, args: tuple, threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    function, arguments = None, ()
    while True:
        result, error = None, None
        try:
            if function is None:
                function = make(*args)
            else:
                result = function(*arguments)
        except Exception:
            error = traceback.format_exc()
        pipe.send((result, error))
        try:
            arguments = pipe.recv()
        except EOFError:  # closed over there
            return


def alone(function: Callable, *args: Any, threads: int = 2, environment: dict[str, str] | None = None) -> Any:
    """Call `function(*args)` in a fresh process, which then ends. For peak memory: return `peak_memory()` from there."""
    with Side(_wrap, function, args, threads=threads, environment=environment) as side:
        return side.run()


def _wrap(function: Callable, args: tuple) -> Callable:
    return lambda: function(*args)


def interleave(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list]:
    """Call each of `runs` once a round, forwards in even rounds and backwards in odd ones; return the results by name.

    What slows the machine down for a while then meets all of them, and ratios are taken round by round.
    """
    results: dict[str, list] = {name: [] for name in runs}
    for number in range(rounds):
        for name in list(runs)[:: -1 if number % 2 else 1]:
            results[name].append(runs[name]())
    return results


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest of the rounds."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Ours over theirs, round by round: median, lowest and highest."""
    return spread([a / b for a, b in zip(ours, theirs, strict=True)])


# Budgets and output


def budget(what: str, measured: float, limit: float, at_most: bool = True) -> dict:
    """A promise beside what was measured. `at_most`: whether `limit` is an upper or a lower bound."""
    met = measured <= limit if at_most else measured >= limit  # False for nan
    return {"what": what, "measured": measured, "limit": limit, "at_most": at_most, "met": met}


def table(rows: Sequence[Sequence[Any]], header: Sequence[str]) -> str:
    """A Markdown table whose columns also line up in a terminal: words to the left, numbers to the right."""
    cells = [list(map(str, header)), *(list(map(str, row)) for row in rows)]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    right = [all(re.match(r"[-−~<]?\d|–|$", c) for c in column[1:]) for column in zip(*cells, strict=True)]
    lines = [[c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right)] for row in cells]
    lines.insert(1, ["-" * (w - 1) + (":" if r else "-") for w, r in zip(widths, right)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def publish(name: str, options: Options, tables: dict[str, str], budgets: list[dict], data: dict) -> None:
    """Print the machine, the tables, the budgets, and all of it as one line of JSON; with --readme, put it there.

    Args:
        name: of the benchmark; `README.md` has the comments `<!-- benchmark NAME -->` and `<!-- end NAME -->`.
        options: what the benchmark was asked for.
        tables: a caption, and a table from `table`.
        budgets: from `budget`.
        data: everything that was measured.
    """
    here = machine() + (" (tiny sizes: these numbers mean nothing)" if options.tiny else "")
    rows = []
    for b in budgets:
        sign = "≤" if b["at_most"] else "≥"
        result = "met" if b["met"] else "**MISSED**"
        rows.append([b["what"], f"{b['measured']:,.3g}", f"{sign} {b['limit']:,g}", result])
    parts = [f"`python benchmarks/{name}.py` on {here}; {options.threads} threads, {options.rounds} rounds:"]
    parts += [f"{caption}\n\n{text}" for caption, text in tables.items()]
    if budgets:
        parts.append("Budgets:\n\n" + table(rows, ["what", "measured", "budget", "result"]))
    text = "\n\n".join(parts)
    print(text)
    result = {"benchmark": name, "machine": here, "threads": options.threads, "rounds": options.rounds}
    print("\n" + json.dumps({**result, "budgets": budgets, **data}))
    if options.readme:
        update_readme(name, text)


def update_readme(name: str, text: str, path: Path | None = None) -> None:
    """Put `text` between the comments of benchmark `name`.

    Raises:
        ValueError: the file has no such comments.
    """
    begin, end = f"<!-- benchmark {name} -->", f"<!-- end {name} -->"
    path = path or README
    old = path.read_text(encoding="utf-8")
    before, found, rest = old.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(
            f"{path.name} has no place for these tables; put {begin} and {end} where they belong"
        )
    path.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", encoding="utf-8")
