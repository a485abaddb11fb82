"""Who is who over real TLS: kits, requests, other CAs, rotation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest

from fedot.errors import ProtocolError
from fedot.transport.identity import (
    Kit,
    certificate_of,
    init_owner,
    read_kit,
    request_certificate,
    server_credentials,
    sign_request,
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
    import shutil

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


def join(home: Path, site: str, **signing: object) -> Kit:
    """Another site, from its request to its kit."""
    request = request_certificate(site, home / "site")
    path = sign_request(home / "pki", request.csr_path, request.fingerprint, "site", **signing)  # type: ignore[arg-type]
    return read_kit(path)


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
