"""Server and site find each other again after either was started anew: real gRPC, real TLS."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedot.cards import ResultCard, RunCard
from fedot.config import PayloadConfig, PrivacyConfig, TrainingConfig
from fedot.engines.open_site import OpenSite, open_site
from fedot.engines.remote import RemoteEngine
from fedot.federation.open_server import ServerSettings, open_server
from fedot.federation.serve import Server, Watcher
from fedot.journal import Journal
from fedot.messages import (
    ClientFailure,
    ClientInfo,
    ClientResult,
    RoundTask,
    digest_of,
    no_progress,
)
from fedot.transport.binding import Binding
from fedot.transport.board import Board
from fedot.transport.identity import init_owner, request_certificate, sign_request
from fedot.transport.limits import Limits
from fedot.transport.notices import Posted
from fedot.transport.shelf import File, Shelf
from fedot.transport.upload import UploadStore

RUN, SITE = "run-1", "hospital-a"
UPDATE = b"an update" * 1000
DIGEST = digest_of(UPDATE)
CARD = ResultCard(epsilon=None, bytes_after={"float32": 9000}, received_bytes=1).model_dump_json()


class Place:
    """A server that can be started again and again, and a site."""

    def __init__(self, folder: Path):
        self.folder, self.said, self.port = folder, list[str](), 0
        init_owner(folder / "pki", "owner", ["localhost"])
        asked = request_certificate(SITE, folder / "site")
        kit = sign_request(folder / "pki", asked.csr_path, asked.fingerprint, "site", 30)
        self.kit = kit.rename(folder / "site" / "kit.json")
        (folder / "policy.yaml").write_text("{dataset_id: a, max_epsilon: null, delta: 1.0e-5}")
        (folder / "records.jsonl").write_text('{"text": "one"}\n')

    @contextmanager
    def server(self) -> Iterator[Server]:
        watcher = Watcher(self.said.append, no_progress, lambda metrics: None, str)
        listen = f"localhost:{self.port}"
        settings = ServerSettings(
            self.folder / "server", self.folder / "pki", listen, "127.0.0.1:0"
        )
        with open_server(settings, watcher) as server:
            where = next(line for line in reversed(self.said) if line.startswith("listening"))
            self.port = int(where.split(";")[0].rpartition(":")[2])
            yield server

    def site(self) -> OpenSite:
        folder = self.folder
        files = (folder / "policy.yaml", folder / "records.jsonl", folder / "site" / "home")
        return open_site(f"localhost:{self.port}", self.kit, None, *files)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def post(board: Board, round: int, state: str = "5" * 64) -> None:
    board.open_run(RUN, "b" * 64, {SITE: "card"})
    board.post(Posted(RUN, round, state, {SITE: "task"}))


def test_upload_waits_for_a_server_that_takes_up_its_run(place: Place) -> None:
    """A refusal would be reported as the site's failure, and the round close without its update."""
    refused = threading.Event()
    with place.server() as server, place.site() as site:
        board = server._hub.board
        board.expect(RUN, [SITE])
        expected = board.is_expected
        board.is_expected = lambda *asked: (refused.set(), expected(*asked))[1]  # type: ignore
        binding, done = Binding(RUN, 2, SITE, DIGEST), list[Any]()
        upload = threading.Thread(
            target=lambda: done.append(site.channel.upload(binding, UPDATE, CARD))
        )
        upload.start()
        assert refused.wait(30)
        post(board, 2)
        upload.join(30)
        assert done[0].is_committed


def test_download_waits_for_a_server_that_takes_up_its_run(place: Place, tmp_path: Path) -> None:
    """A refusal would end the site's process."""
    state, file = b"state" * 100, tmp_path / "state"
    file.write_bytes(state)
    digest = digest_of(state)
    with place.server() as server, place.site() as site:
        server._hub.shelf.put(digest, {"state": file})
        server._hub.board.expect(RUN, [SITE])
        later = threading.Timer(0.3, post, (server._hub.board, 2, digest))
        later.start()
        wanted, to = File("state", len(state), digest), tmp_path / "got"
        site.channel.download(Binding(RUN, 2, SITE, digest), wanted, to)
        assert to.read_bytes() == state
        later.join()


def test_site_that_was_killed_at_the_end_hears_of_it_after_both_were_started_again(
    place: Place,
) -> None:
    with place.server() as server:
        server._hub.board.close_run(RUN, "done")
        site_home = place.folder / "site" / "home"
        site_home.mkdir()
        (site_home / "run").write_text(RUN)
        with place.site() as site:
            heard: list[str] = []
            # Otherwise it would wait for the next run, for ever.
            again = threading.Thread(
                target=lambda: heard.append(site.take_part(no_progress, place.said.append)),
                daemon=True,
            )
            again.start()
            again.join(30)
        assert heard
        assert heard[0].startswith("the run is done")
        assert not (site_home / "run").exists(), "the next start is for the next run"


