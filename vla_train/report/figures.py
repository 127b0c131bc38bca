"""Curves as SVG that takes its ink from the page: readable on light and on dark paper, and sharp at any size.

Knows numbers, labels and colours; nothing of training.
"""

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

_INK = "#0a0b0c"
"""Drawn in this colour, shown in the page's text colour."""

_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "vla_train",
    "font.size": 8.5,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.linewidth": 0.7,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.formatter.useoffset": False,
    "grid.alpha": 0.15,
    "grid.color": _INK,
    "grid.linewidth": 0.6,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.7,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """Points of one line; a point whose y is NaN is a gap."""

    label: str
    colour: str
    x: Sequence[float]
    y: Sequence[float]
    intervals: Sequence[tuple[float, float]] = ()
    """Lower and upper end at each point; empty for none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One set of axes."""

    title: str
    y_label: str
    """With its unit."""
    curves: Sequence[Curve]
    x_label: str = "iteration"
    x_max: float
    note: str = ""
    """What a reader should know of it, in a sentence."""
    percent: bool = False
    """Whether y is a fraction, shown as percentages from 0 to 100."""
    from_zero: bool = True
    """Whether the axis of y shows 0, so that heights can be compared."""
    limits: Mapping[str, float] = field(default_factory=dict)
    """Named values of y that are drawn as dashed lines."""

    @property
    def measured(self) -> list[Curve]:
        """Curves that have a point."""
        return [curve for curve in self.curves if not all(math.isnan(value) for value in curve.y)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """One stacked bar: what parts of it are, as fractions of the whole."""

    label: str
    parts: Mapping[str, float]


def draw_panel(panel: Panel, *, width: float = 3.7, height: float = 2.1) -> Markup:
    """The panel as an SVG element; sizes in inches set the ratio of text to picture."""
    with matplotlib.rc_context(_SETTINGS):
        figure = _new_figure(width, height)
        axes = figure.subplots()
        for curve in panel.measured:
            marker = {"marker": "o", "markersize": 3.5 if len(curve.x) <= 40 else 0}
            if curve.intervals:
                low, high = zip(*curve.intervals, strict=True)
                axes.fill_between(curve.x, low, high, color=curve.colour, alpha=0.16, linewidth=0)
                axes.vlines(curve.x, low, high, color=curve.colour, alpha=0.55, linewidth=1.2)
            axes.plot(curve.x, curve.y, color=curve.colour, label=curve.label, **marker)  # type: ignore[arg-type]
        for name, value in panel.limits.items():
            axes.axhline(value, color=_INK, alpha=0.5, linewidth=0.9, linestyle=(0, (4, 3)), label=name)
        axes.grid(axis="y")
        axes.set_xlabel(panel.x_label)
        axes.set_ylabel(panel.y_label)
        margin = max(0.5, 0.02 * panel.x_max)
        first = min((x for curve in panel.measured for x in curve.x), default=1)
        axes.set_xlim(min(1, first) - margin, panel.x_max + margin)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
        if panel.percent:
            axes.set_ylim(-0.03, 1.03)
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        else:
            values = [value for curve in panel.measured for value in curve.y if not math.isnan(value)]
            axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=all(float(value).is_integer() for value in values)))
            if panel.from_zero:
                axes.set_ylim(bottom=axes.get_ylim()[0] if min(values) < 0 else 0.0)
            axes.ticklabel_format(axis="y", scilimits=(-3, 4), useMathText=True)
        if len(panel.measured) + len(panel.limits) > 1:
            figure.legend(loc="outside upper left", ncols=4, columnspacing=1.2, handlelength=1.4, borderpad=0)
        return _to_svg(figure, panel.title)


def draw_bars(bars: Sequence[Bar], colours: Mapping[str, str], *, title: str, width: float = 11.5) -> Markup:
    """Stacked horizontal bars, each from 0 to 100 %, as an SVG element; parts without a colour are drawn faintly in ink."""
    with matplotlib.rc_context(_SETTINGS):
        figure = _new_figure(width, 0.9 + 0.34 * len(bars))
        axes = figure.subplots()
        names = list(dict.fromkeys(name for bar in bars for name in bar.parts))
        left = [0.0] * len(bars)
        for name in sorted(names, key=lambda name: list(colours).index(name) if name in colours else len(colours)):
            values = [bar.parts.get(name, 0.0) for bar in bars]
            style = {"color": colours[name]} if name in colours else {"color": _INK, "alpha": 0.12}
            axes.barh(range(len(bars)), values, left=left, height=0.72, label=name, **style)  # type: ignore[arg-type]
            for row, value in enumerate(values):
                if value >= 0.04:
                    ink = "#101010" if name in colours else _INK
                    axes.text(left[row] + value / 2, row, f"{value:.0%}", ha="center", va="center", color=ink, fontsize=8)
            left = [begin + value for begin, value in zip(left, values, strict=True)]
        axes.set_yticks(range(len(bars)), [bar.label for bar in bars])
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(bars) - 0.5, -0.5)
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.spines["left"].set_visible(False)
        figure.legend(loc="outside upper left", ncols=8, columnspacing=1.2, handlelength=1.0, borderpad=0)
        return _to_svg(figure, title)


def _new_figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure


def _to_svg(figure: Figure, title: str) -> Markup:
    """The figure as an element of a page: no declarations, no names that clash, ink as the text around it."""
    file = io.StringIO()
    metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(file, format="svg", transparent=True, metadata=metadata)
    document = file.getvalue()
    element = document[document.index("<svg") :]
    element = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", element, flags=re.DOTALL)
    element = re.sub(r'<g id="[^"]*">', "<g>", element)
    element = re.sub(r" font-family:[^;\"]*;", "", element)
    element = element.replace("xlink:href", "href").replace(_INK, "currentColor")
    view_box = re.search(r'viewBox="[^"]*"', element)
    assert view_box is not None
    head = f'<svg {view_box.group()} role="img" aria-label="{Markup.escape(title)}">'
    return Markup(head + element[element.index(">") + 1 :])
