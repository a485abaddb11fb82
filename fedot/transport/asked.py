"""What an authorization hook is shown of a call: names, digests and limits, never content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedot.config import config_from_yaml
from fedot.errors import ConfigError
from fedot.transport import fedot_pb2 as pb

__all__ = ["binding_details", "details_of"]

_LONGEST = 200


def details_of(request: Any, told: Sequence[str]) -> Mapping[str, str]:
    """Of a request: the fields `told`, what it is bound to, and what a job would do.

    Args:
        request: a message of `fedot.proto`.
        told: names of its fields.
    """
    found = {name: str(getattr(request, name))[:_LONGEST] for name in told}
    if "binding" in request.DESCRIPTOR.fields_by_name:
        found |= binding_details(request.binding)
    if isinstance(request, pb.SubmitRequest):
        found |= _job_details(request.config_yaml)
    return found


def binding_details(binding: pb.Binding) -> dict[str, str]:
    """What a transfer belongs to."""
    return {
        "run_id": binding.run_id[:_LONGEST],
        "round": str(binding.round),
        "site": binding.site[:_LONGEST],
        "digest": binding.digest[:_LONGEST],
    }


def _job_details(config_yaml: str) -> dict[str, str]:
    """A config that cannot be read has none: it is refused after the hook in any case."""
    try:
        config = config_from_yaml(config_yaml)
    except ConfigError:
        return {}
    privacy = config.privacy
    return {
        "model": str(config.model.path)[:_LONGEST],
        "adapter": config.adapter.kind,
        "chain": str(config.payload.chain)[:_LONGEST],
        "rounds": str(config.federation.rounds),
        "privacy_unit": privacy.unit,
        "epsilon": str(privacy.target_epsilon) if privacy.unit != "none" else "",
    }
