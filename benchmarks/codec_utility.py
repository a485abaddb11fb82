"""What a chain costs in quality: points of recovery against float32. `make bench-codec-utility`.

Two federations (the demo; a small language model with three files of Dolly instructions), without
DP and at epsilon 8, three seeds. The arms of one seed share data order and emulator and, under DP,
the noise and who is sampled: paired, so privacy noise is seeded here and no epsilon is claimed. The
ceiling does not depend on the chain, so it is computed once per federation and seed, and recovery
from it. Rounds and ceilings are shorter than in a run for quality; the figures compare chains,
nothing else. Error feedback sends late what top-k left out: with a handful of rounds it is judged
by what is still to come (10 rounds of the demo without DP cost top-10 % 0.07, 32 rounds 0.01; 8
rounds of 3 steps on Dolly at epsilon 8 cost it 0.11, 24 rounds of one step 0.01).

Rows made with the same settings are kept, so a run that was cut off can be taken up again.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import itertools
import json
import math
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from record import RESULTS, Row, mark, write
from transformers.utils.logging import disable_progress_bar

from fedot.config import Config, config_from_dict, with_overrides
from fedot.evaluation.ceiling import full_fine_tuning
from fedot.evaluation.quality import measure
from fedot.federation.parts import load_parts, pooled
from fedot.federation.run import simulate
from fedot.models.anatomy import load_model
from fedot.privacy.noise import NoiseSource
from fedot.studies.demo import demo_config

ARMS: dict[str, list[str]] = {
    "float32": ["payload.chain=float32"],
    "int8+EF": ["payload.chain=int8+deflate", "payload.error_feedback=true"],
    "top-10%+int8+EF": ["payload.chain=top_k(keep_ratio=0.1)+int8+deflate"],
    "bfloat16": ["payload.chain=bfloat16+planes+deflate"],
}
LIMITS = {"int8+EF": 0.02, "top-10%+int8+EF": 0.05}
UNITS = ("none", "example")
# Apart from these, the demo runs as it is.
DEMO = [
    "emulator.distill_steps=150",
    "evaluation.ceiling_learning_rates=[0.006]",
    "evaluation.ceiling_epochs=3",
    "evaluation.max_records=200",
]
DEMO_BY_UNIT = {
    "none": ["training.steps_per_round=10", "federation.rounds=24"],
    # As many steps as in the demo, in more rounds: see above.
    "example": ["training.steps_per_round=1", "federation.rounds=24"],
}
DOLLY: dict[str, Any] = {
    "data": {"max_tokens": 128},
    "emulator": {"keep_ratio": 0.67, "distill_steps": 150},
    "evaluation": {
        "ceiling_learning_rates": [3e-3],
        "ceiling_epochs": 2,
        "max_records": 150,
    },
}
DOLLY_BY_UNIT: dict[str, dict[str, Any]] = {
    "none": {
        "training": {"steps_per_round": 6, "batch_size": 8, "learning_rate": 0.01},
        "federation": {"rounds": 20},
    },
    "example": {
        "adapter": {"rank": 2, "alpha": 8},
        "training": {"steps_per_round": 1, "batch_size": 192, "learning_rate": 0.03},
        "federation": {"rounds": 24},
    },
}
DOLLY_FILES = (1, 5, 7)
PACKAGES = ["torch", "transformers", "peft", "opacus", "numpy", "isal"]


@dataclass(frozen=True)
class Part:
    """One run, or with `arm` None the ceiling of a federation and seed."""

    source: str
    seed: int
    unit: str | None = None
    arm: str | None = None

    @property
    def key(self) -> Row:
        """What a row is found by."""
        return {"source": self.source, "seed": self.seed, "unit": self.unit, "arm": self.arm}


@functools.cache
def demo_of(unit: str) -> Row:
    """The demo's config, read once: it looks through the whole Python library."""
    overrides = [*DEMO, *DEMO_BY_UNIT[unit], f"privacy.unit={unit}"]
    return demo_config(overrides).model_dump(mode="json")


