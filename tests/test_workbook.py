"""The workbook edition asks for the pieces that the book prints, runs as it is, and ends in a model of the reader's own."""

import ast
import importlib
import inspect
import json
import re
import sys

import nbformat
import pytest
import torch
import workbook  # tools/workbook.py
from mistakes import RIGHT
from nbclient import NotebookClient
from set_address import address, site
from test_solutions import CALL, EXERCISES

from gpt2lib.capstone import assemble, certify, own_pieces, write
from gpt2lib.check import CHECKERS

PIECES = {  # what the reader writes in the place of the book's finished code
    name: checker.reference
    for name, checker in CHECKERS.items()
    if checker.reference.__module__.startswith("gpt2lib.") and checker.reference.__module__ != "gpt2lib.check"
}
MADE = {path.stem: workbook.workbook(nbformat.read(path, 4)) for path in workbook.CHAPTERS}
CHANGED = [stem for stem, made in MADE.items() if any(workbook.GO_ON in cell.source for cell in made.cells)]


def test_the_great_pieces_are_the_readers_to_write():
    great = {"CausalSelfAttention", "MLP", "Block", "GPT", "DataLoaderLite", "get_lr", "train_bpe"}
    assert great <= {piece.__qualname__ for piece in PIECES.values()}


@pytest.mark.parametrize("name", PIECES)
def test_a_piece_is_asked_for_where_the_book_prints_it(name):
    made = MADE[CHECKERS[name].chapter]
    code = [cell.source for cell in made.cells if cell.cell_type == "code"]
    calls = [source for source in code if re.match(rf"check\.{name}\(\w+\);", source)]
    assert len(calls) == 1
    stub, go_on = code[code.index(calls[0]) - 1], code[code.index(calls[0]) + 1]
    piece = PIECES[name].__qualname__
    assert "NotImplementedError" in stub and go_on.startswith(workbook.GO_ON)
    assert not any(re.search(rf"^(def|class) {piece}\b", source, re.M) for source in code)
    (line,) = ast.parse(go_on).body
    module = importlib.import_module(line.module)
    assert piece in {alias.name for alias in line.names} and all(hasattr(module, a.name) for a in line.names)


def test_nothing_else_changes():
    for path in workbook.CHAPTERS:
        before, after = nbformat.read(path, 4), MADE[path.stem]
        words = [
            " ".join(c.source for c in nb.cells if c.cell_type == "markdown").split()
            for nb in (before, after)
        ]
        note = workbook.NOTE.format(names="").split()
        assert len(words[1]) - len(words[0]) <= (len(note) + 20 if path.stem in CHANGED else 0)
        assert len({cell.id for cell in after.cells}) == len(after.cells)


def test_links_that_leave_the_folder_lead_to_the_site(tmp_path):
    assert workbook.onto_the_site("[a](../book/notation.md#heads)").endswith("/book/notation.html#heads)")
    assert workbook.onto_the_site("[a](02_attention.ipynb#break-it)") == "[a](02_attention.ipynb#break-it)"
    text = {
        path: "\n".join(c.source for c in nbformat.read(path, 4).cells if c.cell_type == "markdown")
        for path in workbook.write(tmp_path)
    }
    for path, words in text.items():
        for target in re.findall(r"\]\(([^)#\s]+\.(?:ipynb|md|png|html))", words):
            assert "://" in target or (tmp_path / target).is_file(), f"{path.name} links to {target}"
    assert f"({site(address())}notebooks/A2_check.html)" in text[tmp_path / "00_start.ipynb"]


@pytest.mark.parametrize("stem", CHANGED)
def test_a_workbook_runs_before_anything_is_written(stem, tmp_path, wheel_environment, monkeypatch):
    for key, value in wheel_environment.items():
        monkeypatch.setenv(key, value)
    kernel = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(MADE[stem], timeout=300, kernel_name="python3", resources=kernel).execute()


# The capstone


def source(name: str, i: int = 0) -> str:
    return inspect.getsource(RIGHT[name][i])


@pytest.fixture
def note(tmp_path):
    """A note of progress with all pieces that stand alone."""

    def make(sources: dict) -> str:
        path = tmp_path / "my_gpt2.json"
        path.write_text(json.dumps(sources), encoding="utf-8")
        return str(path)

    return make


def test_the_readers_pieces_become_a_model_that_writes_the_same(note):
    names = "attention mlp layer_norm block gpt encode decode temperature top_p draw".split()
    pieces, reasons = own_pieces(note({name: source(name) for name in names}))
    assert {"attention", "mlp", "temperature", "top_p", "draw"} <= pieces.keys(), reasons
    model, book = assemble(pieces), assemble({})
    assert type(model.transformer.h[0].attn) is pieces["attention"]
    idx = torch.randint(50257, (2, 31), generator=torch.Generator().manual_seed(0))  # (B, T)
    with torch.no_grad():
        assert torch.allclose(model(idx)[0], book(idx)[0], atol=1e-3)
    assert write(model, pieces, "ROMEO:\n", 30) == write(book, {}, "ROMEO:\n", 30)


def test_the_solutions_of_the_chapters_reach_the_capstone(note):
    """They call each other, and what the chapters import; together they are a model that writes as the book's does."""
    solutions = {}
    for stem, exercise in EXERCISES:
        if exercise.kind == "Build" and stem in MADE:
            name, mine = re.fullmatch(CALL, exercise.tagged("check")).groups()
            code = "\n".join(re.findall(r"```python\n(.*?)```", exercise.folded("Solution")[0], re.S))
            node = next(n for n in ast.parse(code).body if getattr(n, "name", None) == mine)
            solutions[name] = ast.get_source_segment(code, node)
    pieces, reasons = own_pieces(note(solutions))
    used = {
        "gpt",
        "block",
        "attention",
        "mlp",
        "layer_norm",
        "encode",
        "decode",
        "temperature",
        "top_p",
        "draw",
    }
    assert used <= pieces.keys(), reasons
    assert write(assemble(pieces), pieces, "ROMEO:\n", 30) == write(assemble({}), {}, "ROMEO:\n", 30)


def test_what_does_not_pass_is_left_out_and_said(note):
    wrong = "def my_gelu(x):\n    return torch.relu(x)\n"
    needs = "def my_draw(probabilities, numbers):\n    return helper(probabilities, numbers)\n"
    made = certify(
        note({"gelu": wrong, "draw": needs, "top_k": None, "unheard_of": "x = 1", "mlp": source("mlp")})
    )
    assert made.passed == ["mlp"] and made.difference < 1e-3
    assert made.reasons.keys() == {"gelu", "draw", "top_k", "unheard_of"}
    assert "helper" in made.reasons["draw"]
    page = made.save(sys.modules["pathlib"].Path(note({})).with_name("page.html")).read_text(encoding="utf-8")
    assert "✓&nbsp;mlp*" in page and "–&nbsp;gelu" in page and "1 of" in page


@pytest.mark.parametrize("damaged", ["{", "[]", "3"])
def test_a_damaged_note_is_refused(damaged, tmp_path):
    path = tmp_path / "my_gpt2.json"
    path.write_text(damaged)
    with pytest.raises(ValueError, match="delete it"):
        own_pieces(path)
    assert own_pieces(tmp_path / "none.json") == ({}, {})
