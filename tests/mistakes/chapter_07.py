"""Optimizer and schedule."""

import math


def lr_branches(it, max_lr, min_lr, warmup_steps, max_steps):
    if it < warmup_steps:
        return max_lr * (it + 1) / warmup_steps
    if it >= max_steps - 1:
        return min_lr
    start = max(warmup_steps - 1, 0)
    s = (it - start) / (max_steps - 1 - start)
    return min_lr + 0.5 * (1 + math.cos(math.pi * s)) * (max_lr - min_lr)


def lr_minimum(it, max_lr, min_lr, warmup_steps, max_steps):
    if it < warmup_steps:
        return (it + 1) * max_lr / warmup_steps
    first, last = max(warmup_steps - 1, 0), max_steps - 1
    progress = min((it - first) / max(last - first, 1), 1.0) if it < last else 1.0
    coefficient = 0.5 * (math.cos(math.pi * progress) + 1.0)
    return (1 - coefficient) * min_lr + coefficient * max_lr


def lr_table(it, max_lr, min_lr, warmup_steps, max_steps):
    up = [max_lr * step / warmup_steps for step in range(1, warmup_steps + 1)] or [max_lr]
    n = max_steps - len(up)
    down = [min_lr + (max_lr - min_lr) * math.cos(math.pi * i / n / 2) ** 2 for i in range(1, n + 1)]
    return (up + down)[it] if it < max_steps else min_lr


RIGHT = {"get_lr": [lr_branches, lr_minimum, lr_table]}
WRONG = {
    "get_lr": [
        ("starts-at-zero", lr_branches, "(it + 1)", "it"),
        (
            "peak-twice",
            lr_branches,
            "start = max(warmup_steps - 1, 0)",
            "start = warmup_steps",
            "(max_steps - 1 - start)",
            "(max_steps - start)",
            "it >= max_steps - 1",
            "it > max_steps",
        ),
    ]
}
