"""Generation."""

import math

import torch
import torch.nn.functional as F


@torch.no_grad()
def greedy_cat(model, ids, n):
    for _ in range(n):
        logits, _ = model(ids[:, -model.config.block_size :])  # (B, T, V)
        ids = torch.cat((ids, logits[:, -1:].argmax(-1)), dim=1)
    return ids


def greedy_in_place(model, ids, n):
    B, T = ids.shape
    text = torch.zeros(B, T + n, dtype=ids.dtype)
    text[:, :T] = ids
    with torch.no_grad():
        for end in range(T, T + n):
            begin = max(0, end - model.config.block_size)
            logits = model(text[:, begin:end])[0]
            text[:, end] = logits[:, -1].max(dim=-1).indices
    return text


def greedy_lists(model, ids, n):
    model.eval()
    rows = [row.tolist() for row in ids]
    for row in rows:
        for _ in range(n):
            seen = torch.tensor([row[-model.config.block_size :]])
            scores = model(seen)[0][0, -1].tolist()
            row.append(max(range(len(scores)), key=scores.__getitem__))
    return torch.tensor(rows)


def temperature_softmax(logits, tau):
    if tau == 0:
        return F.one_hot(logits.argmax(-1), logits.size(-1)).float()
    shifted = logits - logits.amax(-1, keepdim=True)
    return (shifted / tau).softmax(-1)


def temperature_exp(logits, tau):
    highest = logits.max(dim=1, keepdim=True).values
    if tau == 0:
        result = torch.zeros_like(logits)
        result[torch.arange(len(logits)), logits.argmax(dim=1)] = 1.0
        return result
    weights = torch.exp((logits - highest) / tau)
    return weights / weights.sum(dim=1, keepdim=True)


def temperature_lists(logits, tau):
    rows = []
    for row in logits.tolist():
        top = max(row)
        if tau == 0:
            first = row.index(top)
            rows.append([float(i == first) for i in range(len(row))])
            continue
        weights = [math.exp((z - top) / tau) for z in row]
        total = sum(weights)
        rows.append([w / total for w in weights])
    return torch.tensor(rows)


def top_k_fill(logits, k):
    if not k:
        return logits.softmax(-1)
    kth = logits.topk(min(k, logits.size(-1))).values[:, -1:]  # (B, 1)
    return logits.masked_fill(logits < kth, -torch.inf).softmax(-1)


def top_k_sort(logits, k):
    probabilities = torch.softmax(logits, dim=1)
    if k is None or k == 0 or k >= logits.shape[1]:
        return probabilities
    ordered, _ = torch.sort(logits, dim=1, descending=True)
    stays = logits >= ordered[:, k - 1 : k]
    probabilities = probabilities * stays
    return probabilities / probabilities.sum(dim=1, keepdim=True)


def top_k_rows(logits, k):
    result = torch.zeros_like(logits)
    for b in range(logits.size(0)):
        row = logits[b]
        count = min(k or len(row), len(row))
        least = sorted(row.tolist(), reverse=True)[count - 1]
        kept = [i for i in range(len(row)) if row[i] >= least]
        result[b, kept] = row[kept].softmax(0)
    return result


def top_p_smallest(logits, p):
    probabilities = logits.softmax(-1)  # (B, V)
    ordered = probabilities.sort(descending=True).values
    before = ordered.cumsum(-1) - ordered  # what all likelier tokens hold
    stays = before < p
    stays[:, 0] = True
    if p >= 1:
        stays[:] = True
    least = ordered.where(stays, 1.0).amin(-1, keepdim=True)
    kept = probabilities.where(probabilities >= least, 0.0)
    return kept / kept.sum(-1, keepdim=True)


def top_p_rows(logits, p):
    probabilities = torch.softmax(logits, dim=1)
    if p >= 1:
        return probabilities
    result = torch.zeros_like(probabilities)
    for b, row in enumerate(probabilities):
        order = sorted(range(len(row)), key=lambda i: -row[i].item())
        total, kept = 0.0, []
        for i in order:
            if kept and total >= p and row[i] < row[kept[-1]]:
                break
            kept.append(i)
            total += row[i].item()
        result[b, kept] = row[kept] / row[kept].sum()
    return result