def config_of(part: Part, shared: Path) -> Config:
    unit = part.unit or "none"
    overrides = [f"seed={part.seed}", f"privacy.unit={unit}", *ARMS.get(part.arm or "", [])]
    if part.arm:
        overrides.append("evaluation.ceiling_learning_rates=[]")
    if part.source == "demo":
        return config_from_dict(with_overrides(demo_of(unit), overrides))
    shards = shared / "data/dolly/shepherd_shards10"
    named = {
        "model": {"path": str(shared / "models/stories260k"), "device": "cpu"},
        "data": {
            **DOLLY["data"],
            "owner_text": str(shared / "data/tinystories/train_sample_smallGPT.txt"),
            "clients": {
                f"shard-{n}": str(shards / f"local_training_{n}.json") for n in DOLLY_FILES
            },
        },
    }
    return config_from_dict(with_overrides({**DOLLY, **DOLLY_BY_UNIT[unit], **named}, overrides))


def settings_of(part: Part, shared: Path) -> Row:
    """What decides a row's numbers, without the places of files."""
    raw = config_of(part, shared).model_dump(mode="json")
    if part.arm is None:
        raw = {key: raw[key] for key in ("data", "evaluation", "seed")}
    raw.pop("model", None)
    raw["data"] = {k: v for k, v in raw["data"].items() if k not in ("clients", "owner_text")}
    return raw


def shared_noise(part: Part) -> Callable[[], NoiseSource]:
    """One key for each client and round, in the order in which they train; all arms have it."""
    count = itertools.count()

    def source() -> NoiseSource:
        text = f"paired benchmark/{part.source}/{part.seed}/{next(count)}"
        return NoiseSource(hashlib.sha256(text.encode()).digest())

    return source


def measured(part: Part, shared: Path) -> Row:
    """Do one part, on one thread."""
    torch.set_num_threads(1)
    disable_progress_bar()
    started = time.process_time()
    config = config_of(part, shared)
    numbers = run_arm(part, config) if part.arm else ceiling(config)
    seconds = round(time.process_time() - started, 1)
    return {**part.key, **numbers, "cpu_seconds": seconds, "settings": settings_of(part, shared)}


def ceiling(config: Config) -> Row:
    """Full fine-tuning and the untuned model, as a run measures them."""
    parts, asked = load_parts(config), config.evaluation
    best = full_fine_tuning(
        lambda: load_model(config.model.path, config.model.dtype, parts.device),
        pooled(list(parts.train.values())),
        parts.choose,
        parts.report,
        learning_rates=asked.ceiling_learning_rates,
        max_epochs=asked.ceiling_epochs,
        batch_size=asked.ceiling_batch_size,
        micro_batch_size=config.training.micro_batch_size,
        seed=config.seed,
    )
    zero = measure(parts.model, parts.report)
    return {"full_zero_shot": zero.loss, "full_tuned": best.quality.loss, "epoch": best.epoch}


def run_arm(part: Part, config: Config) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        summary = simulate(config, Path(folder) / "run", make_noise=shared_noise(part))
    wire, quality = summary["wire"], summary["quality"]
    return {
        "full_zero_shot": quality["full_zero_shot"]["loss"],
        "plug_in": quality["plug_in"]["loss"],
        "best_round": summary["best_round"],
        "chain": wire["chain"],
        "error_feedback": wire["error_feedback"],
        "sent_ratio": wire["sent_bytes"] / wire["float32_bytes"],
        "noise": "seeded, shared by the arms: no epsilon is claimed" if part.unit != "none" else "",
    }


def with_recovery(rows: list[Row]) -> list[Row]:
    """Recovery wherever the ceiling of the same federation and seed is known."""
    tops = {(r["source"], r["seed"]): r for r in rows if r["arm"] is None}
    result = []
    for row in rows:
        top = tops.get((row["source"], row["seed"]))
        if row["arm"] and top:
            worth = top["full_zero_shot"] - top["full_tuned"]
            row = row | {"recovery": (row["full_zero_shot"] - row["plug_in"]) / worth}
        result.append(row)
    return result


def lost(rows: list[Row], source: str, unit: str, arm: str) -> list[float]:
    """Recovery of float32 minus that of an arm, seed by seed."""
    found = {
        (r["arm"], r["seed"]): r["recovery"]
        for r in rows
        if (r["source"], r["unit"]) == (source, unit) and "recovery" in r
    }
    seeds = sorted(seed for one, seed in found if one == arm and ("float32", seed) in found)
    return [found["float32", seed] - found[arm, seed] for seed in seeds]


