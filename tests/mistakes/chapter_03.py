"""GELU and the MLP."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F


def gelu_formula(x):
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def gelu_pytorch(x):
    return F.gelu(x, approximate="tanh")


def gelu_steps(x):
    cubic = 0.044715 * torch.pow(x, 3.0)
    inner = math.sqrt(2.0 / math.pi) * (x + cubic)
    share = (1.0 + inner.tanh()) / 2
    return x * share


def gelu_sigmoid(x):
    return x * torch.sigmoid(2 * 0.7978845608028654 * (x + 0.044715 * x * x * x))


class SequentialMLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.gelu = nn.GELU(approximate="tanh")
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x):
        x = self.c_fc(x)
        x = self.gelu(x)
        x = self.c_proj(x)
        return self.dropout(x)


class FunctionalMLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        width = 4 * config.n_embd
        self.c_fc, self.c_proj = nn.Linear(config.n_embd, width), nn.Linear(width, config.n_embd)

    def forward(self, x):
        neurons = F.gelu(x @ self.c_fc.weight.T + self.c_fc.bias, approximate="tanh")
        return neurons @ self.c_proj.weight.T + self.c_proj.bias


class PositionByPosition(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x):
        rows = []
        for t in range(x.size(1)):
            neurons = gelu_formula(self.c_fc(x[:, t]))
            rows.append(self.c_proj(neurons))
        return torch.stack(rows, 1)


RIGHT = {
    "gelu": [gelu_formula, gelu_pytorch, gelu_steps, gelu_sigmoid],
    "mlp": [SequentialMLP, FunctionalMLP, PositionByPosition],
}
WRONG = {
    "gelu": [
        ("other-curve", gelu_pytorch, 'F.gelu(x, approximate="tanh")', "F.elu(x)"),
        ("minus-the-tanh", gelu_formula, "1 + torch", "1 - torch"),
        ("sigmoid-for-tanh", gelu_formula, "torch.tanh", "torch.sigmoid"),
        ("one-inside", gelu_formula, "(1 + torch.tanh(", "(torch.tanh(1 + "),
        ("minus-the-cubic", gelu_formula, "x + 0.044715", "x - 0.044715"),
        ("other-cubic", gelu_steps, "0.044715", "0.04475"),
        ("other-cubic", gelu_formula, "0.044715", "0.04715"),
        ("other-factor", gelu_formula, "math.sqrt(2 / math.pi)", "0.8"),
        (
            "other-numbers",
            gelu_formula,
            "math.sqrt(2 / math.pi) * (x + 0.044715",
            "(x + math.sqrt(2 / math.pi) * 0.044715",
        ),
        ("nearly-right", gelu_steps, "return x * share", "return x * share.bfloat16().to(x.dtype)"),
        ("wrong-below-zero", gelu_formula, "x**3", "x.abs() ** 3"),
        ("root-of-two-alone", gelu_formula, "math.sqrt(2 / math.pi)", "math.sqrt(2) / math.pi"),
        ("root-of-two-alone", gelu_steps, "math.sqrt(2.0 / math.pi)", "2.0 / math.sqrt(math.pi)"),
        (
            "outer-parenthesis",
            gelu_formula,
            "(1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))",
            "1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))",
        ),
        ("one-number-function", gelu_formula, "torch.tanh", "math.tanh"),
        (
            "one-number-function",
            gelu_formula,
            "torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))",
            "math.erf(x / math.sqrt(2))",
        ),
        ("exact-gelu", gelu_pytorch, ', approximate="tanh"', ""),
        (
            "exact-gelu",
            gelu_formula,
            "torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))",
            "torch.erf(x / math.sqrt(2))",
        ),
        ("relu", gelu_pytorch, 'F.gelu(x, approximate="tanh")', "torch.clamp(x, min=0)"),
        ("silu", gelu_pytorch, 'F.gelu(x, approximate="tanh")', "x / (1 + torch.exp(-x))"),
        ("sigmoid-gelu", gelu_sigmoid, "2 * 0.7978845608028654 * (x + 0.044715 * x * x * x)", "1.702 * x"),
        ("no-cubic", gelu_steps, "(x + cubic)", "x"),
        ("no-cubic", gelu_formula, " + 0.044715 * x**3", ""),
        ("square-for-cube", gelu_formula, "x**3", "x**2"),
        ("square-for-cube", gelu_sigmoid, "x * x * x))", "x * x))"),
        ("decimal-point", gelu_formula, "0.044715", "0.44715"),
        ("decimal-point", gelu_steps, "0.044715", "0.0044715"),
        ("no-root", gelu_formula, "math.sqrt(2 / math.pi)", "(2 / math.pi)"),
        ("other-root", gelu_formula, "2 / math.pi", "2 * math.pi"),
        ("other-root", gelu_steps, "2.0 / math.pi", "math.pi / 2.0"),
        ("other-root", gelu_formula, "math.sqrt(2 / math.pi)", "math.sqrt(2)"),
        ("parenthesis", gelu_formula, "* (x + 0.044715 * x**3)", "* x + 0.044715 * x**3"),
        ("no-half", gelu_formula, "0.5 * x", "x"),
        ("no-half", gelu_steps, " / 2", ""),
        ("no-one", gelu_formula, "1 + torch", "torch"),
        ("cube-of-all", gelu_formula, "(x + 0.044715 * x**3)", "(x + 0.044715 * x) ** 3"),
        (
            "erf-without-root",
            gelu_formula,
            "torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))",
            "torch.erf(x)",
        ),
        ("no-half+without-x", gelu_formula, "0.5 * x * (1", "(1"),
        ("without-x", gelu_steps, "return x * share", "return share"),
        ("without-x", gelu_formula, "0.5 * x * (1", "0.5 * (1"),
        ("gradient", gelu_formula, "return ", "x = torch.tensor(x.tolist())\n    return "),
        ("dtype", gelu_formula, "return ", "x = x.double()\n    return "),
        ("modifies", gelu_steps, "return x * share", "return x.mul_(share)"),
    ],
    "mlp": [
        ("norms-its-input", SequentialMLP, "self.c_fc(x)", "self.c_fc(F.layer_norm(x, x.shape[2:]))"),
        (
            "layers-twice",
            SequentialMLP,
            "        x = self.gelu(x)\n",
            "        x = self.gelu(x)\n        x = self.gelu(self.c_fc(self.c_proj(x)))\n",
        ),
        ("other-curve", SequentialMLP, 'nn.GELU(approximate="tanh")', "nn.Tanh()"),
        ("bend-twice", SequentialMLP, "self.gelu(x)", "self.gelu(self.gelu(x))"),
        (
            "wrong-curve",
            FunctionalMLP,
            'F.gelu(x @ self.c_fc.weight.T + self.c_fc.bias, approximate="tanh")',
            "F.celu(x @ self.c_fc.weight.T + self.c_fc.bias, 0.3)",
        ),
        ("positions-mix", SequentialMLP, "self.c_fc(x)", "self.c_fc(x - x.mean(1, keepdim=True))"),
        ("parameter-unused", FunctionalMLP, " + self.c_proj.bias", ""),
        ("times-a-number", SequentialMLP, "self.dropout(x)", "self.dropout(x) / 2"),
        ("exact-gelu", SequentialMLP, 'nn.GELU(approximate="tanh")', "nn.GELU()"),
        ("exact-gelu", FunctionalMLP, ', approximate="tanh"', ""),
        ("relu", SequentialMLP, 'nn.GELU(approximate="tanh")', "nn.ReLU()"),
        ("silu", FunctionalMLP, "F.gelu(", "F.silu(", ', approximate="tanh"', ""),
        (
            "sigmoid-gelu",
            PositionByPosition,
            "gelu_formula(self.c_fc(x[:, t]))",
            "self.c_fc(x[:, t])",
            "self.c_proj(neurons)",
            "self.c_proj(neurons * (1.702 * neurons).sigmoid())",
        ),
        ("no-activation", SequentialMLP, "        x = self.gelu(x)\n", ""),
        (
            "bend-at-the-end",
            SequentialMLP,
            "        x = self.gelu(x)\n        x = self.c_proj(x)\n",
            "        x = self.c_proj(x)\n        x = self.gelu(x)\n",
        ),
        (
            "bend-at-the-start",
            SequentialMLP,
            "        x = self.c_fc(x)\n        x = self.gelu(x)\n",
            "        x = self.gelu(x)\n        x = self.c_fc(x)\n",
        ),
        ("bend-twice", SequentialMLP, "return self.dropout(x)", "return self.dropout(self.gelu(x))"),
        ("adds-its-input", PositionByPosition, "self.c_proj(neurons)", "x[:, t] + self.c_proj(neurons)"),
        (
            "refused",
            SequentialMLP,
            "nn.Linear(config.n_embd, 4 * config.n_embd)",
            "nn.Linear(config.n_embd, config.n_embd)",
            "nn.Linear(4 * config.n_embd, config.n_embd)",
            "nn.Linear(config.n_embd, config.n_embd)",
        ),
        ("random", SequentialMLP, "self.dropout(x)", "F.dropout(x, self.dropout.p)"),
        ("raises", PositionByPosition, "self.c_proj(neurons)", "self.c_proj(neurons.T)"),
        ("shape", PositionByPosition, "torch.stack(rows, 1)", "torch.stack(rows)"),
    ],
}
