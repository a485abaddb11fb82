"""What a config names must be there: refused before anything is loaded or a hub is asked."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from fedot.errors import ConfigError

__all__ = ["refuse_missing_files", "refuse_missing_model"]

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
# Of the supported families; all younger models on the hub have an owner.
_WITHOUT_OWNER = frozenset({"gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2"})


def refuse_missing_model(path: str) -> None:
    """Let pass a directory with a checkpoint, and what may be a hub id.

    Raises:
        ConfigError: it is neither.
    """
    folder = Path(path)
    if (folder / "config.json").is_file():
        return
    if not folder.exists():
        if _HUB_ID.fullmatch(path) or path in _WITHOUT_OWNER:
            return
        what = f"no checkpoint at {path}: there is no such directory"
    else:
        what = f"no checkpoint at {path}"
    raise ConfigError(
        f"{what}; model.path must be a directory with config.json and *.safetensors, or a hub id, "
        "which has the form owner/name."
    )


def refuse_missing_files(option: str, paths: Iterable[Path | None]) -> None:
    """Refuse a file that is not there.

    Args:
        option: which named them, for the message.
        paths: None is no file.

    Raises:
        ConfigError: names the first one.
    """
    for path in paths:
        if path is not None and not path.is_file():
            raise ConfigError(f"there is no file {path}; {option} must name one that is there.")
