"""Optimizer and schedule."""

import math

import torch


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
    up = [max_lr * step / warmup_steps for step in range(1, warmup_steps + 1)] or [max_lr] * (max_steps > 1)
    n = max_steps - len(up)
    down = [min_lr + (max_lr - min_lr) * math.cos(math.pi * i / n / 2) ** 2 for i in range(1, n + 1)]
    return (up + down)[it] if it < max_steps else min_lr


def adamw_short(p, grad, m, v, t, lr, betas, eps, weight_decay):
    b1, b2 = betas
    m = b1 * m + (1 - b1) * grad
    v = b2 * v + (1 - b2) * grad * grad
    m_hat = m / (1 - b1**t)
    v_hat = v / (1 - b2**t)
    p = p - lr * weight_decay * p
    p = p - lr * m_hat / (torch.sqrt(v_hat) + eps)
    return p, m, v


def adamw_in_place(p, grad, m, v, t, lr, betas, eps, weight_decay):
    p, m, v = p.clone(), m.clone(), v.clone()
    p.mul_(1 - lr * weight_decay)
    m.lerp_(grad, 1 - betas[0])
    v.mul_(betas[1]).addcmul_(grad, grad, value=1 - betas[1])
    denominator = (v / (1 - betas[1] ** t)).sqrt().add_(eps)
    p.addcdiv_(m, denominator, value=-lr / (1 - betas[0] ** t))
    return p, m, v


def adamw_pytorch(p, grad, m, v, t, lr, betas, eps, weight_decay):
    q = torch.nn.Parameter(p.clone())
    q.grad = grad
    optimizer = torch.optim.AdamW([q], lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
    optimizer.state[q] = {"step": torch.tensor(float(t - 1)), "exp_avg": m.clone(), "exp_avg_sq": v.clone()}
    optimizer.step()
    return q.detach(), optimizer.state[q]["exp_avg"], optimizer.state[q]["exp_avg_sq"]


def adamw_loop(p, grad, m, v, t, lr, betas, eps, weight_decay):
    new = []
    for w, g, a, b in zip(*(x.flatten().tolist() for x in (p, grad, m, v)), strict=True):
        a = betas[0] * a + (1 - betas[0]) * g
        b = betas[1] * b + (1 - betas[1]) * g**2
        w *= 1 - lr * weight_decay
        w -= lr * (a / (1 - betas[0] ** t)) / (math.sqrt(b / (1 - betas[1] ** t)) + eps)
        new.append((w, a, b))
    return tuple(torch.tensor(column).view(p.shape) for column in zip(*new, strict=True))


def groups_lists(model, weight_decay):
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]


def groups_names(model, weight_decay):
    params = {n: p for n, p in model.named_parameters() if p.requires_grad}
    decay, no_decay = set(), set()
    for name, p in params.items():
        if p.ndim >= 2:
            decay.add(name)
        else:
            no_decay.add(name)
    return [
        {"params": [params[n] for n in sorted(no_decay)], "weight_decay": 0.0},
        {"params": [params[n] for n in sorted(decay)], "weight_decay": weight_decay},
    ]


def groups_one_each(model, weight_decay):
    """A group for each parameter, by the kind of its module, as minGPT goes about it."""
    groups, seen = [], set()
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False):
            if p.requires_grad and id(p) not in seen:
                seen.add(id(p))
                spared = name == "bias" or isinstance(module, torch.nn.LayerNorm)
                groups.append({"params": [p], "weight_decay": 0.0 if spared else weight_decay})
    return groups


def clip_list(parameters, max_norm):
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = sum((g**2).sum() for g in grads) ** 0.5
    if norm > max_norm:
        for g in grads:
            g.mul_(max_norm / norm)
    return norm


def clip_flat(parameters, max_norm):
    params = [p for p in parameters if p.grad is not None]
    flat = torch.cat([p.grad.flatten() for p in params])
    norm = torch.linalg.vector_norm(flat)
    coefficient = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
    for p in params:
        p.grad = p.grad * coefficient
    return norm.item()


def clip_loop(parameters, max_norm):
    parameters = list(parameters)
    total = 0.0
    for p in parameters:
        if p.grad is None:
            continue
        total += p.grad.norm(2).item() ** 2
    total = total**0.5
    factor = min(1.0, max_norm / total)
    for p in parameters:
        if p.grad is not None:
            p.grad.data.mul_(factor)
    return total


def clip_pytorch(parameters, max_norm):
    return torch.nn.utils.clip_grad_norm_(parameters, max_norm)


