from __future__ import annotations

from pathlib import Path

import pytest
from bulk_server import make_parties


@pytest.fixture(scope="session")
def parties(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The owner's folder and those of two sites, not to be changed."""
    return make_parties(tmp_path_factory.mktemp("parties"), "hospital-a", "hospital-b")
