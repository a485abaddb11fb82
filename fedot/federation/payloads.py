"""Which chains a run may use with its rule and direction, and which one `chain: auto` takes.

Design note: `fedot.compression` knows operators and their order, but neither rules nor directions,
so a combination that makes no sense in a federation is refused here, before anything is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping

from fedot.client.chains import feeds_back, state_chain, update_chain
from fedot.compression.chain import Stage, short_text, step_of
from fedot.compression.speed import choose, measure
from fedot.config import AdapterConfig, Config, FederationConfig, PayloadConfig, PrivacyConfig
from fedot.errors import ConfigError
from fedot.journal import Journal

__all__ = ["check_payload", "settled", "settled_once"]

# Rules that look at one coordinate over all clients, and what zeros do to them.
_COORDINATE_RULES: Mapping[str, str] = {
    "trimmed_mean": "drops the largest and smallest values of every coordinate",
}
_STATE_VALUES = ("float32", "bfloat16", "float16")


def check_payload(
    payload: PayloadConfig,
    federation: FederationConfig,
    adapter: AdapterConfig,
    privacy: PrivacyConfig,
) -> None:
    """Refuse chains that cannot be planned, or that the rest of the config makes senseless.

    Raises:
        ConfigError: says which, why, and what to do.
    """
    # What auto takes is dense.
    auto = payload.chain == "auto"
    if not auto:
        _check_sparse(payload, federation, privacy)
    if adapter.alternate and (payload.error_feedback if auto else feeds_back(payload)):
        raise ConfigError(
            "adapter.alternate is true and updates have error feedback; what the last round lost "
            "belongs to the other half of LoRA, and a round later it is out of date. Set "
            "payload.error_feedback: false, or adapter.alternate: false."
        )
    _check_state(payload)


def _check_sparse(
    payload: PayloadConfig, federation: FederationConfig, privacy: PrivacyConfig
) -> None:
    sparse, rule = step_of(update_chain(payload), Stage.SPARSIFY), federation.aggregation
    if sparse is None:
        return
    if rule in _COORDINATE_RULES:
        raise ConfigError(
            f"payload.chain has {sparse.name} and federation.aggregation is {rule}, which "
            f"{_COORDINATE_RULES[rule]}: with a mask of each client's own, most values are "
            f"zeros and what was learned would be dropped. Take {sparse.name} out, or "
            "aggregate with mean."
        )
    if privacy.protects_clients:
        raise ConfigError(
            f"payload.chain has {sparse.name} and privacy.unit is {privacy.unit}, client-level DP; "
            "its guarantee is for the clipped mean of whole updates with noise on every value, and "
            f"what {sparse.name} leaves out is noised all the same. Take it out, or set "
            "privacy.unit: example."
        )


def _check_state(payload: PayloadConfig) -> None:
    chain = state_chain(payload)
    sparse, values = step_of(chain, Stage.SPARSIFY), step_of(chain, Stage.VALUES)
    lossy = sparse or values
    if lossy is not None and lossy.name not in _STATE_VALUES:
        raise ConfigError(
            f"payload.state is {payload.state}, and {lossy.name} loses too much of a state: what "
            "travels down is the adapter itself, no difference, so nothing makes up for the loss. "
            f"Its values must be {', '.join(_STATE_VALUES)}; lossy steps belong into payload.chain."
        )


def settled(payload: PayloadConfig) -> tuple[PayloadConfig, str | None]:
    """The same with a chain that has a name, and for `chain: auto` why it is this one.

    Auto measures the codec on this machine, so another run may choose otherwise; what it chose can
    be written into a config as it stands.
    """
    if payload.chain != "auto" or payload.bandwidth_mb_per_s is None:
        return payload, None
    choice = choose(measure(), payload.bandwidth_mb_per_s * 1e6)
    chain = short_text(choice.chain)
    return payload.model_copy(update={"chain": chain}), f"auto took {chain}: {choice.reason}."


def settled_once(config: Config, journal: Journal) -> Config:
    """The run's config with its chain settled; a resumed run keeps what it began with."""
    kept = journal.fact("payload")
    if kept is None:
        payload, reason = settled(config.payload)
        kept = {"chain": payload.chain, "reason": reason}
        journal.note("payload", kept)
    payload = config.payload.model_copy(update={"chain": kept["chain"]})
    return config.model_copy(update={"payload": payload})
