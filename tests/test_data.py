"""Any corpus becomes shards: whole, the same each time, in little memory; and a loader reads them as one row."""

import contextlib
import gzip
import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gpt2lib.prepare as prepare_module
from gpt2lib import DataLoaderLite, TrainConfig, get_tokenizer, load_corpus, train
from gpt2lib.data import HEADER_BYTES, TINY_SHA256, TINY_URL, TokenRow, open_shard, read_header, write_shard
from gpt2lib.evaluate import evaluate_run
from gpt2lib.prepare import BLOCK, PrepareConfig, cut_text, prepare
from gpt2lib.tokenizer import END_OF_TEXT

encoding = get_tokenizer()


@pytest.fixture(scope="session")
def documents() -> list[str]:
    """Short ones, blank ones, one with the text of a special token, one longer than a megabyte, others not in ASCII."""
    paragraphs = "".join(load_corpus().train[:3]).split("\n\n")
    scenes = ["\n\n".join(paragraphs[i : i + 8]) for i in range(0, 2400, 8)]
    long = "".join(scenes) * (2 * BLOCK // len("".join(scenes)) + 1)
    odd = [
        "Élégie: 漢字 and 🎭, don't\r\n\r\n  \t",
        "\ufeffa mark at the start",
        "x",
        "  blanks around it \n",
        "copy",
        "copy",
    ]
    return [*scenes[:150], long, *odd, *scenes[150:]]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def shards(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in files(folder).items() if name.endswith(".bin")}


def row(folder: Path, split: str, tokenizer: str = "gpt2") -> list[int]:
    return np.asarray(load_corpus(folder).tokens(split, tokenizer)).tolist()


def texts(folder: Path, split: str) -> list[str]:
    """The documents of a prepared folder, decoded."""
    return encoding.decode(row(folder, split)).split(END_OF_TEXT)[1:]


def lines(documents: list[str], field: str = "text") -> bytes:
    return "".join(json.dumps({"id": i, field: d}) + "\n" for i, d in enumerate(documents)).encode()


def write_kind(kind: str, documents: list[str], folder: Path) -> Path:
    """A file of `kind` with the documents, the blank ones among them."""
    path = folder / f"corpus.{kind}"
    with_blanks = ["", *documents[:3], " \n", *documents[3:]]
    if kind == "parquet":
        import pyarrow
        import pyarrow.parquet

        table = pyarrow.table({"id": range(len(with_blanks)), "text": with_blanks})
        pyarrow.parquet.write_table(table, path, row_group_size=100)
        return path
    data = END_OF_TEXT.join(with_blanks).encode() if kind.startswith("txt") else lines(with_blanks)
    if kind.endswith(".gz"):
        half = len(data) // 2
        data = gzip.compress(data[:half]) + gzip.compress(
            data[half:]
        )  # two members, as `cat a.gz b.gz` gives
    elif kind.endswith(".zst"):
        import zstandard

        half = len(data) // 2
        data = zstandard.compress(data[:half]) + zstandard.compress(data[half:])
    path.write_bytes(data)
    return path


def hub(monkeypatch, *paths: Path) -> str:
    """Let the name of a Hugging Face data set stand for local files, streamed by the real `datasets`."""
    import datasets

    load = datasets.load_dataset

    def local(name: str, subset: str | None, split: str, streaming: bool):
        assert (name, subset, split, streaming) == ("owner/name", None, "train", True)
        return load("json", data_files=[str(path) for path in paths], split=split, streaming=True)

    monkeypatch.setattr(datasets, "load_dataset", local)
    return "owner/name"


KINDS = ("txt", "txt.gz", "txt.zst", "jsonl", "jsonl.gz", "jsonl.zst", "parquet")


# --- every kind of source gives the tokens of the same documents


@pytest.fixture(scope="session")
def reference(documents, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("reference")
    return prepare(settings_for(write_kind("txt", documents, folder), folder / "out"), progress=False)


def settings_for(corpus: Path | str, out: Path, **changes) -> PrepareConfig:
    return PrepareConfig(
        str(corpus), str(out), **{"shard_tokens": 20_000, "validation_share": 0.1, **changes}
    )


def test_every_document_is_there_once_in_order_and_whole(documents, reference):
    held_out, trained = texts(reference, "validation"), texts(reference, "train")
    remaining = {"train": iter(trained), "validation": iter(held_out)}
    following = {split: next(rest) for split, rest in remaining.items()}
    for document in documents:
        split = next(split for split in following if following[split] == document)
        following[split] = next(remaining[split], None)
    assert following == {"train": None, "validation": None}
    assert 0.03 < len(held_out) / len(documents) < 0.3
    assert trained[0] == documents[0] and len(shards(reference)) >= 8


def test_the_ids_are_those_of_the_tokenizer(documents, reference):
    for split in ("train", "validation"):
        expected = []
        for text in texts(reference, split):
            expected += [encoding.eot_token, *encoding.encode_ordinary(text)]
        assert row(reference, split) == expected


@pytest.mark.parametrize("kind", KINDS[1:])
def test_every_kind_of_file_gives_the_same_bytes(kind, documents, reference, tmp_path):
    out = prepare(settings_for(write_kind(kind, documents, tmp_path), tmp_path / "out"), progress=False)
    assert shards(out) == shards(reference)


def test_a_hugging_face_data_set_gives_the_same_tokens(documents, reference, tmp_path, monkeypatch):
    name = hub(monkeypatch, write_kind("jsonl", documents, tmp_path))
    out = prepare(settings_for(name, tmp_path / "out"), progress=False)
    assert row(out, "train") == row(reference, "train") and row(out, "validation") == row(
        reference, "validation"
    )


def test_a_folder_is_its_files_in_the_order_of_their_names(documents, reference, tmp_path):
    folder = tmp_path / "corpus"
    (folder / "b" / "c").mkdir(parents=True)
    (folder / "a.jsonl").write_bytes(lines(documents[:40]))
    (folder / "b" / "c" / "1.txt").write_text(
        END_OF_TEXT.join(documents[40:200]), encoding="utf-8", newline=""
    )
    (folder / "b" / "d.txt.gz").write_bytes(gzip.compress(END_OF_TEXT.join(documents[200:]).encode()))
    (folder / ".hidden.txt").write_text("not this")
    (folder / "notes.md").write_text("nor this")
    out = prepare(settings_for(folder, tmp_path / "out"), progress=False)
    assert row(out, "train") == row(reference, "train") and row(out, "validation") == row(
        reference, "validation"
    )


@pytest.mark.parametrize("tokenizer", ["gpt2", "bytes"])
def test_a_corpus_by_name_keeps_the_works_that_it_holds_out(tmp_path, tokenizer):
    out = prepare(PrepareConfig("shakespeare", str(tmp_path / "out"), tokenizer=tokenizer), progress=False)
    for split in ("train", "validation"):
        assert np.array_equal(
            load_corpus(out).tokens(split, tokenizer), load_corpus().tokens(split, tokenizer)
        )


def test_a_text_without_documents_has_its_end_held_out(tmp_path):
    text = load_corpus().train[0]
    (tmp_path / "play.txt").write_text(text, encoding="utf-8")
    out = prepare(settings_for(tmp_path / "play.txt", tmp_path / "out"), progress=False)
    trained, held_out = row(out, "train"), row(out, "validation")
    assert trained + held_out[1:] == [encoding.eot_token, *encoding.encode_ordinary(text)]
    assert held_out[0] == encoding.eot_token and 0.09 < len(held_out) / len(trained) < 0.12


def test_copies_of_a_document_land_on_the_same_side(tmp_path):
    (tmp_path / "c.jsonl").write_bytes(lines([f"text {i % 40}" for i in range(1, 400)]))
    out = prepare(settings_for(tmp_path / "c.jsonl", tmp_path / "out"), progress=False)
    held_out, trained = texts(out, "validation"), texts(out, "train")
    assert held_out and not set(held_out) & set(trained[1:])  # the very first document is always trained on


def test_the_first_document_is_always_trained_on(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_module, "_held_out", lambda text, share: True)
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.txt").write_bytes(b"")
    (tmp_path / "corpus" / "b.jsonl").write_bytes(lines(["", "first", "second", "third"]))
    out = prepare(settings_for(tmp_path / "corpus", tmp_path / "out"), progress=False)
    assert (texts(out, "train"), texts(out, "validation")) == (["first"], ["second", "third"])


@settings(deadline=None, max_examples=200)
@given(st.text(alphabet="ab1 .'sé漢\n\t\u3000\x1c", max_size=60))
def test_a_text_cut_into_pieces_has_the_tokens_of_the_whole(text):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare_module, "BLOCK", 12)
        pieces = cut_text(text)
    assert "".join(pieces) == text and all(len(piece) <= 12 for piece in pieces)
    if all(not a[-1].isspace() and b[0] in " \n" for a, b in itertools.pairwise(pieces)):
        assert sum(map(encoding.encode_ordinary, pieces), []) == encoding.encode_ordinary(text)


def test_prose_is_cut_before_a_blank(documents):
    text = "".join(documents[:20])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare_module, "BLOCK", 100)
        pieces = cut_text(text)
    assert len(pieces) > len(text) // 100 and "".join(pieces) == text
    assert all(not a[-1].isspace() and b[0] in " \n" for a, b in itertools.pairwise(pieces))
    assert sum(map(encoding.encode_ordinary, pieces), []) == encoding.encode_ordinary(text)


