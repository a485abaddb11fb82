"""Verbs that run a federation on this machine, and look at one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedot.console import Console

__all__ = ["add_to"]

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a config key, e.g. privacy.unit=none."),
]
Out = Annotated[Path, typer.Option(help="Where everything about the run is written.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run that is at --out.")]


def add_to(app: typer.Typer) -> None:
    """Add this file's verbs."""
    app.command()(demo)
    app.command()(simulate)
    app.command()(report)
    app.command()(init)


def demo(
    out: Annotated[
        Path | None, typer.Option(help="Where to; runs/demo, or the next free runs/demo-N.")
    ] = None,
    overrides: Overrides = None,
    data: Annotated[
        Path | None, typer.Option(help="Your text: owner.jsonl and clients/*.jsonl.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A minute of machinery; its numbers mean nothing.")
    ] = False,
    resume: Resume = False,
) -> None:
    """Run a whole federation on this machine's own Python documentation and library."""
    from fedot.federation.folder import next_free, refuse_existing, standing
    from fedot.report.page import write_report

    out = out or (Path("runs/demo") if resume else next_free(Path("runs/demo")))
    refuse_existing(out, resume)
    with Console() as console:
        if resume:
            console.info(standing(out))
        console.info("loading libraries")
        from fedot.studies.demo import run_demo

        summary = run_demo(
            out,
            overrides=overrides or [],
            data=data,
            quick=quick,
            resume=resume,
            progress=console.progress,
            on_round=console.round_line,
        )
        console.summary_table(summary)
        console.info(f"report: {write_report(out)}")


def simulate(
    config: Annotated[Path, typer.Argument(help="YAML; fedot init writes one.")],
    out: Out = Path("runs/simulation"),
    overrides: Overrides = None,
    resume: Resume = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what it would cost; write nothing.")
    ] = False,
) -> None:
    """Run a federation with your model and data, all of it in this process."""
    from fedot.config import load_config
    from fedot.federation.folder import check_out, standing
    from fedot.report.page import write_report

    settings = load_config(config, overrides or [])
    with Console() as console:
        if dry_run:
            from fedot.federation.estimate import estimate

            console.estimate_table(estimate(settings))
            return
        check_out(settings, out, resume)
        if resume:
            console.info(standing(out))
        console.info("loading libraries")
        from fedot.federation.run import simulate as run_simulation

        summary = run_simulation(
            settings,
            out,
            resume=resume,
            progress=console.progress,
            on_round=console.round_line,
            name=config.stem,
        )
        console.summary_table(summary)
        console.info(f"report: {write_report(out)}")


def report(run: Annotated[Path, typer.Argument(help="A run's directory.")]) -> None:
    """Make a run's report.html again from its files."""
    from fedot.report.page import write_report

    with Console() as console:
        console.info(f"report: {write_report(run)}")


def init(
    model: Annotated[str, typer.Option(help="Directory or hub id of the full model.")],
    data: Annotated[list[Path], typer.Option(help="A client's records; once per client.")],
    owner_text: Annotated[
        Path | None, typer.Option(help="The owner's own text, to distil the emulator with.")
    ] = None,
    proxy: Annotated[
        Path | None,
        typer.Option(help="The owner's stand-in for the task; a network run measures on it."),
    ] = None,
    out: Annotated[Path, typer.Option(help="The config to write.")] = Path("config.yaml"),
) -> None:
    """Write a commented config for your model and data."""
    from fedot.config_files import refuse_missing_files, refuse_missing_model
    from fedot.config_text import commented_config
    from fedot.errors import ConfigError

    if out.exists():
        raise ConfigError(f"{out} exists; name another --out.")
    refuse_missing_model(model)
    for option, named in (("--data", data), ("--owner-text", [owner_text]), ("--proxy", [proxy])):
        refuse_missing_files(option, named)
    text = commented_config(model, data, owner_text, proxy, out.name)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    with Console() as console:
        console.info(f"wrote {out}; next: fedot simulate {out} --dry-run")
