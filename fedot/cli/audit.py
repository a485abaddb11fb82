"""The verb that attacks what a federation releases."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedot.console import Console

__all__ = ["add_to"]


def add_to(app: typer.Typer) -> None:
    """Add this file's verb."""
    app.command()(audit)


def audit(
    target: Annotated[Path, typer.Argument(help="A finished run's directory, or a config (YAML).")],
    out: Annotated[
        Path | None, typer.Option(help="Of a config: where to write; a run keeps its audit.")
    ] = None,
    canaries: Annotated[
        int, typer.Option(min=20, help="Gradient canaries; more of them show more.")
    ] = 1000,
    references: Annotated[
        int, typer.Option(min=2, max=64, help="Adapters that membership is compared with.")
    ] = 4,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the config."),
    ] = None,
) -> None:
    """Attack what a run or a config releases: lower bounds on epsilon beside the claimed one."""
    from fedot.config import load_config
    from fedot.errors import ConfigError
    from fedot.federation.folder import next_free, refuse_existing

    is_run = target.is_dir()
    if is_run and (out is not None or overrides):
        raise ConfigError(
            f"{target} is a run, which is audited as it was made and keeps its audit. Leave out "
            "--out and --set, or name a config."
        )
    config = None if is_run else load_config(target, overrides or [])
    out = out or next_free(Path("runs/audit"))
    refuse_existing(out, resume=False)
    with Console() as console:
        console.info("loading libraries")
        from fedot.report.page import write_audit, write_report
        from fedot.studies.privacy_audit import AuditSize, audit_config, audit_run

        size = AuditSize(canaries=canaries, references=references)
        if config is None:
            console.audit_table(audit_run(target, size, console.progress, console.info))
            console.info(f"report: {write_report(target)}")
        else:
            console.audit_table(audit_config(config, out, size, console.progress, console.info))
            console.info(f"report: {write_audit(out)}")
