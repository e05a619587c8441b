"""The checkers name planted mistakes, accept right code in any style, and are not shaken by code that misbehaves."""

import dataclasses
import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import nbformat
import pytest
import torch
from mistakes import RIGHT, WRONG, plant
from test_solutions import NOTEBOOKS

from gpt2lib import check
from gpt2lib.check import CHECKERS, GENERAL, Checker, Verdict

PLANTED = [(name, row) for name, rows in WRONG.items() for row in rows]
SUSPECTS = [(name, suspect.id) for name, checker in CHECKERS.items() for suspect in checker.suspects]


def title(value):
    return value if isinstance(value, str) else " ".join(str(v) for v in value if isinstance(v, str))[:60]


class Alone(Checker):
    """A checker that does not look for two mistakes at once: they may explain what a missing suspect does not."""

    def _pairs(self):
        return ()


def judge(place: int, seed: int, without: bool) -> Verdict:
    """What is said of a planted mistake; also `without` the suspect that it is planted for."""
    name, row = PLANTED[place]
    checker = CHECKERS[name]
    if without:
        others = [s for s in checker.suspects if s.id != row[0]]
        assert len(others) == len(checker.suspects) - 1, f"two suspects of {name} are called {row[0]}"
        fields = {f.name: getattr(checker, f.name) for f in dataclasses.fields(checker)}
        checker = Alone(**{**fields, "suspects": others})
    return checker.judge(plant(*row[1:]), seed)


def tasks(params: dict) -> list[tuple]:
    """What a test with these parameters asks of `judge`."""
    if "row" in params:
        place = next(i for i, (_, row) in enumerate(PLANTED) if row is params["row"])
        return [(place, seed, False) for seed in (0, 1)]  # every seed has to name it
    wanted = (params["name"], params["id"])  # every suspect has a planted mistake
    return [(next(i for i, (name, row) in enumerate(PLANTED) if (name, row[0]) == wanted), 0, True)]


@pytest.fixture(scope="module")
def verdicts(request):
    """The verdicts that the chosen tests ask for, by two processes if there are many."""
    chosen = [
        i.callspec.params for i in request.session.items if "verdicts" in getattr(i, "fixturenames", ())
    ]
    every = [task for params in chosen for task in tasks(params)]
    if len(every) < 100:
        return dict(zip(every, map(judge, *zip(*every))))
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, spawn, torch.set_num_threads, (1,)) as pool:
        return dict(zip(every, pool.map(judge, *zip(*every), chunksize=10)))


@pytest.mark.parametrize("name, row", PLANTED, ids=title)
def test_a_planted_mistake_is_named_as_itself(name, row, verdicts):
    for task in tasks({"row": row}):
        verdict = verdicts[task]
        assert (verdict.ok, verdict.id) == (False, row[0]), verdict.text


@pytest.mark.parametrize("name", CHECKERS)
def test_right_implementations_in_at_least_three_styles_are_accepted(name):
    assert len(RIGHT[name]) >= 3
    for implementation in [*RIGHT[name], CHECKERS[name].reference]:
        for seed in range(3):
            verdict = CHECKERS[name].judge(implementation, seed)
            assert verdict == Verdict(True, "", ""), f"{implementation.__name__}, seed {seed}: {verdict.text}"


@pytest.mark.parametrize("name, id", SUSPECTS)
def test_without_its_suspect_a_mistake_is_no_longer_named(name, id, verdicts):
    (task,) = tasks({"name": name, "id": id})
    assert verdicts[task].id != id


@pytest.mark.parametrize("name", CHECKERS)
def test_diagnoses_point_to_headings_that_exist(name):
    path = next(p for p in NOTEBOOKS if p.stem == CHECKERS[name].chapter)
    cells = nbformat.read(path, 4).cells
    lines = [line for cell in cells if cell.cell_type == "markdown" for line in cell.source.splitlines()]
    headings = {line.lstrip("#").strip() for line in lines if line.startswith("##")}
    assert {CHECKERS[name].where, *(s.where for s in CHECKERS[name].suspects)} <= headings


def misbehave(f):
    """Ways in which any implementation can misbehave, by the id of the verdict."""

    def stub(*args):
        raise NotImplementedError("Exercise 9.9: write this")

    def raises(*args):
        raise KeyError("c_attn")

    def nothing(*args):
        return None

    return {"not-written": stub, "raises": raises, "type": nothing}


@pytest.mark.parametrize("kind", ["not-written", "raises", "type"])
@pytest.mark.parametrize("name", CHECKERS)
def test_an_implementation_that_misbehaves_is_told_so_in_a_sentence(name, kind):
    verdict = CHECKERS[name].judge(misbehave(None)[kind])
    assert not verdict.ok and "Traceback" not in verdict.text
    if kind == "not-written":
        assert verdict.id == kind and "Exercise 9.9: write this" in verdict.text
    else:
        assert verdict.id in (kind, "raises", "refused"), verdict.text


def calls(change):
    """A right head whose result goes through `change(result, x)`."""
    return lambda x, w, b: change(RIGHT["head"][1](x, w, b), x)


