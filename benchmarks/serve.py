"""The demo under load: `python app.py` over loopback, with 1, 8 and 32 clients, each asking again as soon as it is served.

    python benchmarks/serve.py                  # three minutes for each number of clients
    python benchmarks/serve.py --seconds 20

The app runs in a process of its own, with its own defaults but for the limit of requests a minute, since all clients come
from one address. A client asks for 100 tokens through the API, waits for the text to the end, and asks again with another seed.
Tokens are counted by the app; the clients, which share the machine with it, count what reaches them and how soon.
"""

import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import common
import tyro

ROOT = Path(__file__).resolve().parent.parent
PROMPTS = (
    "ROMEO:\n",
    "First Citizen:\nBefore we proceed any further,",
    "Shall I compare thee to a summer's day?\n",
)


@dataclass
class Options(common.Options):
    seconds: float = 180  # for each number of clients
    clients: tuple[int, ...] = (1, 8, 32)  # how many ask at the same time
    tokens: int = 100  # that each request asks for
    checkpoint: Path | None = None  # a run directory; the shipped model by default


class App:
    """`python app.py` in a process of its own."""

    def __init__(self, options: Options):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [
            sys.executable,
            str(ROOT / "app.py"),
            "--port",
            str(self.port),
            "--limits.per-minute",
            "1000000000",
        ]
        if options.checkpoint:
            command += ["--checkpoint", str(options.checkpoint.resolve())]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        }
        self.log = tempfile.TemporaryFile("w+")
        self.begun = time.perf_counter()
        self.process = subprocess.Popen(command, env=environment, stdout=self.log, stderr=subprocess.STDOUT)
        while True:
            try:
                self.model = self.health()["model"]
                break
            except OSError:
                if self.process.poll() is not None or time.perf_counter() - self.begun > 300:
                    self.log.seek(0)
                    raise RuntimeError(f"the app did not start:\n{self.log.read()}") from None
                time.sleep(0.02)

    def health(self) -> dict:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request("GET", "/healthz")
        answer = json.loads(connection.getresponse().read())
        connection.close()
        return answer

    def memory(self) -> float:
        """What the process holds now, in MiB."""
        return int(subprocess.check_output(["ps", "-o", "rss=", "-p", str(self.process.pid)])) / 1024

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()


@dataclass
class Tally:
    """What the clients of a stage have met."""

    first: list[float] = field(default_factory=list)  # seconds until the first text
    served: int = 0
    refused: int = 0  # with a sentence
    errors: list[str] = field(default_factory=list)  # anything else


def ask(
    app: App, connection: http.client.HTTPConnection, prompt: str, tokens: int, seed: int, tally: Tally
) -> None:
    """One request, to its end."""
    begin, first = time.perf_counter(), None
    data = [prompt, tokens, 0.8, 0, 0.95, seed, app.model]
    connection.request("POST", "/gradio_api/call/generate", json.dumps({"data": data}))
    response = connection.getresponse()
    answer = json.loads(response.read())
    if response.status != 200:
        if response.status in (429, 503) and answer.get("detail"):
            tally.refused += 1
        else:
            tally.errors.append(f"{response.status} {answer}")
        return
    connection.request("GET", f"/gradio_api/call/generate/{answer['event_id']}")
    response, event = connection.getresponse(), ""
    for line in response:
        if line.startswith(b"event: "):
            event = line[7:].strip().decode()
        elif line.startswith(b"data: ") and event in ("generating", "complete") and first is None:
            first = time.perf_counter() - begin
        if event == "error" and line.startswith(b"data: "):
            said = (json.loads(line[6:]) or {}).get("error")
            tally.refused += bool(said)
            tally.errors += [] if said else [line.decode()]
    if event == "complete":
        tally.served += 1
        tally.first.append(first)
    elif event != "error":
        tally.errors.append(f"the stream ended after {event!r}")


