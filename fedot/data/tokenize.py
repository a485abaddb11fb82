"""Records to token sequences, and text to windows.

A record becomes one sequence of at most T tokens, never more: sequences, like records, are what
DP-SGD protects, and records are never packed together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from fedot.data.records import Record
from fedot.errors import ConfigError

__all__ = ["Sequences", "tokenize_records", "windows"]


@dataclass(frozen=True, slots=True)
class Sequences:
    """N token sequences, padded on the right.

    Attributes:
        ids: shape (N, T), int64.
        learned: shape (N, T), bool: tokens whose prediction counts. Never the first one.
    """

    ids: Tensor
    learned: Tensor

    def __len__(self) -> int:
        return self.ids.shape[0]

    def take(self, rows: Tensor | Sequence[int]) -> Sequences:
        """Some sequences, with padding that none of them needs cut off."""
        index = torch.as_tensor(rows, dtype=torch.long)
        ids, learned = self.ids[index], self.learned[index]
        used = learned.any(dim=0).nonzero()
        length = int(used.max()) + 1 if len(used) else 1
        return Sequences(ids[:, :length], learned[:, :length])

    def batches(self, size: int) -> Iterator[Sequences]:
        """All sequences in order, `size` at a time."""
        for start in range(0, len(self), size):
            yield self.take(range(start, min(start + size, len(self))))


def tokenize_records(
    records: Iterable[Record], tokenizer: PreTrainedTokenizerBase, max_tokens: int
) -> Sequences:
    """One sequence a record: [bos] prompt answer [eos], cut off after `max_tokens`.

    Only the answer is learned. A prompt so long that no answer is left is cut at its front, so
    that every record teaches at least half a window.
    """
    bos = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
    eos = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    rows, starts = [], []
    for record in records:
        prompt, answer = _ids(tokenizer, record.prompt), _ids(tokenizer, record.answer) + eos
        room = max(max_tokens - len(bos) - len(answer), max_tokens // 2 - len(bos))
        prompt = prompt[-room:] if len(prompt) > room else prompt
        rows.append((bos + prompt + answer)[:max_tokens])
        starts.append(max(1, len(bos) + len(prompt)))
    return _padded(rows, starts, pad=(eos or bos or [0])[0])


def windows(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, num_tokens: int) -> Sequences:
    """Cut running text into full windows: for the owner's own text, where no record is protected.

    Raises:
        ConfigError: there is not one window of text.
    """
    end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    stream: list[int] = []
    for text in texts:
        stream += _ids(tokenizer, text) + end
    count = len(stream) // num_tokens
    if not count:
        raise ConfigError(
            f"the owner's text has {len(stream)} tokens; it must have at least {num_tokens} "
            "(data.max_tokens)."
        )
    ids = torch.tensor(stream[: count * num_tokens]).view(count, num_tokens)
    learned = torch.ones_like(ids, dtype=torch.bool)
    learned[:, 0] = False
    return Sequences(ids, learned)


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    if not text:
        return []
    result: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return result


def _padded(rows: Sequence[Sequence[int]], starts: Sequence[int], pad: int) -> Sequences:
    length = max([1, *map(len, rows)])
    ids = torch.full((len(rows), length), pad)
    learned = torch.zeros((len(rows), length), dtype=torch.bool)
    for n, (row, start) in enumerate(zip(rows, starts, strict=True)):
        ids[n, : len(row)] = torch.tensor(row)
        learned[n, start : len(row)] = True
    return Sequences(ids, learned)
