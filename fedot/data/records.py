"""Read a data owner's file into records, and set some of them aside.

A record is the unit of privacy: one text, or one instruction with its answer.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from fedot.errors import ConfigError

__all__ = ["Record", "Split", "read_records", "read_text", "split_records"]

# FedIT / Shepherd, Alpaca and Dolly call the same three things by different names.
INSTRUCTION, CONTEXT, RESPONSE = "instruction", ("context", "input"), ("response", "output")

# With or without the mark that spreadsheets put in front.
_UTF8 = "utf-8-sig"


@dataclass(frozen=True, slots=True, order=True)
class Record:
    """One record: `prompt` is read, `answer` is learned. Plain text has an empty prompt."""

    prompt: str
    answer: str


@dataclass(frozen=True, slots=True)
class Split:
    """A client's records: `train` trains, `choose` chooses between rounds, `report` reports."""

    train: tuple[Record, ...]
    choose: tuple[Record, ...]
    report: tuple[Record, ...]


def read_records(path: Path, text_field: str = "text") -> tuple[Record, ...]:
    """Read a file of records.

    Args:
        path: .jsonl, .json (a list), .csv, .parquet, or .txt (records divided by blank lines).
        text_field: the field that holds a record's text, where it has no instruction.

    Raises:
        ConfigError: no such file, another format, no records, or a record without text.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise ConfigError(
            f"data file {path} ends in {path.suffix!r}; it must be one of {', '.join(READERS)}."
        )
    if not path.is_file():
        raise ConfigError(f"there is no data file {path}; check data.clients and data.owner_text.")
    try:
        rows = list(reader(path))
    except (OSError, ValueError, csv.Error) as error:
        raise ConfigError(
            f"cannot read {path} as {path.suffix}: {type(error).__name__}."
        ) from error
    records = tuple(_record(row, text_field, path, n) for n, row in enumerate(rows, start=1))
    if not records:
        raise ConfigError(f"data file {path} holds no records; a client needs at least 8.")
    return records


def read_text(path: Path, text_field: str = "text") -> tuple[str, ...]:
    """The texts of a file of records, prompt and answer joined."""
    return tuple(r.prompt + r.answer for r in read_records(path, text_field))


def split_records(
    records: tuple[Record, ...], held_out_ratio: float, seed: int, name: str
) -> Split:
    """Divide by each record's own hash; a text that stands in two records is kept once.

    Guarantees:
        A record's part and place depend on nothing but the record and the seed. So one record more
        or less in a client's file is at most one more or less in `train`: what DP counts on.

    Raises:
        ConfigError: too few records, or none of them is left to train on.
    """
    ranked = sorted((_share(record, seed), record) for record in dict.fromkeys(records))
    split = Split(
        train=tuple(record for share, record in ranked if share >= held_out_ratio),
        choose=tuple(record for share, record in ranked if share < held_out_ratio / 2),
        report=tuple(r for share, r in ranked if held_out_ratio / 2 <= share < held_out_ratio),
    )
    if len(ranked) < 8 or not split.train:
        raise ConfigError(
            f"client {name} has {len(ranked)} different records; it must have at least 8, and "
            f"a held_out_ratio of {held_out_ratio:g} must leave some to train on."
        )
    return split


def _share(record: Record, seed: int) -> float:
    """A record's own number in [0, 1)."""
    content = json.dumps([seed, record.prompt, record.answer]).encode()
    return int.from_bytes(sha256(content).digest()[:8], "big") / 2**64


def _record(row: Any, text_field: str, path: Path, number: int) -> Record:
    record = _found_in(row, text_field)
    if record is None:
        raise ConfigError(
            f"record {number} of {path} has neither a field {text_field!r} with text nor "
            "instruction and response. Name the field in data.text_field."
        )
    try:
        (record.prompt + record.answer).encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"record {number} of {path} holds half of a surrogate pair, which is no text; take it "
            "out."
        ) from error
    return record


def _found_in(row: Any, text_field: str) -> Record | None:
    if isinstance(row, str) and row:
        return Record(prompt="", answer=row)
    if isinstance(row, Mapping):
        answer = next((row[key] for key in RESPONSE if row.get(key)), None)
        if isinstance(row.get(INSTRUCTION), str) and isinstance(answer, str):
            context = next((row[key] for key in CONTEXT if row.get(key)), "")
            return Record(prompt=_prompt(row[INSTRUCTION], str(context)), answer=answer)
        if isinstance(row.get(text_field), str) and row[text_field]:
            return Record(prompt="", answer=row[text_field])
    return None


def _prompt(instruction: str, context: str) -> str:
    middle = f"### Context\n{context.strip()}\n\n" if context.strip() else ""
    return f"### Instruction\n{instruction.strip()}\n\n{middle}### Response\n"


def _read_jsonl(path: Path) -> Iterator[Any]:
    with path.open(encoding=_UTF8) as lines:
        for line in lines:
            if line.strip():
                yield json.loads(line)


def _read_json(path: Path) -> Iterator[Any]:
    content = json.loads(path.read_text(encoding=_UTF8))
    if not isinstance(content, list):
        raise ConfigError(f"data file {path} must hold a JSON list of records.")
    yield from content


def _read_csv(path: Path) -> Iterator[Any]:
    # A long document is one field; records are cut off later, by tokens.
    csv.field_size_limit(2**31 - 1)
    with path.open(encoding=_UTF8, newline="") as lines:
        yield from csv.DictReader(lines)


def _read_parquet(path: Path) -> Iterator[Any]:
    import pyarrow.parquet

    yield from pyarrow.parquet.read_table(path).to_pylist()


def _read_plain(path: Path) -> Iterator[Any]:
    for part in path.read_text(encoding=_UTF8).split("\n\n"):
        if part.strip():
            yield part.strip()


READERS: dict[str, Callable[[Path], Iterator[Any]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
    ".txt": _read_plain,
}
