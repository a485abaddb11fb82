"""Who is who over real TLS: kits, requests, other CAs, rotation."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedot.errors import ConfigError, ProtocolError, WireError
from fedot.journal import write_durably
from fedot.transport.certificates import key_from, key_pem, new_key, new_request
from fedot.transport.identity import (
    Kit,
    Signer,
    admit,
    certificate_of,
    fingerprint_of,
    init_owner,
    install_server,
    name_of,
    not_after,
    read_kit,
    read_request,
    renew_owner,
    request_certificate,
    server_credentials,
    server_days_left,
    sign_request,
    trust,
)
from fedot.transport.members import Members

WHO = "/test.Who/Am"
NOW = datetime.now(UTC)
# On loopback an answer takes milliseconds; this only ends a test that hangs.
PATIENCE_S = 20.0


class WhoAmI(grpc.GenericRpcHandler):
    """Answers with the caller's name and role, or refuses it."""

    def __init__(self, members: Members):
        self._members = members

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        return grpc.unary_unary_rpc_method_handler(self._answer)

    def _answer(self, _: bytes, context: grpc.ServicerContext) -> bytes:
        try:
            peer = self._members.peer_of(certificate_of(context), datetime.now(UTC))
        except ProtocolError as error:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
        return f"{peer.name} {peer.role}".encode()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An owner's folder and one site's, made once."""
    home = tmp_path_factory.mktemp("pki")
    init_owner(home / "pki", "A Model Owner", ["fl.example.org", "192.0.2.7"])
    request = request_certificate("hospital-a", home / "site")
    sign_request(home / "pki", request.csr_path, request.fingerprint, "site")
    return home


@pytest.fixture
def home(made: Path, tmp_path: Path) -> Path:
    """A copy of both folders that a test may change."""
    return Path(shutil.copytree(made, tmp_path / "home"))


Serve = Callable[..., int]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """`serve(owner's folder)`: a server with mutual TLS; its port."""
    with ExitStack() as undo:

        def start(
            folder: Path, credentials: Callable[[Path], grpc.ServerCredentials] = server_credentials
        ) -> int:
            pool = undo.enter_context(ThreadPoolExecutor(2))
            server = grpc.server(pool, options=[("grpc.so_reuseport", 0)])
            server.add_generic_rpc_handlers((WhoAmI(Members(folder / "members.json")),))
            port = server.add_secure_port("127.0.0.1:0", credentials(folder))
            server.start()
            undo.callback(lambda: server.stop(None).wait())
            return port

        yield start


def call(port: int, credentials: grpc.ChannelCredentials, host: str = "127.0.0.1") -> str:
    """One call over a connection of its own."""
    with grpc.secure_channel(f"{host}:{port}", credentials) as channel:
        answer: bytes = channel.unary_unary(WHO)(b"", timeout=PATIENCE_S)
        return answer.decode()


def refusal(port: int, credentials: grpc.ChannelCredentials) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as refused:
        call(port, credentials)
    return refused.value


def kit_of(home: Path, site: str = "hospital-a") -> Kit:
    return read_kit(home / "pki" / f"{site}.kit.json")


def site_credentials(home: Path, site: str = "hospital-a") -> grpc.ChannelCredentials:
    return kit_of(home, site).channel_credentials(home / "site" / f"{site}.key")


def join(home: Path, site: str, **signing: Any) -> Kit:
    """Another site, from its request to its kit."""
    request = request_certificate(site, home / "site")
    path = sign_request(home / "pki", request.csr_path, request.fingerprint, "site", **signing)
    return read_kit(path)


class Authority:
    """Somebody's own CA with one intermediate, made with `cryptography` alone."""

    def __init__(self, name: str):
        self.root, self._root_key = self._certificate(f"{name} root", None, None, ca=True)
        self.middle, self._key = self._certificate(
            f"{name} middle", self.root, self._root_key, ca=True
        )

    def issue(
        self, name: str, key: ec.EllipticCurvePrivateKey, use: x509.ObjectIdentifier
    ) -> bytes:
        """A certificate and its intermediate."""
        leaf, _ = self._certificate(name, self.middle, self._key, ca=False, key=key, use=use)
        return pem(leaf) + pem(self.middle)

    def _certificate(
        self,
        name: str,
        issuer: x509.Certificate | None,
        issuer_key: ec.EllipticCurvePrivateKey | None,
        *,
        ca: bool,
        key: ec.EllipticCurvePrivateKey | None = None,
        use: x509.ObjectIdentifier | None = None,
    ) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        key = key or new_key()
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        made = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer.subject if issuer else subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - timedelta(days=1))
            .not_valid_after(NOW + timedelta(days=365))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if use is not None:
            names = x509.SubjectAlternativeName([x509.DNSName(name)])
            made = made.add_extension(names, critical=False)
            made = made.add_extension(x509.ExtendedKeyUsage([use]), critical=False)
        return made.sign(issuer_key or key, hashes.SHA256()), key


def pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)


def test_a_site_and_the_owner_are_known_by_their_certificates(home: Path, serve: Serve) -> None:
    port = serve(home / "pki")
    assert call(port, site_credentials(home)) == "hospital-a site"
    owner = read_kit(home / "pki" / "owner.kit.json")
    assert call(port, owner.channel_credentials(home / "pki" / "owner.key")) == "owner owner"
    assert call(port, site_credentials(home), host="localhost") == "hospital-a site"


def test_without_a_certificate_nobody_connects(home: Path, serve: Serve) -> None:
    port = serve(home / "pki")
    refused = refusal(port, grpc.ssl_channel_credentials(kit_of(home).ca.encode()))
    assert refused.code() == grpc.StatusCode.UNAVAILABLE


def test_a_certificate_of_another_ca_does_not_connect(
    home: Path, tmp_path: Path, serve: Serve
) -> None:
    port = serve(home / "pki")
    other = tmp_path / "other"
    init_owner(other / "pki", "Somebody Else", [])
    join(other, "hospital-a")
    ours = kit_of(home).ca.encode()
    theirs = kit_of(other).certificate.encode()
    key = (other / "site" / "hospital-a.key").read_bytes()
    refused = refusal(port, grpc.ssl_channel_credentials(ours, key, theirs))
    assert refused.code() == grpc.StatusCode.UNAVAILABLE
    # And the other way round: a site that trusts the other owner does not talk to this server.
    refused = refusal(port, site_credentials(other))
    assert "CERTIFICATE_VERIFY_FAILED" in (refused.details() or "")


def test_an_expired_certificate_does_not_connect(home: Path, serve: Serve) -> None:
    port = serve(home / "pki")
    kit = join(home, "late", days=2, now=NOW - timedelta(days=3))
    assert kit.days_left(NOW) == pytest.approx(-1, abs=0.01)
    refused = refusal(port, kit.channel_credentials(home / "site" / "late.key"))
    assert refused.code() == grpc.StatusCode.UNAVAILABLE


def test_a_revoked_certificate_is_refused_on_a_connection_that_is_open(
    home: Path, serve: Serve
) -> None:
    port = serve(home / "pki")
    with grpc.secure_channel(f"127.0.0.1:{port}", site_credentials(home)) as channel:
        ask = channel.unary_unary(WHO)
        assert ask(b"", timeout=PATIENCE_S) == b"hospital-a site"
        Members(home / "pki" / "members.json").revoke("hospital-a")
        with pytest.raises(grpc.RpcError) as refused:
            ask(b"", timeout=PATIENCE_S)
    assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED
    assert "revoked" in (refused.value.details() or "")


def test_a_certificate_that_the_ca_signed_but_nobody_admitted_is_refused(
    home: Path, serve: Serve
) -> None:
    path = home / "pki" / "members.json"
    before = path.read_bytes()
    join(home, "stranger")
    write_durably(path, before)
    refused = refusal(serve(home / "pki"), site_credentials(home, "stranger"))
    assert refused.code() == grpc.StatusCode.PERMISSION_DENIED
    assert "not admitted" in (refused.details() or "")


def test_a_site_cannot_be_called_by_another_sites_certificate(home: Path, serve: Serve) -> None:
    join(home, "hospital-b")
    path = home / "pki" / "members.json"
    listed = json.loads(path.read_text())
    for member in listed["members"]:
        member["name"] = member["name"].replace("hospital-b", "hospital-c")
    write_durably(path, json.dumps(listed).encode())
    refused = refusal(serve(home / "pki"), site_credentials(home, "hospital-b"))
    assert refused.code() == grpc.StatusCode.PERMISSION_DENIED
    assert "does not name hospital-c" in (refused.details() or "")


