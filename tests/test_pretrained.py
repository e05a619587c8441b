"""Weights in and out: from a hub that fails, from folders of all ages, into `transformers`, and back."""

import contextlib
import hashlib
import http.server
import json
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, GenerationConfig, GPT2Config, GPT2LMHeadModel

import gpt2lib.gpt
import gpt2lib.pretrained
from gpt2lib import GPT, GPTConfig, generate
from gpt2lib.checkpoint import NANO, load_run
from gpt2lib.cli import main
from gpt2lib.evaluate import evaluate_run
from gpt2lib.generate import Int8Linear
from gpt2lib.pretrained import HUB, convert, tokenizer_of
from gpt2lib.tokenizer import get_tokenizer

SHAPE = dict(n_positions=24, vocab_size=211, n_layer=3, n_head=5, n_embd=40)
NORM = "transformer.h.1.ln_1.weight"


def make_theirs(folder: Path, **changes) -> GPT2LMHeadModel:
    """A GPT-2 of `transformers` with random weights, biases and gains, and its folder."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**SHAPE | changes, bos_token_id=0, eos_token_id=0)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


def write_folder(
    folder: Path, values: dict, tensors: dict, shards: int = 0, name: str = "model.safetensors"
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    if not shards:
        save_file(tensors, folder / name)
        return folder
    weight_map = {
        key: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, key in enumerate(tensors)
    }
    for file in set(weight_map.values()):
        save_file({key: t for key, t in tensors.items() if weight_map[key] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def read_folder(folder: Path) -> tuple[dict, dict]:
    return json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")


def assert_equals(ours: GPT, theirs: GPT2LMHeadModel):
    config = ours.config
    assert not ours.training
    tokens = torch.randint(config.vocab_size, (2, config.block_size))
    with torch.no_grad():
        assert (ours(tokens)[0] - theirs(tokens).logits).abs().max() < 1e-4
    assert ours.lm_head.weight.data_ptr() == ours.transformer.wte.weight.data_ptr()
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


def assert_same_weights(a: GPT, b: GPT):
    assert a.config == b.config
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


# A hub


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers as huggingface.co does: the checksum of a large file in the headers of a redirect."""

    def do_HEAD(self):
        self.server.log.append(("HEAD", self.path, None))
        self.redirect()

    def do_GET(self):
        self.server.log.append(("GET", self.path, self.headers["Range"]))
        if not self.path.startswith("/cdn/"):
            return self.redirect()
        data = self.server.files[self.path.removeprefix("/cdn")]
        start = int((self.headers["Range"] or "bytes=0-").removeprefix("bytes=").split("-")[0])
        if start >= len(data):
            self.send_response(416)
            self.send_header("Content-Length", "0")
            return self.end_headers()
        start *= self.server.ranges
        body = data[start:]
        self.send_response(206 if self.server.ranges else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.server.breaks_after.pop(self.path.split("/")[-1], len(body))])

    def redirect(self):
        data = self.server.files.get(self.path)
        self.send_response(404 if data is None else 302)
        if data is not None:
            self.send_header("Location", "/cdn" + self.path)
            self.send_header("X-Linked-ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with a small model in the place of gpt2-medium and gpt2, and an empty cache."""
    theirs = make_theirs(tmp_path / "published")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files = {
        f"/openai-community/{name}/resolve/{HUB[name][0]}/{file}": (
            tmp_path / "published" / file
        ).read_bytes()
        for name in ("gpt2", "gpt2-medium")
        for file in ("config.json", "model.safetensors")
    }
    server.theirs, server.log, server.breaks_after, server.ranges = theirs, [], {}, True
    shape = tuple(SHAPE[k] for k in ("n_positions", "vocab_size", "n_layer", "n_head", "n_embd"))
    for name in ("gpt2", "gpt2-medium"):
        monkeypatch.setitem(gpt2lib.gpt.PRESETS, name, shape)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda *_: str(tmp_path / "cache"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def cached(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache").rglob("*") if path.is_file())


def test_download_is_shown_checked_and_kept(hub, tmp_path, capsys):
    assert_equals(GPT.from_pretrained("gpt2-medium"), hub.theirs)
    shown = capsys.readouterr()
    weights = hub.files[f"/openai-community/gpt2-medium/resolve/{HUB['gpt2-medium'][0]}/model.safetensors"]
    assert HUB["gpt2-medium"][0] in shown.out and hashlib.sha256(weights).hexdigest() in shown.out
    assert "model.safetensors: 100%" in shown.err, "a progress bar"
    assert cached(tmp_path) == ["config.json", "model.safetensors"]
    hub.shutdown()  # from here on there is no hub
    hub.log.clear()
    assert_equals(GPT.from_pretrained("gpt2-medium"), hub.theirs)
    assert hub.log == []
    assert tokenizer_of("gpt2-medium") == "gpt2"


@pytest.mark.parametrize("ranges", [True, False])
def test_broken_download_leaves_no_file_and_is_continued(hub, tmp_path, ranges):
    hub.ranges = ranges
    hub.breaks_after["model.safetensors"] = 98_304
    with pytest.raises(FileNotFoundError, match=r"98,304 bytes are kept, try again.*path of a folder"):
        GPT.from_pretrained("gpt2-medium")
    assert cached(tmp_path) == ["config.json", "model.safetensors.part"]
    assert_equals(GPT.from_pretrained("gpt2-medium"), hub.theirs)
    assert hub.log[-1] == ("GET", hub.log[-1][1], "bytes=98304-")
    assert cached(tmp_path) == ["config.json", "model.safetensors"]


def test_download_killed_before_its_last_step_is_finished(hub, tmp_path):
    GPT.from_pretrained("gpt2-medium")
    (weights,) = (tmp_path / "cache").rglob("model.safetensors")
    weights.rename(weights.with_name("model.safetensors.part"))  # whole, but not yet renamed
    assert_equals(GPT.from_pretrained("gpt2-medium"), hub.theirs)


def test_download_with_another_checksum_is_refused(hub, tmp_path):
    with pytest.raises(ValueError, match=f"SHA-256 [0-9a-f]{{64}}, expected {HUB['gpt2'][1]}"):
        GPT.from_pretrained("gpt2")  # the hub's small model is not OpenAI's
    assert cached(tmp_path) == ["config.json"], "it is deleted"


def test_download_that_the_server_refuses_says_so(hub, tmp_path):
    hub.files.clear()
    with pytest.raises(FileNotFoundError, match="'gpt2-medium'.*the server says 404"):
        GPT.from_pretrained("gpt2-medium")
    assert cached(tmp_path) == []


def test_download_of_another_shape_is_refused(hub, monkeypatch):
    monkeypatch.setitem(gpt2lib.gpt.PRESETS, "gpt2-medium", (24, 211, 2, 5, 40))
    with pytest.raises(ValueError, match=r"config\.json is not that of gpt2-medium"):
        GPT.from_pretrained("gpt2-medium")


@pytest.mark.parametrize("name", ["gpt2", "gpt2-large"])
def test_without_a_connection_the_error_says_what_to_give(tmp_path, monkeypatch, name):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda *_: str(tmp_path / "cache"))
    with pytest.raises(FileNotFoundError) as error:
        GPT.from_pretrained(name)
    assert name in str(error.value) and "ConnectionError" in str(error.value)
    assert "give the path of a folder with its config.json and model.safetensors" in str(error.value)
    assert cached(tmp_path) == []


# What the hub says about the four sizes: https://huggingface.co/openai-community/NAME/blob/main/config.json
PUBLISHED = {
    "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1,
    "bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12,
    "n_positions": 1024, "resid_pdrop": 0.1, "summary_activation": None, "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True, "summary_type": "cls_index", "summary_use_proj": True,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}}, "vocab_size": 50257,
}  # fmt: skip
OLDER = {"n_special": 0, "predict_special_tokens": True}


@pytest.mark.parametrize(
    ("name", "changes", "sha256"),
    [
        ("gpt2", {}, "0daed7749b4f02b8f76240d5444551d7b08712dab4d0adb8239c56ba823bb7b4"),
        ("gpt2-medium", {"n_embd": 1024, "n_head": 16, "n_layer": 24, **OLDER}, None),
        ("gpt2-large", {"n_embd": 1280, "n_head": 20, "n_layer": 36}, None),
        (
            "gpt2-xl",
            {"n_embd": 1600, "n_head": 25, "n_layer": 48, "output_past": True},
            "be48115d52314bc27327e160bf10197760db02ea689d10adb24db4102edf7a8a",
        ),
    ],
)
def test_presets_are_those_of_the_hub(tmp_path, name, changes, sha256):
    text = json.dumps(PUBLISHED | changes, indent=2, sort_keys=True)
    if sha256 is not None:  # these are the published bytes
        assert hashlib.sha256(text.encode()).hexdigest() == sha256
    (tmp_path / "config.json").write_text(text)
    assert gpt2lib.pretrained._read_config(tmp_path / "config.json") == GPTConfig.preset(name)


# Folders


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("shards", [0, 3])
def test_folders_of_all_ages_are_read(tmp_path, prefix, masks, shards):
    theirs = make_theirs(tmp_path / "new")
    values, tensors = read_folder(tmp_path / "new")
    if masks:
        for layer in range(SHAPE["n_layer"]):
            tensors[f"transformer.h.{layer}.attn.bias"] = torch.ones(24, 24).tril()[None, None]
            tensors[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    if not prefix:
        tensors = {key.removeprefix("transformer."): tensor for key, tensor in tensors.items()}
    folder = write_folder(tmp_path / "old", values, tensors, shards)
    assert_equals(GPT.from_pretrained(folder), theirs)


@pytest.mark.parametrize(
    "changes", [{"n_positions": 7}, {"vocab_size": 50257 + 3, "n_layer": 1}, {"n_inner": 160}]
)
def test_fine_tuned_shapes_are_read(tmp_path, changes):
    theirs = make_theirs(tmp_path / "tuned", **changes)
    model = GPT.from_pretrained(tmp_path / "tuned")
    assert_equals(model, theirs)
    model.save_pretrained(
        tmp_path / "again", tokenizer=None
    )  # all rows, also those that no tokenizer of ours knows
    assert_same_weights(GPT.from_pretrained(tmp_path / "again"), model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_number_formats_become_float32(tmp_path, dtype):
    make_theirs(tmp_path / "new")
    values, tensors = read_folder(tmp_path / "new")
    tensors = {key: tensor.to(dtype) for key, tensor in tensors.items()}
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()  # some files write it twice
    model = GPT.from_pretrained(write_folder(tmp_path / "other", values, tensors))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.equal(model.transformer.wte.weight, tensors["transformer.wte.weight"].float())
    turned = tensors["transformer.h.2.attn.c_proj.weight"].float().t()
    assert torch.equal(model.transformer.h[2].attn.c_proj.weight, turned)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux's /proc")
def test_loading_needs_little_more_memory_than_the_weights(tmp_path):
    GPT(GPTConfig(n_layer=3)).save_pretrained(tmp_path / "large", tokenizer=None)
    GPT(GPTConfig(8, 50, 1, 1, 4)).save_pretrained(tmp_path / "small", tokenizer=None)
    code = """
import re, sys
from gpt2lib import GPT
def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
GPT.from_pretrained(sys.argv[1])  # what is imported on first use
before = peak()
model = GPT.from_pretrained(sys.argv[2])
print((peak() - before) / sum(4 * p.numel() for p in model.parameters()))
"""
    paths = [str(tmp_path / "small"), str(tmp_path / "large")]
    run = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, check=True)
    assert 0.9 < float(run.stdout) < 1.2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(config={"model_type": "llama"}), "model_type='llama'; only 'gpt2'"),
        (dict(config={"activation_function": "gelu"}), "activation_function='gelu'; GPT-2 has 'gelu_new'"),
        (dict(config={"layer_norm_epsilon": 1e-6}), "layer_norm_epsilon=1e-06; GPT-2 has 1e-05"),
        (dict(config={"n_inner": 50}), r"n_inner=50; GPT-2 has 4 \* n_embd = 160"),
        (dict(config={"n_head": 7}), "n_embd=40 is not divisible by n_head=7"),
        (
            dict(config={"n_embd": 45}),
            r"transformer\.wte\.weight has shape \(211, 40\), expected \(211, 45\)",
        ),
        (dict(config={"n_layer": 4}), r"transformer\.h\.3\.ln_1\.weight is missing"),
        (dict(config={"n_layer": 2}), r"transformer\.h\.2\.attn\.c_attn\.bias is not part of a GPT-2"),
        (dict(drop=NORM), rf"{NORM} is missing"),
        (dict(tensors={NORM: torch.ones(41)}), rf"{NORM} has shape \(41,\), expected \(40,\)"),
        (
            dict(tensors={"transformer.h.0.mlp.c_fc.weight": torch.ones(160, 40)}),
            r"c_fc\.weight has shape \(160, 40\), expected \(40, 160\)",
        ),
        (dict(tensors={"score.weight": torch.ones(2, 40)}), r"transformer\.score\.weight is not part"),
        (
            dict(tensors={"lm_head.weight": torch.ones(211, 40)}),
            "lm_head.weight differs from the token embedding",
        ),
        (dict(tensors={"wte.weight": torch.ones(211, 40)}), r"transformer\.wte\.weight stands there twice"),
    ],
)
def test_what_is_not_gpt2_is_refused_with_the_first_difference(tmp_path, change, words):
    make_theirs(tmp_path / "right")
    values, tensors = read_folder(tmp_path / "right")
    tensors = {k: t for k, t in (tensors | change.get("tensors", {})).items() if k != change.get("drop")}
    wrong = write_folder(tmp_path / "wrong", values | change.get("config", {}), tensors)
    with pytest.raises(ValueError, match=words):
        GPT.from_pretrained(wrong)


