"""What a person at a terminal sees. This is the only file that prints.

Design note: bars only on a terminal; into a file or a pipe goes one plain line when a stage starts
and one when it ends. rich is imported on first use, so that `fedot --help` stays quick. Client
names and notes were written by others: they are printed as they are, never read as markup, and
without anything that could move the cursor.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from time import monotonic
from typing import TYPE_CHECKING, Any, TextIO

from fedot.report.formats import (
    epsilon_text,
    in_bytes,
    in_seconds,
    loss_text,
    printable,
    shortened,
)
from fedot.report.transfers import Transfers

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.progress import Progress, TaskID
    from rich.table import Table

    from fedot.federation.estimate import Estimate
    from fedot.report.audit_section import AuditSection
    from fedot.report.run_files import Quality, Round, Summary

__all__ = ["Console"]

_WIDEST = 100
# A round has a line of its own (`round_line`), so its bar ends without one.
_ROUND = "round "
# Columns beside the names keep so much before names are shortened.
_LEAST_REST = 28
_LOSSES = {"plug_in": "plug-in", "emulator": "emulator"}


class Console:
    """Prints progress, rounds, results and errors; a context manager that leaves no bar behind.

    Args:
        file: where it prints; None means standard output.
        error_file: where errors go; None means standard error.
        force_terminal: None finds out whether `file` is a terminal.
        width: columns; None takes the terminal's, or 80.
    """

    def __init__(
        self,
        *,
        file: TextIO | None = None,
        error_file: TextIO | None = None,
        force_terminal: bool | None = None,
        width: int | None = None,
    ) -> None:
        self._file = file
        self._error_file = error_file
        self._force_terminal = force_terminal
        self._width = width
        self._since: dict[str, float] = {}
        self._tasks: dict[str, TaskID] = {}
        self._transfers = Transfers()

    def __enter__(self) -> Console:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def progress(self, stage: str, done: int, total: int) -> None:
        """Show how far a stage is: a `fedot.messages.Progress`.

        A stage starts when it is first named and ends when `done` reaches `total`. One that runs
        inside another ends without a trace on a terminal.
        """
        stage = printable(stage)
        ended = done >= total > 0
        started = stage not in self._since
        self._since.setdefault(stage, monotonic())
        if self._out.is_terminal:
            self._move_bar(stage, done, total)
        elif started and not ended and not stage.startswith(_ROUND):
            self.info(f"{stage} ...")
        if ended:
            self._end(stage)

    def transfer(self, name: str, done: int, total: int) -> None:
        """Show how far a transfer is, in bytes, its rate and the time that is left.

        A `fedot.messages.Progress` too. Off a terminal a long one has a line now and then, and one
        that is soon over has none.
        """
        name = printable(name)
        state, line = self._transfers.moved(name, done, total)
        if self._out.is_terminal and done < total:
            self._move_bar(name, done, total, state)
        elif name in self._tasks:
            self._remove_bar(name)
        if line:
            self.info(line)

    def round_line(self, metrics: Mapping[str, Any]) -> None:
        """One line for one round, from what stands in its line of `metrics.jsonl`."""
        from fedot.report.run_files import round_from

        self.info("  ".join(_round_parts(round_from(metrics))))

    def summary_table(self, summary: Mapping[str, Any]) -> None:
        """The results of a run with their meaning, for a reader who knows nothing of it."""
        from rich.text import Text

        from fedot.report.run_files import summary_from
        from fedot.report.wording import alerts, headline, other_notes

        checked = summary_from(summary)
        self.close()
        width = min(self._out.width, _WIDEST)
        results = _results(checked, width)
        for part in (Text(headline(checked), "bold"), _quality(checked, width), results):
            self._out.print()
            self._out.print(part, width=width)
        notes = [("!", text) for text in alerts(checked)]
        notes += [("-", text) for text in other_notes(checked)]
        if notes:
            self._out.print()
            self._out.print(_list_of(notes), width=width)

    def estimate_table(self, cost: Estimate) -> None:
        """What a run would cost, for `--dry-run`."""
        from fedot.report.rows import estimate_rows

        columns = (("estimate", 21), ("value", 17), ("what it is", None))
        self.table(columns, estimate_rows(cost))

    def table(
        self, columns: Sequence[tuple[str, int | None]], rows: Iterable[Sequence[str]]
    ) -> None:
        """A plain table; a column of width None takes the room that is left.

        The first column is as wide as its longest name, where there is room for that.
        """
        width = min(self._out.width, _WIDEST)
        self._out.print(_table_of(columns, list(rows), width), width=width)

    def audit_table(self, audit: Mapping[str, Any]) -> None:
        """What an audit found, and what it could not."""
        from rich.text import Text

        from fedot.report.audit_file import audit_from
        from fedot.report.audit_section import LIMITS, audit_section

        found = audit_section(audit_from(audit))
        self.close()
        width = min(self._out.width, _WIDEST)
        self._out.print(_table_of((("audit", 21), ("measured", None)), _audited(found), width))
        told = [text for text in (found.power, *LIMITS) if text]
        notes = [("!", text) for text in found.findings] + [("-", text) for text in told]
        self._out.print()
        self._out.print(_list_of(notes), width=width)
        self._out.print()
        self._out.print(Text(found.verdict, "bold"), width=width)

    def side_by_side(self, prompt: str, answers: Mapping[str, str]) -> None:
        """One prompt, and what each model adds to it."""
        from rich.rule import Rule
        from rich.text import Text

        width = min(self._out.width, _WIDEST)
        for title, text in {"prompt": prompt, **answers}.items():
            self._out.print(Rule(title, align="left", style="dim"), width=width)
            for line in text.splitlines():
                self._out.print(Text(printable(line)), width=width)

    def info(self, message: str) -> None:
        """Plain lines on standard output."""
        for line in message.splitlines():
            self._out.print(printable(line), soft_wrap=True)

    def error(self, message: str) -> None:
        """One line on standard error that starts with `error:`; takes bars down first."""
        self.close()
        print(f"error: {printable(message)}", file=self._error_file or sys.stderr)

    def close(self) -> None:
        """Take down what moves; stages that had not ended are forgotten."""
        self._since.clear()
        if self._tasks:
            self._bars.stop()
            for task in self._tasks.values():
                self._bars.remove_task(task)
            self._tasks.clear()

    @cached_property
    def _out(self) -> RichConsole:
        from rich.console import Console as RichConsole

        file = self._file or sys.stdout
        with suppress(AttributeError):
            # An old terminal's encoding must not turn the end of a long run into a traceback.
            file.reconfigure(errors="replace")  # type: ignore[union-attr]
        return RichConsole(
            file=self._file,
            force_terminal=self._force_terminal,
            width=self._width,
            markup=False,
            emoji=False,
            highlight=False,
        )

    @cached_property
    def _bars(self) -> Progress:
        from rich.progress import (
            BarColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        return Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[state]}", markup=False),
            TimeRemainingColumn(compact=True),
            console=self._out,
            transient=True,
            refresh_per_second=4,
        )

    def _move_bar(self, stage: str, done: int, total: int, state: str = "") -> None:
        known = total if total > 0 else None
        state = state or f"{done}/{total if known else '?'}"
        if stage in self._tasks:
            self._bars.update(self._tasks[stage], completed=done, total=known, state=state)
            return
        if not self._tasks:
            self._bars.start()
        self._tasks[stage] = self._bars.add_task(
            shortened(stage, 36), total=known, completed=done, state=state
        )

    def _remove_bar(self, stage: str) -> None:
        self._bars.remove_task(self._tasks.pop(stage))
        if not self._tasks:
            self._bars.stop()

    def _end(self, stage: str) -> None:
        seconds = monotonic() - self._since.pop(stage)
        if stage in self._tasks:
            self._remove_bar(stage)
            if self._tasks:
                return
        if not stage.startswith(_ROUND):
            self.info(f"{stage}: {in_seconds(seconds)}")


def _round_parts(metrics: Round) -> Iterable[str]:
    yield f"round {metrics.round:>3}" if metrics.round else "at first "
    if metrics.rolled_back_to is not None:
        yield f"back to round {metrics.rolled_back_to}"
    losses = {label: metrics.loss.get(name) for name, label in _LOSSES.items()}
    if not any(loss is not None for loss in losses.values()):
        losses = {"proxy loss": metrics.loss.get("proxy")}
    yield from (f"{label} {loss:.3f}" for label, loss in losses.items() if loss is not None)
    if metrics.sent_bytes:
        yield f"{in_bytes(metrics.sent_bytes)} sent"
    if metrics.highest_epsilon is not None:
        yield f"epsilon {epsilon_text(metrics.highest_epsilon)}"
    if metrics.seconds is not None:
        yield in_seconds(metrics.seconds)
    if metrics.failed:
        yield f"no update from {', '.join(metrics.failed)}"


def _table_of(
    columns: Sequence[tuple[str, int | None]], rows: Sequence[Sequence[str]], width: int
) -> Table:
    """A plain table that is `width` wide; a column of width None takes the room that is left.

    The first column grows with its longest name for as long as the others keep theirs.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    (title, least), *others = columns
    # Each column has a space at its end and one to the next.
    taken = sum(each or _LEAST_REST for _, each in others) + 2 * len(columns)
    longest = max((len(row[0]) for row in rows), default=0)
    first = max(least or 1, min(longest, width - taken))
    table = Table(box=box.SIMPLE_HEAD, expand=True, padding=(0, 1, 0, 0), show_edge=False)
    for name, size in ((title, first), *others):
        table.add_column(name, width=size, overflow="fold", ratio=None if size else 1)
    for name, *rest in rows:
        table.add_row(Text(shortened(name, first)), *map(Text, rest))
    return table


