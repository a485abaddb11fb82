"""Numbers are written so that no reader is misled."""

from __future__ import annotations

import pytest

from fedot.report import formats


@pytest.mark.parametrize(
    ("epsilon", "text"),
    [(7.98, "7.98"), (7.981, "7.99"), (0.0, "0.00"), (1e-9, "0.01"), (8.0, "8.00")],
)
def test_epsilon_is_never_written_smaller_than_it_is(epsilon, text):
    assert formats.epsilon_text(epsilon) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (12_345, "12.3 kB"),
        (210_000, "210 kB"),
        (999_600, "1.00 MB"),
        (5_000_000_000, "5.00 GB"),
    ],
)
def test_bytes_have_three_digits_and_a_unit(count, text):
    assert formats.in_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (8.1, "8.1 s"), (9.96, "10 s"), (59.6, "1 min 00 s"), (131, "2 min 11 s"),
     (3900, "1 h 05 min")],
)  # fmt: skip
def test_durations_read_naturally(seconds, text):
    assert formats.in_seconds(seconds) == text


def test_a_difference_keeps_its_sign_and_nothing_has_none():
    assert formats.signed(0.05) == "+0.050"
    assert formats.signed(-0.05) == "-0.050"
    assert formats.signed(-0.0001) == "0.000"


def test_a_tiny_standard_error_is_not_written_as_zero():
    assert formats.loss_text(2.5, 0.0001) == "2.500 ± 1e-04"
    assert formats.loss_text(2.5, None) == "2.500"


@pytest.mark.parametrize(("ratio", "text"), [(0.82, "82 %"), (0.004, "0.4 %"), (-0.5, "-50 %")])
def test_percentages_keep_two_digits(ratio, text):
    assert formats.percent(ratio) == text


def test_counts_are_words_while_words_are_short():
    assert formats.counted(1, "round") == "one round"
    assert formats.counted(0, "round") == "no rounds"
    assert formats.counted(30, "data owner") == "30 data owners"


def test_text_of_others_cannot_move_a_cursor_or_break_xml():
    assert formats.printable("a\x1b[2Jb\x00\nc\ud800") == "a\ufffd[2Jb\ufffd c\ufffd"
    assert formats.printable("Spital Zürich 東京") == "Spital Zürich 東京"
    assert formats.shortened("abcdefghij", 8) == "abc...ij"
