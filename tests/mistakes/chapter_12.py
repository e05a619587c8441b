"""Evaluation."""

import math

import torch
import torch.nn.functional as F


@torch.no_grad()
def perplexity_windows(model, tokens, stride):
    n = len(tokens) - 1  # tokens to predict
    T = min(model.config.block_size, n)
    losses, scored = [], 0
    for start in [*range(0, n - T, stride), n - T]:
        x, y = tokens[start : start + T], tokens[start + 1 : start + T + 1]
        logits, _ = model(x[None])  # (1, T, V)
        loss = F.cross_entropy(logits[0], y, reduction="none")  # (T,)
        fresh = start + T - scored
        losses += loss[T - fresh :].tolist()
        scored = start + T
    return math.exp(sum(losses) / len(losses))


def perplexity_by_token(model, tokens, stride):
    """One pass for each token: slow, and hard to get wrong."""
    n, T = len(tokens) - 1, min(model.config.block_size, len(tokens) - 1)
    starts = [*range(0, n - T, stride), n - T]
    model.eval()
    total = 0.0
    with torch.no_grad():
        for i in range(1, n + 1):
            start = next(s for s in starts if i <= s + T)
            row = model(tokens[None, start:i])[0][0, -1]
            total -= row.log_softmax(0)[tokens[i]].item()
    return torch.tensor(total / n).exp().item()


def perplexity_short_end(model, tokens, stride):
    """As in Hugging Face's guide: the last window is short, and -100 hides what was scored before."""
    size, n = model.config.block_size, len(tokens) - 1
    total, start, end = 0.0, 0, 0
    while end < n:
        stop = min(start + size, n)
        labels = tokens[start + 1 : stop + 1].clone()
        labels[: end - start] = -100
        with torch.no_grad():
            logits = model(tokens[start:stop].unsqueeze(0))[0].squeeze(0)
        total += F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum").item()
        start, end = start + stride, stop
    return math.exp(total / n)


def perplexity_ignore_index(model, tokens, stride):
    """The same with a last window that is full."""
    size, n = min(model.config.block_size, len(tokens) - 1), len(tokens) - 1
    total, start, end = 0.0, 0, 0
    while end < n:
        start = min(start, n - size)
        stop = start + size
        labels = tokens[start + 1 : stop + 1].clone()
        labels[: end - start] = -100
        with torch.no_grad():
            logits = model(tokens[start:stop].unsqueeze(0))[0].squeeze(0)
        total += F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum").item()
        start, end = start + stride, stop
    return math.exp(total / n)


def perplexity_side_by_side(model, tokens, stride):
    """The stride is not used, and the last, short window counts as much as the others."""
    T, losses = model.config.block_size, []
    for i in range(0, len(tokens) - 1, T):
        part = tokens[i : i + T + 1]
        losses.append(F.cross_entropy(model(part[None, :-1])[0][0], part[1:]).item())
    return math.exp(sum(losses) / len(losses))


def perplexity_guide(model, tokens, stride):
    """The guide's own loop, before transformers #22348."""
    n, T, prev, nll, count = len(tokens), model.config.block_size, 0, 0.0, 0
    for begin in range(0, n, stride):
        end = min(begin + T, n)
        fresh = end - prev
        x = tokens[begin:end][None]
        y = x.clone()
        y[:, :-fresh] = -100
        loss = F.cross_entropy(model(x)[0][0, :-1], y[0, 1:], ignore_index=-100)
        nll, count, prev = nll + loss.item() * fresh, count + fresh, end
        if end == n:
            break
    return math.exp(nll / count)


@torch.no_grad()
def ending_slice(model, encode, context, ending):
    head, tail = encode(context), encode(" " + ending)
    ids = torch.tensor([(head + tail)[-model.config.block_size - 1 :]])  # (1, T)
    logits, _ = model(ids[:, :-1])  # (1, T - 1, V)
    losses = F.cross_entropy(logits[0], ids[0, 1:], reduction="none")  # (T - 1,)
    return losses[-len(tail) :].mean().item()


def ending_by_token(model, encode, context, ending):
    tail = encode(" " + ending)
    head = encode(context)
    head = head[max(0, len(head) + len(tail) - model.config.block_size - 1) :]
    losses = []
    for i, token in enumerate(tail):
        with torch.no_grad():
            logits = model(torch.tensor([head + tail[:i]]))[0]
        losses.append(-logits[0, -1].log_softmax(-1)[token].item())
    return sum(losses) / len(losses)


def ending_ignore_index(model, encode, context, ending):
    tail = encode(f" {ending}")
    room = model.config.block_size + 1 - len(tail)
    x = torch.tensor(encode(context)[-room:] + tail)
    y = x.clone()
    y[: len(x) - len(tail)] = -100
    with torch.no_grad():
        logits = model(x[None, :-1])[0]
    return float(F.cross_entropy(logits[0], y[1:], ignore_index=-100))


MEAN = "sum(losses) / len(losses)"
FRESH = "losses += loss[T - fresh :].tolist()"

