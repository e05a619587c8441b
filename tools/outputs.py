"""The outputs of the notebooks: what the tests have executed, the site shows, without executing it again.

python tools/outputs.py   # forget them, and the pages made of them, if they come from another gpt2lib
"""

import hashlib
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "_build"


def forget_outdated() -> None:
    """The cache knows the cells of a notebook, not the package that they call: so keep its hash, too."""
    digest = hashlib.sha256(sys.version.encode())
    for path in [ROOT / "requirements.txt", *sorted((ROOT / "gpt2lib").rglob("*"))]:
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(path.name.encode() + path.read_bytes())
    stamp = BUILD / "outputs_of"
    if not stamp.exists() or stamp.read_text() != digest.hexdigest():
        shutil.rmtree(BUILD, ignore_errors=True)
        BUILD.mkdir()
        stamp.write_text(digest.hexdigest())


def keep(notebook: Path, executed: Path) -> None:
    """Put the outputs of the `executed` copy of `notebook` where the site looks for them."""
    import nbformat
    from jupyter_cache import get_cache
    from jupyter_cache.base import CacheBundleIn

    forget_outdated()
    nb, done = nbformat.read(notebook, 4), nbformat.read(executed, 4)
    for cell, run in zip(nb.cells, done.cells, strict=False):  # after them come the solutions
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = run.outputs, run.execution_count
    if "widgets" in done.metadata:
        nb.metadata.widgets = done.metadata.widgets
    cache = get_cache(BUILD / ".jupyter_cache")
    cache.cache_notebook_bundle(CacheBundleIn(nb, str(notebook)), check_validity=False, overwrite=True)


if __name__ == "__main__":
    forget_outdated()
