"""Real text that is on every machine: the Python documentation and standard library.

The general part (what a model owner pretrains on) is the language reference that ships as
`pydoc_data.topics` plus definitions of modules that no client owns. A client's record is one
definition of its packages: a function, a method, or a class's head. No text stands in two records,
of whoever.
"""

from __future__ import annotations

import ast
import importlib
import sysconfig
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from fedot.errors import ConfigError

__all__ = ["CLIENT_PACKAGES", "PROXY_PACKAGES", "LibraryText", "library_text"]

CLIENT_PACKAGES = {
    "asyncio+concurrent": ("asyncio", "concurrent"),
    "email+http": ("email", "http"),
    "unittest+logging": ("unittest", "logging"),
    "xml+html": ("xml", "html"),
}
# The owner's own stand-in for the clients' task: definitions that nobody else has.
PROXY_PACKAGES = ("importlib", "json", "multiprocessing", "urllib")

# Tests, generated tables and packages that not every build of Python has.
_LEFT_OUT = {
    "__pycache__", "config", "ensurepip", "encodings", "idlelib", "lib2to3", "pydoc_data",
    "site-packages", "test", "tests", "tkinter", "turtledemo", "distutils", "lib-dynload",
    "pip", "_pyrepl",
}  # fmt: skip
_SHORTEST_RECORD = 80
_CODE_PER_DOCUMENTATION = 4.0


@dataclass(frozen=True, slots=True)
class LibraryText:
    """Everything the demo reads.

    Attributes:
        general: sections of the language reference and definitions that nobody owns, shuffled.
        proxy: definitions of the owner's proxy packages.
        clients: client name -> its definitions.
    """

    general: tuple[str, ...]
    proxy: tuple[str, ...]
    clients: dict[str, tuple[str, ...]]


def library_text() -> LibraryText:
    """Read this interpreter's own documentation and library.

    Raises:
        ConfigError: the interpreter was installed without them.
    """
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ImportError as error:
        raise ConfigError(
            "this Python has no pydoc_data, the documentation that the demo reads (some packagers "
            "leave it out). Use another Python, or your own text: fedot demo --data DIR"
        ) from error
    library = Path(sysconfig.get_paths()["stdlib"])
    seen: set[str] = set()
    clients = {
        name: _definitions(library, packages, seen) for name, packages in CLIENT_PACKAGES.items()
    }
    proxy = _definitions(library, PROXY_PACKAGES, seen)
    owned = {package for packages in CLIENT_PACKAGES.values() for package in packages}
    sources = _sources(library, without=owned.union(PROXY_PACKAGES))
    others = _unseen(sources, seen)
    if not others or min(map(len, clients.values())) < 8:
        raise ConfigError(
            f"the standard library at {library} has no sources (.py), which the demo reads. Use "
            "another Python, or your own text: fedot demo --data DIR"
        )
    return LibraryText(_general(topics, others), proxy, clients)


def _general(topics: Mapping[str, str], definitions: Sequence[str]) -> tuple[str, ...]:
    """All documentation, and some definitions for every character of it, in an order of chance."""
    rng = Random(0)
    texts = list(topics.values())
    room = sum(map(len, texts)) * _CODE_PER_DOCUMENTATION
    for text in rng.sample(definitions, len(definitions)):
        if len(text) <= room:
            texts.append(text)
            room -= len(text)
    rng.shuffle(texts)
    return tuple(texts)


def _definitions(library: Path, packages: Sequence[str], seen: set[str]) -> tuple[str, ...]:
    """Definitions in some packages that are not in `seen`, which grows by them."""
    folders = (library / package for package in packages)
    sources = (source for folder in folders for source in _sources(folder, without=set()))
    return _unseen(sources, seen)


def _unseen(sources: Iterable[str], seen: set[str]) -> tuple[str, ...]:
    found = []
    for source in sources:
        for text in _definitions_in(source):
            key = " ".join(text.split())
            if len(text) >= _SHORTEST_RECORD and key not in seen:
                seen.add(key)
                found.append(text)
    return tuple(found)


def _definitions_in(source: str) -> Iterator[str]:
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return
    lines = source.splitlines(keepends=True)
    for first, last in _spans(tree):
        yield textwrap.dedent("".join(lines[first - 1 : last])).strip()


def _spans(node: ast.AST) -> Iterator[tuple[int, int]]:
    """Line numbers of definitions: functions whole, classes up to their first method."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield _first_line(child), child.end_lineno or child.lineno
        elif isinstance(child, ast.ClassDef):
            inner = [
                _first_line(part)
                for part in child.body
                if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            ]
            end = min(inner) - 1 if inner else child.end_lineno or child.lineno
            yield _first_line(child), end
            yield from _spans(child)
        elif isinstance(child, ast.If | ast.Try):
            yield from _spans(child)


def _first_line(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> int:
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])


def _sources(folder: Path, without: set[str]) -> Iterator[str]:
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).parts
        names = {part.removesuffix(".py") for part in parts}
        if names & _LEFT_OUT or parts[0].removesuffix(".py") in without:
            continue
        if any(part.startswith("config-") for part in parts):
            continue
        try:
            yield path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
