"""Randomness that privacy rests on: a keystream from AES-256 in counter mode.

Design note: `torch.Generator` on the CPU keeps 32 bits of its seed, so noise made with it falls to
2^32 tries. Here the key has 256 bits from the operating system and is never stored, logged or sent.
Which records Poisson sampling drew is secret for the same reason: a sampling seed that the server
knows would take away the amplification that the accountant counts on.
"""

from __future__ import annotations

import os

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

__all__ = ["KEY_BYTES", "NoiseSource"]

KEY_BYTES = 32
_COUNTER_START = bytes(16)


class NoiseSource:
    """An endless stream of uniform and normal numbers.

    Guarantees:
        Without the key no number can be told from a random one (AES-256); numbers are never
        repeated. Normals have float64 precision. Rounding of floating-point sums is not hidden
        (Mironov 2012): see docs/privacy.md.
    """

    def __init__(self, key: bytes):
        """Take a key: for tests and paired benchmarks. Everything else calls `from_os`."""
        if len(key) != KEY_BYTES:
            raise ValueError(f"a noise key has {KEY_BYTES} bytes, not {len(key)}")
        cipher = Cipher(algorithms.AES(key), modes.CTR(_COUNTER_START))
        self._keystream = cipher.encryptor()

    @classmethod
    def from_os(cls) -> NoiseSource:
        """A source with a fresh key from the operating system."""
        return cls(os.urandom(KEY_BYTES))

    def uniform(self, num: int) -> NDArray[np.float64]:
        """`num` numbers, uniform on [0, 1), multiples of 2^-53."""
        stream = self._keystream.update(bytes(8 * num))
        words = np.frombuffer(stream, dtype="<u8")
        return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def normal(self, num: int) -> NDArray[np.float64]:
        """`num` independent standard normals, float64. Source: Box and Muller 1958."""
        pairs = (num + 1) // 2
        radius = np.sqrt(-2.0 * np.log1p(-self.uniform(pairs)))
        angle = 2.0 * np.pi * self.uniform(pairs)
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:num]
