"""Each chapter ends with exercises in one form. Their solutions and answers run with the chapter (conftest.py)."""

import __future__

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
CHAPTERS = [path for path in NOTEBOOKS if path.stem[0].isdigit()]
NAMES = {"torch": torch, "nn": nn, "F": F, "np": np, "math": math}  # what a stub may use


@dataclass
class Exercise:
    number: str  # such as 2.1
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


EXERCISES = [(path.stem, exercise) for path in CHAPTERS for exercise in exercises(path)]


def of_kind(*kinds: str):
    """Parametrize a test by the exercises of these kinds."""
    chosen = [e for _, e in EXERCISES if e.kind in kinds]
    return pytest.mark.parametrize("exercise", chosen, ids=[e.number for e in chosen])


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_has_two_things_to_build_two_to_predict_and_one_to_explain(path):
    found = exercises(path)
    kinds = [exercise.kind for exercise in found]
    assert kinds.count("Build") >= 2 and kinds.count("Predict") >= 2, kinds
    assert kinds.count("Explain") + kinds.count("Explore") >= 1, kinds
    chapter = int(path.stem[:2])
    assert [e.number for e in found] == [f"{chapter}.{i}" for i in range(1, len(found) + 1)]


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
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
    name, mine = re.fullmatch(r"check\.(\w+)\((\w+)\);", exercise.tagged("check")).groups()
    assert re.search(rf"^(def|class) {mine}\b", exercise.tagged("exercise"), re.M)
    assert re.search(rf"^(def|class) {mine}\b", solution, re.M)
    assert re.search(rf"^assert check\.{name}\({mine}\)$", solution, re.M), (
        "the solution is checked as the stub is"
    )
    tags = [cell.metadata.get("tags") for cell in exercise.cells]
    assert tags == [["exercise"], ["check"]], "the stub, then its check, then the hints"


@of_kind("Build")
def test_a_stub_fails_with_its_own_message_and_the_checker_passes_it_on(exercise):
    name, mine = re.fullmatch(r"check\.(\w+)\((\w+)\);", exercise.tagged("check")).groups()
    names = dict(NAMES)
    flags = __future__.annotations.compiler_flag
    exec(compile(exercise.tagged("exercise"), f"<stub {exercise.number}>", "exec", flags), names)
    assert names[mine].__doc__, "a stub says what goes in and what comes out"
    verdict = CHECKERS[name].judge(names[mine])
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


@pytest.mark.parametrize("path", [p for p in NOTEBOOKS if p not in CHAPTERS], ids=lambda path: path.stem)
def test_every_appendix_has_three_exercises_with_hints_and_solutions(path):
    text = "\n".join(cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown")
    exercises = re.split(r"^### Exercise ", text, flags=re.M)[1:]
    assert len(exercises) >= 3
    for exercise in exercises:
        for part in ("*Difficulty", "<summary>Hint", "<summary>Solution"):
            assert part in exercise, f"{exercise[:60]!r} has no {part}"
