"""One private step: what it bounds, adds, divides by and releases."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from fedot.client import training
from fedot.client.training import (
    PrivateSettings,
    TrainingSettings,
    sequence_losses,
    train_privately,
)
from fedot.data.tokenize import Sequences
from fedot.models.adapters import Adapter
from fedot.privacy.dp_sgd import PrivateOptimizer, per_example_gradients, private_step
from fedot.privacy.noise import KEY_BYTES, NoiseSource

KEY = bytes(range(KEY_BYTES))
STEP = TrainingSettings(num_steps=2, batch_size=4, micro_batch_size=4, learning_rate=1e-2)


AdapterOn = Callable[[nn.Module, str], Adapter]


def per_example(adapter: Adapter, records: Sequences) -> torch.Tensor:
    """Every record's gradient, (B, P)."""
    with per_example_gradients(adapter.model) as gradients:
        gradients.backward(sequence_losses(adapter.model, records))
        return gradients.matrix()


class Recorder(torch.optim.SGD):
    """Keeps the gradient that a step would use."""

    def step(self, closure: None = None) -> None:
        self.used = [p.grad.clone() for group in self.param_groups for p in group["params"]]


def released(
    adapter: Adapter, records: Sequences, rows: list[list[int]], **changes: float
) -> torch.Tensor:
    """One flat private gradient, shape (P,), from a batch in parts."""
    parts = [lambda p=p: sequence_losses(adapter.model, records.take(p)) for p in rows]
    return released_from(adapter, parts, **changes)


def released_from(
    adapter: Adapter, parts: list[Callable[[], torch.Tensor]], **changes: float
) -> torch.Tensor:
    """The same from functions that compute the parts' losses."""
    recorder = Recorder(adapter.parameters.values(), lr=1.0)
    settings = {"l2_clip_norm": 0.5, "noise_multiplier": 0.0, "expected_batch_size": 4.0} | changes
    with per_example_gradients(adapter.model) as gradients:
        optimizer = PrivateOptimizer(recorder, gradients, noise=NoiseSource(KEY), **settings)
        private_step(optimizer, parts)
    return in_flat_order(adapter, recorder.used)


def in_flat_order(adapter: Adapter, grads: list[torch.Tensor]) -> torch.Tensor:
    """Gradients in the adapter's order of names, put together as the optimizer's flat vector is."""
    by_id = {id(p): g for p, g in zip(adapter.parameters.values(), grads, strict=True)}
    with per_example_gradients(adapter.model) as gradients:
        flat = torch.zeros(adapter.num_parameters)
        for parameter, part in zip(gradients.parameters, gradients.split(flat), strict=True):
            part.copy_(by_id[id(parameter)])
    return flat


def test_every_example_is_clipped_on_its_own(
    tiny_llama: nn.Module, adapter_on: AdapterOn, records: Sequences
) -> None:
    adapter = adapter_on(tiny_llama, "lora")
    flat = per_example(adapter, records)
    factor = (0.5 / (flat.norm(dim=1) + 1e-6)).clamp(max=1)
    assert (factor < 1).any(), "nothing is clipped; the test would prove nothing"
    expected = (flat * factor[:, None]).sum(dim=0) / 4.0
    torch.testing.assert_close(
        released(adapter, records, [[0, 1, 2, 3, 4, 5]]), expected, atol=1e-6, rtol=1e-4
    )


def test_one_example_moves_the_sum_by_at_most_the_clip_norm(
    tiny_llama: nn.Module, adapter_on: AdapterOn, records: Sequences
) -> None:
    adapter = adapter_on(tiny_llama, "lora")
    with_it = released(adapter, records, [[0, 1, 2, 3]])
    without = released(adapter, records, [[0, 1, 2]])
    moved = (with_it - without).norm() * 4.0  # undo the expected batch size
    assert 0 < moved <= 0.5 * (1 + 1e-4)


def test_micro_batches_change_nothing(
    tiny_llama: nn.Module, adapter_on: AdapterOn, records: Sequences
) -> None:
    adapter = adapter_on(tiny_llama, "lora")
    whole = released(adapter, records, [[0, 1, 2, 3, 4, 5]])
    parts = released(adapter, records, [[0, 1], [2, 3, 4], [5]])
    torch.testing.assert_close(whole, parts, atol=1e-6, rtol=1e-4)


def test_divisor_is_the_expected_batch_size(
    tiny_llama: nn.Module, adapter_on: AdapterOn, records: Sequences
) -> None:
    """Pitfall 5: dividing by the actual size would make these two equal."""
    adapter = adapter_on(tiny_llama, "lora")
    once = released(adapter, records, [[0, 1]], expected_batch_size=2.0)
    twice = released(adapter, records, [[0, 1]], expected_batch_size=4.0)
    torch.testing.assert_close(once, 2 * twice, atol=1e-7, rtol=1e-5)


