"""How gRPC is set up: what both sides must agree on stands in one place."""

from __future__ import annotations

import re

from fedot.errors import ConfigError
from fedot.transport.limits import Limits

__all__ = ["DEFAULT_PORT", "MESSAGE_ROOM", "channel_options", "server_options", "with_port"]

DEFAULT_PORT = 8443
"""Where `fedot serve` listens unless it is told otherwise."""

Options = list[tuple[str, int | str]]

# Metadata of an upload is the largest thing in a control call; a chunk is larger.
MESSAGE_ROOM = 2**17
_METADATA_BYTES = 2**14
_NO_COMPRESSION = 0
_KEEPALIVE_S = 20.0
# What may be under way in one stream. gRPC would measure it, and holds up to 50 MB more on a fast
# link for no gain in rate; this is enough for 40 MB/s at 200 ms.
_WINDOW_BYTES = 2**23


def with_port(server: str) -> str:
    """HOST:PORT of what a person typed: HOST alone means the port that servers have by default.

    Raises:
        ConfigError: it is neither.
    """
    found = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]]+)(?::(\d{1,5}))?", server)
    if found is None:
        raise ConfigError(
            f"the server {server!r} must read HOST:PORT, such as fl.example.org:{DEFAULT_PORT}."
        )
    return f"{found[1]}:{found[2] or DEFAULT_PORT}"


def server_options(limits: Limits, max_streams_per_connection: int = 64) -> Options:
    """For `grpc.server`."""
    return [
        *_both(limits.chunk_bytes, limits.stall_timeout_s),
        ("grpc.max_concurrent_streams", max_streams_per_connection),
        # Half of what sites do, so that jitter is no strike.
        ("grpc.http2.min_ping_interval_without_data_ms", _ms(_ping_s(limits.stall_timeout_s) / 2)),
        ("grpc.so_reuseport", 0),
    ]


def channel_options(chunk_bytes: int, stall_timeout_s: float, proxy: str | None = None) -> Options:
    """For `grpc.secure_channel`; `proxy` takes the place of what `http_proxy` says."""
    options: Options = [
        *_both(chunk_bytes, stall_timeout_s),
        # Fresh credentials must not meet an old connection in a pool.
        ("grpc.use_local_subchannel_pool", 1),
        # Who waits longer each time is `fedot.transport.channel`.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", _ms(stall_timeout_s)),
        ("grpc.max_reconnect_backoff_ms", 1000),
        ("grpc.enable_retries", 0),
    ]
    return [*options, ("grpc.http_proxy", proxy)] if proxy else options


def _both(chunk_bytes: int, stall_timeout_s: float) -> Options:
    return [
        ("grpc.max_receive_message_length", chunk_bytes + MESSAGE_ROOM),
        ("grpc.max_send_message_length", chunk_bytes + MESSAGE_ROOM),
        ("grpc.max_metadata_size", _METADATA_BYTES),
        ("grpc.default_compression_algorithm", _NO_COMPRESSION),
        ("grpc.keepalive_time_ms", _ms(_ping_s(stall_timeout_s))),
        ("grpc.keepalive_timeout_ms", _ms(stall_timeout_s)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", _WINDOW_BYTES),
    ]


def _ping_s(stall_timeout_s: float) -> float:
    return min(_KEEPALIVE_S, stall_timeout_s)


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))
