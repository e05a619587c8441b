"""What a model is measured by: once per token, the same in any batch, as `transformers` would have it."""

import contextlib
import io
import json
import math
import re
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2LMHeadModel

import gpt2lib.evaluate
from gpt2lib import GPT, GPTConfig, load_corpus
from gpt2lib.checkpoint import NANO, load_run, save_checkpoint
from gpt2lib.cli import main
from gpt2lib.demo import Service, build_demo, load_models
from gpt2lib.evaluate import (
    ITEMS,
    bits_per_byte,
    ending_losses,
    evaluate_run,
    hellaswag,
    match_lengths,
    memorised,
    read_hellaswag,
    recited,
    token_losses,
)
from gpt2lib.pretrained import convert
from gpt2lib.tokenizer import get_tokenizer


@pytest.fixture(scope="module")
def nano() -> GPT:
    return load_run(NANO)[0]


@pytest.fixture(scope="module")
def theirs(nano, tmp_path_factory) -> GPT2LMHeadModel:
    """The same model in `transformers`, with the padding of its vocabulary."""
    folder = tmp_path_factory.mktemp("nano")
    nano.save_pretrained(folder, tokenizer=None)
    return GPT2LMHeadModel.from_pretrained(folder).eval()


def small(seed: int = 0) -> GPT:
    torch.manual_seed(seed)
    model = GPT(GPTConfig(block_size=8, vocab_size=30, n_layer=2, n_head=2, n_embd=12))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 50), st.integers(1, 8), st.integers(1, 9), st.integers(0, 99))
def test_each_token_is_scored_once_from_the_stated_context(n, stride, batch_size, seed):
    model, tokens = small(seed), np.random.default_rng(seed).integers(30, size=n)
    losses = token_losses(model, tokens, stride, batch_size)
    assert losses.shape == (n - 1,)
    T = min(8, n - 1)
    starts = [*range(0, n - 1 - T, stride), n - 1 - T]
    for i in range(1, n):  # token i is scored by the first window that predicts it
        start = next(s for s in starts if i <= s + T)
        with torch.no_grad():
            logits, _ = model(torch.tensor(tokens[start:i])[None])
        expected = F.cross_entropy(logits[0, -1], torch.tensor(tokens[i])).item()
        assert abs(losses[i - 1] - expected) < 1e-4
        assert i - start >= min(i, T - stride + 1)
    assert abs(losses.mean() - token_losses(model, tokens, stride, 3).mean()) < 1e-6


def test_loss_does_not_depend_on_the_batch_size(nano):
    tokens = load_corpus().tokens("validation")[:1001]
    means = [token_losses(nano, tokens, batch_size=size).mean() for size in (1, 3, 6)]
    means.append(token_losses(nano, tokens, stride=128).mean())  # half a window, by default
    assert max(means) - min(means) < 1e-6


def test_evaluation_leaves_the_model_and_the_dice_alone(nano):
    nano.train()
    state = torch.get_rng_state()
    hellaswag(nano, ITEMS[:2])
    token_losses(nano, np.arange(300))
    recited(nano, load_corpus(), length=5)
    assert nano.training and torch.equal(torch.get_rng_state(), state)
    nano.eval()


def test_loss_and_perplexity_equal_those_of_transformers(nano, theirs):
    tokens = load_corpus().tokens("validation")[5000:5200]
    ids = torch.from_numpy(tokens.astype(np.int64))[None]
    with torch.no_grad():
        expected = theirs(ids, labels=ids).loss.item()
    assert abs(token_losses(nano, tokens).mean() - expected) < 1e-5


def test_hellaswag_is_scored_as_transformers_would(nano, theirs):
    encoding, right, right_norm = get_tokenizer(), 0, 0
    for item in ITEMS:
        mine, totals = ending_losses(nano, item["ctx"], item["endings"]), []
        for ending, (total, mean) in zip(item["endings"], mine, strict=True):
            head, tail = encoding.encode_ordinary(item["ctx"]), encoding.encode_ordinary(" " + ending)
            with torch.no_grad():
                labels = torch.tensor([[-100] * len(head) + tail])
                expected = theirs(torch.tensor([head + tail]), labels=labels).loss.item()
            assert abs(mean - expected) < 1e-4 and abs(total - expected * len(tail)) < 1e-3
            totals.append((expected * len(tail), expected))
        right += min(range(4), key=lambda i: totals[i][0]) == item["label"]
        right_norm += min(range(4), key=lambda i: totals[i][1]) == item["label"]
    assert hellaswag(nano, ITEMS) == {"acc": right / 8, "acc_norm": right_norm / 8, "items": 8}


def test_a_long_context_loses_its_beginning_and_an_empty_one_is_a_new_document(nano):
    encoding, ending = get_tokenizer(), "puts it on the stove."
    tail = encoding.encode_ordinary(" " + ending)
    for context in ("one two three " * 200, ""):
        ids = [encoding.eot_token, *encoding.encode_ordinary(context), *tail][-257:]
        with torch.no_grad():
            logits = nano(torch.tensor([ids[:-1]]))[0][0]
        expected = F.cross_entropy(logits[-len(tail) :], torch.tensor(tail)).item()
        ((total, mean),) = ending_losses(nano, context, [ending])
        assert abs(mean - expected) < 1e-4 and abs(total - len(tail) * expected) < 1e-3


