"""Which of the middle's blocks an emulator keeps."""

from __future__ import annotations

from fedot.errors import ConfigError

__all__ = ["kept_blocks", "uniform_keep"]


def uniform_keep(num_middle: int, num_kept: int) -> tuple[int, ...]:
    """`num_kept` of `num_middle` positions, evenly spread, first and last among them.

    Source: Xiao et al. 2023, arXiv:2302.04870 (uniform layer drop). One is the middle one.
    """
    if not 1 <= num_kept <= num_middle:
        raise ValueError(f"num_kept is {num_kept}; it must be in 1..{num_middle}")
    if num_kept == 1:
        return ((num_middle - 1) // 2,)
    return tuple(round(i * (num_middle - 1) / (num_kept - 1)) for i in range(num_kept))


def kept_blocks(num_blocks: int, num_end_blocks: int, keep_ratio: float) -> tuple[int, ...]:
    """Numbers of the full model's blocks that stay: both ends, and part of the middle.

    Raises:
        ConfigError: there is no middle, or nothing of it would be left.
    """
    num_middle = num_blocks - 2 * num_end_blocks
    if num_middle < 1:
        raise ConfigError(
            f"adapter.num_end_blocks is {num_end_blocks}; of {num_blocks} blocks that leaves no "
            f"middle to compress. It must be below {num_blocks / 2:g}, or set emulator: none."
        )
    num_kept = round(keep_ratio * num_middle)
    if num_kept < 1:
        raise ConfigError(
            f"emulator.keep_ratio is {keep_ratio:g}; of {num_middle} middle blocks that leaves "
            f"none. It must be at least {1 / num_middle:.2f}."
        )
    middle = (num_end_blocks + i for i in uniform_keep(num_middle, num_kept))
    last = range(num_blocks - num_end_blocks, num_blocks)
    return (*range(num_end_blocks), *middle, *last)
