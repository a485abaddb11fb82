"""Verbs about who is who: the owner's CA, a site's request, the kit that answers it."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fedot.console import Console

if TYPE_CHECKING:
    from fedot.transport.members import Member

__all__ = ["add_to"]

Folder = Annotated[Path, typer.Option("--dir", help="Where the keys are.")]
Told = Annotated[
    str | None,
    typer.Option("--fingerprint", help="What the site read aloud; without it you are asked."),
]
RoleOf = Annotated[
    Literal["site", "observer", "owner"],
    typer.Option(help="site: takes part; observer: watches; owner: runs jobs."),
]
Hosts = Annotated[
    list[str] | None,
    typer.Option("--host", help="A name or address by which sites reach the server."),
]
_FEW_DAYS = 14
_MEMBERS = (("name", 30), ("role", 8), ("days left", 9), ("certificate", None))

pki = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


def add_to(app: typer.Typer) -> None:
    """Add this file's verbs."""
    app.add_typer(pki, name="pki", help="Who is who: keys, certificates, kits.")


@pki.command()
def init(
    organisation: Annotated[str, typer.Option(help="Shown in certificates.")] = "Model owner",
    host: Hosts = None,
    folder: Folder = Path("pki"),
) -> None:
    """At the owner: make the CA, the server's certificate and the signing key."""
    from fedot.transport.identity import OWNER, init_owner, read_kit

    init_owner(folder, organisation, host or [])
    with Console() as console:
        console.info(f"{folder}: the owner's keys. Keep it to yourself, and keep a backup.")
        console.info(f"owner: {read_kit(folder / f'{OWNER}.kit.json').owner}")
        if not host:
            console.info(f"No --host: only this machine connects. fedot pki renew{_dir(folder)} "
                         "--host NAME adds one.")  # fmt: skip
        console.info("Next: each site runs fedot pki request --site NAME and sends you its .csr.")


@pki.command()
def request(
    site: Annotated[str, typer.Option(help="The site's name: a-z, 0-9, dot, hyphen.")],
    folder: Folder = Path("pki"),
) -> None:
    """At a site: ask to be signed, also again before the certificate ends; the key stays here."""
    from fedot.transport.identity import request_certificate

    made = request_certificate(site, folder)
    with Console() as console:
        console.info(f"request: {made.csr_path}")
        console.info(f"fingerprint: {made.fingerprint}")
        console.info(f"Next: send {made.csr_path} to the owner, and read the fingerprint aloud by "
                     f"phone: not in the same mail. {folder / site}.key never leaves.")  # fmt: skip


@pki.command()
def sign(
    csr: Annotated[Path, typer.Argument(metavar="SITE.csr", help="What the site sent.")],
    fingerprint: Told = None,
    role: RoleOf = "site",
    days: Annotated[int, typer.Option(min=1, max=90, help="How long it lasts.")] = 90,
    folder: Folder = Path("pki"),
) -> None:
    """At the owner: compare the fingerprint, sign the request, write the site's kit."""
    from fedot.transport.identity import read_kit, read_request, sign_request

    with Console() as console:
        asked = read_request(csr)
        told = fingerprint or _heard(console, asked.site, role, asked.fingerprint)
        kit = sign_request(folder, csr, told, role, days)
        _say_kit(console, kit, read_kit(kit).owner)


@pki.command()
def admit(
    certificate: Annotated[Path, typer.Argument(help="The site's certificate, or chain (PEM).")],
    ca: Annotated[Path | None, typer.Option(help="The CA that signed it (PEM).")] = None,
    fingerprint: Told = None,
    role: RoleOf = "site",
    folder: Folder = Path("pki"),
) -> None:
    """At the owner: admit a certificate that an organisation's own CA signed."""
    from fedot.errors import ConfigError
    from fedot.transport import identity
    from fedot.transport.certificates import read_small, same_fingerprint

    pem = read_small(certificate)
    site, found = identity.name_of(pem), identity.fingerprint_of(pem)
    with Console() as console:
        told = fingerprint or _heard(console, site, role, found)
        if not same_fingerprint(told, found):
            raise ConfigError(
                f"{certificate} does not have the fingerprint that you were told (SHA-256 of the "
                "certificate). Compare it with the site again."
            )
        kit = identity.admit(folder, pem, site, role)
        if ca is not None:
            identity.trust(folder, read_small(ca))
        _say_kit(console, kit, identity.read_kit(kit).owner)