def test_bits_per_byte_counts_the_bytes_of_what_was_scored():
    encoding, text = get_tokenizer(), "Où? 🂡\n"
    ids = [*encoding.encode_ordinary("x" + text), encoding.eot_token, *encoding.encode_ordinary(text)]
    losses = np.linspace(1, 3, len(ids) - 1)
    first = len(encoding.decode_single_token_bytes(ids[0]))
    expected = losses.sum() / math.log(2) / (len(("x" + 2 * text).encode()) - first)
    assert abs(bits_per_byte(losses, np.array(ids)) - expected) < 1e-9


def test_a_compiled_model_is_evaluated_uncompiled(nano):
    def refuse(graph, inputs):
        raise AssertionError("compiled")

    compiled = torch.compile(nano, backend=refuse)
    assert hellaswag(compiled, ITEMS[:2]) == hellaswag(nano, ITEMS[:2])
    tokens = np.arange(300)
    assert np.array_equal(token_losses(compiled, tokens), token_losses(nano, tokens))
    with pytest.raises(Exception, match="compiled"):  # this backend does say so when it is used
        compiled(torch.zeros(1, 2, dtype=torch.long))


def test_hellaswag_file_is_read_as_it_is_published(tmp_path, monkeypatch):
    entry = {
        "ind": 24, "activity_label": "Roof shingle removal", "ctx_a": "A man is sitting on a roof.", "ctx_b": "he",
        "ctx": "A man is sitting on a roof. he", "split": "val", "split_type": "indomain", "label": 3,
        "endings": ["is using wrap.", "is ripping tiles.", "is holding a cube.", "starts pulling up roofing."],
        "source_id": "activitynet~v_-JhWjGDPHMY",
    }  # fmt: skip
    text = (
        json.dumps(entry)
        + "\n"
        + json.dumps(entry | {"label": "1", "ctx": "x\u2028y"}, ensure_ascii=False)
        + "\n"
    )
    (tmp_path / "val.jsonl").write_text(text, encoding="utf-8")
    items = read_hellaswag(tmp_path / "val.jsonl")
    assert [item["label"] for item in items] == [3, 1] and items[0]["endings"] == entry["endings"]
    assert items[1]["ctx"] == "x\u2028y", "a line ends at a line break and nowhere else"

    def fetch(url, path, sha256):
        assert url == gpt2lib.evaluate.HELLASWAG_URL and len(sha256) == 64
        path.parent.mkdir(parents=True)
        path.write_text(text, encoding="utf-8")
        return path

    monkeypatch.setattr(gpt2lib.evaluate, "fetch", fetch)
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda *_: str(tmp_path / "cache"))
    assert read_hellaswag("download") == items
    (tmp_path / "bad.jsonl").write_text(text + json.dumps(entry | {"label": 4}))
    with pytest.raises(ValueError, match=r"bad\.jsonl, line 3 is not a HellaSwag item"):
        read_hellaswag(tmp_path / "bad.jsonl")
    for endings in (["a", 5], ["a", ""], "ab", {"a": 1, "b": 2}):
        (tmp_path / "bad.jsonl").write_text(json.dumps(entry | {"label": 0, "endings": endings}))
        with pytest.raises(ValueError, match=r"bad\.jsonl, line 1 is not a HellaSwag item"):
            read_hellaswag(tmp_path / "bad.jsonl")
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl is missing; give 'download'"):
        read_hellaswag(tmp_path / "none.jsonl")


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=40), st.lists(st.integers(0, 2), min_size=1, max_size=60)
)
def test_match_lengths_equal_a_search(text, corpus):
    words, where = bytes(text), bytes(corpus)

    def longest(i: int) -> int:
        return max(n for n in range(len(words) - i + 1) if words[i : i + n] in where)

    assert match_lengths(np.array(text), np.array(corpus)).tolist() == [longest(i) for i in range(len(text))]


def test_memorised_finds_what_was_copied():
    corpus = load_corpus()
    train, held_out = corpus.tokens("train"), corpus.tokens("validation")
    mixed = np.concatenate([held_out[3000:3050], train[70_000:70_040], held_out[4000:4060]])
    found = memorised(mixed, train, n=30)
    assert 40 <= found["longest"] <= 46 and 40 <= found["share"] * 150 <= 46
    for n, share in ((found["longest"], found["share"]), (found["longest"] + 1, 0.0)):  # a run of n counts
        assert memorised(mixed, train, n)["share"] == share
    assert memorised(train[:500], train)["share"] == 1.0
    assert memorised(np.array([], dtype=int), train) == {"longest": 0, "share": 0.0}


def test_recited_is_reproducible_and_has_a_yardstick(nano):
    corpus = load_corpus()
    first = recited(nano, corpus, length=40, n=4, temperature=0.5)
    assert first == recited(nano, corpus, length=40, n=4, temperature=0.5)
    assert first.keys() == {"longest", "share", "held_out_longest", "held_out_share", "tokens", "n"}
    assert 0 <= first["share"] <= 1 and first["longest"] >= 1 and first["tokens"] <= 160
    assert first != recited(nano, corpus, length=40, n=4, temperature=0.5, seed=1)


