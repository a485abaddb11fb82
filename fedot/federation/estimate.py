"""What a run would cost, before it starts: memory, time, bytes and epsilon."""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import dataclass

import torch

from fedot.client.chains import state_chain, update_chain
from fedot.client.round import round_event
from fedot.client.training import sequence_losses
from fedot.compression.codec import encode
from fedot.config import AdapterConfig, Config, EmulatorConfig, PayloadConfig
from fedot.federation.budget import check_budget
from fedot.federation.cohort import most_rounds
from fedot.federation.parts import Parts, load_parts
from fedot.federation.payloads import settled
from fedot.federation.rounds import part_of
from fedot.federation.server_noise import client_event
from fedot.federation.turns import state_part, trained_part
from fedot.messages import AdapterPart
from fedot.models.adapters import attach
from fedot.models.anatomy import anatomy_of, shallower
from fedot.privacy.accounting import epsilon_of

__all__ = ["Estimate", "estimate"]

# Forward and backward through frozen blocks cost about twice the forward pass.
_PASSES_TRAINING, _PASSES_MEASURING = 2.0, 1.0
_TRIALS = 4
# Values kept for the backward pass per token, block and hidden unit (attention, MLP and norms).
_ACTIVATIONS_PER_UNIT = 16


@dataclass(frozen=True, slots=True)
class Estimate:
    """A run's cost; times are rough, bytes and epsilon are close.

    Attributes:
        full_parameters: of the full model.
        emulator_parameters: of what a client gets.
        adapter_parameters: P.
        client_bytes: memory a client needs at its peak, weights included.
        server_bytes: memory of this simulation: full model, emulator and a client at work.
        seconds: for the whole simulation on this machine.
        sent_bytes: all updates, clients to server.
        float32_bytes: the same as plain float32.
        received_bytes: all states, server to clients.
        epsilon: by client, at the end; empty without DP.
        noise_multiplier: by client; empty without DP.
        noise_length: by client, the L2 norm of a step's noise over that of the longest sum that its
            batch can have; empty without DP.
        client_epsilon: of one client with all its records, from noise at the server; None without.
        chain: what updates go through.
        chain_reason: why, where `chain: auto` chose it.
    """

    full_parameters: int
    emulator_parameters: int
    adapter_parameters: int
    client_bytes: int
    server_bytes: int
    seconds: float
    sent_bytes: int
    float32_bytes: int
    received_bytes: int
    epsilon: dict[str, float]
    noise_multiplier: dict[str, float]
    noise_length: dict[str, float]
    client_epsilon: float | None
    chain: str
    chain_reason: str | None


def estimate(config: Config) -> Estimate:
    """Load what a run would load, time a little of it, and work out the rest.

    Raises:
        ConfigError, BudgetError: the run itself would be refused.
    """
    parts = load_parts(config)
    check_budget(config, parts)
    per_token = _seconds_per_token(parts)
    emulator = shallower(parts.model, parts.kept)
    width = {p.element_size() for p in parts.model.parameters()}.pop()
    emulator_parameters = emulator.num_parameters()
    adapter = attach(emulator, parts.adapter, parts.kept)
    names, num_rounds = list(parts.train), config.federation.rounds
    # Poisson cohorts are that large on average.
    size = config.federation.cohort_size or len(names)
    total = size * num_rounds
    rng = torch.Generator().manual_seed(0)
    update = {n: torch.randn(p.shape, generator=rng) for n, p in adapter.parameters.items()}
    payload, reason = settled(config.payload)
    sent, float32 = _sent_bytes(config.adapter, payload, update, [size] * num_rounds)
    # LoRA starts half zero, which no later state is.
    start = adapter.state()
    later = {name: tensor + update[name] for name, tensor in start.items()}
    down = state_chain(payload)
    first, rest = (
        len(encode(part_of(state, state_part(config.adapter)), down).payload)
        for state in (start, later)
    )
    client = _client_bytes(config, parts, emulator_parameters * width, adapter.num_parameters)
    epsilon, noise = _privacy(config, parts, most_rounds(config, names))
    # Clipped gradients that all point one way sum to batch_size * C; real ones to less.
    longest = config.training.batch_size / math.sqrt(adapter.num_parameters)
    return Estimate(
        full_parameters=parts.model.num_parameters(),
        emulator_parameters=emulator_parameters,
        adapter_parameters=adapter.num_parameters,
        client_bytes=client,
        server_bytes=_server_bytes(config, parts.model.num_parameters(), width, client),
        seconds=_tokens(config, parts, total) * per_token,
        sent_bytes=sent,
        float32_bytes=float32,
        received_bytes=first * size + rest * (total - size),
        epsilon=epsilon,
        noise_multiplier=noise,
        noise_length={name: z / longest for name, z in noise.items()},
        client_epsilon=_client_epsilon(config),
        chain=payload.chain,
        chain_reason=reason,
    )


