"""A commented config for a user's own model and data: what `fedot init` writes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from fedot.config import Config, config_from_dict
from fedot.errors import ConfigError

__all__ = ["commented_config"]

_HEAD = """\
# A fedot run. Every key has a default, shown here, but model.path and, to simulate, data.clients.
#   fedot simulate {name} --dry-run          what it would cost
#   fedot simulate {name} --out runs/first   do it
"""


def commented_config(
    model: str,
    data: Sequence[Path],
    owner_text: Path | None = None,
    proxy: Path | None = None,
    name: str = "config.yaml",
) -> str:
    """A config in which every key stands with its default and what it means.

    Args:
        model: directory or hub id of the full model.
        data: one file of records per client; the file's name becomes the client's.
        owner_text: the owner's own text; without it the emulator is not distilled.
        proxy: the owner's own stand-in for the task.
        name: what the file will be called, for the comments.

    Raises:
        ConfigError: two files have the same name, or none was given.
    """
    clients = {path.stem: str(path) for path in data}
    if not clients:
        raise ConfigError("data.clients would be empty; name a file of records for every client.")
    if len(clients) < len(data):
        raise ConfigError("two data files have the same name; every client needs its own.")
    raw: dict[str, Any] = {
        "model": {"path": model},
        "data": {
            "clients": clients,
            "owner_text": str(owner_text) if owner_text else None,
            "proxy": str(proxy) if proxy else None,
        },
    }
    if owner_text is None:
        raw["emulator"] = {"distill_steps": 0}
    config = config_from_dict(raw)
    return _HEAD.format(name=name) + "\n".join(_lines(config)) + "\n"


def _lines(config: Config) -> Iterator[str]:
    for key, info in Config.model_fields.items():
        value = getattr(config, key)
        yield ""
        if not isinstance(value, BaseModel):
            yield _line(key, value, info.description, indent="")
            continue
        yield f"# {(type(value).__doc__ or '').strip()}"
        yield f"{key}:"
        yield from _section_lines(value, indent="  ")


def _section_lines(section: BaseModel, indent: str) -> Iterator[str]:
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield f"{indent}{name}:  # {(type(value).__doc__ or '').strip()}"
            yield from _section_lines(value, indent + "  ")
        else:
            yield _line(name, value, field.description, indent)


def _line(key: str, value: Any, description: str | None, indent: str) -> str:
    if isinstance(value, Mapping) and value:
        inner = "".join(f"\n{indent}  {_plain(k)}: {_plain(v)}" for k, v in value.items())
        return f"{indent}{key}:  # {description}{inner}"
    comment = f"  # {description}" if description else ""
    return f"{indent}{key}: {_plain(value)}{comment}"


def _plain(value: Any) -> str:
    """A scalar or list as YAML on one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")
