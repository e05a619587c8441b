"""Each notebook ends with exercises in one form. Their solutions and answers run with it (conftest.py)."""

import __future__

import ast
import inspect
import math
import re
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from gpt2lib.check import CHECKERS

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
CALL = r"check\.(\w+)\((\w+)\);"  # of a chapter's checker; an appendix checks in a cell that shows how
NOT_WRITTEN = "except NotImplementedError as todo:\n    print('– not written yet.', todo)"
NAMES = {"torch": torch, "nn": nn, "F": F, "np": np, "math": math}  # what a stub may use


@dataclass
class Exercise:
    number: str  # such as 2.1, or A1.1 in an appendix
    text: str  # its Markdown
    cells: list = field(default_factory=list)  # its code

    @property
    def kind(self) -> str:
        """Build, Predict, Explain or Explore: the first word of the line under the heading."""
        line = r"\*(Build|Predict|Explain|Explore) · difficulty (?:●○○|●●○|●●●) · \d+ minutes · [^\n]+\*\n"
        found = re.match(rf"### Exercise {self.number}: \S[^\n]*\n\n{line}", self.text)
        assert found, (
            f"Exercise {self.number} does not begin with its heading and one line: {self.text[:160]!r}"
        )
        return found[1]

    @property
    def piece(self) -> str:
        """The name of what it asks for."""
        return re.search(r"^(?:def|class) (\w+)", self.tagged("exercise"), re.M)[1]

    def folded(self, what: str) -> list[str]:
        """The bodies of its folded parts whose summary begins with `what`."""
        return re.findall(
            rf"<details><summary>{what}[^\n]*</summary>\n\n(.*?)\n\n</details>", self.text, re.S
        )

    def tagged(self, tag: str) -> str:
        """The source of its only cell with this tag."""
        cells = [cell.source for cell in self.cells if tag in cell.metadata.get("tags", [])]
        assert len(cells) == 1, f"Exercise {self.number} has {len(cells)} cells tagged {tag!r}"
        return cells[0]


def exercises(path: Path) -> list[Exercise]:
    found, inside = [], False
    for cell in nbformat.read(path, 4).cells:
        if cell.cell_type == "code":
            if inside:
                found[-1].cells.append(cell)
            continue
        for part in re.split(r"(?m)^(?=##+ )", cell.source):
            if part.startswith("#"):
                heading = re.match(r"### Exercise (\w+\.\d+)", part)
                inside = heading is not None
                if inside:
                    found.append(Exercise(heading[1], part))
            elif inside:
                found[-1].text += part if found[-1].text.endswith("\n") else f"\n\n{part}"
    return found


EXERCISES = [(path.stem, exercise) for path in NOTEBOOKS for exercise in exercises(path)]


def of_kind(*kinds: str):
    """Parametrize a test by the exercises of these kinds."""
    chosen = [e for _, e in EXERCISES if e.kind in kinds]
    return pytest.mark.parametrize("exercise", chosen, ids=[e.number for e in chosen])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_has_two_things_to_build_two_to_predict_and_one_to_explain(path):
    found = exercises(path)
    kinds = [exercise.kind for exercise in found]
    assert kinds.count("Build") >= 2 and kinds.count("Predict") >= 2, kinds
    assert kinds.count("Explain") + kinds.count("Explore") >= 1, kinds
    chapter = path.stem[:2].lstrip("0") or "0"
    assert [e.number for e in found] == [f"{chapter}.{i}" for i in range(1, len(found) + 1)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_folded_opens_and_closes_and_no_code_stands_outside(path):
    for exercise in exercises(path):
        parts = len(exercise.folded(""))
        for mark in ("<details>", "</details>", "<summary>", "</summary>"):
            assert exercise.text.count(mark) == parts, f"Exercise {exercise.number}: {mark}"
        open_text = re.sub(r"<details>.*?</details>", "", exercise.text, flags=re.S)
        assert "```" not in open_text, f"Exercise {exercise.number} shows code before it is asked for"


@of_kind("Build")
def test_a_build_has_a_stub_a_check_three_hints_and_a_solution_that_passes(exercise):
    assert [len(exercise.folded(what)) for what in ("Hint 1", "Hint 2", "Hint 3", "Hint")] == [1, 1, 1, 3]
    (solution,) = exercise.folded("Solution")
    assert re.search(rf"^(def|class) {exercise.piece}\b", solution, re.M)
    tags = [cell.metadata.get("tags") for cell in exercise.cells]
    assert tags == [["exercise"], ["check"]], "the stub, then its check, then the hints"
    check = exercise.tagged("check")
    if exercise.number[0] == "A":  # conftest.py runs it with the solution, and without
        *before, last = ast.parse(check).body
        kinds = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
        assert all(isinstance(node, kinds) for node in before) and isinstance(last, ast.Try)
        assert [ast.unparse(handler) for handler in last.handlers] == [NOT_WRITTEN]
        assert not last.finalbody and ast.unparse(last.body[-1]) == "print('✓ right')"
        found = [node for statement in last.body for node in ast.walk(statement)]
        assert any(isinstance(node, ast.Assert) for node in found)
        assert any(isinstance(node, ast.Name) and node.id == exercise.piece for node in found)
    else:
        name, mine = re.fullmatch(CALL, check).groups()
        assert mine == exercise.piece
        assert re.search(rf"^assert check\.{name}\({mine}\)$", solution, re.M), (
            "the solution is checked as the stub is"
        )


@of_kind("Build")
def test_a_stub_fails_with_its_own_message_and_the_checker_passes_it_on(exercise):
    names = dict(NAMES)
    flags = __future__.annotations.compiler_flag
    exec(compile(exercise.tagged("exercise"), f"<stub {exercise.number}>", "exec", flags), names)
    stub = names[exercise.piece]
    assert stub.__doc__, "a stub says what goes in and what comes out"
    if exercise.number[0] == "A":
        with pytest.raises(NotImplementedError, match=f"^Exercise {exercise.number}: "):
            stub(*[None] * len(inspect.signature(stub).parameters))
    else:
        verdict = CHECKERS[re.fullmatch(CALL, exercise.tagged("check"))[1]].judge(stub)
        assert verdict.id == "not-written", verdict.text
        assert f"Exercise {exercise.number}: " in verdict.text


@of_kind("Predict")
def test_the_answer_of_a_prediction_is_computed(exercise):
    (answer,) = exercise.folded("Answer")
    code = re.findall(r"```python\n(.*?)```", answer, re.S)
    assert any(re.search(r"^\s*assert ", block, re.M) for block in code), (
        "code that asserts what the answer says"
    )


@of_kind("Explain", "Explore")
def test_what_is_to_be_explained_has_a_model_answer(exercise):
    (answer,) = exercise.folded("Answer") or exercise.folded("Solution")
    assert len(answer) > 100