def test_site_that_was_killed_when_it_had_heard_needs_no_server(place: Place) -> None:
    """It may have let the server end, and there is nobody to come back to."""
    with place.server():
        pass
    note = place.folder / "site" / "home" / "run"
    note.parent.mkdir()
    note.write_text(f"{RUN}\ndone")
    with place.site() as site:
        assert site.take_part(no_progress, place.said.append).startswith("the run is done")
    assert not note.exists()


def test_server_that_was_killed_after_its_job_ends_when_the_sites_know(place: Place) -> None:
    with place.server() as server:
        job = server._queue.submit("job", CONFIG, "owner")
        server._queue.next_queued()
        run = server._queue.run_folder(job.job_id)
        run.mkdir(parents=True)
        with Journal(run / "journal.sqlite") as journal:
            journal.note("run_id", RUN)
            journal.note("sites", [SITE])
        server._queue.finish(job.job_id, "done")
    note = place.folder / "site" / "home" / "run"
    note.parent.mkdir()
    note.write_text(RUN)
    listens, ended = threading.Event(), threading.Event()

    def serve() -> None:
        with place.server() as server:
            listens.set()
            server.work(until_done=True)
        ended.set()

    for _ in range(2):
        listens.clear()
        ended.clear()
        thread = threading.Thread(target=serve)
        thread.start()
        assert listens.wait(30)
        if note.exists():
            assert not ended.wait(0.2)
            with place.site() as site:
                assert site.take_part(no_progress, place.said.append).startswith("the run is done")
        thread.join(20)
        assert ended.is_set(), "all sites know"


def test_resumed_run_waits_for_nobody_who_has_withdrawn(place: Place) -> None:
    start: Any = SimpleNamespace(
        run_id=RUN, names=(SITE, "gone"), config=SimpleNamespace(network=SimpleNamespace())
    )
    start.config.network.wait_for = None
    with place.server() as server:
        job = server._queue.submit("job", CONFIG, "owner")
        server._hub.book.withdraw(RUN, "gone")
        server._hub.board.open_run(RUN, "b" * 64, {SITE: "card", "gone": "card"}, ["gone"])
        server._hub.board.next_for(SITE, "", 0)
        # Otherwise it would wait for ever.
        rescue = threading.Timer(20, server.stop)
        rescue.start()
        server._wait_for_sites(job, start)
        rescue.cancel()
    assert place.said[-1] == "1 of 1 sites are here, 1 are needed"


CONFIG = "{model: {path: m}, data: {clients: {a: a.jsonl}, owner_text: o.txt}}"


def test_same_command_again_does_not_run_a_job_again_that_is_done(place: Place) -> None:
    with place.server() as server:
        server.submit_once("job", CONFIG, "owner")
        job = server._queue.next_queued()
        assert job is not None
        server._queue.finish(job.job_id, "done")
    with place.server() as server:
        server.submit_once("job", CONFIG, "owner")
        assert [job.state for job in server._queue.list()] == ["done"]
    assert "nothing is run again" in place.said[-1]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[UploadStore]:
    with UploadStore(tmp_path / "uploads", Limits()) as store:
        yield store


def committed(store: UploadStore, round: int) -> None:
    binding = Binding(RUN, round, SITE, DIGEST)
    state = store.create(binding, len(UPDATE), CARD)
    list(store.append(state.upload_id, SITE, 0, iter([UPDATE])))
    store.commit(state.upload_id, binding)


def test_engine_takes_no_notice_of_an_update_of_an_earlier_round(
    store: UploadStore, tmp_path: Path
) -> None:
    """One may be committed while its round closes; it must not be taken for this round's."""
    board = Board(store.is_committed)
    card = RunCard(
        run_id=RUN,
        name="a run",
        bundle_digest="b" * 64,
        bundle_bytes=1,
        adapter="lora",
        adapter_parameters=100,
        dtype="float32",
        max_tokens=32,
        rounds=2,
        planned_rounds=2,
        training=TrainingConfig(),
        privacy=PrivacyConfig(unit="none"),
        payload=PayloadConfig(),
        seed=7,
    )
    board.open_run(RUN, "b" * 64, {SITE: card.model_dump_json()})
    engine = RemoteEngine(
        board, store, Shelf(), tmp_path / "s", [ClientInfo(SITE, "a")], lambda round: 0
    )
    task = RoundTask(
        RUN,
        2,
        b"state",
        0.1,
        TrainingConfig(),
        PrivacyConfig(unit="none"),
        PayloadConfig(),
        {SITE: 2},
    )
    answers: list[ClientResult | ClientFailure] = []
    rounds = threading.Thread(target=lambda: answers.extend(engine.run(task, [SITE])))
    rounds.start()
    while not board.is_open(SITE, RUN, 2):
        threading.Event().wait(0.01)
    board.arrived(SITE, RUN, 1)
    committed(store, 2)
    board.arrived(SITE, RUN, 2)
    rounds.join(30)
    assert [(a.round, getattr(a, "digest", None)) for a in answers] == [(2, DIGEST)]
