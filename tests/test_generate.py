"""Generation: the cache is exact, every rule is defined, rows do not know of each other."""

import copy
import math
import sys
import warnings

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gpt2lib import GPT, GPTConfig, generate, stream
from gpt2lib.checkpoint import NANO, load_run
from gpt2lib.generate import (
    Batch,
    KVCache,
    Text,
    draw,
    for_generation,
    next_token_probabilities,
    stream_text,
    until,
    window_start,
)
from gpt2lib.gpt import sample
from gpt2lib.tokenizer import get_tokenizer

ENCODING = get_tokenizer("gpt2")


def lively(config: GPTConfig, seed: int = 0) -> GPT:
    """A model with larger weights than a fresh one has, so that it does not say the same for ever."""
    torch.manual_seed(seed)
    model = GPT(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


SMALL = lively(GPTConfig(block_size=24, vocab_size=97, n_layer=2, n_head=3, n_embd=15))


def gap(ours: torch.Tensor, expected: torch.Tensor) -> float:
    return ((ours - expected).abs().max() / expected.abs().max()).item()


def prompts(model: GPT = SMALL, longest: int = 40):
    ids = st.integers(0, model.config.vocab_size - 1)
    return st.lists(st.lists(ids, min_size=1, max_size=longest), min_size=1, max_size=5)


# The cache


@settings(max_examples=40, deadline=None)
@given(st.data())
@torch.no_grad()
def test_prefill_in_any_pieces_and_decoding_equal_the_full_forward(data):
    n_head = data.draw(st.integers(1, 3))
    config = GPTConfig(
        block_size=data.draw(st.integers(2, 20)),
        vocab_size=31,
        n_layer=data.draw(st.integers(1, 3)),
        n_head=n_head,
        n_embd=n_head * data.draw(st.integers(1, 8)),
    )
    model, B = lively(config, data.draw(st.integers(0, 99))), data.draw(st.integers(1, 3))
    T = data.draw(st.integers(2, config.block_size))
    idx, cache, logits = torch.randint(31, (B, T)), KVCache(model, B), []
    while (seen := cache.lengths[0]) < T:
        n = data.draw(st.integers(1, T - seen))
        logits.append(model(idx[:, seen : seen + n], cache=cache)[0])
    assert gap(torch.cat(logits, dim=1), model(idx)[0]) < 1e-5


@settings(max_examples=30, deadline=None)
@given(st.data())
@torch.no_grad()
def test_rows_of_different_lengths_in_one_cache_equal_each_alone(data):
    lengths = data.draw(st.lists(st.integers(1, 15), min_size=2, max_size=4))
    T = max(lengths)
    idx = torch.randint(97, (len(lengths), T))
    cache = KVCache(SMALL, len(lengths))
    logits = [SMALL(idx, cache=cache, at=torch.tensor(lengths) - 1)[0]]
    cache.lengths = list(lengths)
    pieces = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    more = torch.randint(97, (len(lengths), sum(pieces)))
    logits += [SMALL(piece, cache=cache)[0] for piece in more.split(pieces, dim=1)]
    for row, n in enumerate(lengths):
        text = torch.cat((idx[row, :n], more[row]))[None]
        assert gap(torch.cat(logits, dim=1)[row], SMALL(text)[0][0, n - 1 :]) < 1e-5


@torch.no_grad()
def test_the_cache_holds_as_many_positions_as_it_says_and_no_more():
    cache = KVCache(SMALL, 2, capacity=5)
    SMALL(torch.zeros(2, 5, dtype=torch.long), cache=cache)
    assert cache.lengths == [5, 5] and KVCache(SMALL, 1, capacity=999).k.size(3) == 24
    with pytest.raises(ValueError, match="position 6.*capacity=5"):
        SMALL(torch.zeros(2, 1, dtype=torch.long), cache=cache)
    with pytest.raises(ValueError, match="batch of 3.*made for 2"):
        SMALL(torch.zeros(3, 1, dtype=torch.long), cache=KVCache(SMALL, 2))


@torch.no_grad()
def test_what_lies_behind_a_shorter_row_is_never_read():
    cache = KVCache(SMALL, 2)
    idx = torch.randint(97, (2, 9))
    SMALL(idx, cache=cache)
    cache.lengths = [3, 9]
    expected = SMALL(idx[:, -1:], cache=copy.deepcopy(cache))[0]
    cache.k[:, 0, :, 4:] = cache.v[:, 0, :, 4:] = 1e6  # position 3 is written by the pass itself
    assert torch.equal(SMALL(idx[:, -1:], cache=cache)[0], expected)


def test_generating_allocates_the_cache_once(monkeypatch):
    made = []
    module = sys.modules["gpt2lib.generate"]  # the name in the package is the function's
    monkeypatch.setattr(module, "KVCache", lambda *sizes: made.append(KVCache(*sizes)) or made[-1])
    generate(SMALL, [[1, 2, 3], [4]], 60, generator=[1, 2], past_block_size="slide")
    assert len(made) == 1


def test_only_the_last_position_goes_through_the_head(monkeypatch):
    rows, model = [], copy.deepcopy(SMALL)
    model.lm_head.register_forward_hook(lambda layer, inputs, output: rows.append(output.shape[:2]))
    generate(model, torch.zeros(2, 9, dtype=torch.long), 3)
    assert rows == [(2, 1)] * 3


# Rows are independent


RULES = [
    dict(temperature=0),
    dict(temperature=0.9),
    dict(temperature=1.1, top_k=9, top_p=0.9, min_p=0.02, repetition_penalty=1.3),
]


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=12, deadline=None)
@given(prompts(), st.booleans(), st.integers(0, 99))
def test_a_batch_equals_its_members_run_singly(rule, several, use_cache, seed):
    """Of any lengths, beyond the context too, with other ends, with the cache in the one and without in the other."""
    settings = dict(rule, stop_tokens=[5, 6], past_block_size="slide")
    seeds = [seed + row for row in range(len(several))]
    together = generate(SMALL, several, 40, generator=seeds, use_cache=use_cache, **settings)
    for row, (ids, seed) in enumerate(zip(several, seeds)):
        alone = generate(SMALL, [ids], 40, generator=[seed], use_cache=not use_cache, **settings)[0]
        assert torch.equal(together[row], alone)


