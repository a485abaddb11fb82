"""Numbers of a run as rows of a table: what it is called, its value, what it means."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from fedot.report.formats import epsilon_text, in_bytes, in_seconds, percent
from fedot.report.wording import absent, client_level_sentence, privacy_sentence, privacy_unit

if TYPE_CHECKING:
    from fedot.federation.estimate import Estimate
    from fedot.report.run_files import Summary

__all__ = ["bytes_cells", "epsilon_rows", "estimate_rows"]

_MOST_CLIENTS = 8
# Records' gradients agree by a tenth or so: noise this long hides what they have in common.
_DROWNS = 1.0


def epsilon_rows(summary: Summary) -> Iterable[tuple[str, str, str]]:
    """What was spent, client by client."""
    privacy = summary.privacy
    meaning = f"Bounds what updates reveal about {privacy_unit(summary)}."
    level = privacy.client_level
    if level is not None and level.epsilon is not None:
        yield "epsilon of a client", epsilon_text(level.epsilon), client_level_sentence(summary)
    if privacy.unit == "none":
        yield "epsilon", "no DP", privacy_sentence(summary)
    elif privacy.unit == "client":
        return
    elif not privacy.spent:
        yield "epsilon", "not known", absent(summary, "privacy")
    else:
        target = f" of {privacy.target_epsilon:g}" if privacy.target_epsilon is not None else ""
        shown = sorted(privacy.spent.items(), key=lambda pair: -pair[1])
        hidden = len(shown) - _MOST_CLIENTS
        for name, epsilon in shown[:_MOST_CLIENTS] if hidden > 0 else privacy.spent.items():
            yield f"epsilon {name}", epsilon_text(epsilon) + target, meaning
            meaning = ""
        if hidden > 0:
            yield f"epsilon, {hidden} others", f"at most {epsilon_text(shown[-hidden][1])}", ""


def estimate_rows(cost: Estimate) -> Iterable[tuple[str, str, str]]:
    """What a run would cost."""
    sizes = f"of {cost.full_parameters:,} in the full model"
    yield "emulator parameters", f"{cost.emulator_parameters:,}", sizes
    yield "adapter parameters", f"{cost.adapter_parameters:,}", "What trains and travels."
    yield "memory, client", in_bytes(cost.client_bytes), "About; weights and training together."
    yield "memory, simulation", in_bytes(cost.server_bytes), "About; full model, emulator, client."
    yield "time", in_seconds(cost.seconds), "About, on this machine, measured on a few records."
    ratio = percent(cost.sent_bytes / cost.float32_bytes)
    meaning = f"All updates, {ratio} of them as float32 (measured on noise), by {cost.chain}."
    yield "bytes sent", in_bytes(cost.sent_bytes), meaning
    if cost.chain_reason:
        yield "chain", cost.chain, cost.chain_reason
    yield "bytes received", in_bytes(cost.received_bytes), "All states; the bundle apart."
    if cost.client_epsilon is not None:
        meaning = "For all its records, towards all but the model owner."
        yield "epsilon of a client", epsilon_text(cost.client_epsilon), meaning
    elif not cost.epsilon:
        yield "epsilon", "no DP", "privacy.unit is none: nothing bounds what updates tell."
    for name, epsilon in cost.epsilon.items():
        length = cost.noise_length[name]
        noise = (
            f"Noise multiplier {cost.noise_multiplier[name]:.3f}: a step's noise is {length:.2f} "
            "times as long as its batch's gradient can be."
        )
        if length > _DROWNS:
            noise += " Little will be learned: raise training.batch_size, or train less at once."
        yield f"epsilon {name}", epsilon_text(epsilon), noise


def bytes_cells(summary: Summary) -> tuple[str, str]:
    """How much was sent, and beside what."""
    wire = summary.wire
    if not wire.float32_bytes:
        return "none", "No update was sent."
    value = f"{in_bytes(wire.sent_bytes)} of {in_bytes(wire.float32_bytes)}"
    ratio = percent(wire.sent_bytes / wire.float32_bytes)
    return value, f"Sent: {ratio} of the same updates as float32."
