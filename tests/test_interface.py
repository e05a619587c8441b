"""The public interface: names, defaults, and what is said when it cannot be done."""

import inspect
import subprocess
import sys

import numpy as np
import pytest
import torch

import gpt2lib
from gpt2lib import GPT, DataLoaderLite, GPTConfig, TrainConfig, generate, get_lr, load_corpus, stream
from gpt2lib.checkpoint import NANO, latest_checkpoint, load_checkpoint, load_run
from gpt2lib.demo import generate_text, load_models
from gpt2lib.tokenizer import get_tokenizer, read_asset

SMALL = GPTConfig(block_size=8, vocab_size=50, n_layer=1, n_head=2, n_embd=6)


def defaults(function) -> dict:
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def test_names_and_defaults_are_those_of_the_design():
    assert defaults(GPTConfig) == dict(
        block_size=1024, vocab_size=50257, n_layer=12, n_head=12, n_embd=768, dropout=0.0
    )
    assert defaults(get_lr) == dict(max_lr=6e-4, min_lr=None, warmup_steps=10, max_steps=50)
    assert defaults(DataLoaderLite) == dict(rank=0, world_size=1, seed=1337)
    sampling = dict(temperature=1.0, top_k=None, top_p=None, generator=None, use_cache=True)
    assert sampling.items() <= defaults(generate).items() and sampling.items() <= defaults(stream).items()
    for name in "GPT GPTConfig CausalSelfAttention MLP Block DataLoaderLite get_lr train generate".split():
        assert callable(getattr(gpt2lib, name))
    for name in ("nano", "mini", "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"):
        assert TrainConfig.preset(name, out="x").model == GPTConfig.preset(name)
    assert GPTConfig.preset("nano") == load_run(NANO)[0].config == GPTConfig(256, 50304, 4, 4, 128)
    assert GPTConfig.preset("mini") == GPTConfig(512, 50304, 6, 6, 384)


def test_configure_optimizers_takes_a_device_as_well_as_its_type():
    optimizer = GPT(SMALL).configure_optimizers(weight_decay=0.1, learning_rate=6e-4, device_type="cpu")
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    on_cuda = GPT(SMALL).configure_optimizers(device_type="cuda:0")  # a GPU's name works where its type does
    assert on_cuda.defaults["fused"]


def test_a_frozen_weight_is_not_optimized():
    model = GPT(SMALL)
    model.transformer.wpe.requires_grad_(False)
    optimized = [p for group in model.configure_optimizers().param_groups for p in group["params"]]
    assert len(optimized) == len(list(model.parameters())) - 1


