"""Attention."""

import math

import torch
import torch.nn as nn
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


def many_one_by_one(x, w, b, w_o, b_o):
    results = []
    for h in range(w.size(1)):
        q, k, v = (F.linear(x, w[j, h], b[j, h]) for j in range(3))
        scores = q @ k.transpose(1, 2) / math.sqrt(w.size(2))
        future = torch.ones(x.size(1), x.size(1), dtype=torch.bool).triu(1)
        results.append(scores.masked_fill(future, -math.inf).softmax(-1) @ v)
    return F.linear(torch.cat(results, dim=-1), w_o, b_o)


def many_einsum(x, w, b, w_o, b_o):
    B, T, C = x.shape
    _, H, D, _ = w.shape
    q, k, v = torch.einsum("btc,jhdc->jbhtd", x, w) + b[:, None, :, None]
    scores = torch.einsum("bhtd,bhsd->bhts", q, k) / D**0.5
    scores = torch.where(torch.ones(T, T).tril().bool(), scores, -torch.inf)
    y = torch.einsum("bhts,bhsd->bthd", scores.softmax(dim=-1), v)
    return y.reshape(B, T, C) @ w_o.T + b_o


def many_sdpa(x, w, b, w_o, b_o):
    B, T, C = x.shape
    H = w.shape[1]
    q, k, v = F.linear(x, w.reshape(3 * C, C), b.reshape(3 * C)).split(C, dim=-1)
    q = q.view(B, T, H, C // H).transpose(1, 2)
    k = k.view(B, T, H, C // H).transpose(1, 2)
    v = v.view(B, T, H, C // H).transpose(1, 2)
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return F.linear(y.transpose(1, 2).contiguous().view(B, T, C), w_o, b_o)


class MaskedAttention(nn.Module):
    """As in many courses: a buffer with the mask, all steps written out."""

    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)
        mask = torch.tril(torch.ones(config.block_size, config.block_size))
        self.register_buffer("mask", mask.view(1, 1, config.block_size, config.block_size))

    def forward(self, x):
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split(C, dim=2)
        k = k.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        q = q.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        v = v.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        att = att.masked_fill(self.mask[:, :, :T, :T] == 0, float("-inf"))
        att = F.softmax(att, dim=-1)
        att = self.dropout(att)
        y = att @ v
        y = y.transpose(1, 2).contiguous().view(B, T, C)
        return self.dropout(self.c_proj(y))


class FusedAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.H, self.rate = config.n_head, config.dropout
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x):
        q, k, v = self.c_attn(x).unflatten(-1, (3, self.H, -1)).permute(2, 0, 3, 1, 4)
        p = self.rate if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True)
        return self.c_proj(y.transpose(1, 2).flatten(2))


class EinsumAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        C = config.n_embd
        self.sizes = config.n_head, C // config.n_head
        self.c_attn, self.c_proj = nn.Linear(C, 3 * C), nn.Linear(C, C)

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = (z.reshape(B, T, *self.sizes) for z in self.c_attn(x).chunk(3, dim=-1))
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / self.sizes[1] ** 0.5
        seen = torch.arange(T)[:, None] >= torch.arange(T)
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        return self.c_proj(torch.einsum("bhqk,bkhd->bqhd", weights, v).reshape(B, T, C))


class LoopAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x):
        C, H = self.config.n_embd, self.config.n_head
        D = C // H
        made = self.c_attn(x)
        heads = []
        for h in range(H):
            q = made[:, :, h * D : (h + 1) * D]
            k = made[:, :, C + h * D : C + (h + 1) * D]
            v = made[:, :, 2 * C + h * D : 2 * C + (h + 1) * D]
            rows = []
            for t in range(x.size(1)):
                scores = (q[:, t : t + 1] * k[:, : t + 1]).sum(-1) / D**0.5
                rows.append((scores.softmax(-1)[:, :, None] * v[:, : t + 1]).sum(1))
            heads.append(torch.stack(rows, dim=1))
        return self.c_proj(torch.cat(heads, dim=-1))