def test_files_that_cannot_be_read_are_named(tmp_path):
    make_theirs(tmp_path / "right")
    values, tensors = read_folder(tmp_path / "right")
    pickled = write_folder(tmp_path / "pickled", values, {}, name="unused.safetensors")
    (pickled / "pytorch_model-00001-of-00002.bin").write_bytes(pickle.dumps(print))
    cut = write_folder(tmp_path / "cut", values, tensors)
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:5000])
    lost = write_folder(tmp_path / "lost", values, tensors, shards=2)
    (lost / "model-00002-of-00002.safetensors").unlink()
    broken = write_folder(tmp_path / "broken", values, tensors)
    (broken / "config.json").write_text("{")
    (tmp_path / "gpt2.pt").write_bytes(pickle.dumps(print))
    nameless = tmp_path / "nameless"  # a run directory that does not say its tokenizer
    (nameless / "checkpoints").mkdir(parents=True)
    config = json.loads((NANO / "config.json").read_text(encoding="utf-8"))
    (nameless / "config.json").write_text(json.dumps({"model": config["model"]}))
    for name, text in (("list", "[]"), ("half", '{"model_type": ')):
        save_file(tensors, tmp_path / f"{name}.safetensors", {"config": text})
    for path, kind, words in [
        (pickled, ValueError, r"pickle, pytorch_model-00001-of-00002\.bin.*runs code"),
        (tmp_path / "gpt2.pt", ValueError, r"gpt2\.pt is no safetensors file.*runs code"),
        (cut, ValueError, "cut is damaged"),
        (lost, FileNotFoundError, "model-00002-of-00002.safetensors is missing"),
        (broken, ValueError, "config.json is damaged"),
        (nameless, ValueError, r"config.json is damaged \(KeyError\('tokenizer'\)\)"),
        (tmp_path, FileNotFoundError, "config.json is missing"),
        (tmp_path / "nowhere", FileNotFoundError, "neither a path nor one of gpt2, gpt2-medium"),
        (tmp_path / "right" / "model.safetensors", ValueError, "header has no config; put it into a folder"),
        (tmp_path / "list.safetensors", ValueError, "list.safetensors is damaged"),
        (tmp_path / "half.safetensors", ValueError, "half.safetensors is damaged"),
    ]:
        with pytest.raises(kind, match=words):
            GPT.from_pretrained(path)


