"""What the demo reaches: quality, privacy and bytes, over seeds. `make bench-demo`.

Every arm is `fedot demo` with other settings. Rows that are in the results file already, made with
the same settings, are kept, so that a long run can be cut off and taken up again.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
from pathlib import Path

from record import RESULTS, Row, mark, write

from fedot.emulator.selection import kept_blocks
from fedot.evaluation.quality import measure
from fedot.federation.parts import load_parts
from fedot.models.anatomy import anatomy_of, shallower
from fedot.studies.demo import BY_UNIT, SETTINGS, demo_config, run_demo

SAME_STEPS = "LoRA, DP's steps, no noise"
ARMS: dict[str, list[str]] = {
    "blocks, no DP": ["privacy.unit=none"],
    "LoRA, no DP": ["privacy.unit=none", "adapter.kind=lora"],
    "LoRA, epsilon 8": [],
    # What DP's own few steps gain without its noise.
    SAME_STEPS: [
        "privacy.unit=none",
        *(
            f"{part}.{key}={value}"
            for part, of in BY_UNIT["example"].items()
            for key, value in of.items()
        ),
        *("training.final_lr_ratio=0.1", "training.join_noise=0.0"),
        *("federation.server_learning_rate=1.0", "payload.error_feedback=null"),
    ],
    "LoRA, epsilon 3": ["privacy.target_epsilon=3"],
    "LoRA, epsilon 1": ["privacy.target_epsilon=1"],
}
QUALITY = ("full_zero_shot", "full_tuned", "emulator_zero_shot", "emulator_tuned", "plug_in")


def run(arm: str, seed: int) -> Row:
    top = next((row for row in measured() if row["seed"] == seed), None)
    overrides = [*ARMS[arm], f"seed={seed}"]
    if top:
        # The ceiling is the same for all arms of a seed: all records, all blocks, no federation.
        overrides.append("evaluation.ceiling_learning_rates=[]")
    with tempfile.TemporaryDirectory() as folder:
        summary = run_demo(Path(folder) / "run", overrides=overrides)
    losses = {name: one["loss"] for name, one in summary["quality"].items() if one}
    recovery, ceiling = summary["recovery"], summary["ceiling"]
    if top:
        losses["full_tuned"], ceiling = top["full_tuned"], top["ceiling"]
        worth = losses["full_zero_shot"] - losses["full_tuned"]
        recovery = (losses["full_zero_shot"] - losses["plug_in"]) / worth
    wire, seconds = summary["wire"], summary["seconds"]
    spent = summary["privacy"]["epsilon"]
    numbers = ("plug_in_gain", "plug_in_gain_se", "plug_in_advantage", "leak_margin")
    return {
        "arm": arm,
        "seed": seed,
        "settings": ARMS[arm],
        "demo": demo_settings(arm),
        **{name: losses[name] for name in QUALITY},
        "recovery": recovery,
        **{name: summary[name] for name in (*numbers, "general_gap")},
        "sent_ratio": wire["sent_bytes"] / wire["float32_bytes"],
        "largest_epsilon": max(spent.values()) if spent else None,
        "ceiling": ceiling,
        "general_gap_se": summary["general_gap_se"],
        "seconds": round(sum(seconds.values()), 1),
    }


def demo_settings(arm: str) -> Row:
    """What the demo sets for an arm, as JSON has it."""
    unit = "none" if "privacy.unit=none" in ARMS[arm] else "example"
    settings: Row = json.loads(json.dumps({**SETTINGS, unit: BY_UNIT[unit]}))
    return settings


def measured() -> list[Row]:
    """Rows of the results file that were made with today's settings."""
    path = RESULTS / "demo.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    return [
        row
        for row in rows
        if row["demo"] == demo_settings(row["arm"]) and row["settings"] == ARMS[row["arm"]]
    ]


def over_seeds(rows: list[Row], arm: str, name: str) -> tuple[float, float]:
    """Mean over seeds and its standard error."""
    values = [row[name] for row in rows if row["arm"] == arm]
    spread = statistics.stdev(values) if len(values) > 1 else math.inf
    return statistics.mean(values), spread / math.sqrt(len(values))


def marks(rows: list[Row]) -> list[Row]:
    arms = {row["arm"] for row in rows}
    found = []
    free = [arm for arm in arms if "no DP" in arm]
    if free:
        best = max(over_seeds(rows, arm, "recovery")[0] for arm in free)
        found.append(mark("recovery without DP, better arm", best, "at_least", 0.7))
    for arm in sorted(arms):
        worth = min(r["full_zero_shot"] - r["full_tuned"] for r in rows if r["arm"] == arm)
        found.append(mark(f"ZS - FT, nats, {arm}", worth, "at_least", 0.2))
        ratio = max(r["sent_ratio"] for r in rows if r["arm"] == arm)
        found.append(mark(f"bytes sent over float32, {arm}", ratio, "at_most", 0.25))
    if "LoRA, epsilon 8" in arms:
        gain, se = over_seeds(rows, "LoRA, epsilon 8", "plug_in_gain")
        found.append(
            mark("epsilon 8: gain over zero-shot, SE over seeds", gain / se, "at_least", 2)
        )
        least = min(
            r["plug_in_gain"] / r["plug_in_gain_se"] for r in rows if r["arm"] == "LoRA, epsilon 8"
        )
        found.append(mark("epsilon 8: gain over zero-shot, SE over records", least, "at_least", 2))
        if free:
            kept = over_seeds(rows, "LoRA, epsilon 8", "recovery")[0] / best
            found.append(mark("epsilon 8: part of the recovery without DP", kept, "at_least", 0.6))
    return found


def drop_half_cost() -> float:
    """What half of the middle is worth, in nats on the owner's held-out text, undistilled."""
    parts = load_parts(demo_config())
    assert parts.owner_held_out is not None
    whole = measure(parts.model, parts.owner_held_out).loss
    kept = kept_blocks(anatomy_of(parts.model).num_blocks, num_end_blocks=1, keep_ratio=0.5)
    return measure(shallower(parts.model, kept), parts.owner_held_out).loss - whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS))
    options = parser.parse_args()
    for seed in options.seeds:
        for arm in options.arms:
            if not any((row["arm"], row["seed"]) == (arm, seed) for row in measured()):
                row = run(arm, seed)
                print(json.dumps(row), flush=True)
                # Read again: another process may have measured another arm meanwhile.
                rows = sorted([*measured(), row], key=lambda r: (r["arm"], r["seed"]))
                write("demo", rows, marks(rows), ["torch", "transformers", "peft", "opacus"])
    found = [*marks(measured()), mark("drop half, nats", drop_half_cost(), "at_least", 0.25)]
    write("demo", measured(), found, ["torch", "transformers", "peft", "opacus"])
    for one in found:
        print(f"{'holds' if one['holds'] else 'FAILS':6} {one['name']}: {one['value']:.3f}")
    sys.exit(0 if all(one["holds"] for one in found) else 1)


if __name__ == "__main__":
    main()
