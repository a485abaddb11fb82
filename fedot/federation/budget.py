"""Whether a run's budgets hold, asked before anything is built for it."""

from __future__ import annotations

from fedot.client.chains import operators_of
from fedot.client.round import round_event
from fedot.config import Config
from fedot.federation.cohort import most_rounds
from fedot.federation.parts import Parts
from fedot.federation.server_noise import client_event
from fedot.privacy.policy import Request, refuse_unless_allowed

__all__ = ["check_budget"]


def check_budget(config: Config, parts: Parts) -> None:
    """Refuse a run that no noise brings within its target, or that a policy does not allow.

    Raises:
        BudgetError: a target cannot be met, or a policy's budget is too small.
        ConfigError: a policy does not allow the adapter or the chain.
    """
    if config.privacy.protects_clients:
        client_event(config)
    for name, num_rounds in most_rounds(config, list(parts.train)).items():
        event = None
        if config.privacy.protects_records:
            num_records = len(parts.train[name])
            event = round_event(config.training, config.privacy, num_records, num_rounds)
        policy = parts.policies.get(name)
        if policy is not None:
            request = Request(
                key=name,
                adapter=config.adapter.kind,
                chain=operators_of(config.payload),
                event=event,
                num_rounds=num_rounds,
            )
            refuse_unless_allowed(policy, request, held=())
