"""X.509 as fedot uses it: keys, requests, certificates, and what is read out of them.

Design note: a certificate has one DNS name in its subject alternative names, and that is the name
of whoever shows it; the common name says the same for people and is never read. TLS keys are EC
P-256. Of a certificate the fingerprint is SHA-256 over its DER, 64 hex digits; of a key it is
SHA-256 over its public part, in groups of four for reading aloud: that one stays the same when a
certificate is renewed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedot.errors import ConfigError, ProtocolError

__all__ = [
    "MAX_DAYS",
    "certificates_from",
    "check_pair",
    "check_site_name",
    "client_certificate",
    "fingerprint_of",
    "hosts_of",
    "is_authority",
    "key_fingerprint",
    "key_from",
    "key_pem",
    "leaf_of",
    "name_of",
    "new_authority",
    "new_key",
    "new_request",
    "not_after",
    "public_key_of",
    "read_small",
    "request_from",
    "same_fingerprint",
    "server_certificate",
]

MAX_DAYS = 90
"""How long a site's certificate may last."""

_AUTHORITY_DAYS = 3650
_SERVER_DAYS = 365
# Clocks differ; a site whose clock is slow must be able to use a new certificate at once.
_SKEW = timedelta(hours=1)
_MOST_BYTES = 2**18
_SITE = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")
# A site's name is a file's name too, beside those that the owner's folder has.
_TAKEN = frozenset({"ca", "owner", "server", "signing", "trusted", "members"})


def check_site_name(name: str) -> str:
    """The name, if a site may be called so.

    Raises:
        ConfigError: it could not stand in a certificate or name a folder.
    """
    if not _SITE.fullmatch(name) or name in _TAKEN:
        raise ConfigError(
            f"{name[:80]!r} cannot be a site's name; it must be at most 63 of a-z, 0-9, dot and "
            f"hyphen, start and end with a letter or digit, and be none of "
            f"{', '.join(sorted(_TAKEN))}. Choose another."
        )
    return name


def new_key() -> ec.EllipticCurvePrivateKey:
    """A private key for TLS."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey | Ed25519PrivateKey) -> bytes:
    """A private key as a file holds it; the file's mode protects it."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def key_from(pem: bytes, what: str) -> ec.EllipticCurvePrivateKey:
    """Read a private key that fedot made.

    Raises:
        ConfigError: it is damaged, or of another kind.
    """
    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{what} holds no key that can be read; restore it.") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{what} holds a key that is not of an elliptic curve; restore it.")
    return key


def new_request(site: str, key: ec.EllipticCurvePrivateKey) -> bytes:
    """A signing request for a site's name, as PEM."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(_subject(site))
    names = x509.SubjectAlternativeName([x509.DNSName(site)])
    request = builder.add_extension(names, critical=False).sign(key, hashes.SHA256())
    return request.public_bytes(Encoding.PEM)


def request_from(pem: bytes, what: str) -> tuple[str, ec.EllipticCurvePublicKey]:
    """The name and key that a signing request asks to be certified.

    Raises:
        ConfigError: it is damaged, not signed by its own key, or asks for what fedot does not sign.
    """
    try:
        request = x509.load_pem_x509_csr(pem)
        names = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        signed, key = request.is_signature_valid, request.public_key()
    except (ValueError, TypeError, x509.ExtensionNotFound) as error:
        raise ConfigError(
            f"{what} is no signing request that can be read. Ask the site for what `fedot pki "
            "request` wrote."
        ) from error
    if not signed:
        raise ConfigError(f"{what} was changed after it was made; ask the site for it again.")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ConfigError(
            f"{what} has a key that is not EC P-256; make it with `fedot pki request`."
        )
    return check_site_name(_only_name(names, what)), key


def new_authority(key: ec.EllipticCurvePrivateKey, organisation: str, now: datetime) -> bytes:
    """An owner's CA certificate, as PEM: it signs servers and sites, and no other CA."""
    usage = _usage(digital_signature=False, key_cert_sign=True, crl_sign=True)
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation),
            x509.NameAttribute(NameOID.COMMON_NAME, "fedot CA"),
        ]
    )
    made = _builder(subject, subject, key.public_key(), now, _AUTHORITY_DAYS)
    made = made.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    return (
        made.add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.PEM)
    )


def server_certificate(
    authority: tuple[bytes, ec.EllipticCurvePrivateKey],
    key: ec.EllipticCurvePublicKey,
    hosts: Sequence[str],
    now: datetime,
) -> bytes:
    """A certificate for the server, as PEM; localhost is always one of its names."""
    try:
        names = [_host(host) for host in dict.fromkeys([*hosts, "localhost", "127.0.0.1"])]
    except ValueError as error:
        raise ConfigError(
            "a host is no name and no address; it must be like fl.example.org or 192.0.2.7, "
            "without a port."
        ) from error
    return _signed(authority, key, names, now, _SERVER_DAYS, ExtendedKeyUsageOID.SERVER_AUTH)


def client_certificate(
    authority: tuple[bytes, ec.EllipticCurvePrivateKey],
    key: ec.EllipticCurvePublicKey,
    name: str,
    now: datetime,
    days: float,
) -> bytes:
    """A certificate for who connects to the server, as PEM; it cannot stand for a server."""
    names = [x509.DNSName(name)]
    return _signed(authority, key, names, now, days, ExtendedKeyUsageOID.CLIENT_AUTH)


