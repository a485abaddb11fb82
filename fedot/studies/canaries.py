"""Gradient canaries: records whose gradient is a coordinate of its own, told from what is released.

A canary layer is put beside the adapter: one more trained coordinate per canary. The gradient of
canary i's loss is that coordinate alone and far above the clip norm, so each step in which it was
drawn moves its coordinate by exactly C before noise: the worst record that DP-SGD protects against.
Canaries go through `train_privately` as records among real ones, so its sampling, loss, clipping
and noise are what is audited.

Design note: the auditor reads the gradient that every optimizer step used. That is what the proof
of DP-SGD lets an adversary see; a server that sees one update a round sees less.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from fedot.client.training import PrivateSettings, TrainingSettings
from fedot.data.tokenize import Sequences
from fedot.models.adapters import Adapter, AdapterSpec
from fedot.privacy.audit_power import likelihood_ratio
from fedot.privacy.noise import NoiseSource

__all__ = [
    "CanaryModel",
    "Train",
    "canary_records",
    "canary_rows",
    "observed_steps",
    "play_gradient_game",
    "play_repeated_games",
    "with_canaries",
]

Train = Callable[[Adapter, Sequences, TrainingSettings, PrivateSettings, NoiseSource], None]
"""`train_privately`, or one in which a test has planted a bug."""

CANARY = "canary.weight"
# So far above the clip norm that clipping always acts, and far from overflowing.
_STEEPNESS_OVER_CLIP = 1e3
_MICRO_BATCH = 64


class CanaryModel(nn.Module):
    """A causal LM with a canary layer beside it; tokens from `vocabulary` on are canaries.

    Args:
        inner: the model that real records go through; None for a game without real records.
        vocabulary: V of `inner`.
        num_canaries: m, and the length of the canary layer.
        steepness: norm of a canary's gradient, about.
    """

    def __init__(
        self, inner: nn.Module | None, vocabulary: int, num_canaries: int, steepness: float
    ):
        super().__init__()
        self.inner = inner
        self.canary = nn.Linear(num_canaries, 1, bias=False)
        nn.init.zeros_(self.canary.weight)
        self._vocabulary = vocabulary
        self._steepness = steepness

    def forward(self, input_ids: Tensor, **options: Any) -> SimpleNamespace:
        """Logits (B, T, V): `inner`'s for real records, all equal for canaries."""
        number = input_ids[:, 0] - self._vocabulary
        is_canary = number >= 0
        own = nn.functional.one_hot(number.clamp(min=0), self.canary.in_features).float()
        score = self.canary((own * is_canary[:, None])[:, None])
        # Its value is zero whatever the layer has learned, so its gradient never fades.
        pull = self._steepness * (score - score.detach())
        logits = input_ids.new_zeros((*input_ids.shape, self._vocabulary), dtype=torch.float32)
        if self.inner is not None:
            inner = self.inner(input_ids=input_ids.clamp(max=self._vocabulary - 1), **options)
            logits = torch.where(is_canary[:, None, None], logits, inner.logits.float())
        first = torch.zeros(self._vocabulary, device=logits.device)
        first[0] = 1.0
        return SimpleNamespace(logits=logits + pull * first)


def canary_records(numbers: Tensor, vocabulary: int) -> Sequences:
    """Canaries by number as records of two tokens: its name, and the token 0 to be learned."""
    ids = torch.stack([numbers + vocabulary, torch.zeros_like(numbers)], dim=1)
    learned = torch.zeros_like(ids, dtype=torch.bool)
    learned[:, 1] = True
    return Sequences(ids, learned)


def with_canaries(
    adapter: Adapter | None, num_canaries: int, l2_clip_norm: float
) -> tuple[Adapter, int]:
    """The adapter with a canary layer beside it, and the vocabulary above which canaries lie."""
    inner = adapter.model if adapter is not None else None
    vocabulary = int(inner.config.vocab_size) if inner is not None else 2  # type: ignore[union-attr, arg-type]
    model = CanaryModel(inner, vocabulary, num_canaries, _STEEPNESS_OVER_CLIP * l2_clip_norm)
    if inner is not None:
        model.to(next(inner.parameters()).device)
    spec = adapter.spec if adapter is not None else AdapterSpec("full", (0,))
    parameters = dict(adapter.parameters) if adapter is not None else {}
    parameters[CANARY] = model.get_parameter(CANARY)
    return Adapter(model, spec, parameters), vocabulary


