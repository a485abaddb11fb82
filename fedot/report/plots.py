"""The four pictures of a run, each a function from plain data to SVG text.

A function returns None where there is nothing to draw; the page then says why. One colour has one
meaning in all of them: orange what data owners hold, blue the plugged-in model, grey the closed
model by itself, green the model owner's own text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import ceil

from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, MaxNLocator

from fedot.report.drawing import (
    BAR,
    EMULATOR,
    INK,
    MUTED,
    PAPER,
    PLUG_IN,
    PROXY,
    drawn_alike,
    new_figure,
    to_svg,
    trim,
)
from fedot.report.formats import epsilon_text, in_bytes, percent, shortened
from fedot.report.run_files import NUMBERS
from fedot.report.wording import LABELS

__all__ = [
    "MOST_CLIENTS",
    "bytes_per_operator",
    "epsilon_per_client",
    "epsilon_step",
    "five_numbers",
    "loss_by_round",
]

MOST_CLIENTS = 40
"""More bars than this cannot be read; those that spent most are drawn."""

_SERIES = {
    "plug_in": ("plug-in", PLUG_IN, "-"),
    "emulator": ("emulator tuned", EMULATOR, "-"),
    "proxy": ("plug-in, owner's proxy text", PROXY, "--"),
}
_COLOURS = {
    "emulator_zero_shot": EMULATOR,
    "full_zero_shot": MUTED,
    "emulator_tuned": EMULATOR,
    "plug_in": PLUG_IN,
    "full_tuned": INK,
}
_STANDARD_HEIGHT_PT = 270.0
_NAME_LENGTH = 22
_MOST_MARKERS = 25
_MOST_STEPS = 12


def loss_by_round(
    series: Mapping[str, Sequence[tuple[int, float]]],
    *,
    zero_shot: float | None = None,
    full_tuned: float | None = None,
    best_round: int | None = None,
) -> str | None:
    """Loss against rounds, between the untuned full model and the fully tuned one.

    Args:
        series: (round, nats per token) pairs by "plug_in", "emulator" and "proxy"; any may be
            missing or empty.
        zero_shot: the full model's loss before tuning.
        full_tuned: its loss after full fine-tuning on pooled records.
        best_round: ringed in every line.
    """
    drawn = {name: points for name in _SERIES if (points := series.get(name))}
    if not drawn:
        return None
    with drawn_alike():
        figure, axes = new_figure(_STANDARD_HEIGHT_PT)
        for name, points in drawn.items():
            _draw_line(axes, points, *_SERIES[name])
        _ring(axes, drawn.values(), best_round)
        for level, label, dashes in ((zero_shot, "full zero-shot", (0, (1, 1.6))),
                                     (full_tuned, "full tuned", (0, (5, 2)))):  # fmt: skip
            if level is not None:
                axes.axhline(level, color=MUTED, linestyle=dashes, linewidth=1.4, label=label)
        _count_rounds(axes, [number for points in drawn.values() for number, _ in points])
        axes.set_ylabel("loss, nats per token")
        trim(axes, across="y")
        figure.legend(loc="outside upper left", ncols=2, columnspacing=1.6, borderpad=0)
        return to_svg(figure, "loss", "Loss by round")


def five_numbers(
    numbers: Mapping[str, tuple[float, float | None] | None], recovery: float | None = None
) -> str | None:
    """The five quality numbers as dots with bars of two standard errors.

    Args:
        numbers: (loss, its standard error) by the names of `NUMBERS`; None or missing where not
            measured.
        recovery: drawn as the span from untuned over plug-in to fully tuned, where all are known.
    """
    known = {name: pair for name in NUMBERS if (pair := numbers.get(name))}
    if not known:
        return None
    with drawn_alike():
        figure, axes = new_figure(_STANDARD_HEIGHT_PT)
        for row, name in enumerate(NUMBERS):
            _draw_number(axes, row, known.get(name), _COLOURS[name])
        labels = [LABELS[name] for name in NUMBERS]
        if recovery is not None and {"full_zero_shot", "plug_in", "full_tuned"} <= known.keys():
            losses = {name: loss for name, (loss, _) in known.items()}
            _draw_recovery(axes, losses, recovery)
            labels.append("recovery")
        axes.set_yticks(range(len(labels)), labels)
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.margins(x=0.08)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel("loss, nats per token (lower is better)")
        trim(axes, across="x")
        return to_svg(figure, "numbers", "The five quality numbers")


def bytes_per_operator(bytes_after: Mapping[str, int]) -> str | None:
    """Bytes of all updates after each operator of the chain, against plain float32.

    Args:
        bytes_after: by operator, in order; ratios are to the first.
    """
    if not bytes_after or not max(bytes_after.values()):
        return None
    first, *_ = sizes = list(bytes_after.values())
    with drawn_alike():
        figure, axes = new_figure(max(120.0, 48.0 + 34.0 * len(sizes)))
        colours = [BAR] + [PLUG_IN] * (len(sizes) - 1)
        axes.barh(range(len(sizes)), sizes, height=0.62, color=colours)
        for row, size in enumerate(sizes):
            ratio = f" ({percent(size / first)})" if row and first else ""
            _write_beside(axes, size, row, in_bytes(size) + ratio)
        names = [shortened(name, _NAME_LENGTH) for name in bytes_after]
        axes.set_yticks(range(len(sizes)), names)
        axes.invert_yaxis()
        axes.set_xlim(0, max(sizes) * 1.34)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(EngFormatter(unit="B"))
        axes.set_xlabel("bytes of all updates together")
        trim(axes, across="x")
        return to_svg(figure, "bytes", "Bytes of the updates after each operator")


def epsilon_per_client(
    spent: Mapping[str, float],
    *,
    target: float | None = None,
    by_round: Mapping[str, Sequence[float]] | None = None,
) -> str | None:
    """Epsilon that each client has spent, against the target.

    Args:
        spent: by client, after the last round.
        target: what all rounds together may spend.
        by_round: by client, what it had spent after each round; cuts its bar into rounds (every
            `epsilon_step`-th of them).
    """
    if not spent:
        return None
    names = sorted(spent, key=lambda name: -spent[name]) if len(spent) > MOST_CLIENTS else spent
    chosen = list(names)[:MOST_CLIENTS]
    steps = by_round or {}
    every = epsilon_step(max(map(len, steps.values()), default=0))
    with drawn_alike():
        figure, axes = new_figure(
            max(120.0, 60.0 + min(34.0, 14.0 + 60 / len(chosen)) * len(chosen))
        )
        axes.barh(range(len(chosen)), [spent[name] for name in chosen], height=0.62, color=PLUG_IN)
        for row, name in enumerate(chosen):
            _cut(axes, row, steps.get(name, ())[every - 1 :: every], spent[name])
            _write_beside(axes, spent[name], row, epsilon_text(spent[name]))
        axes.set_yticks(range(len(chosen)), [shortened(name, _NAME_LENGTH) for name in chosen])
        axes.set_ylim(len(chosen) - 0.4, -0.6)
        axes.set_xlim(0, 1.16 * max(*(spent[name] for name in chosen), target or 0, 1e-9))
        if target is not None:
            _draw_target(axes, target)
        axes.set_xlabel("epsilon spent (lower is more private)")
        trim(axes, across="x")
        return to_svg(figure, "epsilon", "Epsilon spent by each client")


def epsilon_step(num_rounds: int) -> int:
    """Every how many rounds a bar is cut, so that the cuts can still be told apart."""
    return max(1, ceil(num_rounds / _MOST_STEPS))


def _draw_line(
    axes: Axes, points: Sequence[tuple[int, float]], label: str, colour: str, dashes: str
) -> None:
    marker = "o" if len(points) <= _MOST_MARKERS else ""
    rounds, losses = zip(*points, strict=True)
    axes.plot(rounds, losses, dashes, color=colour, marker=marker, markersize=4, label=label)


def _ring(axes: Axes, lines: Iterable[Sequence[tuple[int, float]]], best: int | None) -> None:
    """Mark the best round in every line; its loss is what was chosen, not what was hoped for."""
    ringed = [(number, loss) for points in lines for number, loss in points if number == best]
    if ringed:
        rounds, losses = zip(*ringed, strict=True)
        axes.plot(
            rounds, losses, "o", markersize=10, markerfacecolor="none", markeredgecolor=INK,
            markeredgewidth=1.2, label=f"best round ({best})",
        )  # fmt: skip


def _count_rounds(axes: Axes, rounds: Sequence[int]) -> None:
    first, last = min(rounds), max(rounds)
    room = max(0.5, 0.03 * (last - first))
    axes.set_xlim(first - room, last + room)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.set_xlabel("round")


def _draw_number(
    axes: Axes, row: int, pair: tuple[float, float | None] | None, colour: str
) -> None:
    beside = axes.get_yaxis_transform()
    if pair is None:
        axes.text(1.02, row, "not known", transform=beside, va="center", color=MUTED)
        return
    loss, loss_se = pair
    axes.errorbar(
        loss, row, xerr=2 * (loss_se or 0), fmt="o", color=colour, markersize=7, capsize=4,
        elinewidth=1.6, capthick=1.6,
    )  # fmt: skip
    axes.text(1.02, row, f"{loss:.3f}", transform=beside, va="center")


def _draw_recovery(axes: Axes, losses: Mapping[str, float], recovery: float) -> None:
    """The gain of plug-in as a part of full fine-tuning's gain, below the dots it is made of."""
    row = len(NUMBERS)
    before, after, ceiling = (losses[n] for n in ("full_zero_shot", "plug_in", "full_tuned"))
    axes.barh(row, ceiling - before, left=before, height=0.34, color=BAR)
    axes.barh(row, after - before, left=before, height=0.34, color=PLUG_IN)
    for name in ("full_zero_shot", "plug_in", "full_tuned"):
        tops = [NUMBERS.index(name) + 0.25, row - 0.17]
        axes.plot([losses[name]] * 2, tops, ":", color=MUTED, linewidth=1)
    axes.text(
        1.02, row, percent(recovery), transform=axes.get_yaxis_transform(), va="center",
        color=PLUG_IN, fontweight="bold",
    )  # fmt: skip


def _write_beside(axes: Axes, value: float, row: int, text: str) -> None:
    axes.annotate(text, (value, row), (5, 0), textcoords="offset points", va="center")


def _cut(axes: Axes, row: int, steps: Sequence[float], spent: float) -> None:
    cuts = [value for value in steps if 0 < value < spent]
    axes.vlines(cuts, row - 0.31, row + 0.31, color=PAPER, linewidth=1.2)


def _draw_target(axes: Axes, target: float) -> None:
    axes.axvline(target, color=INK, linewidth=1.6, linestyle=(0, (5, 2)))
    axes.text(
        target, 1.01, f"target {target:g}", transform=axes.get_xaxis_transform(), ha="center",
        va="bottom", color=INK,
    )  # fmt: skip
