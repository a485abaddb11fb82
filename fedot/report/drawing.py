"""The look of every picture: colours, type and SVG text that fits into a page.

Design note: figures are built without pyplot, so no display and no global figure list is needed.
Colours are those of Okabe and Ito, which colour-blind readers can tell apart; in the SVG each is
a CSS variable with itself as fallback, so that a page can turn dark and the file still stands
alone. Text stays text: it can be searched and takes the page's font. The same data give the same
bytes (fixed salt for ids, no date).
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = [
    "BAR",
    "EMULATOR",
    "INK",
    "MUTED",
    "PAPER",
    "PLUG_IN",
    "PROXY",
    "drawn_alike",
    "new_figure",
    "to_svg",
    "trim",
]

INK = "#24292f"
MUTED = "#6a737d"
GRID = "#e3e6ea"
PAPER = "#fffffe"  # not quite white, so that it is nobody else's colour in the SVG
BAR = "#c9d1d9"
PLUG_IN = "#0072b2"
EMULATOR = "#d55e00"
PROXY = "#009e73"

_VARIABLES = {
    INK: "--plot-ink",
    MUTED: "--plot-muted",
    GRID: "--plot-grid",
    PAPER: "--plot-paper",
    BAR: "--plot-bar",
    PLUG_IN: "--plot-plug-in",
    EMULATOR: "--plot-emulator",
    PROXY: "--plot-proxy",
}

# matplotlib's own metadata names its home page; its style rule would reach out into the page.
_CLUTTER = re.compile(
    r"<metadata>.*?</metadata>|<title>.*?</title>|<defs>\s*<style.*?</defs>", re.S
)
_WIDTH_PT = 420.0
_POINTS_PER_INCH = 72.0
_RC = {
    "axes.edgecolor": GRID,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 10.5,
    "axes.spines.bottom": False,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.axisbelow": True,
    "figure.facecolor": "none",
    "font.size": 10.5,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "legend.fontsize": 10.5,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.8,
    "svg.fonttype": "none",
    "svg.hashsalt": "fedot",
    "text.color": INK,
    "text.parse_math": False,  # a client may be called $x_1$
    "xtick.color": MUTED,
    "xtick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
}


@contextmanager
def drawn_alike() -> Iterator[None]:
    """Draw with our settings, whatever the user's own matplotlib settings are."""
    with style.context(["default", _RC]), warnings.catch_warnings():
        # A client's name in a script that the measuring font lacks still shows in a browser.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def new_figure(height_pt: float) -> tuple[Figure, Axes]:
    """An empty figure of the common width."""
    size = (_WIDTH_PT / _POINTS_PER_INCH, height_pt / _POINTS_PER_INCH)
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.add_subplot()


def trim(axes: Axes, *, across: str) -> None:
    """Leave only the grid lines that help to read values along `across` ("x" or "y")."""
    axes.grid(visible=False, axis="y" if across == "x" else "x")


def to_svg(figure: Figure, name: str, title: str) -> str:
    """The figure as one `<svg>` element.

    Args:
        figure: drawn within `drawn_alike`.
        name: put before every id, so that several pictures fit into one page.
        title: read out by screen readers.
    """
    buffer = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    view_box = re.search(r'viewBox="[^"]*"', text)
    assert view_box, "matplotlib writes a viewBox"
    text = _CLUTTER.sub("", text[text.index(">") + 1 :])
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{name}-", text)
    text = re.sub(r"font-family: [^;\"]*;", "font-family: var(--plot-font, sans-serif);", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable}, {colour})")
    label = escape(title)
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'{view_box[0]} role="img" aria-label="{label}" stroke-linejoin="round">\n'
        f" <title>{label}</title>\n {text.strip()}"
    )
