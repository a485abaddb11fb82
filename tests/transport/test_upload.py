"""The upload store without a network: offsets, conflicts, restarts."""

from __future__ import annotations

import os
import random
import sqlite3
import threading
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from fedot.errors import ProtocolError, TransportError, WireError
from fedot.transport.binding import Binding
from fedot.transport.disk import Disk
from fedot.transport.errors import Busy, Denied, OutOfStep, UnknownUpload
from fedot.transport.limits import Limits
from fedot.transport.upload import ACK_BYTES, UploadState, UploadStore
from fedot.transport.upload_table import UploadTable

LIMITS = Limits()
PAYLOAD = random.Random(7).randbytes(5 * 2**20 + 17)
PATIENCE_S = 20.0


def binding(payload: bytes = PAYLOAD, site: str = "hospital-a", round: int = 1) -> Binding:
    return Binding("run", round, site, sha256(payload).hexdigest())


def chunks(payload: bytes, size: int = 2**20) -> Iterator[bytes]:
    return (payload[at : at + size] for at in range(0, len(payload), size))


def begin(store: UploadStore, payload: bytes = PAYLOAD, **what: int | str) -> UploadState:
    return store.create(binding(payload, **what), len(payload), "{}")  # type: ignore[arg-type]


def send(store: UploadStore, upload_id: str, offset: int, payload: bytes) -> list[int]:
    return list(store.append(upload_id, "hospital-a", offset, chunks(payload)))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[UploadStore]:
    with UploadStore(tmp_path / "store", LIMITS) as opened:
        yield opened


def test_what_is_committed_is_what_was_sent(store: UploadStore) -> None:
    state = store.create(binding(), len(PAYLOAD), '{"epsilon": null}')
    assert send(store, state.upload_id, 0, PAYLOAD)[-1] == len(PAYLOAD)
    assert store.commit(state.upload_id, binding()).is_committed
    (found,) = store.committed("run", 1)
    assert (found.site, found.digest) == ("hospital-a", binding().digest)
    assert found.metadata == '{"epsilon": null}'
    assert found.path.read_bytes() == PAYLOAD


def test_offsets_rise_and_end_at_the_size(store: UploadStore) -> None:
    offsets = send(store, begin(store).upload_id, 0, PAYLOAD)
    assert offsets == sorted(set(offsets))
    assert offsets[-1] == len(PAYLOAD)


def test_an_empty_update_can_be_committed(store: UploadStore) -> None:
    state = begin(store, b"")
    assert store.commit(state.upload_id, binding(b"")).is_committed


def test_the_same_update_again_is_the_same_upload(store: UploadStore) -> None:
    first = begin(store)
    send(store, first.upload_id, 0, PAYLOAD[:ACK_BYTES])
    assert begin(store) == UploadState(first.upload_id, ACK_BYTES, False)


def test_another_update_for_the_same_round_is_a_conflict(store: UploadStore) -> None:
    begin(store)
    with pytest.raises(ProtocolError, match="the first one counts"):
        begin(store, b"another")


def test_commit_again_changes_nothing(store: UploadStore) -> None:
    state = begin(store)
    send(store, state.upload_id, 0, PAYLOAD)
    assert store.commit(state.upload_id, binding()) == store.commit(state.upload_id, binding())
    assert len(store.committed("run", 1)) == 1
    with pytest.raises(ProtocolError, match="committed"):
        send(store, state.upload_id, len(PAYLOAD), b"more")


def test_a_wrong_offset_writes_nothing(store: UploadStore) -> None:
    state = begin(store)
    send(store, state.upload_id, 0, PAYLOAD[:100])
    for offset in (0, 99, 101, 10**15):
        with pytest.raises(OutOfStep, match="byte 100"):
            send(store, state.upload_id, offset, b"x" * 50)
    send(store, state.upload_id, 100, PAYLOAD[100:])
    assert store.commit(state.upload_id, binding()).is_committed


def test_bytes_beyond_the_size_are_refused_and_not_kept(store: UploadStore) -> None:
    state = begin(store)
    send(store, state.upload_id, 0, PAYLOAD[:-10])
    with pytest.raises(WireError, match="has more"):
        send(store, state.upload_id, len(PAYLOAD) - 10, PAYLOAD[-10:] + b"!")
    assert store.query(state.upload_id, binding()).committed_offset == len(PAYLOAD) - 10


def test_commit_before_the_end_says_how_much_is_missing(store: UploadStore) -> None:
    state = begin(store)
    send(store, state.upload_id, 0, PAYLOAD[:100])
    with pytest.raises(OutOfStep, match=f"100 of {len(PAYLOAD)}"):
        store.commit(state.upload_id, binding())