@contextmanager
def observed_steps(parameters: Sequence[nn.Parameter]) -> Iterator[list[Tensor]]:
    """While open, the flat gradient that every optimizer step over `parameters` used, on the CPU.

    Through torch's own hook on optimizer steps: nothing in the trainer has to know of it.
    """
    seen: list[Tensor] = []
    watched = {id(parameter) for parameter in parameters}

    def look(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        # A wrapper steps too; what it wraps is what moves the weights.
        if isinstance(optimizer, DPOptimizer) or not watched <= held:
            return
        # None where a step left a parameter alone.
        grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        seen.append(torch.cat([g.detach().flatten().float().cpu() for g in grads]))

    handle = register_optimizer_step_post_hook(look)
    try:
        yield seen
    finally:
        handle.remove()


@dataclass(frozen=True, slots=True)
class _Game:
    """One run's canaries: who was in, and each one's coordinate by step in units of C, (T, m)."""

    members: NDArray[np.bool_]
    seen: NDArray[np.float64]


def play_gradient_game(
    train: Train,
    adapter: Adapter | None,
    records: Sequences | None,
    private: PrivateSettings,
    num_steps: int,
    num_canaries: int,
    rng: torch.Generator,
    noise: NoiseSource,
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """One run with every canary in or out by a fair coin.

    Args:
        train: what is audited.
        adapter: real weights that train beside the canaries, or None; left as it was found.
        records: real records in the same batches, or None.
        private: q, z and C, as claimed.
        num_steps: T.
        num_canaries: m.
        rng: of the coins.
        noise: the run's privacy noise.

    Returns:
        Each canary's score (high: was in) and whether it was in, shape (m,).
    """
    game = _play(train, adapter, records, private, num_steps, num_canaries, rng, noise)
    scores = likelihood_ratio(game.seen, private.sampling_prob, private.noise_multiplier)
    return scores, game.members


def play_repeated_games(
    train: Train,
    private: PrivateSettings,
    num_steps: int,
    num_games: int,
    rng: torch.Generator,
    make_noise: Callable[[], NoiseSource],
) -> tuple[int, int, int, int]:
    """Many runs with one canary each, guessed by the sign of its likelihood ratio.

    Returns:
        Caught, runs with it, false alarms, runs without it.
    """
    counts = np.zeros(4, dtype=int)
    for _ in range(num_games):
        game = _play(train, None, None, private, num_steps, 1, rng, make_noise(), filler=7)
        ratio = likelihood_ratio(game.seen, private.sampling_prob, private.noise_multiplier)
        said_in = bool(ratio[0] > 0)
        counts += [said_in, 1, 0, 0] if game.members[0] else [0, 0, said_in, 1]
    caught, num_in, false_alarms, num_out = map(int, counts)
    return caught, num_in, false_alarms, num_out


def canary_rows(
    train: Train, private: PrivateSettings, num_steps: int, num_canaries: int, noise: NoiseSource
) -> NDArray[np.bool_]:
    """Who was in which batch, shape (T, m), read off a run of canaries alone without noise."""
    quiet = PrivateSettings(private.sampling_prob, 0.0, private.l2_clip_norm)
    game = _run(train, None, None, quiet, num_steps, torch.ones(num_canaries).bool(), noise)
    return game.seen > 0.5


def _play(
    train: Train,
    adapter: Adapter | None,
    records: Sequences | None,
    private: PrivateSettings,
    num_steps: int,
    num_canaries: int,
    rng: torch.Generator,
    noise: NoiseSource,
    filler: int = 0,
) -> _Game:
    """Toss the coins and run; `filler` canaries more are always in, and not part of the game."""
    members = torch.rand(num_canaries + filler, generator=rng) < 0.5
    members[num_canaries:] = True
    game = _run(train, adapter, records, private, num_steps, members, noise)
    return _Game(game.members[:num_canaries], game.seen[:, :num_canaries])


def _run(
    train: Train,
    adapter: Adapter | None,
    records: Sequences | None,
    private: PrivateSettings,
    num_steps: int,
    members: Tensor,
    noise: NoiseSource,
) -> _Game:
    audited, vocabulary = with_canaries(adapter, len(members), private.l2_clip_norm)
    inserted = canary_records(members.nonzero()[:, 0], vocabulary)
    everyone = inserted if records is None else _joined(records, inserted)
    before = adapter.state() if adapter is not None else {}
    settings = TrainingSettings(
        num_steps=num_steps,
        batch_size=max(1, round(private.sampling_prob * len(everyone))),
        micro_batch_size=_MICRO_BATCH if adapter is not None else 16 * _MICRO_BATCH,
        learning_rate=1e-3,
    )
    with observed_steps([audited.parameters[CANARY]]) as steps:
        train(audited, everyone, settings, private, noise)
    if adapter is not None:
        adapter.load(before)
    # Undo the divisor and the sign: a canary that was drawn stands at 1, before noise.
    scale = -private.sampling_prob * len(everyone) / private.l2_clip_norm
    seen = torch.stack(steps).double() * scale
    return _Game(members.numpy(), seen.numpy())


def _joined(records: Sequences, canaries: Sequences) -> Sequences:
    missing = (0, records.ids.shape[1] - canaries.ids.shape[1])
    pad = nn.functional.pad
    return Sequences(
        torch.cat([records.ids, pad(canaries.ids, missing)]),
        torch.cat([records.learned, pad(canaries.learned, missing)]),
    )