# Out


def test_folder_is_complete_for_transformers(tmp_path):
    model, config = load_run(NANO)
    model.save_pretrained(tmp_path)
    theirs, report = GPT2LMHeadModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    encoding = get_tokenizer()
    assert theirs.config.vocab_size == encoding.n_vocab, "the padding stays at home"
    assert GenerationConfig.from_pretrained(tmp_path).eos_token_id == encoding.eot_token
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    for text in (
        "To be, or not to be:\n  that's 12 questions",
        "Ünï 漢字 🎭 \u00a0\u200d\r\n\t  ",
        "<|endoftext",
    ):
        ids = encoding.encode_ordinary(text)
        assert tokenizer(text)["input_ids"] == ids and tokenizer.decode(ids) == text
    prompt = torch.tensor([encoding.encode_ordinary("ROMEO:\nBut soft,")])
    settings = dict(
        attention_mask=torch.ones_like(prompt), max_new_tokens=40, do_sample=False, eos_token_id=None
    )
    assert torch.equal(theirs.generate(prompt, pad_token_id=0, **settings), generate(model, prompt, 40, 0))
    assert all(path.stat().st_mode & 0o600 == 0o600 for path in tmp_path.iterdir())
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1, (
        "the weights are as readable as the rest"
    )


def test_tokenizer_files_are_openais():
    """The checksums of `vocab.json` and `merges.txt` in huggingface.co/openai-community/gpt2."""
    for text, sha256 in [
        (
            json.dumps(gpt2lib.pretrained._vocabulary("gpt2")),
            "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
        ),
        (
            gpt2lib.pretrained._merges("gpt2"),
            "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
        ),
    ]:
        assert hashlib.sha256(text.encode()).hexdigest() == sha256


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run of `gpt2 train` that has learnt a little."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text("\n".join(f"line {i}: she sells {i % 7} shells" for i in range(400)))
    words = (
        "--preset nano --n-layer 2 --n-embd 32 --n-head 4 --block-size 32 --batch-size 8 --tokenizer bytes"
    )
    main(
        f"train --corpus {folder}/text.txt --out {folder}/run --max-steps 40 --warmup-steps 5 {words}".split()
    )
    return folder / "run"


