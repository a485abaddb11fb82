"""Verbs about a server's queue of jobs, for the owner and for observers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedot.console import Console

if TYPE_CHECKING:
    from fedot.engines.remote_desk import RemoteDesk

__all__ = ["add_to"]

Server = Annotated[str, typer.Option(help="HOST:PORT of the server.")]
Kit = Annotated[Path, typer.Option(help="The caller's kit; its key lies beside it.")]
Id = Annotated[str, typer.Argument(metavar="JOB", help="A job's id: fedot job list.")]
job = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

_SERVER = "localhost:8443"
_KIT = Path("pki/owner.kit.json")


def add_to(app: typer.Typer) -> None:
    """Add this file's verbs."""
    app.add_typer(job, name="job", help="A server's jobs: submit, list, show, watch, fetch.")


@job.command()
def submit(
    config: Annotated[Path, typer.Argument(help="YAML; its paths are the server's.")],
    name: Annotated[str | None, typer.Option(help="For people; default: the file's.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a config key.")
    ] = None,
    server: Server = _SERVER,
    kit: Kit = _KIT,
) -> None:
    """Queue a job."""
    from fedot.config import load_config, to_yaml
    from fedot.report.jobs import cautions

    settings = load_config(config, overrides or [])
    with _desk(server, kit) as (desk, console):
        for line in cautions(settings):
            console.info(line)
        told = desk.submit(name or config.stem, to_yaml(settings))
        console.info(f"{told.job_id} is {told.state}; next: fedot job watch {told.job_id}")


@job.command("list")
def list_(server: Server = _SERVER, kit: Kit = _KIT) -> None:
    """All jobs of a server."""
    from fedot.report.jobs import JOB_COLUMNS, job_rows

    with _desk(server, kit) as (desk, console):
        console.table(JOB_COLUMNS, job_rows(desk.jobs()))


@job.command()
def show(job_id: Id, server: Server = _SERVER, kit: Kit = _KIT) -> None:
    """One job: its rounds, who is in, who is late."""
    from fedot.report.jobs import JOB_COLUMNS, MEMBER_COLUMNS, job_rows, member_rows, rounds_of

    with _desk(server, kit) as (desk, console):
        told = desk.show(job_id)
        console.table(JOB_COLUMNS, job_rows([told]))
        for metrics in rounds_of(told):
            console.round_line(metrics)
        if told.members:
            console.table(MEMBER_COLUMNS, member_rows(told))


@job.command()
def watch(job_id: Id, server: Server = _SERVER, kit: Kit = _KIT) -> None:
    """Follow a job until it ends: a line a round, and who joins, works and is late."""
    from fedot.report.jobs import changes, rounds_of

    with _desk(server, kit) as (desk, console):
        seen, shown = None, 0
        for told in desk.follow(job_id):
            for line in changes(seen, told):
                console.info(line)
            rounds = rounds_of(told)
            for metrics in rounds:
                if metrics["round"] > shown:
                    console.round_line(metrics)
                    shown = metrics["round"]
            seen = told
        if seen is None or seen.state != "done":
            raise typer.Exit(2)


@job.command()
def abort(job_id: Id, server: Server = _SERVER, kit: Kit = _KIT) -> None:
    """Stop a job after the step that it is in, or take it out of the queue."""
    with _desk(server, kit) as (desk, console):
        told = desk.abort(job_id)
        console.info(f"{told.job_id} {'is aborted' if told.state == 'aborted' else 'will stop'}")


@job.command()
def resume(job_id: Id, server: Server = _SERVER, kit: Kit = _KIT) -> None:
    """Queue a failed or aborted job again; its run goes on where it stopped."""
    with _desk(server, kit) as (desk, console):
        told = desk.resume(job_id)
        console.info(f"{told.job_id} is {told.state} again; sites that have left must join again")


@job.command()
def rollback(
    job_id: Id,
    round: Annotated[int, typer.Argument(min=0, help="A closed round; 0 is the start.")],
    server: Server = _SERVER,
    kit: Kit = _KIT,
) -> None:
    """Go back to the adapter after an earlier round, before the next one starts."""
    with _desk(server, kit) as (desk, console):
        desk.roll_back(job_id, round)
        console.info(f"{job_id} goes back to round {round}; that takes the place of its next round")


@job.command()
def fetch(
    job_id: Id,
    out: Annotated[Path, typer.Option(help="A folder that does not exist yet.")],
    server: Server = _SERVER,
    kit: Kit = _KIT,
) -> None:
    """Download a finished job: adapters, summary, report."""
    with _desk(server, kit) as (desk, console):
        desk.fetch(job_id, out, console.transfer)
        console.info(f"wrote {out}; report: {out / 'report.html'}")


@job.command("check-log")
def check_log(
    path: Annotated[Path, typer.Argument(help="A server's HOME/audit.jsonl, or a copy of it.")],
) -> None:
    """Check that nobody has changed or removed a line of a server's audit log."""
    from fedot.transport.audit_log import check_log as check

    with Console() as console:
        found = check(path)
        console.info(
            f"{found.lines} lines, none changed; the last one's hash is {found.last}. Keep "
            "it elsewhere: that lines are missing at the end shows beside it alone."
        )


@contextmanager
def _desk(server: str, kit: Path) -> Iterator[tuple[RemoteDesk, Console]]:
    from fedot.engines.remote_desk import RemoteDesk
    from fedot.transport.options import with_port

    with Console() as console, RemoteDesk.open(with_port(server), kit) as desk:
        yield desk, console
