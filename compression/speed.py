"""`chain: auto`: the chain that brings an update over a given link soonest, by measurement.

Design note: the seconds of encoding, sending and decoding are added, not overlapped, because an
update is stored and charged to its ledger before its first byte is sent. Only the caller knows
which losses it can bear, so only the caller's candidates are compared; top-k is never among the
usual ones, as it changes the training and not only the bytes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedot.compression.chain import Chain, Step, plan, short_text
from fedot.compression.codec import decode, encode, spec_of
from fedot.compression.frames import FRAME_VALUES
from fedot.errors import ConfigError

__all__ = ["Choice", "Measured", "STATE_CHAINS", "UPDATE_CHAINS", "choose", "measure"]

STATE_CHAINS: Sequence[Chain] = (
    plan(Step("bfloat16")),
    plan(Step("bfloat16"), Step("planes"), Step("deflate")),
)
UPDATE_CHAINS: Sequence[Chain] = (
    *STATE_CHAINS,
    plan(Step("int8")),
    plan(Step("int8"), Step("deflate")),
)

_REPEATS = 5


@dataclass(frozen=True, slots=True)
class Measured:
    """How one chain did on a sample; speeds are float32 bytes a second on one core."""

    chain: Chain
    encode_bytes_per_s: float
    decode_bytes_per_s: float
    sent_ratio: float

    def seconds(self, num_bytes: float, bandwidth_bytes_per_s: float) -> float:
        """To encode, send and decode so many bytes of float32."""
        link = self.sent_ratio / bandwidth_bytes_per_s
        return num_bytes * (1 / self.encode_bytes_per_s + link + 1 / self.decode_bytes_per_s)


@dataclass(frozen=True, slots=True)
class Choice:
    """The chain that was picked, and why."""

    chain: Chain
    reason: str


def measure(
    candidates: Sequence[Chain] = UPDATE_CHAINS, sample: Tensor | None = None
) -> list[Measured]:
    """Encode and decode a sample with each chain, on this machine, now.

    Args:
        candidates: chains to compare.
        sample: values like those to be sent, at most a few MB; None takes one frame of normals.
    """
    values = torch.randn(FRAME_VALUES, generator=torch.Generator().manual_seed(0))
    tensors = {"sample": values if sample is None else sample}
    return [_measured(tensors, chain) for chain in candidates]


def choose(measured: Sequence[Measured], bandwidth_bytes_per_s: float) -> Choice:
    """The soonest chain for a link; of equal ones the first.

    Raises:
        ConfigError: the bandwidth is not above 0, or nothing was measured.
    """
    if not bandwidth_bytes_per_s > 0 or not measured:
        raise ConfigError(
            f"the bandwidth is {bandwidth_bytes_per_s:g} bytes/s with {len(measured)} chains to "
            "choose from; it must be above 0, with at least one chain. Or name a chain."
        )
    seconds = [one.seconds(1e9, bandwidth_bytes_per_s) for one in measured]
    best = seconds.index(min(seconds))
    rows = ", ".join(
        f"{short_text(one.chain)} {time_s:.2f} s"
        for one, time_s in zip(measured, seconds, strict=True)
    )
    return Choice(
        measured[best].chain,
        f"a GB of float32 over {bandwidth_bytes_per_s / 1e6:g} MB/s takes: {rows}",
    )


def _measured(tensors: dict[str, Tensor], chain: Chain) -> Measured:
    spec, num_bytes = spec_of(tensors), 4 * sum(tensor.numel() for tensor in tensors.values())
    payload = encode(tensors, chain, seed=0, workers=1).payload
    return Measured(
        chain,
        num_bytes / _median_seconds(lambda: encode(tensors, chain, seed=0, workers=1)),
        num_bytes / _median_seconds(lambda: decode(payload, spec, [chain], workers=1)),
        len(payload) / num_bytes,
    )


def _median_seconds(work: Callable[[], object]) -> float:
    times = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)
