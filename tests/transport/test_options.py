"""What a person may type for a server."""

from __future__ import annotations

import pytest

from fedot.errors import ConfigError
from fedot.transport.options import DEFAULT_PORT, with_port


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("localhost", f"localhost:{DEFAULT_PORT}"),
        ("fl.example.org:443", "fl.example.org:443"),
        ("10.0.0.1", f"10.0.0.1:{DEFAULT_PORT}"),
        ("[::1]", f"[::1]:{DEFAULT_PORT}"),
        ("[::1]:9000", "[::1]:9000"),
    ],
)
def test_a_host_alone_means_the_port_that_servers_have(typed: str, meant: str) -> None:
    assert with_port(typed) == meant


@pytest.mark.parametrize(
    "typed", ["", "https://fl.example.org", "host:", "host:port", "::1", "a b"]
)
def test_what_is_no_host_is_refused_with_what_it_must_be(typed: str) -> None:
    with pytest.raises(ConfigError, match="must read HOST:PORT"):
        with_port(typed)


def test_it_is_the_port_that_serve_listens_on() -> None:
    import inspect

    from fedot.cli.network import serve

    assert inspect.signature(serve).parameters["listen"].default == f"0.0.0.0:{DEFAULT_PORT}"
