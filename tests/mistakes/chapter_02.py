"""Attention."""

import math

import torch
import torch.nn.functional as F


def head_loops(x, w, b):
    B, T, C = x.shape
    D = w.size(1)
    sequences = []
    for i in range(B):
        q, k, v = (x[i] @ w[j].T + b[j] for j in range(3))
        rows = []
        for t in range(T):
            scores = torch.stack([q[t] @ k[s] / math.sqrt(D) for s in range(t + 1)])
            weights = scores.softmax(0)
            rows.append(sum(weights[s] * v[s] for s in range(t + 1)))
        sequences.append(torch.stack(rows))
    return torch.stack(sequences)


def head_matmul(x, w, b):
    T = x.size(1)
    q = x @ w[0].T + b[0]
    k = x @ w[1].T + b[1]
    v = x @ w[2].T + b[2]
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.size(-1))
    mask = torch.tril(torch.ones(T, T))
    scores = scores.masked_fill(mask == 0, float("-inf"))
    weights = F.softmax(scores, dim=-1)
    return weights @ v


def head_einsum(x, w, b):
    q, k, v = torch.einsum("btc,jdc->jbtd", x, w) + b[:, None, None]
    scores = torch.einsum("bqd,bkd->bqk", q, k) * w.shape[1] ** -0.5
    scores = scores + torch.full(scores.shape[1:], -torch.inf).triu(1)
    scores = scores - scores.max(-1, keepdim=True).values
    weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
    return torch.einsum("bqk,bkd->bqd", weights, v)


def head_sdpa(x, w, b):
    q, k, v = (F.linear(x, w[j], b[j]) for j in range(3))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


NO_MASK = '    scores = scores.masked_fill(mask == 0, float("-inf"))\n'
RIGHT = {"head": [head_loops, head_matmul, head_einsum, head_sdpa]}
WRONG = {
    "head": [
        ("no-mask", head_matmul, NO_MASK, ""),
        ("no-mask", head_sdpa, ", is_causal=True", ""),
        ("zeros-for-infinity", head_matmul, 'float("-inf")', "0.0"),
        (
            "zeros-for-infinity",
            head_einsum,
            "scores + torch.full(scores.shape[1:], -torch.inf).triu(1)",
            "scores.tril()",
        ),
        ("mask-after-softmax", head_matmul, NO_MASK, "", "return weights @ v", "return (weights * mask) @ v"),
        ("no-scale", head_matmul, " / math.sqrt(q.size(-1))", ""),
        ("no-scale", head_loops, " / math.sqrt(D)", ""),
        (
            "sees-future",
            head_sdpa,
            "is_causal=True",
            "attn_mask=torch.ones(x.size(1), x.size(1)).tril(1).bool()",
        ),
    ]
}
