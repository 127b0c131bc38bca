"""Where the time went: each moment of a stretch belongs to what was being done in it, so that the parts add up to the whole.

Where several things are done at once, the moment is shared equally between them, however many workers do each.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

from vla_train.pipeline.timeline import Span, SpanKind

Activity = Literal["simulate", "draw", "policy", "train", "idle"]

_ACTIVITIES: Mapping[SpanKind, Activity] = {
    "simulate": "simulate",
    "reset": "simulate",
    "render": "draw",
    "preprocess": "policy",
    "policy": "policy",
    "train": "train",
    "push": "train",
}


def wall_clock_shares(spans: Sequence[Span], *, since: float, until: float) -> dict[Activity, float]:
    """Seconds of a stretch by activity; they add up to `until - since`.

    Args:
        spans: What was done, in any order. Of spans of one resource that lie in each other the innermost counts: a worker that
            draws while it simulates draws.
        since: `time.perf_counter()` reading at which the stretch begins.
        until: At which it ends.
    """
    ordered = sorted(spans, key=lambda span: (span.start, -span.end))  # inner ones behind those that they lie in
    cut = [span._replace(start=max(span.start, since), end=min(span.end, until)) for span in ordered]
    cut = [span for span in cut if span.start < span.end]
    edges = [(span.start, True, number) for number, span in enumerate(cut)]
    edges += [(span.end, False, number) for number, span in enumerate(cut)]
    shares: dict[Activity, float] = dict.fromkeys(("simulate", "draw", "policy", "train", "idle"), 0.0)
    running: dict[str, list[Span]] = {span.resource: [] for span in cut}
    reached = since
    for moment, begins, number in sorted(edges):
        doing = {_ACTIVITIES[own[-1].kind] for own in running.values() if own} or {"idle"}
        for activity in doing:
            shares[activity] += (moment - reached) / len(doing)
        reached = moment
        own = running[cut[number].resource]
        if begins:
            own.append(cut[number])
        else:
            own.remove(cut[number])
    shares["idle"] += until - reached
    return shares
