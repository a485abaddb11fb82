"""TLS at the server: its certificate, whom it lets connect, and who is at the other end.

Being connected is not being let in: any certificate by a trusted CA connects, and every call then
asks `fedot.transport.members` for it.
"""

from __future__ import annotations

import logging
import threading
from datetime import datetime
from pathlib import Path

import grpc

from fedot.errors import ConfigError, FedotError, ProtocolError
from fedot.transport.certificates import certificates_from, check_pair, not_after, read_small

__all__ = ["certificate_of", "read_server", "server_credentials", "server_days_left"]

_log = logging.getLogger(__name__)


def server_credentials(folder: Path) -> grpc.ServerCredentials:
    """TLS for the server: nobody connects without a certificate by a trusted CA.

    Certificates and trust are read again when the files change, for every connection after that;
    files that do not fit together are left alone, with a warning, until they do.
    """
    watched = _Watched(folder)
    return grpc.dynamic_ssl_server_credentials(
        watched.read(), watched.changed, require_client_authentication=True
    )


def server_days_left(folder: Path, now: datetime) -> float:
    """Days until the server's certificate ends."""
    return (not_after(read_server(folder)[1]) - now).total_seconds() / 86400


def certificate_of(context: grpc.ServicerContext) -> bytes:
    """The certificate that TLS has checked in this call's connection, as PEM.

    Raises:
        ProtocolError: there is none.
    """
    shown = context.auth_context().get("x509_pem_cert", ())
    if len(shown) != 1:
        raise ProtocolError("the connection has no certificate; connect with a kit and its key.")
    return bytes(shown[0])


def read_server(folder: Path) -> tuple[bytes, bytes]:
    """The server's key and chain out of their one file.

    Raises:
        ConfigError: it is damaged, or they do not fit together.
    """
    content = read_small(folder / "server.pem")
    mark = b"-----BEGIN CERTIFICATE-----"
    key, found, rest = content.partition(mark)
    if not found:
        raise ConfigError(f"{folder}/server.pem has no certificate; it must have key, then chain.")
    check_pair(key, found + rest, f"{folder}/server.pem")
    return key, found + rest


class _Watched:
    """The server's files, read again when one of them is another file."""

    _FILES = ("server.pem", "trusted.crt")

    def __init__(self, folder: Path):
        self._folder = folder
        self._guard = threading.Lock()
        self._seen: object = None

    def read(self) -> grpc.ServerCertificateConfiguration:
        seen = self._state()
        key, chain = read_server(self._folder)
        trusted = read_small(self._folder / "trusted.crt")
        certificates_from(trusted, "trusted.crt")
        self._seen = seen
        return grpc.ssl_server_certificate_configuration([(key, chain)], trusted)

    def changed(self) -> grpc.ServerCertificateConfiguration | None:
        """Called by gRPC before every handshake."""
        with self._guard:
            try:
                return self.read() if self._state() != self._seen else None
            except (FedotError, OSError) as error:
                _log.warning("the server keeps its certificate: %s", error)
                return None

    def _state(self) -> object:
        found = [(self._folder / name).stat() for name in self._FILES]
        return [(each.st_mtime_ns, each.st_size, each.st_ino) for each in found]
