"""What the server offers: only what is in its table, by exact names."""

from __future__ import annotations

import os
from hashlib import sha256
from pathlib import Path

import pytest

from fedot.errors import ConfigError, WireError
from fedot.transport.binding import File
from fedot.transport.shelf import Shelf

DIGEST = "ab" * 32


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    (tmp_path / "offered.bin").write_bytes(b"0123456789")
    (tmp_path / "secret.bin").write_bytes(b"secret")
    shelf = Shelf()
    shelf.put(DIGEST, {"offered.bin": tmp_path / "offered.bin"})
    return shelf


def test_files_are_listed_with_size_and_digest(shelf: Shelf) -> None:
    assert shelf.files(DIGEST) == [File("offered.bin", 10, sha256(b"0123456789").hexdigest())]


def test_a_known_digest_is_not_computed_again(shelf: Shelf, tmp_path: Path) -> None:
    shelf.put(DIGEST, {"x": tmp_path / "offered.bin"}, {"x": "cd" * 32})
    assert shelf.files(DIGEST)[0].sha256 == "cd" * 32


def test_a_file_can_be_read_from_an_offset(shelf: Shelf) -> None:
    opened, file = shelf.open(DIGEST, "offered.bin", 4)
    try:
        assert os.pread(opened, file.size, 4) == b"456789"
    finally:
        os.close(opened)


@pytest.mark.parametrize(
    "name",
    ["secret.bin", "../secret.bin", "./offered.bin", "/etc/passwd", "offered.bin\0", "", "..", "."],
)
def test_any_other_name_is_refused(shelf: Shelf, name: str) -> None:
    with pytest.raises(WireError, match="no file of that name"):
        shelf.open(DIGEST, name, 0)


@pytest.mark.parametrize("name", ["../up", "a/b", "/abs", "nul\0", "", ".hidden", "..", "a" * 200])
def test_names_that_could_leave_a_folder_are_never_offered(
    shelf: Shelf, tmp_path: Path, name: str
) -> None:
    with pytest.raises(WireError, match="name"):
        shelf.put(DIGEST, {name: tmp_path / "offered.bin"})


@pytest.mark.parametrize("offset", [-1, 11, 2**63])
def test_an_offset_outside_the_file_is_refused(shelf: Shelf, offset: int) -> None:
    with pytest.raises(WireError, match="outside"):
        shelf.open(DIGEST, "offered.bin", offset)


def test_a_file_that_changed_is_not_sent(shelf: Shelf, tmp_path: Path) -> None:
    (tmp_path / "offered.bin").write_bytes(b"other")
    with pytest.raises(ConfigError, match="changed"):
        shelf.open(DIGEST, "offered.bin", 0)
    (tmp_path / "offered.bin").unlink()
    with pytest.raises(ConfigError, match="cannot read"):
        shelf.open(DIGEST, "offered.bin", 0)


def test_what_was_removed_is_offered_no_more(shelf: Shelf) -> None:
    shelf.remove(DIGEST)
    with pytest.raises(WireError, match="nothing is offered"):
        shelf.files(DIGEST)
    shelf.remove(DIGEST)