def test_one_generator_for_all_gives_each_row_its_own():
    idx = torch.zeros(6, 2, dtype=torch.long)
    together = generate(SMALL, idx, 9, generator=torch.Generator().manual_seed(4))
    for n in (1, 3):
        assert torch.equal(
            generate(SMALL, idx[:n], 9, generator=torch.Generator().manual_seed(4)), together[:n]
        )
    assert len({tuple(row.tolist()) for row in together}) == 6


def test_samples_of_one_prompt_differ_from_the_first_token_on():
    first = generate(SMALL, torch.zeros(64, 3, dtype=torch.long), 1, temperature=2.0)[:, -1]
    assert len(set(first.tolist())) > 5


def test_without_a_seed_two_calls_differ():
    idx = torch.zeros(1, 3, dtype=torch.long)
    assert not torch.equal(
        generate(SMALL, idx, 12, temperature=3.0), generate(SMALL, idx, 12, temperature=3.0)
    )


def test_texts_join_and_leave_and_come_out_as_alone():
    rules = [
        (0.0, None, None, 97, None, 1.0),
        (0.9, 5, None, 97, None, 1.0),
        (1.2, None, 0.8, 97, 0.01, 1.1),
    ]
    asked = [(list(range(1, 2 + 5 * i)), 4 + 9 * i % 23, rules[i % 3], i) for i in range(7)]
    texts = [Text(list(ids), torch.Generator().manual_seed(seed), rule) for ids, _, rule, seed in asked]
    batch, waiting, ends = Batch(SMALL, 3), list(texts), {}
    for text, (ids, n, _, _) in zip(texts, asked):
        ends[text] = len(ids) + n
    while waiting or batch.texts:
        while waiting and len(batch.texts) < 3:
            batch.join(waiting.pop(0))
        for text in batch.step():
            if len(text.ids) == ends[text]:
                batch.leave(text)
    for text, (ids, n, rule, seed) in zip(texts, asked):
        temperature, top_k, top_p, n_tokens, min_p, penalty = rule
        alone = generate(
            SMALL, [ids], n, temperature, top_k, top_p, [seed], False, n_tokens, min_p, penalty, (), "slide"
        )
        assert text.ids == alone[0].tolist()
    with pytest.raises(ValueError, match="room for 1"):
        full = Batch(SMALL, 1)
        full.join(Text([1], torch.Generator()))
        full.join(Text([1], torch.Generator()))


# The end of the context


