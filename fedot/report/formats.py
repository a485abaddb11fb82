"""How a number is written for a reader, the same on the console, the page and the pictures.

Design note: epsilon is rounded up, never to the nearest, because a privacy cost that is written
smaller than it was is a false claim. Signs are plain ASCII, so that no terminal can lose one.
"""

from __future__ import annotations

from decimal import ROUND_CEILING, Decimal

__all__ = [
    "counted",
    "epsilon_text",
    "in_bytes",
    "in_seconds",
    "loss_text",
    "percent",
    "printable",
    "shortened",
    "signed",
]

_WORDS = ["no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


def counted(number: int, noun: str) -> str:
    """A count with its noun: "four data owners", "one round", "30 clients"."""
    word = _WORDS[number] if 0 <= number < len(_WORDS) else str(number)
    return f"{word} {noun}" if number == 1 else f"{word} {noun}s"


def percent(ratio: float) -> str:
    """A ratio as a percentage: "82 %", "0.4 %"."""
    value = 100 * ratio
    return f"{value:.0f} %" if abs(value) >= 9.5 or value == 0 else f"{value:.1f} %"


def signed(nats: float) -> str:
    """A difference with its sign: "+0.050"; what rounds to nothing has none."""
    text = f"{nats:+.3f}"
    return "0.000" if float(text) == 0 else text


def loss_text(loss: float, loss_se: float | None) -> str:
    """A loss with its standard error: "2.913 ± 0.010"."""
    if loss_se is None:
        return f"{loss:.3f}"
    error = f"{loss_se:.3f}" if loss_se == 0 or loss_se >= 0.0005 else f"{loss_se:.0e}"
    return f"{loss:.3f} ± {error}"


def epsilon_text(epsilon: float) -> str:
    """An epsilon with two decimals, rounded up."""
    return str(Decimal(repr(epsilon)).quantize(Decimal("0.01"), rounding=ROUND_CEILING))


def in_bytes(count: float) -> str:
    """A number of bytes with its unit, powers of 1000: "210 B", "12.3 kB", "1.04 MB"."""
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} B" if unit == "B" else f"{value:#.3g}".rstrip(".") + f" {unit}"


def in_seconds(seconds: float) -> str:
    """A duration: "8.1 s", "51 s", "2 min 11 s", "1 h 05 min"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def printable(text: str) -> str:
    """`text` without what can move a cursor, end a line or break XML."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}"
                   for c in text).strip()  # fmt: skip


def shortened(text: str, limit: int) -> str:
    """`text` with at most `limit` characters; names differ at their ends, so the middle goes."""
    if len(text) <= limit:
        return text
    tail = (limit - 3) // 2
    return f"{text[: limit - 3 - tail].rstrip()}...{text[-tail:].lstrip()}"
