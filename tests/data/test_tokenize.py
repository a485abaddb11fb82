"""What of a record is learned, and what is cut off."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedot.data.records import Record
from fedot.data.tokenize import Sequences, tokenize_records, windows
from fedot.errors import ConfigError


class Letters:
    """One token a letter, so that cases can be counted by hand. A tokenizer's face, no more."""

    def __init__(self, bos: int | None = 1, eos: int | None = 2):
        self.bos_token_id, self.eos_token_id = bos, eos

    def __call__(self, text, add_special_tokens, verbose):
        assert not add_special_tokens
        return {"input_ids": [ord(letter) for letter in text]}


def letters(ids):
    marks = {1: "<", 2: ">"}
    return "".join(marks.get(i) or chr(i) for i in ids)


def shown(sequences: Sequences) -> list[tuple[str, str]]:
    """Each row's text, and which of it is learned."""
    return [
        (letters(row.tolist()), letters(row[mask].tolist()))
        for row, mask in zip(sequences.ids, sequences.learned, strict=True)
    ]


def test_only_the_answer_and_its_end_are_learned():
    sequences = tokenize_records([Record("ask", "yes"), Record("", "text")], Letters(), 32)
    assert shown(sequences) == [("<askyes>", "yes>"), ("<text>>>", "text>")]


def test_padding_is_on_the_right_and_never_learned():
    sequences = tokenize_records([Record("", "a"), Record("", "abcdef")], Letters(), 32)
    assert sequences.learned.tolist() == [
        [False, True, True, False, False, False, False, False],
        [False, True, True, True, True, True, True, True],
    ]


@pytest.mark.parametrize(("bos", "eos"), [(None, 2), (1, None), (None, None)])
def test_first_token_is_never_learned_with_or_without_a_bos(bos, eos):
    sequences = tokenize_records([Record("", "text"), Record("p", "a")], Letters(bos, eos), 32)
    assert not sequences.learned[:, 0].any()
    assert sequences.learned.any(dim=1).all()


def test_long_answer_is_cut_at_its_end():
    (row,) = shown(tokenize_records([Record("", "abcdefghijkl")], Letters(), 8))
    assert row == ("<abcdefg", "abcdefg")


def test_long_prompt_is_cut_at_its_front_until_the_answer_fits():
    (row,) = shown(tokenize_records([Record("0123456789", "yes")], Letters(), 10))
    assert row == ("<56789yes>", "yes>")


def test_long_prompt_and_answer_share_the_window():
    (row,) = shown(tokenize_records([Record("0123456789", "abcdefghijkl")], Letters(), 10))
    assert row == ("<6789abcde", "abcde")


text = st.text(st.characters(min_codepoint=97, max_codepoint=122), min_size=1, max_size=40)


@given(st.lists(st.tuples(st.one_of(st.just(""), text), text), min_size=1, max_size=4))
def test_learned_tokens_are_the_answers_beginning_at_least_half_a_window(pairs):
    records = [Record(prompt, answer) for prompt, answer in pairs]
    sequences = tokenize_records(records, Letters(), 16)
    assert sequences.ids.shape[1] <= 16
    for record, ids, mask in zip(records, sequences.ids, sequences.learned, strict=True):
        first, last = mask.nonzero()[0], mask.nonzero()[-1]
        assert mask[first : last + 1].all(), "learned tokens are not in one piece"
        prompt, learned = letters(ids[1:first].tolist()), letters(ids[mask].tolist())
        whole = record.answer + ">"
        assert record.prompt.endswith(prompt)
        assert whole.startswith(learned)
        # The whole answer, or at least half a window of it in a window that is full.
        assert learned == whole or (len(learned) >= 8 and last == 15)


def test_real_tokenizer_gives_back_the_text(tiny_tokenizer):
    records = [Record("### Response\n", "the client é 漢"), Record("", "a model trains")]
    sequences = tokenize_records(records, tiny_tokenizer, 64)
    for record, ids, learned in zip(records, sequences.ids, sequences.learned, strict=True):
        assert ids[0] == tiny_tokenizer.bos_token_id
        assert tiny_tokenizer.decode(ids[learned]) == record.answer + "</s>"


def test_text_longer_than_the_tokenizers_limit_makes_no_noise(tiny_tokenizer, caplog):
    long = Record("", "the client " * 5000)
    tokenize_records([long], tiny_tokenizer, 64)
    assert not caplog.records


SOME = Sequences(
    ids=torch.tensor([[1, 5, 6, 2, 2, 2], [1, 7, 2, 2, 2, 2], [1, 5, 6, 7, 8, 2]]),
    learned=torch.tensor(
        [
            [False, True, True, True, False, False],
            [False, False, True, False, False, False],
            [False, True, True, True, True, True],
        ]
    ),
)


def test_taking_rows_cuts_off_padding_that_none_of_them_needs():
    taken = SOME.take([1, 0])
    assert taken.ids.tolist() == [[1, 7, 2, 2], [1, 5, 6, 2]]
    assert taken.learned.tolist() == [[False, False, True, False], [False, True, True, True]]
    assert SOME.take([0, 2]).ids.shape == (2, 6)
    assert SOME.take([1]).ids.tolist() == [[1, 7, 2]]


def test_taking_no_rows_gives_none():
    # Poisson sampling draws an empty batch now and then.
    assert len(SOME.take(torch.empty(0, dtype=torch.long))) == 0
    assert len(SOME.take([])) == 0


@pytest.mark.parametrize("size", [1, 2, 3, 10])
def test_batches_are_all_rows_in_order(size):
    rows = [letters(row.tolist()) for batch in SOME.batches(size) for row in batch.ids]
    assert [row[:3] for row in rows] == [letters(row[:3].tolist()) for row in SOME.ids]
    assert max(len(batch) for batch in SOME.batches(size)) <= size


def test_windows_are_full_and_in_order():
    sequences = windows(["abcd", "", "efgh"], Letters(), 4)
    # abcd> > efgh> is 11 tokens: two windows, the rest is left.
    assert shown(sequences) == [("abcd", "bcd"), (">>ef", ">ef")]


def test_text_shorter_than_a_window_is_refused():
    with pytest.raises(ConfigError, match="has 4 tokens; it must have at least 5"):
        windows(["abc"], Letters(), 5)
    assert len(windows(["abcd"], Letters(), 5)) == 1
    with pytest.raises(ConfigError, match="has 0 tokens"):
        windows([], Letters(), 8)
