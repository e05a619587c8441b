"""The tokenizer to read gives what tiktoken gives, for any text; training it gives what the definition says."""

import itertools
from collections import Counter

import pytest
import regex
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2lib.tokenizer import END_OF_TEXT, GPT2_PATTERN, BPETokenizer, get_tokenizer, load_ranks, train_bpe

ENCODING, OURS = get_tokenizer(), BPETokenizer(load_ranks())
TEXT = st.text(
    st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("aaabe '\n\t\r\0é漢🎭\ufeff"))
)


@settings(deadline=None, max_examples=200)
@given(st.one_of(TEXT, st.lists(st.sampled_from(["hello", " the", "ing", "'s", END_OF_TEXT])).map("".join)))
def test_ids_are_those_of_tiktoken_and_give_the_text_back(text):
    ids = OURS.encode(text)
    assert ids == ENCODING.encode_ordinary(text) and OURS.eot_token not in ids
    assert OURS.decode(ids) == text == ENCODING.decode(ids)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(0, 50256), max_size=8))
def test_any_ids_have_the_bytes_of_tiktoken(ids):
    assert OURS.decode_bytes(ids) == ENCODING.decode_bytes(ids)


def by_definition(text: str, vocab_size: int) -> dict[bytes, int] | None:
    """Count anew for each token; the most frequent pair, and of equal ones the first in byte order."""
    words = [[bytes([b]) for b in word.encode()] for word in regex.findall(GPT2_PATTERN, text)]
    ranks = {bytes([b]): b for b in range(256)}
    while len(ranks) < vocab_size:
        count = Counter(a + b for word in words for a, b in itertools.pairwise(word))
        if not count:
            return None
        token = min(count, key=lambda t: (-count[t], t))
        ranks[token] = len(ranks)
        for word in words:
            i = 0
            while i + 1 < len(word):
                if word[i] + word[i + 1] == token:
                    word[i : i + 2] = [token]
                i += 1
    return ranks


@settings(deadline=None, max_examples=150)
@given(st.text("aab  \n", max_size=60), st.integers(256, 270))
def test_training_makes_the_most_frequent_pair_a_token(text, vocab_size):
    expected = by_definition(text, vocab_size)
    if expected is None:
        with pytest.raises(ValueError, match="is more than this text gives"):
            train_bpe(text, vocab_size)
        return
    ranks = train_bpe(text, vocab_size)
    assert list(ranks.items()) == list(expected.items())
    theirs = tiktoken.Encoding("t", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={})
    assert BPETokenizer(ranks).encode(text) == theirs.encode_ordinary(text)


def test_end_of_text_is_the_first_id_behind_the_ranks():
    assert (ENCODING.eot_token, ENCODING.n_vocab, OURS.eot_token, OURS.n_vocab) == (
        50256,
        50257,
        50256,
        50257,
    )
    assert get_tokenizer("bytes").eot_token == 256 and OURS.decode([50256]) == END_OF_TEXT
    for ids in ([-1], [50257], [1.5], ["a"], [[1]]):
        with pytest.raises(ValueError):
            OURS.decode(ids)
    for text in (b"bytes", 7, "half \ud83c"):
        with pytest.raises(ValueError):
            OURS.encode(text)
    ranks = load_ranks()
    for wrong in (
        {t: r for t, r in ranks.items() if t != b"a"},
        {t: r + (r > 300) for t, r in ranks.items()},
    ):
        with pytest.raises(ValueError):
            BPETokenizer(wrong)