def top_p_scatter(logits, p):
    if p >= 1:
        return logits.softmax(-1)
    values, order = torch.sort(logits, dim=-1, descending=True)
    likelihood = values.softmax(-1)
    remove = likelihood.cumsum(-1) - likelihood >= p
    remove[:, 0] = False
    for i in range(1, remove.size(1)):  # an equal of one that stays, stays
        remove[:, i] &= ~((values[:, i] == values[:, i - 1]) & ~remove[:, i - 1])
    mask = torch.zeros_like(remove).scatter(1, order, remove)
    return logits.masked_fill(mask, -torch.inf).softmax(-1)


def draw_search(probabilities, numbers):
    running = probabilities.double().cumsum(1)  # (B, V)
    limit = numbers[:, None] * running[:, -1:]
    return torch.searchsorted(running, limit, right=True)[:, 0]


def draw_count(probabilities, numbers):
    running = probabilities.double().cumsum(-1)
    limit = numbers.double().unsqueeze(1) * running[:, -1:]
    return (running <= limit).sum(-1)


def draw_rows(probabilities, numbers):
    chosen = []
    for row, number in zip(probabilities.tolist(), numbers.tolist()):
        limit, running, last = number * sum(row), 0.0, 0
        for token, probability in enumerate(row):
            running += probability
            if probability > 0:
                last = token
                if running > limit:
                    break
        chosen.append(last)
    return torch.tensor(chosen)


def draw_first_beyond(probabilities, numbers):
    """Where no end lies beyond the number, the maximum of nothing but zeros stands first."""
    return (probabilities.cumsum(1) > numbers[:, None]).float().argmax(1)


def cache_mask(q, k, v, past=None):
    if past is not None:
        k = torch.cat((past[0], k), dim=2)  # (B, H, S, D)
        v = torch.cat((past[1], v), dim=2)
    T, S = q.size(2), k.size(2)
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.size(-1))  # (B, H, T, S)
    may_see = torch.ones(T, S, dtype=torch.bool).tril(S - T)
    weights = scores.masked_fill(~may_see, -torch.inf).softmax(-1)
    return weights @ v, (k, v)


seen = {}


def cache_kept(q, k, v, past=None):
    if past is None:
        seen.clear()
    seen["k"] = torch.cat((seen["k"], k), 2) if seen else k
    seen["v"] = torch.cat((seen["v"], v), 2) if "v" in seen else v
    T, S = q.size(2), seen["k"].size(2)
    mask = torch.ones(T, S).tril(S - T) == 1
    return F.scaled_dot_product_attention(q, seen["k"], seen["v"], attn_mask=mask), (seen["k"], seen["v"])


def cache_handed_back(q, k, v, past=None):
    if past is None:
        seen["pair"] = k, v
    else:
        seen["pair"] = tuple(torch.cat(both, 2) for both in zip(seen["pair"], (k, v)))
    return cache_loop(q, k, v, past)[0], seen["pair"]


def cache_sdpa(q, k, v, past=None):
    before = 0
    if past is not None:
        before = past[0].shape[2]
        k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
    may_see = torch.arange(k.shape[2])[None, :] <= before + torch.arange(q.shape[2])[:, None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=may_see), (k, v)


def cache_loop(q, k, v, past=None):
    keys, values = (k, v) if past is None else (torch.cat(both, -2) for both in zip(past, (k, v)))
    earlier = keys.shape[-2] - k.shape[-2]
    rows = []
    for i in range(q.shape[-2]):
        seen = earlier + i + 1
        scores = torch.einsum("bhd,bhsd->bhs", q[:, :, i], keys[:, :, :seen]) * q.shape[-1] ** -0.5
        rows.append(torch.einsum("bhs,bhsd->bhd", scores.softmax(-1), values[:, :, :seen]))
    return torch.stack(rows, dim=2), (keys, values)


CROP = "ids[:, -model.config.block_size :]"
READ = f"        logits, _ = model({CROP})  # (B, T, V)\n"
PICK = "logits[:, -1:].argmax(-1)"
ZERO = """    if tau == 0:
        return F.one_hot(logits.argmax(-1), logits.size(-1)).float()
"""
KTH = """    kth = logits.topk(min(k, logits.size(-1))).values[:, -1:]  # (B, 1)
    return logits.masked_fill(logits < kth, -torch.inf).softmax(-1)
"""
TIES = """    for i in range(1, remove.size(1)):  # an equal of one that stays, stays
        remove[:, i] &= ~((values[:, i] == values[:, i - 1]) & ~remove[:, i - 1])
"""
JOIN = """    if past is not None:
        k = torch.cat((past[0], k), dim=2)  # (B, H, S, D)
        v = torch.cat((past[1], v), dim=2)
"""

