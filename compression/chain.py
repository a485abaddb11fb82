"""Which operators there are, what they take, and in which order they make a chain.

A chain is planned once, by `plan`; what it returns has every parameter filled in and can be
compared, hashed and written as one line of text. That text travels in a payload's manifest:

    top_k(keep_ratio=0.1)+int8(block=256,min_step=0.032,rounding=nearest)+deflate(level=1)

Design note: a receiver never parses the text of a payload. It writes the chains that it allows as
text and looks for an equal one, so a hostile manifest meets a comparison and no parser. `chain_of`
reads what a person wrote in a config.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import pairwise

from fedot.errors import ConfigError

__all__ = ["Chain", "OPERATORS", "Stage", "Step", "chain_of", "plan", "short_text", "step_of"]
__all__ += ["text_of"]

Value = int | float | str


@dataclass(frozen=True, slots=True)
class Step:
    """One operator of a chain with its parameters; `plan` fills in those left out."""

    name: str
    params: Mapping[str, Value] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """As it stands in a manifest: parameters by name."""
        if not self.params:
            return self.name
        inner = ",".join(f"{key}={self.params[key]}" for key in sorted(self.params))
        return f"{self.name}({inner})"

    def __hash__(self) -> int:
        return hash(self.text)


Chain = tuple[Step, ...]


class Stage(IntEnum):
    """Where in a chain an operator stands; stages go upwards, each at most once."""

    SPARSIFY = 0
    VALUES = 1
    PLANES = 2
    ENTROPY = 3


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole-number parameter; the bounds belong to it."""

    default: int
    least: int
    most: int
    power_of_two: bool = False

    def check(self, value: Value) -> str | None:
        """What the value must be, or None when it is that."""
        fits = type(value) is int and self.least <= value <= self.most
        if fits and not (self.power_of_two and int(value) & (int(value) - 1)):
            return None
        kind = "a power of two" if self.power_of_two else "a whole number"
        return f"{kind} from {self.least} to {self.most}"


@dataclass(frozen=True, slots=True)
class Fraction:
    """A parameter above 0, or from 0, up to a bound that is at most 1."""

    default: float
    most: float = 1.0
    from_zero: bool = False

    def check(self, value: Value) -> str | None:
        """What the value must be, or None when it is that."""
        number = value if type(value) in (float, int) else -1
        fits = 0 < float(number) <= self.most or (self.from_zero and number == 0)
        return (
            None
            if fits
            else f"{'at least' if self.from_zero else 'above'} 0 and at most {self.most:g}"
        )


@dataclass(frozen=True, slots=True)
class Choice:
    """A parameter that is one of a few words."""

    default: str
    words: tuple[str, ...]

    def check(self, value: Value) -> str | None:
        """What the value must be, or None when it is that."""
        return None if value in self.words else " or ".join(self.words)


@dataclass(frozen=True, slots=True)
class Operator:
    """A row of the table of operators."""

    stage: Stage
    params: Mapping[str, Whole | Fraction | Choice] = field(default_factory=dict)


_BLOCK = Whole(256, 64, 4096)

OPERATORS: Mapping[str, Operator] = {
    "top_k": Operator(Stage.SPARSIFY, {"keep_ratio": Fraction(0.1)}),
    "float32": Operator(Stage.VALUES),
    "bfloat16": Operator(Stage.VALUES),
    "float16": Operator(Stage.VALUES, {"block": _BLOCK}),
    "int8": Operator(
        Stage.VALUES,
        {
            "block": _BLOCK,
            "min_step": Fraction(0.032, most=0.1, from_zero=True),
            "rounding": Choice("nearest", ("nearest", "stochastic")),
        },
    ),
    "nf4": Operator(Stage.VALUES, {"block": Whole(64, 64, 4096, power_of_two=True)}),
    "planes": Operator(Stage.PLANES),
    "deflate": Operator(Stage.ENTROPY, {"level": Whole(1, 1, 3)}),
    "gzip": Operator(Stage.ENTROPY, {"level": Whole(1, 1, 3)}),
    "zstd": Operator(Stage.ENTROPY, {"level": Whole(1, 1, 19)}),
}

_NARROW = ("int8", "nf4")

_STEP = re.compile(r"(\w+)(?:\(([^()]*)\))?")
_PARAMETER = re.compile(r"(\w+)=([\w.+-]+)")