def _list_of(notes: Iterable[tuple[str, str]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 1))
    for sign, text in notes:
        table.add_row(sign, Text(text))
    return table


def _quality(summary: Summary, width: int) -> Table:
    from fedot.report.run_files import NUMBERS
    from fedot.report.wording import LABELS, meaning_of

    columns = (("held-out loss", 18), ("nats ± SE", 13), ("perplexity", 10), ("what it is", None))
    rows = [
        (LABELS[name], *_loss_cells(summary.quality.get(name)), meaning_of(summary, name))
        for name in NUMBERS
    ]
    table = _table_of(columns, rows, width)
    table.rows[NUMBERS.index("plug_in")].style = "bold"
    return table


def _loss_cells(number: Quality | None) -> tuple[str, str]:
    if number is None:
        return "not known", ""
    perplexity = "" if number.perplexity is None else f"{number.perplexity:.4g}"
    return loss_text(number.loss, number.loss_se), perplexity


def _results(summary: Summary, width: int) -> Table:
    from fedot.report.rows import bytes_cells, epsilon_rows
    from fedot.report.wording import key_numbers

    rows = [
        (number.label, number.value + (" nats" if number.unit else ""), number.meaning)
        for number in key_numbers(summary)
    ]
    rows += epsilon_rows(summary)
    rows.append(("bytes of updates", *bytes_cells(summary)))
    parts = {stage: seconds for stage, seconds in summary.seconds.items() if seconds is not None}
    spent = ", ".join(f"{stage} {in_seconds(seconds)}" for stage, seconds in parts.items())
    rows.append(("time", in_seconds(sum(parts.values())) if parts else "not known", spent))
    return _table_of((("result", 21), ("value", 17), ("what it means", None)), rows, width)


def _audited(found: AuditSection) -> list[tuple[str, str]]:
    """Games, checks, membership and tokens, a row each."""
    rows = [
        (name, f"{right} right; epsilon at least {f_dp} (f-DP), {one_run} (one-run)")
        for name, right, f_dp, one_run in found.games
    ]
    rows += [(name, f"{measured} (must be: {must})") for name, measured, must in found.checks]
    rows += [
        ("membership", f"{name}: AUC {auc}, {tpr} found at 1 % false alarms ({counts})")
        for name, auc, tpr, counts in found.attacks
    ]
    rows += [
        ("tokens", f"{name}: {hits} of {tokens} found, {chance} by chance")
        for name, hits, chance, tokens in found.recoveries
    ]
    return rows
