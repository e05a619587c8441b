"""Book, package, site and repository stay one: what CI checks is itself checked to fail when it should."""

import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import check_links
import export
import pytest
import set_address
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PAGES = sorted((ROOT / "book").glob("*.ipynb"))  # executed, and nothing is exported from them
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture
def copy(tmp_path) -> Path:
    """The notebooks and the modules, to be spoilt."""
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    shutil.copytree(
        ROOT / "gpt2lib", tmp_path / "gpt2lib", ignore=shutil.ignore_patterns("assets", "__pycache__")
    )
    return tmp_path


def test_package_is_the_notebooks():
    assert export.differences(ROOT) == []


def test_export_check_sees_one_changed_byte_and_stray_and_missing_files(copy):
    changed = copy / "gpt2lib/block.py"
    changed.write_bytes(changed.read_bytes()[:-1] + b" ")
    (copy / "gpt2lib/stray.py").write_text("")
    (copy / "gpt2lib/mlp.py").unlink()
    found = export.differences(copy)
    assert len(found) == 3
    assert "gpt2lib/block.py" in found[0]
    assert found[1:] == [
        "gpt2lib/mlp.py is missing",
        "gpt2lib/stray.py comes from no notebook: write it in one, or delete it",
    ]


def test_export_check_sees_outputs_counts_and_repeated_ids(copy):
    path = copy / "notebooks" / NOTEBOOKS[0].name
    clean = json.loads(path.read_text(encoding="utf-8"))
    code = next(i for i, cell in enumerate(clean["cells"]) if cell["cell_type"] == "code")
    stream = {"name": "stdout", "output_type": "stream", "text": ["1\n"]}
    for key, value in ("outputs", [stream]), ("execution_count", 1), ("id", clean["cells"][0]["id"]):
        spoilt = json.loads(json.dumps(clean))
        spoilt["cells"][code][key] = value
        path.write_text(
            json.dumps(spoilt, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8"
        )
        assert export.differences(copy) == [f"notebooks/{path.name} is not tidy: outputs, ids or metadata"], (
            key
        )


def test_two_notebooks_may_not_export_one_module(copy):
    notebook = next(n for n in NOTEBOOKS if "default_exp" in n.read_text(encoding="utf-8"))
    with pytest.raises(SystemExit, match="choose one"):
        export.export([notebook, Path(shutil.copy(notebook, copy / "notebooks/Z.ipynb"))])


def test_the_command_nbdev_export_changes_nothing(copy):
    shutil.copy(ROOT / "pyproject.toml", copy)
    subprocess.run([Path(sys.executable).parent / "nbdev-export"], cwd=copy, check=True)
    assert export.differences(copy) == []


def test_notebooks_are_markdown_that_reads_the_same_everywhere():
    for notebook in NOTEBOOKS + PAGES:
        for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
            text = "".join(cell["source"])
            if cell["cell_type"] == "markdown":
                assert not re.search(r"^(:::|```+\{)|(?<!\w)\{\w+\}`", text, re.M), (
                    f"{notebook.name}: MyST in {text!r}"
                )


def test_every_notebook_and_every_module_has_its_page():
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text())
    pages = {chapter["file"] for part in contents["parts"] for chapter in part["chapters"]}
    assert {f"notebooks/{n.stem}" for n in NOTEBOOKS} == {p for p in pages if p.startswith("notebooks/")}
    assert {f"book/{n.stem}" for n in PAGES} <= pages
    modules = {f"gpt2lib.{p.stem}" for p in (ROOT / "gpt2lib").glob("[!_]*.py")}
    assert modules == {*re.findall(r"automodule:: (\S+)", (ROOT / "book/api.md").read_text())}


def test_the_pitfall_gallery_has_twenty_entries_in_one_form():
    cells = json.loads((ROOT / "book/pitfalls.ipynb").read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells)
    entries = re.split(r"^### (\d+)\. ", text, flags=re.M)[1:]
    assert [*map(int, entries[::2])] == [*range(1, 21)]
    for number, entry in zip(entries[::2], entries[1::2], strict=True):
        entry = re.sub(r"\(\n\s+", "(", entry)
        parts = ["**You see.**", "# faulty", "\nassert ", f"\nnote({number},", "**Cure.**", "**Source.**"]
        places = [entry.find(part) for part in parts]
        assert -1 not in places and places == sorted(places), (number, dict(zip(parts, places, strict=True)))
        source = entry[places[-1] :]
        assert re.search(r"https://github\.com/[\w.-]+/[\w.-]+/(pull|issues|blob)/", source), number
        chapters = re.findall(r"\.\./(notebooks/\w+\.ipynb)", source)
        assert chapters, f"{number} names no chapter"
        for chapter in chapters:
            assert "../book/pitfalls.ipynb" in (ROOT / chapter).read_text(encoding="utf-8"), chapter


def test_wheel_holds_the_package_with_its_assets_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {n for n in archive.namelist() if ".dist-info/" not in n}
        metadata = archive.read(next(n for n in archive.namelist() if n.endswith("/METADATA"))).decode()
        scripts = archive.read(
            next(n for n in archive.namelist() if n.endswith("/entry_points.txt"))
        ).decode()
    package = (ROOT / "gpt2lib").rglob("*")
    assert names == {
        p.relative_to(ROOT).as_posix() for p in package if p.is_file() and "__pycache__" not in p.parts
    }
    assert {"gpt2lib/__init__.py", "gpt2lib/__main__.py", "gpt2lib/assets/gpt2.tiktoken"} <= names
    assert "License-Expression: MIT AND CC-BY-4.0" in metadata
    assert "gpt2 = gpt2lib.cli:main" in scripts