@given(st.integers(1, 70), st.integers(1, 300))
def test_the_window_is_never_longer_than_the_context_nor_shorter_than_half(block_size, n):
    start = window_start(n, block_size)
    assert 1 <= n - start <= block_size
    assert start == 0 if n <= block_size else n - start > block_size - max(block_size // 2, 1)
    assert start <= window_start(n + 1, block_size)


@pytest.mark.parametrize("use_cache", [True, False])
def test_past_the_context_the_text_is_what_the_window_gives(use_cache):
    ids = torch.randint(97, (2, 20), generator=torch.Generator().manual_seed(1))
    text = generate(SMALL, ids, 60, temperature=0, use_cache=use_cache, past_block_size="slide")
    with torch.no_grad():
        for n in range(20, 80):
            window = text[:, window_start(n, 24) : n]
            assert torch.equal(SMALL(window)[0][:, -1].argmax(1), text[:, n])
    halfway = generate(SMALL, text[:, :47], 33, temperature=0, past_block_size="slide")
    assert torch.equal(halfway, text)  # continuing a text is the same as not having stopped


def test_the_cost_of_a_token_stays_flat_past_the_context():
    seen, model = [], copy.deepcopy(SMALL)
    model.transformer.ln_f.register_forward_hook(lambda layer, inputs, output: None)
    model.transformer.drop.register_forward_hook(lambda layer, inputs, output: seen.append(output.size(1)))
    generate(model, torch.zeros(1, 1, dtype=torch.long), 240, past_block_size="slide")
    assert len(seen) == 240 and sum(seen) <= 2.2 * 240  # one position a token, and one more to rebuild


def test_the_end_of_the_context_is_never_silent():
    idx = torch.zeros(1, 20, dtype=torch.long)
    with pytest.warns(UserWarning, match="longer than block_size=24.*past_block_size"):
        assert generate(SMALL, idx, 30).shape == (1, 50)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generate(SMALL, idx, 5)  # the model reads 24 tokens and writes the 25th
        assert generate(SMALL, idx, 30, past_block_size="slide").shape == (1, 50)
        stopped = generate(SMALL, idx, 30, temperature=0, past_block_size="stop")
    slid = generate(SMALL, idx, 30, temperature=0, past_block_size="slide")
    assert stopped.shape == (1, 25) and torch.equal(stopped, slid[:, :25])
    rows = generate(SMALL, [[1] * 22, [2]], 9, past_block_size="stop")
    assert [len(row) for row in rows] == [25, 10]
    rows = generate(SMALL, [[1] * 24, [2] * 23], 9, past_block_size="stop")
    assert [len(row) for row in rows] == [25, 25]  # each where its own context ends
    with pytest.raises(ValueError, match="30 tokens.*block_size=24"):
        generate(SMALL, torch.zeros(1, 30, dtype=torch.long), 1, past_block_size="stop")


# The rules


logits = st.lists(
    st.one_of(st.floats(-30, 30, width=32), st.sampled_from([0.0, 1.0, 2.0, -math.inf])),
    min_size=1,
    max_size=24,
)
rules = st.fixed_dictionaries(
    dict(
        temperature=st.one_of(st.just(0), st.sampled_from([1e-300, 1e300]), st.floats(0.05, 5)),
        top_k=st.one_of(st.none(), st.integers(0, 30)),
        top_p=st.one_of(st.none(), st.sampled_from([0.0, 1.0]), st.floats(0, 1)),
        min_p=st.one_of(st.none(), st.sampled_from([0.0, 1.0]), st.floats(0, 1)),
        repetition_penalty=st.one_of(st.just(1.0), st.floats(0.3, 3)),
        n_tokens=st.integers(1, 30),
    )
)


def by_hand(z, said, temperature, top_k, top_p, min_p, repetition_penalty, n_tokens):
    """The stated rule in float64, token by token; and how near any decision was to falling otherwise."""
    z = [float(x) for x in z[:n_tokens]]
    z = [
        (x / repetition_penalty if x > 0 else x * repetition_penalty) if seen else x
        for x, seen in zip(np.float32(z).tolist(), said)
    ]
    z = np.float32(z).astype(np.float64)
    if temperature == 0:
        return np.eye(len(z))[int(np.argmax(z))], 1.0
    close = 1.0
    z = (z - z.max()) / min(max(temperature, 1e-37), 1e37)
    kept = set(range(len(z)))
    if top_k:
        kth = sorted(z, reverse=True)[min(top_k, len(z)) - 1]
        kept = {i for i in kept if z[i] >= kth}
    p = np.array([math.exp(z[i]) if i in kept else 0.0 for i in range(len(z))])
    p /= p.sum()
    full = p.copy()
    if top_p is not None and top_p < 1:
        for i in sorted(kept):
            likelier = sum(q for q in full if q > full[i])
            close = min(close, abs(likelier - top_p))
            if likelier >= top_p and full[i] < full.max():
                p[i] = 0
        # Of equally likely ones that cross together, the first decides for all; so what is likelier is summed strictly.
    if min_p:
        close = min(close, min(abs(q - min_p * full.max()) for q in full))
        p[full < min_p * full.max()] = 0
    for a in full:
        for b in full:
            if a != b:
                close = min(close, abs(a - b) + (1e-3 if max(a, b) < 1e-12 else 0))
    return p / p.sum(), close


@settings(max_examples=300, deadline=None)
@given(logits, rules, st.data())
def test_the_distribution_is_the_stated_one(z, rule, data):
    said = data.draw(st.lists(st.booleans(), min_size=len(z), max_size=len(z)))
    assume(max(z[: rule["n_tokens"]]) > -math.inf)
    ours = next_token_probabilities(torch.tensor([z]), **rule, said=torch.tensor([said]))[0]
    assert len(ours) == min(len(z), rule["n_tokens"])  # ids never reach the padding
    assert ours.sum().item() == pytest.approx(1, abs=1e-5) and (ours >= 0).all()
    expected, close = by_hand(z, said, **rule)
    if close > 1e-5:  # nearer than that, float32 may decide otherwise
        assert np.allclose(ours, expected, atol=1e-4)
        assert ((ours > 0).numpy() == (expected > 1e-40)).all() or (expected[expected > 0] < 1e-30).any()


def test_the_penalty_makes_what_was_said_less_likely_whatever_its_sign():
    logits, said = torch.tensor([[2.0, -2.0, -1.0, 1.0]]), torch.tensor([[True, True, False, False]])
    found = next_token_probabilities(logits, repetition_penalty=2.0, said=said)
    torch.testing.assert_close(found, torch.tensor([[1.0, -4.0, -1.0, 1.0]]).softmax(1))


def test_what_stands_in_the_prompt_was_said_too():
    text = generate(SMALL, [[1, 2, 3]], 15, temperature=0, repetition_penalty=1e6)[0].tolist()
    assert len(set(text)) == len(text)


def test_a_temperature_near_0_takes_the_likeliest_of_large_logits():
    for z in ([-150.0, -120.0, -121.0], [900.0, 1000.0, 999.0]):
        assert next_token_probabilities(torch.tensor([z]), temperature=1e-300).tolist() == [[0.0, 1.0, 0.0]]


@pytest.mark.parametrize(("top_p", "stay"), [(0.49, 1), (0.51, 2), (0.79, 2), (0.81, 3), (0.96, 4), (0.0, 1)])
def test_top_p_keeps_the_token_that_crosses(top_p, stay):
    p = torch.tensor([[0.5, 0.3, 0.15, 0.05]])
    assert (next_token_probabilities(p.log(), top_p=top_p) > 0).sum() == stay


def test_top_p_sorts_as_much_as_it_needs_and_gives_the_same():
    generator = torch.Generator().manual_seed(0)
    for scale in (0.1, 1.0, 5.0):
        z = scale * torch.randn(3, 50257, generator=generator)
        for top_p in (0.1, 0.5, 0.9, 0.999):
            ordered = z.softmax(1).sort(descending=True)
            keep = (ordered.values.cumsum(1) - ordered.values < top_p).sum(1)
            ours = (next_token_probabilities(z, top_p=top_p) > 0).sum(1)
            assert torch.equal(ours, keep)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.0, 1e-30, 0.1, 0.5, 1.0]), min_size=1, max_size=12), st.floats(0, 1))