RIGHT = {
    "perplexity": [perplexity_windows, perplexity_by_token, perplexity_ignore_index],
    "ending": [ending_slice, ending_by_token, ending_ignore_index],
}
WRONG = {
    "perplexity": [
        ("mean-of-exp", perplexity_windows, f"math.exp({MEAN})", "sum(map(math.exp, losses)) / len(losses)"),
        ("loss-returned", perplexity_windows, f"math.exp({MEAN})", MEAN),
        ("loss-returned", perplexity_ignore_index, "math.exp(total / n)", "total / n"),
        ("base-two", perplexity_windows, f"math.exp({MEAN})", f"2 ** ({MEAN})"),
        (
            "base-mixed",
            perplexity_windows,
            "loss[T - fresh :].tolist()",
            "(loss[T - fresh :] / math.log(2)).tolist()",
        ),
        ("last-stride-scored", perplexity_windows, "loss[T - fresh :]", "loss[-stride:]"),
        ("last-window-short", perplexity_short_end),
        ("loss-returned", perplexity_short_end, "math.exp(total / n)", "total / n"),
        ("value", lambda model, tokens, stride: 3.0),
        ("exp-of-sum", perplexity_windows, MEAN, "sum(losses)"),
        ("exp-of-sum", perplexity_ignore_index, "total / n", "total"),
        ("sign-missing", perplexity_by_token, "total -=", "total +="),
        ("divided-by-all", perplexity_windows, "/ len(losses)", "/ len(tokens)"),
        ("divided-by-all", perplexity_by_token, "total / n", "total / len(tokens)"),
        ("mean-of-means", perplexity_windows, FRESH, "losses.append(loss[T - fresh :].mean().item())"),
        ("mean-of-means", perplexity_side_by_side),
        ("window-weights", perplexity_guide),
        (
            "targets-inside",
            perplexity_guide,
            "loss.item() * fresh, count + fresh,",
            "(loss.item() * scored if scored else 0), count + scored,",
            "        nll, count, prev",
            "        scored = int((y[0, 1:] >= 0).sum())\n        nll, count, prev",
        ),
        (
            "mean-of-perplexities",
            perplexity_windows,
            FRESH,
            "losses.append(loss[T - fresh :].mean().exp().item())",
            f"math.exp({MEAN})",
            MEAN,
        ),
        ("scored-twice", perplexity_windows, "loss[T - fresh :]", "loss"),
        ("begin-scored", perplexity_windows, "loss[T - fresh :]", "loss[:fresh]"),
        ("stride-ignored", perplexity_windows, "range(0, n - T, stride)", "range(0, n - T, T)"),
        ("stride-ignored", perplexity_ignore_index, "start + stride", "start + size"),
        ("not-shifted", perplexity_windows, "tokens[start + 1 : start + T + 1]", "tokens[start : start + T]"),
        ("not-shifted", perplexity_ignore_index, "tokens[start + 1 : stop + 1]", "tokens[start:stop]"),
        (
            "borders-lost",
            perplexity_windows,
            "x, y = tokens[start : start + T], tokens[start + 1 : start + T + 1]",
            "window = tokens[start : start + T]\n        x, y = window[:-1], window[1:]",
        ),
        (
            "end-dropped",
            perplexity_windows,
            "[*range(0, n - T, stride), n - T]",
            "range(0, n - T + 1, stride)",
        ),
        ("end-dropped", perplexity_short_end, "while end < n:", "while start + size <= n:"),
        ("short-text", perplexity_windows, "min(model.config.block_size, n)", "model.config.block_size"),
        ("bits-returned", perplexity_windows, f"math.exp({MEAN})", f"math.log2(math.exp({MEAN}))"),
        ("scored-twice", perplexity_windows, "loss[T - fresh :]", "loss", "/ len(losses)", "/ n"),
        ("scored-twice", perplexity_ignore_index, "        labels[: end - start] = -100\n", ""),
        ("means-divided-again", perplexity_ignore_index, 'reduction="sum"', 'reduction="mean"'),
        ("old-ones-in-the-mean", perplexity_windows, FRESH, "losses += [loss.mean().item()] * fresh"),
        ("first-new-lost", perplexity_windows, "loss[T - fresh :]", "loss[T - fresh + 1 :]"),
        ("first-new-lost", perplexity_ignore_index, "labels[: end - start]", "labels[: end - start + 1]"),
        (
            "softmax-twice",
            perplexity_windows,
            "cross_entropy(logits[0]",
            "cross_entropy(logits[0].softmax(-1)",
        ),
        (
            "last-stride-scored",
            perplexity_windows,
            "loss[T - fresh :]",
            "loss[-stride:]",
            "/ len(losses)",
            "/ n",
        ),
        (
            "windows-too-small",
            perplexity_windows,
            "min(model.config.block_size, n)",
            "min(model.config.block_size - 1, n)",
        ),
        (
            "windows-too-small",
            perplexity_ignore_index,
            "min(model.config.block_size,",
            "min(model.config.block_size // 2 + 1,",
        ),
        ("other-windows", perplexity_ignore_index, "start + stride", "start + stride + 1"),
        (
            "other-losses",
            perplexity_by_token,
            "log_softmax(0)[tokens[i]]",
            "log_softmax(0)[tokens[i - 1]].sqrt()",
        ),
        ("other-losses", perplexity_windows, "sum(losses) / len(losses)", "sorted(losses)[len(losses) // 2]"),
    ],
    "ending": [
        ("one-token-scored", ending_slice, "losses[-len(tail) :]", "losses[-1:]"),
        ("one-token-scored", ending_by_token, "sum(losses) / len(losses)", "losses[0]"),
        (
            "end-not-scored",
            ending_by_token,
            "sum(losses) / len(losses)",
            "sum(losses[:-1]) / len(losses[:-1])",
        ),
        ("worst-token", ending_slice, ".mean()", ".max()"),
        ("worst-token", ending_by_token, "sum(losses) / len(losses)", "min(losses)"),
        (
            "mean-probability",
            ending_by_token,
            "losses.append(-logits[0, -1].log_softmax(-1)",
            "losses.append(logits[0, -1].softmax(-1)",
        ),
        ("softmax-twice", ending_slice, "logits[0],", "logits[0].softmax(-1),"),
        (
            "softmax-twice",
            ending_by_token,
            "logits[0, -1].log_softmax",
            "logits[0, -1].softmax(-1).log_softmax",
        ),
        ("divided-by-the-context", ending_slice, ".mean().item()", ".sum().item() / len(head)"),
        ("divided-by-all", ending_slice, ".mean().item()", ".sum().item() / len(losses)"),
        ("per-character", ending_slice, ".mean().item()", '.sum().item() / len(" " + ending)'),
        ("length-of-the-context", ending_slice, "losses[-len(tail) :]", "losses[-len(head) :]"),
        ("context-cut-at-its-end", ending_ignore_index, "encode(context)[-room:]", "encode(context)[:room]"),
        (
            "logits-too-early",
            ending_slice,
            "F.cross_entropy(logits[0], ids[0, 1:]",
            "F.cross_entropy(logits[0, :-1], ids[0, 2:]",
        ),
        (
            "a-token-in-front",
            ending_slice,
            "head, tail = encode(context),",
            "head, tail = [0] + encode(context),",
        ),
        ("no-blank", ending_slice, '" " + ending', "ending"),
        ("no-blank", ending_ignore_index, 'f" {ending}"', "ending"),
        ("no-blank", ending_slice, "encode(context)", 'encode(context + " ")', '" " + ending', "ending"),
        ("two-blanks", ending_slice, '" " + ending', '"  " + ending'),
        ("two-blanks", ending_ignore_index, "encode(context)", 'encode(context + " ")'),
        ("context-scored", ending_slice, "losses[-len(tail) :]", "losses"),
        ("context-scored", ending_ignore_index, "    y[: len(x) - len(tail)] = -100\n", ""),
        ("first-token-missing", ending_slice, "[-len(tail) :]", "[-len(tail) + 1 :]"),
        (
            "first-token-missing",
            ending_ignore_index,
            "y[: len(x) - len(tail)]",
            "y[: len(x) - len(tail) + 1]",
        ),
        ("one-token-early", ending_slice, "[-len(tail) :]", "[-len(tail) - 1 :]"),
        ("one-token-early", ending_ignore_index, "y[: len(x) - len(tail)]", "y[: len(x) - len(tail) - 1]"),
        ("last-token-missing", ending_slice, "[-len(tail) :]", "[-len(tail) - 1 : -1]"),
        ("total", ending_slice, ".mean()", ".sum()"),
        ("total", ending_by_token, " / len(losses)", ""),
        ("total", ending_ignore_index, "ignore_index=-100", 'ignore_index=-100, reduction="sum"'),
        ("per-character", ending_slice, ".mean().item()", ".sum().item() / len(ending)"),
        ("per-character", ending_by_token, "/ len(losses)", "/ len(ending)"),
        ("sign-missing", ending_by_token, "losses.append(-logits", "losses.append(logits"),
        ("perplexity", ending_slice, ".mean()", ".mean().exp()"),
        ("not-shifted", ending_slice, "ids[0, 1:]", "ids[0, :-1]"),
        ("not-shifted", ending_ignore_index, "y[1:]", "y[:-1]"),
        (
            "logits-of-the-same-place",
            ending_slice,
            "[-model.config.block_size - 1 :]",
            "[-model.config.block_size :]",
            "ids[:, :-1]",
            "ids",
            "ids[0, 1:]",
            "ids[0]",
        ),
        ("no-context", ending_slice, "(head + tail)", "tail"),
        ("no-crop", ending_slice, "[-model.config.block_size - 1 :]", ""),
        (
            "no-crop",
            ending_by_token,
            "    head = head[max(0, len(head) + len(tail) - model.config.block_size - 1) :]\n",
            "",
        ),
        ("cropped-too-far", ending_slice, "[-model.config.block_size - 1 :]", "[-model.config.block_size :]"),
        ("end-cut", ending_slice, "[-model.config.block_size - 1 :]", "[: model.config.block_size + 1]"),
        ("divided-by-all", ending_slice, ".mean().item()", ".sum().item() / len(head + tail)"),
        ("type", ending_slice, ".mean().item()", ".mean()"),
    ],
}
