"""Randomness that privacy rests on: a keystream from AES-256 in counter mode.

Design note: `torch.Generator` on the CPU keeps 32 bits of its seed, so noise made with it falls to
2^32 tries. Here the key has 256 bits from the operating system and is never stored, logged or sent.
Which records Poisson sampling drew is secret for the same reason: a sampling seed that the server
knows would take away the amplification that the accountant counts on.
"""

from __future__ import annotations

import os
import threading

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

__all__ = ["KEY_BYTES", "NoiseSource"]

KEY_BYTES = 32
_COUNTER_START = bytes(16)
# Numbers made at once, so that what is in between stays in the processor's cache.
_CHUNK = 2**16
_MOST_AHEAD = 2**22
_ZEROS = memoryview(bytes(8 * _CHUNK))


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
        # Room that is used again and again: fresh memory costs more than the arithmetic.
        self._bytes = memoryview(bytearray(8 * _CHUNK + 15))
        self._words = np.frombuffer(self._bytes, dtype="<u8", count=_CHUNK)
        self._uniform = np.empty(_CHUNK)
        self._cosine = torch.empty(_CHUNK // 2, dtype=torch.float64)
        self._ahead: threading.Thread | None = None
        self._is_drawn = False
        # Kept from step to step: fresh pages cost as much as the numbers that go there.
        self._drawn = self._room = np.empty(0)

    @classmethod
    def from_os(cls) -> NoiseSource:
        """A source with a fresh key from the operating system."""
        return cls(os.urandom(KEY_BYTES))

    def draw_ahead(self, num: int) -> None:
        """Begin to draw normals beside other work, for calls of `normal` that will want `num`.

        At most 32 MiB of them. Nothing but `normal` may be called until they are taken, and what
        it then returns is overwritten by the next call of this.
        """
        self._refuse_while_ahead()
        if num < _CHUNK:
            # A thread would cost more than the numbers.
            return
        num = min(num, _MOST_AHEAD)
        if len(self._room) < num:
            self._room = np.empty(num + num % 2)
        self._drawn, self._is_drawn = self._room[:num], False
        self._ahead = threading.Thread(target=self._draw, args=(num,), daemon=True)
        self._ahead.start()

    def uniform(self, num: int) -> NDArray[np.float64]:
        """`num` numbers, uniform on [0, 1), multiples of 2^-53."""
        self._refuse_while_ahead()
        drawn = np.empty(num)
        for start in range(0, num, _CHUNK):
            self._fill(drawn[start : start + _CHUNK])
        return drawn

    def normal(self, num: int) -> NDArray[np.float64]:
        """`num` independent standard normals, float64. Source: Box and Muller 1958.

        Raises:
            RuntimeError: drawing ahead has failed; there is no noise, so nothing may be released.
        """
        if self._ahead is not None:
            self._ahead.join()
            self._ahead = None
            if not self._is_drawn:
                self._drawn = np.empty(0)
                raise RuntimeError("noise that was drawn ahead did not come to its end.")
        ready, self._drawn = self._drawn[:num], self._drawn[num:]
        if len(ready) == num:
            return ready
        rest = num - len(ready)
        drawn = np.empty(rest + rest % 2)
        self._normal(drawn)
        return np.concatenate([ready, drawn[:rest]]) if len(ready) else drawn[:rest]

    def _refuse_while_ahead(self) -> None:
        if self._ahead is not None or len(self._drawn):
            raise ValueError("normals are being drawn ahead; take them first.")

    def _draw(self, num: int) -> None:
        self._normal(self._room[: num + num % 2])
        # Left unsaid by an exception, so that what the room held before is never taken for noise.
        self._is_drawn = True

    def _normal(self, drawn: NDArray[np.float64]) -> None:
        """Overwrite an even number of values."""
        for start in range(0, len(drawn), _CHUNK):
            part = drawn[start : start + _CHUNK]
            pairs = len(part) // 2
            uniform, cosine = self._uniform[: 2 * pairs], self._cosine[:pairs]
            self._fill(uniform)
            # In place, and with torch's cosine: numpy's takes four times as long in float64.
            radius, angle = uniform[:pairs], torch.from_numpy(uniform[pairs:])
            np.log1p(np.negative(radius, out=radius), out=radius)
            np.sqrt(np.multiply(radius, -2.0, out=radius), out=radius)
            torch.cos(angle.mul_(2.0 * np.pi), out=cosine)
            np.multiply(radius, cosine.numpy(), out=part[:pairs])
            np.multiply(radius, torch.sin(angle, out=cosine).numpy(), out=part[pairs:])

    def _fill(self, part: NDArray[np.float64]) -> None:
        """Overwrite at most `_CHUNK` numbers with uniform ones."""
        # CTR of zeros is the bare keystream; the cipher asks for room for one block more.
        self._keystream.update_into(_ZEROS[: 8 * len(part)], self._bytes)
        words = self._words[: len(part)]
        np.right_shift(words, np.uint64(11), out=words)
        np.multiply(words, 2.0**-53, out=part)
