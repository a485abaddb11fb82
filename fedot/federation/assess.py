"""The five quality numbers of a run, and what follows from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fedot.evaluation.quality import Quality, difference, finite
from fedot.journal import Journal

__all__ = ["FIVE", "kept_quality", "summaries", "verdict"]

FIVE = ("full_zero_shot", "full_tuned", "emulator_zero_shot", "emulator_tuned", "plug_in")


def kept_quality(journal: Journal, key: str, compute: Callable[[], Quality]) -> Quality:
    """Measure once per run: a resumed run reads what it had measured before."""
    kept = journal.fact(f"quality/{key}")
    if kept is not None:
        return Quality.from_json(kept)
    quality = compute()
    journal.note(f"quality/{key}", quality.to_json())
    return quality


def summaries(
    five: Mapping[str, Quality | None],
) -> tuple[dict[str, dict[str, Any] | None], dict[str, str]]:
    """What a report shows of each number, None where it is none, and for a broken one why."""
    shown: dict[str, dict[str, Any] | None] = {}
    notes: dict[str, str] = {}
    for name, quality in five.items():
        shown[name] = quality.summary() if quality and finite(quality.loss) is not None else None
        if quality and not shown[name]:
            notes[name] = "the loss is not finite: training diverged. Lower the learning rate."
    return shown, notes


def verdict(
    five: Mapping[str, Quality | None], general: tuple[Quality, Quality] | None
) -> tuple[dict[str, Any], dict[str, str]]:
    """Recovery, plug-in advantage, leak margin and general gap, as docs/design.md defines them.

    Args:
        five: by the names in `FIVE`; None where a number could not be had.
        general: full model and emulator, untuned, on the owner's held-out text.

    Returns:
        The numbers (None where there is none), and for each such number the reason.
    """
    numbers: dict[str, Any] = {}
    notes: dict[str, str] = {}
    zero, tuned, plugged = five["full_zero_shot"], five["full_tuned"], five["plug_in"]
    copy = five["emulator_tuned"]
    numbers["recovery"], reason = _recovery(zero, tuned, plugged)
    if reason:
        notes["recovery"] = reason
    pairs = {
        "plug_in_advantage": (copy, plugged),
        "leak_margin": (copy, zero),
        "plug_in_gain": (zero, plugged),
        "general_gap": (general[1], general[0]) if general else (None, None),
    }
    for name, (minuend, subtrahend) in pairs.items():
        numbers[name] = numbers[name + "_se"] = None
        if minuend is not None and subtrahend is not None:
            gap, gap_se = difference(minuend, subtrahend)
            numbers[name], numbers[name + "_se"] = finite(gap), finite(gap_se)
    reason = "emulator: none shares the full model; there is no copy to compare with."
    if copy is None:
        notes.update(plug_in_advantage=reason, leak_margin=reason)
    if general is None:
        no_text = "data.owner_text is not set; it is measured on the owner's text."
        notes["general_gap"] = reason if copy is None else no_text
    return numbers, notes


def _recovery(
    zero: Quality | None, tuned: Quality | None, plugged: Quality | None
) -> tuple[float | None, str | None]:
    if zero is None or plugged is None:
        return None, "the plugged-in model was not measured."
    if tuned is None:
        return None, "evaluation.ceiling_learning_rates is empty, so there is no ceiling."
    worth, worth_se = difference(zero, tuned)
    if not worth > 2 * worth_se:
        return None, (
            f"full fine-tuning gained {worth:.4f} nats, less than two standard errors "
            f"({worth_se:.4f} each): there is nothing to recover."
        )
    gained, _ = difference(zero, plugged)
    if finite(gained) is None:
        return None, "the plugged-in model's loss is not finite; its training diverged."
    return gained / worth, None
