from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from bulk_server import make_parties
from whole_server import Caller, Net, make_pki, running


@pytest.fixture(scope="session")
def parties(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The owner's folder and those of two sites, not to be changed."""
    return make_parties(tmp_path_factory.mktemp("parties"), "hospital-a", "hospital-b")


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    make_pki(folder)
    return folder


@pytest.fixture
def folder(keys: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(keys, tmp_path / "server"))


@pytest.fixture
def net(folder: Path) -> Iterator[Net]:
    with running(folder) as net:
        yield net


@pytest.fixture
def a(net: Net) -> Caller:
    """A site that has said hello."""
    site = net.caller("a")
    site.hello()
    return site


@pytest.fixture
def b(net: Net) -> Caller:
    site = net.caller("b")
    site.hello()
    return site
