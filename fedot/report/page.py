"""One self-contained page from the files of a finished run.

Design note: the page loads nothing, runs nothing and holds no date, so it can be mailed, printed
and compared; made again from the same files it has the same bytes. It is written beside itself
and renamed, so no reader ever sees half a page.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from fedot.errors import ConfigError
from fedot.report import formats, plots, wording
from fedot.report.audit_file import Audit, read_audit
from fedot.report.audit_section import audit_section
from fedot.report.run_files import NUMBERS, Round, RunFiles, Summary, read_run

__all__ = ["render", "write_audit", "write_report"]

_SERIES = ("plug_in", "emulator", "proxy")


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture with its words; `svg` is None where there was nothing to draw."""

    title: str
    svg: Markup | None
    caption: str


def write_report(run_dir: Path) -> Path:
    """Make `report.html` from a run's `summary.json`, `metrics.jsonl` and `config.yaml`.

    An `audit.json` beside them becomes a section.

    Returns:
        The path of the page; an older one is replaced whole.

    Raises:
        ConfigError: a file is missing or broken, or the directory cannot be written to.
    """
    path = run_dir / "report.html"
    page = render(read_run(run_dir), read_audit(run_dir))
    _write(path, page, run_dir / "summary.json")
    return path


def write_audit(folder: Path) -> Path:
    """Make `audit.html` from an `audit.json` that belongs to no run.

    Raises:
        ConfigError: there is none, it is broken, or the directory cannot be written to.
    """
    audit = read_audit(folder)
    if audit is None:
        raise ConfigError(f"{folder} has no audit.json; make one with: fedot audit CONFIG")
    page = _environment().get_template("audit_page.html.j2").render(audit=audit_section(audit))
    path = folder / "audit.html"
    _write(path, page, folder / "audit.json")
    return path


def _write(path: Path, page: str, beside: Path) -> None:
    try:
        _replace(path, page, beside)
    except OSError as error:
        raise ConfigError(
            f"cannot write {path}: {error.strerror}. The directory must be writable and have room."
        ) from error


def render(files: RunFiles, audit: Audit | None = None) -> str:
    """The page as text, with a section on an audit where there is one."""
    summary = files.summary
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            files=files,
            summary=summary,
            headline=wording.headline(summary),
            alerts=wording.alerts(summary),
            key_numbers=wording.key_numbers(summary),
            pictures=_pictures(files),
            privacy_sentence=wording.privacy_sentence(summary),
            client_level_sentence=(
                wording.client_level_sentence(summary) if summary.privacy.unit == "both" else ""
            ),
            protections=_protections(summary),
            notes=wording.other_notes(summary),
            audit=audit_section(audit) if audit is not None else None,
            NUMBERS=NUMBERS,
            LABELS=wording.LABELS,
            measured_on=wording.MEASURED_ON[summary.measured_on],
            meaning_of=wording.meaning_of,
            f=formats,
        )
    )


