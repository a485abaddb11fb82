"""The config's sections about who takes part: rounds, cohorts, quorum, and sites of a network."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import Field, field_validator, model_validator

from fedot.config_section import Section

__all__ = ["FederationConfig", "NetworkConfig", "check_names", "check_numbers"]


class FederationConfig(Section):
    """Rounds and who takes part."""

    rounds: int = Field(6, ge=1, description="exchanges between owner and clients")
    cohort_size: int | None = Field(
        None,
        ge=1,
        description="clients drawn uniformly each round (with client-level DP each by its own "
        "coin, so many on average); null takes all",
    )
    quorum: int | None = Field(
        None,
        ge=1,
        description="fewest updates that close a round; with fewer the run stops and can be "
        "resumed. null: whoever did not fail, and one at least",
    )
    deadline_s: float | None = Field(
        None,
        gt=0,
        description="seconds that a round waits for its whole cohort; after them quorum is "
        "enough. null waits until everybody answered",
    )
    server_learning_rate: float = Field(
        1.0,
        gt=0,
        le=10,
        description="the cohort's mean update is scaled by this; above 1 where clients differ. "
        "With adam: how far a value moves in a round",
    )
    server_optimizer: Literal["sgd", "adam"] = Field(
        "sgd", description="sgd adds the mean update; adam scales it by what came in all rounds"
    )
    aggregation: Literal["mean", "trimmed_mean"] = Field(
        "mean", description="how updates become one: mean, or trimmed_mean against liars"
    )
    num_trimmed: int = Field(
        0, ge=0, description="b: values dropped at each end of every coordinate (trimmed_mean)"
    )

    @model_validator(mode="after")
    def _deadline_has_a_quorum(self) -> FederationConfig:
        if self.deadline_s is not None and self.quorum is None:
            raise ValueError(
                f"federation.deadline_s is {self.deadline_s:g} but federation.quorum is not set; "
                "after the deadline a round closes with a quorum. Say how many updates that is, or "
                "leave deadline_s out."
            )
        if self.aggregation == "mean" and self.num_trimmed:
            raise ValueError(
                f"federation.num_trimmed is {self.num_trimmed} but aggregation is mean, which "
                "trims nothing. Set aggregation: trimmed_mean."
            )
        return self


class NetworkConfig(Section):
    """A federation over the network (fedot serve); `fedot simulate` does not read it."""

    sites: list[str] | None = Field(
        None, description="who takes part, by name; null: all that are admitted when a run starts"
    )
    wait_for: int | None = Field(
        None, ge=1, description="how many sites must be there before round 1; null: all of them"
    )

    @field_validator("sites")
    @classmethod
    def _sites_are_names(cls, sites: list[str] | None) -> list[str] | None:
        if sites is None:
            return None
        if not sites or len(set(sites)) < len(sites):
            raise ValueError(
                "network.sites is empty or names a site twice; it must name every site once. Set "
                "it to null for all that are admitted."
            )
        check_names(sites, "network.sites has a site")
        return sites

    @model_validator(mode="after")
    def _sites_can_be_waited_for(self) -> NetworkConfig:
        if self.sites and self.wait_for and self.wait_for > len(self.sites):
            raise ValueError(
                f"network.wait_for is {self.wait_for}; network.sites has {len(self.sites)}. Lower "
                "it, or set it to null for all."
            )
        return self


def check_names(names: Iterable[str], what: str) -> None:
    """Refuse a client's name that would leave a run's folder: it is a folder in it.

    Raises:
        ValueError: for pydantic, which tells it as a `ConfigError`.
    """
    for name in names:
        if not name.isprintable() or name[:1] in ("", ".") or {"/", "\\"} & set(name):
            raise ValueError(
                f"{what} called {name!r}; a name must not be empty, start with a dot or hold a "
                "slash, for it becomes a folder. Rename it."
            )


def check_numbers(federation: FederationConfig, num_clients: int) -> None:
    """Refuse numbers that do not go together.

    Args:
        federation: the config's.
        num_clients: 0 where it is not known yet: all sites that will be admitted.

    Raises:
        ValueError: for pydantic, which tells it as a `ConfigError`.
    """
    size, quorum, trimmed = federation.cohort_size, federation.quorum, federation.num_trimmed
    if num_clients and size and size > num_clients:
        raise ValueError(
            f"federation.cohort_size is {size}; there are {num_clients} clients. "
            "Lower it, or set it to null for all."
        )
    cohort = size or num_clients
    if cohort and quorum and quorum > cohort:
        raise ValueError(
            f"federation.quorum is {quorum}; a cohort has {cohort} clients. Lower it, or set it "
            "to null."
        )
    for fewest, what in ((cohort, "the cohort"), (quorum, "federation.quorum")):
        if fewest and federation.aggregation == "trimmed_mean" and fewest <= 2 * trimmed:
            raise ValueError(
                f"federation.num_trimmed is {trimmed}; dropping {2 * trimmed} of {fewest} values "
                f"leaves none. It must be below half of {what}."
            )
