"""Change the address of the repository, in _config.yml and wherever a literal is needed.

python tools/set_address.py https://github.com/OWNER/REPOSITORY
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLACES = "_config.yml pyproject.toml CITATION.cff *.md app.py book/*.* notebooks/*.ipynb".split()
FORM = re.compile(r"https://github\.com/([\w.-]+)/([\w.-]+)")


def address(root: Path = ROOT) -> str:
    return re.search(r"^repository:\n(?:  .*\n)*?  url: (\S+)$", (root / "_config.yml").read_text(), re.M)[1]


def site(url: str) -> str:
    owner, name = FORM.fullmatch(url).groups()
    return f"https://{owner.lower()}.github.io/{name}/"


def set_address(new: str, root: Path = ROOT) -> list[str]:
    """Returns the names of the changed files."""
    new = new.rstrip("/").removesuffix(".git")
    if not FORM.fullmatch(new):
        sys.exit(f"{new!r} is no address of a repository; it looks like https://github.com/OWNER/REPOSITORY")
    old, changed = address(root), []
    in_colab = "/github/{}/{}/"
    for path in sorted({p for place in PLACES for p in root.glob(place)}):
        text = path.read_text(encoding="utf-8")
        moved = re.sub(re.escape(old) + r"(?![\w-])", new, text).replace(site(old), site(new))
        moved = moved.replace(*(in_colab.format(*FORM.fullmatch(url).groups()) for url in (old, new)))
        if moved != text:
            path.write_text(moved, encoding="utf-8")
            changed.append(path.relative_to(root).as_posix())
    return changed


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("Name the address: make address URL=https://github.com/OWNER/REPOSITORY")
    print("\n".join(set_address(sys.argv[1])) or "Nothing to change.")