@pytest.mark.parametrize(
    "kind, change",
    {
        "type": lambda y, x: y.detach().numpy(),
        "shape": lambda y, x: y.unsqueeze(0),
        "dtype": lambda y, x: y.double(),
        "device": lambda y, x: y.to("meta"),
        "random": lambda y, x: y + torch.rand(()),
        "modifies": lambda y, x: y + 0 * x.mul_(2).sum(),
        "gradient": lambda y, x: y.detach(),
        "value": lambda y, x: y + 1,
    }.items(),
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_each_general_fault_has_its_own_sentence(kind, change):
    verdict = CHECKERS["head"].judge(calls(change))
    assert verdict.id == kind and GENERAL[kind] in verdict.text


def test_an_implementation_that_never_returns_is_stopped(monkeypatch):
    monkeypatch.setattr(check, "LIMIT", 0.5)
    turns = []

    def forever(x, w, b):
        while True:
            try:
                turns.append(1)
            except Exception:
                pass

    assert CHECKERS["head"].judge(forever).id == "never-returns"
    seen = len(turns)
    torch.zeros(1000).sum()
    assert len(turns) == seen, "the loop goes on"


def test_a_failed_check_shows_the_smallest_input_then_the_mistake_then_the_place(
    capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    no_mask = next(row for row in WRONG["head"] if row[0] == "no-mask")
    assert check.head(plant(*no_mask[1:])) is False
    printed = capsys.readouterr().out
    places = [
        printed.index(part)
        for part in ("x = [[[", "expected", "came", "Most likely", "[no-mask]", "Explained")
    ]
    assert places == sorted(places)
    assert not list(tmp_path.iterdir()), "only what passes is noted"


def test_what_passes_is_noted_with_its_source_and_counts_once(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for implementation in (RIGHT["head"][0], RIGHT["head"][1], torch.nn.Identity().forward):
        check.head(implementation)
    assert check.get_lr(RIGHT["get_lr"][0])
    noted = json.loads((tmp_path / check.PROGRESS).read_text(encoding="utf-8"))
    assert list(noted) == ["head", "get_lr"] and noted["head"].startswith("def head_matmul(x, w, b):")
    assert f"2 of {len(CHECKERS)}" in capsys.readouterr().out


def test_a_decorated_piece_is_noted_with_its_decorators(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain = RIGHT["greedy"][0]

    @torch.no_grad()
    def greedy(model, ids, n):
        return plain(model, ids, n)

    assert check.greedy(greedy)
    noted = json.loads((tmp_path / check.PROGRESS).read_text(encoding="utf-8"))["greedy"]
    assert noted.startswith("@torch.no_grad()\ndef greedy(model, ids, n):") and noted.endswith(
        "(model, ids, n)\n"
    )


def noisy(x, w, b):
    """A right head, and noise that seldom shows in a small result."""
    return torch.nn.functional.dropout(RIGHT["head"][1](x, w, b), 0.02)


@pytest.mark.parametrize("seed", range(5))
def test_noise_that_small_inputs_do_not_show_is_noise(seed):
    assert CHECKERS["head"].judge(noisy, seed).id == "random"


def test_a_check_mark_says_what_keeps_a_piece_out_of_the_capstone(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(globals(), "own_helper", RIGHT["head"][0])

    def leaning(x, w, b):
        return own_helper(x, w, b)  # noqa: F821

    for implementation, said in (
        (leaning, "It leans on `own_helper`"),
        (lambda x, w, b: RIGHT["head"][0](x, w, b), "write it with `def`"),
        (RIGHT["head"][1], "%.\n"),
    ):
        assert check.head(implementation)
        assert said in capsys.readouterr().out


def test_the_arguments_of_the_last_failure_can_be_had():
    assert CHECKERS["merge_step"].judge(lambda parts, ranks: [b"".join(parts)]).id == "value"
    parts, ranks = check.last_case
    assert RIGHT["merge_step"][0](parts, ranks) == RIGHT["merge_step"][1](parts, ranks) != [b"".join(parts)]


def test_blanks_in_what_is_shown_are_not_folded():
    verdict = CHECKERS["decode"].judge(lambda ids, ranks: RIGHT["decode"][0](ids, ranks).replace("  ", " "))
    assert "' the  \\n\\n'" in verdict.text


def test_a_parameter_that_is_missing_is_said_once_and_nothing_else_is_shown():
    text = CHECKERS["mlp"].judge(torch.nn.Identity).text
    assert text.count("c_fc.weight") == 1 and "Missing: c_fc.weight, c_fc.bias" in text
    assert "expected" not in text and "came" not in text and "Unusable" not in text


def test_an_exception_from_a_library_shows_the_last_line_of_your_own():
    def own(x, w, b):
        return json.loads("no json")

    assert (
        "at        line" in (text := CHECKERS["head"].judge(own).text)
        and 'return json.loads("no json")' in text
    )


def test_a_folder_that_cannot_be_written_and_code_without_source_are_no_obstacle(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(check, "PROGRESS", "nowhere/my_gpt2.json")
    names = {}
    exec("def head(x, w, b):\n    return f(x, w, b)", {"f": RIGHT["head"][0]}, names)
    assert check.head(names["head"])
    monkeypatch.setattr(check, "PROGRESS", "my_gpt2.json")
    (tmp_path / "my_gpt2.json").write_text("not json", encoding="utf-8")
    assert check.head(names["head"])
    assert json.loads((tmp_path / "my_gpt2.json").read_text(encoding="utf-8")) == {"head": None}
    (tmp_path / "my_gpt2.json").write_text('{"gelu": "not Python", "mlp": 3, "block": "1"}', encoding="utf-8")
    assert check.head(RIGHT["head"][1])
    assert os.listdir(tmp_path) == ["my_gpt2.json"]


def test_a_check_leaves_the_random_numbers_of_the_reader_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = torch.get_rng_state()
    check.head(RIGHT["head"][0])
    assert torch.equal(before, torch.get_rng_state())
