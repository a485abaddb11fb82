"""The gradients of B rows over P values: small ones formed in flat buffers, large ones not.

Design note: a matrix of M * N values is kept for every row if that takes little more memory than
its outer products (T * (M + N) values), because then it costs no operation that training without
DP does not need. Otherwise its norm comes from two T x T Gram matrices, T * T * (M + N) operations
a row. The boundary at which a Gram matrix begins to pay was measured with `make bench-dp`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedot.privacy.layers import Outer

__all__ = ["Rows"]

# Vectors and matrices that are thin (LoRA) or small share buffers of at most so many values a row.
# A larger matrix has its own. A buffer exists from the moment in the backward pass at which it is
# needed, when activations of the same size have gone.
_THIN, _SMALL, _SHARED = 128, 2**14, 2**18
# Forming M * N values a row is worth it up to so many times the T * (M + N) values of the factors.
_WORTH_FORMING = 1.5


@dataclass(slots=True)
class _Buffer:
    """Gradients of some parameters, (B, size), which are `start..start + size` of the P values."""

    start: int
    size: int
    is_shared: bool
    formed: Tensor | None = None


@dataclass(frozen=True, slots=True)
class _Place:
    """A parameter's values: `offset..` in its buffer, `start..` of the P values."""

    buffer: _Buffer
    offset: int
    shape: torch.Size

    @property
    def start(self) -> int:
        return self.buffer.start + self.offset

    @property
    def size(self) -> int:
        return self.shape.numel()


class Rows:
    """Collects what one backward pass finds, parameter by parameter, in any order."""

    def __init__(self, parameters: Sequence[nn.Parameter]):
        self._like = parameters[0]
        self._places: dict[int, _Place] = {}
        self._buffers: list[_Buffer] = []
        # Small ones first, so that each buffer's values lie together among the P.
        for parameter in sorted(parameters, key=_is_large):
            is_shared, size = not _is_large(parameter), parameter.numel()
            last = self._buffers[-1] if self._buffers else None
            if last is None or not is_shared or last.size + size > _SHARED:
                start = last.start + last.size if last else 0
                self._buffers.append(_Buffer(start, 0, is_shared))
            buffer = self._buffers[-1]
            self._places[id(parameter)] = _Place(buffer, buffer.size, parameter.shape)
            buffer.size += size
        self._order = [self._places[id(p)] for p in parameters]
        self._seen: set[int] = set()
        self._outers: dict[int, list[Outer]] = {}

    def add(self, parameter: nn.Parameter, gradient: Outer | Tensor) -> None:
        """Take a parameter's gradients from one call of its layer; several calls add up."""
        key, is_first = id(parameter), id(parameter) not in self._seen
        place = self._places[key]
        self._seen.add(key)
        if not isinstance(gradient, Outer):
            slot = self._slot(place, gradient)
            slot.copy_(gradient) if is_first else slot.add_(gradient)
        elif key in self._outers or (is_first and _stays_outer(gradient, place)):
            self._outers.setdefault(key, []).append(gradient)
        else:
            gradient.write(self._slot(place, gradient.right), is_first)

    @property
    def is_empty(self) -> bool:
        """Has nothing been added?"""
        return not self._seen

    def unseen(self) -> set[int]:
        """Ids of parameters that no gradient reached."""
        return self._places.keys() - self._seen

    def square_norms(self) -> Tensor:
        """Squared L2 norm of every row, shape (B,)."""
        grams: dict[object, Tensor] = {}
        parts = [torch.linalg.vector_norm(f, dim=1).square() for f in self._formed()]
        parts += [_square_norms(outers, grams) for outers in self._outers.values()]
        return torch.stack(parts).sum(dim=0)

    def weighted_sum(self, weights: Tensor) -> Tensor:
        """Sum over rows of weight times gradient, shape (P,)."""
        total = self.empty()
        for buffer in self._buffers:
            if buffer.formed is not None:
                part = total[buffer.start : buffer.start + buffer.size]
                torch.mv(buffer.formed.t(), weights, out=part)
        weighted = _Weighted(weights)
        for key, outers in self._outers.items():
            place = self._places[key]
            part = total[place.start : place.start + place.size].view(place.shape)
            for number, outer in enumerate(outers):
                outer.write_weighted_sum(weighted, part, is_first=number == 0)
        return total

    def erase(self, rows: Tensor) -> None:
        """Set some rows, a mask of shape (B,), to zero."""
        if not rows.any():
            return
        for formed in self._formed():
            formed[rows] = 0.0
        for key, outers in self._outers.items():
            self._outers[key] = [outer.without(rows) for outer in outers]

    def empty(self) -> Tensor:
        """P values, undefined."""
        size = sum(buffer.size for buffer in self._buffers)
        dtype = torch.promote_types(self._like.dtype, torch.float32)
        return torch.empty(size, dtype=dtype, device=self._like.device)

    def split(self, values: Tensor) -> list[Tensor]:
        """Views on P values in the parameters' shapes and order."""
        return [values[p.start : p.start + p.size].view(p.shape) for p in self._order]

    def clear(self) -> None:
        """Forget everything."""
        self._seen.clear()
        self._outers.clear()
        for buffer in self._buffers:
            buffer.formed = None

    def _formed(self) -> list[Tensor]:
        return [b.formed for b in self._buffers if b.formed is not None]

    def _slot(self, place: _Place, like: Tensor) -> Tensor:
        """A parameter's part of its buffer, (B, *shape); the buffer is made when first needed."""
        buffer = place.buffer
        if buffer.formed is None:
            buffer.formed = like.new_empty(len(like), buffer.size)
        flat = buffer.formed[:, place.offset : place.offset + place.size]
        return flat.view(len(flat), *place.shape)


