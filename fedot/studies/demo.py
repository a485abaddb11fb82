"""`fedot demo`: a whole federation on this machine's own Python documentation and library."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedot.config import Config, config_from_dict, with_overrides
from fedot.data.python_library import LibraryText, library_text
from fedot.data.records import read_text
from fedot.errors import ConfigError
from fedot.federation.folder import check_out
from fedot.federation.run import simulate
from fedot.journal import write_durably
from fedot.messages import Progress, digest_of, no_progress
from fedot.studies.base_model import Recipe, cache_folder, pretrained

__all__ = ["DEMO", "demo_config", "run_demo"]

# Part of the documents and modules that the base model never sees: the owner's held-out text lies
# at the end of owner.jsonl (see `fedot.federation.parts`).
DEMO: dict[str, Any] = {
    "data": {"max_tokens": 128},
    "adapter": {"kind": "lora", "rank": 8, "alpha": 16},
    "emulator": {"keep_ratio": 0.5, "distill_steps": 200, "learning_rate": 3e-3},
    "training": {"steps_per_round": 20, "batch_size": 64, "learning_rate": 5e-3},
    "federation": {"rounds": 6},
    "evaluation": {"ceiling_learning_rates": [1e-3, 3e-3], "ceiling_epochs": 3},
}
QUICK: Sequence[str] = (
    "emulator.distill_steps=30",
    "training.steps_per_round=4",
    "federation.rounds=2",
    "evaluation.ceiling_learning_rates=[0.003]",
    "evaluation.ceiling_epochs=1",
    "evaluation.max_records=80",
)


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
            instead of the Python library.
        quick: a base model and rounds so short that the numbers mean nothing.
        progress: is told while the base model trains.

    Raises:
        ConfigError: there is no text to read, or an override is not allowed.
    """
    settings = with_overrides(with_overrides(DEMO, QUICK if quick else ()), overrides)
    # A typing error must not cost 90 s of pretraining first.
    config_from_dict({**settings, **_named("unused", {"unused": "unused"}, None)})
    recipe = Recipe(num_steps=40) if quick else Recipe()
    if data is not None:
        files = _own_files(data)
        general = [*read_text(files["owner"])]
        base = pretrained(recipe, general[: _seen(len(general))], [], progress)
        clients = {path.stem: str(path) for path in sorted((data / "clients").iterdir())}
        raise_if_few(clients, data)
        proxy = data / "proxy.jsonl"
        named = _named_files(base, files["owner"], clients, proxy if proxy.exists() else None)
    else:
        text = library_text()
        documents, modules = _seen_part(text.documents), _seen_part(text.modules)
        base = pretrained(recipe, documents, modules, progress)
        named = _library_files(text, base)
    return config_from_dict(_merged(settings, named))
