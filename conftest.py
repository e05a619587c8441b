"""`pytest --nbmake` runs each notebook alone: a copy in an empty folder, with the built wheel as gpt2lib.

After the notebook's last cell come its folded solutions and answers: they run where a reader would try them. Where a
visible cell checks a piece (in the appendices), it has to refuse one that returns nothing, and to pass the solution.
"""

import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import nbformat
import outputs  # tools/outputs.py
import pytest

ROOT = Path(__file__).parent
scratch = functools.cache(tempfile.TemporaryDirectory)  # one for the session; deleted with it


@functools.cache
def build_wheel() -> Path:
    source = Path(scratch().name, "source")  # a copy: building leaves files behind
    for name in ("gpt2lib", "pyproject.toml", "README.md", "LICENSE"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        source.mkdir(exist_ok=True)
        copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", scratch().name, str(source)], check=True)
    return next(Path(scratch().name).glob("*.whl"))


@functools.cache
def installed_wheel() -> Path:
    """A folder with what the wheel holds. As PYTHONPATH it comes before the editable gpt2lib."""
    with zipfile.ZipFile(build_wheel()) as wheel:
        wheel.extractall(Path(scratch().name, "installed"))
    return Path(scratch().name, "installed")


@pytest.fixture
def wheel() -> Path:
    return build_wheel()


@pytest.fixture
def wheel_environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(installed_wheel())}


FOLDED = r"<summary>(?:Solution|Answer).*?</summary>(.*?)</details>"
REFUSED = """
def {name}(*args, **kwargs):
    return None


try:
    exec({check!r})
except Exception as error:
    print("refused:", error)
else:
    raise AssertionError("the check of {name} passes a piece that returns nothing")
"""


def solutions(notebook: nbformat.NotebookNode) -> list[str]:
    """The Python blocks of its folded solutions and answers, each with the visible cell that checks it."""
    blocks, name, check = [], "", ""
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        if cell.cell_type == "code":
            name = re.search(r"^(?:def|class) (\w+)", cell.source, re.M)[1] if "exercise" in tags else name
            check = cell.source if "check" in tags and not cell.source.startswith("check.") else ""
            continue
        for part in re.findall(FOLDED, cell.source, re.S):
            code = re.findall(r"```python\n(.*?)```", part, re.S)
            blocks += [REFUSED.format(name=name, check=check), *code, check] if check else code
            check = ""
    return blocks


def with_solutions(notebook: Path, folder: str) -> Path:
    """A copy of `notebook` in `folder` that ends with its solutions."""
    copy = nbformat.read(notebook, 4)
    copy.cells += [nbformat.v4.new_code_cell(code) for code in solutions(copy)]
    nbformat.write(copy, Path(folder, notebook.name))
    return Path(folder, notebook.name)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    if not getattr(item, "nbmake", False):
        return (yield)
    notebook = Path(item.filename)
    with tempfile.TemporaryDirectory() as alone, pytest.MonkeyPatch.context() as patch:
        patch.setattr(item, "filename", with_solutions(notebook, alone))
        patch.setattr(item.config.option, "overwrite", True)  # nbmake: save the outputs, in the copy
        patch.setenv("PYTHONPATH", str(installed_wheel()))
        result = yield
        outputs.keep(notebook, Path(alone, notebook.name))
        return result
