"""The training run."""

import json

import numpy as np


def mfu_formula(n_layer, n_embd, vocab_size, block_size, tokens_per_second, peak, devices):
    weights = n_layer * 12 * n_embd**2 + vocab_size * n_embd
    flops = 6 * weights + 12 * n_layer * n_embd * block_size
    return flops * tokens_per_second / (devices * peak)


def mfu_products(n_layer, n_embd, vocab_size, block_size, tokens_per_second, peak, devices):
    C, forward = n_embd, 0
    for _ in range(n_layer):
        for into, out in ((C, 3 * C), (C, C), (C, 4 * C), (4 * C, C)):
            forward += 2 * into * out
        forward += 2 * C * block_size  # queries meet keys
        forward += 2 * C * block_size  # weights meet values
    forward += 2 * C * vocab_size
    backward = 2 * forward
    return (forward + backward) * tokens_per_second / devices / peak


def mfu_nanogpt(n_layer, n_embd, vocab_size, block_size, tokens_per_second, peak, devices):
    N = n_layer * (12 * n_embd * n_embd + 13 * n_embd) + 2 * n_embd + vocab_size * n_embd
    achieved = tokens_per_second * (6 * N + 12 * n_layer * n_embd * block_size)
    promised = peak * devices
    return achieved / promised


def losses_stack(path):
    *whole, _ = path.read_text(encoding="utf-8").split("\n")  # what follows the last line break is torn
    steps, losses = [], []
    for number, line in enumerate(whole, start=1):
        try:
            entry = json.loads(line)
        except ValueError:
            raise ValueError(f"line {number} is damaged") from None
        if entry["kind"] != "step":
            continue
        while steps and steps[-1] >= entry["step"]:  # another start, from an older checkpoint
            steps.pop()
            losses.pop()
        steps.append(entry["step"])
        losses.append(entry["loss"])
    return steps, losses


def losses_by_step(path):
    kept = {}
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                break
            try:
                entry = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number}: {error.msg}") from error
            if entry.get("kind") == "step":
                now = entry["step"]
                kept = {step: loss for step, loss in kept.items() if step < now}
                kept[now] = entry["loss"]
    return np.array(list(kept.keys())), np.array(list(kept.values()))


def losses_from_the_end(path):
    text = path.read_text(encoding="utf-8")
    lines = text.split("\n")
    lines.pop()
    pairs = []
    for index, line in enumerate(lines):
        try:
            entry = json.loads(line)
        except ValueError:
            raise ValueError("damaged: line " + str(index + 1)) from None
        if entry["kind"] == "step":
            pairs.append((entry["step"], entry["loss"]))
    result, earliest = [], float("inf")
    for step, loss in reversed(pairs):
        if step < earliest:
            result.append((step, loss))
            earliest = step
    result.reverse()
    return tuple(step for step, _ in result), tuple(loss for _, loss in result)


FORGET = """        while steps and steps[-1] >= entry["step"]:  # another start, from an older checkpoint
            steps.pop()
            losses.pop()
"""
READ = '*whole, _ = path.read_text(encoding="utf-8").split("\\n")  # what follows the last line break is torn'
ATTENTION = "+ 12 * n_layer * n_embd * block_size"

