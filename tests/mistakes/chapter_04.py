"""LayerNorm and the block."""

import torch
import torch.nn as nn
import torch.nn.functional as F

from gpt2lib.attention import CausalSelfAttention
from gpt2lib.mlp import MLP


class ByHand(nn.Module):
    def __init__(self, n_embd):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n_embd))
        self.bias = nn.Parameter(torch.zeros(n_embd))

    def forward(self, x):
        mean = x.mean(-1, keepdim=True)
        var = x.var(-1, keepdim=True, correction=0)
        x = (x - mean) / torch.sqrt(var + 1e-5)
        return self.weight * x + self.bias


class Functional(nn.Module):
    def __init__(self, n_embd):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n_embd))
        self.bias = nn.Parameter(torch.zeros(n_embd))

    def forward(self, x):
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, eps=1e-5)


class Moments(nn.Module):
    def __init__(self, n_embd):
        super().__init__()
        self.n = n_embd
        self.weight = nn.Parameter(torch.ones(n_embd))
        self.bias = nn.Parameter(torch.zeros(n_embd))

    def forward(self, x):
        centred = x - x.sum(dim=2, keepdim=True) / self.n
        variance = centred.pow(2).sum(dim=2, keepdim=True) / self.n
        return centred * (variance + 1e-5).rsqrt() * self.weight + self.bias


class Einsum(nn.Module):
    def __init__(self, n_embd):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n_embd))
        self.bias = nn.Parameter(torch.zeros(n_embd))

    def forward(self, x):
        C = x.size(-1)
        centred = x - torch.einsum("btc->bt", x)[..., None] / C
        size = (torch.einsum("btc,btc->bt", centred, centred) / C + 1e-5) ** 0.5
        return torch.einsum("btc,bt,c->btc", centred, 1 / size, self.weight) + self.bias