def clip_each(parameters, max_norm):
    for p in parameters:
        if p.grad is not None:
            norm = p.grad.norm()
            p.grad.mul_(min(1.0, max_norm / norm.item()))
    return norm


RIGHT = {
    "get_lr": [lr_branches, lr_minimum, lr_table],
    "adamw": [adamw_short, adamw_in_place, adamw_pytorch, adamw_loop],
    "decay_groups": [groups_lists, groups_names, groups_one_each],
    "clip": [clip_list, clip_flat, clip_loop, clip_pytorch],
}
COSINE = "0.5 * (1 + math.cos(math.pi * s)) * (max_lr - min_lr)"
WRONG = {
    "get_lr": [
        ("starts-at-zero", lr_branches, "(it + 1)", "it"),
        ("starts-at-zero", lr_minimum, "(it + 1)", "it"),
        ("peak-twice", lr_branches, "start = max(warmup_steps - 1, 0)", "start = warmup_steps",
         "(max_steps - 1 - start)", "(max_steps - start)", "it >= max_steps - 1", "it > max_steps"),
        ("peak-twice", lr_minimum, "max(warmup_steps - 1, 0), max_steps - 1", "warmup_steps, max_steps"),
        ("ends-late", lr_minimum, "max(warmup_steps - 1, 0), max_steps - 1", "max(warmup_steps - 1, 0), max_steps"),
        ("rises-again", lr_branches, "    if it >= max_steps - 1:\n        return min_lr\n", "",
         "(max_steps - 1 - start)", "max(max_steps - 1 - start, 1)"),
        ("no-warm-up", lr_branches, "    if it < warmup_steps:\n        return max_lr * (it + 1) / warmup_steps\n", "",
         "max(warmup_steps - 1, 0)", "0"),
        ("stays-at-the-peak", lr_branches, f"min_lr + {COSINE}", "max_lr"),
        ("cosine-from-zero", lr_branches, "start = max(warmup_steps - 1, 0)", "start = 0"),
        ("to-zero", lr_branches, f"min_lr + {COSINE}", "max_lr * 0.5 * (1 + math.cos(math.pi * s))"),
        ("min-lr-fixed", lr_branches, "    if it < warmup_steps:", "    min_lr = 0.1 * max_lr\n    if it < warmup_steps:"),
        ("min-added", lr_branches, "(max_lr - min_lr)", "max_lr"),
        ("straight-line", lr_branches, f"min_lr + {COSINE}", "max_lr - s * (max_lr - min_lr)"),
        ("cosine-without-pi", lr_branches, "math.cos(math.pi * s)", "math.cos(s)"),
        ("whole-cosine", lr_minimum, "math.cos(math.pi * progress)", "math.cos(2 * math.pi * progress)"),
        ("quarter-cosine", lr_branches, "0.5 * (1 + math.cos(math.pi * s))", "math.cos(0.5 * math.pi * s)"),
        ("warm-up-from-min-lr", lr_branches, "max_lr * (it + 1) / warmup_steps", "min_lr + (max_lr - min_lr) * (it + 1) / warmup_steps"),
        ("warm-up-from-min-lr", lr_branches, "max_lr * (it + 1) / warmup_steps", "min_lr + (max_lr - min_lr) * it / warmup_steps"),
        ("min-in-warm-up", lr_branches, "it < warmup_steps:", "it < min(warmup_steps, max_steps - 1):"),
        ("peak-before-step-0", lr_branches, "max(warmup_steps - 1, 0)", "warmup_steps - 1"),
        ("divides-by-zero", lr_branches, "it < warmup_steps", "it <= warmup_steps - 1 or warmup_steps == 0"),
        ("divides-by-zero", lr_branches, "it >= max_steps - 1", "it >= max_steps"),
        ("no-warm-up", lr_branches, "    if it < warmup_steps:\n        return max_lr * (it + 1) / warmup_steps\n", ""),
        ("cosine-from-zero", lr_branches, "(it - start) / (max_steps - 1 - start)", "it / max_steps"),
        ("cosine-from-zero", lr_branches, "(it - start)", "it"),
        ("bare-cosine", lr_branches, "0.5 * (1 + math.cos(math.pi * s))", "math.cos(math.pi * s)"),
        ("bounded-below", lr_branches, f"min_lr + {COSINE}", "max(min_lr, max_lr * 0.5 * (1 + math.cos(math.pi * s)))"),
        ("ends-early", lr_minimum, "max(warmup_steps - 1, 0), max_steps - 1", "max(warmup_steps - 1, 0), max_steps - 2"),
        ("degrees", lr_branches, "math.cos(math.pi * s)", "math.cos(180 * s)"),
        ("sine", lr_branches, "math.cos(", "math.sin("),
        ("half-missing", lr_branches, "0.5 * (1 +", "(1 +"),
        ("upwards", lr_branches, "1 + math.cos", "1 - math.cos"),
        ("upwards", lr_minimum, "(1 - coefficient) * min_lr + coefficient * max_lr", "min_lr * coefficient + max_lr * (1 - coefficient) if it < last else min_lr"),
        ("min-not-added", lr_branches, f"min_lr + {COSINE}", COSINE),
        ("all-steps", lr_branches, "/ (max_steps - 1 - start)", "/ max_steps"),
        ("all-steps", lr_branches, "/ (max_steps - 1 - start)", "/ (max_steps - 1)"),
        ("exponential", lr_branches, f"min_lr + {COSINE}", "max_lr * math.exp(s * math.log(min_lr / max_lr))"),
        ("min-lr-as-a-share", lr_branches, f"min_lr + {COSINE}", "max_lr * (min_lr + (1 - min_lr) * (1 + math.cos(math.pi * s)) / 2)"),
        ("one-step-too-many", lr_branches, "/ warmup_steps", "/ (warmup_steps + 1)"),
        ("one-step-too-many", lr_minimum, "max_lr / warmup_steps", "max_lr / (warmup_steps + 1)"),
        ("whole-numbers", lr_branches, "max_lr * (it + 1) / warmup_steps", "max_lr * ((it + 1) // warmup_steps)"),
        ("whole-numbers", lr_branches, "(it + 1) / warmup_steps", "(it + 1) // warmup_steps"),
        ("peak-missing", lr_branches, "max_lr * (it + 1)", "(it + 1)"),
        ("at-the-peak-at-once", lr_branches, "max_lr * (it + 1) / warmup_steps", "max_lr"),
        ("zero-at-the-end", lr_branches, "        return min_lr\n", "        return 0.0\n"),
        ("zero-at-the-end", lr_table, "else min_lr", "else 0.0"),
        ("begins-at-zero", lr_branches, "(it + 1)", "it", "1 + math.cos(math.pi * s)", "2 - 2 * s"),
        ("warm-up-wrong", lr_branches, "(it + 1) / warmup_steps", "((it + 1) / warmup_steps) ** 2"),
        ("warm-up-wrong", lr_minimum, "(it + 1) * max_lr", "(it + 2) * max_lr"),
        ("cosine-wrong", lr_branches, COSINE, "(1 - s) ** 2 * (max_lr - min_lr)"),
        ("cosine-wrong", lr_minimum, "progress) + 1.0", "progress * progress) + 1.0"),
        ("end-wrong", lr_branches, "        return min_lr\n", "        return max_lr\n"),
        ("end-wrong", lr_table, "else min_lr", "else up[0]"),
        ("short-runs", lr_branches, "it < warmup_steps:", "it < max(warmup_steps, 1):", "/ warmup_steps", "/ max(warmup_steps, 1)"),
    ],
    "adamw": [
        (
            "decayed-twice",
            adamw_short,
            "    m = b1 * m",
            "    grad = grad + weight_decay * p\n    m = b1 * m",
        ),
        (
            "decay-divided",
            adamw_short,
            "    p = p - lr * weight_decay * p\n    p = p - lr * m_hat /",
            "    p = p - lr * (m_hat + p * weight_decay) /",
        ),
        ("one-beta-for-both", adamw_loop, "(1 - betas[1] ** t)", "(1 - betas[0]**t)"),
        ("beta-times-t", adamw_short, "1 - b1**t", "1 - b1 * t", "1 - b2**t", "1 - b2 * t"),
        ("gradient-for-average", adamw_short, "lr * m_hat", "lr * grad"),
        ("average-squared", adamw_short, "grad * grad", "m * m"),
        (
            "corrected-outside-the-root",
            adamw_loop,
            "math.sqrt(b / (1 - betas[1] ** t))",
            "math.sqrt(b) / (1 - betas[1] ** t)",
        ),
        ("rate-missing", adamw_short, "p - lr * m_hat", "p - m_hat"),
        ("gradients-summed", adamw_short, "(1 - b2) * grad * grad", "grad**2"),
        ("averages-exchanged", adamw_loop, "betas[0] * a + (1 - betas[0]) * g", "(1 - betas[0]) * a + betas[0] * g"),
        ("not-squared", adamw_short, "grad * grad", "grad"),
        ("old-averages", adamw_short, "b1, b2 = betas", "(b1, b2), before = betas, m", "m / (1 - b1", "before / (1 - b1"),
        ("not-corrected", adamw_short, "m / (1 - b1**t)", "m", "v / (1 - b2**t)", "v"),
        ("m-not-corrected", adamw_short, "m / (1 - b1**t)", "m"),
        ("m-not-corrected", adamw_in_place, "-lr / (1 - betas[0] ** t)", "-lr"),
        ("v-not-corrected", adamw_short, "v / (1 - b2**t)", "v"),
        ("counted-too-far", adamw_short, "m_hat = m", "t += 1\n    m_hat = m"),
        ("counted-from-zero", adamw_short, "m_hat = m", "t -= 1\n    m_hat = m"),
        ("corrected-as-at-the-first", adamw_short, "(1 - b1**t)", "(1 - b1)", "(1 - b2**t)", "(1 - b2)"),
        ("corrected-averages-kept", adamw_short, "return p, m, v", "return p, m_hat, v_hat"),
        ("decay-in-the-gradient", adamw_short, "    p = p - lr * weight_decay * p\n", "", "b1, b2 = betas", "b1, b2 = betas\n    grad = grad + weight_decay * p"),
        ("decay-in-the-gradient", adamw_pytorch, "torch.optim.AdamW", "torch.optim.Adam"),
        ("decay-without-lr", adamw_short, "p - lr * weight_decay * p", "p - weight_decay * p"),
        ("decay-without-lr", adamw_in_place, "1 - lr * weight_decay", "1 - weight_decay"),
        ("no-decay", adamw_in_place, "    p.mul_(1 - lr * weight_decay)\n", ""),
        ("grows", adamw_in_place, "1 - lr * weight_decay", "1 + lr * weight_decay"),
        ("decay-last", adamw_short, "    p = p - lr * weight_decay * p\n", "", "    return", "    p = p - lr * weight_decay * p\n    return"),
        ("eps-inside", adamw_short, "(torch.sqrt(v_hat) + eps)", "torch.sqrt(v_hat + eps)"),
        ("eps-before-correction", adamw_short, "(torch.sqrt(v_hat) + eps)", "(torch.sqrt(v) + eps) * math.sqrt(1 - b2**t)"),
        ("no-eps", adamw_short, "(torch.sqrt(v_hat) + eps)", "torch.sqrt(v_hat)"),
        ("no-root", adamw_short, "torch.sqrt(v_hat)", "v_hat"),
        ("not-squared", adamw_short, "grad * grad", "grad.abs()"),
        ("betas-exchanged", adamw_short, "b1, b2 = betas", "b2, b1 = betas"),
        ("averages-exchanged", adamw_short, "b1 * m + (1 - b1) * grad", "(1 - b1) * m + b1 * grad", "b2 * v + (1 - b2) * grad", "(1 - b2) * v + b2 * grad"),
        ("gradients-summed", adamw_short, "b1 * m + (1 - b1) * grad", "b1 * m + grad"),
        ("gradients-summed", adamw_short, "b1 * m + (1 - b1) * grad", "b1 * m + grad", "b2 * v + (1 - b2) * grad", "b2 * v + grad"),
        ("old-averages", adamw_short, "m = b1", "old_m, old_v = m, v\n    m = b1", "m_hat = m", "m_hat = old_m", "v_hat = v", "v_hat = old_v"),
        ("uphill", adamw_short, "p - lr * m_hat", "p + lr * m_hat"),
        ("modifies", adamw_in_place, "p.clone(), m.clone(), v.clone()", "p, m, v"),
        ("refused", adamw_short, "return p, m, v", "return p"),
    ],
    "decay_groups": [
        ("copies", groups_names, "model.named_parameters() if p.requires_grad", "model.state_dict().items()"),
        ("copies", groups_lists, "model.parameters() if p.requires_grad", "map(torch.nn.Parameter, model.parameters()) if p.requires_grad"),
        ("twice", groups_one_each, " and id(p) not in seen", ""),
        ("twice", groups_lists, "p.dim() < 2", "True"),
        ("left-out", groups_lists, "[p for p in model.parameters() if p.requires_grad]", "(p for p in model.parameters() if p.requires_grad)"),
        ("left-out", groups_lists, "p.dim() < 2", "p.dim() < 1"),
        ("left-out", groups_one_each, 'spared = name == "bias"', 'if isinstance(module, torch.nn.Embedding):\n                    continue\n                spared = name == "bias"'),
        ("frozen", groups_lists, " if p.requires_grad", ""),
        ("no-decay-given", groups_lists, ', "weight_decay": 0.0', ""),
        ("no-decay-given", groups_lists, '"weight_decay": weight_decay', '"decay": weight_decay'),
        ("exchanged", groups_lists, "p.dim() >= 2", "p.dim() < 2", "p.dim() < 2], \"weight_decay\": 0.0", "p.dim() >= 2], \"weight_decay\": 0.0"),
        ("exchanged", groups_names, "p.ndim >= 2", "p.ndim < 2"),
        ("decays-everything", groups_lists, "0.0", "weight_decay"),
        ("decays-nothing", groups_lists, '"weight_decay": weight_decay', '"weight_decay": 0.0'),
        ("decays-gains", groups_names, "p.ndim >= 2", 'not name.endswith("bias")'),
        ("decays-the-last-gain", groups_names, "p.ndim >= 2", 'not (name.endswith("bias") or "ln_1" in name or "ln_2" in name)'),
        ("decays-biases", groups_one_each, 'name == "bias" or isinstance', "isinstance"),
        ("embeddings-spared", groups_one_each, "torch.nn.LayerNorm", "(torch.nn.LayerNorm, torch.nn.Embedding)"),
        ("two-dimensions-only", groups_lists, "p.dim() >= 2", "p.dim() == 2", "p.dim() < 2", "p.dim() == 1"),
        ("two-dimensions-only", groups_names, "p.ndim >= 2", "p.ndim == 2"),
        ("by-name", groups_names, "p.ndim >= 2", 'not (name.endswith("bias") or "ln" in name)'),
        ("decay-fixed", groups_lists, '"weight_decay": weight_decay', '"weight_decay": 0.1'),
        ("refused", groups_names, "[params[n] for n in sorted(decay)]", "sorted(decay)"),
    ],
    "clip": [
        ("longest-tensor", clip_list, "sum((g**2).sum() for g in grads) ** 0.5", "max(g.norm() for g in grads)"),
        ("factor-upside-down", clip_list, "max_norm / norm", "norm / max_norm"),
        ("scaled-to-one", clip_list, "g.mul_(max_norm / norm)", "g.div_(norm)"),
        ("none-forgotten", clip_list, " if p.grad is not None", ""),
        ("none-forgotten", clip_loop, "        if p.grad is None:\n            continue\n", ""),
        ("unchanged", clip_list, "g.mul_(max_norm / norm)", "g = g * max_norm / norm"),
        ("unchanged", clip_loop, "    parameters = list(parameters)\n", ""),
        ("each-tensor", clip_loop, "p.grad.data.mul_(factor)", "p.grad.data.mul_(min(1.0, max_norm / p.grad.norm().item()))"),
        ("each-tensor", clip_each),
        ("each-number", clip_loop, "p.grad.data.mul_(factor)", "p.grad.data.clamp_(-max_norm, max_norm)"),
        ("always-scaled", clip_loop, "min(1.0, max_norm / total)", "max_norm / total"),
        ("always-scaled", clip_flat, "torch.clamp(max_norm / (norm + 1e-6), max=1.0)", "max_norm / (norm + 1e-6)"),
        ("only-short-ones", clip_list, "norm > max_norm", "norm < max_norm"),
        ("only-short-ones", clip_loop, "min(1.0", "max(1.0"),
        ("no-root", clip_list, " ** 0.5", ""),
        ("no-root", clip_loop, "    total = total**0.5\n", ""),
        ("lengths-added", clip_loop, ".item() ** 2", ".item()", "    total = total**0.5\n", ""),
        ("largest-entry", clip_flat, "vector_norm(flat)", "vector_norm(flat, float('inf'))"),
        ("sizes-added", clip_flat, "vector_norm(flat)", "vector_norm(flat, 1)"),
        ("mean-for-sum", clip_flat, "torch.linalg.vector_norm(flat)", "flat.square().mean().sqrt()"),
        ("last-tensor-only", clip_loop, "total += p.grad", "total = p.grad"),
        ("weights-measured", clip_loop, "        if p.grad is None:\n            continue\n        total += p.grad.norm(2)", "        total += p.data.norm(2)"),
        ("weights-scaled", clip_loop, "if p.grad is not None:\n            p.grad.data", "if True:\n            p.data"),
        ("length-after", clip_list, "    return norm", "    return sum((g**2).sum() for g in grads) ** 0.5"),
        ("limit-fixed", clip_pytorch, "parameters, max_norm)\n", "parameters, 1.0)\n"),
        ("refused", clip_pytorch, "return ", ""),
    ],
}  # fmt: skip