RIGHT = {
    "mfu": [mfu_formula, mfu_products, mfu_nanogpt],
    "read_losses": [losses_stack, losses_by_step, losses_from_the_end],
}
WRONG = {
    "mfu": [
        ("three-for-six", mfu_formula, "6 * weights", "3 * weights"),
        (
            "three-for-six",
            mfu_formula,
            "6 * weights",
            "3 * weights",
            "12 * n_layer * n_embd",
            "6 * n_layer * n_embd",
        ),
        ("attention-once", mfu_formula, "12 * n_layer * n_embd", "12 * n_embd"),
        ("ten-for-twelve", mfu_formula, "n_layer * 12", "n_layer * 10"),
        ("forward-only", mfu_formula, "6 * weights + 12 *", "2 * weights + 4 *"),
        ("forward-only", mfu_products, "(forward + backward)", "forward"),
        ("backward-as-forward", mfu_products, "backward = 2 * forward", "backward = forward"),
        ("no-attention", mfu_formula, " + 12 * n_layer * n_embd * block_size", ""),
        ("no-attention", mfu_nanogpt, " + 12 * n_layer * n_embd * block_size", ""),
        ("causal-half", mfu_formula, "+ 12 * n_layer", "+ 6 * n_layer"),
        ("causal-half", mfu_products, "        forward += 2 * C * block_size  # weights meet values\n", ""),
        ("attention-forward-only", mfu_formula, "+ 12 * n_layer", "+ 4 * n_layer"),
        ("attention-squared", mfu_formula, ATTENTION, ATTENTION + "**2"),
        ("attention-squared", mfu_nanogpt, "* block_size)", "* block_size * block_size)"),
        ("no-head", mfu_formula, " + vocab_size * n_embd", ""),
        ("no-head", mfu_products, "    forward += 2 * C * vocab_size\n", ""),
        ("head-twice", mfu_formula, "+ vocab_size * n_embd", "+ 2 * vocab_size * n_embd"),
        ("positions-counted", mfu_nanogpt, "+ vocab_size * n_embd", "+ (vocab_size + block_size) * n_embd"),
        ("mlp-only", mfu_formula, "12 * n_embd**2", "8 * n_embd**2"),
        ("mlp-only", mfu_products, "(C, 3 * C), (C, C), ", ""),
        ("per-sequence", mfu_formula, "return flops", "return block_size * flops"),
        ("devices-forgotten", mfu_formula, "(devices * peak)", "peak"),
        ("devices-forgotten", mfu_products, " / devices", ""),
        ("devices-multiplied", mfu_products, "/ devices", "* devices"),
        ("percent", mfu_formula, "return flops", "return 100 * flops"),
        ("upside-down", mfu_nanogpt, "achieved / promised", "promised / achieved"),
        ("attention-only", mfu_formula, "12 * n_embd**2", "4 * n_embd**2"),
        ("attention-only", mfu_products, ", (C, 4 * C), (4 * C, C)", ""),
        ("attention-twice", mfu_formula, "+ 12 * n_layer", "+ 24 * n_layer"),
        ("attention-without-length", mfu_formula, "* block_size", "* n_embd"),
        ("one-block", mfu_formula, "n_layer * 12 * n_embd**2", "12 * n_embd**2"),
        ("one-block", mfu_products, "range(n_layer)", "range(1)"),
        ("recomputed", mfu_products, "(forward + backward)", "(2 * forward + backward)"),
        ("peak-in-units", mfu_formula, "(devices * peak)", "(devices * peak * 1e12)"),
        ("peak-in-units", mfu_products, " / peak", " / (peak / 1e9)"),
        ("rounded", mfu_nanogpt, "achieved / promised", "round(achieved / promised, 2)"),
        ("tokens-below", mfu_formula, "flops * tokens_per_second", "flops / tokens_per_second"),
        ("peak-above", mfu_products, " / peak", " * peak"),
        ("head-wrong", mfu_formula, "vocab_size * n_embd", "vocab_size * n_embd // 2"),
        ("attention-wrong", mfu_formula, "+ 12 * n_layer", "+ 36 * n_layer"),
        ("blocks-wrong", mfu_formula, "12 * n_embd**2", "16 * n_embd**2"),
        ("blocks-wrong", mfu_products, "(C, C), ", ""),
    ],
    "read_losses": [
        (
            "last-start-only",
            losses_stack,
            '        while steps and steps[-1] >= entry["step"]:  # another start, from an older checkpoint\n            steps.pop()\n            losses.pop()\n',
            '        if steps and steps[-1] >= entry["step"]:\n            steps, losses = [], []\n',
        ),
        ("places-for-steps", losses_stack, 'steps[-1] >= entry["step"]', 'len(steps) > entry["step"]'),
        (
            "evaluations-cut",
            losses_by_step,
            '            if entry.get("kind") == "step":\n                now = entry["step"]\n                kept = {step: loss for step, loss in kept.items() if step < now}\n',
            '            now = entry.get("step", 10**9)\n            kept = {step: loss for step, loss in kept.items() if step < now}\n            if entry.get("kind") == "step":\n',
        ),
        ("losses-first", losses_stack, "return steps, losses", "return losses, steps"),
        (
            "damaged-end-skipped",
            losses_stack,
            "        except ValueError:\n",
            "        except ValueError:\n            if number == len(whole):\n                break\n",
        ),
        (
            "stale-tail",
            losses_stack,
            '        while steps and steps[-1] >= entry["step"]:  # another start, from an older checkpoint\n            steps.pop()\n            losses.pop()\n',
            '        if entry["step"] in steps:\n            del losses[steps.index(entry["step"])]\n            steps.remove(entry["step"])\n',
        ),
        (
            "no-try",
            losses_stack,
            '        try:\n            entry = json.loads(line)\n        except ValueError:\n            raise ValueError(f"line {number} is damaged") from None\n',
            "        entry = json.loads(line)\n",
        ),
        ("first-kept", losses_stack, FORGET, '        if entry["step"] in steps:\n            continue\n'),
        ("both-kept", losses_stack, FORGET, ""),
        ("both-kept", losses_from_the_end, "if step < earliest:", "if True:"),
        (
            "stale-tail",
            losses_by_step,
            "                kept = {step: loss for step, loss in kept.items() if step < now}\n",
            "",
        ),
        (
            "stale-tail",
            losses_stack,
            FORGET,
            """        if entry["step"] in steps:
            losses[steps.index(entry["step"])] = entry["loss"]
            continue
""",
        ),
        ("evaluations-mixed-in", losses_stack, 'entry["kind"] != "step"', '"loss" not in entry'),
        ("evaluations-mixed-in", losses_by_step, 'entry.get("kind") == "step"', '"loss" in entry'),
        (
            "torn-line-raises",
            losses_stack,
            READ,
            'whole = path.read_text(encoding="utf-8").rstrip("\\n").split("\\n")',
        ),
        (
            "torn-line-raises",
            losses_by_step,
            '            if not line.endswith(b"\\n"):\n                break\n',
            "",
        ),
        ("last-line-dropped", losses_stack, '.split("\\n")  #', '.rstrip("\\n").split("\\n")  #'),
        ("last-line-dropped", losses_from_the_end, 'text.split("\\n")', 'text.strip().split("\\n")'),
        (
            "damaged-line-skipped",
            losses_stack,
            'raise ValueError(f"line {number} is damaged") from None',
            "continue",
        ),
        (
            "damaged-line-skipped",
            losses_by_step,
            'raise ValueError(f"line {number}: {error.msg}") from error',
            "break",
        ),
        ("line-number-off", losses_stack, "start=1", "start=0"),
        ("line-number-off", losses_from_the_end, "str(index + 1)", "str(index)"),
        (
            "step-zero-dropped",
            losses_stack,
            'entry["kind"] != "step":',
            'entry["kind"] != "step" or not entry["step"]:',
        ),
        (
            "step-zero-dropped",
            losses_from_the_end,
            'if entry["kind"] == "step":',
            'if entry["kind"] == "step" and entry["step"]:',
        ),
        (
            "unicode-line-breaks",
            losses_stack,
            READ,
            """text = path.read_text(encoding="utf-8")
    whole = text.splitlines() if text.endswith("\\n") else text.splitlines()[:-1]""",
        ),
        (
            "unicode-line-breaks",
            losses_from_the_end,
            'lines = text.split("\\n")\n    lines.pop()',
            'lines = text[: text.rfind("\\n")].splitlines()',
        ),
        ("refused", losses_stack, "return steps, losses", "return dict(zip(steps, losses))"),
    ],
}