def client(app: App, number: int, options: Options, until: float, tally: Tally) -> None:
    """Ask again and again, until the time is over."""
    connection, seed = http.client.HTTPConnection("127.0.0.1", app.port, timeout=120), number * 100_000
    while time.perf_counter() < until:
        seed += 1
        try:
            ask(app, connection, PROMPTS[seed % len(PROMPTS)], options.tokens, seed, tally)
        except (OSError, http.client.HTTPException, ValueError) as error:
            tally.errors.append(repr(error))
            connection.close()
    connection.close()


def stage(app: App, clients: int, options: Options) -> dict:
    """So many clients for so many seconds."""
    tally, samples = Tally(), []
    begin, before = time.perf_counter(), app.health()["tokens"]
    until = begin + options.seconds
    threads = [threading.Thread(target=client, args=(app, i, options, until, tally)) for i in range(clients)]
    for thread in threads:
        thread.start()
    while (now := time.perf_counter()) < until:
        samples.append((now - begin, app.memory()))
        time.sleep(min(1, until - now))
    drawn, seconds = app.health()["tokens"] - before, time.perf_counter() - begin
    for thread in threads:
        thread.join()
    samples.append((time.perf_counter() - begin, app.memory()))
    minute = min(60, options.seconds / 3)
    cuts = (
        statistics.quantiles(tally.first, n=20, method="inclusive")
        if len(tally.first) > 1
        else [float("nan")] * 19
    )
    return {
        "clients": clients,
        "tokens_per_second": drawn / seconds,
        "first_p50": cuts[9],
        "first_p95": cuts[18],
        "served": tally.served,
        "refused": tally.refused,
        "errors": len(tally.errors),
        "error_examples": tally.errors[:3],
        "memory_minute": next(memory for at, memory in samples if at >= minute),
        "memory_end": samples[-1][1],
        "memory_peak": max(memory for _, memory in samples),
    }


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    if options.tiny:
        options.seconds, options.clients, options.tokens = 2, (1, 8), 10
    app = App(options)
    tally = Tally()
    try:
        connection = http.client.HTTPConnection("127.0.0.1", app.port, timeout=120)
        ask(app, connection, PROMPTS[0], 1, 1, tally)
        connection.close()
        cold = time.perf_counter() - app.begun
        stages = [stage(app, clients, options) for clients in options.clients]
    finally:
        app.close()
    header = ["clients", "tokens/s", "first text p50 (ms)", "p95 (ms)", "served", "refused", "errors"]
    header += ["memory after a minute (MiB)", "at the end", "at most"]
    rows = [
        [
            s["clients"],
            f"{s['tokens_per_second']:.0f}",
            f"{1000 * s['first_p50']:.0f}",
            f"{1000 * s['first_p95']:.0f}",
        ]
        + [s["served"], s["refused"], s["errors"]]
        + [f"{s[name]:.0f}" for name in ("memory_minute", "memory_end", "memory_peak")]
        for s in stages
    ]
    one, rate = stages[0]["tokens_per_second"], {s["clients"]: s["tokens_per_second"] for s in stages}
    budgets = [common.budget("seconds from a cold start to the first token", cold, 10)]
    if 8 in rate and stages[0]["clients"] == 1:
        budgets.append(common.budget("tokens/s with 8 clients over 1", rate[8] / one, 2.5, at_most=False))
    growth = max(s["memory_end"] / s["memory_minute"] for s in stages)
    budgets.append(common.budget("memory at the end over that after a minute, at most", growth, 1.05))
    budgets.append(
        common.budget("errors other than refusals", sum(s["errors"] for s in stages) + len(tally.errors), 0)
    )
    caption = f"Model {app.model}, {options.tokens} tokens a request, {options.seconds:g} s for each row:"
    common.publish(
        "serve", options, {caption: common.table(rows, header)}, budgets, {"cold": cold, "stages": stages}
    )


if __name__ == "__main__":
    main()