def test_after_a_wrong_digest_the_update_can_be_sent_anew(store: UploadStore) -> None:
    state = begin(store)
    send(store, state.upload_id, 0, PAYLOAD[:-1] + bytes([PAYLOAD[-1] ^ 1]))
    with pytest.raises(WireError, match="digest"):
        store.commit(state.upload_id, binding())
    assert not store.committed("run", 1)
    with pytest.raises(UnknownUpload):
        store.query(state.upload_id, binding())
    again = begin(store)
    assert again.committed_offset == 0
    send(store, again.upload_id, 0, PAYLOAD)
    assert store.commit(again.upload_id, binding()).is_committed


def test_a_restart_goes_on_from_the_last_offset(tmp_path: Path) -> None:
    with UploadStore(tmp_path / "store", LIMITS) as store:
        state = begin(store)
        send(store, state.upload_id, 0, PAYLOAD[: 3 * 2**20])
    with UploadStore(tmp_path / "store", LIMITS) as store:
        assert begin(store) == UploadState(state.upload_id, 3 * 2**20, False)
        send(store, state.upload_id, 3 * 2**20, PAYLOAD[3 * 2**20 :])
        assert store.commit(state.upload_id, binding()).is_committed
    with UploadStore(tmp_path / "store", LIMITS) as store:
        assert begin(store).is_committed
        assert store.committed("run", 1)[0].path.read_bytes() == PAYLOAD


def test_a_file_damaged_while_the_server_was_down_is_not_committed(tmp_path: Path) -> None:
    with UploadStore(tmp_path / "store", LIMITS) as store:
        state = begin(store)
        send(store, state.upload_id, 0, PAYLOAD)
    (part,) = (tmp_path / "store").glob("*.part")
    part.write_bytes(b"x" + PAYLOAD[1:])
    with UploadStore(tmp_path / "store", LIMITS) as store, pytest.raises(WireError, match="digest"):
        store.commit(state.upload_id, binding())


def test_lost_files_are_asked_for_again(tmp_path: Path) -> None:
    with UploadStore(tmp_path / "store", LIMITS) as store:
        state = begin(store)
        send(store, state.upload_id, 0, PAYLOAD)
        store.commit(state.upload_id, binding())
        store.committed("run", 1)[0].path.unlink()
    with UploadStore(tmp_path / "store", LIMITS) as store:
        assert begin(store).committed_offset == 0
        assert not store.committed("run", 1)


def test_strange_files_are_removed_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / f"{'0' * 32}.part").write_bytes(b"left over")
    with UploadStore(tmp_path / "store", LIMITS):
        assert not list((tmp_path / "store").glob("*.part"))


class Held:
    """Chunks that come only when the test lets them."""

    def __init__(self, first: bytes):
        self._first, self._go_on = first, threading.Event()

    def __iter__(self) -> Iterator[bytes]:
        yield self._first
        self._go_on.wait(PATIENCE_S)
        yield b"late"

    def release(self) -> None:
        self._go_on.set()


def test_a_newer_stream_cuts_off_the_older(store: UploadStore) -> None:
    state = begin(store)
    held = Held(PAYLOAD[:100])
    older = store.append(state.upload_id, "hospital-a", 0, iter(held))
    assert next(older) == 100
    newer = store.append(state.upload_id, "hospital-a", 100, chunks(PAYLOAD[100:]))
    offsets = list(newer)
    held.release()
    with pytest.raises(TransportError, match="newer stream"):
        list(older)
    assert offsets[-1] == len(PAYLOAD)
    assert store.commit(state.upload_id, binding()).is_committed


def test_what_came_before_a_failure_is_kept(store: UploadStore) -> None:
    state = begin(store)

    def broken() -> Iterator[bytes]:
        yield PAYLOAD[:1000]
        raise TransportError("cut")

    with pytest.raises(TransportError, match="cut"):
        list(store.append(state.upload_id, "hospital-a", 0, broken()))
    assert store.query(state.upload_id, binding()).committed_offset == 1000


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_reader_that_fails_for_no_reason_of_ours_ends_its_stream(store: UploadStore) -> None:
    """Or whoever answers would wait for it for ever, and hold a thread and a place."""
    state, met = begin(store), list[Exception]()

    def broken() -> Iterator[bytes]:
        yield PAYLOAD[:100]
        raise MemoryError

    def answer() -> None:
        try:
            list(store.append(state.upload_id, "hospital-a", 0, broken()))
        except TransportError as error:
            met.append(error)

    answering = threading.Thread(target=answer, daemon=True)
    answering.start()
    answering.join(PATIENCE_S)
    assert [str(error) for error in met if "could not go on" in str(error)]
    send(store, state.upload_id, 100, PAYLOAD[100:])
    assert store.commit(state.upload_id, binding()).is_committed


