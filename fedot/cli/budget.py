"""Verbs about privacy budgets: what was spent, and what a run would spend."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedot.console import Console

__all__ = ["add_to"]

Delta = Annotated[
    float, typer.Option(min=1e-15, max=0.5, help="Chance that epsilon does not hold.")
]
budget = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


def add_to(app: typer.Typer) -> None:
    """Add this file's verbs."""
    app.add_typer(budget, name="budget", help="Privacy budgets: what was spent, what a run costs.")


@budget.command()
def show(
    path: Annotated[
        Path,
        typer.Argument(metavar="POLICY_OR_RUN", help="A site's policy, a simulation, or a ledger."),
    ],
    policy: Annotated[
        Path | None, typer.Option(help="The data owner's policy, for a ledger file.")
    ] = None,
    delta: Delta = 1e-5,
) -> None:
    """Say what each data set has spent and what remains."""
    from fedot.federation.spending import reported_in, spent_in
    from fedot.report import budget as tables

    accounts, told = spent_in(path, policy, delta), reported_in(path)
    with Console() as console:
        if accounts:
            console.table(tables.SPENT_COLUMNS, tables.spent_rows(accounts))
            console.info(tables.spent_text())
        if told:
            console.table(tables.REPORTED_COLUMNS, tables.reported_rows(told))
            console.info(tables.reported_text())


@budget.command()
def plan(
    records: Annotated[int, typer.Option(min=1, help="Records a client trains on.")],
    batch_size: Annotated[int, typer.Option(min=1, help="Expected records a step.")],
    steps: Annotated[int, typer.Option(min=1, help="Steps a round.")],
    rounds: Annotated[int, typer.Option(min=1, help="Rounds the client takes part in.")],
    epsilon: Annotated[float | None, typer.Option(min=1e-3, max=100, help="To be met.")] = None,
    noise: Annotated[
        float | None, typer.Option(min=0.1, max=1e4, help="Noise multiplier, instead of epsilon.")
    ] = None,
    delta: Delta = 1e-5,
    max_batch_size: Annotated[
        int | None, typer.Option(min=1, help="Larger batches are cut to this.")
    ] = None,
) -> None:
    """Find the noise for an epsilon, or the epsilon of a noise, and what other rounds cost."""
    from fedot.privacy.planning import plan_rounds
    from fedot.report.budget import PLAN_COLUMNS, plan_rows, plan_text

    found = plan_rounds(
        num_records=records,
        batch_size=batch_size,
        steps_per_round=steps,
        rounds=rounds,
        delta=delta,
        epsilon=epsilon,
        noise_multiplier=noise,
        max_batch_size=max_batch_size,
    )
    with Console() as console:
        console.info(plan_text(found))
        console.table(PLAN_COLUMNS, plan_rows(found))
