"""A run's folder: made new, or taken up again."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import yaml

from fedot.config import Config, to_yaml
from fedot.errors import ConfigError
from fedot.journal import Journal, sync_folder, write_durably
from fedot.messages import digest_of

__all__ = ["RunFolder", "check_out", "next_free", "open_run", "refuse_existing", "standing"]

CONFIG_FILE = "config.yaml"
JOURNAL_FILE = "journal.sqlite"
SUMMARY_FILE = "summary.json"


@dataclass(frozen=True, slots=True)
class RunFolder:
    """An open run.

    Attributes:
        path: the `--out` directory.
        journal: its durable state.
        run_id: names the run in ledgers.
    """

    path: Path
    journal: Journal
    run_id: str

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Write a JSON file, whole or not at all."""
        text = json.dumps(value, indent=1) + "\n"
        write_durably(self.path / name, text.encode())

    def write_metrics(self) -> None:
        """Make `metrics.jsonl` from the journal: one line a closed round."""
        lines = [json.dumps(metrics) + "\n" for metrics in self.journal.metrics()]
        write_durably(self.path / "metrics.jsonl", "".join(lines).encode())


def check_out(config: Config, out: Path, resume: bool) -> None:
    """Refuse an `--out` that would be overwritten, or that cannot be resumed.

    Raises:
        ConfigError: says which, and what to do.
    """
    refuse_existing(out, resume)
    if not resume:
        return
    saved = yaml.safe_load((out / CONFIG_FILE).read_text(encoding="utf-8"))
    odd = _first_difference(saved, config.model_dump(mode="json"))
    if odd:
        key, before, wanted = odd
        raise ConfigError(
            f"{out} was started with {key} {_plain(before)}, not {_plain(wanted)}; a run cannot "
            "change it half way. Use the same config, or name another --out."
        )


def standing(out: Path) -> str:
    """Where a run that is to be resumed goes on, for people."""
    if (out / SUMMARY_FILE).is_file():
        return f"{out} is finished already; nothing is run again"
    if not (out / JOURNAL_FILE).is_file():
        return f"{out} goes on from its start"
    with Journal(out / JOURNAL_FILE) as journal:
        last = journal.last_closed()
    return f"{out} goes on after round {last}" if last > 0 else f"{out} goes on before round 1"


def next_free(out: Path) -> Path:
    """`out`, or the first of `out-2`, `out-3`, ... that is not there yet."""
    number = 1
    free = out
    while free.exists():
        number += 1
        free = out.with_name(f"{out.name}-{number}")
    return free


def refuse_existing(out: Path, resume: bool) -> None:
    """Refuse to write over what is at `out`, before anything costly is done for it."""
    if not resume and out.exists():
        raise ConfigError(f"{out} exists; add --resume to go on with it, or name another --out.")
    if resume and not (out / CONFIG_FILE).is_file():
        raise ConfigError(f"there is no run at {out}; drop --resume to start afresh.")


@contextmanager
def open_run(config: Config, out: Path, resume: bool) -> Iterator[RunFolder]:
    """Make the folder, or open it again; one process at a time.

    Raises:
        ConfigError: see `check_out`; or another process is at work in it.
    """
    check_out(config, out, resume)
    if not resume:
        _make_folder(config, out)
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"another process is at work in {out}; wait for it.") from error
        with Journal(out / JOURNAL_FILE) as journal:
            if journal.fact("run_id") is None:
                # In this order: a run that has an id has everything else, whenever it is killed.
                journal.note("inputs", _digests(config))
                journal.note("run_id", f"run-{uuid4().hex[:12]}")
            _check_inputs(journal.fact("inputs"), _digests(config))
            yield RunFolder(out, journal, journal.fact("run_id"))


def _make_folder(config: Config, out: Path) -> None:
    """There with its config, which makes it a run that can be resumed, or not there at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.with_name(f".{out.name}.part")
    draft.mkdir(exist_ok=True)
    write_durably(draft / CONFIG_FILE, to_yaml(config).encode())
    try:
        os.rename(draft, out)
    except OSError as error:
        raise ConfigError(f"cannot make {out}: {error.strerror}. Name another --out.") from error
    sync_folder(out.parent)


def _digests(config: Config) -> dict[str, str]:
    """What the data files hold: a run that is taken up again must find what it began with."""
    data = config.data
    named = [*data.clients.values(), data.owner_text, data.proxy]
    return {path: digest_of(Path(path).read_bytes()) for path in named if path is not None}


def _check_inputs(before: Mapping[str, str], now: Mapping[str, str]) -> None:
    changed = [path for path, digest in before.items() if now.get(path) != digest]
    if changed:
        raise ConfigError(
            f"{changed[0]} has changed since the run was started; put it back, or start another "
            "run with another --out."
        )


def _first_difference(saved: Any, wanted: Any, key: str = "") -> tuple[str, Any, Any] | None:
    """The first key that differs, what was saved and what is wanted."""
    if isinstance(saved, dict) and isinstance(wanted, dict):
        for name in (*wanted, *saved):
            inner = f"{key}.{name}" if key else str(name)
            odd = _first_difference(saved.get(name), wanted.get(name), inner)
            if odd:
                return odd
        return None
    return None if saved == wanted else (key, saved, wanted)


def _plain(value: Any) -> str:
    """A value as the config has it, on one line; of a whole section only that it is one."""
    return "a section of its own" if isinstance(value, dict) else json.dumps(value)
