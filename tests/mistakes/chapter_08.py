"""Accumulation, and a save that is whole or not there."""

import os
import shutil
import tempfile
from pathlib import Path

import torch


def accumulate_item(model, micro_batches):
    total = 0.0
    for x, y in micro_batches:
        _, loss = model(x, y)
        loss = loss / len(micro_batches)
        loss.backward()
        total += loss.item()
    return total


def accumulate_detach(model, micro_batches):
    n = len(micro_batches)
    losses = []
    for i in range(n):
        x, y = micro_batches[i]
        loss = model(x, y)[1]
        (loss * (1 / n)).backward()
        losses.append(loss.detach())
    return torch.stack(losses).mean()


def accumulate_divide_at_the_end(model, micro_batches):
    total = torch.zeros(())
    for x, y in micro_batches:
        _, loss = model(x, y)
        loss.backward()
        total += loss.detach()
    for p in model.parameters():
        p.grad /= len(micro_batches)
    return total / len(micro_batches)


def accumulate_autograd(model, micro_batches):
    parameters = list(model.parameters())
    sums, total = [torch.zeros_like(p) for p in parameters], 0.0
    for x, y in micro_batches:
        loss = model(x, y)[1] / len(micro_batches)
        for s, g in zip(sums, torch.autograd.grad(loss, parameters), strict=True):
            s += g
        total += loss.item()
    for p, s in zip(parameters, sums, strict=True):
        p.grad = s if p.grad is None else p.grad + s
    return total


def uneven_share(model, micro_batches):
    n_tokens = sum(y.numel() for _, y in micro_batches)
    total = 0.0
    for x, y in micro_batches:
        _, loss = model(x, y)
        loss = loss * y.numel() / n_tokens
        loss.backward()
        total += loss.item()
    return total


def uneven_sum_then_divide(model, micro_batches):
    seen, total = 0, 0.0
    for x, y in micro_batches:
        loss = model(x, y)[1] * y.numel()
        loss.backward()
        seen += y.numel()
        total += loss.detach()
    for p in model.parameters():
        p.grad.div_(seen)
    return total / seen


def uneven_weights(model, micro_batches):
    counts = torch.tensor([x.shape[0] * x.shape[1] for x, _ in micro_batches])
    weights = counts / counts.sum()
    losses = []
    for weight, (x, y) in zip(weights, micro_batches, strict=True):
        loss = model(x, y)[1]
        loss.backward(weight)
        losses.append(loss.item())
    return (torch.tensor(losses) * weights).sum()