class PlainBlock(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        x = x + self.mlp(self.ln_2(x))
        return x


class NamedBlock(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.ln_1 = ByHand(config.n_embd)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = ByHand(config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x):
        normed = self.ln_1(x)
        attended = self.attn(normed)
        middle = x + attended
        normed = self.ln_2(middle)
        thought = self.mlp(normed)
        return middle + thought


class LoopBlock(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.attn, self.mlp = CausalSelfAttention(config), MLP(config)
        self.ln_1, self.ln_2 = nn.LayerNorm(config.n_embd), nn.LayerNorm(config.n_embd)

    def forward(self, x):
        stream = x
        for norm, branch in ((self.ln_1, self.attn), (self.ln_2, self.mlp)):
            stream = stream + branch(norm(stream))
        return stream


RIGHT = {
    "layer_norm": [ByHand, Functional, Moments, Einsum],
    "block": [PlainBlock, NamedBlock, LoopBlock],
}
WRONG = {
    "layer_norm": [
        ("no-mean", ByHand, "(x - mean)", "x"),
        (
            "statistics-detached",
            ByHand,
            "mean = x.mean(-1, keepdim=True)",
            "mean = x.mean(-1, keepdim=True).detach()",
        ),
        ("std-plus-eps", ByHand, "torch.sqrt(var + 1e-5)", "(x.std(-1, keepdim=True) + 1e-6)"),
        ("starts-elsewhere", ByHand, "torch.ones(", "torch.zeros("),
        ("starts-elsewhere", ByHand, "torch.zeros(", "torch.ones("),
        (
            "not-divided+no-gain",
            ByHand,
            "        x = (x - mean) / torch.sqrt(var + 1e-5)\n        return self.weight * x + self.bias\n",
            "        return x - mean\n",
        ),
        ("divided-by-C-1", ByHand, ", correction=0", ""),
        (
            "divided-by-C-1",
            Moments,
            "keepdim=True) / self.n\n        return",
            "keepdim=True) / (self.n - 1)\n        return",
        ),
        ("no-eps", ByHand, "var + 1e-5", "var"),
        ("no-eps", Functional, "eps=1e-5", "eps=0.0"),
        ("eps-outside-the-root", ByHand, "torch.sqrt(var + 1e-5)", "(torch.sqrt(var) + 1e-5)"),
        ("eps-outside-the-root", Einsum, "/ C + 1e-5) ** 0.5", "/ C) ** 0.5 + 1e-5"),
        ("other-eps", Functional, "1e-5", "1e-6"),
        ("other-eps", Moments, "1e-5", "1e-12"),
        ("other-eps", ByHand, "1e-5", "1e-3"),
        ("over-positions", ByHand, "x.mean(-1", "x.mean(1", "x.var(-1", "x.var(1"),
        ("over-everything", ByHand, "x.mean(-1", "x.mean((1, 2)", "x.var(-1", "x.var((1, 2)"),
        (
            "over-everything",
            ByHand,
            "x.mean(-1, keepdim=True)",
            "x.mean()",
            "x.var(-1, keepdim=True, correction=0)",
            "x.var(correction=0)",
        ),
        ("batch-norm", ByHand, "x.mean(-1", "x.mean((0, 1)", "x.var(-1", "x.var((0, 1)"),
        (
            "batch-norm",
            Functional,
            "F.layer_norm(x, self.weight.shape, self.weight, self.bias, eps=1e-5)",
            "F.batch_norm(x.transpose(1, 2), None, None, self.weight, self.bias, training=True).transpose(1, 2)",
        ),
        (
            "no-mean",
            Functional,
            "F.layer_norm(x, self.weight.shape, self.weight, self.bias, eps=1e-5)",
            "F.rms_norm(x, self.weight.shape, self.weight, eps=1e-5) + self.bias",
        ),
        ("no-mean", Moments, "x - x.sum(dim=2, keepdim=True) / self.n", "x"),
        ("divided-by-variance", ByHand, "torch.sqrt(var + 1e-5)", "(var + 1e-5)"),
        ("not-divided", ByHand, " / torch.sqrt(var + 1e-5)", ""),
        ("no-gain", ByHand, "self.weight * x", "x"),
        ("no-gain", ByHand, "self.weight * x + self.bias", "x"),
        ("no-shift", Moments, " + self.bias", ""),
        ("no-shift", Functional, "self.weight, self.bias,", "self.weight, None,"),
        ("shift-before-gain", ByHand, "self.weight * x + self.bias", "self.weight * (x + self.bias)"),
        (
            "std-plus-eps",
            ByHand,
            "x.var(-1, keepdim=True, correction=0)",
            "x.std(-1, keepdim=True)",
            "torch.sqrt(var + 1e-5)",
            "(var + 1e-5)",
        ),
        ("spread-not-centred", Moments, "centred.pow(2)", "x.pow(2)"),
        ("divided-by-C-1+no-shift", ByHand, ", correction=0", "", " + self.bias", ""),
        ("statistics-detached", ByHand, "correction=0)", "correction=0).detach()"),
        (
            "modifies",
            ByHand,
            "x = (x - mean) / torch.sqrt(var + 1e-5)",
            "x -= mean\n        x = x / torch.sqrt(var + 1e-5)",
        ),
        ("refused", ByHand, "self.weight = ", "self.gamma = ", "self.weight * x", "self.gamma * x"),
        (
            "shape",
            ByHand,
            "mean = x.mean(-1, keepdim=True)",
            "x = x[None]\n        mean = x.mean(-1, keepdim=True)",
        ),
    ],
    "block": [
        (
            "post-norm",
            PlainBlock,
            "x + self.attn(self.ln_1(x))",
            "self.ln_1(x + self.attn(x))",
            "x + self.mlp(self.ln_2(x))",
            "self.ln_2(x + self.mlp(x))",
        ),
        ("no-residual", PlainBlock, "x + self.attn", "self.attn", "x + self.mlp", "self.mlp"),
        ("no-residual", LoopBlock, "stream + branch", "branch"),
        ("no-residual-around-attention", NamedBlock, "x + attended", "attended"),
        ("no-residual-around-mlp", NamedBlock, "return middle + thought", "return thought"),
        (
            "stream-normalised",
            PlainBlock,
            "x = x + self.attn(self.ln_1(x))",
            "x = self.ln_1(x)\n        x = x + self.attn(x)",
            "x = x + self.mlp(self.ln_2(x))",
            "x = self.ln_2(x)\n        x = x + self.mlp(x)",
        ),
        (
            "stream-normalised",
            LoopBlock,
            "stream = stream + branch(norm(stream))",
            "stream = norm(stream)\n            stream = stream + branch(stream)",
        ),
        ("norm-on-the-result", LoopBlock, "branch(norm(stream))", "norm(branch(stream))"),
        ("no-norm", PlainBlock, "self.mlp(self.ln_2(x))", "self.mlp(x)"),
        ("stream-normalised", NamedBlock, "middle = x + attended", "middle = normed + attended"),
        ("no-norm", LoopBlock, "branch(norm(stream))", "branch(stream)"),
        ("one-norm-twice", PlainBlock, "self.mlp(self.ln_2(x))", "self.mlp(self.ln_1(x))"),
        (
            "norms-swapped",
            LoopBlock,
            "(self.ln_1, self.attn), (self.ln_2, self.mlp)",
            "(self.ln_2, self.attn), (self.ln_1, self.mlp)",
        ),
        (
            "mlp-first",
            LoopBlock,
            "(self.ln_1, self.attn), (self.ln_2, self.mlp)",
            "(self.ln_2, self.mlp), (self.ln_1, self.attn)",
        ),
        ("in-parallel", NamedBlock, "self.ln_2(middle)", "self.ln_2(x)"),
        (
            "mlp-without-attention",
            NamedBlock,
            "self.ln_2(middle)",
            "self.ln_2(x)",
            "return middle",
            "return x",
        ),
        (
            "added-twice",
            PlainBlock,
            "return x\n",
            "return residual + x\n",
            "        x = x + self.attn",
            "        residual = x\n        x = x + self.attn",
        ),
        ("added-twice", LoopBlock, "stream + branch", "stream + stream + branch"),
        ("modifies", LoopBlock, "stream = stream + branch(norm(stream))", "stream += branch(norm(stream))"),
        (
            "refused",
            PlainBlock,
            "        self.ln_2 = nn.LayerNorm(config.n_embd)\n",
            "",
            "self.ln_2(x)",
            "self.ln_1(x)",
        ),
    ],
}
