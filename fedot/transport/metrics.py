"""What the server counts, for Prometheus: `/metrics` and `/healthz` over plain HTTP.

Design note: names of sites become labels only if the owner admitted them, so nobody can fill the
memory with made-up ones. Nothing here is about a site's records: no losses, norms or counts of
them. The port has no TLS and no password; it listens on this machine only unless told otherwise.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fedot.errors import FedotError
from fedot.transport.members import Members

__all__ = ["REFUSALS", "Health", "Telemetry"]

Health = Callable[[], tuple[bool, Mapping[str, str | int | float | bool | None]]]
"""Is the server well, and what there is to say about it."""

REFUSALS = ("identity", "role", "hook", "state", "wire", "limit", "other")
"""Why calls are refused, as a label."""

_OTHERS = "other"
_IDLE_S = 10.0
_log = logging.getLogger(__name__)


class Telemetry:
    """Counters, gauges and the endpoint that shows them; a context manager that closes it.

    Args:
        members: whose names may be labels.
        health: asked at `/healthz`.
        host: where to listen.
        port: 0 takes a free one.
    """

    def __init__(self, members: Members, health: Health, host: str = "127.0.0.1", port: int = 0):
        self._members = members
        self._known: set[str] = set()
        registry = CollectorRegistry()
        by_site = ("site",)
        self._received = Counter("fedot_received_bytes", "From a site", by_site, registry=registry)
        self._sent = Counter("fedot_sent_bytes", "To a site", by_site, registry=registry)
        self._uploads = Counter("fedot_uploads", "Updates that count", by_site, registry=registry)
        self._downloads = Counter("fedot_downloads", "Whole files", by_site, registry=registry)
        self._refused = Counter("fedot_refused_calls", "By cause", ("reason",), registry=registry)
        self._round = Gauge("fedot_round", "The open round; 0: none", registry=registry)
        self._present = Gauge("fedot_sites_present", "Sites heard of lately", registry=registry)
        self._late = Gauge("fedot_sites_late", "Sites a round waits for", registry=registry)
        registry.register(_Certificates(members))
        self._server = _Server((host, port), _handler(registry, health))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._server.server_port

    def received(self, site: str, num_bytes: int) -> None:
        """Count bytes that came from a site."""
        self._received.labels(self._label(site)).inc(num_bytes)

    def sent(self, site: str, num_bytes: int) -> None:
        """Count bytes that went to a site."""
        self._sent.labels(self._label(site)).inc(num_bytes)

    def uploaded(self, site: str) -> None:
        """Count an update that was committed."""
        self._uploads.labels(self._label(site)).inc()

    def downloaded(self, site: str) -> None:
        """Count a file that went out to its end."""
        self._downloads.labels(self._label(site)).inc()

    def refused(self, reason: str) -> None:
        """Count a refused call; a reason that is not in `REFUSALS` counts as `other`."""
        self._refused.labels(reason if reason in REFUSALS else _OTHERS).inc()

    def rounds(self, round: int, present: int, late: int) -> None:
        """Say where the run is: the open round, sites that are there, sites it waits for."""
        self._round.set(round)
        self._present.set(present)
        self._late.set(late)

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Telemetry:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _label(self, site: str) -> str:
        if site not in self._known:
            if site not in {member.name for member in self._members.all()}:
                return _OTHERS
            self._known.add(site)
        return site


class _Certificates(Collector):
    """Days left, computed when somebody looks."""

    def __init__(self, members: Members):
        self._members = members

    def collect(self) -> Iterable[Metric]:
        now = datetime.now(UTC)
        family = GaugeMetricFamily(
            "fedot_certificate_days_left", "Until a site's last certificate ends", labels=["site"]
        )
        last: dict[str, datetime] = {}
        for member in self._members.valid(now):
            last[member.name] = max(member.ends, last.get(member.name, member.ends))
        for name, ends in sorted(last.items()):
            family.add_metric([name], (ends - now).total_seconds() / 86400)
        yield family


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # A stopped server's port can be taken at once by the next.
    allow_reuse_address = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        _log.warning("a request for metrics failed", exc_info=True)


def _handler(registry: CollectorRegistry, health: Health) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        # Who connects and says nothing is cut off.
        timeout = _IDLE_S

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            try:
                if path == "/metrics":
                    self._answer(200, CONTENT_TYPE_PLAIN_0_0_4, generate_latest(registry))
                elif path == "/healthz":
                    well, said = health()
                    self._json(200 if well else 503, said)
                else:
                    self._json(404, {"error": "there are /metrics and /healthz"})
            except FedotError as error:
                self._json(503, {"error": str(error)})

        def _json(self, status: int, said: Mapping[str, object]) -> None:
            self._answer(status, "application/json", json.dumps(dict(said)).encode() + b"\n")

        def _answer(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Scrapes are no news."""

    return Handler