def marks(rows: list[Row]) -> list[Row]:
    found = []
    for source, unit, (arm, limit) in itertools.product(
        dict.fromkeys(r["source"] for r in rows), UNITS, LIMITS.items()
    ):
        differences = lost(rows, source, unit, arm)
        if differences:
            name = f"recovery lost to float32 by {arm}, {source}, {unit_name(unit)}"
            one = mark(name, statistics.mean(differences), "at_most", limit)
            found.append(one | {"standard_error": error_of(differences), "seeds": len(differences)})
    return found


def kept_under_dp(rows: list[Row]) -> list[Row]:
    """What float32 at epsilon 8 keeps of the gain without DP."""
    found = []
    for source in dict.fromkeys(r["source"] for r in rows):
        gains: dict[str, list[float]] = {unit: [] for unit in UNITS}
        for row in rows:
            if (row["source"], row["arm"]) == (source, "float32"):
                gains[row["unit"]].append(row["full_zero_shot"] - row["plug_in"])
        if all(gains.values()):
            kept = statistics.mean(gains["example"]) / statistics.mean(gains["none"])
            found.append(mark(f"kept at epsilon 8, {source}", kept, "at_least", 0.6))
    return found


def error_of(values: list[float]) -> float | None:
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def unit_name(unit: str) -> str:
    return "no DP" if unit == "none" else "epsilon 8"


def show(rows: list[Row], found: list[Row]) -> None:
    print(f"{'federation':10} {'privacy':10} {'arm':16} {'x fp32':>7} {'recovery':>9}  lost (SE)")
    for source, unit, arm in itertools.product(
        dict.fromkeys(r["source"] for r in rows), UNITS, ARMS
    ):
        some = [r for r in rows if (r["source"], r["unit"], r["arm"]) == (source, unit, arm)]
        some = [r for r in some if "recovery" in r]
        if not some:
            continue
        ratio, recovery = (
            statistics.mean(r[name] for r in some) for name in ("sent_ratio", "recovery")
        )
        line = f"{source:10} {unit_name(unit):10} {arm:16} {ratio:7.3f} {recovery:9.3f}  "
        differences = lost(rows, source, unit, arm)
        if differences:
            line += f"{statistics.mean(differences):+.4f} ({error_of(differences) or math.nan:.4f})"
        print(line)
    for one in found:
        limit = f"<= {one['at_most']:g}" if "at_most" in one else f">= {one['at_least']:g}"
        print(
            f"{'holds' if one['holds'] else 'FAILS':6} {one['name']}: {one['value']:+.4f} {limit}"
        )


def part_of(row: Row) -> Part:
    return Part(row["source"], row["seed"], row["unit"], row["arm"])


def kept(shared: Path) -> list[Row]:
    """Rows of the results file that were made with today's settings."""
    path = RESULTS / "codec_utility.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    return [row for row in rows if row["settings"] == settings_of(part_of(row), shared)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, help="folder with models/ and data/; else demo only")
    parser.add_argument("--sources", nargs="*", default=["demo", "dolly"])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--units", nargs="*", default=list(UNITS), choices=UNITS)
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each")
    options = parser.parse_args()
    sources = [one for one in options.sources if one == "demo" or options.shared]
    shared = (options.shared or Path()).resolve()
    tops = [Part(source, seed) for seed in options.seeds for source in sources]
    runs = [
        Part(top.source, top.seed, unit, arm)
        for top in tops
        for unit in options.units
        for arm in options.arms
    ]
    rows = kept(shared)
    done = [part_of(row) for row in rows]
    demo_config()  # makes the base model, before two processes would do it at once
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, mp_context=spawn) as pool:
        todo = [part for part in [*tops, *runs] if part not in done]
        work = functools.partial(measured, shared=shared)
        for future in as_completed([pool.submit(work, part) for part in todo]):
            row = future.result()
            print(json.dumps({k: v for k, v in row.items() if k != "settings"}), flush=True)
            rows.append(row)
            whole = with_recovery(rows)
            write("codec_utility", whole, marks(whole), PACKAGES)
    whole = with_recovery(rows)
    found = [*marks(whole), *kept_under_dp(whole)]
    write("codec_utility", whole, found, PACKAGES)
    show(whole, found)
    sys.exit(0 if found and all(one["holds"] for one in found) else 1)


if __name__ == "__main__":
    main()
