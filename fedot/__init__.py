"""Federated offsite-tuning: tune a closed language model on records that stay private.

`import fedot` is light; heavy parts load on first use (`fedot.simulate`, `fedot.load_config`).
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedot.config import Config, load_config
    from fedot.errors import FedotError
    from fedot.federation.run import simulate

__all__ = ["Config", "FedotError", "load_config", "simulate"]
__version__ = "0.1.0"

_HOME = {
    "Config": "fedot.config",
    "FedotError": "fedot.errors",
    "load_config": "fedot.config",
    "simulate": "fedot.federation.run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fedot' has no attribute {name!r}")
    # This library hints at kernels wherever it is imported; fedot needs none of them.
    library = logging.getLogger("bitsandbytes")
    level = library.level
    library.setLevel(max(level, logging.ERROR))
    try:
        return getattr(import_module(_HOME[name]), name)
    finally:
        library.setLevel(level)