def test_trained_model_writes_the_same_in_transformers_and_back(trained, tmp_path):
    model, config = load_run(trained)
    prompt = torch.tensor([get_tokenizer("bytes").encode_ordinary("line 1")])
    settings = dict(
        attention_mask=torch.ones_like(prompt), max_new_tokens=26, do_sample=False, pad_token_id=0
    )
    written = generate(model, prompt, 26, temperature=0, n_tokens=257)
    model.save_pretrained(tmp_path / "out", tokenizer="bytes")
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path / "out").eval()
    assert torch.equal(theirs.generate(prompt, eos_token_id=None, **settings), written)

    optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-2)  # and the other way round: theirs learns on
    for _ in range(5):
        theirs(prompt, labels=prompt).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    theirs.eval().save_pretrained(tmp_path / "back")
    back = GPT.from_pretrained(tmp_path / "back")
    again = theirs.generate(prompt, eos_token_id=None, **settings)
    assert torch.equal(generate(back, prompt, 26, temperature=0, n_tokens=257), again)
    assert not torch.equal(again, written), "it has changed"


def test_a_compiled_model_is_saved_under_the_same_names(tmp_path):
    model = GPT(GPTConfig(8, 50, 1, 2, 12))
    gpt2lib.pretrained.save_pretrained(torch.compile(model), tmp_path, tokenizer=None)
    assert_same_weights(GPT.from_pretrained(tmp_path), model)


