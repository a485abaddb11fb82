"""One site's own side: its name, its records and its terms. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedot.messages import ClientInfo
from fedot.privacy.policy import Policy, ledger_beside, load_policy

__all__ = ["DataOwner"]


@dataclass(frozen=True, slots=True)
class DataOwner:
    """What a person at a site gives to `fedot join`.

    Attributes:
        name: as the site's certificate says.
        home: stored updates and bundles.
        records: file with the private records.
        policy_file: the data owner's terms; the ledger lies beside it.
        text_field: field of a record that holds its text.
        device: auto, cpu or cuda.
    """

    name: str
    home: Path
    records: Path
    policy_file: Path
    text_field: str = "text"
    device: str = "auto"

    @property
    def policy(self) -> Policy:
        """The terms as they are now: they may become tighter while a run is going on.

        Raises:
            ConfigError: the file is gone or cannot be used.
        """
        return load_policy(self.policy_file)

    @property
    def ledger_file(self) -> Path:
        """What the data set has spent."""
        return ledger_beside(self.policy_file)

    @property
    def info(self) -> ClientInfo:
        """What the server knows of it."""
        return ClientInfo(self.name, self.policy.dataset_id)