def _is_large(parameter: nn.Parameter) -> bool:
    return parameter.dim() > 1 and min(parameter.shape) > _THIN and parameter.numel() > _SMALL


def _stays_outer(gradient: Outer, place: _Place) -> bool:
    if place.buffer.is_shared:
        return False
    num_tokens, width = gradient.right.shape[1:]
    factors = num_tokens * (place.size // width + width)
    return gradient.is_one_hot or place.size > _WORTH_FORMING * factors


def _square_norms(outers: Sequence[Outer], grams: dict[object, Tensor]) -> Tensor:
    """|sum_t l_t x r_t|^2 = sum_st <l_s, l_t><r_s, r_t>, over all calls' tokens, shape (B,).

    Guarantees:
        Never less than the true value, but for one too small to matter (below 1e-30). Where terms
        cancel, float32 loses them; where products are too small for it, it makes them zero, though
        the other factor may be huge. Both are added as an allowance, so that an example is rather
        clipped too much than too little.
    """
    total = left_size = right_size = size = torch.zeros(())
    for i, first in enumerate(outers):
        for second in outers[: i + 1]:
            left = _gram(first.left, second.left, grams)
            right = _gram(first.right, second.right, grams)
            term = (left * right).sum(dim=(1, 2))
            total = total + (term if first is second else 2 * term)
            if first is second:
                lefts = left.diagonal(dim1=1, dim2=2).to(right.dtype).sqrt()
                rights = right.diagonal(dim1=1, dim2=2).sqrt()
                size = size + (lefts * rights).sum(dim=1)
                left_size = left_size + lefts.sum(dim=1)
                right_size = right_size + rights.sum(dim=1)
    exact = torch.finfo(total.dtype)
    width = sum(outers[0].widths)
    lost = exact.tiny * width * (left_size.square() + right_size.square())
    return total + exact.eps * size.square() + lost


def _gram(a: Tensor, b: Tensor, grams: dict[object, Tensor]) -> Tensor:
    """Inner products of all tokens of `a` with all of `b`, (B, T, T'); layers share inputs."""
    key = (_identity(a), _identity(b))
    if key not in grams:
        grams[key] = _inner_products(a, b)
    return grams[key]


def _identity(x: Tensor) -> tuple[object, ...]:
    """Equal for two views of the same values, as long as both are kept."""
    return x.data_ptr(), x.shape, x.stride()


class _Weighted:
    """Multiplies rows by their weights; layers that share an input come one after the other."""

    def __init__(self, weights: Tensor):
        self._weights = weights
        self._last: tuple[object, ...] = ()
        self._found = weights

    def __call__(self, x: Tensor) -> Tensor:
        if self._last != _identity(x):
            self._last, self._found = _identity(x), x * self._weights[:, None, None]
        return self._found


def _inner_products(a: Tensor, b: Tensor) -> Tensor:
    a_is_one_hot, b_is_one_hot = a.dim() == 2, b.dim() == 2
    if a_is_one_hot and b_is_one_hot:
        return a[:, :, None] == b[:, None, :]
    if a_is_one_hot:
        return _inner_products(b, a).transpose(1, 2)
    if b_is_one_hot:
        return a.gather(2, b[:, None, :].expand(-1, a.shape[1], -1))
    return torch.bmm(a, b.transpose(1, 2))