@pytest.mark.parametrize(("split", "low", "high"), [("train", 1.0, 1.0), ("validation", 0.0, 0.5)])
def test_recited_is_what_stands_in_the_training_text(nano, monkeypatch, split, low, high):
    corpus, blank = load_corpus(), get_tokenizer().encode_single_token(" ")
    tokens = corpus.tokens(split).astype(np.int64)
    begin = np.flatnonzero(tokens == blank)[50] - 5
    written = torch.from_numpy(tokens[begin : begin + 150])  # with a blank among them

    def generate(model, start, length, *rest, **settings):
        return torch.cat((start, written[:length].expand(4, -1)), dim=1)

    monkeypatch.setattr(gpt2lib.evaluate, "generate", generate)
    found = recited(nano, corpus, length=150)
    assert low <= found["share"] <= high
    assert (found["longest"] >= (written != blank).sum()) == (split == "train")  # blanks do not count


def gpt2(words: str) -> tuple[int, str, str]:
    code, out, err = 0, io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(words.split())
        except SystemExit as stop:
            code = stop.code
    return code, out.getvalue(), err.getvalue()


def test_eval_command_says_how_much_it_measured_and_what(tmp_path, nano):
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in ITEMS[:2]))
    code, out, err = gpt2(f"eval --tokens 600 --stride 64 --hellaswag {tmp_path}/items.jsonl --recite 10")
    assert code == 0 and "600 tokens of shakespeare, stride 64, step 5000" in out and "2 questions" in out
    assert "written tokens stand in runs of 10" in out and "windows: 100%" in err and "questions: 100%" in err
    code, text, _ = gpt2("eval --tokens 600 --stride 64 --batch-size 3 --json")
    result = json.loads(text)
    assert f"validation loss {result['loss']:.4f}" in out and f"perplexity {result['perplexity']:.2f}" in out
    assert math.isclose(result["perplexity"], math.exp(result["loss"]))
    tokens = load_corpus().tokens("validation")[:601]
    assert abs(result["loss"] - token_losses(nano, tokens, 64).mean()) < 1e-6
    assert result["tokens"] == 600 and result["step"] == 5000


def test_the_step_is_that_of_the_weights_that_were_measured(tmp_path, nano, monkeypatch):
    """A run that goes on may save while it is measured."""
    run = shutil.copytree(NANO, tmp_path / "run")

    def save_then_answer():
        save_checkpoint(run / "checkpoints" / "step_005001", nano, None, {"step": 5001})
        return "cpu"

    monkeypatch.setattr(gpt2lib.evaluate, "pick_device", save_then_answer)
    found = evaluate_run(run, n_tokens=50)
    assert (found["step"], found["stride"], found["tokens"]) == (5000, 128, 50)


def test_eval_command_takes_models_from_elsewhere(tmp_path, nano):
    nano.save_pretrained(tmp_path / "folder")
    code, out, _ = gpt2(f"eval --checkpoint {tmp_path}/folder --corpus shakespeare --tokens 300 --json")
    expected = evaluate_run(NANO, n_tokens=300)
    assert code == 0 and abs(json.loads(out)["loss"] - expected["loss"]) < 1e-3  # without the padding's share
    assert "step" not in json.loads(out)
    code, _, err = gpt2(f"eval --checkpoint {tmp_path}/folder")
    assert code == 2 and "does not say what it was trained on; name a corpus" in err
    (tmp_path / "items.jsonl").write_text(json.dumps(ITEMS[0]))
    code, out, _ = gpt2(f"eval --checkpoint {tmp_path}/folder --hellaswag {tmp_path}/items.jsonl --json")
    assert code == 0 and json.loads(out).keys() == {"hellaswag"}
    small().save_pretrained(tmp_path / "other", tokenizer=None)
    code, _, err = gpt2(f"eval --checkpoint {tmp_path}/other --corpus shakespeare")
    assert code == 2 and "neither 'gpt2' nor 'bytes'" in err
    for words in ("--tokens 0", "--stride 257", "--batch-size 0", "--recite -1", "--hellaswag nowhere.jsonl"):
        code, _, err = gpt2(f"eval --tokens 40 {words}")
        assert code == 2 and "Traceback" not in err and words.split()[-1] in err, words


@pytest.mark.parametrize("command", ["eval", "convert"])
def test_every_flag_is_explained(command):
    code, page, _ = gpt2(f"{command} --help")
    assert code == 0 and "--checkpoint STR" in page
    assert not re.search(r"--[\w-]+ \S+\s+\(default:", page), page


def test_a_converted_run_can_be_shown_in_the_demo(tmp_path):
    convert(NANO, tmp_path / "nano.safetensors")
    convert(tmp_path / "nano.safetensors", tmp_path / "run", run=True)
    service = Service(load_models([tmp_path / "run"]))
    assert "other text" in json.dumps(build_demo(service).get_config_file())
    service.close()
