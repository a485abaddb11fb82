"""One site's own side: its name, its records and its terms. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedot.messages import ClientInfo
from fedot.privacy.policy import Policy

__all__ = ["DataOwner"]


@dataclass(frozen=True, slots=True)
class DataOwner:
    """What a person at a site gives to `fedot join`.

    Attributes:
        name: as the site's certificate says.
        home: ledger, stored updates and bundles.
        records: file with the private records.
        policy: the data owner's terms.
        text_field: field of a record that holds its text; None takes what the run says.
        device: auto, cpu or cuda.
    """

    name: str
    home: Path
    records: Path
    policy: Policy
    text_field: str | None = None
    device: str = "auto"

    @property
    def info(self) -> ClientInfo:
        """What the server knows of it."""
        return ClientInfo(self.name, self.policy.dataset_id)
