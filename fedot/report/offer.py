"""What `fedot join --dry-run` shows a data owner: what a run would train, send and spend."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedot.report.formats import epsilon_text, in_bytes, printable

if TYPE_CHECKING:
    from fedot.cards import RunCard
    from fedot.engines.local_site import Offer

__all__ = ["OFFER_COLUMNS", "offer_rows"]

OFFER_COLUMNS = (("what", 16), ("figure", 24), ("meaning", None))


def offer_rows(card: RunCard, offer: Offer) -> list[tuple[str, str, str]]:
    """Rows for a table; nothing of this has left the site."""
    adapter = f"{printable(card.adapter)}, {card.adapter_parameters:,} values"
    steps = f"{card.training.steps_per_round} steps of {card.training.batch_size} records"
    rows = [
        (
            "run",
            printable(card.name),
            f"{card.rounds} rounds, {card.planned_rounds} with this site",
        ),
        ("trains", adapter, f"on {offer.num_records:,} records, {steps} a round"),
        ("gets", in_bytes(card.bundle_bytes), "the model owner's signed bundle, once"),
        ("sends", f"{in_bytes(offer.update_bytes)} a round", f"through {card.payload.chain}"),
    ]
    if offer.run_epsilon is None:
        meaning = "without DP: nothing bounds what an update tells of a record"
        return [*rows, ("spends", "no budget", meaning)]
    cost = f"delta {offer.delta:g}, per record"
    limit = "no limit" if offer.max_epsilon is None else epsilon_text(offer.max_epsilon)
    return [
        *rows,
        ("spends", f"epsilon {epsilon_text(offer.run_epsilon)}", cost),
        ("spent so far", f"epsilon {epsilon_text(offer.spent_epsilon)}", "on this data set"),
        ("after the run", f"epsilon {epsilon_text(offer.total_epsilon)}", f"policy allows {limit}"),
    ]
