"""Starts `gpt2 train` as a process of its own, in milliseconds, and kills it. Reads orders from stdin, answers on stdout.

Importing torch takes seconds, so it is imported once, here, and each order forks. A fork is a process like any other: it
parses its command line, takes its lock, writes its files, and `SIGKILL` ends it without a word. Before the fork this
process runs no operation of torch, so it has no threads that a fork would lose.
"""

import json
import os
import signal
import sys
import time

import torch
import torch._dynamo  # AdamW imports it when it is made
import tyro  # noqa: F401  (imported for the children)

import gpt2lib.checkpoint as checkpoint
from gpt2lib.cli import main
from gpt2lib.tokenizer import get_tokenizer

OPERATIONS = (
    (checkpoint, ("sync", "digest", "save_file")),
    (os, ("replace", "mkdir", "unlink", "rmdir", "fsync", "write")),
)


def die_at(operation: int) -> None:
    """Kill this process just before the operation of that number, or in the middle of it, where it writes a file."""
    left = operation

    def counted(name, function):
        def call(*args, **kwargs):
            nonlocal left
            left -= 1
            if left == 0:
                if name == "save_file":
                    function(*args, **kwargs)
                    os.truncate(args[1], os.path.getsize(args[1]) // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    for module, names in OPERATIONS:
        for name in names:
            setattr(module, name, counted(name, getattr(module, name)))


def child(order: dict, begun: int) -> None:
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if order.get("operation"):
        die_at(order["operation"])
    os.close(begun)
    try:
        main(order["arguments"])
    except SystemExit as error:
        os._exit(error.code or 0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)
    os._exit(0)


def carry_out(order: dict) -> dict:
    reads, writes = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reads)
        child(order, writes)
    os.close(writes)
    os.read(reads, 1)  # returns when the child closes its end: it begins
    os.close(reads)
    begin = time.perf_counter()
    if (after := order.get("after")) is not None:
        time.sleep(after)
        os.kill(pid, signal.SIGKILL)  # harmless where it has ended: it is ours until we wait for it
    _, status = os.waitpid(pid, 0)
    return {"status": os.waitstatus_to_exitcode(status), "seconds": time.perf_counter() - begin}


if __name__ == "__main__":
    torch.set_num_threads(1)
    get_tokenizer("bytes")
    for line in sys.stdin:
        print(json.dumps(carry_out(json.loads(line))), flush=True)