NO_MASK = '    scores = scores.masked_fill(mask == 0, float("-inf"))\n'
FILL = '        att = att.masked_fill(self.mask[:, :, :T, :T] == 0, float("-inf"))\n'
SPLIT_Q, SPLIT_K, SPLIT_V = (f"{z}.view(B, T, H, C // H).transpose(1, 2)" for z in "qkv")
VIEW_Q, VIEW_K, VIEW_V = (f"{z}.reshape(B, H, T, C // H)" for z in "qkv")
RIGHT = {
    "head": [head_loops, head_matmul, head_einsum, head_sdpa],
    "multi_head": [many_one_by_one, many_einsum, many_sdpa],
    "attention": [MaskedAttention, FusedAttention, EinsumAttention, LoopAttention],
}
WRONG = {
    "head": [
        ("softmax-across", head_matmul, "dim=-1", "dim=0"),
        ("no-softmax", head_matmul, "F.softmax(scores, dim=-1)", "scores", 'float("-inf")', "0"),
        ("other-scale", head_matmul, "q.size(-1)", "T + 1"),
        ("other-scale", head_einsum, "** -0.5", "** -0.25"),
        ("plain-average", head_matmul, "q @ k", "0 * q @ k"),
        ("weights-unused", head_matmul, "v = x @ w[2]", "v = x @ w[1]"),
        ("biases-unused", head_matmul, " + b[2]", ""),
        (
            "mask-one-early",
            head_matmul,
            "torch.tril(torch.ones(T, T))",
            "torch.ones(T, T).tril(-1)\n    mask[0, 0] = 1",
        ),
        (
            "weights-not-transposed",
            head_matmul,
            "x @ w[0].T",
            "x @ w[0].view(x.size(2), -1)",
            "x @ w[1].T",
            "x @ w[1].view(x.size(2), -1)",
            "x @ w[2].T",
            "x @ w[2].view(x.size(2), -1)",
        ),
        ("sequences-mix", head_matmul, "return weights @ v", "return weights @ v.mean(0)"),
        ("past-hidden", head_matmul, "torch.tril(torch.ones(T, T))", "torch.ones(T, T).tril().triu(-1)"),
        ("nearly-right", head_matmul, "return weights @ v", "return weights.bfloat16().to(v.dtype) @ v"),
        (
            "weights-not-transposed",
            head_matmul,
            "x @ w[0].T",
            "x @ w[0]",
            "x @ w[1].T",
            "x @ w[1]",
            "x @ w[2].T",
            "x @ w[2]",
        ),
        ("weights-not-transposed", head_loops, "w[j].T", "w[j]"),
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
        ("finite-mask", head_matmul, 'float("-inf")', "-1e4"),
        ("finite-mask", head_matmul, 'float("-inf")', "-1e9"),
        (
            "mask-one-late",
            head_sdpa,
            "is_causal=True",
            "attn_mask=torch.ones(x.size(1), x.size(1)).tril(1).bool()",
        ),
        ("mask-one-early", head_einsum, "triu(1)", "triu()"),
        (
            "mask-one-early",
            head_matmul,
            "torch.tril(torch.ones(T, T))",
            "torch.tril(torch.ones(T, T), diagonal=-1)",
        ),
        ("mask-upside-down", head_matmul, "torch.tril", "torch.triu"),
        ("mask-upside-down", head_matmul, "mask == 0", "mask == 1"),
        ("no-scale", head_matmul, " / math.sqrt(q.size(-1))", ""),
        ("no-scale", head_loops, " / math.sqrt(D)", ""),
        ("divided-by-D", head_loops, "math.sqrt(D)", "D"),
        ("multiplied", head_einsum, "** -0.5", "** 0.5"),
        ("scale-of-the-width", head_matmul, "q.size(-1)", "x.size(-1)"),
        ("softmax-axis", head_matmul, "dim=-1", "dim=1"),
        ("swapped", head_matmul, "q @ k.transpose", "k @ q.transpose"),
        ("swapped", head_einsum, "q, k, v = torch", "k, q, v = torch"),
        (
            "sees-future",
            head_loops,
            "for s in range(t + 1)])",
            "for s in range(T)])",
            "for s in range(t + 1)))",
            "for s in range(max(t + 1, 2))))",
        ),
        (
            "not-normalised",
            head_einsum,
            "scores.exp() / scores.exp().sum(-1, keepdim=True)",
            "scores.exp()",
            "    scores = scores - scores.max(-1, keepdim=True).values\n",
            "",
        ),
        ("overflow", head_einsum, "    scores = scores - scores.max(-1, keepdim=True).values\n", ""),
        (
            "divided-too-late",
            head_matmul,
            " / math.sqrt(q.size(-1))",
            "",
            "weights @ v",
            "weights @ v / math.sqrt(q.size(-1))",
        ),
        ("no-biases", head_sdpa, "F.linear(x, w[j], b[j])", "F.linear(x, w[j])"),
        ("no-biases", head_einsum, " + b[:, None, None]", ""),
        ("no-mask+no-scale", head_matmul, NO_MASK, "", " / math.sqrt(q.size(-1))", ""),
        ("zeros-for-infinity+no-scale", head_matmul, 'float("-inf")', "0", " / math.sqrt(q.size(-1))", ""),
        (
            "gradient",
            head_sdpa,
            "return F",
            "x = x.detach()\n    q, k, v = (F.linear(x, w[j], b[j]) for j in range(3))\n    return F",
        ),
        ("modifies", head_matmul, "    q = x @", "    x -= x.mean()\n    x += 1\n    q = x @"),
        ("dtype", head_matmul, "return weights @ v", "return (weights @ v).half()"),
        ("random", head_matmul, "dim=-1)\n", "dim=-1)\n    weights = F.dropout(weights, 0.3)\n"),
    ],
    "multi_head": [
        ("softmax-across", many_einsum, "softmax(dim=-1)", "softmax(dim=1)"),
        ("no-softmax", many_one_by_one, "-math.inf).softmax(-1)", "0)"),
        ("heads-and-channels", many_sdpa, "H = w.shape[1]", "H = w.shape[2]"),
        ("other-scale", many_einsum, "D**0.5", "H**0.5"),
        ("other-scale", many_one_by_one, "math.sqrt(w.size(2))", "math.sqrt(x.size(1) + 1)"),
        ("bias-for-each-head", many_one_by_one, "dim=-1), w_o, b_o)", "dim=-1), w_o, w.size(1) * b_o)"),
        (
            "heads-added",
            many_one_by_one,
            "torch.cat(results, dim=-1)",
            "sum(results).repeat(1, 1, w.size(1))",
        ),
        ("plain-average", many_one_by_one, "scores.masked_fill", "(0 * scores).masked_fill"),
        ("weights-unused", many_one_by_one, "w[j, h], b[j, h]", "w[max(j, 1), h], b[j, h]"),
        ("biases-unused", many_one_by_one, "b[j, h]", "b[j, 0]"),
        ("sequences-mix", many_sdpa, "    y = F", "    v = v.roll(1, 0)\n    y = F"),
        ("past-hidden", many_einsum, "tril().bool()", "tril().triu(-1).bool()"),
        ("nearly-right", many_sdpa, "    y = F", "    v = v.bfloat16().to(v.dtype)\n    y = F"),
        ("no-biases", many_einsum, " + b[:, None, :, None]", ""),
        ("heads-reversed", many_one_by_one, "range(w.size(1))", "reversed(range(w.size(1)))"),
        ("adds-its-input", many_sdpa, "return F.linear(", "return x + F.linear("),
        ("first-axis-for-heads", many_one_by_one, "w[j, h], b[j, h]", "w[h][j], b[h][j]"),
        (
            "first-axis-for-heads",
            many_one_by_one,
            "q, k, v = (F.linear(x, w[j, h], b[j, h]) for j in range(3))",
            "(w_q, w_k, w_v), (b_q, b_k, b_v) = w[h], b[h]\n        q, k, v = x @ w_q.T + b_q, x @ w_k.T + b_k, x @ w_v.T + b_v",
        ),
        (
            "view-after-transpose",
            many_einsum,
            "->bthd",
            "->bhtd",
            "y.reshape",
            "y.contiguous().transpose(1, 2).view",
        ),
        ("no-mask", many_sdpa, ", is_causal=True", ""),
        ("zeros-for-infinity", many_einsum, "scores, -torch.inf)", "scores, 0.0)"),
        (
            "mask-after-softmax",
            many_one_by_one,
            "scores.masked_fill(future, -math.inf).softmax(-1) @ v",
            "scores.softmax(-1).masked_fill(future, 0) @ v",
        ),
        ("finite-mask", many_one_by_one, "-math.inf", "-1e4"),
        ("mask-one-late", many_einsum, "tril()", "tril(1)"),
        ("mask-one-early", many_one_by_one, "triu(1)", "triu(0)"),
        ("mask-upside-down", many_einsum, "tril()", "triu()"),
        ("no-scale", many_einsum, " / D**0.5", ""),
        ("divided-by-D", many_einsum, "D**0.5", "D"),
        ("multiplied", many_one_by_one, "/ math.sqrt", "* math.sqrt"),
        ("scale-of-the-width", many_einsum, "D**0.5", "C**0.5"),
        ("scale-of-the-width", many_one_by_one, "math.sqrt(w.size(2))", "math.sqrt(x.size(2))"),
        ("softmax-axis", many_einsum, "softmax(dim=-1)", "softmax(dim=-2)"),
        ("view-for-transpose", many_sdpa, SPLIT_Q, VIEW_Q, SPLIT_K, VIEW_K, SPLIT_V, VIEW_V),
        (
            "no-transpose-back",
            many_sdpa,
            "y.transpose(1, 2).contiguous().view(B, T, C)",
            "y.contiguous().view(B, T, C)",
        ),
        ("no-transpose-back", many_einsum, "->bthd", "->bhtd"),
        (
            "channels-dealt-out",
            many_one_by_one,
            "torch.cat(results, dim=-1)",
            "torch.stack(results, dim=-1).flatten(-2)",
        ),
        ("one-head-for-all", many_one_by_one, "w[j, h], b[j, h]", "w[j, 0], b[j, 0]"),
        (
            "no-projection",
            many_sdpa,
            "F.linear(y.transpose(1, 2).contiguous().view(B, T, C), w_o, b_o)",
            "y.transpose(1, 2).reshape(B, T, C)",
        ),
        ("projection-transposed", many_einsum, "@ w_o.T", "@ w_o"),
        ("projection-without-bias", many_one_by_one, "dim=-1), w_o, b_o)", "dim=-1), w_o)"),
        ("swapped", many_sdpa, "q, k, v = F.linear", "k, q, v = F.linear"),
        ("swapped", many_sdpa, "q, k, v = F.linear", "v, k, q = F.linear"),
        (
            "sees-future",
            many_one_by_one,
            "        future =",
            "        v = v + v.mean(1, keepdim=True)\n        future =",
        ),
        ("shape", many_one_by_one, "F.linear(torch.cat(results, dim=-1), w_o, b_o)", "torch.stack(results)"),
        ("not-normalised", many_einsum, "scores.softmax(dim=-1)", "scores.exp()"),
        (
            "overflow",
            many_einsum,
            "scores.softmax(dim=-1)",
            "scores.exp() / scores.exp().sum(-1, keepdim=True)",
        ),
        (
            "divided-too-late",
            many_one_by_one,
            "scores = q @ k.transpose(1, 2) / math.sqrt(w.size(2))",
            "scores = q @ k.transpose(1, 2)\n        v = v / math.sqrt(w.size(2))",
        ),
        (
            "heads-for-positions",
            many_sdpa,
            SPLIT_Q,
            "q.view(B, T, H, C // H)",
            SPLIT_K,
            "k.view(B, T, H, C // H)",
            SPLIT_V,
            "v.view(B, T, H, C // H)",
            "y.transpose(1, 2).contiguous()",
            "y",
        ),
        (
            "one-head",
            many_sdpa,
            SPLIT_Q,
            "q",
            SPLIT_K,
            "k",
            SPLIT_V,
            "v",
            "y.transpose(1, 2).contiguous()",
            "y",
        ),
        ("no-scale+no-projection", many_einsum, " / D**0.5", "", " @ w_o.T + b_o", ""),
    ],
    "attention": [
        ("softmax-across", EinsumAttention, "softmax(-1)", "softmax(1)"),
        ("no-softmax", EinsumAttention, "-torch.inf).softmax(-1)", "0)"),
        (
            "heads-and-channels",
            EinsumAttention,
            "config.n_head, C // config.n_head",
            "C // config.n_head, config.n_head",
        ),
        ("adds-its-input", MaskedAttention, "return self.dropout(", "return x + self.dropout("),
        (
            "thirds-within-heads",
            MaskedAttention,
            "self.c_attn(x).split(C, dim=2)",
            "self.c_attn(x).view(B, T, C, 3).unbind(-1)",
        ),
        ("view-after-transpose", MaskedAttention, ".contiguous()", ""),
        ("no-mask", MaskedAttention, FILL, ""),
        ("no-mask", FusedAttention, ", is_causal=True", ""),
        ("zeros-for-infinity", MaskedAttention, 'float("-inf")', "0"),
        (
            "mask-after-softmax",
            MaskedAttention,
            FILL,
            "",
            "y = att @ v",
            "y = (att * self.mask[:, :, :T, :T]) @ v",
        ),
        ("finite-mask", MaskedAttention, 'float("-inf")', "-10000.0"),
        ("finite-mask", EinsumAttention, "-torch.inf", "-1e9"),
        ("mask-one-late", LoopAttention, "k[:, : t + 1]", "k[:, : t + 2]", "v[:, : t + 1]", "v[:, : t + 2]"),
        ("mask-one-early", EinsumAttention, ">=", ">"),
        ("mask-upside-down", MaskedAttention, "torch.tril(", "torch.triu("),
        ("mask-upside-down", EinsumAttention, "~seen", "seen"),
        ("no-scale", MaskedAttention, " * (1.0 / math.sqrt(k.size(-1)))", ""),
        ("no-scale", FusedAttention, "is_causal=True", "is_causal=True, scale=1"),
        ("divided-by-D", EinsumAttention, "self.sizes[1] ** 0.5", "self.sizes[1]"),
        ("multiplied", MaskedAttention, "1.0 / math.sqrt", "math.sqrt"),
        ("scale-of-the-width", MaskedAttention, "math.sqrt(k.size(-1))", "math.sqrt(C)"),
        ("scale-of-the-width", LoopAttention, "D**0.5", "C**0.5"),
        ("softmax-axis", EinsumAttention, "softmax(-1)", "softmax(-2)"),
        (
            "view-for-transpose",
            FusedAttention,
            ".unflatten(-1, (3, self.H, -1)).permute(2, 0, 3, 1, 4)",
            ".chunk(3, -1)",
            "        p =",
            "        q, k, v = (z.reshape(z.size(0), self.H, z.size(1), -1) for z in (q, k, v))\n        p =",
        ),
        ("no-transpose-back", FusedAttention, "y.transpose(1, 2).flatten(2)", "y.reshape(x.shape)"),
        ("no-transpose-back", MaskedAttention, "y.transpose(1, 2).contiguous()", "y.contiguous()"),
        (
            "channels-dealt-out",
            FusedAttention,
            "(3, self.H, -1)).permute(2, 0, 3, 1, 4)",
            "(3, -1, self.H)).permute(2, 0, 4, 1, 3)",
        ),
        (
            "channels-dealt-out",
            LoopAttention,
            "torch.cat(heads, dim=-1)",
            "torch.stack(heads, dim=-1).flatten(2)",
        ),
        (
            "thirds-within-heads",
            FusedAttention,
            "(3, self.H, -1)).permute(2, 0, 3, 1, 4)",
            "(self.H, 3, -1)).permute(3, 0, 2, 1, 4)",
        ),
        ("no-projection", EinsumAttention, "self.c_proj(torch", "(torch"),
        ("swapped", MaskedAttention, "q, k, v = self", "k, q, v = self"),
        ("swapped", EinsumAttention, "q, k, v = (", "v, q, k = ("),
        (
            "sees-future",
            EinsumAttention,
            "        B, T, C = x.shape\n",
            "        B, T, C = x.shape\n        x = x - x.mean(1, keepdim=True)\n",
        ),
        ("random", MaskedAttention, "att = self.dropout(att)", "att = F.dropout(att, 0.1)"),
        ("random", FusedAttention, "self.rate if self.training else 0.0", "self.rate"),
        ("refused", FusedAttention, "3 * config.n_embd)", "3 * config.n_embd, bias=False)"),
        (
            "refused",
            EinsumAttention,
            "nn.Linear(C, 3 * C), nn.Linear(C, C)",
            "nn.Linear(C, 3 * C), nn.Identity()",
        ),
        ("raises", MaskedAttention, "dim=2)", "dim=0)"),
        ("not-normalised", EinsumAttention, "softmax(-1)", "exp()"),
        (
            "overflow",
            EinsumAttention,
            "weights = scores",
            "weights = (lambda s: s.exp() / s.exp().sum(-1, keepdim=True))(scores",
            ".softmax(-1)",
            ")",
        ),
        (
            "divided-too-late",
            LoopAttention,
            " / D**0.5",
            "",
            "heads.append(torch.stack(rows, dim=1))",
            "heads.append(torch.stack(rows, dim=1) / D**0.5)",
        ),
        (
            "heads-for-positions",
            FusedAttention,
            ".permute(2, 0, 3, 1, 4)",
            ".unbind(2)",
            "y.transpose(1, 2).flatten(2)",
            "y.flatten(2)",
        ),
        ("one-head", FusedAttention, "(3, self.H, -1)", "(3, 1, -1)"),
        (
            "no-scale+no-transpose-back",
            MaskedAttention,
            " * (1.0 / math.sqrt(k.size(-1)))",
            "",
            "y.transpose(1, 2).contiguous()",
            "y.contiguous()",
        ),
    ],
}