def test_what_is_drawn_is_possible(weights, number):
    assume(sum(weights) > 0)
    p = torch.tensor([weights]) / sum(weights)
    for u in (0.0, min(number, 1 - 2**-53), 1 - 2**-53):
        assert p[0, draw(p, torch.tensor([u], dtype=torch.float64)).item()] > 0


@pytest.mark.parametrize(
    "rule",
    [
        dict(),
        dict(temperature=0.6),
        dict(top_k=3),
        dict(top_p=0.7),
        dict(min_p=0.2),
        dict(temperature=1.4, top_k=6, top_p=0.9, min_p=0.05, repetition_penalty=1.5),
    ],
)
def test_frequencies_are_those_of_the_stated_distribution(rule):
    """The pair (a, b) of new tokens has the probability p(a) p(b | a); chi-squared over all pairs."""
    model, N = lively(GPTConfig(block_size=8, vocab_size=11, n_layer=1, n_head=2, n_embd=6), 3), 20_000
    idx = torch.zeros(N, 1, dtype=torch.long)
    pairs = generate(model, idx, 2, **rule, n_tokens=9, generator=torch.Generator().manual_seed(1))
    expected = torch.zeros(11, 11)
    with torch.no_grad():

        def distribution(*ids):
            said = torch.zeros(1, 11, dtype=torch.bool)
            said[0, list(ids)] = True
            return next_token_probabilities(
                model(torch.tensor([ids]))[0][:, -1], **rule, n_tokens=9, said=said
            )[0]

        for a, p in enumerate(distribution(0).tolist()):
            if p > 0:
                expected[a, :9] = N * p * distribution(0, a)
    seen = torch.bincount(pairs[:, 1] * 11 + pairs[:, 2], minlength=121).view(11, 11)
    assert seen[expected == 0].sum() == 0 and pairs.max() < 9
    often = expected > 5
    chi2 = ((seen - expected)[often] ** 2 / expected[often]).sum().item()
    free = int(often.sum()) - 1
    assert abs(chi2 - free) < 5 * math.sqrt(2 * free)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0, 1.0])
