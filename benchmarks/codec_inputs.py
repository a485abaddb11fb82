"""Real updates for `benchmarks/codec.py`: what one client of the demo sends in its first round.

    python benchmarks/codec_inputs.py runs/codec-inputs

One federation for each kind of adapter, with and without DP, one client, one round, sent as
float32; about a minute each. Files that exist are kept.
"""

from __future__ import annotations

import sys
import tempfile
from itertools import product
from pathlib import Path

import safetensors.torch
from torch import Tensor

from fedot.compression.codec import Step, decode, plan, spec_of_file
from fedot.studies.demo import run_demo

SENT_AS = plan(Step("float32"), Step("deflate"))
SETTINGS = (
    "federation.rounds=1",
    "federation.cohort_size=1",
    "payload.chain=float32+deflate",
    "emulator.distill_steps=10",
    "evaluation.ceiling_learning_rates=[]",
    "evaluation.max_records=40",
)


def update_of(run: Path) -> dict[str, Tensor]:
    """The update that the run's only client stored, by the names of the saved adapter."""
    adapter = next((run / "adapter").glob("*.safetensors"))
    spec = spec_of_file(adapter)
    expected = {name.removeprefix("base_model.model."): one for name, one in spec.items()}
    stored = next(run.glob("sites/*/updates/*.update"))
    return decode(stored.read_bytes(), expected, [SENT_AS])


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for kind, unit in product(("lora", "blocks"), ("none", "example")):
        path = folder / f"{kind}-{'dp' if unit == 'example' else 'plain'}.safetensors"
        if path.exists():
            continue
        with tempfile.TemporaryDirectory() as scratch:
            run = Path(scratch) / "run"
            run_demo(run, overrides=[*SETTINGS, f"adapter.kind={kind}", f"privacy.unit={unit}"])
            safetensors.torch.save_file(update_of(run), path)
        print(path)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/codec-inputs"))
