"""What pydantic refuses, in one line that says what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from pydantic import BaseModel, ValidationError

__all__ = ["explain", "where_in_yaml"]


def explain(error: ValidationError, section: type[BaseModel], what: str) -> str:
    """One line for the most telling of pydantic's errors.

    Args:
        error: what pydantic raised.
        section: the model that was checked: an unknown key is answered with its nearest one.
        what: what was read, for example `config`.
    """
    # Of a section or a word (emulator), the word is what somebody meant who wrote a word.
    telling = {"extra_forbidden": 0, "model_type": 2}
    errors = sorted(error.errors(), key=lambda e: telling.get(e["type"], 1))
    first = errors[0]
    key = ".".join(str(part) for part in first["loc"] if not _is_branch(part))
    if first["type"] == "extra_forbidden":
        known = sorted(_known_keys(section))
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.3)
        hint = f" Did you mean {near[0]}?" if near else ""
        return f"{what} has no key {key}.{hint}"
    if first["type"] == "missing":
        return f"{what} lacks {key}, which has no default."
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return message
    text = f"{key} is {first['input']!r}; {message[0].lower()}{message[1:]}."
    if key.startswith("privacy.target_epsilon"):
        text += " Use privacy.unit=none to train without DP."
    return text


def where_in_yaml(error: Exception) -> str:
    """What is wrong in a YAML text and where, in one line."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None or not problem:
        return str(error).split("\n")[0]
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}"


def _is_branch(part: str | int) -> bool:
    """Is it pydantic's name for one of a key's kinds of value, and no part of the key?"""
    return str(part).startswith(("EmulatorConfig", "literal[", "list["))


def _known_keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, info in section.model_fields.items():
        yield prefix + name
        for kind in (info.annotation, *getattr(info.annotation, "__args__", ())):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from _known_keys(kind, f"{prefix}{name}.")