def test_logits_that_hold_no_distribution_are_refused(bad, temperature):
    z = torch.tensor([[1.0, 2.0], [bad, 2.0]])
    with pytest.raises(ValueError, match="row 1.*nothing to draw from"):
        next_token_probabilities(z, temperature)
    with pytest.raises(ValueError, match="row 0"):
        next_token_probabilities(torch.full((1, 3), -math.inf), temperature)
    broken = copy.deepcopy(SMALL)
    broken.transformer.ln_f.weight.data[0] = math.nan
    with pytest.raises(ValueError, match="weights may be damaged"):
        generate(broken, torch.zeros(1, 3, dtype=torch.long), 2, temperature)


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_ids_never_reach_the_padding(temperature):
    model = lively(GPTConfig(block_size=8, vocab_size=50304, n_layer=1, n_head=2, n_embd=6))
    model.transformer.wte.weight.data[50257:] = (
        9 * model.transformer.wte.weight.data[:47]
    )  # the padding is loud
    new = generate(model, torch.zeros(50, 1, dtype=torch.long), 6, temperature, generator=[*range(50)])
    assert new.max() < 50257


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (dict(temperature=-1), ["temperature=-1", "at least 0"]),
        (dict(temperature=True), ["temperature=True"]),
        (dict(top_k=-1), ["top_k=-1"]),
        (dict(top_p=1.1), ["top_p=1.1", "0 to 1"]),
        (dict(min_p=-0.1), ["min_p=-0.1", "0 to 1"]),
        (dict(repetition_penalty=0), ["repetition_penalty=0", "above 0"]),
        (dict(n_tokens=0), ["n_tokens=0"]),
        (dict(past_block_size="wrap"), ["wrap", "slide", "stop"]),
        (dict(generator=[1, 2, 3]), ["3 generators", "2 prompts"]),
        (dict(generator=[1, 2**64]), ["seed=18446744073709551616", "64 bits"]),
        (dict(generator=[1, "x"]), ["seed='x'", "64 bits"]),
        (dict(temperature=float("inf")), ["temperature=inf"]),
    ],
)
def test_a_setting_without_a_meaning_is_refused_at_once(rule, words):
    with pytest.raises(ValueError) as error:
        stream(SMALL, [[1], [2, 3]], 1, **rule)
    assert all(word in str(error.value) for word in words), error.value


def test_numbers_without_end_are_numbers():
    huge = next_token_probabilities(torch.tensor([[1.0, 2.0]]), temperature=10**400, top_k=10**400)
    assert huge.tolist() == [[0.5, 0.5]]


@pytest.mark.parametrize("idx", [[], [[]], [[1], []], [1, 2], torch.zeros(3, dtype=torch.long), [["a"]]])
def test_a_prompt_that_is_none_is_refused(idx):
    with pytest.raises((ValueError, TypeError)):
        stream(SMALL, idx, 1)


