"""Make what the example configs name: a tiny model and two data owners' records, all real.

    python examples/prepare.py            # writes examples/data/, about a minute
    fedot simulate examples/offsite_tuning.yaml --out runs/offsite
    fedot simulate examples/federated_sft.yaml --out runs/sft

The text is this Python's own documentation and library, so nothing is downloaded. Put your own
model directory and .jsonl files in the configs to go on from here.
"""

from __future__ import annotations

import ast
import json
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from fedot.data.python_library import library_text
from fedot.messages import no_progress
from fedot.studies.base_model import Recipe, pretrained

CLIENTS = {"left": "email+http", "right": "xml+html"}


def write_jsonl(path: Path, rows: Iterable[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def instructions(definitions: Iterable[str]) -> Iterator[dict[str, str]]:
    """A documented function as an instruction and its answer, as FedIT and Shepherd have them."""
    for text in definitions:
        try:
            node = ast.parse(text).body[0]
        except SyntaxError:
            continue
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        described = ast.get_docstring(node)
        if described:
            yield {"instruction": described.split("\n\n")[0], "response": text}


def main(folder: Path, num_steps: int) -> None:
    text = library_text()
    general = text.general[:600]
    # The last part of the owner's text measures the emulator, so the model must not know it.
    base = pretrained(Recipe(num_steps=num_steps), general[:500], no_progress)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(base, folder / "model", dirs_exist_ok=True)
    write_jsonl(folder / "owner.jsonl", ({"text": one} for one in general))
    write_jsonl(folder / "proxy.jsonl", ({"text": one} for one in text.proxy[:200]))
    for name, packages in CLIENTS.items():
        definitions = text.clients[packages]
        write_jsonl(folder / f"{name}.jsonl", ({"text": one} for one in definitions))
        write_jsonl(folder / f"{name}-instructions.jsonl", instructions(definitions))


if __name__ == "__main__":
    main(
        folder=Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "data",
        num_steps=int(sys.argv[2]) if len(sys.argv) > 2 else 400,
    )