def test_convert_turns_each_form_into_each(trained, tmp_path):
    expected, _ = load_run(trained)
    forms = {"file": tmp_path / "a.safetensors", "folder": tmp_path / "folder", "run": tmp_path / "run"}
    sources = [trained, forms["file"], forms["folder"], forms["run"]]
    for source in sources:
        for kind, target in forms.items():
            again = target.with_name(f"{len(list(tmp_path.iterdir()))}-{target.name}")
            main(
                [
                    "convert",
                    "--checkpoint",
                    str(source),
                    "--out",
                    str(again),
                    *["--run-directory"] * (kind == "run"),
                ]
            )
            assert_same_weights(GPT.from_pretrained(again), expected)
            assert tokenizer_of(again) == "bytes"
            if not target.exists():
                again.rename(target)
    model, config = load_run(forms["run"])
    assert_same_weights(model, expected)
    with safe_open(forms["file"], framework="pt") as file:
        assert json.loads(file.metadata()["config"])["model_type"] == "gpt2"
    text = str(trained.parent / "text.txt")
    results = [evaluate_run(place, text)["loss"] for place in sources]
    assert max(results) - min(results) < 1e-6


def test_the_command_line_writes_the_same_text_from_each_form(tmp_path, capsys):
    convert(NANO, tmp_path / "folder")
    convert(NANO, tmp_path / "one.safetensors")
    texts = []
    for source in (NANO, tmp_path / "folder", tmp_path / "one.safetensors"):
        main(
            [
                "generate",
                "--checkpoint",
                str(source),
                "--prompt",
                "ROMEO:",
                "--max-new-tokens",
                "9",
                "--seed",
                "3",
            ]
        )
        texts.append(capsys.readouterr().out)
    assert texts[0].startswith("ROMEO:") and len(texts[0]) > 12 and len(set(texts)) == 1


