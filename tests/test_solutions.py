"""Each chapter ends with exercises that can be helped. Their solutions run with the chapter (conftest.py)."""

import re
from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_chapter_has_three_exercises_with_hints_and_solutions(path):
    text = "\n".join(cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown")
    exercises = re.split(r"^### Exercise ", text, flags=re.M)[1:]
    assert len(exercises) >= 3
    for exercise in exercises:
        for part in ("*Difficulty", "<summary>Hint", "<summary>Solution"):
            assert part in exercise, f"{exercise[:60]!r} has no {part}"
