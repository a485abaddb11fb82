"""Cards: what the other side writes in JSON is bounded before anything is done with it."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from fedot.cards import ResultCard
from fedot.compression.chain import OPERATORS
from fedot.console import Console
from fedot.errors import WireError
from fedot.report.plots import bytes_per_operator

GOOD: dict[str, Any] = {"epsilon": 1.5, "bytes_after": {"float32": 4}, "received_bytes": 1}


def card(**changes: Any) -> str:
    return json.dumps(GOOD | changes)


@pytest.mark.parametrize(
    "text",
    [
        card(epsilon=1.1e6),
        card(epsilon=1e30),
        card(epsilon=-0.1),
        card(epsilon=float("inf")),
        card(epsilon=float("nan")),
        card(bytes_after={"float32": 2**53}),
        card(bytes_after={"float32": 10**400}),
        card().replace("4}", "9" * 4300 + "}"),
        card(bytes_after={"float32": -1}),
        card(bytes_after={"float32": 1.5}),
        card(bytes_after={}),
        card(bytes_after={f"n{n}": 1 for n in range(17)}),
        card(bytes_after={"\x1b[2J": 1}),
        card(bytes_after={"<script>": 1}),
        card(bytes_after={"": 1}),
        card(bytes_after={"a" * 41: 1}),
        card(bytes_after={"float32\n": 1}),
        card(received_bytes=2**53),
        card(received_bytes=-1),
    ],
)
def test_number_or_name_out_of_bounds_is_refused(text: str) -> None:
    with pytest.raises(WireError, match="ResultCard cannot be used"):
        ResultCard.read(text)


def test_every_operator_has_a_name_that_a_card_may_hold() -> None:
    numbers = dict.fromkeys(["float32", *OPERATORS, "payload"], 1)
    assert ResultCard.read(card(bytes_after=numbers)).bytes_after == numbers


def test_what_shows_a_round_can_show_the_largest_card() -> None:
    largest = 2**53 - 1
    read = ResultCard.read(card(epsilon=1e6, bytes_after={"float32": largest, "deflate": largest}))
    line = {"round": 1, "epsilon": {"a": read.epsilon}, "cohort": ["a"], "loss": {}}
    shown = io.StringIO()
    with Console(file=shown) as console:
        console.round_line(line)
    assert "epsilon 1000000.00" in shown.getvalue()
    bytes_per_operator({name: 1000 * size for name, size in read.bytes_after.items()})
    json.dumps([1000 * largest])
