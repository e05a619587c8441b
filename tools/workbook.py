"""The workbook edition: the chapters again, with an exercise in the place of each exported piece that has one.

python tools/workbook.py FOLDER

A cell that holds the finished code of a piece, such as `CausalSelfAttention`, gives way to the exercise that builds it;
the cells after it go on with the package's own. Links to what is not in FOLDER lead to the site. Nothing else changes,
so that no text exists twice.
"""

import ast
import re
import sys
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell
from set_address import address, site

from gpt2lib.check import CHECKERS

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = sorted((ROOT / "notebooks").glob("[01]*.ipynb"))
CAPSTONE = ROOT / "notebooks" / "A5_capstone.ipynb"
NOTE = """> **Workbook edition.** Where the book prints {names}, this notebook asks you to write it. Run the cells from the top. At an
> exercise, replace the line that raises, and run the cell below your code: it says whether the piece is right, and if it is
> not, what is most likely wrong. Hints and the solution open when you click on them. The cells after an exercise go on with
> the package's own piece, so you can read on at any time, and come back."""
GO_ON = "# What follows uses the package's own piece. Yours has its turn in the capstone.\n"


def definitions(source: str) -> list[str]:
    """The names that a cell defines on its top level, without what it imports."""
    names = []
    for node in ast.parse(source).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names += [target.id for target in targets if isinstance(target, ast.Name)]
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.append(node.name)
    return names


def exercise_of(piece: str, cells: list) -> int | None:
    """Where the stub of the exercise stands that builds the exported `piece`, if there is one."""
    for at, cell in enumerate(cells):
        if "exercise" in cell.metadata.get("tags", []):
            checker = CHECKERS[re.match(r"check\.(\w+)\(", cells[at + 1].source)[1]]
            reference = checker.reference
            if reference.__module__.startswith("gpt2lib.") and reference.__qualname__ == piece:
                return at
    return None


def workbook(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The same notebook with its exported pieces to be written."""
    cells, module, replaced = list(notebook.cells), None, []
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        module = (found := re.search(r"^#\| default_exp (\w+)", cell.source, re.M)) and found[1] or module
        exported = re.match(r"#\| export(?:_to)?\b *(\w*)", cell.source)
        names = definitions(cell.source) if exported else []
        for piece in names:
            at = exercise_of(piece, cells)
            if at is None:
                continue
            before, heading, task = cells[at - 1].source.rpartition("### Exercise ")
            group = [new_markdown_cell(heading + task, id=cells[at - 1].id), *cells[at : at + 3]]
            cells[at - 1 : at + 3] = (
                [new_markdown_cell(before.rstrip(), id=f"{cells[at - 1].id}-rest")] if before.strip() else []
            )
            place = cells.index(cell)
            after = "\n".join(c.source for c in cells[place + 1 :])
            needed = [name for name in names if name[0] != "_" or re.search(rf"\b{name}\b", after)]
            go_on = f"{GO_ON}from gpt2lib.{exported[1] or module} import {', '.join(needed)}"
            cells[place : place + 1] = [*group, new_code_cell(go_on, id=f"{cell.id}-own")]
            replaced.append(piece)
            break
    note = NOTE.format(names=" and ".join(f"`{name}`" for name in replaced)) if replaced else None
    if note:
        title, _, rest = cells[0].source.partition("\n")
        cells[0] = new_markdown_cell(f"{title}\n\n{note}\n{rest}", id=cells[0].id)
    made = nbformat.v4.new_notebook(cells=cells, metadata=notebook.metadata)
    nbformat.validate(made)
    return made


def onto_the_site(text: str) -> str:
    """The same Markdown; its links to what is not among the written files lead to the site, or to the repository."""
    names = {path.name for path in [*CHAPTERS, CAPSTONE]}

    def link(found: re.Match) -> str:
        if found[1] in names:
            return found[0]
        path = (ROOT / "notebooks" / found[1]).resolve().relative_to(ROOT)
        there = f"{address()}/raw/HEAD/{path.as_posix()}"
        if path.suffix in (".md", ".ipynb"):
            there = site(address()) + path.with_suffix(".html").as_posix()
        return f"]({there}{found[2] or ''})"

    return re.sub(r"\]\(([\w./-]+\.\w+)(#[^)]*)?\)", link, text)


def write(folder: Path) -> list[Path]:
    """Write the workbook of every chapter, and the capstone as it is, into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for path in [*CHAPTERS, CAPSTONE]:
        notebook = nbformat.read(path, 4)
        notebook = workbook(notebook) if path in CHAPTERS else notebook
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = onto_the_site(cell.source)
        nbformat.write(notebook, folder / path.name)
        written.append(folder / path.name)
    return written


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("Name the folder to write to: python tools/workbook.py FOLDER")
    print(f"{len(write(Path(sys.argv[1])))} notebooks in {sys.argv[1]}")
