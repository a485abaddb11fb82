"""Who is who: the owner's folder of keys, a site's request, and the kit that answers it.

Design note: the owner's folder holds

    ca.key, ca.crt      signs the server and the sites
    trusted.crt         every CA whose certificates sites may show; each is still admitted alone
    server.pem          the server's key and chain in one file, so that both change at once
    server-ca.crt       what sites check the server against; another one when the server's
                        certificate is an organisation's own
    signing.key         Ed25519, signs bundles
    owner.key, owner.kit.json   for the owner's own control calls
    members.json        who was admitted

A kit is no secret, but it tells a site whom to trust, so whoever can change it on its way can stand
for the owner. `Kit.owner` is what a site compares with the owner by phone the first time; it stays
the same when certificates are renewed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from fedot.errors import ConfigError
from fedot.journal import make_folder_durably, sync_folder, write_durably
from fedot.transport.certificates import (
    MAX_DAYS,
    certificates_from,
    check_pair,
    check_site_name,
    client_certificate,
    fingerprint_of,
    hosts_of,
    is_authority,
    key_fingerprint,
    key_from,
    key_pem,
    name_of,
    new_authority,
    new_key,
    new_request,
    not_after,
    read_small,
    request_from,
    same_fingerprint,
    server_certificate,
)
from fedot.transport.kit import Kit, read_kit
from fedot.transport.members import MEMBERS_FILE, Members, Role
from fedot.transport.server_tls import (
    certificate_of,
    read_server,
    server_credentials,
    server_days_left,
)

__all__ = [
    "OWNER",
    "Kit",
    "Request",
    "Signer",
    "admit",
    "certificate_of",
    "fingerprint_of",
    "init_owner",
    "install_server",
    "name_of",
    "not_after",
    "read_kit",
    "read_request",
    "renew_owner",
    "request_certificate",
    "server_credentials",
    "server_days_left",
    "sign_request",
    "trust",
]

OWNER = "owner"
"""The name of the owner's own certificate."""

_write_secret = partial(write_durably, mode=0o600)


@dataclass(frozen=True, slots=True)
class Request:
    """A site's wish to be signed.

    Attributes:
        fingerprint: of its key; the site reads it to the owner over another channel.
    """

    csr_path: Path
    site: str
    fingerprint: str


class Signer:
    """The owner's Ed25519 key.

    Args:
        folder: the owner's.
    """

    def __init__(self, folder: Path):
        try:
            key = load_pem_private_key(read_small(folder / "signing.key"), None)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{folder}/signing.key is damaged; restore it.") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise ConfigError(f"{folder}/signing.key is no Ed25519 key; restore it.")
        self._key = key

    def sign(self, message: bytes) -> bytes:
        """The signature that `Kit.verify` accepts."""
        return self._key.sign(message)

    @property
    def public_key(self) -> str:
        """As it stands in kits."""
        return self._key.public_key().public_bytes_raw().hex()


