"""`fedot demo`: a whole federation on this machine's own Python documentation and library."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedot.config import Config, config_from_dict, with_overrides
from fedot.data.python_library import library_text
from fedot.data.records import read_text
from fedot.errors import ConfigError
from fedot.federation.run import simulate
from fedot.journal import write_durably
from fedot.messages import Progress, digest_of, no_progress
from fedot.studies.base_model import Recipe, cache_folder, pretrained

__all__ = ["BY_UNIT", "SETTINGS", "demo_config", "run_demo"]

SETTINGS: dict[str, Any] = {
    "data": {"max_tokens": 64},
    "emulator": {"keep_ratio": 0.75, "distill_steps": 300, "learning_rate": 1e-2},
    "evaluation": {
        "ceiling_learning_rates": [6e-3, 1.2e-2],
        "ceiling_epochs": 8,
        "max_records": 400,
    },
}
# Noise is the same however many records share it and spreads over every parameter: DP wants few
# steps of large batches and a small adapter. Without it, many steps and whole blocks gain more.
BY_UNIT: dict[str, dict[str, Any]] = {
    "example": {
        "adapter": {"kind": "lora", "rank": 2, "alpha": 8},
        "training": {"steps_per_round": 3, "batch_size": 256, "learning_rate": 0.05},
        "federation": {"rounds": 8},
    },
    "none": {
        "adapter": {"kind": "blocks"},
        "training": {
            "steps_per_round": 50,
            "batch_size": 8,
            "learning_rate": 7e-3,
            "final_lr_ratio": 0.02,
            # Ends that train this long would lean on the emulator's errors.
            "join_noise": 0.2,
        },
        "federation": {"rounds": 64, "server_learning_rate": 2.0},
        "payload": {"error_feedback": True},
    },
}
QUICK = (
    "emulator.distill_steps=30",
    "training.steps_per_round=4",
    "federation.rounds=2",
    "evaluation.ceiling_learning_rates=[0.003]",
    "evaluation.ceiling_epochs=1",
    "evaluation.max_records=80",
)
# The rest of the general text stays unseen by the base model. A run measures the general gap on
# the last tenth of the owner's text, so that lies in it.
_PRETRAINED_RATIO = 0.85


def run_demo(
    out: Path,
    *,
    overrides: Sequence[str] = (),
    data: Path | None = None,
    quick: bool = False,
    resume: bool = False,
    progress: Progress = no_progress,
    on_round: Callable[[Mapping[str, Any]], None] = lambda metrics: None,
) -> dict[str, Any]:
    """Make the demo's inputs and run them; arguments as in `demo_config` and `simulate`."""
    config = demo_config(overrides, data, quick, progress)
    return simulate(config, out, resume=resume, progress=progress, on_round=on_round, name="demo")


def demo_config(
    overrides: Sequence[str] = (),
    data: Path | None = None,
    quick: bool = False,
    progress: Progress = no_progress,
) -> Config:
    """Make the demo's files (base model, records) and the config that names them.

    Args:
        overrides: `section.key=value` strings.
        data: a directory with `owner.jsonl`, `clients/*.jsonl` and, if you like, `proxy.jsonl`,
            to be used instead of the Python library.
        quick: a base model and rounds so short that the numbers mean nothing.
        progress: is told while the base model trains.

    Raises:
        ConfigError: there is no text to read, or an override is not allowed.
    """
    changes = [*(QUICK if quick else ()), *overrides]
    named: dict[str, Any] = {"model": {"path": ""}, "data": {"clients": {"any": ""}}}
    # Checked before anything is made: a typing error must not cost 90 s first.
    unit = config_from_dict(_merged(named, with_overrides(SETTINGS, changes))).privacy.unit
    # Noise at the server spreads just as the clients' does.
    by_unit = BY_UNIT.get(unit, BY_UNIT["example"])
    settings = with_overrides(_merged(SETTINGS, by_unit), changes)
    files = _library_files() if data is None else _own_files(data)
    texts = read_text(Path(files["owner_text"]))
    seen = texts[: max(1, round(len(texts) * _PRETRAINED_RATIO))]
    base = pretrained(Recipe(num_steps=40) if quick else Recipe(), seen, progress)
    named = {"model": {"path": str(base)}, "data": files}
    return config_from_dict(_merged(named, settings))


def _library_files() -> dict[str, Any]:
    """The Python library as files of records, written once per content."""
    text = library_text()
    parts = {"owner": text.general, **text.clients}
    content = {
        name: "".join(json.dumps({"text": t}) + "\n" for t in texts).encode()
        for name, texts in parts.items()
    }
    folder = cache_folder() / f"library-{digest_of(b''.join(content.values()))[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in content.items():
        path = folder / f"{name}.jsonl"
        if not path.exists():
            write_durably(path, lines)
    return {
        "owner_text": str(folder / "owner.jsonl"),
        "clients": {name: str(folder / f"{name}.jsonl") for name in text.clients},
    }


def _own_files(folder: Path) -> dict[str, Any]:
    owner, proxy = folder / "owner.jsonl", folder / "proxy.jsonl"
    clients = sorted((folder / "clients").glob("*.jsonl"))
    if not owner.is_file() or not clients:
        raise ConfigError(
            f"{folder} lacks {'clients/*.jsonl' if owner.is_file() else 'owner.jsonl'}; --data "
            "must name a directory with owner.jsonl (general text) and clients/*.jsonl (records)."
        )
    files: dict[str, Any] = {
        "owner_text": str(owner),
        "clients": {path.stem: str(path) for path in clients},
    }
    return files | ({"proxy": str(proxy)} if proxy.is_file() else {})


def _merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Two configs in one, section by section; keys of `other` win."""
    merged = dict(one)
    for key, value in other.items():
        both = isinstance(value, Mapping) and isinstance(one.get(key), Mapping)
        merged[key] = {**one[key], **value} if both else value
    return merged