def test_a_sites_certificate_cannot_stand_for_the_server(home: Path, serve: Serve) -> None:
    join(home, "localhost")

    def as_the_site(folder: Path) -> grpc.ServerCredentials:
        key = (home / "site" / "localhost.key").read_bytes()
        pair = (key, kit_of(home, "localhost").certificate.encode())
        return grpc.ssl_server_credentials([pair], (folder / "ca.crt").read_bytes(), True)

    port = serve(home / "pki", as_the_site)
    with (
        pytest.raises(grpc.RpcError) as refused,
        grpc.secure_channel(f"localhost:{port}", site_credentials(home)) as channel,
    ):
        channel.unary_unary(WHO)(b"", timeout=PATIENCE_S)
    assert "CERTIFICATE_VERIFY_FAILED" in (refused.value.details() or "")


def test_a_server_by_another_name_is_not_trusted(home: Path, serve: Serve) -> None:
    port = serve(home / "pki")
    options = [("grpc.ssl_target_name_override", "elsewhere.example.org")]
    target = f"127.0.0.1:{port}"
    with (
        pytest.raises(grpc.RpcError) as refused,
        grpc.secure_channel(target, site_credentials(home), options) as channel,
    ):
        channel.unary_unary(WHO)(b"", timeout=PATIENCE_S)
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE


def test_the_servers_certificate_changes_without_a_restart(home: Path, serve: Serve) -> None:
    folder = home / "pki"
    port = serve(folder)
    shown = shown_by(port, home)
    assert call(port, site_credentials(home)) == "hospital-a site"
    renew_owner(folder)
    assert shown_by(port, home) != shown
    assert call(port, site_credentials(home)) == "hospital-a site"
    # Halves that do not fit are left alone.
    _, chain = split(folder / "server.pem")
    now_shown = shown_by(port, home)
    write_durably(folder / "server.pem", key_pem(new_key()) + chain)
    assert shown_by(port, home) == now_shown


def split(path: Path) -> tuple[bytes, bytes]:
    key, mark, rest = path.read_bytes().partition(b"-----BEGIN CERTIFICATE-----")
    return key, mark + rest


def shown_by(port: int, home: Path) -> str:
    """Fingerprint of the certificate that the server shows to a new connection."""
    import socket
    import ssl

    context = ssl.create_default_context(cafile=str(home / "pki" / "server-ca.crt"))
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as wrapped,
    ):
        return x509.load_der_x509_certificate(wrapped.getpeercert(True)).fingerprint(
            hashes.SHA256()
        ).hex()  # fmt: skip


def test_renewing_the_owner_keeps_the_servers_names_and_whom_kits_trust(home: Path) -> None:
    before = kit_of(home).owner
    renew_owner(home / "pki", now=NOW + timedelta(days=5))
    _, chain = split(home / "pki" / "server.pem")
    names = x509.load_pem_x509_certificate(chain).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert [str(name.value) for name in names.value] == [
        "fl.example.org",
        "192.0.2.7",
        "localhost",
        "127.0.0.1",
    ]
    assert server_days_left(home / "pki", NOW) == pytest.approx(370, abs=0.01)
    assert read_kit(home / "pki" / "owner.kit.json").owner == before


def test_a_site_of_an_organisations_own_ca_connects_through_its_intermediate(
    home: Path, serve: Serve
) -> None:
    folder, theirs = home / "pki", Authority("Hospital D")
    port = serve(folder)
    key = home / "site" / "fl.hospital-d.example.key"
    write_durably(key, key_pem(new_key()))
    chain = theirs.issue(
        "fl.hospital-d.example",
        key_from(key.read_bytes(), "key"),
        ExtendedKeyUsageOID.CLIENT_AUTH,
    )
    kit = read_kit(admit(folder, chain, "fl.hospital-d.example", "site"))
    refused = refusal(port, kit.channel_credentials(key))
    assert refused.code() == grpc.StatusCode.UNAVAILABLE
    trust(folder, pem(theirs.root))
    trust(folder, pem(theirs.root))
    assert (folder / "trusted.crt").read_bytes().count(b"BEGIN") == 2
    # The running server takes the new CA for its next connection.
    assert call(port, kit.channel_credentials(key)) == "fl.hospital-d.example site"
    assert call(port, site_credentials(home)) == "hospital-a site"
    # Trusted is not admitted.
    other = new_key()
    chain = theirs.issue("other.hospital-d.example", other, ExtendedKeyUsageOID.CLIENT_AUTH)
    ours = kit.ca.encode()
    refused = refusal(port, grpc.ssl_channel_credentials(ours, key_pem(other), chain))
    assert refused.code() == grpc.StatusCode.PERMISSION_DENIED


