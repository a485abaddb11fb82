"""One bundle and one site for the tests of the site's loop."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from site_party import KEPT, SPEC, Party
from whole_server import RUN, make_pki, running

from fedot.emulator.bundle import write_bundle, write_signature
from fedot.models.anatomy import load_model, shallower
from fedot.transport.identity import Signer


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    make_pki(folder)
    return folder


@pytest.fixture(scope="session")
def bundle(
    checkpoint: Path, tiny_tokenizer: Any, keys: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A signed bundle; not to be changed."""
    emulator = shallower(load_model(str(checkpoint)), KEPT)
    folder = tmp_path_factory.mktemp("bundles") / "bundle"
    write_bundle(folder, emulator, tiny_tokenizer, KEPT, SPEC, {})
    write_signature(folder, Signer(keys / "pki").sign)
    return folder


@pytest.fixture
def party(keys: Path, tmp_path: Path, records_file: Callable[..., Path]) -> Iterator[Party]:
    folder = Path(shutil.copytree(keys, tmp_path / "server"))
    with running(folder) as net:
        party = Party(net, tmp_path / "site", records_file())
        try:
            yield party
        finally:
            net.hub.board.close_run(RUN, "done")
            party.close()