def test_notebooks_run_with_the_wheel_not_with_the_repository(wheel_environment, tmp_path):
    command = [sys.executable, "-c", "import gpt2lib; print(gpt2lib.__file__)"]
    run = subprocess.run(
        command, cwd=tmp_path, env=wheel_environment, capture_output=True, text=True, check=True
    )
    assert run.stdout.startswith(wheel_environment["PYTHONPATH"]) and str(ROOT) not in run.stdout


def test_light_library_needs_no_extra(wheel_environment, tmp_path):
    extras = "gradio matplotlib transformers IPython ipywidgets jupyter_book nbdev pandas sphinx".split()
    block = f"import sys; sys.modules.update(dict.fromkeys({extras}))"  # None there: importing it fails
    command = [sys.executable, "-c", f"{block}; import gpt2lib, gpt2lib.train, gpt2lib.cli"]
    subprocess.run(command, cwd=tmp_path, env=wheel_environment, check=True)


def test_requirements_name_exactly_what_is_installed():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    here = [
        r for line in lines if line[0] != "#" and (not (r := Requirement(line)).marker or r.marker.evaluate())
    ]
    assert all(re.fullmatch(r"==[\w.]+", str(r.specifier)) for r in here)
    pins = {canonicalize_name(r.name): r.specifier for r in here}
    todo, seen = [Requirement(f"gpt2lib[{','.join(PROJECT['optional-dependencies'])}]")], set()
    while todo:  # what that needs, what those need, …
        wanted = todo.pop()
        name = canonicalize_name(wanted.name)
        for extra in {"", *wanted.extras} - {e for n, e in seen if n == name}:
            seen.add((name, extra))
            needed = map(Requirement, importlib.metadata.requires(name) or [])
            todo += [r for r in needed if not r.marker or r.marker.evaluate({"extra": extra})]
        installed = importlib.metadata.version(name)
        assert wanted.specifier.contains(installed, prereleases=True), (
            f"{wanted} is needed; here: {installed}"
        )
        if name != "gpt2lib" and not re.match("cuda-|nvidia-|triton", name):  # torch's own
            assert name in pins, f"{name} is not in requirements.txt; run: make requirements"
            assert pins[name].contains(installed), f"requirements.txt: {name}{pins[name]}; here: {installed}"


def test_one_address_everywhere():
    address = set_address.address()
    assert all(url.startswith(address) for url in PROJECT["urls"].values())
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["repository-code"] == address and citation["url"] == set_address.site(address)
    assert citation["version"] == PROJECT["version"]
    assert yaml.safe_load((ROOT / "_config.yml").read_text())["html"]["baseurl"] == set_address.site(address)
    for path in NOTEBOOKS + PAGES + [ROOT / "README.md", *(ROOT / "book").glob("*.md")]:
        text = path.read_text(encoding="utf-8")
        named = re.findall(r'git\+(https://[^\s"\\]+)|git clone (https://\S+)', text)
        assert {url.removesuffix(".git") for pair in named for url in pair if url} <= {address}, path.name


def test_address_is_changed_everywhere_and_back(tmp_path):
    places = {p for place in set_address.PLACES for p in ROOT.glob(place)}
    for path in places:
        (tmp_path / path.relative_to(ROOT)).parent.mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / path.relative_to(ROOT))
    old, new = set_address.address(), "https://github.com/Some-One/another.book"
    changed = set_address.set_address(new, tmp_path)
    assert {"_config.yml", "pyproject.toml", "CITATION.cff"} < {*changed}
    for path in places:
        text = (tmp_path / path.relative_to(ROOT)).read_text(encoding="utf-8")
        assert old not in text and set_address.site(old) not in text, path
    assert sorted(set_address.set_address(old, tmp_path)) == sorted(changed)
    for path in places:
        assert (tmp_path / path.relative_to(ROOT)).read_bytes() == path.read_bytes(), path
    with pytest.raises(SystemExit, match="no address of a repository"):
        set_address.set_address("gpt2-book", tmp_path)


def test_site_check_sees_what_is_broken(tmp_path):
    page = '<h1 id="a">A</h1><a href="#a">up</a><a href="b.html#b">b</a><img src="x.svg" alt="An x">'
    (tmp_path / "x.svg").write_text("<svg/>")
    (tmp_path / "a.html").write_text(page)
    (tmp_path / "b.html").write_text('<h1 id="b">B</h1><a href="https://elsewhere.org">out</a>')
    assert check_links.check(tmp_path) == []
    for old, new, message in [
        ("#b", "#c", "b.html#c: that page has no such anchor"),
        ("b.html", "c.html", "c.html#b does not exist"),
        ("#a", "#z", "#z: that page has no such anchor"),
        ("x.svg", "y.svg", "y.svg does not exist"),
        ('alt="An x"', "", "an image has no text for those who cannot see it: x.svg"),
        ("x.svg", "https://elsewhere.org/x.svg", "loads https://elsewhere.org/x.svg from another host"),
    ]:
        (tmp_path / "a.html").write_text(page.replace(old, new))
        assert check_links.check(tmp_path) == [f"a.html: {message}"]
    assert "make book" in check_links.check(tmp_path / "nothing")[0]
