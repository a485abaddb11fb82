"""A run from its first measurement to its last, whatever engine its clients work in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fedot.emulator.bundle import Bundle
from fedot.engines.engine import Engine
from fedot.evaluation.quality import Quality
from fedot.federation.assess import FIVE
from fedot.federation.built import Models, Sign, build_bundle, load_models
from fedot.federation.finals import tuned
from fedot.federation.loop import close_start, is_over, run_rounds
from fedot.federation.work import Work, measured, timed

__all__ = ["Outcome", "OpenEngine", "run_whole"]

OpenEngine = Callable[[Models], Engine]
"""Makes the engine once the bundle is there; called only if a round is still to do."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run made.

    Attributes:
        five: quality by the names in `FIVE`; None where it could not be had.
        general: full model and emulator, untuned, on the owner's held-out text.
    """

    bundle: Bundle
    five: dict[str, Quality | None]
    general: tuple[Quality, Quality] | None


def run_whole(
    work: Work, names: Sequence[str], open_engine: OpenEngine, sign: Sign | None = None
) -> Outcome:
    """Measure, build, tune and measure again; what an earlier process finished is not done again.

    Raises:
        ProtocolError: a round could not be closed.
        RunStopped: the caller asked for it.
    """
    run, report = work.run, work.yardstick.report
    zero = timed(
        run, "evaluation", lambda: measured(work, "full_zero_shot", work.parts.model, report)
    )
    bundle = timed(run, "emulator", lambda: build_bundle(work, sign))
    models, general = timed(run, "evaluation", lambda: load_models(work, bundle))
    timed(run, "rounds", lambda: _rounds(work, models, names, open_engine))
    five = dict.fromkeys(FIVE) | {"full_zero_shot": zero}
    return Outcome(bundle, five | timed(run, "evaluation", lambda: tuned(work, models)), general)


def _rounds(work: Work, models: Models, names: Sequence[str], open_engine: OpenEngine) -> None:
    close_start(work, models)
    if not is_over(work):
        run_rounds(work, models, open_engine(models), names)
    # Once more: a kill may have come between the last round's end and its line.
    work.run.write_metrics()