# Stops


def test_a_stop_token_ends_its_row_and_is_not_part_of_the_text():
    idx = torch.zeros(1, 2, dtype=torch.long)
    whole = generate(SMALL, idx, 12, generator=[3])[0].tolist()
    stop = whole[7]
    ended = generate(SMALL, idx, 12, generator=[3], stop_tokens=[stop])[0].tolist()
    assert ended == whole[: whole.index(stop, 2)] and stop not in ended[2:]
    steps = list(stream(SMALL, [[0, 0], [1]], 12, generator=[3, 5], stop_tokens=[stop]))
    rows = torch.stack(steps).T.tolist()
    for row, (prompt, seed) in enumerate([([0, 0], 3), ([1], 5)]):
        alone = generate(SMALL, [prompt], 12, generator=[seed], stop_tokens=[stop])[0].tolist()
        assert [token for token in rows[row] if token >= 0] == alone[len(prompt) :]
    assert (torch.stack(steps) >= 0).any(1).all()  # no step in which nobody says anything


@settings(max_examples=300, deadline=None)
@given(
    st.text("abc", max_size=20),
    st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(1, 4), max_size=20),
)
def test_text_ends_before_the_first_stop_string_however_it_is_cut(text, stop, cuts):
    ends = [e for e in range(len(text) + 1) if any(text[:e].endswith(s) for s in stop)]
    expected = text
    if ends:  # complete first; of several, the longest
        longest = max(len(s) for s in stop if text[: ends[0]].endswith(s))
        expected = text[: ends[0] - longest]
    pieces, rest = [], text
    for n in cuts:
        pieces, rest = [*pieces, rest[:n]], rest[n:]
    parts = list(until([*pieces, rest], stop))
    assert "".join(parts) == expected and all(parts)


class Parrot(GPT):
    """Says the tokens of its script, whatever it reads."""

    def forward(self, idx, targets=None, cache=None, at=None):
        logits = torch.full((1, 1, self.config.vocab_size), -9.0)
        logits[0, 0, next(self.script)] = 9.0
        return logits, None


PARROT = Parrot(GPTConfig(block_size=512, vocab_size=50257, n_layer=1, n_head=1, n_embd=2))


@settings(max_examples=100, deadline=None)
@given(
    st.text(max_size=30),
    st.lists(st.text(min_size=1, max_size=3), max_size=2),
    st.lists(st.integers(0, 50255)),
)
def test_a_stream_is_whole_characters_and_joins_to_the_result(line, stop, ids):
    script = ENCODING.encode_ordinary(line) + ids[:20]  # a text, then any bytes
    expected = b"".join(ENCODING.decode_single_token_bytes(i) for i in script).decode("utf-8", "replace")
    PARROT.script = iter([*script, 50256])
    pieces = list(stream_text(PARROT, "p", len(script) + 1, temperature=0, stop=stop))
    assert "".join(pieces) == "".join(until([expected], stop)) and all(pieces)
    if not ids:
        assert not any("�" in piece for piece in pieces) or "�" in line


def test_stream_text_joins_to_what_generate_gives():
    model, config = load_run(NANO)
    ids = ENCODING.encode_ordinary("ROMEO.\nMy")
    for seed in range(3):
        pieces = list(stream_text(model, "ROMEO.\nMy", 60, 0.9, top_p=0.9, seed=seed, stop=["\n", "!"]))
        new = generate(model, [ids], 60, 0.9, top_p=0.9, generator=[seed], stop_tokens=[50256])[0][len(ids) :]
        text = ENCODING.decode(new.tolist())
        ends = [text.index(s) for s in ("\n", "!") if s in text]
        assert "".join(pieces) == text[: min(ends, default=len(text))]
    with pytest.raises(ValueError, match="empty string"):
        stream_text(model, "x", 1, stop=["a", ""])
    assert list(stream_text(model, "x", 6, seed=None)) != list(stream_text(model, "x", 6, seed=None))


# Models in other forms


def test_a_stream_leaves_the_model_as_it_was():
    model = copy.deepcopy(SMALL).train()
    tokens = stream(model, torch.zeros(1, 1, dtype=torch.long), 3)
    next(tokens)
    assert model.training
    tokens.close()
    assert model.training and all(p.requires_grad for p in model.parameters())