def _sent_bytes(
    adapter: AdapterConfig,
    payload: PayloadConfig,
    update: dict[str, torch.Tensor],
    cohort_sizes: list[int],
) -> tuple[int, int]:
    """All updates encoded, and as float32; in every round that half which has its turn."""
    updates: Counter[AdapterPart] = Counter()
    for round, size in enumerate(cohort_sizes, start=1):
        updates[trained_part(adapter, round)] += size
    sent = float32 = 0
    for trains, num_updates in updates.items():
        part = part_of(update, trains)
        sent += num_updates * len(encode(part, update_chain(payload), seed=0).payload)
        float32 += num_updates * 4 * sum(tensor.numel() for tensor in part.values())
    return sent, float32


def _seconds_per_token(parts: Parts) -> float:
    """Of one forward pass through the full model, the best of a few on a few records."""
    batch = parts.report.take(range(min(32, len(parts.report))))
    trials = []
    with torch.inference_mode():
        for _ in range(_TRIALS):
            started = time.perf_counter()
            sequence_losses(parts.model, batch)
            trials.append(time.perf_counter() - started)
    return min(trials) / batch.ids.numel()


def _tokens(config: Config, parts: Parts, client_rounds: int) -> float:
    """Forward passes of the full model through one token that the whole run is worth."""
    length = config.data.max_tokens
    depth = anatomy_of(parts.model).num_blocks
    shallow = len(parts.kept) / depth
    training = config.training
    steps = client_rounds * training.steps_per_round * training.batch_size
    local = steps * length * (1 + _PASSES_TRAINING) * shallow
    measured = parts.choose.ids.numel() * (1 + shallow)
    measured += parts.proxy.ids.numel() if parts.proxy is not None else 0
    rounds = config.federation.rounds * measured * _PASSES_MEASURING
    distilling = 0.0
    if isinstance(config.emulator, EmulatorConfig):
        windows = config.emulator.distill_steps * config.emulator.batch_size
        distilling = windows * length * (1 + 3 * shallow)
    ceiling = config.evaluation
    epochs = len(ceiling.ceiling_learning_rates) * ceiling.ceiling_epochs
    pooled = sum(part.ids.numel() for part in parts.train.values())
    return local + rounds + distilling + epochs * pooled * (1 + _PASSES_TRAINING)


def _client_bytes(config: Config, parts: Parts, weights: int, num_parameters: int) -> int:
    rows = min(config.training.micro_batch_size, config.training.batch_size)
    model = parts.model.config
    depth, width, vocabulary = len(parts.kept), int(model.hidden_size), int(model.vocab_size)
    activations = 4 * rows * config.data.max_tokens * depth * width * _ACTIVATIONS_PER_UNIT
    logits = 3 * 4 * rows * config.data.max_tokens * vocabulary
    private = config.privacy.protects_records
    gradients = 4 * num_parameters * (rows if private else 1)
    optimizer = 4 * num_parameters * 4
    return weights + activations + logits + gradients + optimizer


def _server_bytes(config: Config, full_parameters: int, width: int, client_bytes: int) -> int:
    """The larger of: rounds with a client at work; the ceiling beside what is loaded by then."""
    full = full_parameters * width
    # Float32 weights, gradients, two moments, and copies of the start and of the best state.
    ceiling = 6 * 4 * full_parameters if config.evaluation.ceiling_learning_rates else 0
    return full + client_bytes + ceiling


def _client_epsilon(config: Config) -> float | None:
    if not config.privacy.protects_clients:
        return None
    events = [client_event(config)] * config.federation.rounds
    return epsilon_of(events, config.privacy.client_level.delta)


def _privacy(
    config: Config, parts: Parts, planned: dict[str, int]
) -> tuple[dict[str, float], dict[str, float]]:
    if not config.privacy.protects_records:
        return {}, {}
    epsilon, noise = {}, {}
    for name, records in parts.train.items():
        if name not in planned:
            continue
        event = round_event(config.training, config.privacy, len(records), planned[name])
        noise[name] = event.noise_multiplier
        epsilon[name] = epsilon_of([event] * planned[name], config.privacy.delta)
    return epsilon, noise