def test_an_upload_belongs_to_its_site_run_round_and_digest(store: UploadStore) -> None:
    state = begin(store)
    with pytest.raises(Denied, match="another site"):
        list(store.append(state.upload_id, "hospital-b", 0, chunks(PAYLOAD)))
    for other in (binding(site="hospital-b"), binding(round=2), binding(b"another")):
        with pytest.raises(Denied):
            store.query(state.upload_id, other)
        with pytest.raises(Denied):
            store.commit(state.upload_id, other)


def test_ids_from_a_peer_never_become_paths(store: UploadStore) -> None:
    for upload_id in ("../escape", "/etc/passwd", "a\0b", ""):
        with pytest.raises(UnknownUpload):
            list(store.append(upload_id, "hospital-a", 0, chunks(PAYLOAD)))


def test_too_large_updates_are_refused_before_a_byte(tmp_path: Path) -> None:
    limits = Limits(max_upload_bytes=1000, max_bytes_per_site=1500)
    with UploadStore(tmp_path / "store", limits) as store:
        with pytest.raises(WireError, match="limit is 1000"):
            store.create(binding(), 1001, "{}")
        with pytest.raises(WireError, match="metadata"):
            store.create(binding(), 1, "x" * 2**17)
        begin(store, b"x" * 1000)
        with pytest.raises(ProtocolError, match="limit is 1500"):
            begin(store, b"x" * 501, round=2)
        begin(store, b"x" * 500, round=2)
        begin(store, b"x" * 1000, site="hospital-b")
        assert os.path.getsize(next((tmp_path / "store").glob("*.part"))) == 0


def test_a_dropped_round_leaves_no_files_and_cuts_streams(
    store: UploadStore, tmp_path: Path
) -> None:
    state = begin(store)
    held = Held(PAYLOAD[:100])
    stream = store.append(state.upload_id, "hospital-a", 0, iter(held))
    assert next(stream) == 100
    other = begin(store, site="hospital-b", round=2)
    store.drop("run", 1)
    held.release()
    with pytest.raises(TransportError, match="cut this one off"):
        list(stream)
    assert [path.stem for path in (tmp_path / "store").glob("*.part")] == [other.upload_id]


def test_committed_updates_come_in_the_order_of_sites(store: UploadStore) -> None:
    for site in ("hospital-c", "hospital-a", "hospital-b"):
        payload = site.encode()
        state = begin(store, payload, site=site)
        list(store.append(state.upload_id, site, 0, iter([payload])))
        store.commit(state.upload_id, binding(payload, site=site))
    sites = [each.site for each in store.committed("run", 1)]
    assert sites == ["hospital-a", "hospital-b", "hospital-c"]
    assert not store.committed("run", 2)


class FullAfterRename(Disk):
    """Takes everything but the record of the first rename."""

    def __init__(self) -> None:
        self.renames = self.refusals = 0

    def rename(self, before: Path, after: Path) -> None:
        super().rename(before, after)
        self.renames += 1

    def commit(self, db: sqlite3.Connection) -> None:
        if self.renames and not self.refusals:
            self.refusals += 1
            raise sqlite3.OperationalError("database or disk is full")
        super().commit(db)


def test_a_commit_that_could_not_be_recorded_can_be_tried_again(tmp_path: Path) -> None:
    with UploadStore(tmp_path / "store", LIMITS, FullAfterRename()) as store:
        state = begin(store)
        send(store, state.upload_id, 0, PAYLOAD)
        with pytest.raises(Busy, match="disk"):
            store.commit(state.upload_id, binding())
        assert not store.committed("run", 1)
        assert store.commit(state.upload_id, binding()).is_committed
        assert store.committed("run", 1)[0].path.read_bytes() == PAYLOAD


def test_what_was_recorded_never_goes_back(tmp_path: Path) -> None:
    table = UploadTable(tmp_path / "uploads.sqlite", Disk())
    row, _ = table.create(binding(), 100, "{}", 10**9)
    table.record(row.upload_id, 100, is_whole=True)
    # A stream that was cut off meanwhile, and is late.
    table.record(row.upload_id, 40)
    assert (table.get(row.upload_id).durable, table.get(row.upload_id).is_whole) == (100, True)
    table.close()


def test_many_sites_at_once_do_not_mix(store: UploadStore) -> None:
    payloads = {f"site-{n}": random.Random(n).randbytes(3 * 2**20) for n in range(4)}

    def one(site: str) -> None:
        state = begin(store, payloads[site], site=site)
        list(store.append(state.upload_id, site, 0, chunks(payloads[site], 70_000)))
        store.commit(state.upload_id, binding(payloads[site], site=site))

    threads = [threading.Thread(target=one, args=(site,)) for site in payloads]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    found = {each.site: each.path.read_bytes() for each in store.committed("run", 1)}
    assert found == payloads
