"""The upload store beside a model of it that fits on a page, driven by hypothesis."""

from __future__ import annotations

import random
import tempfile
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from simulated_disk import SimulatedDisk

from fedot.errors import ProtocolError, WireError
from fedot.transport.binding import Binding
from fedot.transport.errors import OutOfStep, UnknownUpload
from fedot.transport.limits import Limits
from fedot.transport.upload import UploadStore

PAYLOADS = [b"", b"abc", b"abd", bytes(3000), b"x" * 70]
SITES = ["hospital-a", "hospital-b"]
sites, rounds = st.sampled_from(SITES), st.integers(1, 2)
payloads = st.sampled_from(PAYLOADS)
MEMORY = Path("/dev/shm")


class Model:
    """What an upload must be."""

    def __init__(self, upload_id: str, digest: str, size: int):
        self.upload_id, self.digest, self.size = upload_id, digest, size
        self.held = b""
        self.is_whole = False


class Uploads(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.models: dict[tuple[int, str], Model] = {}
        self._folder = tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None)
        self._path = Path(self._folder.name)

    @initialize(seed=st.integers(0, 2**32))
    def start(self, seed: int) -> None:
        self.disk = SimulatedDisk(self._path, random.Random(seed))
        self.store = UploadStore(self._path, Limits(), self.disk)

    @rule(site=sites, round=rounds, payload=payloads)
    def create(self, site: str, round: int, payload: bytes) -> None:
        digest = sha256(payload).hexdigest()
        binding, old = Binding("run", round, site, digest), self.models.get((round, site))
        if old is not None and old.digest != digest:
            with pytest.raises(ProtocolError):
                self.store.create(binding, len(payload), "{}")
            return
        state = self.store.create(binding, len(payload), "{}")
        if old is None:
            old = self.models[round, site] = Model(state.upload_id, digest, len(payload))
        assert state.upload_id == old.upload_id
        assert (state.committed_offset, state.is_committed) == (len(old.held), old.is_whole)

    @rule(site=sites, round=rounds, off_by=st.sampled_from([0, 0, 0, -1, 1]), chunk=payloads)
    def append(self, site: str, round: int, off_by: int, chunk: bytes) -> None:
        model = self.models.get((round, site))
        if model is None:
            return
        sent = self.store.append(
            model.upload_id, site, len(model.held) + off_by, iter([chunk] if chunk else [])
        )
        if model.is_whole:
            with pytest.raises(ProtocolError):
                list(sent)
        elif off_by:
            with pytest.raises(OutOfStep):
                list(sent)
        elif len(model.held) + len(chunk) > model.size:
            with pytest.raises(WireError):
                list(sent)
        else:
            offsets = list(sent)
            model.held += chunk
            assert offsets == ([len(model.held)] if chunk else [])

    @rule(site=sites, round=rounds)
    def commit(self, site: str, round: int) -> None:
        model = self.models.get((round, site))
        if model is None:
            return
        binding = Binding("run", round, site, model.digest)
        if len(model.held) < model.size:
            with pytest.raises(OutOfStep):
                self.store.commit(model.upload_id, binding)
        elif sha256(model.held).hexdigest() != model.digest:
            with pytest.raises(WireError):
                self.store.commit(model.upload_id, binding)
            del self.models[round, site]
        else:
            assert self.store.commit(model.upload_id, binding).is_committed
            model.is_whole = True

    @rule(round=rounds)
    def drop(self, round: int) -> None:
        self.store.drop("run", round)
        for key in [key for key in self.models if key[0] == round]:
            model = self.models.pop(key)
            with pytest.raises(UnknownUpload):
                self.store.owner(model.upload_id)

    @rule(is_crash=st.booleans())
    def restart(self, is_crash: bool) -> None:
        self.store.close()
        if is_crash:
            self.disk.crash()
        self.store = UploadStore(self._path, Limits(), self.disk)

    @invariant()
    def whole_updates_are_those_of_the_model(self) -> None:
        if not hasattr(self, "store"):
            return
        for round in (1, 2):
            found = [
                (each.site, each.path.read_bytes()) for each in self.store.committed("run", round)
            ]
            expected = [
                (site, model.held)
                for (number, site), model in sorted(self.models.items())
                if number == round and model.is_whole
            ]
            assert found == expected

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
        self._folder.cleanup()


TestUploads = Uploads.TestCase
TestUploads.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