def test_the_server_can_show_an_organisations_own_certificate_with_an_intermediate(
    home: Path, serve: Serve
) -> None:
    folder, own, key = home / "pki", Authority("Model Owner"), new_key()
    port = serve(folder)
    old = kit_of(home)
    chain = own.issue("localhost", key, ExtendedKeyUsageOID.SERVER_AUTH)
    install_server(folder, key_pem(key), chain, pem(own.root))
    kit = join(home, "hospital-b")
    credentials = kit.channel_credentials(home / "site" / "hospital-b.key")
    assert call(port, credentials, host="localhost") == "hospital-b site"
    assert kit.owner != old.owner
    with pytest.raises(grpc.RpcError):
        call(port, old.channel_credentials(home / "site" / "hospital-a.key"), host="localhost")
    with pytest.raises(ConfigError, match="another key"):
        install_server(folder, key_pem(new_key()), chain, pem(own.root))


def test_trusting_what_is_no_ca_is_refused(home: Path) -> None:
    with pytest.raises(ConfigError, match="no CA's"):
        trust(home / "pki", kit_of(home).certificate.encode())
    with pytest.raises(ConfigError, match="can be read"):
        trust(home / "pki", b"no certificate")


def test_a_foreign_certificate_is_admitted_under_its_own_name_only(home: Path) -> None:
    chain = Authority("X").issue("x.example", new_key(), ExtendedKeyUsageOID.CLIENT_AUTH)
    with pytest.raises(ConfigError, match="not for hospital-b"):
        admit(home / "pki", chain, "hospital-b", "site")


def test_the_owners_folder_is_made_once_and_whole(tmp_path: Path) -> None:
    init_owner(tmp_path / "pki", "Owner", ["fl.example.org"])
    with pytest.raises(ConfigError, match="is there already"):
        init_owner(tmp_path / "pki", "Owner", [])
    with pytest.raises(ConfigError, match="without a port"):
        init_owner(tmp_path / "second", "Owner", ["fl.example.org:443"])
    # What failed left nothing behind.
    assert [path.name for path in tmp_path.iterdir()] == ["pki"]


