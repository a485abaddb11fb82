"""Known mistakes of DP-SGD, planted: every check passes on what we have and fails on the mistake.

Pitfalls of the step are numbered as in docs/privacy.md; those that are refused before anything is
computed are in test_per_sample.py, those of accounting and the ledger in their own tests.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedot.client import training
from fedot.client.training import (
    PrivateSettings,
    TrainingSettings,
    sequence_losses,
    train_privately,
)
from fedot.data.tokenize import Sequences
from fedot.models.adapters import Adapter
from fedot.privacy import clipping, dp_sgd, per_sample, rows
from fedot.privacy.clipping import Bounded
from fedot.privacy.dp_sgd import PrivateOptimizer, per_example_gradients, private_step
from fedot.privacy.noise import KEY_BYTES, NoiseSource

AdapterOn = Callable[[nn.Module, str], Adapter]
Losses = Callable[[nn.Module, Sequences], Tensor]
CLIP, EXPECTED, BIG = 0.5, 4.0, 1e6


class Recorder(torch.optim.SGD):
    """Keeps the gradient that a step would use."""

    used: list[Tensor] | None = None

    def step(self, closure: None = None) -> None:
        self.used = [p.grad.clone() for group in self.param_groups for p in group["params"]]


def released(
    adapter: Adapter,
    batch: Sequences | None,
    *,
    losses: Losses = sequence_losses,
    clip: float = CLIP,
    noise_multiplier: float = 0.0,
    noise: NoiseSource | None = None,
) -> Tensor:
    """What one private step hands to the optimizer, times the expected batch size, (P,)."""
    recorder = Recorder(adapter.parameters.values(), lr=1.0)
    with per_example_gradients(adapter.model) as gradients:
        optimizer = dp_sgd.PrivateOptimizer(
            recorder,
            gradients,
            l2_clip_norm=clip,
            noise_multiplier=noise_multiplier,
            expected_batch_size=EXPECTED,
            noise=noise or NoiseSource(bytes(KEY_BYTES)),
        )
        parts = [] if batch is None else [lambda: losses(adapter.model, batch)]
        dp_sgd.private_step(optimizer, parts)
    assert recorder.used is not None, "no step was made"
    return torch.cat([g.flatten() for g in recorder.used]) * EXPECTED


@pytest.fixture
def adapter(tiny_llama: nn.Module, adapter_on: AdapterOn) -> Adapter:
    return adapter_on(tiny_llama, "lora")


# 1. A token-mean loss: one record's gradient depends on its neighbours.


def token_mean(model: nn.Module, batch: Sequences) -> Tensor:
    lengths = batch.learned[:, 1:].sum(dim=1)
    return sequence_losses(model, batch) * lengths / lengths.sum() * len(batch)


def check_neighbours_do_not_matter(adapter: Adapter, records: Sequences, losses: Losses) -> None:
    def gradient_of_second(batch: Sequences) -> Tensor:
        with per_example_gradients(adapter.model) as gradients:
            gradients.backward(losses(adapter.model, batch))
            return gradients.matrix()[1]

    short, long = records.take([1, 2]), records.take([3, 2])
    torch.testing.assert_close(
        gradient_of_second(short), gradient_of_second(long), atol=1e-6, rtol=1e-4
    )


def test_token_mean_loss_is_caught(adapter: Adapter, records: Sequences) -> None:
    check_neighbours_do_not_matter(adapter, records, sequence_losses)
    with pytest.raises(AssertionError):
        check_neighbours_do_not_matter(adapter, records, token_mean)


# Clipping: each example on its own, over all parameters together.


def check_one_record_moves_at_most_the_bound(adapter: Adapter, records: Sequences) -> None:
    """Every record added to a batch of three; bound of 1e-6 for float32 sums of B rows."""
    without = released(adapter, records.take([0, 2, 3]))
    for row in (1, 4, 5):
        moved = (released(adapter, records.take([0, 2, 3, row])) - without).norm()
        assert 0 < moved <= CLIP * (1 + 1e-4)


def test_clipping_the_batch_is_caught(
    adapter: Adapter, records: Sequences, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_one_record_moves_at_most_the_bound(adapter, records)

    def per_batch(gradients: per_sample.PerExampleGradients, l2_clip_norm: float) -> Bounded:
        total = gradients.weighted_sum(torch.ones_like(gradients.norms()))
        factor = (l2_clip_norm / total.norm()).clamp(max=1.0)
        return Bounded(total * factor * len(gradients.norms()), l2_clip_norm)

    monkeypatch.setattr(dp_sgd, "clipped_sum", per_batch)
    with pytest.raises(AssertionError):
        check_one_record_moves_at_most_the_bound(adapter, records)


# 3. Learned positions are looked up once for the batch.


def test_positions_shared_by_the_batch_are_caught(
    tiny_gpt2: nn.Module,
    adapter_on: AdapterOn,
    records: Sequences,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    adapter = adapter_on(tiny_gpt2, "full")
    check_one_record_moves_at_most_the_bound(adapter, records)
    monkeypatch.setattr(per_sample.PerExampleGradients, "_count_rows", lambda *_: None)
    hide = per_sample.PerExampleGradients._hide

    def unexpanded(self: per_sample.PerExampleGradients, *args: object) -> None:
        hide(self, *args)

    monkeypatch.setattr(per_sample.PerExampleGradients, "_hide", unexpanded)
    with pytest.raises(ValueError, match="saw 1 rows in a batch of 3"):
        released(adapter, records.take([0, 2, 3]))


# 4. An empty batch that is skipped tells that nobody was drawn.


def check_empty_batch_releases_noise(adapter: Adapter) -> None:
    noise = released(adapter, None, noise_multiplier=2.0)
    # z * C = 1 over P > 5,000 values: its own error is about 1 %.
    assert float(noise.std()) == pytest.approx(1.0, rel=0.05)


def test_skipped_empty_batch_is_caught(adapter: Adapter, monkeypatch: pytest.MonkeyPatch) -> None:
    check_empty_batch_releases_noise(adapter)
    monkeypatch.setattr(
        dp_sgd,
        "private_step",
        lambda optimizer, parts: private_step(optimizer, parts) if parts else None,
    )
    with pytest.raises(AssertionError):
        check_empty_batch_releases_noise(adapter)


# 5. Dividing by the actual batch size.


def check_divisor_does_not_depend_on_the_batch(adapter: Adapter, records: Sequences) -> None:
    alone = released(adapter, records.take([0]), clip=BIG)
    twice = released(adapter, records.take([0, 0]), clip=BIG)
    torch.testing.assert_close(twice, 2 * alone, atol=1e-5, rtol=1e-4)


def test_actual_batch_size_as_divisor_is_caught(
    adapter: Adapter, records: Sequences, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_divisor_does_not_depend_on_the_batch(adapter, records)

    class Actual(PrivateOptimizer):
        def scale_grad(self) -> None:
            self.expected_batch_size = len(self.gradients.norms())
            super().scale_grad()

    monkeypatch.setattr(dp_sgd, "PrivateOptimizer", Actual)
    with pytest.raises(AssertionError):
        check_divisor_does_not_depend_on_the_batch(adapter, records)


# 6. Tied parameters whose two uses are counted apart.


def check_norms_are_those_of_the_rows(adapter: Adapter, records: Sequences) -> None:
    with per_example_gradients(adapter.model) as gradients:
        gradients.backward(sequence_losses(adapter.model, records))
        torch.testing.assert_close(
            gradients.norms(), gradients.matrix().norm(dim=1), atol=1e-5, rtol=1e-4
        )


def test_miscounted_tied_weights_are_caught(
    make_model: Callable[..., nn.Module],
    adapter_on: AdapterOn,
    records: Sequences,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    adapter = adapter_on(make_model("llama", tied=True), "full")
    monkeypatch.setattr(rows, "_is_large", lambda parameter: parameter.dim() > 1)
    monkeypatch.setattr(rows, "_stays_outer", lambda gradient, place: True)
    check_norms_are_those_of_the_rows(adapter, records)
    both = rows._square_norms
    monkeypatch.setattr(
        rows, "_square_norms", lambda outers, grams: sum(both([o], grams) for o in outers)
    )
    with pytest.raises(AssertionError):
        check_norms_are_those_of_the_rows(adapter, records)


# 7. Weights that never move although epsilon accrues.


def test_weights_replaced_after_attaching_are_caught(adapter: Adapter, records: Sequences) -> None:
    first = next(m for n, m in adapter.model.named_modules() if n.endswith("lora_A.default"))
    with per_example_gradients(adapter.model):
        first.weight = nn.Parameter(first.weight.clone())
        with pytest.raises(ValueError, match="was replaced after"):
            sequence_losses(adapter.model, records)


@pytest.mark.parametrize("change", ["one too few", "copies"])
def test_an_optimizer_over_other_parameters_is_caught(adapter: Adapter, change: str) -> None:
    parameters = list(adapter.parameters.values())
    others = parameters[1:] if change == "one too few" else [nn.Parameter(p) for p in parameters]
    with (
        per_example_gradients(adapter.model) as gradients,
        pytest.raises(ValueError, match="not those that train"),
    ):
        PrivateOptimizer(
            torch.optim.SGD(others, lr=1.0),
            gradients,
            l2_clip_norm=CLIP,
            noise_multiplier=1.0,
            expected_batch_size=EXPECTED,
            noise=NoiseSource.from_os(),
        )


# 9. Coarse clip factors, coarse or guessable noise.


def check_every_record_stays_within_the_bound(adapter: Adapter, records: Sequences) -> None:
    for row in range(len(records)):
        clipped = released(adapter, records.take([row]), clip=0.01).double().norm()
        assert 0.0099 < clipped <= 0.01 * (1 + 1e-5)


def test_bfloat16_clip_factors_are_caught(
    adapter: Adapter, records: Sequences, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_every_record_stays_within_the_bound(adapter, records)
    exact = clipping.clip_factors
    monkeypatch.setattr(
        clipping,
        "clip_factors",
        lambda norms, clip: exact(norms.bfloat16(), clip).to(norms.dtype),
    )
    with pytest.raises(AssertionError):
        check_every_record_stays_within_the_bound(adapter, records)


def check_noise_is_fine(noise: NoiseSource) -> None:
    """Of 4,000 numbers rounded to float32 nearly all differ; bfloat16 has a few hundred."""
    zeros = Bounded(torch.zeros(4000), 1.0)
    assert len(clipping.add_noise(zeros, 1.0, noise).unique()) > 3900


def test_bfloat16_noise_is_caught() -> None:
    check_noise_is_fine(NoiseSource.from_os())

    class Coarse(NoiseSource):
        def normal(self, num: int) -> np.ndarray:
            return torch.from_numpy(super().normal(num)).bfloat16().double().numpy()

    with pytest.raises(AssertionError):
        check_noise_is_fine(Coarse.from_os())


def check_noise_has_the_stated_size(noise: NoiseSource) -> None:
    noisy = clipping.add_noise(Bounded(torch.zeros(20_000), 0.5), 3.0, noise)
    # Fixed key: of stddev 1.5, known to within 0.5 %.
    assert float(noisy.std()) == pytest.approx(1.5, rel=0.02)


@pytest.mark.parametrize("scale", [0.0, 0.25, 2.0])
def test_noise_of_another_size_is_caught(scale: float) -> None:
    check_noise_has_the_stated_size(NoiseSource(bytes(KEY_BYTES)))

    class Scaled(NoiseSource):
        def normal(self, num: int) -> np.ndarray:
            return scale * super().normal(num)

    with pytest.raises(AssertionError):
        check_noise_has_the_stated_size(Scaled(bytes(KEY_BYTES)))


# 11. What a single record or client did, in logs.

STEP = TrainingSettings(num_steps=2, batch_size=4, micro_batch_size=4, learning_rate=1e-2)
PRIVATE = PrivateSettings(sampling_prob=0.5, noise_multiplier=1.0, l2_clip_norm=1.0)


def check_training_logs_nothing(
    adapter: Adapter, records: Sequences, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.clear()
    with caplog.at_level(logging.DEBUG):
        train_privately(adapter, records, STEP, PRIVATE, NoiseSource.from_os())
    assert [r.name for r in caplog.records if r.name.startswith("fedot")] == []


def test_logged_losses_are_caught(
    adapter: Adapter,
    records: Sequences,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check_training_logs_nothing(adapter, records, caplog)

    def talkative(model: nn.Module, batch: Sequences) -> Tensor:
        losses = sequence_losses(model, batch)
        logging.getLogger("fedot.client.training").debug("losses %s", losses.tolist())
        return losses

    monkeypatch.setattr(training, "sequence_losses", talkative)
    with pytest.raises(AssertionError):
        check_training_logs_nothing(adapter, records, caplog)