def test_empty_batch_releases_noise_of_the_right_size(
    tiny_llama: nn.Module, adapter_on: AdapterOn, records: Sequences
) -> None:
    """Pitfall 4: skipping it would tell that nobody was drawn."""
    adapter = adapter_on(tiny_llama, "blocks")
    noise = released(adapter, records, [], noise_multiplier=2.0)
    # stddev z * C / expected = 0.25 over P > 10,000 values: its own error is below 1 %.
    assert noise.numel() > 10_000
    assert float(noise.std()) == pytest.approx(2.0 * 0.5 / 4.0, rel=0.03)


def test_noise_is_the_sources_own_numbers(
    tiny_llama: nn.Module, adapter_on: AdapterOn, records: Sequences
) -> None:
    adapter = adapter_on(tiny_llama, "lora")
    noisy = released(adapter, records, [[0, 1]], noise_multiplier=3.0)
    clean = released(adapter, records, [[0, 1]])
    drawn = NoiseSource(KEY).normal(adapter.num_parameters)
    expected = torch.from_numpy(3.0 * 0.5 / 4.0 * drawn).float()
    torch.testing.assert_close(noisy - clean, expected, atol=1e-6, rtol=1e-4)


def test_a_row_that_is_not_finite_counts_as_zero(
    tiny_llama: nn.Module, adapter_on: AdapterOn, records: Sequences
) -> None:
    adapter = adapter_on(tiny_llama, "lora")
    clean = released(adapter, records, [[0]])
    weights = torch.tensor([1.0, torch.inf])

    def losses() -> torch.Tensor:
        return sequence_losses(adapter.model, records.take([0, 1])) * weights

    torch.testing.assert_close(released_from(adapter, [losses]), clean, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("kind", ["lora", "blocks"])
def test_weights_move_and_nothing_else_does(
    tiny_llama: nn.Module, adapter_on: AdapterOn, records: Sequences, kind: str
) -> None:
    """Pitfall 7: epsilon that accrues while no weight moves."""
    adapter = adapter_on(tiny_llama, kind)
    trained = {id(p) for p in adapter.parameters.values()}
    frozen = {n: p.clone() for n, p in adapter.model.named_parameters() if id(p) not in trained}
    before = adapter.state()
    private = PrivateSettings(sampling_prob=0.5, noise_multiplier=1.0, l2_clip_norm=1.0)
    train_privately(adapter, records, STEP, private, NoiseSource(KEY))
    assert all((before[n] != p).any() for n, p in adapter.state().items())
    for name, parameter in adapter.model.named_parameters():
        if name in frozen:
            assert torch.equal(parameter, frozen[name]), name


def test_empty_batches_do_not_stop_training(
    tiny_llama: nn.Module, adapter_on: AdapterOn, records: Sequences
) -> None:
    adapter = adapter_on(tiny_llama, "lora")
    before = adapter.state()
    private = PrivateSettings(sampling_prob=1e-9, noise_multiplier=1.0, l2_clip_norm=1.0)
    train_privately(adapter, records, STEP, private, NoiseSource(KEY))
    assert all((before[n] != p).any() for n, p in adapter.state().items())


def test_no_step_sees_more_records_than_the_cap(
    tiny_llama: nn.Module,
    adapter_on: AdapterOn,
    records: Sequences,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes = []

    def counting(model: nn.Module, batch: Sequences) -> torch.Tensor:
        sizes.append(len(batch))
        return sequence_losses(model, batch)

    monkeypatch.setattr(training, "sequence_losses", counting)
    private = PrivateSettings(1.0, 1.0, 1.0, max_batch_size=3)
    train_privately(adapter_on(tiny_llama, "lora"), records, STEP, private, NoiseSource(KEY))
    assert sizes == [3, 3]


def test_clipped_rows_stay_within_the_bound_when_computing_in_bfloat16(
    tiny_llama: nn.Module, adapter_on: AdapterOn, records: Sequences
) -> None:
    """Pitfall 9: with bfloat16 norms and factors a clipped row passes C by up to 1 %."""
    adapter = adapter_on(tiny_llama, "blocks")
    for row in range(len(records)):

        def losses(row: int = row) -> torch.Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return sequence_losses(adapter.model, records.take([row]))

        bounds = {"l2_clip_norm": 0.01, "expected_batch_size": 1.0}
        norm = released_from(adapter, [losses], **bounds).double().norm()
        assert 0.0099 < norm <= 0.01 * (1 + 1e-6)
