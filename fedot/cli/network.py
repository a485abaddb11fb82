"""Verbs for a federation across organisations: the owner's server, a site, all of it here."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from fedot.console import Console

__all__ = ["add_to"]

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a config key, e.g. privacy.unit=none."),
]


def add_to(app: typer.Typer) -> None:
    """Add this file's verbs."""
    app.command()(serve)
    app.command()(join)
    app.command()(poc)


def serve(
    config: Annotated[
        Path | None, typer.Argument(help="The first job; without it the server waits for jobs.")
    ] = None,
    home: Annotated[Path, typer.Option(help="Jobs, uploads, audit log.")] = Path("fedot-server"),
    pki: Annotated[Path, typer.Option(help="The owner's folder: fedot pki init.")] = Path("pki"),
    listen: Annotated[str, typer.Option(help="HOST:PORT for sites.")] = "0.0.0.0:8443",
    metrics: Annotated[
        str, typer.Option(help="HOST:PORT of /metrics and /healthz; port 0: any that is free.")
    ] = "127.0.0.1:9464",
    limits: Annotated[
        Path | None, typer.Option(help="YAML with limits per site (docs/transport.md).")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Of the first job, for people; default: the file's.")
    ] = None,
    until_done: Annotated[
        bool, typer.Option("--until-done", help="End when the queue is empty.")
    ] = False,
    overrides: Overrides = None,
) -> None:
    """Be the model owner's server: sites connect, jobs run one at a time."""
    from fedot.config import load_config, to_yaml
    from fedot.federation.open_server import ServerSettings, open_server
    from fedot.federation.serve import Watcher
    from fedot.report.jobs import cautions
    from fedot.report.page import write_report

    job = None if config is None else load_config(config, overrides or [])
    settings = ServerSettings(home, pki, listen, metrics, limits)
    with Console() as console:
        for line in cautions(job) if job is not None else []:
            console.info(line)
        watcher = Watcher(console.info, console.progress, console.round_line, write_report)
        with open_server(settings, watcher) as server:
            # Not in the handler itself: what it interrupted may hold the lock that it needs.
            signal.signal(
                signal.SIGTERM, lambda number, frame: threading.Thread(target=server.stop).start()
            )
            if config is not None and job is not None:
                server.submit_once(name or config.stem, to_yaml(job), "owner")
            if not server.work(until_done):
                raise typer.Exit(2)


def join(
    server: Annotated[
        str, typer.Argument(metavar="SERVER", help="HOST:PORT of the owner; port 8443.")
    ],
    policy: Annotated[
        Path, typer.Option(help="The data owner's terms; the ledger is kept beside it.")
    ],
    data: Annotated[Path, typer.Option(help="The private records.")],
    kit: Annotated[
        Path | None, typer.Option(help="What the owner sent back; default: the one *.kit.json.")
    ] = None,
    key: Annotated[
        Path | None, typer.Option(help="The private key; default: SITE.key by the kit or in pki/.")
    ] = None,
    home: Annotated[Path, typer.Option(help="Stored updates, bundles; keep it.")] = Path(
        "fedot-site"
    ),
    owner: Annotated[
        str | None, typer.Option(help="The owner's line as it was read to you by phone.")
    ] = None,
    text_field: Annotated[str, typer.Option(help="Field that holds a record's text.")] = "text",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be trained, sent and spent.")
    ] = False,
    stay: Annotated[bool, typer.Option("--stay", help="Take part in later runs too.")] = False,
    leave: Annotated[
        bool, typer.Option("--leave", help="Withdraw from the run that is open, for good.")
    ] = False,
) -> None:
    """Be a site: train on private records, under their owner's policy."""
    from fedot.engines.open_site import open_site
    from fedot.report.offer import OFFER_COLUMNS, offer_rows
    from fedot.transport.options import with_port

    site = open_site(
        with_port(server),
        kit,
        key,
        policy,
        data,
        home,
        owner_line=owner,
        text_field=text_field,
        device=device,
    )
    with Console() as console, site:
        if leave:
            console.info(site.leave())
        elif dry_run:
            console.table(OFFER_COLUMNS, offer_rows(*site.look(console.info)))
        else:
            console.info(site.take_part(console.transfer, console.info, stay=stay))


def poc(
    config: Annotated[Path, typer.Argument(help="As for fedot simulate.")],
    sites: Annotated[
        int | None, typer.Option(help="The first so many clients; default: all.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Everything is written here.")] = Path("runs/poc"),
    overrides: Overrides = None,
) -> None:
    """Rehearse on this machine: a server and sites as real processes, over real TLS."""
    from fedot.config import load_config
    from fedot.report.page import write_report
    from fedot.report.run_files import read_summary
    from fedot.studies.poc import prepare, rehearse

    settings = load_config(config, overrides or [])
    with Console() as console:
        run = rehearse(
            prepare(settings, sites, out, config.stem),
            lambda who, what: console.info(f"{who:<12} | {what}"),
        )
        console.summary_table(read_summary(run))
        console.info(f"report: {write_report(run)}")