def plan(*steps: Step) -> Chain:
    """Check operators, parameters and order; fill in what was left out.

    A chain is: `top_k`, if wanted; exactly one of float32, bfloat16, float16, int8, nf4; `planes`,
    if wanted; at most one of deflate, gzip, zstd.

    Raises:
        ConfigError: names the first step that is not allowed where it stands, and why.
    """
    chain = tuple(_filled_in(step) for step in steps)
    names = [step.name for step in chain]
    if step_of(chain, Stage.VALUES) is None:
        raise ConfigError(
            f"the chain {text_of(chain) or '(empty)'} does not say how values travel; it must "
            "have one of float32, bfloat16, float16, int8, nf4."
        )
    for left, right in pairwise(names):
        before, after = OPERATORS[left].stage, OPERATORS[right].stage
        if before == after:
            raise ConfigError(
                f"the chain has both {left} and {right}, which do the same work; keep one of them."
            )
        if before > after:
            raise ConfigError(
                f"{right} stands after {left}; the order is top_k, then values (float32, bfloat16, "
                "float16, int8 or nf4), then planes, then deflate, gzip or zstd."
            )
    if "planes" in names:
        _check_planes(names)
    return chain


def step_of(chain: Chain, stage: Stage) -> Step | None:
    """The step of a planned chain at that stage."""
    return next((step for step in chain if OPERATORS[step.name].stage == stage), None)


def text_of(chain: Chain) -> str:
    """A chain as one line: equal chains have equal text."""
    return "+".join(step.text for step in chain)


def short_text(chain: Chain) -> str:
    """A planned chain as a person would write it: parameters at their default are left out."""
    return text_of(tuple(_without_defaults(step) for step in chain))


def chain_of(text: str) -> Chain:
    """Plan the chain that a text names: `top_k(keep_ratio=0.1)+int8+deflate`.

    Args:
        text: steps joined by `+`; parameters that are left out have their default.

    Raises:
        ConfigError: the text cannot be read, or names no chain that `plan` allows.
    """
    return plan(*(_step_from(part) for part in _parts(text)))


def _parts(text: str) -> list[str]:
    """What stands between the `+` that are in no parentheses."""
    return [part.strip() for part in re.split(r"\+(?![^()]*\))", text)]


def _step_from(text: str) -> Step:
    found = _STEP.fullmatch(text)
    pairs = [part.strip() for part in found[2].split(",")] if found and found[2] else []
    matches = [_PARAMETER.fullmatch(pair) for pair in pairs]
    params = {match[1]: _value(match[2]) for match in matches if match}
    if not found or len(params) < len(pairs):
        raise ConfigError(
            f"{text!r} is no step of a chain; a step reads name or name(key=value,...), and steps "
            "are joined by +, for example top_k(keep_ratio=0.1)+int8+deflate."
        )
    return Step(found[1], params)


def _value(text: str) -> Value:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _without_defaults(step: Step) -> Step:
    known = OPERATORS[step.name].params
    return Step(step.name, {k: v for k, v in step.params.items() if v != known[k].default})


def _filled_in(step: Step) -> Step:
    operator = OPERATORS.get(step.name)
    if operator is None:
        raise ConfigError(
            f"there is no operator {step.name!r}; it must be one of {', '.join(OPERATORS)}."
        )
    for key, value in step.params.items():
        if key not in operator.params:
            known = ", ".join(operator.params) or "none"
            raise ConfigError(f"{step.name} has no parameter {key!r}; it takes: {known}.")
        must_be = operator.params[key].check(value)
        if must_be:
            raise ConfigError(f"{step.name}.{key} is {value!r}; it must be {must_be}.")
    full = {key: step.params.get(key, kind.default) for key, kind in operator.params.items()}
    ratios = {key for key, kind in operator.params.items() if isinstance(kind, Fraction)}
    return Step(step.name, {k: float(v) if k in ratios else v for k, v in full.items()})


def _check_planes(names: list[str]) -> None:
    narrow = next((name for name in names if name in _NARROW), None)
    if narrow:
        raise ConfigError(
            f"planes splits values into their bytes, and a value of {narrow} has one byte at most; "
            "leave planes out."
        )
    if OPERATORS[names[-1]].stage != Stage.ENTROPY:
        raise ConfigError(
            "planes only sorts bytes so that they compress better; it needs deflate, gzip or zstd "
            "after it. Add one, or leave planes out."
        )