def test_a_separator_or_a_character_at_the_border_of_a_block_is_not_lost(tmp_path):
    for shift in range(24):
        text = (
            "é" * 3 + "a " * (BLOCK // 2 - 10) + "b" * shift + END_OF_TEXT + "漢字" * 4 + END_OF_TEXT + "end"
        )
        (tmp_path / "c.txt").write_text(text, encoding="utf-8")
        read = [*prepare_module._read_text(tmp_path / "c.txt", "c.txt", "text")]
        assert [sum(piece.begins for piece in read), "".join(piece.text for piece in read)] == [
            3,
            text.replace(END_OF_TEXT, ""),
        ]


def test_a_separator_is_not_cut_where_there_is_no_blank(tmp_path):
    text = (
        "b" * (BLOCK - 5) + " bbbb" + "b" * (BLOCK - 8) + END_OF_TEXT + "end"
    )  # 8 of its characters in the second block
    (tmp_path / "c.txt").write_text(text, encoding="utf-8")
    read = [*prepare_module._read_text(tmp_path / "c.txt", "c.txt", "text")]
    assert [piece.text for piece in read if piece.begins][1:] == ["end"]


def test_text_that_looks_like_a_special_token_or_is_half_a_character_is_text(tmp_path):
    (tmp_path / "c.jsonl").write_bytes(lines([f"a {END_OF_TEXT} b", "half \ud83c of a pair", "c"]))
    out = prepare(settings_for(tmp_path / "c.jsonl", tmp_path / "out", validation_share=1e-9), progress=False)
    ids = row(out, "train") + row(out, "validation")[1:]
    expected = []
    for text in (f"a {END_OF_TEXT} b", "half \ud83c of a pair", "c"):
        expected += [encoding.eot_token, *encoding.encode_ordinary(text)]
    assert ids == expected


# --- killed, resumed, damaged, in parallel: the same bytes

KILL = """
import json, os, random, signal, sys, time
from gpt2lib.prepare import PrepareConfig, prepare

config, seconds, rng, killed, done = json.loads(sys.argv[1]), 0, random.Random(7), 0, False


def start(out):
    child = os.fork()
    if child == 0:
        try:
            prepare(PrepareConfig(**config, out=out), progress=False)
        except BaseException as error:
            print(repr(error), *os.listdir(out), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return child


begin = time.monotonic()
assert os.waitpid(start(sys.argv[2]), 0)[1] == 0
seconds = time.monotonic() - begin
while not done:
    child = start(sys.argv[3])
    if killed < 40:
        time.sleep(rng.uniform(0, seconds / 4))
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    killed, done = killed + (status == signal.SIGKILL), status == 0
    assert done or status == signal.SIGKILL
print(killed)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")
@pytest.mark.parametrize("kind", ["txt", "jsonl.gz", "parquet"])
def test_killed_at_any_instant_it_ends_with_the_same_bytes(kind, documents, tmp_path):
    config = {"corpus": str(write_kind(kind, documents[:150], tmp_path)), "shard_tokens": 2000}
    (tmp_path / "kill.py").write_text(KILL)
    words = [
        sys.executable,
        tmp_path / "kill.py",
        json.dumps(config),
        tmp_path / "whole",
        tmp_path / "killed",
    ]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 5
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    assert {"manifest.json", "train_00009.bin"} < files(tmp_path / "whole").keys()


@pytest.mark.parametrize(
    "left", ["progress.json.tmp", "train_00000.bin.tmp", "train_00000.bin", "validation_00000.bin"]
)
def test_killed_before_the_first_part_was_finished_it_begins_again(documents, tmp_path, left):
    config = settings_for(write_kind("txt", documents[:20], tmp_path), tmp_path / "out")
    whole = files(prepare(settings_for(config.corpus, tmp_path / "whole"), progress=False))
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 0)
        with pytest.raises(OSError):
            prepare(config, progress=False)
    if left == "progress.json.tmp":
        Path(config.out, "progress.json").unlink()
    Path(config.out, left).write_bytes(b"half")
    prepare(config, progress=False)
    assert files(config.out) == whole


def test_a_streamed_data_set_goes_on_where_it_was(documents, tmp_path, monkeypatch):
    halves = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    halves[0].write_bytes(lines(documents[:100]))
    halves[1].write_bytes(lines(documents[100:150]))
    config = settings_for(hub(monkeypatch, *halves), tmp_path / "out", shard_tokens=1000)
    whole = prepare(settings_for(config.corpus, tmp_path / "whole", shard_tokens=1000), progress=False)
    with monkeypatch.context() as patch:
        stop_after(patch, 15)
        with pytest.raises(OSError):
            prepare(config, progress=False)
    read = []
    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "_held_out", lambda text, share, old=prepare_module._held_out: read.append(text) or old(text, share))  # fmt: skip
        prepare(config, progress=False)
    assert files(config.out) == files(whole)
    assert 0 < len(read) < 120  # it did not begin again


def test_a_stream_that_breaks_off_says_where(documents, tmp_path, monkeypatch):
    name = hub(monkeypatch, tmp_path / "a.jsonl")
    (tmp_path / "a.jsonl").write_bytes(lines(documents[:30]) + b"{")  # an error from deep inside of datasets
    with pytest.raises(OSError, match=r"owner/name broke off after row \d+ .*goes on from there"):
        prepare(settings_for(name, tmp_path / "out"), progress=False)


def test_ctrl_c_ends_in_one_line_and_leaves_whole_shards(documents, tmp_path):
    (tmp_path / "c.txt").write_text(END_OF_TEXT.join(documents * 20), encoding="utf-8", newline="")
    command = [
        sys.executable,
        "-m",
        "gpt2lib",
        *"data prepare --corpus c.txt --out out --shard-tokens 3000".split(),
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # a shell's background job ignores it
    )
    while process.poll() is None and not (tmp_path / "out" / "train_00002.bin").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1].splitlines()[-1] == "gpt2: stopped"
    assert process.returncode == 130
    assert "manifest.json" not in files(tmp_path / "out")
    assert all(read_header(tmp_path / "out" / name) for name in shards(tmp_path / "out"))


def stop_after(patch: pytest.MonkeyPatch, writes: int) -> None:
    """Let the disk be full after that many writes."""
    left, write = iter(range(writes)), prepare_module.ShardWriter.write

    def full(self, tokens):
        if next(left, None) is None:
            raise OSError(28, "No space left on device")
        write(self, tokens)

    patch.setattr(prepare_module.ShardWriter, "write", full)


def test_a_file_gets_its_name_when_it_is_on_the_disk_and_not_before(documents, tmp_path, monkeypatch):
    config, calls = settings_for(write_kind("txt", documents[:20], tmp_path), tmp_path / "out"), []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: calls.append("fsync") or sync(file))
    monkeypatch.setattr(os, "replace", lambda a, b: calls.append(Path(b).name) or replace(a, b))
    prepare(config, progress=False)
    names = ["progress.json", "train_00000.bin", "validation_00000.bin", "progress.json", "manifest.json"]
    assert calls == [
        call for name in names for call in ("fsync", name, "fsync")
    ]  # the file, its name, the folder

    def fail(a, b):
        if str(b).endswith(".bin"):
            raise OSError("killed here")
        replace(a, b)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="killed here"):
        prepare(settings_for(config.corpus, tmp_path / "other"), progress=False)
    assert files(tmp_path / "other").keys() == {"progress.json"}


def test_a_full_disk_loses_nothing_that_was_finished(documents, tmp_path, monkeypatch):
    source = write_kind("txt", documents[:100], tmp_path)
    whole = prepare(settings_for(source, tmp_path / "whole", shard_tokens=1000), progress=False)
    config = settings_for(source, tmp_path / "out", shard_tokens=1000)
    with monkeypatch.context() as patch:
        stop_after(patch, 15)
        with pytest.raises(OSError, match="No space left"):
            prepare(config, progress=False)
    left = files(config.out)
    assert shards(config.out).items() < shards(whole).items() and len(left) > 3
    assert not [name for name in left if name.endswith(".tmp")]
    prepare(config, progress=False)
    assert files(config.out) == files(whole)


def test_the_number_of_threads_does_not_show(documents, reference, tmp_path):
    source = write_kind("txt", documents, tmp_path)
    for workers in (1, 3):
        out = prepare(settings_for(source, tmp_path / f"{workers}", workers=workers), progress=False)
        assert shards(out) == shards(reference)


def test_a_script_without_a_main_guard_runs_once(tmp_path):
    (tmp_path / "c.txt").write_text("To be, or not to be.\n" * 500)
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing\nfrom gpt2lib.prepare import PrepareConfig, prepare\n"
        "multiprocessing.set_start_method('spawn')\nprint('begin')\n"
        "print(prepare(PrepareConfig('c.txt', 'out', shard_tokens=500, workers=4)))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=120, env=environment)  # fmt: skip
    assert (done.returncode, done.stdout.split()) == (0, ["begin", "out"]), done.stderr


@pytest.fixture
def prepared(documents, tmp_path) -> PrepareConfig:
    config = settings_for(write_kind("txt", documents[:100], tmp_path), tmp_path / "out", shard_tokens=3000)
    prepare(config, progress=False)
    return config


def test_a_finished_folder_is_left_as_it_is(prepared):
    before = {path: path.stat().st_mtime_ns for path in Path(prepared.out).iterdir()}
    prepare(prepared, progress=False)
    assert {path: path.stat().st_mtime_ns for path in Path(prepared.out).iterdir()} == before


@pytest.mark.parametrize("damage", ["flipped", "cut", "missing", "swapped"])
def test_a_damaged_shard_is_made_again(prepared, damage):
    whole, path = files(prepared.out), Path(prepared.out, "train_00003.bin")
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[1000] ^= 4
    elif damage == "cut":
        data = data[:-2]
    elif damage == "swapped":
        data = Path(prepared.out, "train_00004.bin").read_bytes()
    path.unlink() if damage == "missing" else path.write_bytes(data)
    if damage != "flipped":  # which only a look at every byte finds
        with pytest.raises((ValueError, FileNotFoundError), match="train_00003.bin"):
            load_corpus(prepared.out).tokens("train")
    prepare(prepared, progress=False)
    assert files(prepared.out) == whole


def test_other_settings_or_another_source_are_refused(prepared, tmp_path):
    for field, value in (("shard_tokens", 4000), ("validation_share", 0.2), ("tokenizer", "bytes")):
        with pytest.raises(ValueError, match=f"{field} was .*, now .*--out"):
            prepare(PrepareConfig(**{**vars(prepared), field: value}), progress=False)
    with open(prepared.corpus, "a") as file:
        file.write("more")
    with pytest.raises(ValueError, match="files was .*, now"):
        prepare(prepared, progress=False)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds other files"):
        prepare(settings_for(prepared.corpus, tmp_path / "full"), progress=False)
    assert files(tmp_path / "full") == {"thesis.txt": b"mine"}


def test_a_second_process_on_the_same_folder_is_refused(prepared):
    pytest.importorskip("fcntl")
    with prepare_module._alone(Path(prepared.out)), pytest.raises(ValueError, match="another process"):
        prepare(prepared, progress=False)
    prepare(prepared, progress=False)


# --- sources that cannot be read say what is wrong, and where


SOURCES = [
    (
        "c.txt",
        b"a " * BLOCK + "Élégie".encode("latin-1"),
        f"c.txt is not UTF-8: byte 0xc9 at offset {2 * BLOCK}",
    ),
    ("c.txt", "漢".encode() * BLOCK + "漢".encode()[:2], f"not UTF-8: byte 0xe6 at offset {3 * BLOCK}"),
    ("c.txt", b" \n\n", "c.txt holds no text"),
    ("c.jsonl", b"", "c.jsonl holds no text"),
    ("c.jsonl", lines(["a", "b"]) + b'{"text": "c', "c.jsonl, line 3: not a JSON object"),
    ("c.jsonl", lines(["a"]) + b'{"text": "\xe9"}\n', "c.jsonl, line 2: not a JSON object in UTF-8"),
    (
        "c.jsonl",
        lines(["a"]) + b'\n{"body": "b"}\n',
        "line 3: no text in the field 'text'; the fields are body",
    ),
    ("c.jsonl", b'["a"]\n', "line 1: no text in the field 'text'; the fields are none"),
    ("c.jsonl", b'{"text": null}\n', "line 1: no text in the field 'text'"),
    ("c.jsonl", b"[" * 200_000, "c.jsonl, line 1: not a JSON object"),
    ("c.jsonl.gz", gzip.compress(lines(["a"] * 999))[:-9], "c.jsonl.gz is damaged or cut off"),
    ("c.jsonl.gz", lines(["a"]), "c.jsonl.gz is damaged or cut off"),
    ("c.txt.zst", b"a text", "c.txt.zst is damaged or cut off"),
    ("c.parquet", b"a text", "c.parquet is damaged, or no parquet file"),
]


@pytest.mark.parametrize(("name", "data", "says"), SOURCES, ids=[says for *_, says in SOURCES])
def test_a_bad_source_is_one_sentence_that_names_the_place(name, data, says, tmp_path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=re.escape(says)) as error:
        prepare(settings_for(tmp_path / name, tmp_path / "out"), progress=False)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_cut_off_zstd_file_is_noticed(tmp_path):
    import zstandard

    (tmp_path / "c.jsonl.zst").write_bytes(zstandard.compress(lines(["a b c"] * 999))[:-3])
    with pytest.raises(ValueError, match="c.jsonl.zst is damaged or cut off"):
        prepare(settings_for(tmp_path / "c.jsonl.zst", tmp_path / "out"), progress=False)


def test_a_table_without_that_column_says_which_it_has(documents, tmp_path):
    source = write_kind("parquet", documents[:5], tmp_path)
    with pytest.raises(ValueError, match="no text in the field 'body'; the fields are id, text"):
        prepare(settings_for(source, tmp_path / "out", text_field="body"), progress=False)


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file, no folder, and no name"):
        prepare(PrepareConfig(tmp_path / "nowhere", tmp_path / "out"), progress=False)
    with pytest.raises(FileNotFoundError, match="no file, no folder, and no name"):
        prepare(settings_for(tmp_path / "nowhere.txt", tmp_path / "out"), progress=False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no file that ends in .txt, .jsonl"):
        prepare(settings_for(tmp_path / "empty", tmp_path / "out"), progress=False)
    with pytest.raises(FileNotFoundError, match="gpt2 data prepare"):
        load_corpus(tmp_path / "empty")


def test_without_a_connection_the_command_ends_in_one_sentence(tmp_path):
    words = "data prepare --corpus HuggingFaceFW/fineweb-edu --subset sample-10BT --out out".split()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}  # fmt: skip
    command = [sys.executable, "-m", "gpt2lib", *words]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert re.fullmatch(r"gpt2: could not open the Hugging Face data set .*give their folder\n", done.stderr)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "changes", [{"validation_share": 0}, {"validation_share": 1}, {"shard_tokens": 0}, {"workers": 0}, {"tokenizer": "x"}]
)  # fmt: skip
def test_settings_out_of_range_are_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        PrepareConfig("a", "b", **changes)


# --- shards


@settings(deadline=None, max_examples=50)
@given(st.binary(min_size=1, max_size=40).filter(lambda b: any(b)), st.integers(0, HEADER_BYTES - 1))
def test_a_damaged_header_is_refused(tmp_path_factory, noise, at):
    path = tmp_path_factory.mktemp("shard") / "s.bin"
    write_shard(path, np.arange(1000))
    data, before = bytearray(path.read_bytes()), read_header(path)
    for i, byte in enumerate(noise[: HEADER_BYTES - at]):
        data[at + i] ^= byte
    if data == path.read_bytes():
        return
    path.write_bytes(data)
    with contextlib.suppress(ValueError):
        after = read_header(
            path
        )  # a digit of the checksum or a letter of the tokenizer: the manifest has them too
        changed = [name for name in before if after[name] != before[name]]
        assert set(changed) <= {"sha256", "tokenizer"} and changed


def test_a_shard_without_a_header_or_cut_off_is_refused(tmp_path):
    path = tmp_path / "s.bin"
    np.arange(1000, dtype=np.uint16).tofile(path)
    with pytest.raises(ValueError, match="does not begin with the header of a shard"):
        open_shard(path)
    write_shard(path, np.arange(1000))
    assert np.array_equal(open_shard(path), np.arange(1000)) and path.stat().st_size == HEADER_BYTES + 2000
    for size in (0, 1, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + 1998, HEADER_BYTES + 1999):
        (tmp_path / "cut.bin").write_bytes(path.read_bytes()[:size])
        with pytest.raises(ValueError, match="cut.bin"):
            open_shard(tmp_path / "cut.bin")
    (tmp_path / "long.bin").write_bytes(path.read_bytes() + b"\0\0")
    with pytest.raises(ValueError, match="long.bin has 2258 bytes; with 1000 tokens it should have 2256"):
        open_shard(tmp_path / "long.bin")
    with pytest.raises(FileNotFoundError, match="no shard"):
        open_shard(tmp_path / "none.bin")


@pytest.mark.parametrize(
    ("tokens", "tokenizer"),
    [([50257], "gpt2"), ([65536], "gpt2"), ([-1], "gpt2"), ([257], "bytes"), ([0.5], "gpt2"), ([], "gpt2"), ([[1]], "gpt2")],
)  # fmt: skip
def test_ids_that_are_none_are_refused_and_leave_no_file(tmp_path, tokens, tokenizer):
    with pytest.raises(ValueError):
        write_shard(tmp_path / "s.bin", np.array(tokens), tokenizer)
    assert files(tmp_path) == {}


def test_a_shard_that_does_not_fit_on_the_disk_leaves_no_file(tmp_path, monkeypatch):
    stop_after(monkeypatch, 0)
    with pytest.raises(OSError, match="No space left"):
        write_shard(tmp_path / "s.bin", np.arange(9))
    assert files(tmp_path) == {}


def test_a_row_of_shards_is_the_row():
    whole = np.arange(100, dtype=np.uint16)
    parts = TokenRow([whole[:37], whole[37:38], whole[38:90], whole[90:]])
    assert len(parts) == 100 and parts.shape == (100,) and np.array_equal(np.asarray(parts), whole)
    for start in range(0, 101, 3):
        for stop in range(0, 105, 4):
            assert np.array_equal(parts[start:stop], whole[start:stop])
    assert np.array_equal(parts[-12:-5], whole[-12:-5]) and parts[-1] == 99 and parts[37] == 37
    assert list(parts) == list(whole)
    assert np.shares_memory(parts[40:60], whole)  # nothing is copied within a shard
    with pytest.raises(IndexError):
        parts[100]
    for use in (
        lambda a: a[a != 7],
        lambda a: a[::3],
        lambda a: a + 1,
        lambda a: np.bincount(a),
        lambda a: a[[3, 40]],
    ):
        assert np.array_equal(use(parts), use(whole))


# --- the loader reads them


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_any_world_size_sees_each_window_once_an_epoch_across_shard_borders(prepared, world_size):
    tokens, T, B = load_corpus(prepared.out).tokens("train"), 48, 3
    borders = tokens.ends[:-1]
    ranks = [DataLoaderLite(tokens, B, T, rank, world_size) for rank in range(world_size)]
    in_memory = [DataLoaderLite(np.asarray(tokens), B, T, rank, world_size) for rank in range(world_size)]
    n = ranks[0].n_windows
    assert len(borders) > 5 and len(tokens.shards[-1]) != len(tokens.shards[0])
    assert {border // T for border in borders if border % T} <= set(
        range(n + 1)
    )  # windows that cross a border
    read = []
    for step in range(math.ceil(2 * n / (B * world_size))):
        for loader, other in zip(ranks, in_memory, strict=True):
            read += loader.windows_at(step)
            assert all(
                torch.equal(a, b) for a, b in zip(loader.batch_at(step), other.batch_at(step), strict=True)
            )
    assert sorted(read[:n]) == sorted(read[n : 2 * n]) == list(range(n)) and read[:n] != read[n : 2 * n]


def test_a_last_shard_of_one_token_is_read():
    whole = np.arange(41, dtype=np.uint16)
    loader = DataLoaderLite(TokenRow([whole[:20], whole[20:40], whole[40:]]), B=2, T=8)
    targets = np.concatenate([loader.batch_at(step)[1].ravel() for step in range(5)])
    assert loader.n_windows == 5 and set(targets[: 5 * 8].tolist()) == set(range(1, 41))


@pytest.mark.parametrize("n", [1, 2, 7, 1000, 70_000])
def test_the_order_of_an_epoch_is_the_permutation_of_numpy(n):
    for seed, epoch in ((1337, 0), (1337, 3), (7, 0)):
        loader = DataLoaderLite(np.zeros(n + 1, dtype=np.uint16), B=1, T=1, seed=seed)
        expected = np.random.default_rng([seed, epoch]).permutation(n)
        assert np.array_equal(loader.order(epoch), expected) and loader.order(epoch).itemsize == 4


def test_training_reads_a_prepared_folder_and_knows_it_again(tmp_path):
    text = load_corpus().train[0][:60_000].replace("\n\n", END_OF_TEXT)
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(text + name)
        prepare(
            settings_for(tmp_path / f"{name}.txt", tmp_path / name, tokenizer="bytes", shard_tokens=2000),
            progress=False,
        )
    corpus = load_corpus(tmp_path / "a")
    assert len(corpus.tokens("train", "bytes").shards) > 3

    def config(corpus: str, out: str, **changes) -> TrainConfig:
        small = dict(n_layer=1, n_head=2, n_embd=12, block_size=16, batch_size=3, max_steps=4, warmup_steps=1, device="cpu",
                     eval_interval=2, eval_tokens=64, sample_interval=0, checkpoint_interval=2, tokenizer="bytes")  # fmt: skip
        return TrainConfig(corpus=str(tmp_path / corpus), out=str(tmp_path / out), **{**small, **changes})

    run = train(config("a", "run"), on_line=lambda line: None)
    header, *_ = map(json.loads, (run / "ledger.jsonl").read_text().splitlines())
    assert header["corpus"] == {
        "name": "a.txt", "sha256": corpus.sha256, "train_tokens": len(corpus.tokens("train", "bytes")),
    }  # fmt: skip
    (tmp_path / "a").rename(tmp_path / "moved")
    train(config("moved", "run"), on_line=lambda line: None)
    with pytest.raises(ValueError, match="corpus_sha256 was"):
        train(config("b", "run"), on_line=lambda line: None)
    with pytest.raises(ValueError, match="prepared with the tokenizer 'bytes', not 'gpt2'"):
        train(config("b", "other", tokenizer="gpt2"), on_line=lambda line: None)
    result = evaluate_run(run, corpus=str(tmp_path / "b"), n_tokens=200)
    assert (result["corpus"], result["tokens"]) == ("b.txt", 200)
    with pytest.raises(ValueError, match="holds tokens and no text"):
        load_corpus(tmp_path / "b").train  # noqa: B018
    for damage in ("{", '{"parts": 3}'):
        (tmp_path / "b" / "manifest.json").write_text(damage)
        with pytest.raises(ValueError, match="manifest.json is damaged"):
            load_corpus(tmp_path / "b")


# --- memory

MEMORY = """
from pathlib import Path
from gpt2lib.prepare import PrepareConfig, prepare

prepare(PrepareConfig("small.txt", "warm", workers=1), progress=False)
for source in ("small.txt", "large.txt"):
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins again at what is used now
    status = Path("/proc/self/status").read_text
    used = int(status().split("VmRSS:")[1].split()[0])
    prepare(PrepareConfig(source, source + ".out", workers=1), progress=False)
    print(int(status().split("VmHWM:")[1].split()[0]) - used)
"""


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="measures peak memory as Linux counts it"
)
def test_memory_does_not_grow_with_the_corpus(tmp_path):
    text = load_corpus().train[0] * 40
    (tmp_path / "small.txt").write_text(text)
    (tmp_path / "large.txt").write_text(text * 4)
    (tmp_path / "memory.py").write_text(MEMORY)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "memory.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    small, large = map(int, done.stdout.split())  # KiB
    assert large < small + 10_000, done.stdout  # to hold all of it takes 30,000 more


# --- a file as it is


@settings(deadline=None, max_examples=150)
@given(st.lists(st.text("ab\n \r\0é", min_size=1, max_size=30).filter(str.strip), min_size=1, max_size=25))
def test_what_is_held_out_is_not_trained_on(tmp_path_factory, documents):
    path = tmp_path_factory.mktemp("corpus") / "c.txt"
    path.write_bytes(END_OF_TEXT.join([documents[0], " \n", *documents[1:]]).encode())
    corpus, n = load_corpus(path), len(documents)
    assert "".join(corpus.train + corpus.validation) == "".join(documents) and corpus.validation
    if n >= 10:
        assert corpus.validation == tuple(documents[n - n // 10 :])
    else:
        assert (
            0.4
            < (len("".join(corpus.train)) + 1) / len("".join(documents))
            <= 0.9001 + 1 / len("".join(documents))
        )


def test_what_is_downloaded_is_checked(tmp_path, monkeypatch):
    asked = []

    def retrieve(url, known_hash, path, progressbar):
        asked.append((url, known_hash))
        (tmp_path / "input.txt").write_text("To be\n" * 99)
        return str(tmp_path / "input.txt")

    monkeypatch.setattr("pooch.retrieve", retrieve)
    assert load_corpus("tinyshakespeare").name == "tinyshakespeare"
    assert asked == [(TINY_URL, f"sha256:{TINY_SHA256}")]
