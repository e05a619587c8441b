"""Write a folder that is a Hugging Face Space: the demo, its model, exact requirements, and a README with the header.

python tools/space.py                            # _build/space, with the model that ships with the package
python tools/space.py --checkpoint runs/nano     # with a model of yours
hf upload NAME/SPACE _build/space . --repo-type space
"""

import argparse
import json
import re
import shutil
from importlib.metadata import distribution
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement

from gpt2lib.checkpoint import latest_checkpoint, load_run

ROOT = Path(__file__).resolve().parent.parent
PYTHON = "3.11"
APP = '''"""The demo of the GPT-2 book, as a Space."""

import os

os.environ.setdefault("FORWARDED_ALLOW_IPS", "*")  # who asks is told by the Space's proxy, the only way in

from gpt2lib.demo import main  # noqa: E402

if __name__ == "__main__":
    main([{flags}"--host", "0.0.0.0", "--port", os.environ.get("GRADIO_SERVER_PORT", "7860")])
'''
READ_ME = """---
title: GPT-2 completes text
emoji: 🪶
colorFrom: blue
colorTo: gray
sdk: gradio
sdk_version: {gradio}
python_version: "{python}"
app_file: app.py
license: mit
short_description: A small GPT-2 that shows how each token came about
---

A GPT-2 of the [GPT-2 book]({address}), and the page of its chapter 13: it completes text, shows what else it considered, where
its heads look, and which parts stand word for word in what it was trained on. Nothing that is typed here is stored.
"""


def pins() -> list[str]:
    """What `gpt2lib[demo]` needs on a Linux machine, at the versions of requirements.txt."""
    lines = [
        Requirement(line)
        for line in (ROOT / "requirements.txt").read_text().splitlines()
        if line and line[0] != "#"
    ]
    linux = {
        "sys_platform": "linux",
        "platform_system": "Linux",
        "os_name": "posix",
        "platform_machine": "x86_64",
    }
    where = {**default_environment(), **linux, "python_version": PYTHON, "python_full_version": f"{PYTHON}.9"}

    def key(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    exact = {key(line.name): line for line in lines if line.marker is None or line.marker.evaluate(where)}
    found: set[str] = set()

    def add(name: str, extras: set[str]) -> None:
        for text in distribution(name).requires or []:
            need = Requirement(text)
            wanted = need.marker is None or any(
                need.marker.evaluate({**where, "extra": extra}) for extra in extras | {""}
            )
            if wanted and key(need.name) in exact and key(need.name) not in found:
                found.add(key(need.name))
                add(need.name, need.extras)

    add("gpt2lib", {"demo"})
    return [f"{name}=={next(iter(exact[name].specifier)).version}" for name in sorted(found)]


def write(folder: Path, checkpoint: Path | None = None) -> None:
    """Write the Space into `folder`, which is emptied first."""
    if folder.exists() and not (folder / "app.py").is_file() and any(folder.iterdir()):
        raise SystemExit(f"{folder} is not a Space that this tool wrote; name another folder with --out")
    shutil.rmtree(folder, ignore_errors=True)
    ignored = shutil.ignore_patterns("__pycache__", "ledger.jsonl", *(["nano"] if checkpoint else []))
    shutil.copytree(ROOT / "gpt2lib", folder / "gpt2lib", ignore=ignored)
    flags = ""
    if checkpoint:
        load_run(checkpoint)  # verified before it is copied
        newest, run = latest_checkpoint(checkpoint), folder / "model" / checkpoint.resolve().name
        shutil.copytree(
            newest, run / "checkpoints" / newest.name, ignore=shutil.ignore_patterns("optimizer.*")
        )
        shutil.copy(checkpoint / "config.json", run)
        manifest = run / "checkpoints" / newest.name / "manifest.json"
        listed = json.loads(manifest.read_text())
        listed.pop("optimizer.safetensors", None)
        manifest.write_text(json.dumps(listed, indent=1) + "\n")
        flags = f'"--checkpoint", "model/{run.name}", '
    needed = pins()
    gradio = next(line.split("==")[1] for line in needed if line.startswith("gradio=="))
    address = re.search(r'^Repository = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.M)[1]
    index = "--extra-index-url https://download.pytorch.org/whl/cpu  # a torch without CUDA, for a Space without a GPU"
    (folder / "app.py").write_text(APP.format(flags=flags))
    (folder / "requirements.txt").write_text("\n".join([index, *needed]) + "\n")
    (folder / "README.md").write_text(READ_ME.format(gradio=gradio, python=PYTHON, address=address))
    (folder / ".gitattributes").write_text("*.safetensors filter=lfs diff=lfs merge=lfs -text\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "_build" / "space")
    parser.add_argument("--checkpoint", type=Path, help="a run directory")
    options = parser.parse_args()
    write(options.out, options.checkpoint)
    print(
        f"The Space is in {options.out}. To publish it: hf upload NAME/SPACE {options.out} . --repo-type space"
    )


if __name__ == "__main__":
    main()
