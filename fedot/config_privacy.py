"""The config's privacy section: units, budgets and bounds."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fedot.config_section import Section

__all__ = ["ClientLevelConfig", "PrivacyConfig"]


class ClientLevelConfig(Section):
    """Noise that the server adds (unit client or both); it sees the updates, others do not."""

    target_epsilon: float = Field(8.0, gt=0, le=100, description="spent over all rounds together")
    delta: float = Field(1e-5, gt=0, lt=1, description="well below 1 / clients")
    l2_clip_norm: float = Field(
        1.0, gt=0, description="bound C on one client's update; where it starts if adaptive"
    )
    adaptive: bool = Field(False, description="C follows a noised quantile of the clients' norms")
    target_quantile: float = Field(
        0.5, gt=0, lt=1, description="part of the clients whose update should not be clipped"
    )
    clip_learning_rate: float = Field(0.2, gt=0, le=2, description="of log C, if adaptive")
    clip_noise_share: float = Field(
        0.1, gt=0, lt=1, description="part of the budget (of 1 / z^2) that adapting C gets"
    )
    amplification: bool = Field(
        False,
        description="count Poisson sampling of clients; only where nobody protected against sees "
        "who takes part (no other client, no reader of metrics.jsonl)",
    )


class PrivacyConfig(Section):
    """What a client's update may reveal. `unit: none` trains without DP."""

    unit: Literal["none", "example", "client", "both"] = Field(
        "example",
        description="one record (example, noise at the client), one client with all its records "
        "(client, noise at the server), both, or no differential privacy at all (none)",
    )
    target_epsilon: float = Field(8.0, gt=0, le=100, description="spent over all rounds together")
    delta: float = Field(
        1e-5, gt=0, lt=1, description="chance that epsilon does not hold; well below 1 / records"
    )
    l2_clip_norm: float = Field(
        1.0, ge=1e-6, description="bound C on one example's gradient; norms are exact far below it"
    )
    client_level: ClientLevelConfig = ClientLevelConfig()

    @property
    def protects_records(self) -> bool:
        """Do clients add noise for one record?"""
        return self.unit in ("example", "both")

    @property
    def protects_clients(self) -> bool:
        """Does the server add noise for one client?"""
        return self.unit in ("client", "both")