def save_tmp(path, data):
    beside = path.with_name(path.name + ".tmp")
    with open(beside, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def save_descriptor(path, data):
    beside = f"{path}.new"
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
    os.fsync(descriptor)
    os.close(descriptor)
    os.rename(beside, path)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def save_unique(path, data):
    """A name that nobody else has; what a kill leaves of it stays."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".part")
    try:
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            file.write(data)
            os.fsync(file)
        Path(name).replace(path)
    except BaseException:
        os.unlink(name)
        raise


def save_reopened(path, data):
    beside = path.with_suffix(".part")
    beside.write_bytes(data)
    with beside.open("rb+") as file:
        os.fsync(file.fileno())
    shutil.move(beside, path)


def save_plain(path, data):
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


RIGHT = {
    "accumulate": [
        accumulate_item,
        accumulate_detach,
        accumulate_autograd,
        uneven_share,
    ],
    "accumulate_uneven": [uneven_share, uneven_sum_then_divide, uneven_weights],
    "save": [save_tmp, save_descriptor, save_reopened],
}
DIVIDE = "        loss = loss / len(micro_batches)\n"
SHARE = "loss * y.numel() / n_tokens"
BACK = "        loss.backward()\n"
SYNC = "        file.flush()\n        os.fsync(file.fileno())\n"
RENAME = "    os.replace(beside, path)\n"
STEP = "    torch.optim.SGD(model.parameters(), lr=0.1).step()\n    return total"
WRONG = {
    "accumulate": [
        ("undivided", accumulate_item, DIVIDE, ""),
        ("undivided", accumulate_detach, "(loss * (1 / n)).backward()", "loss.backward()"),
        ("undivided", accumulate_divide_at_the_end, "p.grad /= len(micro_batches)", "pass"),
        ("sum-so-far", accumulate_item, BACK, "", "        total += loss.item()", "        total = total + loss\n        total.backward()",
         "return total", "return total.item()"),
        ("sum-so-far", accumulate_item, BACK, "", "        total += loss.item()", "        total = total + loss\n        total.backward(retain_graph=True)",
         "return total", "return total.item()"),
        ("takes-a-step", accumulate_item, "    return total", STEP),
        ("no-backward", accumulate_item, BACK, ""),
        ("last-part-only", accumulate_item, "        loss.backward()", "        model.zero_grad()\n        loss.backward()"),
        ("last-part-only", accumulate_item, BACK, "", "    return", "    loss.backward()\n    return"),
        ("last-part-only", accumulate_autograd, "s += g", "s.copy_(g)"),
        ("first-part-only", accumulate_item, "    return total", "        return total"),
        ("loss-summed", accumulate_detach, "torch.stack(losses).mean()", "torch.stack(losses).sum()"),
        ("loss-summed", accumulate_divide_at_the_end, "return total / len(micro_batches)", "return total"),
        ("loss-of-the-last", accumulate_detach, "torch.stack(losses).mean()", "loss.item()"),
        ("loss-of-the-last", accumulate_item, "total += loss.item()", "total = loss.item()"),
        ("graph-kept", accumulate_item, "loss.item()", "loss"),
        ("all-in-memory", accumulate_item, BACK, "", "loss.item()", "loss", "    return total", "    total.backward()\n    return total.item()"),
        ("two-passes", accumulate_detach, "losses.append(loss.detach())", "losses.append(model(x, y)[1].detach())"),
        ("divided-by-the-wrong-count", accumulate_item, "loss / len(micro_batches)", "loss / len(x)"),
        ("divided-by-the-wrong-count", accumulate_item, "loss / len(micro_batches)", "loss / (len(micro_batches) * x.numel())"),
        ("divided-twice", accumulate_divide_at_the_end, "loss.backward()", "(loss / len(micro_batches)).backward()"),
        ("gradient-before", accumulate_item, "    total = 0.0\n", "    total = 0.0\n    model.zero_grad()\n"),
        ("gradient-before", accumulate_divide_at_the_end),
        ("eval-mode", accumulate_item, "    total = 0.0\n", "    total = 0.0\n    model.eval()\n"),
        ("wrong-pairs", accumulate_item, "model(x, y)", "model(y, x)"),
        ("wrong-pairs", accumulate_item, "model(x, y)", "model(x, x)"),
        ("a-part-left-out", accumulate_item, "for x, y in micro_batches:", "for x, y in micro_batches[:-1]:"),
        ("a-part-left-out", accumulate_item, "for x, y in micro_batches:", "for x, y in micro_batches[1:]:"),
        ("wrong-length", accumulate_item, "    return total", "    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01)\n    return total"),
        ("loss-wrong", accumulate_item, "    return total", "    return 2.718**total"),
        ("all-at-once", accumulate_item, "    total = 0.0\n", "    total = 0.0\n    micro_batches = [tuple(map(torch.cat, zip(*micro_batches)))]\n"),
        ("divided-by-the-parts-so-far", accumulate_item, "for x, y in micro_batches", "for i, (x, y) in enumerate(micro_batches, 1)", "loss / len(micro_batches)", "loss / i"),
        ("loss-divided-twice", accumulate_item, "return total", "return total / len(micro_batches)"),
        ("wrong-length", accumulate_item, "loss / len(micro_batches)", "loss / 8"),
        ("wrong-weights", accumulate_item, "for x, y in micro_batches", "for i, (x, y) in enumerate(micro_batches)", "loss / len(micro_batches)", "loss / 2**i"),
        ("refused", accumulate_item, "    return total", "    return"),
    ],
    "accumulate_uneven": [
        ("mean-of-means", uneven_share, SHARE, "loss / len(micro_batches)"),
        ("mean-of-means", accumulate_divide_at_the_end),
        ("loss-mean-of-means", uneven_weights, "(torch.tensor(losses) * weights).sum()", "sum(losses) / len(losses)"),
        ("sequences-counted", uneven_share, SHARE, "loss * len(y) / n_tokens", "y.numel() for _, y", "len(y) for _, y"),
        ("tokens-not-divided", uneven_share, " / n_tokens", ""),
        ("tokens-so-far", uneven_share, "n_tokens = sum(y.numel() for _, y in micro_batches)", "n_tokens = 0",
         "        loss = loss", "        n_tokens += y.numel()\n        loss = loss"),
        ("undivided", uneven_share, "        loss = loss * y.numel() / n_tokens\n", ""),
        ("sum-so-far", uneven_share, BACK, "", "        total += loss.item()", "        total = total + loss\n        total.backward()",
         "return total", "return total.item()"),
        ("takes-a-step", uneven_share, "    return total", STEP),
        ("no-backward", uneven_share, "_, loss = model(x, y)", "loss = model(x, y)[1].detach()", BACK, ""),
        ("last-part-only", uneven_share, "        loss.backward()", "        model.zero_grad()\n        loss.backward()"),
        ("first-part-only", uneven_share, "    return total", "        return total"),
        ("loss-summed", uneven_weights, "(torch.tensor(losses) * weights).sum()", "sum(losses)"),
        ("loss-of-the-last", uneven_weights, "(torch.tensor(losses) * weights).sum()", "losses[-1]"),
        ("graph-kept", uneven_sum_then_divide, "loss.detach()", "loss"),
        ("all-in-memory", uneven_share, BACK, "", "loss.item()", "loss", "    return total", "    total.backward()\n    return total.item()"),
        ("eval-mode", uneven_share, "    total = 0.0\n", "    total = 0.0\n    model.eval()\n"),
        ("wrong-pairs", uneven_share, "model(x, y)", "model(y, x)"),
        ("wrong-pairs", uneven_share, "model(x, y)", "model(x, x)"),
        ("a-part-left-out", uneven_share, "for x, y in micro_batches:", "for x, y in micro_batches[:-1]:"),
        ("a-part-left-out", uneven_share, "for x, y in micro_batches:", "for x, y in micro_batches[1:]:"),
        ("wrong-length", uneven_share, "    return total", "    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01)\n    return total"),
        ("loss-wrong", uneven_share, "    return total", "    return 2.718**total"),
        ("lengths-counted", uneven_share, "sum(y.numel() for", "sum(y.size(1) for", SHARE, "loss * y.size(1) / n_tokens"),
        ("parts-alike", uneven_share, SHARE, "loss * micro_batches[0][1].numel() / n_tokens"),
        ("wrong-length", uneven_share, "sum(y.numel()", "max(y.numel()"),
        ("wrong-weights", uneven_share, SHARE, "loss / y.numel()"),
        ("wrong-weights", uneven_share, SHARE, "loss * n_tokens / y.numel()"),
        ("two-passes", uneven_share, BACK, BACK + "        model(x, y)\n"),
    ],
    "save": [
        ("in-place", save_plain),
        ("in-place", lambda path, data: path.write_bytes(data)),
        ("copied", save_tmp, RENAME, "    shutil.copy(beside, path)\n    beside.unlink()\n"),
        ("copied", save_tmp, RENAME, "    path.write_bytes(beside.read_bytes())\n    os.remove(beside)\n"),
        ("renamed-too-early", save_tmp, "        file.flush()\n        os.fsync(file.fileno())\n    os.replace", "        os.replace"),
        ("old-one-removed", save_tmp, RENAME, "    path.unlink(missing_ok=True)\n    beside.rename(path)\n"),
        ("written-elsewhere", save_tmp, "path.with_name(path.name + \".tmp\")", "Path(tempfile.gettempdir(), f\"{os.getpid()}.tmp\")", "os.replace", "shutil.move"),
        ("never-synced", save_tmp, SYNC, ""),
        ("never-synced", save_reopened, "        os.fsync(file.fileno())\n", "        pass\n"),
        ("never-synced", save_tmp, "os.fsync(file.fileno())", "os.fsync(os.open(path.parent, os.O_RDONLY))"),
        ("synced-after-the-rename", save_tmp, SYNC, "", RENAME, RENAME + "    with open(path, 'rb') as file:\n        os.fsync(file.fileno())\n"),
        ("synced-before-flush", save_tmp, "        file.flush()\n", ""),
        ("appended", save_tmp, '"wb"', '"ab"'),
        ("stopped-by-leftovers", save_tmp, '"wb"', '"xb"'),
        ("stopped-by-leftovers", save_descriptor, "O_TRUNC", "O_EXCL"),
        ("leftovers-for-ever", save_unique),
        ("left-behind", save_tmp, RENAME, "    if path.exists():\n        shutil.copy(path, f'{path}.bak')\n" + RENAME),
        ("raises", save_tmp, '"wb"', '"w"'),
    ],
}  # fmt: skip