def test_a_compiled_model_generates_as_the_model_inside_it():
    idx = torch.zeros(2, 3, dtype=torch.long)
    compiled = torch.compile(SMALL)  # nothing is compiled before the first call, and there is none
    assert torch.equal(
        generate(compiled, idx, 9, generator=[1, 2]), generate(SMALL, idx, 9, generator=[1, 2])
    )


def test_columns_change_the_order_in_memory_and_no_number():
    model = lively(GPTConfig(block_size=16, vocab_size=301, n_layer=2, n_head=2, n_embd=32))
    columns, idx = for_generation(model), torch.randint(301, (2, 9))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, columns.state_dict()[name])
    assert columns.lm_head.weight is columns.transformer.wte.weight and model.lm_head.weight.is_contiguous()
    assert torch.equal(generate(columns, idx, 30, temperature=0, past_block_size="slide"),
                       generate(model, idx, 30, temperature=0, past_block_size="slide"))  # fmt: skip
    assert next(model.parameters()).requires_grad and not next(columns.parameters()).requires_grad


@pytest.mark.parametrize("n_embd", [32, 30])  # the kernel's width, and one that it does not take
@torch.no_grad()
def test_int8_is_near_and_its_rows_are_independent(n_embd):
    model = lively(GPTConfig(block_size=16, vocab_size=301, n_layer=2, n_head=2, n_embd=n_embd))
    small, idx = for_generation(model, int8=True), torch.randint(301, (3, 9))
    assert gap(small(idx)[0], model(idx)[0]) < 0.05
    weights = [b for name, b in small.named_buffers() if name.endswith("weight")]
    assert (
        all(b.dtype == torch.int8 for b in weights) and len(weights) == 9
    )  # the head and the embedding are one
    for int8 in (True, False):
        assert torch.equal(for_generation(small, int8)(idx)[0], small(idx)[0])  # again: stays what it is
    several = [[1, 2, 3], [4], list(range(12))]
    together = generate(small, several, 12, generator=[1, 2, 3], past_block_size="slide")
    for row, ids in enumerate(several):
        alone = generate(small, [ids], 12, generator=[row + 1], past_block_size="slide")[0]
        assert torch.equal(together[row], alone)


@torch.no_grad()
def test_the_largest_logits_of_an_int8_head_are_exact():
    model = lively(GPTConfig(block_size=16, vocab_size=900, n_layer=1, n_head=2, n_embd=96))
    common = torch.randn(96)
    model.transformer.ln_f.bias.data = common
    model.transformer.wte.weight -= 100 * common / (common @ common)  # all logits far from 0, as GPT-2's
    small, seen = for_generation(model, int8=True), []
    small.lm_head.register_forward_hook(lambda layer, inputs, output: seen.append(inputs[0]))
    logits = small(torch.randint(900, (8, 16)))[0]
    exact = seen[0] @ small.lm_head.rows(torch.arange(900)).T
    assert exact.max() < -30 and torch.equal(logits.argmax(-1), exact.argmax(-1))
    small.lm_head.exact = 0
    assert not torch.equal(small.lm_head(seen[0]).argmax(-1), exact.argmax(-1))  # what it is there for


def test_the_sampler_of_chapter_5_reads_the_last_window_and_draws_no_padding():
    model = lively(GPTConfig(block_size=8, vocab_size=50304, n_layer=1, n_head=2, n_embd=6))
    model.transformer.wte.weight.data[50257:] = 9 * model.transformer.wte.weight.data[:47]
    assert sample(model, torch.zeros(50, 1, dtype=torch.long), 4).max() < 50257
    idx = torch.randint(97, (60, 30))
    long, short = (sample(SMALL, ids, 6, torch.Generator().manual_seed(1)) for ids in (idx, idx[:, -24:]))
    assert torch.equal(long[:, 30:], short[:, 24:])


def test_bytes_are_written_where_the_vocabulary_is_padded():
    model = lively(GPTConfig(block_size=8, vocab_size=320, n_layer=1, n_head=2, n_embd=6))
    model.transformer.wte.weight.data[257:] *= 9
    pieces = stream_text(model, "x", 60, seed=1, tokenizer="bytes", past_block_size="slide")
    assert "".join(pieces)


@torch.no_grad()
def test_a_new_cache_holds_zeros():
    torch.use_deterministic_algorithms(True)  # in this mode memory that nobody has written is NaN
    try:
        cache = KVCache(SMALL, 2)
    finally:
        torch.use_deterministic_algorithms(False)
    assert not cache.k.any() and not cache.v.any()