def test_only_their_owner_can_read_private_keys(home: Path, tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        init_owner(tmp_path / "pki", "Owner", [])
        request_certificate("hospital-b", tmp_path / "site")
    finally:
        os.umask(old)
    assert mode(tmp_path / "pki") == 0o700
    secrets = [tmp_path / "pki" / f"{name}.key" for name in ("ca", "signing", "owner")]
    secrets += [tmp_path / "pki" / "server.pem", tmp_path / "site" / "hospital-b.key"]
    assert {mode(path) for path in secrets} == {0o600}
    private = [path for path in (tmp_path / "pki").iterdir() if b"PRIVATE" in path.read_bytes()]
    assert set(private) == set(secrets[:4])


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(
    "site",
    ["", "../x", "a/b", "a\0b", "Upper", "-a", "a-", ".a", "a" * 64, "a b", "a\n", "owner", "ca"],
)
def test_a_name_that_could_leave_its_folder_is_no_sites(tmp_path: Path, site: str) -> None:
    with pytest.raises(ConfigError, match="cannot be a site's name"):
        request_certificate(site, tmp_path)
    (tmp_path / "x.csr").write_bytes(new_request(site or "-", new_key()))
    with pytest.raises(ConfigError, match="cannot be a site's name"):
        read_request(tmp_path / "x.csr")


def test_a_request_is_signed_only_with_the_fingerprint_that_was_told(home: Path) -> None:
    request = request_certificate("hospital-b", home / "site")
    swapped = home / "swapped.csr"
    swapped.write_bytes(new_request("hospital-b", new_key()))
    with pytest.raises(ConfigError, match="fingerprint"):
        sign_request(home / "pki", swapped, request.fingerprint, "site")
    assert Members(home / "pki" / "members.json").sites() == ["hospital-a"]
    typed = request.fingerprint.upper().replace("-", " ")
    assert read_kit(sign_request(home / "pki", request.csr_path, typed, "site")).role == "site"


def test_a_changed_request_is_refused(home: Path) -> None:
    request = request_certificate("hospital-b", home / "site")
    der = bytearray(
        x509.load_pem_x509_csr(request.csr_path.read_bytes()).public_bytes(Encoding.DER)
    )
    place = der.rindex(b"hospital-b")
    der[place : place + 10] = b"hospital-c"
    request.csr_path.write_bytes(x509.load_der_x509_csr(bytes(der)).public_bytes(Encoding.PEM))
    with pytest.raises(ConfigError, match="changed after it was made"):
        sign_request(home / "pki", request.csr_path, request.fingerprint, "site")
    request.csr_path.write_bytes(b"-----BEGIN CERTIFICATE REQUEST-----\n")
    with pytest.raises(ConfigError, match="no signing request"):
        read_request(request.csr_path)


@pytest.mark.parametrize("days", [0, -1, 90.5, 91])
def test_no_certificate_lasts_longer_than_ninety_days(home: Path, days: float) -> None:
    with pytest.raises(ConfigError, match="90"):
        join(home, "hospital-b", days=days)


def test_a_renewal_keeps_the_key_and_both_certificates_are_good_meanwhile(
    home: Path, serve: Serve
) -> None:
    port = serve(home / "pki")
    old = kit_of(home)
    key = home / "site" / "hospital-a.key"
    new = join(home, "hospital-a", days=30)
    assert new.fingerprint != old.fingerprint
    assert new.owner == old.owner
    for kit in (old, new):
        assert call(port, kit.channel_credentials(key)) == "hospital-a site"


def test_a_kit_says_whose_and_until_when(home: Path) -> None:
    kit = join(home, "hospital-b", days=30, now=NOW)
    pem = kit.certificate.encode()
    assert (kit.site, kit.role, name_of(pem)) == ("hospital-b", "site", "hospital-b")
    assert kit.days_left(NOW) == pytest.approx(30, abs=1e-4)
    assert not_after(pem) - NOW == pytest.approx(timedelta(days=30), abs=timedelta(seconds=1))
    assert kit.fingerprint == fingerprint_of(pem)
    assert len(kit.fingerprint) == 64


def test_a_changed_kit_is_refused(home: Path) -> None:
    path = home / "pki" / "hospital-a.kit.json"
    good = json.loads(path.read_text())
    other = join(home, "hospital-b")
    changes: list[dict[str, Any]] = [
        {"site": "hospital-b"},
        {"certificate": other.certificate},
        {"certificate": good["certificate"][:-60]},
        {"ca": "none"},
        {"signing_key": "00"},
        {"role": "king"},
        {"format": "fedot-kit-2"},
        {"extra": 1},
    ]
    for change in changes:
        path.write_text(json.dumps(good | change))
        with pytest.raises(ConfigError, match=r"cannot be used"):
            read_kit(path)
    path.write_text(json.dumps(good)[:-5])
    with pytest.raises(ConfigError, match="cannot be used"):
        read_kit(path)
    path.write_bytes(b" " * 2**19)
    with pytest.raises(ConfigError, match="no certificate or kit"):
        read_kit(path)


def test_a_kit_that_trusts_somebody_else_shows_another_owner(home: Path, tmp_path: Path) -> None:
    init_owner(tmp_path / "mallory", "A Model Owner", [])
    mallory = read_kit(tmp_path / "mallory" / "owner.kit.json")
    kit = kit_of(home)
    for change in ({"ca": mallory.ca}, {"signing_key": mallory.signing_key}):
        path = tmp_path / "kit.json"
        path.write_text(json.dumps(kit.model_dump() | change))
        assert read_kit(path).owner != kit.owner
    assert kit.owner == read_kit(home / "pki" / "owner.kit.json").owner


def test_a_kit_is_used_with_its_own_key_only(home: Path) -> None:
    join(home, "hospital-b")
    with pytest.raises(ConfigError, match="not the key"):
        kit_of(home).channel_credentials(home / "site" / "hospital-b.key")
    with pytest.raises(ConfigError, match="cannot read"):
        kit_of(home).channel_credentials(home / "site" / "none.key")


def test_only_the_owners_signature_over_the_same_bytes_is_accepted(
    home: Path, tmp_path: Path
) -> None:
    kit, signature = kit_of(home), Signer(home / "pki").sign(b"manifest")
    kit.verify(b"manifest", signature)
    init_owner(tmp_path / "mallory", "Mallory", [])
    wrong = [
        (b"manifesT", signature),
        (b"manifest", bytes([signature[0] ^ 1]) + signature[1:]),
        (b"manifest", signature[:-1]),
        (b"manifest", b""),
        (b"manifest", Signer(tmp_path / "mallory").sign(b"manifest")),
    ]
    for message, claimed in wrong:
        with pytest.raises(WireError, match="not the model owner's"):
            kit.verify(message, claimed)


def test_a_certificate_with_no_or_several_names_is_nobodys() -> None:
    issuer = Authority("X")
    with pytest.raises(ProtocolError, match="names nobody"):
        name_of(pem(issuer.root))
    with pytest.raises(ProtocolError, match="cannot be read"):
        name_of(b"nothing")