def test_training_imports_nothing_heavy():
    code = """
import sys
for name in ("matplotlib", "gradio", "transformers", "IPython", "pandas", "pooch", "platformdirs", "huggingface_hub"):
    sys.modules[name] = None  # importing it fails
import gpt2lib.train, gpt2lib.cli, gpt2lib.demo
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: GPTConfig(n_head=7), ["n_embd=768", "n_head=7", "1, 2, 3, 4, 6, 8, 12"]),
        (lambda: GPTConfig(n_layer=0), ["n_layer=0", "at least 1"]),
        (lambda: GPTConfig(dropout=1.0), ["dropout=1.0", "below 1"]),
        (lambda: GPTConfig.preset("huge"), ["huge", "nano", "gpt2-xl"]),
        (lambda: GPT(SMALL)(torch.zeros(1, 9, dtype=torch.long)), ["9", "block_size=8"]),
        (lambda: GPT(SMALL)(torch.full((1, 3), 50)), ["50", "0 to 49"]),
        (lambda: GPT(SMALL)(torch.full((1, 3), -1)), ["-1", "0 to 49"]),
        (lambda: GPT(SMALL)(torch.zeros(3, dtype=torch.long)), ["(3,)", "(B, T)"]),
        (lambda: DataLoaderLite(np.arange(4), B=1, T=4), ["4 tokens", "5"]),
        (lambda: DataLoaderLite(np.arange(9), B=1, T=4, world_size=3), ["9 tokens", "13"]),
        (lambda: DataLoaderLite(np.arange(9), B=0, T=4), ["B=0", "at least 1"]),
        (lambda: DataLoaderLite(np.arange(9), B=1, T=-4), ["T=-4", "at least 1"]),
        (lambda: DataLoaderLite(np.arange(99), B=1, T=4, rank=2, world_size=2), ["rank=2", "0 to 1"]),
        (lambda: DataLoaderLite(np.arange(99), B=1, T=4).batch_at(-1), ["step=-1"]),
        (lambda: get_lr(0, warmup_steps=60, max_steps=50), ["warmup_steps=60", "max_steps"]),
        (lambda: TrainConfig.preset("nano", max_steps=0), ["max_steps=0", "at least 1"]),
        (lambda: TrainConfig.preset("nano", batch_size=-8), ["batch_size=-8", "at least 1"]),
        (lambda: TrainConfig.preset("nano", seed=2**63), ["seed=9223372036854775808", "below 2**63"]),
        (lambda: TrainConfig.preset("nano", n_head=5), ["n_embd=128", "n_head=5"]),
        (lambda: generate(GPT(SMALL), torch.zeros(1, 2, dtype=torch.long), -1), ["max_new_tokens=-1"]),
        (
            lambda: generate(GPT(SMALL), torch.zeros(1, 2, dtype=torch.long), 2, temperature=float("nan")),
            ["nan"],
        ),
        (lambda: generate(GPT(SMALL), torch.zeros(1, 2, dtype=torch.long), 2, top_p=1.5), ["top_p=1.5"]),
        (lambda: generate_text("x" * 5000), ["too long", "4000"]),
        (lambda: generate_text("x", temperature=float("nan")), ["temperature", "nan", "2"]),
        (lambda: get_tokenizer("gpt4"), ["gpt4", "gpt2", "bytes"]),
    ],
)
def test_what_cannot_be_done_is_said(call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("empty.txt", b"", ["empty.txt", "empty"]),
        ("latin.txt", "Fürst".encode("latin-1"), ["latin.txt", "UTF-8", "0xfc"]),
    ],
)
def test_a_file_that_is_no_corpus_is_refused(tmp_path, name, data, words):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError) as error:
        load_corpus(tmp_path / name)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize(
    "call", [load_corpus, load_run, GPT.from_pretrained, lambda path: load_models([path])]
)
def test_a_path_that_is_missing_is_named(tmp_path, call):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        call(tmp_path / "nowhere")


def test_the_shipped_model_writes():
    assert not load_run(NANO)[0].training
    text = generate_text("ROMEO:\n", max_new_tokens=12, seed=1)
    assert text.startswith("ROMEO:\n") and len(text) > 12
    assert text == generate_text("ROMEO:\n", max_new_tokens=12, seed=1)


def test_an_altered_asset_is_refused():
    with pytest.raises(ValueError, match=r"gpt2\.tiktoken was altered.*reinstall"):
        read_asset("gpt2.tiktoken", "0" * 64)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(n_layer=3), r"transformer\.h\.3\S+ is not part"),
        (dict(n_embd=64), r"has shape \(384,\), expected \(192,\)"),
    ],
)
def test_a_checkpoint_of_another_size_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        load_checkpoint(latest_checkpoint(NANO), GPT(GPTConfig.preset("nano", **change)))


def test_a_reader_that_has_read_enough_is_no_error():
    command = [sys.executable, "-m", "gpt2lib", "generate", "--max-new-tokens", "40", "--seed", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.read(3)
        process.stdout.close()
        assert process.wait(timeout=120) == 0, process.stderr.read()


def test_a_text_of_one_long_line_is_still_mostly_for_training(tmp_path):
    (tmp_path / "line.txt").write_text("title\n" + "word " * 1000)
    corpus = load_corpus(tmp_path / "line.txt")
    assert 8 < len("".join(corpus.train)) / len("".join(corpus.validation)) < 10
