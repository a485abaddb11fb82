"""Budgets as tables: what was spent, and what a plan would cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedot.federation.spending import Spent
from fedot.privacy.accounting import NEIGHBOURING, NEIGHBOURING_CLIENTS
from fedot.privacy.planning import Plan
from fedot.report.formats import counted, epsilon_text

__all__ = [
    "PLAN_COLUMNS",
    "REPORTED_COLUMNS",
    "SPENT_COLUMNS",
    "plan_rows",
    "plan_text",
    "reported_rows",
    "reported_text",
    "spent_rows",
    "spent_text",
]

_NAME_LENGTH = 18
SPENT_COLUMNS = (
    ("data set", _NAME_LENGTH),
    ("rounds", 8),
    ("epsilon", 7),
    ("RDP", 7),
    ("delta", 6),
    ("what remains", None),
)
REPORTED_COLUMNS = (("site", _NAME_LENGTH), ("epsilon", 7), ("", None))
PLAN_COLUMNS = (("rounds", 8), ("epsilon", 10), ("RDP", 10), ("", None))


def spent_rows(accounts: Sequence[Spent]) -> list[list[str]]:
    """One row for each data set, in the columns of `SPENT_COLUMNS`."""
    return [
        [
            spent.dataset_id,
            f"{spent.charged} + {spent.reserved}" if spent.reserved else str(spent.charged),
            epsilon_text(spent.epsilon),
            _rdp(spent.epsilon_rdp),
            f"{spent.delta:g}",
            _remaining(spent),
        ]
        for spent in accounts
    ]


def spent_text() -> str:
    """What the columns mean."""
    return (
        f"Epsilon is an upper bound (PLD); data sets differ by: {NEIGHBOURING}. RDP is looser.\n"
        f"A server's ledger (federation) is about all clients; they differ by: "
        f"{NEIGHBOURING_CLIENTS}.\n"
        "Rounds: charged + reserved. Those began and have no update yet; they count as spent.\n"
        "What remains: rounds like the last one."
    )


def reported_rows(told: Mapping[str, float]) -> list[list[str]]:
    """One row for each site, in the columns of `REPORTED_COLUMNS`."""
    return [[site, epsilon_text(epsilon), "as it reported"] for site, epsilon in told.items()]


def reported_text() -> str:
    """Why there is no more to show of a network run."""
    return (
        "Ledgers of a network run stay at its sites. Epsilon is what each site reported with its "
        "last update, over all runs on its data set; nobody else can check it.\n"
        "At a site: fedot budget show policy.ledger.jsonl --policy policy.yaml"
    )


def plan_rows(plan: Plan) -> list[list[str]]:
    """What more or fewer rounds cost, in the columns of `PLAN_COLUMNS`."""
    return [
        [
            str(cost.rounds),
            epsilon_text(cost.epsilon),
            _rdp(cost.epsilon_rdp),
            "as planned" if cost.rounds == plan.rounds else "",
        ]
        for cost in plan.costs
    ]


def plan_text(plan: Plan) -> str:
    """The plan in two lines, or three where batches are the whole data."""
    event = plan.event
    cap = f", at most {event.max_batch_size} records a batch" if event.max_batch_size else ""
    whole = (
        "\nThe batch is as large as the data or larger, so every record is in each step."
        if event.sampling_prob == 1
        else ""
    )
    return (
        f"noise multiplier {event.noise_multiplier:.4f}, sampling probability "
        f"{event.sampling_prob:.4g}, {counted(event.num_steps, 'step')} a round{cap}\n"
        f"delta {plan.delta:g}; data sets differ by: {NEIGHBOURING}{whole}"
    )


def _rdp(epsilon: float | None) -> str:
    return "none" if epsilon is None else epsilon_text(epsilon)


def _remaining(spent: Spent) -> str:
    if spent.limit is None or spent.rounds_left is None:
        return "no limit known: --policy"
    return f"{spent.rounds_left} rounds ({spent.limit_from} {spent.limit:g})"
