"""Who was busy when: spans of simulation, generation and training, and what they say about overlap.

Recording a span appends one tuple (under a microsecond, from any thread). Everything else is computed when asked for:
utilisation, overlap efficiency, a trace for Perfetto (ui.perfetto.dev) or chrome://tracing, and a picture.
Idle time is not recorded: it is what lies between the spans.
"""

import gzip
import json
import time
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

SpanKind = Literal["simulate", "render", "reset", "preprocess", "policy", "train", "push"]

SPAN_COLOURS: dict[str, str] = {
    "simulate": "#4e79a7",
    "render": "#76b7b2",
    "reset": "#a0cbe8",
    "preprocess": "#edc948",
    "policy": "#f28e2b",
    "train": "#e15759",
    "push": "#b07aa1",
}
"""Read on white and on dark paper, and told apart by readers with red-green blindness."""


class Span(NamedTuple):
    """One stretch of work of one resource; times are `time.perf_counter()` seconds."""

    resource: str
    """Who worked: "policy", "trainer", or a worker ("env 0", ...)."""
    kind: SpanKind
    start: float
    end: float
    rows: int
    """Slots, rows or episodes that the work was for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TimelineMetrics:
    """What a stretch of time says."""

    wall_s: float
    busy_s: dict[str, float]
    """Seconds of work per resource."""

    @property
    def utilisation(self) -> dict[str, float]:
        """Fraction of the time in which each resource worked."""
        return {resource: busy / self.wall_s if self.wall_s > 0 else 0.0 for resource, busy in self.busy_s.items()}

    @property
    def bound_s(self) -> float:
        """No schedule can be faster than its busiest resource."""
        return max(self.busy_s.values(), default=0.0)

    @property
    def overlap_efficiency(self) -> float:
        """bound / actual: 1 when the busiest resource never waited."""
        return self.bound_s / self.wall_s if self.wall_s > 0 else 0.0


class Timeline:
    """Spans of a run, newest kept.

    Args:
        max_spans: Older spans are dropped beyond this many, so that a long run's memory stays flat.
    """

    def __init__(self, *, max_spans: int = 200_000) -> None:
        self._spans: deque[Span] = deque(maxlen=max_spans)
        self._origin = time.perf_counter()

    def add(self, resource: str, kind: SpanKind, start: float, end: float, *, rows: int = 0) -> None:
        """Record work done between two `time.perf_counter()` readings."""
        self._spans.append(Span(resource, kind, start, end, rows))

    @contextmanager
    def span(self, resource: str, kind: SpanKind, *, rows: int = 0) -> Iterator[None]:
        """Record the time that the block takes."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(resource, kind, start, time.perf_counter(), rows=rows)

    def spans(self, *, since: float = float("-inf"), until: float = float("inf")) -> list[Span]:
        """Spans that overlap a window of `time.perf_counter()` readings, cut to it, by start."""
        recorded = self._spans.copy()  # one C call: safe against threads that append meanwhile
        cut = (
            span._replace(start=max(span.start, since), end=min(span.end, until))
            for span in recorded
            if span.end > since and span.start < until
        )
        return sorted(cut, key=lambda span: span.start)

    def metrics(
        self, *, since: float | None = None, until: float | None = None, resources: Sequence[str] | None = None
    ) -> TimelineMetrics:
        """Busy times in a window (default: from the first span to the last).

        Nested or overlapping spans of one resource count once.

        Args:
            since: Start of the window, a `time.perf_counter()` reading.
            until: Its end.
            resources: Only these; None takes all that worked.
        """
        spans = self.spans(since=float("-inf") if since is None else since, until=float("inf") if until is None else until)
        if resources is not None:
            spans = [span for span in spans if span.resource in resources]
        busy: dict[str, float] = {resource: 0.0 for resource in resources or ()}
        reached: dict[str, float] = {}
        for span in spans:
            begin = max(span.start, reached.get(span.resource, float("-inf")))
            if span.end > begin:
                busy[span.resource] = busy.get(span.resource, 0.0) + span.end - begin
                reached[span.resource] = span.end
        first = since if since is not None else min((span.start for span in spans), default=0.0)
        last = until if until is not None else max((span.end for span in spans), default=0.0)
        return TimelineMetrics(wall_s=max(0.0, last - first), busy_s=dict(sorted(busy.items())))

    def write_chrome_trace(self, path: Path, *, since: float = float("-inf")) -> None:
        """Write a trace that Perfetto and chrome://tracing open; compressed if the name ends in .gz."""
        spans = self.spans(since=since)
        rows = {resource: index for index, resource in enumerate(ordered_resources(spans))}
        events: list[dict[str, object]] = [
            {"ph": "M", "pid": 0, "tid": row, "name": "thread_name", "args": {"name": resource}}
            for resource, row in rows.items()
        ]
        events += [
            {
                "ph": "X",
                "pid": 0,
                "tid": rows[span.resource],
                "name": span.kind,
                "ts": round((span.start - self._origin) * 1e6, 3),
                "dur": round((span.end - span.start) * 1e6, 3),
                "args": {"rows": span.rows},
            }
            for span in spans
        ]
        text = json.dumps({"traceEvents": events, "displayTimeUnit": "ms"})
        with _replacing(path) as temporary:
            temporary.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())

    def plot(self, path: Path, *, since: float | None = None, until: float | None = None, title: str = "") -> None:
        """Draw the window as a Gantt chart (PNG or SVG by the name), one lane per resource with its utilisation."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # no pyplot: no global state, works in threads
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch

        spans = self.spans(since=float("-inf") if since is None else since, until=float("inf") if until is None else until)
        metrics = self.metrics(since=since, until=until)
        lanes = ordered_resources(spans)
        origin = since if since is not None else min((span.start for span in spans), default=0.0)
        figure = Figure(figsize=(12, 1.4 + 0.42 * max(1, len(lanes))), dpi=120, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        for row, resource in enumerate(lanes):
            own = [span for span in spans if span.resource == resource]
            axes.broken_barh(
                [(span.start - origin, span.end - span.start) for span in own],
                (row - 0.4, 0.8),
                facecolors=[SPAN_COLOURS[span.kind] for span in own],
                edgecolor="white",
                linewidth=0.3,
            )
        axes.set_yticks(range(len(lanes)), [f"{name}  {metrics.utilisation.get(name, 0.0):4.0%}" for name in lanes])
        axes.set_ylim(len(lanes) - 0.4, -0.6)
        axes.set_xlim(0, max(metrics.wall_s, 1e-9))
        axes.set_xlabel("seconds")
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(title, loc="left", fontsize=11)
        kinds = [kind for kind in SPAN_COLOURS if any(span.kind == kind for span in spans)]
        figure.legend(
            handles=[Patch(color=SPAN_COLOURS[kind], label=kind) for kind in kinds],
            loc="outside lower left",
            ncols=max(1, len(kinds)),
            frameon=False,
        )
        with _replacing(path) as temporary:
            figure.savefig(temporary, format=path.suffix.removeprefix("."))


def read_chrome_trace(path: Path) -> list[Span]:
    """Spans that `write_chrome_trace` wrote, by start; times are seconds since the timeline's origin.

    Raises:
        ValueError: The file is damaged, or is no trace of ours.
    """
    try:
        data = path.read_bytes()
        events = json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)["traceEvents"]
        names = {event["tid"]: event["args"]["name"] for event in events if event["ph"] == "M"}
        return [
            Span(
                names[event["tid"]], event["name"], event["ts"] / 1e6, (event["ts"] + event["dur"]) / 1e6, event["args"]["rows"]
            )
            for event in events
            if event["ph"] == "X"
        ]
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a trace that can be read ({error!r}): delete it") from error


def ordered_resources(spans: Sequence[Span]) -> list[str]:
    """Trainer and policy on top, then workers by number."""

    def rank(resource: str) -> tuple[int, int, str]:
        name, _, number = resource.rpartition(" ")
        fixed = {"trainer": 0, "policy": 1}
        return fixed.get(resource, 2), int(number) if name and number.isdigit() else -1, resource

    return sorted({span.resource for span in spans}, key=rank)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A file to write that takes the place of `path` when it is complete: who looks meanwhile never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    yield temporary
    temporary.replace(path)
