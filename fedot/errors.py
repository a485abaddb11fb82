"""Every error that fedot raises on purpose.

    FedotError
    |-- ConfigError      what the user asked for cannot be done: config, files, models, data
    |-- BudgetError      a privacy budget does not allow it
    |-- WireError        bytes from a peer are not what they must be
    |-- ProtocolError    a message that is well formed but not allowed now
    |   `-- RunStopped   somebody asked a run to stop; it can be resumed
    `-- TransportError   the other side cannot be reached
        `-- PeerTimeout  the other side stopped making progress

A message says what is, what must be and what to do. It never holds data: names, shapes and limits
only. A wrong argument from our own code is a plain `ValueError`.
"""

from __future__ import annotations

__all__ = [
    "FedotError",
    "ConfigError",
    "BudgetError",
    "WireError",
    "ProtocolError",
    "RunStopped",
    "TransportError",
    "PeerTimeout",
]


class FedotError(Exception):
    """Base of every error that a user or a peer can cause."""


class ConfigError(FedotError):
    """The config, a file that it names, a model or data set cannot be used as asked."""


class BudgetError(FedotError):
    """A privacy budget is too small for what was asked; nothing was trained or released."""


class WireError(FedotError):
    """Bytes that came from a peer were refused before they could do harm."""


class ProtocolError(FedotError):
    """A peer or the journal was asked for something that does not follow from its state."""


class RunStopped(ProtocolError):
    """A run was asked to stop and did, between two steps; it can be resumed."""


class TransportError(FedotError):
    """The other side could not be reached or broke off."""


class PeerTimeout(TransportError):
    """The other side stopped making progress."""
