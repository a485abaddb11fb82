"""What is said of a transfer: bytes, the rate of the last seconds, the time that is left."""

from __future__ import annotations

from fedot.report.transfers import Transfers


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_rate_and_time_left_are_those_of_the_last_seconds() -> None:
    clock = Clock()
    transfers = Transfers(clock)
    assert transfers.moved("get", 0, 10**9)[0] == "0 B of 1.00 GB"
    for _ in range(20):
        clock.now += 1
        state, _ = transfers.moved("get", round(clock.now) * 10**7, 10**9)
    assert state == "200 MB of 1.00 GB, 10.0 MB/s, 1 min 20 s left"
    done = 2 * 10**8
    for _ in range(20):
        clock.now += 1
        done += 10**6
        state, _ = transfers.moved("get", done, 10**9)
    assert "1.00 MB/s, 13 min 00 s left" in state


def test_what_came_in_an_earlier_try_is_no_rate() -> None:
    clock = Clock()
    transfers = Transfers(clock)
    transfers.moved("get", 9 * 10**8, 10**9)
    clock.now += 10
    assert "1.00 MB/s, 1 min 30 s left" in transfers.moved("get", 9 * 10**8 + 10**7, 10**9)[0]


def test_line_comes_every_half_minute_and_at_the_end_of_a_long_one() -> None:
    clock = Clock()
    transfers = Transfers(clock)
    lines = []
    for second in range(100):
        clock.now = float(second)
        lines.append(transfers.moved("get", second, 99)[1])
    said = [line for line in lines if line]
    assert len(said) == 4
    assert said[-1] == "get: 99 B in 1 min 39 s"


def test_small_and_quick_one_has_no_line() -> None:
    transfers = Transfers(Clock())
    assert transfers.moved("state", 0, 1000)[1] is None
    assert transfers.moved("state", 1000, 1000)[1] is None
    assert transfers.moved("empty", 0, 0)[1] is None


def test_large_one_has_its_line_however_quick() -> None:
    transfers = Transfers(Clock())
    assert transfers.moved("get", 10**8, 10**8)[1] == "get: 100 MB in 0.0 s"