@pki.command()
def revoke(
    site: Annotated[str, typer.Argument(help="Whose certificates end now.")],
    folder: Folder = Path("pki"),
) -> None:
    """At the owner: let a site in no more; a running server cuts it off."""
    from fedot.transport.members import MEMBERS_FILE, Members

    ended = Members(folder / MEMBERS_FILE).revoke(site)
    with Console() as console:
        for each in ended:
            console.info(f"revoked: {each}")
        console.info(f"{site} comes back only with a new key: there, delete {site}.key, then fedot "
                     f"pki request --site {site}.")  # fmt: skip


@pki.command()
def renew(host: Hosts = None, folder: Folder = Path("pki")) -> None:
    """At the owner: new certificates for the server and the owner; no restart is needed."""
    from fedot.transport.identity import renew_owner, server_days_left

    renew_owner(folder, host)
    with Console() as console:
        days = server_days_left(folder, datetime.now(UTC))
        console.info(f"the server's certificate has {days:.0f} days left, the owner's 90.")


@pki.command()
def install(
    chain: Annotated[Path, typer.Argument(help="The server's certificate, then intermediates.")],
    key: Annotated[Path, typer.Option(help="Its private key (EC).")],
    ca: Annotated[Path, typer.Option(help="The root that sites check it against.")],
    folder: Folder = Path("pki"),
) -> None:
    """At the owner: let the server show a certificate of an organisation's own CA."""
    from fedot.transport.certificates import read_small
    from fedot.transport.identity import install_server

    install_server(folder, read_small(key), read_small(chain), read_small(ca))
    with Console() as console:
        console.info("installed. Kits made before trust another CA: sign every site again.")


@pki.command()
def show(
    kit: Annotated[
        Path | None, typer.Argument(metavar="[KIT]", help="At a site: what a kit says.")
    ] = None,
    folder: Folder = Path("pki"),
) -> None:
    """Say who was admitted and for how long, or whose a kit is."""
    with Console() as console:
        if kit is None:
            _show_members(console, folder)
        else:
            _show_kit(console, kit)


def _show_members(console: Console, folder: Path) -> None:
    from fedot.transport.identity import server_days_left
    from fedot.transport.members import MEMBERS_FILE, Members

    now = datetime.now(UTC)
    members = Members(folder / MEMBERS_FILE)
    console.table(_MEMBERS, [_row(member, now) for member in members.all()])
    server = server_days_left(folder, now)
    console.info(f"the server's certificate has {server:.0f} days left.")
    if server < _FEW_DAYS:
        console.info(f"! Renew it: fedot pki renew{_dir(folder)}")
    last = {member.name: member for member in sorted(members.valid(now), key=lambda m: m.ends)}
    for name, member in last.items():
        if (member.ends - now).days < _FEW_DAYS:
            again = "fedot pki renew" if member.role == "owner" else "fedot pki request, there"
            console.info(f"! {name} has under {_FEW_DAYS} days left: {again}.")


def _row(member: Member, now: datetime) -> tuple[str, str, str, str]:
    left = f"{(member.ends - now).total_seconds() / 86400:.0f}" if now < member.ends else "ended"
    state = "revoked" if member.revoked else left
    return member.name, member.role, state, member.fingerprint[:16]


def _show_kit(console: Console, path: Path) -> None:
    from fedot.transport.identity import read_kit

    kit = read_kit(path)
    days = kit.days_left(datetime.now(UTC))
    left = f"{days:.0f} days left" if days > 0 else "ended"
    console.info(f"{kit.site} ({kit.role}), certificate {kit.fingerprint[:16]}, {left}")
    console.info(f"owner: {kit.owner}")
    console.info("Compare that line with the owner by phone before you use a kit for the first "
                 "time.")  # fmt: skip
    if days < _FEW_DAYS:
        console.info(f"! Renew it: fedot pki request --site {kit.site}, and send the .csr.")


def _heard(console: Console, site: str, role: str, fingerprint: str) -> str:
    """The fingerprint, if a person says that the site reads the same."""
    from fedot.errors import ConfigError

    if not sys.stdin.isatty():
        raise ConfigError(
            "no --fingerprint and no terminal to ask at; ask the site for the fingerprint over "
            "another channel than the file took, and give it."
        )
    console.info(f"{site} asks to be {role}. Its fingerprint:")
    console.info(fingerprint)
    if not typer.confirm("Have you heard the same from the site, by phone?"):
        raise ConfigError(f"{site} was not signed; ask it for a request whose fingerprint agrees.")
    return fingerprint


def _say_kit(console: Console, kit: Path, owner: str) -> None:
    console.info(f"kit: {kit}")
    console.info(f"owner: {owner}")
    console.info(f"Next: send {kit} to the site (it is no secret), and read the owner's line to it "
                 "by phone: fedot pki show KIT must say the same there.")  # fmt: skip


def _dir(folder: Path) -> str:
    return "" if folder == Path("pki") else f" --dir {folder}"
