"""One seed in the config, independent seeds for every use of it.

Privacy noise and Poisson sampling never come from here (`fedot.privacy.noise`): whoever knows the
config could subtract them.
"""

from __future__ import annotations

from hashlib import sha256

__all__ = ["derive_seed"]


def derive_seed(seed: int, *labels: str | int) -> int:
    """A seed below 2^32 for one use, the same on every machine.

    `torch.Generator` on the CPU keeps 32 bits of its seed, so more would be lost silently.

    Args:
        seed: the config's seed.
        labels: what the seed is for, for example `"order", client, round`.
    """
    text = "/".join([str(seed), *map(str, labels)])
    return int.from_bytes(sha256(text.encode()).digest()[:4], "big")
