"""Counting parameters, and the surprise of a token."""

import math

import numpy as np
import torch


def count_formula(n_layer, n_embd, vocab_size, block_size):
    embeddings = vocab_size * n_embd + block_size * n_embd
    attention = (n_embd + 1) * 3 * n_embd + (n_embd + 1) * n_embd
    mlp = (n_embd + 1) * 4 * n_embd + (4 * n_embd + 1) * n_embd
    norms = 2 * 2 * n_embd
    return embeddings + n_layer * (attention + mlp + norms) + 2 * n_embd


def count_shapes(n_layer, n_embd, vocab_size, block_size):
    C = n_embd
    shapes = [(vocab_size, C), (block_size, C)]
    for _ in range(n_layer):
        shapes += [(C,), (C,), (C, 3 * C), (3 * C,), (C, C), (C,)]
        shapes += [(C,), (C,), (C, 4 * C), (4 * C,), (4 * C, C), (C,)]
    shapes += [(C,), (C,)]
    return sum(math.prod(shape) for shape in shapes)


def count_modules(n_layer, n_embd, vocab_size, block_size):
    def linear(a, b):
        return a * b + b

    def norm():
        return n_embd + n_embd

    total = vocab_size * n_embd
    total += block_size * n_embd
    for _ in range(n_layer):
        total += norm()
        total += linear(n_embd, 3 * n_embd)
        total += linear(n_embd, n_embd)
        total += norm()
        total += linear(n_embd, 4 * n_embd)
        total += linear(4 * n_embd, n_embd)
    total += norm()
    return total


def surprise_math(probabilities, target):
    return -math.log(probabilities[target])


def surprise_torch(probabilities, target):
    return -torch.log(probabilities)[target].item()


def surprise_numpy(probabilities, target):
    p = probabilities.numpy()
    return float(np.log(1 / p[target]))


RIGHT = {
    "parameter_count": [count_formula, count_shapes, count_modules],
    "surprise": [surprise_math, surprise_torch, surprise_numpy],
}
WRONG = {
    "parameter_count": [
        ("head-counted-twice", count_formula, "+ 2 * n_embd\n", "+ 2 * n_embd + n_embd * vocab_size\n"),
        (
            "head-counted-twice",
            count_shapes,
            "shapes += [(C,), (C,)]\n",
            "shapes += [(C,), (C,), (C, vocab_size)]\n",
        ),
        ("no-positions", count_formula, " + block_size * n_embd", ""),
        ("no-positions", count_modules, "    total += block_size * n_embd\n", ""),
        ("no-final-norm", count_formula, " + 2 * n_embd\n", "\n"),
        ("no-final-norm", count_shapes, "    shapes += [(C,), (C,)]\n", ""),
        ("no-norms", count_modules, "return n_embd + n_embd", "return 0"),
        ("norms-without-shift", count_modules, "return n_embd + n_embd", "return n_embd"),
        ("no-biases", count_modules, "return a * b + b", "return a * b"),
        ("no-output-projection", count_modules, "        total += linear(n_embd, n_embd)\n", ""),
        ("no-output-projection", count_formula, " + (n_embd + 1) * n_embd", ""),
        ("one-of-three", count_formula, "(n_embd + 1) * 3 * n_embd", "(n_embd + 1) * n_embd"),
        ("mlp-one-way", count_formula, " + (4 * n_embd + 1) * n_embd", ""),
        (
            "mlp-not-wider",
            count_formula,
            "(n_embd + 1) * 4 * n_embd + (4 * n_embd + 1) * n_embd",
            "2 * (n_embd + 1) * n_embd",
        ),
        (
            "norms-without-shift",
            count_modules,
            "    total += norm()\n    return total",
            "    return total + n_embd",
        ),
        ("one-norm-a-block", count_formula, "norms = 2 * 2 * n_embd", "norms = 2 * n_embd"),
        (
            "last-norm-in-each-block",
            count_shapes,
            "    shapes += [(C,), (C,)]\n",
            "        shapes += [(C,), (C,)]\n",
        ),
        ("no-token-embedding", count_modules, "total = vocab_size * n_embd", "total = 0"),
        (
            "head-with-bias",
            count_shapes,
            "shapes += [(C,), (C,)]\n",
            "shapes += [(C,), (C,), (vocab_size,)]\n",
        ),
        ("one-block-off", count_shapes, "range(n_layer)", "range(1, n_layer)"),
        ("one-norm-a-block", count_shapes, "(C, 3 * C), (3 * C,)", "(C, 3 * C), (C,)"),
        ("bias-of-another-width", count_shapes, "(3 * C,), ", ""),
        ("bias-of-another-width", count_formula, "(n_embd + 1) * 4 * n_embd", "n_embd * 4 * n_embd"),
        ("no-mlp", count_formula, "attention + mlp + norms", "attention + norms"),
        ("no-attention", count_formula, "attention + mlp + norms", "mlp + norms"),
        (
            "mlp-three-times-as-wide",
            count_formula,
            "(n_embd + 1) * 4 * n_embd + (4 * n_embd + 1)",
            "(n_embd + 1) * 3 * n_embd + (3 * n_embd + 1)",
        ),
        ("one-block", count_formula, "n_layer * (attention + mlp + norms)", "attention + mlp + norms"),
        (
            "type",
            count_shapes,
            "return sum(math.prod(shape) for shape in shapes)",
            "return [math.prod(shape) for shape in shapes]",
        ),
    ],
    "surprise": [
        ("positive-sign", surprise_math, "-math.log", "math.log"),
        ("positive-sign", surprise_numpy, "1 / p[target]", "p[target]"),
        ("bits", surprise_math, "math.log(", "math.log2("),
        ("base-ten", surprise_torch, "torch.log(", "torch.log10("),
        ("most-likely-token", surprise_math, "probabilities[target]", "max(probabilities)"),
        (
            "probability-itself",
            surprise_math,
            "-math.log(probabilities[target])",
            "probabilities[target].item()",
        ),
        (
            "probability-itself",
            surprise_math,
            "-math.log(probabilities[target])",
            "1 - float(probabilities[target])",
        ),
        (
            "log-of-the-rest",
            surprise_math,
            "math.log(probabilities[target])",
            "math.log(1 - probabilities[target])",
        ),
        ("probability-itself", surprise_numpy, "np.log(1 / p[target])", "1 / p[target]"),
        (
            "probability-itself",
            surprise_math,
            "math.log(probabilities[target])",
            "float(probabilities[target])",
        ),
        (
            "added-before-the-logarithm",
            surprise_torch,
            "torch.log(probabilities)",
            "torch.log(probabilities + 1e-8)",
        ),
        (
            "added-before-the-logarithm",
            surprise_math,
            "probabilities[target]",
            "probabilities[target] + 1e-6",
        ),
        (
            "times-the-probability",
            surprise_torch,
            "-torch.log(probabilities)[target]",
            "-(probabilities * torch.log(probabilities))[target]",
        ),
        (
            "times-the-probability",
            surprise_torch,
            "-torch.log(probabilities)[target]",
            "-(probabilities * torch.log(probabilities)).sum()",
        ),
        ("all-tokens", surprise_torch, "torch.log(probabilities)[target]", "torch.log(probabilities).mean()"),
        ("token-beside", surprise_math, "[target]", "[target - 1]"),
        ("softmax-again", surprise_torch, "torch.log(probabilities)", "torch.log_softmax(probabilities, -1)"),
        ("type", surprise_torch, ".item()", ""),
    ],
}
