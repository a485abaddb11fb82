"""Limits per site, with a clock that the test moves."""

from __future__ import annotations

import random

import grpc
import pytest

from fedot.errors import (
    BudgetError,
    ConfigError,
    FedotError,
    PeerTimeout,
    ProtocolError,
    TransportError,
    WireError,
)
from fedot.transport.errors import Busy, Denied, OutOfStep, UnknownUpload, error_of, status_of
from fedot.transport.limits import Gate, Limits, TokenBucket
from fedot.transport.retries import Retries
from fedot.transport.stall import Pace


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_a_bucket_gives_its_rate_and_no_more() -> None:
    clock = Clock()
    bucket = TokenBucket(rate=8, burst=5, clock=clock)
    assert [bucket.try_take(1) for _ in range(5)] == [0.0] * 5
    assert bucket.try_take(1) == 0.125
    clock.now += 0.125
    assert bucket.try_take(1) == 0.0
    clock.now += 1000
    assert [bucket.try_take(1) for _ in range(5)] == [0.0] * 5
    assert bucket.try_take(1) > 0


def test_what_is_taken_beyond_the_burst_is_paid_for_by_waiting() -> None:
    bucket = TokenBucket(rate=10, burst=10, clock=Clock())
    assert bucket.take(10) == 0.0
    assert bucket.take(20) == pytest.approx(2.0)


def test_too_many_calls_of_one_site_do_not_touch_another() -> None:
    clock = Clock()
    gate = Gate(Limits(max_calls_per_s=2), clock)
    gate.call("a")
    gate.call("a")
    with pytest.raises(Busy, match="more than 2 calls") as refused:
        gate.call("a")
    gate.call("b")
    clock.now += refused.value.retry_after_s
    gate.call("a")


def test_streams_are_counted_while_they_are_open() -> None:
    gate = Gate(Limits(max_streams_per_site=2))
    with gate.stream("a"), gate.stream("a"):
        with pytest.raises(Busy, match="2 transfers open"), gate.stream("a"):
            pass
        with gate.stream("b"):
            pass
    with gate.stream("a"), gate.stream("a"):
        pass


def test_without_a_rate_there_is_no_pause() -> None:
    assert Gate(Limits()).pace("a", 10**12) == 0.0


def test_bytes_beyond_the_rate_are_paused_for() -> None:
    gate = Gate(Limits(bytes_per_s=2**20), Clock())
    assert gate.pace("a", 2**20) == 0.0
    assert gate.pace("a", 2**20) == pytest.approx(1.0)
    assert gate.pace("b", 2**20) == 0.0


def test_messages_grow_on_a_fast_link_and_shrink_on_a_slow_one() -> None:
    pace = Pace(2**20, timeout_s=30)
    for _ in range(10):
        pace.took(0.01)
    assert pace.chunk_bytes == 2**20
    pace.took(1.0)
    assert pace.chunk_bytes == 2**20
    for _ in range(20):
        pace.took(10.0)
    assert pace.chunk_bytes == 2**12


class Failed(grpc.RpcError):  # type: ignore[misc]
    """A failed call as gRPC shows it at a site."""

    def __init__(
        self,
        code: grpc.StatusCode,
        text: str | None = "why",
        trailing: tuple[tuple[str, str], ...] = (),
    ):
        self._parts = code, text, trailing

    def code(self) -> grpc.StatusCode:
        return self._parts[0]

    def details(self) -> str | None:
        return self._parts[1]

    def trailing_metadata(self) -> tuple[tuple[str, str], ...]:
        return self._parts[2]


@pytest.mark.parametrize(
    "kind",
    [OutOfStep, PeerTimeout, Denied, ProtocolError, UnknownUpload, WireError, TransportError],
)
def test_an_error_is_the_same_at_the_other_side(kind: type[FedotError]) -> None:
    code, text, trailing = status_of(kind("what is, what must be"))
    there = error_of(Failed(code, text, trailing))
    assert type(there) is kind
    assert "what is, what must be" in str(there)


def test_busy_says_when_to_come_again() -> None:
    there = error_of(Failed(*status_of(Busy("full", 2.5))))
    assert isinstance(there, Busy)
    assert there.retry_after_s == 2.5


@pytest.mark.parametrize("value", ["nan", "inf", "-5", "soon", "1e300"])
def test_a_server_cannot_put_a_site_to_sleep_for_good(value: str) -> None:
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    there = error_of(Failed(code, "full", (("retry-after-s", value),)))
    assert isinstance(there, Busy)
    assert 0 <= there.retry_after_s <= 3600


@pytest.mark.parametrize("error", [ConfigError("/srv/secret"), BudgetError("/srv/secret")])
def test_the_owners_own_troubles_are_not_told(error: FedotError) -> None:
    code, text, _ = status_of(error)
    assert code is grpc.StatusCode.INTERNAL
    assert "secret" not in text


@pytest.mark.parametrize(
    "code", [grpc.StatusCode.UNKNOWN, grpc.StatusCode.CANCELLED, grpc.StatusCode.INTERNAL]
)
def test_what_is_not_known_is_tried_again(code: grpc.StatusCode) -> None:
    assert type(error_of(Failed(code, None))) is TransportError


class Failing:
    """Fails so many times, then works."""

    def __init__(self, num_times: int, error: FedotError):
        self.left, self.error = num_times, error

    def __call__(self) -> str:
        if not self.left:
            return "done"
        self.left -= 1
        raise self.error


def retries(clock: Clock, give_up_after_s: float | None = None) -> Retries:
    return Retries(random.Random(3), give_up_after_s, clock.sleep, clock)


def test_waiting_times_grow_and_stay_bounded() -> None:
    waits: list[float] = []
    patient = Retries(random.Random(3), None, waits.append, Clock())
    assert patient.run(Failing(40, TransportError("gone"))) == "done"
    assert waits[0] <= 0.2
    assert waits[4] > waits[0]
    assert all(15 <= wait <= 30 for wait in waits[10:])
    assert len(set(waits)) == len(waits)


def test_nothing_is_tried_for_longer_than_asked() -> None:
    clock = Clock()
    with pytest.raises(TransportError):
        retries(clock, give_up_after_s=60).run(Failing(10**6, TransportError("gone")))
    assert 60 <= clock.now - 100 <= 100


def test_final_errors_are_not_tried_again() -> None:
    failing = Failing(5, ProtocolError("closed"))
    with pytest.raises(ProtocolError):
        retries(Clock()).run(failing)
    assert failing.left == 4


def test_a_busy_server_is_left_alone_for_as_long_as_it_says() -> None:
    clock = Clock()
    retries(clock).run(Failing(1, Busy("full", 7.0)))
    assert clock.now - 100 >= 7.0


def test_disagreement_about_offsets_ends_after_some_tries() -> None:
    failing = Failing(10**6, OutOfStep("elsewhere"))
    with pytest.raises(OutOfStep):
        retries(Clock()).run(failing)
    assert 10**6 - failing.left < 20


def test_one_disagreement_after_many_broken_connections_is_not_the_end() -> None:
    errors = iter([*[TransportError("cut")] * 20, OutOfStep("elsewhere")])

    def attempt() -> str:
        if (error := next(errors, None)) is not None:
            raise error
        return "done"

    assert retries(Clock()).run(attempt) == "done"


def test_progress_starts_short_waits_again() -> None:
    clock, done = Clock(), 0

    def attempt() -> str:
        nonlocal done
        done += 1
        if done < 100:
            raise TransportError("cut")
        return "done"

    assert retries(clock, give_up_after_s=10).run(attempt, lambda: done) == "done"
    assert clock.now - 100 <= 100 * 0.2