def test_convert_keeps_what_it_does_not_understand_and_refuses_the_rest(tmp_path, capsys):
    make_theirs(tmp_path / "tuned", vocab_size=50260, n_layer=1)
    text = convert(tmp_path / "tuned", tmp_path / "tuned.safetensors")
    assert "50,260 of 50,260 rows" in text and "tokenizer None" in text
    text = convert(NANO, tmp_path / "nano.safetensors")
    assert "50,257 of 50,304 rows" in text and "tokenizer 'gpt2'" in text
    make_theirs(
        tmp_path / "more", vocab_size=50260, n_layer=1
    )  # GPT-2's tokenizer, and three tokens of its own
    (tmp_path / "more" / "vocab.json").write_text(json.dumps(gpt2lib.pretrained._vocabulary("gpt2")))
    assert "50,260 of 50,260 rows" in convert(tmp_path / "more", tmp_path / "more.safetensors")
    for source, target, run, words in [
        (tmp_path / "tuned", tmp_path / "run", True, "a vocabulary of 50260 that is neither"),
        (tmp_path / "nano.safetensors", tmp_path / "tuned", True, "stands there already"),
        (tmp_path / "tuned", NANO, False, "is a run directory"),
    ]:
        with pytest.raises(ValueError, match=words):
            convert(source, target, run)
    with contextlib.suppress(SystemExit):
        main(["convert", "--checkpoint", str(tmp_path / "nowhere"), "--out", str(tmp_path / "x")])
    assert "gpt2: " in capsys.readouterr().err and not (tmp_path / "x").exists()


def test_generate_hands_on_every_setting(tmp_path, monkeypatch, capsys):
    given = {}

    def spy(model, **settings):
        int8 = any(isinstance(layer, Int8Linear) for layer in model.modules())
        given.update(settings, int8=int8)
        return iter(["!"])

    monkeypatch.setattr("gpt2lib.cli.stream_text", spy)
    words = "--max-new-tokens 7 --temperature 0.5 --top-k 3 --top-p 0.4 --min-p 0.1 --repetition-penalty 1.2 --stop A B"
    main(f"generate --prompt Hi {words} --past-block-size stop --seed 9 --int8".split())
    assert capsys.readouterr().out == "Hi!\n"
    assert given == dict(
        prompt="Hi", max_new_tokens=7, temperature=0.5, top_k=3, top_p=0.4, min_p=0.1, repetition_penalty=1.2,
        stop=("A", "B"), past_block_size="stop", seed=9, tokenizer="gpt2", int8=True,
    )  # fmt: skip
    GPT(GPTConfig(8, 257, 1, 2, 12)).save_pretrained(tmp_path / "bytes", tokenizer="bytes")
    main(["generate", "--checkpoint", str(tmp_path / "bytes")])
    assert (given["tokenizer"], given["int8"], given["prompt"]) == ("bytes", False, "")
    GPT(GPTConfig(8, 50, 1, 2, 12)).save_pretrained(tmp_path / "other", tokenizer=None)
    with pytest.raises(SystemExit):
        main(["generate", "--checkpoint", str(tmp_path / "other")])
    assert "neither 'gpt2' nor 'bytes'" in capsys.readouterr().err
