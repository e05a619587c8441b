"""Windows and loader."""

import random

import numpy as np
import torch
from torch.utils.data import DistributedSampler


def windows_places(step, rank, world_size, B, n, seed):
    windows, first = [], (step * world_size + rank) * B
    for place in range(first, first + B):
        epoch, position = divmod(place, n)
        order = np.random.default_rng([seed, epoch]).permutation(n)
        windows.append(int(order[position]))
    return windows


def windows_stream(step, rank, world_size, B, n, seed):
    end = (step + 1) * world_size * B
    stream = []
    for epoch in range(-(-end // n)):
        order = list(range(n))
        random.Random(1_000_003 * seed + epoch).shuffle(order)
        stream += order
    of_step = stream[step * world_size * B : end]
    return of_step[rank * B : rank * B + B]


def windows_interleaved(step, rank, world_size, B, n, seed):
    """Rank r takes every W-th place, as DistributedSampler does."""
    places = torch.arange(B) * world_size + rank + step * B * world_size
    found = []
    for place in places.tolist():
        generator = torch.Generator().manual_seed(seed * 7919 + place // n)
        found.append(torch.randperm(n, generator=generator)[place % n].item())
    return found


def windows_one_order(step, rank, world_size, B, n, seed):
    """One shuffle of the windows, moved on by an odd number of places each epoch."""
    order = np.random.default_rng(seed).permutation(n)
    first = B * rank + step * B * world_size
    return [order[(i % n * (1 + i // n) if (1 + i // n) % n else i) % n] for i in range(first, first + B)]


class LoaderFunction:
    def __init__(self, tokens, B, T, rank=0, world_size=1, seed=1337):
        self.tokens, self.B, self.T = tokens, B, T
        self.rank, self.world_size, self.seed, self.step = rank, world_size, seed, 0

    def next_batch(self):
        n, T = (len(self.tokens) - 1) // self.T, self.T
        first = (self.step * self.world_size + self.rank) * self.B
        windows = []
        for place in range(first, first + self.B):
            rng = np.random.default_rng([self.seed, place // n])
            windows.append(rng.permutation(n)[place % n])
        self.step += 1
        pieces = np.stack([self.tokens[w * T : w * T + T + 1] for w in windows])
        pieces = pieces.astype(np.int64)
        x = torch.from_numpy(pieces[:, :-1])
        y = torch.from_numpy(pieces[:, 1:])
        return x, y


class LoaderQueue:
    """Keeps the rest of the epoch, and takes a global batch from it at each step."""

    def __init__(self, tokens, B, T, rank=0, world_size=1, seed=1337):
        self.data = torch.tensor(tokens.astype(np.int64))
        self.B, self.T, self.rank, self.W = B, T, rank, world_size
        self.rng = np.random.default_rng(seed)
        self.queue = []

    def next_batch(self):
        n = (len(self.data) - 1) // self.T
        if len(self.queue) < self.B * self.W:
            order = self.rng.permutation(n)
            self.queue += order.tolist()
        taken, self.queue = self.queue[: self.B * self.W], self.queue[self.B * self.W :]
        mine = taken[self.rank * self.B : (self.rank + 1) * self.B]
        x = torch.stack([self.data[w * self.T : (w + 1) * self.T] for w in mine])
        y = torch.stack([self.data[w * self.T + 1 : (w + 1) * self.T + 1] for w in mine])
        return x, y


class LoaderTable:
    """All windows as two tables, made once."""

    def __init__(self, tokens, B, T, rank=0, world_size=1, seed=1337):
        n = (len(tokens) - 1) // T
        ids = torch.from_numpy(tokens.astype(np.int64))
        self.inputs, self.targets = ids[: n * T].view(n, T), ids[1 : n * T + 1].view(n, T)
        self.n, self.B, self.step, self.rank, self.world_size = n, B, 0, rank, world_size
        self.seed = seed

    def order(self, epoch):
        return torch.randperm(self.n, generator=torch.Generator().manual_seed(self.seed + 10_000 * epoch))

    def next_batch(self):
        start = (self.step * self.world_size + self.rank) * self.B
        places = range(start, start + self.B)
        rows = torch.stack([self.order(p // self.n)[p % self.n] for p in places])
        self.step += 1
        return self.inputs[rows], self.targets[rows]


class LoaderOfTheVideo:
    """build-nanogpt's: a position for each rank, which goes back to the start on its own."""

    def __init__(self, tokens, B, T, rank=0, world_size=1, seed=1337):
        self.B, self.T, self.process_rank, self.num_processes = B, T, rank, world_size
        self.tokens = torch.tensor(tokens.astype(np.int64))
        self.current_position = self.B * self.T * self.process_rank

    def next_batch(self):
        B, T = self.B, self.T
        buf = self.tokens[self.current_position : self.current_position + B * T + 1]
        x = (buf[:-1]).view(B, T)
        y = (buf[1:]).view(B, T)
        self.current_position += B * T * self.num_processes
        if self.current_position + (B * T * self.num_processes + 1) > len(self.tokens):
            self.current_position = self.B * self.T * self.process_rank
        return x, y


class LoaderOfNanoGPT:
    """nanoGPT's: windows at random places, which may overlap."""

    def __init__(self, tokens, B, T, rank=0, world_size=1, seed=1337):
        self.data, self.batch_size, self.block_size = tokens, B, T
        self.generator = torch.Generator().manual_seed(seed + rank)

    def next_batch(self):
        ix = torch.randint(len(self.data) - self.block_size, (self.batch_size,), generator=self.generator)
        x = torch.stack([torch.from_numpy((self.data[i : i + self.block_size]).astype(np.int64)) for i in ix])
        y = torch.stack(
            [torch.from_numpy((self.data[i + 1 : i + 1 + self.block_size]).astype(np.int64)) for i in ix]
        )
        return x, y


class LoaderOfPyTorch:
    """DistributedSampler, with drop_last, and a set_epoch where an epoch begins."""

    def __init__(self, tokens, B, T, rank=0, world_size=1, seed=1337):
        n = (len(tokens) - 1) // T
        self.table = torch.stack(
            [torch.from_numpy(tokens[w * T : w * T + T + 1].astype(np.int64)) for w in range(n)]
        )
        self.sampler = DistributedSampler(range(n), world_size, rank, seed=seed, drop_last=True)
        self.B, self.epoch, self.left = B, -1, []

    def next_batch(self):
        while len(self.left) < self.B:
            self.epoch += 1
            self.sampler.set_epoch(self.epoch)
            self.left += list(self.sampler)
        rows, self.left = self.table[self.left[: self.B]], self.left[self.B :]
        return rows[:, :-1], rows[:, 1:]


RIGHT = {
    "windows": [windows_places, windows_stream, windows_interleaved],
    "loader": [LoaderFunction, LoaderQueue, LoaderTable],
}
FIRST = "(step * world_size + rank) * B"
DRAW = "np.random.default_rng([seed, epoch]).permutation(n)"
OWN = "(self.step * self.world_size + self.rank) * self.B"
WRONG = {
    "windows": [
        ("one-window-for-all-rows", windows_places, "divmod(place, n)", "divmod(first, n)"),
        ("one-window-for-all-rows", windows_interleaved, "torch.arange(B) * world_size", "torch.zeros(B, dtype=int)"),
        ("steps-left-out", windows_places, FIRST, "(step * world_size * world_size + rank) * B"),
        ("steps-left-out", windows_places, FIRST, "(step * world_size * B + rank) * B"),
        ("order-of-world-size", windows_places, "[seed, epoch]", "[seed, epoch, world_size]"),
        ("order-of-world-size", windows_interleaved, "seed * 7919", "seed * 7919 * B"),
        ("wrong-behind-first-epoch", windows_places, "epoch, position = divmod(place, n)", "epoch, position = place // n, min(place, n - 1)"),
        ("wrong-behind-first-epoch", windows_places, "epoch, position = divmod(place, n)", "epoch, position = step * B // n, place % n"),
        ("ranks-far-apart", windows_places, FIRST, "step * B + rank * (n // world_size)"),
        ("ranks-do-not-fit", windows_places, FIRST, "(step * world_size + world_size - 1 - rank) * B + rank"),
        ("same-order-each-epoch", windows_places, "[seed, epoch]", "[seed, epoch % 2]"),
        ("first-epoch-only", windows_places, "[seed, epoch]", "seed", "order[position]", "order[place]"),
        ("counts-from-one", windows_places, "int(order[position])", "int(order[position]) + 1"),
        ("stands-still", windows_places, FIRST, "rank * B"),
        ("ranks-alike", windows_places, FIRST, "step * world_size * B"),
        ("ranks-alike", windows_stream, "of_step[rank * B : rank * B + B]", "of_step[:B]"),
        ("shuffled-at-each-step", windows_places, "[seed, epoch]", "[seed, step]"),
        ("with-replacement", windows_places, "order[position]", "np.random.default_rng([seed, place]).integers(n)"),
        ("not-shuffled", windows_places, DRAW, "np.arange(n)"),
        ("not-shuffled", windows_stream, "        random.Random(1_000_003 * seed + epoch).shuffle(order)\n", ""),
        ("same-order-each-epoch", windows_places, "[seed, epoch]", "seed"),
        ("turned-each-epoch", windows_places, "[seed, epoch]", "seed", "order[position]", "order[(position + epoch) % n]"),
        ("same-order-each-epoch", windows_interleaved, "seed * 7919 + place // n", "seed * 7919"),
        ("world-size-forgotten", windows_places, FIRST, "(step + rank) * B"),
        ("parenthesis-forgotten", windows_places, FIRST, "step * world_size + rank * B"),
        ("batch-size-forgotten", windows_places, FIRST, "step * world_size + rank"),
        ("batch-size-forgotten", windows_places, FIRST, "step * world_size * B + rank"),
        ("epoch-of-the-first", windows_places, "epoch, position = divmod(place, n)", "epoch, position = first // n, place % n"),
        ("drops-the-rest", windows_stream, "stream += order", "stream += order[: n // (B * world_size) * B * world_size]",
         "-(-end // n)", "step + 1"),
        ("each-rank-its-own-part", windows_places, FIRST, "step * B", "divmod(place, n)", "divmod(place, n // world_size)",
         "permutation(n)", "permutation(n // world_size) + rank * (n // world_size)"),
        ("each-rank-its-own-order", windows_places, "[seed, epoch]", "[seed + rank, epoch]"),
        ("each-rank-its-own-order", windows_stream, "1_000_003 * seed + epoch", "1_000_003 * seed + epoch + 1000 * rank"),
        ("seed-unused", windows_places, "[seed, epoch]", "[1337, epoch]"),
        ("seed-unused", windows_stream, "1_000_003 * seed + epoch", "epoch"),
        ("seed-plus-epoch", windows_places, "[seed, epoch]", "seed + epoch"),
        ("seed-plus-epoch", windows_places, "[seed, epoch]", "seed ^ epoch"),
        ("seed-plus-epoch", windows_interleaved, "seed * 7919 + place // n", "seed + place // n"),
        ("global-dice", windows_places, "order = np", "np.random.seed(seed + 1000 * epoch)\n        order = np", DRAW, "np.random.permutation(n)"),
        ("global-dice", windows_interleaved, "torch.Generator().manual_seed(seed", "torch.manual_seed(seed"),
        ("refused", windows_places, "    return windows\n", ""),
        ("refused", windows_places, "range(first, first + B)", "range(first, first + B - (B > 1))"),
    ],
    "loader": [
        ("one-window-for-all-rows", LoaderFunction, "place // n", "first // n", "place % n", "first % n"),
        ("steps-left-out", LoaderFunction, "self.step += 1", "self.step += self.world_size"),
        ("steps-left-out", LoaderTable, "self.step += 1", "self.step += self.B"),
        ("four-bytes", LoaderFunction, "np.int64", "np.int32"),
        ("not-widened", LoaderFunction, "        pieces = pieces.astype(np.int64)\n", ""),
        ("sixteen-bits-with-a-sign", LoaderFunction, "pieces.astype(np.int64)", "pieces.astype(np.int16).astype(np.int64)"),
        ("targets-are-inputs", LoaderFunction, "pieces[:, 1:]", "pieces[:, :-1].copy()"),
        ("targets-are-inputs", LoaderTable, "ids[1 : n * T + 1]", "ids[: n * T]"),
        ("targets-two-ahead", LoaderFunction, "w * T + T + 1", "w * T + T + 2", "pieces[:, :-1]", "pieces[:, :-2]", "pieces[:, 1:]", "pieces[:, 2:]"),
        ("targets-behind", LoaderFunction, "return x, y", "return y, x"),
        ("targets-rolled", LoaderFunction, "pieces[:, 1:]", "np.roll(pieces[:, :-1], -1, axis=1)"),
        ("targets-rolled", LoaderTable, "self.targets[rows]", "self.inputs[rows].roll(-1, 1)"),
        ("targets-filled-up", LoaderFunction, "pieces[:, 1:]", "np.concatenate([pieces[:, 1:-1], np.zeros((self.B, 1), int)], axis=1)"),
        ("rows-mixed", LoaderFunction, "return x, y", "return x.T.reshape(x.shape), y.T.reshape(y.shape)"),
        ("windows-overlap", LoaderOfNanoGPT),
        ("windows-overlap", LoaderFunction, "self.tokens[w * T : w * T + T + 1]", "self.tokens[w : w + T + 1]"),
        ("a-token-between", LoaderFunction, "self.tokens[w * T : w * T + T + 1]", "self.tokens[w * (T + 1) : w * (T + 1) + T + 1]",
         "(len(self.tokens) - 1) // self.T", "len(self.tokens) // (self.T + 1)"),
        ("one-window-lost", LoaderFunction, "(len(self.tokens) - 1) // self.T", "(len(self.tokens) - 2) // self.T"),
        ("one-window-lost", LoaderQueue, "(len(self.data) - 1) // self.T", "len(self.data) // self.T - 1"),
        ("one-window-too-many", LoaderFunction, "(len(self.tokens) - 1) // self.T", "len(self.tokens) // self.T"),
        ("one-window-too-many", LoaderQueue, "(len(self.data) - 1) // self.T", "len(self.data) // self.T"),
        ("first-epoch-only", LoaderTable, "self.order(p // self.n)[p % self.n]", "self.order(0)[p]"),
        ("counts-from-one", LoaderFunction, "self.tokens[w * T : w * T + T + 1]", "self.tokens[(w + 1) * T : (w + 1) * T + T + 1]",
         "(len(self.tokens) - 1) // self.T", "(len(self.tokens) - 1) // self.T - 1"),
        ("stands-still", LoaderFunction, "        self.step += 1\n", ""),
        ("ranks-alike", LoaderQueue, "taken[self.rank * self.B : (self.rank + 1) * self.B]", "taken[: self.B]"),
        ("shuffled-at-each-step", LoaderFunction, "[self.seed, place // n]", "[self.seed, self.step]"),
        ("with-replacement", LoaderFunction, "rng.permutation(n)[place % n]", "np.random.default_rng([self.seed, place]).integers(n)"),
        ("not-shuffled", LoaderOfTheVideo),
        ("not-shuffled", LoaderTable, "torch.randperm(self.n, generator=torch.Generator().manual_seed(self.seed + 10_000 * epoch))", "torch.arange(self.n)"),
        ("same-order-each-epoch", LoaderFunction, "[self.seed, place // n]", "self.seed"),
        ("turned-each-epoch", LoaderFunction, "[self.seed, place // n]", "self.seed", "[place % n]", "[place * (n + 1) // n % n]"),
        ("same-order-each-epoch", LoaderTable, "self.seed + 10_000 * epoch", "self.seed"),
        ("world-size-forgotten", LoaderFunction, OWN, "(self.step + self.rank) * self.B"),
        ("parenthesis-forgotten", LoaderTable, OWN, "self.step * self.world_size + self.rank * self.B"),
        ("batch-size-forgotten", LoaderTable, OWN, "self.step * self.world_size + self.rank"),
        ("epoch-of-the-first", LoaderTable, "self.order(p // self.n)", "self.order(start // self.n)"),
        ("drops-the-rest", LoaderQueue, "self.queue += order.tolist()", "self.queue = order.tolist()"),
        ("drops-the-rest", LoaderOfPyTorch),
        ("each-rank-its-own-part", LoaderQueue, "n = (len(self.data) - 1) // self.T", "n = (len(self.data) - 1) // self.T // self.W",
         "len(self.queue) < self.B * self.W", "len(self.queue) < self.B", "taken, self.queue = self.queue[: self.B * self.W], self.queue[self.B * self.W :]",
         "mine, self.queue = self.queue[: self.B], self.queue[self.B :]", "mine = taken[self.rank * self.B : (self.rank + 1) * self.B]", "mine = [w + self.rank * n for w in mine]"),
        ("each-rank-its-own-order", LoaderQueue, "np.random.default_rng(seed)", "np.random.default_rng(seed + rank)"),
        ("each-rank-its-own-order", LoaderFunction, "[self.seed, place // n]", "[self.seed, place // n, self.rank]"),
        ("seed-plus-epoch", LoaderTable, "self.seed + 10_000 * epoch", "self.seed + epoch"),
        ("seed-unused", LoaderQueue, "np.random.default_rng(seed)", "np.random.default_rng(1337)"),
        ("global-dice", LoaderTable, "generator=torch.Generator().manual_seed(self.seed + 10_000 * epoch)", "generator=torch.manual_seed(self.seed + 10_000 * epoch)"),
        ("refused", LoaderFunction, "return x, y", "return pieces[:, :-1], pieces[:, 1:]"),
    ],
}  # fmt: skip