RIGHT = {
    "greedy": [greedy_cat, greedy_in_place, greedy_lists],
    "temperature": [temperature_softmax, temperature_exp, temperature_lists],
    "top_k": [top_k_fill, top_k_sort, top_k_rows],
    "top_p": [top_p_smallest, top_p_rows, top_p_scatter],
    "draw": [draw_search, draw_count, draw_rows],
    "kv_cache": [cache_mask, cache_sdpa, cache_loop],
}
WRONG = {
    "greedy": [
        ("crop-too-short", greedy_cat, CROP, "ids[:, -model.config.block_size + 1 :]"),
        (
            "crop-too-short",
            greedy_in_place,
            "end - model.config.block_size)",
            "end - model.config.block_size + 1)",
        ),
        ("whole-batch", greedy_cat, PICK, "logits[:, -1].argmax().expand(len(ids), 1)"),
        ("wrong-axis", greedy_cat, PICK, "logits[:, -1].argmax(0)[: len(ids), None]"),
        ("positions-mixed", greedy_cat, PICK, "logits.mean(1, keepdim=True).argmax(-1)"),
        ("positions-mixed", greedy_in_place, "logits[:, -1].max(dim=-1)", "logits.amax(1).max(dim=-1)"),
        (
            "second-likeliest",
            greedy_lists,
            "max(range(len(scores)), key=scores.__getitem__)",
            "sorted(range(len(scores)), key=scores.__getitem__)[-2]",
        ),
        ("sign-lost", greedy_in_place, "logits[:, -1].max", "logits[:, -1].abs().max"),
        ("vocabulary-cut", greedy_lists, "max(range(len(scores))", "max(range(len(scores) - 1)"),
        ("vocabulary-cut", greedy_cat, PICK, f"{PICK} + 1"),
        ("one-pass", greedy_cat, "range(n)", "range(1)", PICK, "logits[:, -1].topk(n).indices"),
        ("one-pass", greedy_cat, "range(n)", "range(1)", PICK, "logits[:, -n:].argmax(-1)"),
        (
            "new-token-only",
            greedy_in_place,
            "begin = max(0, end - model.config.block_size)",
            "begin = max(0, end - model.config.block_size) if end == T else end - 1",
        ),
        ("put-in-front", greedy_cat, f"(ids, {PICK})", f"({PICK}, ids)"),
        ("repeats-the-text", greedy_cat, PICK, "ids[:, -1:]"),
        (
            "ends-by-itself",
            greedy_cat,
            "        ids = torch.cat(",
            "        if not logits[0, -1].argmax():\n            break\n        ids = torch.cat(",
        ),
        ("no-crop", greedy_cat, CROP, "ids"),
        ("no-crop", greedy_in_place, "max(0, end - model.config.block_size)", "0"),
        ("crop-keeps-beginning", greedy_cat, CROP, "ids[:, : model.config.block_size]"),
        ("crop-keeps-beginning", greedy_lists, "[-model.config.block_size :]", "[: model.config.block_size]"),
        ("text-cropped", greedy_cat, READ, f"        ids = {CROP}\n        logits = model(ids)[0]\n"),
        (
            "text-cropped",
            greedy_lists,
            "            seen = torch.tensor([row[-model.config.block_size :]])\n",
            "            del row[: -model.config.block_size]\n            seen = torch.tensor([row])\n",
        ),
        ("prompt-missing", greedy_cat, "return ids", "return ids[:, -n:]"),
        (
            "ends-by-itself",
            greedy_cat,
            "dim=1)\n",
            "dim=1)\n        if (ids[:, -1] == 0).any():\n            break\n",
        ),
        (
            "ends-by-itself",
            greedy_in_place,
            "logits[:, -1].max(dim=-1).indices\n",
            "logits[:, -1].max(dim=-1).indices\n            if text[0, end] == 0:\n                return text[:, : end + 1]\n",
        ),
        ("prompt-missing", greedy_in_place, "return text", "return text[:, T:]"),
        ("first-row-for-all", greedy_cat, PICK, "logits[:1, -1:].argmax(-1).expand(len(ids), 1)"),
        ("first-row-for-all", greedy_in_place, "logits[:, -1].max(dim=-1).indices", "logits[0, -1].argmax()"),
        ("wrong-position", greedy_cat, "logits[:, -1:]", "logits[:, :1]"),
        ("wrong-position", greedy_in_place, "logits[:, -1]", "logits[:, 0]"),
        ("last-but-one", greedy_cat, "logits[:, -1:]", "logits[:, -2:-1]"),
        ("last-but-one", greedy_lists, "[0, -1].tolist()", "[0, -2].tolist()"),
        ("random", greedy_cat, PICK, "torch.multinomial(logits[:, -1].softmax(-1), 1)"),
        (
            "random",
            greedy_in_place,
            "logits[:, -1].max(dim=-1).indices",
            "torch.distributions.Categorical(logits=logits[:, -1]).sample()",
        ),
        ("one-token-only", greedy_cat, CROP, "ids[:, -1:]"),
        ("one-token-only", greedy_lists, "row[-model.config.block_size :]", "row[-1:]"),
        (
            "prompt-only",
            greedy_cat,
            "    for _ in range(n):\n" + READ,
            "    prompt = ids\n    for _ in range(n):\n        logits = model(prompt[:, -model.config.block_size :])[0]\n",
        ),
        ("one-too-many", greedy_cat, "range(n)", "range(n + 1)"),
        ("one-too-few", greedy_cat, "range(n)", "range(1, n)"),
        ("least-likely", greedy_cat, "argmax", "argmin"),
        ("least-likely", greedy_lists, "max(range(", "min(range("),
        ("ends-with-window", greedy_cat, "range(n)", "range(min(n, model.config.block_size - ids.size(1)))"),
        (
            "ends-with-window",
            greedy_lists,
            "            seen =",
            "            if len(row) >= model.config.block_size:\n                break\n            seen =",
        ),
        ("shape", greedy_cat, "return ids", "return ids[0]"),
    ],
    "temperature": [
        ("multiplied", temperature_softmax, "shifted / tau", "shifted * tau"),
        ("multiplied", temperature_lists, "(z - top) / tau", "(z - top) * tau"),
        (
            "multiplied",
            temperature_exp,
            "torch.exp((logits - highest) / tau)",
            "torch.exp(logits - highest) ** tau",
        ),
        (
            "without-effect",
            temperature_softmax,
            "return (shifted / tau).softmax(-1)",
            "cooled = shifted.softmax(-1) / tau\n    return cooled / cooled.sum(-1, keepdim=True)",
        ),
        (
            "without-effect",
            temperature_exp,
            "torch.exp((logits - highest) / tau)",
            "torch.exp(logits - highest) / tau",
        ),
        ("without-effect", temperature_lists, "(z - top) / tau", "z - top"),
        ("not-normalised", temperature_softmax, "(shifted / tau).softmax(-1)", "shifted.softmax(-1) / tau"),
        (
            "not-normalised",
            temperature_exp,
            "return weights / weights.sum(dim=1, keepdim=True)",
            "return weights",
        ),
        ("logits-returned", temperature_softmax, "(shifted / tau).softmax(-1)", "shifted / tau"),
        ("zero-divides", temperature_softmax, ZERO, ""),
        ("zero-divides", temperature_exp, "if tau == 0:", "if False:"),
        ("zero-divides", temperature_lists, "if tau == 0:", "if tau is None:"),
        ("zero-is-one", temperature_softmax, ZERO, "    tau = tau or 1.0\n"),
        ("zero-is-one", temperature_lists, "if tau == 0:", "tau = tau if tau else 1.0\n        if tau == 0:"),
        ("zero-shares-ties", temperature_softmax, ZERO, "    tau = max(tau, 1e-8)\n"),
        (
            "zero-shares-ties",
            temperature_exp,
            "result[torch.arange(len(logits)), logits.argmax(dim=1)] = 1.0\n        return result",
            "result[logits == highest] = 1.0\n        return result / result.sum(dim=1, keepdim=True)",
        ),
        (
            "zero-shares-ties",
            temperature_softmax,
            "F.one_hot(logits.argmax(-1), logits.size(-1)).float()",
            "(logits == logits.amax(-1, keepdim=True)).float()",
        ),
        (
            "zero-takes-last",
            temperature_exp,
            "logits.argmax(dim=1)]",
            "logits.sort(dim=1, stable=True).indices[:, -1]]",
        ),
        (
            "zero-takes-last",
            temperature_lists,
            "row.index(top)",
            "max(range(len(row)), key=lambda i: (row[i], i))",
        ),
        ("overflow", temperature_exp, "(logits - highest) / tau", "logits / tau"),
        ("wrong-axis", temperature_softmax, ".softmax(-1)", ".softmax(0)"),
        (
            "wrong-axis",
            temperature_exp,
            "weights.sum(dim=1, keepdim=True)",
            "weights.sum(dim=0, keepdim=True)",
        ),
        ("whole-batch", temperature_exp, "weights.sum(dim=1, keepdim=True)", "weights.sum()"),
        (
            "shifted-by-the-batch",
            temperature_exp,
            "weights = torch.exp((logits - highest)",
            "weights = torch.exp((logits - logits.max())",
        ),
        ("modifies", temperature_exp, "(logits - highest)", "logits.sub_(highest)"),
        ("refused", temperature_lists, "torch.tensor(rows)", "rows"),
        ("turned-round", temperature_softmax, "shifted / tau", "-shifted / tau"),
        ("small-taken-for-zero", temperature_softmax, "tau == 0", "tau < 0.5"),
        ("small-taken-for-zero", temperature_lists, "tau == 0", "tau <= 1e-6"),
        ("softmax-twice", temperature_softmax, "shifted / tau", "shifted.softmax(-1) / tau"),
        (
            "softmax-twice",
            temperature_exp,
            "return weights / weights.sum(dim=1, keepdim=True)",
            "return (weights / weights.sum(dim=1, keepdim=True)).softmax(1)",
        ),
        ("not-by-tau-itself", temperature_softmax, "shifted / tau", "shifted / tau**2"),
        ("not-by-tau-itself", temperature_exp, "(logits - highest) / tau", "(logits - highest) / tau**0.5"),
        ("not-by-tau-itself", temperature_lists, "(z - top) / tau", "(z - top) / (tau + 0.01)"),
        ("zero-takes-least", temperature_softmax, "argmax", "argmin"),
        (
            "zero-not-greedy",
            temperature_exp,
            "logits.argmax(dim=1)] = 1.0",
            "logits.argmax() % logits.size(1)] = 1.0",
        ),
        (
            "zero-not-greedy",
            temperature_exp,
            "        return result\n",
            "        return torch.ones_like(logits) / logits.size(1)\n",
        ),
        ("impossible-made-possible", temperature_softmax, "shifted / tau", "shifted.clamp(min=-10) / tau"),
        (
            "far-ones-bounded",
            temperature_exp,
            "(logits - highest) / tau",
            "(logits.clamp(max=50) - highest.clamp(max=50)) / tau",
        ),
    ],
    "top_k": [
        ("equal-shares", top_k_rows, "row[kept].softmax(0)", "1 / len(kept)"),
        ("equal-shares", top_k_sort, "probabilities * stays", "stays.float()"),
        ("softmax-twice", top_k_fill, "return logits.masked_fill(", "return logits.softmax(-1).masked_fill("),
        (
            "softmax-twice",
            top_k_sort,
            "return probabilities / probabilities.sum(dim=1, keepdim=True)",
            "return probabilities.masked_fill(~stays, -torch.inf).softmax(1)",
        ),
        ("negative-logits", top_k_fill, "logits.topk(", "logits.abs().topk("),
        (
            "negative-logits",
            top_k_rows,
            "sorted(row.tolist(), reverse=True)",
            "sorted(map(abs, row.tolist()), reverse=True)",
        ),
        ("shares-wrong", top_k_sort, "probabilities * stays", "probabilities.sqrt() * stays"),
        ("wrong-axis", top_k_fill, "kth, -torch.inf).softmax(-1)", "kth, -torch.inf).softmax(0)"),
        ("wrong-axis", top_k_sort, "probabilities.sum(dim=1,", "probabilities.sum(dim=0,"),
        (
            "ties-dropped",
            top_k_fill,
            KTH,
            """    values, indices = logits.topk(min(k, logits.size(-1)))
    return torch.zeros_like(logits).scatter(1, indices, values.softmax(-1))
""",
        ),
        (
            "ties-dropped",
            top_k_rows,
            "kept = [i for i in range(len(row)) if row[i] >= least]",
            "kept = sorted(range(len(row)), key=lambda i: -row[i].item())[:count]",
        ),
        ("kth-dropped", top_k_fill, "logits < kth", "logits <= kth"),
        ("kth-dropped", top_k_sort, "logits >= ordered", "logits > ordered"),
        ("one-too-many", top_k_sort, "ordered[:, k - 1 : k]", "ordered[:, k : k + 1]"),
        ("one-too-many", top_k_rows, "[count - 1]", "[min(count, len(row) - 1)]"),
        ("large-k", top_k_fill, "min(k, logits.size(-1))", "k"),
        ("large-k", top_k_rows, "min(k or len(row), len(row))", "k or len(row)"),
        ("zero-k", top_k_fill, "    if not k:\n        return logits.softmax(-1)\n", ""),
        ("zero-k", top_k_rows, "min(k or len(row), len(row))", "max(1, min(k, len(row)))"),
        ("zero-for-minus-infinity", top_k_fill, "-torch.inf", "0.0"),
        (
            "zero-for-minus-infinity",
            top_k_sort,
            "    probabilities = probabilities * stays\n    return probabilities / probabilities.sum(dim=1, keepdim=True)",
            "    return torch.softmax(logits * stays, dim=1)",
        ),
        (
            "not-normalised",
            top_k_sort,
            "return probabilities / probabilities.sum(dim=1, keepdim=True)",
            "return probabilities",
        ),
        ("not-normalised", top_k_rows, "row[kept].softmax(0)", "row.softmax(0)[kept]"),
        ("one-threshold-for-all", top_k_fill, "values[:, -1:]", "values[:, -1].min()"),
        ("one-threshold-for-all", top_k_sort, "ordered[:, k - 1 : k]", "ordered[0, k - 1]"),
        (
            "keeps-least-likely",
            top_k_fill,
            ".topk(min(k, logits.size(-1)))",
            ".topk(min(k, logits.size(-1)), largest=False)",
            "logits < kth",
            "logits > kth",
        ),
        (
            "keeps-least-likely",
            top_k_sort,
            "descending=True",
            "descending=False",
            "logits >= ordered",
            "logits <= ordered",
        ),
        ("unsorted", top_k_sort, "ordered[:, k - 1 : k]", "logits[:, k - 1 : k]"),
        ("logits-returned", top_k_fill, "-torch.inf).softmax(-1)", "-torch.inf)"),
        ("modifies", top_k_fill, "logits.masked_fill(", "logits.masked_fill_("),
    ],
    "top_p": [
        ("logits-returned", top_p_scatter, "mask, -torch.inf).softmax(-1)", "mask, -torch.inf)"),
        ("zero-p-keeps-all", top_p_rows, "if p >= 1:", "if p >= 1 or not p:"),
        ("zero-p-keeps-all", top_p_scatter, "if p >= 1:", "if not 0 < p < 1:"),
        ("min-p", top_p_smallest, "probabilities >= least", "probabilities >= p"),
        ("equal-shares", top_p_rows, "row[kept] / row[kept].sum()", "1 / len(kept)"),
        (
            "equal-shares",
            top_p_smallest,
            "probabilities >= least, 0.0)",
            "probabilities >= least, 0.0).sign()",
        ),
        ("softmax-twice", top_p_rows, "row[kept] / row[kept].sum()", "row[kept].softmax(0)"),
        (
            "put-back-wrongly",
            top_p_scatter,
            "torch.zeros_like(remove).scatter(1, order, remove)",
            "remove.gather(1, order)",
        ),
        (
            "shares-wrong",
            top_p_rows,
            "row[kept] / row[kept].sum()",
            "row[kept] ** 2 / (row[kept] ** 2).sum()",
        ),
        ("wrong-axis", top_p_smallest, "kept.sum(-1, keepdim=True)", "kept.sum(0, keepdim=True)"),
        ("wrong-axis", top_p_scatter, "mask, -torch.inf).softmax(-1)", "mask, -torch.inf).softmax(0)"),
        ("crossing-dropped", top_p_smallest, "ordered.cumsum(-1) - ordered  #", "ordered.cumsum(-1)  #"),
        (
            "crossing-dropped",
            top_p_scatter,
            "likelihood.cumsum(-1) - likelihood >= p",
            "likelihood.cumsum(-1) > p",
        ),
        (
            "one-too-many",
            top_p_scatter,
            "    remove[:, 0] = False\n",
            "    remove[:, 1:] = remove[:, :-1].clone()\n    remove[:, 0] = False\n",
        ),
        ("zero-p", top_p_smallest, "    stays[:, 0] = True\n", ""),
        ("zero-p", top_p_scatter, "    remove[:, 0] = False\n", ""),
        (
            "zero-p",
            top_p_rows,
            "if kept and total >= p and row[i] < row[kept[-1]]:",
            "if total >= p and (not kept or row[i] < row[kept[-1]]):",
        ),
        ("ties-dropped", top_p_scatter, TIES, ""),
        ("ties-dropped", top_p_rows, " and row[i] < row[kept[-1]]", ""),
        ("not-sorted", top_p_smallest, "probabilities.sort(descending=True).values", "probabilities"),
        (
            "not-sorted",
            top_p_rows,
            "sorted(range(len(row)), key=lambda i: -row[i].item())",
            "range(len(row))",
        ),
        ("ascending", top_p_scatter, "descending=True", "descending=False"),
        ("ascending", top_p_rows, "-row[i].item()", "row[i].item()"),
        ("mask-not-put-back", top_p_scatter, "torch.zeros_like(remove).scatter(1, order, remove)", "remove"),
        ("not-normalised", top_p_smallest, "return kept / kept.sum(-1, keepdim=True)", "return kept"),
        ("not-normalised", top_p_rows, " / row[kept].sum()", ""),
        ("threshold", top_p_smallest, "probabilities >= least", "probabilities >= 1 - p"),
        ("zero-for-minus-infinity", top_p_scatter, "-torch.inf", "0.0"),
        ("one-threshold-for-all", top_p_smallest, ".amin(-1, keepdim=True)", ".amin()"),
        ("one-cuts", top_p_smallest, "    if p >= 1:\n        stays[:] = True\n", ""),
        ("one-cuts", top_p_scatter, "    if p >= 1:\n        return logits.softmax(-1)\n", ""),
    ],
    "draw": [
        (
            "one-row-for-all",
            draw_count,
            "probabilities.double()",
            "probabilities[0].double().expand(probabilities.shape)",
        ),
        ("number-turned-round", draw_count, "numbers.double().unsqueeze(1)", "(1 - numbers).unsqueeze(1)"),
        (
            "sorted-first",
            draw_search,
            "    running = probabilities.double().cumsum(1)",
            "    ordered, ids = torch.sort(probabilities, descending=True)\n    running = ordered.double().cumsum(1)",
            "return torch.searchsorted(running, limit, right=True)[:, 0]",
            "return ids.gather(1, torch.searchsorted(running, limit, right=True))[:, 0]",
        ),
        (
            "equal-pieces",
            draw_rows,
            "limit, running, last = number * sum(row), 0.0, 0",
            "row = [1.0] * len(row)\n        limit, running, last = number * sum(row), 0.0, 0",
        ),
        (
            "softmax-again",
            draw_search,
            "probabilities.double()",
            "torch.softmax(probabilities.double(), dim=-1)",
        ),
        (
            "sum-below-one",
            draw_search,
            "numbers[:, None] * running[:, -1:]",
            "numbers[:, None].contiguous()",
            "right=True)[:, 0]",
            "right=True)[:, 0].clamp(max=running.shape[1] - 1)",
        ),
        ("impossible-at-zero", draw_search, "right=True", "right=False"),
        ("impossible-at-zero", draw_count, "running <= limit", "running < limit"),
        ("sum-below-one", draw_search, "numbers[:, None] * running[:, -1:]", "numbers[:, None].contiguous()"),
        ("sum-below-one", draw_count, " * running[:, -1:]", ""),
        ("sum-below-one", draw_first_beyond),
        ("likeliest", draw_count, "(running <= limit).sum(-1)", "probabilities.argmax(-1)"),
        (
            "random",
            draw_search,
            "torch.searchsorted(running, limit, right=True)[:, 0]",
            "torch.multinomial(probabilities, 1)[:, 0]",
        ),
        ("random", draw_count, "numbers.double()", "torch.rand(len(numbers)).double()"),
        ("one-number-for-all", draw_search, "numbers[:, None]", "numbers[:1, None]"),
        ("one-number-for-all", draw_count, "numbers.double().unsqueeze(1)", "numbers[0].double()"),
        ("one-too-far", draw_search, "[:, 0]", "[:, 0] + 1"),
        ("one-too-early", draw_count, ".sum(-1)", ".sum(-1) - 1"),
        ("wrong-axis", draw_count, "cumsum(-1)", "cumsum(0)"),
        (
            "from-the-end",
            draw_count,
            "probabilities.double()",
            "probabilities.flip(-1).double()",
            "return (running <= limit).sum(-1)",
            "return probabilities.size(1) - 1 - (running <= limit).sum(-1)",
        ),
        ("not-running", draw_search, ".cumsum(1)", ""),
        (
            "rounded-to-one",
            draw_count,
            "probabilities.double()",
            "probabilities",
            "numbers.double()",
            "numbers.float()",
        ),
        ("shape", draw_search, "[:, 0]", ""),
    ],
    "kv_cache": [
        ("top-left", cache_mask, ".tril(S - T)", ".tril()"),
        ("top-left", cache_sdpa, "attn_mask=may_see", "is_causal=True"),
        ("top-left", cache_loop, "seen = earlier + i + 1", "seen = i + 1"),
        ("top-left-of-pieces", cache_sdpa, "attn_mask=may_see", "is_causal=q.shape[2] > 1"),
        ("no-mask", cache_mask, "scores.masked_fill(~may_see, -torch.inf)", "scores"),
        ("no-mask", cache_sdpa, ", attn_mask=may_see", ""),
        ("no-mask", cache_loop, "seen = earlier + i + 1", "seen = keys.shape[-2]"),
        ("first-piece-only", cache_sdpa, "attn_mask=may_see", "is_causal=past is None"),
        ("one-mask-for-all", cache_sdpa, " + torch.arange(q.shape[2])[:, None]", ""),
        ("does-not-see-itself", cache_mask, ".tril(S - T)", ".tril(S - T - 1)"),
        ("does-not-see-itself", cache_sdpa, "[None, :] <= before", "[None, :] < before"),
        ("sees-one-ahead", cache_mask, ".tril(S - T)", ".tril(S - T + 1)"),
        ("sees-one-ahead", cache_loop, "earlier + i + 1", "earlier + i + 2"),
        ("new-first", cache_mask, "(past[0], k)", "(k, past[0])", "(past[1], v)", "(v, past[1])"),
        ("new-first", cache_sdpa, "[past[0], k]", "[k, past[0]]", "[past[1], v]", "[v, past[1]]"),
        (
            "only-new-kept",
            cache_mask,
            "    if past is not None:\n",
            "    new = k, v\n    if past is not None:\n",
            "weights @ v, (k, v)",
            "weights @ v, new",
        ),
        ("only-new-kept", cache_loop, "(keys, values)\n", "(k, v)\n"),
        ("past-ignored", cache_mask, "if past is not None:", "if False:"),
        (
            "past-ignored",
            cache_loop,
            "(k, v) if past is None else (torch.cat(both, -2) for both in zip(past, (k, v)))",
            "k, v",
        ),
        ("no-scale", cache_mask, " / math.sqrt(q.size(-1))", ""),
        ("no-scale", cache_sdpa, "attn_mask=may_see", "attn_mask=may_see, scale=1.0"),
        ("no-scale", cache_loop, " * q.shape[-1] ** -0.5", ""),
        ("scaled-by-length", cache_mask, "math.sqrt(q.size(-1))", "math.sqrt(k.size(2))"),
        ("swapped", cache_mask, "weights @ v, (k, v)", "weights @ v, (v, k)"),
        (
            "no-first-call",
            cache_mask,
            JOIN,
            "    k = torch.cat((past[0], k), dim=2)\n    v = torch.cat((past[1], v), dim=2)\n",
        ),
        ("softmax-over-queries", cache_mask, ".softmax(-1)", ".softmax(-2)"),
        (
            "softmax-over-queries",
            cache_mask,
            "scores.masked_fill(~may_see, -torch.inf).softmax(-1)",
            "scores.softmax(2)",
        ),
        ("past-mixed-up", cache_mask, "(past[0], k)", "(past[1], k)", "(past[1], v)", "(past[0], v)"),
        ("past-mixed-up", cache_sdpa, "torch.cat([past[1], v], 2)", "torch.cat([past[0], v], 2)"),
        ("zeros-for-infinity", cache_mask, "scores.masked_fill(~may_see, -torch.inf)", "(scores * may_see)"),
        ("divided-by-D", cache_loop, "q.shape[-1] ** -0.5", "q.shape[-1] ** -1"),
        ("kept-between-calls", cache_kept),
        ("kept-between-calls", cache_handed_back),
        ("refused", cache_mask, "weights @ v, (k, v)", "weights @ v"),
    ],
}