def leaf_of(pem: bytes) -> x509.Certificate:
    """The first certificate of a PEM, which is the one its key belongs to.

    Raises:
        ProtocolError: there is none that can be read.
    """
    try:
        return x509.load_pem_x509_certificate(pem)
    except (ValueError, TypeError) as error:
        raise ProtocolError("a certificate cannot be read; it must be X.509 as PEM.") from error


def fingerprint_of(pem: bytes) -> str:
    """SHA-256 of a certificate, 64 hex digits: what the owner admits and revokes."""
    return leaf_of(pem).fingerprint(hashes.SHA256()).hex()


def name_of(pem: bytes) -> str:
    """Whose a certificate is: the one DNS name among its subject alternative names.

    Raises:
        ProtocolError: it has none, or several.
    """
    try:
        extensions = leaf_of(pem).extensions
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return _only_name(names, "a certificate")
    except (ValueError, x509.ExtensionNotFound, ConfigError) as error:
        raise ProtocolError(
            "a certificate names nobody; it must have exactly one DNS name among its subject "
            "alternative names. Ask for another."
        ) from error


def not_after(pem: bytes) -> datetime:
    """When a certificate ends, in UTC."""
    return leaf_of(pem).not_valid_after_utc


def public_key_of(pem: bytes) -> PublicKeyTypes:
    """A certificate's key."""
    return leaf_of(pem).public_key()


def key_fingerprint(key: PublicKeyTypes) -> str:
    """SHA-256 of a public key in 16 groups of four hex digits: what people compare by phone."""
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    digits = sha256(der).hexdigest()
    return "-".join(digits[n : n + 4] for n in range(0, 64, 4))


def check_pair(key: bytes, chain: bytes, what: str) -> None:
    """Refuse a chain whose first certificate is for another key.

    Raises:
        ConfigError: they do not fit, or cannot be read.
    """
    certificates_from(chain, what)
    if key_from(key, what).public_key() != public_key_of(chain):
        raise ConfigError(f"{what} is for another key; key and certificate must fit together.")


def certificates_from(pem: bytes, what: str) -> list[x509.Certificate]:
    """All certificates of a PEM; at least one.

    Raises:
        ConfigError: there is none that can be read.
    """
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise ConfigError(f"{what} holds no certificates that can be read, as PEM.") from error


def is_authority(certificate: x509.Certificate) -> bool:
    """May it sign others?"""
    try:
        found = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    except (ValueError, x509.ExtensionNotFound):
        return False
    return found.value.ca


def hosts_of(chain: bytes) -> list[str]:
    """The names and addresses that a server's certificate is for."""
    names = leaf_of(chain).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(name.value) for name in names]


def same_fingerprint(told: str, found: str) -> bool:
    """Is it the same, however a person grouped and typed it?

    Raises:
        ConfigError: what was typed is no whole fingerprint, so nothing can be said.
    """
    bare = re.sub(r"[\s:.-]", "", told).lower()
    whole = found.replace("-", "")
    if len(bare) != len(whole) or not set(bare) <= set("0123456789abcdef"):
        digits = len(re.findall("[0-9a-f]", bare))
        raise ConfigError(
            f"--fingerprint has {digits} hex digits; it must be the whole fingerprint of "
            f"{len(whole)} hex digits (0-9, a-f), in groups or not. Give all that the site read "
            "aloud."
        )
    return bare == whole


def read_small(path: Path) -> bytes:
    """A file that a person was sent; larger ones than any certificate are refused.

    Raises:
        ConfigError: it cannot be read, or is too large.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}.") from error
    if len(content) > _MOST_BYTES:
        raise ConfigError(f"{path} has over {_MOST_BYTES} bytes; it is no certificate or kit.")
    return content


def _only_name(names: x509.SubjectAlternativeName, what: str) -> str:
    dns = names.get_values_for_type(x509.DNSName)
    if len(dns) != 1 or len(list(names)) != 1:
        raise ConfigError(f"{what} must have exactly one name, and that a DNS name.")
    return dns[0]


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?", host):
            raise
        return x509.DNSName(host)


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    now: datetime,
    days: float,
) -> x509.CertificateBuilder:
    now = now.astimezone(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _signed(
    authority: tuple[bytes, ec.EllipticCurvePrivateKey],
    key: ec.EllipticCurvePublicKey,
    names: Sequence[x509.GeneralName],
    now: datetime,
    days: float,
    use: x509.ObjectIdentifier,
) -> bytes:
    """A certificate by an authority for one use."""
    issuer, issuer_key = leaf_of(authority[0]), authority[1]
    by = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
    made = _builder(_subject(str(names[0].value)), issuer.subject, key, now, days)
    made = made.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    made = made.add_extension(_usage(digital_signature=True), critical=True)
    made = made.add_extension(x509.ExtendedKeyUsage([use]), critical=False)
    made = made.add_extension(x509.SubjectAlternativeName(names), critical=False)
    made = made.add_extension(by, critical=False)
    return made.sign(issuer_key, hashes.SHA256()).public_bytes(Encoding.PEM)


def _usage(
    *, digital_signature: bool, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