def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _replace(path: Path, text: str, beside: Path) -> None:
    handle, name = tempfile.mkstemp(prefix=".report-", suffix=".html", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        # A temporary file is private; a page is as readable as what stands beside it.
        temporary.chmod(beside.stat().st_mode & 0o666)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _pictures(files: RunFiles) -> list[Picture]:
    return [_loss(files), _numbers(files.summary), _bytes(files.summary), _epsilon(files)]


def _loss(files: RunFiles) -> Picture:
    series = {name: _points(files.rounds, name) for name in _SERIES}
    quality = files.summary.quality
    zero_shot, full_tuned = quality.get("full_zero_shot"), quality.get("full_tuned")
    svg = plots.loss_by_round(
        series,
        zero_shot=zero_shot.loss if zero_shot else None,
        full_tuned=full_tuned.loss if full_tuned else None,
        best_round=files.summary.best_round,
    )
    return _picture(
        "Loss by round",
        svg,
        _loss_caption(files, series, with_levels=bool(zero_shot or full_tuned)),
        "No loss was measured during the rounds. "
        + wording.absent(files.summary, "loss", "plug_in"),
    )


def _loss_caption(
    files: RunFiles, series: dict[str, list[tuple[int, float]]], *, with_levels: bool
) -> str:
    words, where = [], wording.MEASURED_ON[files.summary.measured_on]
    if series["plug_in"] or series["emulator"]:
        words.append(f"Measured on {where}.")
    if with_levels:
        words.append(f"Grey lines: the full model by itself, on {where}.")
    if series["proxy"] and files.summary.measured_on == "records":
        words.append("The owner's proxy text is other text: compare slopes, not heights.")
    elif series["proxy"]:
        words.append("Rounds are measured on one half of the proxy set, grey lines on the other.")
    back = [r.round for r in files.rounds if r.rolled_back_to is not None]
    if back:
        words.append(f"Rolled back in round {', '.join(map(str, back))}.")
    return " ".join(words)


def _points(rounds: Iterable[Round], name: str) -> list[tuple[int, float]]:
    return [(r.round, loss) for r in rounds if (loss := r.loss.get(name)) is not None]


def _numbers(summary: Summary) -> Picture:
    pairs = {name: (q.loss, q.loss_se) for name, q in summary.quality.items() if q is not None}
    svg = plots.five_numbers(pairs, summary.recovery)
    return _picture(
        "The five numbers",
        svg,
        "Dots are losses, bars two standard errors. Orange is what data owners hold, blue what the "
        "model owner gets back.",
        f"None of the five numbers is known. {wording.absent(summary, 'quality', 'plug_in')}",
    )


def _bytes(summary: Summary) -> Picture:
    wire = summary.wire
    after = {"float32": wire.float32_bytes} | wire.bytes_after
    if wire.sent_bytes != list(after.values())[-1]:
        after["sent, all told"] = wire.sent_bytes
    return _picture(
        "Bytes of the updates",
        plots.bytes_per_operator(after),
        "All updates of all rounds after each step of compression, and the part of float32 left.",
        "No update was sent.",
    )


def _epsilon(files: RunFiles) -> Picture:
    privacy = files.summary.privacy
    title = "Epsilon of each client"
    if privacy.unit in ("none", "client"):
        return Picture(title, None, wording.privacy_sentence(files.summary))
    by_round = {name: _spent_by_round(files.rounds, name) for name in privacy.spent}
    svg = plots.epsilon_per_client(privacy.spent, target=privacy.target_epsilon, by_round=by_round)
    caption = "What differential privacy has cost each data owner."
    if any(len(steps) > 1 for steps in by_round.values()):
        every = plots.epsilon_step(max(map(len, by_round.values())))
        cuts = "round" if every == 1 else f"{every} rounds"
        caption += f" Bars are cut after every {cuts} that the owner took part in."
    if (more := len(privacy.spent) - plots.MOST_CLIENTS) > 0:
        caption += f" {formats.counted(more, 'client').capitalize()} that spent less are not shown."
    return _picture(
        title,
        svg,
        caption,
        f"No spent epsilon is recorded. {wording.absent(files.summary, 'privacy')}",
    )


def _spent_by_round(rounds: Iterable[Round], client: str) -> list[float]:
    """What a client had spent, once for every round in which that grew."""
    values = (r.epsilon.get(client) for r in rounds)
    return sorted({value for value in values if value})


def _picture(title: str, svg: str | None, caption: str, otherwise: str) -> Picture:
    # Markup is safe here: matplotlib escapes every text that it writes into an SVG.
    return Picture(title, Markup(svg), caption) if svg else Picture(title, None, otherwise)


def _protections(summary: Summary) -> list[tuple[str, str, str]]:
    """(what, from whom, how far) for the parties of a federation."""
    return [
        ("A data owner's records", "the model owner and other data owners", _records(summary)),
        ("The closed model's weights", "data owners", _weights(summary)),
    ]


def _records(summary: Summary) -> str:
    privacy = summary.privacy
    if privacy.unit == "none":
        return (
            "Records are not sent, but nothing bounds what an update reveals about them: "
            "differential privacy was off."
        )
    if privacy.unit == "client":
        return (
            f"Records are not sent. The model owner sees every update as it is; towards everybody "
            f"else: {wording.client_level_sentence(summary)}"
        )
    if not privacy.spent:
        return "Records are not sent. What their updates reveal is not recorded, so not claimed."
    return (
        f"Records are not sent; what updates reveal is bounded by epsilon. "
        f"{wording.privacy_sentence(summary)} A person with many records, or a fact that many "
        "records share, is protected less."
    )


def _weights(summary: Summary) -> str:
    emulator = summary.emulator
    if emulator is None:
        return "Not protected: data owners received the full model (no emulator)."
    blocks = "fewer blocks"
    if emulator.kept and emulator.num_blocks:
        blocks = f"{len(emulator.kept)} of {emulator.num_blocks} blocks"
    return (
        f"Data owners received {blocks} as an emulator. How much of the model's quality that gives "
        "away is measured by plug-in advantage, leak margin and general gap, not proven: a client "
        "who tries harder may get further."
    )