def init_owner(
    folder: Path, organisation: str, hosts: Sequence[str], now: datetime | None = None
) -> None:
    """Make the owner's folder, all of it or nothing.

    Args:
        folder: where; only the owner can read it.
        organisation: for people who look at a certificate.
        hosts: names and addresses by which sites reach the server, beside localhost.
        now: when it is made.

    Raises:
        ConfigError: something is there already, or a name cannot stand in a certificate.
    """
    now = now or datetime.now(UTC)
    _refuse_existing(folder)
    if not 0 < len(organisation) <= 64 or not organisation.isprintable():
        raise ConfigError("an organisation's name must be 1 to 64 characters that can be printed.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        key = new_key()
        ca = new_authority(key, organisation, now)
        _write_secret(draft / "ca.key", key_pem(key))
        for name in ("ca.crt", "trusted.crt", "server-ca.crt"):
            write_durably(draft / name, ca)
        _write_secret(draft / "signing.key", key_pem(Ed25519PrivateKey.generate()))
        Members.create(draft / MEMBERS_FILE)
        renew_owner(draft, hosts, now)
        _refuse_existing(folder)
        os.rename(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    sync_folder(folder.parent)


def renew_owner(
    folder: Path, hosts: Sequence[str] | None = None, now: datetime | None = None
) -> None:
    """New certificates for the server and for the owner's own calls, by the owner's CA.

    A running server takes its new one for the next connection. `hosts` None keeps those that the
    certificate has now. A server's certificate of another CA (`install_server`) is left alone.

    Raises:
        ConfigError: `hosts` are given and the server's certificate is of another CA.
    """
    now = now or datetime.now(UTC)
    authority = _authority(folder)
    if read_small(folder / "server-ca.crt") == authority[0]:
        if hosts is None:
            hosts = hosts_of(read_server(folder)[1])
        key = new_key()
        chain = server_certificate(authority, key.public_key(), hosts, now)
        _write_secret(folder / "server.pem", key_pem(key) + chain)
    elif hosts is not None:
        raise ConfigError(
            "the server's certificate is of another CA, which must say for which hosts it is. Ask "
            "that CA, and use `fedot pki install`."
        )
    owner_key = folder / f"{OWNER}.key"
    if not owner_key.exists():
        _write_secret(owner_key, key_pem(new_key()))
    public = key_from(read_small(owner_key), str(owner_key)).public_key()
    _issue(folder, authority, (OWNER, public), "owner", MAX_DAYS, now)


def request_certificate(site: str, folder: Path) -> Request:
    """At a site: a signing request; the private key stays in `folder`.

    A key that is there is used again, so the owner hears the same fingerprint at a renewal.

    Raises:
        ConfigError: the site cannot be called so, or the key that is there is damaged.
    """
    check_site_name(site)
    folder.parent.mkdir(parents=True, exist_ok=True)
    make_folder_durably(folder)
    path = folder / f"{site}.key"
    if not path.exists():
        _write_secret(path, key_pem(new_key()))
    csr = folder / f"{site}.csr"
    write_durably(csr, new_request(site, key_from(read_small(path), str(path))))
    return read_request(csr)


def read_request(csr: Path) -> Request:
    """What a signing request asks for, its own signature checked.

    Raises:
        ConfigError: it is damaged, or asks for what fedot does not sign.
    """
    site, key = request_from(read_small(csr), str(csr))
    return Request(csr, site, key_fingerprint(key))


def sign_request(
    folder: Path,
    csr: Path,
    fingerprint: str,
    role: Role,
    days: float = MAX_DAYS,
    now: datetime | None = None,
) -> Path:
    """At the owner: admit a site and write its kit.

    Args:
        folder: the owner's.
        csr: what the site sent.
        fingerprint: what the site read aloud, over another channel than the file took.
        role: what it may do.
        days: how long its certificate lasts, at most 90.
        now: when it is signed.

    Returns:
        The path of the kit.

    Raises:
        ConfigError: the file is not what the site made, or the name is in use with another key or
            role, or the key was revoked (see `Members.add`).
    """
    if not 0 < days <= MAX_DAYS:
        raise ConfigError(f"a certificate for {days:g} days; it must be over 0 and <= {MAX_DAYS}.")
    site, key = request_from(read_small(csr), str(csr))
    if not same_fingerprint(fingerprint, key_fingerprint(key)):
        raise ConfigError(
            f"{csr} does not have the fingerprint that you were told. Compare it with the site "
            "again; somebody may have changed the file on its way."
        )
    return _issue(folder, _authority(folder), (site, key), role, days, now or datetime.now(UTC))


def admit(folder: Path, certificate_pem: bytes, site: str, role: Role) -> Path:
    """At the owner: admit a certificate (or chain) that an organisation's own CA signed.

    Its CA must be trusted too: `trust`.

    Returns:
        The path of the site's kit.

    Raises:
        ConfigError: it is not for `site`, or as at `Members.add`.
        ProtocolError: it names nobody, or cannot be read.
    """
    check_site_name(site)
    if name_of(certificate_pem) != site:
        raise ConfigError(f"the certificate is not for {site}; its one DNS name must be that.")
    if not_after(certificate_pem) <= datetime.now(UTC):
        raise ConfigError(f"the certificate for {site} has ended; ask its CA for a new one.")
    return _welcome(folder, certificate_pem, (site, role), datetime.now(UTC))


def trust(folder: Path, ca_pem: bytes) -> None:
    """At the owner: let sites show certificates that this CA signed; admission is still needed."""
    added = certificates_from(ca_pem, "the CA")
    if not all(is_authority(each) for each in added):
        raise ConfigError("the file has a certificate that is no CA's; give the CA's own.")
    path = folder / "trusted.crt"
    trusted = read_small(path)
    known = certificates_from(trusted, str(path))
    new = [each for each in added if each not in known]
    write_durably(path, trusted + b"".join(each.public_bytes(Encoding.PEM) for each in new))


def install_server(folder: Path, key: bytes, chain: bytes, ca_pem: bytes) -> None:
    """At the owner: the server shows a certificate of an organisation's own CA.

    Kits made before this trust the CA of then: sites need new ones.

    Args:
        folder: the owner's.
        key: its private key (EC), PEM.
        chain: its certificate, then every intermediate.
        ca_pem: the root that sites check it against.
    """
    certificates_from(ca_pem, "the CA")
    check_pair(key, chain, "the server's certificate")
    write_durably(folder / "server-ca.crt", ca_pem)
    _write_secret(folder / "server.pem", key + chain)


def _authority(folder: Path) -> tuple[bytes, ec.EllipticCurvePrivateKey]:
    path = folder / "ca.key"
    return read_small(folder / "ca.crt"), key_from(read_small(path), str(path))


def _issue(
    folder: Path,
    authority: tuple[bytes, ec.EllipticCurvePrivateKey],
    who: tuple[str, ec.EllipticCurvePublicKey],
    role: Role,
    days: float,
    now: datetime,
) -> Path:
    name, key = who
    return _welcome(folder, client_certificate(authority, key, name, now, days), (name, role), now)


def _welcome(folder: Path, pem: bytes, who: tuple[str, Role], now: datetime) -> Path:
    """Admit first: a kit that exists can be used."""
    name, role = who
    Members(folder / MEMBERS_FILE).add(pem, role, now)
    kit = Kit(
        site=name,
        role=role,
        certificate=pem.decode(),
        ca=read_small(folder / "server-ca.crt").decode(),
        signing_key=Signer(folder).public_key,
    )
    path = folder / f"{name}.kit.json"
    write_durably(path, kit.text().encode())
    return path


def _refuse_existing(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(
            f"{folder} is there already; an owner's keys are made once. Use it, or name another "
            "--dir."
        )
