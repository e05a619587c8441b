"""The catalogue of mistakes: for each checker, right implementations and mistakes as people make them.

Each module `chapter_NN.py` has two dictionaries by the checker's name:

- `RIGHT[name]`: implementations that must pass, in different styles;
- `WRONG[name]`: rows `(id, base, old, new, …)`. In the source of `base`, a function or class, `old` is replaced by
  `new`, and so on for further pairs; the checker must name the result `id`. A row may also be `(id, implementation)`.
"""

import __future__

import importlib
import inspect
import linecache
import pkgutil
import sys
from collections.abc import Callable


def plant(base: Callable, *changes: str) -> Callable:
    """`base` with each `old` in its source replaced by `new`."""
    if not changes:
        return base
    source = inspect.getsource(base)
    for old, new in zip(changes[::2], changes[1::2], strict=True):
        assert source.count(old) == 1, f"{old!r} stands {source.count(old)} times in {base.__name__}"
        source = source.replace(old, new)
    file = f"<planted {base.__name__} {abs(hash(changes))}>"
    linecache.cache[file] = len(source), None, source.splitlines(True), file
    flags = __future__.annotations.compiler_flag  # as the modules have it
    names = dict(vars(sys.modules[base.__module__]))
    exec(compile(source, file, "exec", flags), names)
    return names[base.__name__]


modules = [importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)]
RIGHT = {name: rights for module in modules for name, rights in module.RIGHT.items()}
WRONG = {name: rows for module in modules for name, rows in module.WRONG.items()}
