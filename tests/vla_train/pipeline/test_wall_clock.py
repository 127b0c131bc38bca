"""Where the time went, of spans whose answer is known, and beside a reference that looks at every moment."""

import numpy as np
import pytest

from vla_train.pipeline.timeline import Span
from vla_train.pipeline.wall_clock import wall_clock_shares

_KINDS = ("simulate", "render", "reset", "preprocess", "policy", "train", "push")


def test_a_moment_belongs_to_what_is_done_in_it_however_many_do_it() -> None:
    spans = [
        Span("env 0", "simulate", 0.0, 4.0, 1),
        Span("env 1", "simulate", 0.0, 2.0, 1),
        Span("env 0", "render", 3.0, 4.0, 1),
        Span("policy", "policy", 1.0, 3.0, 1),
        Span("trainer", "train", 6.0, 99.0, 1),
    ]
    shares = wall_clock_shares(spans, since=0.0, until=10.0)
    assert shares == pytest.approx({"simulate": 2.0, "policy": 1.0, "draw": 1.0, "idle": 2.0, "train": 4.0})


def test_nothing_done_is_idle() -> None:
    assert wall_clock_shares([], since=2.0, until=5.0)["idle"] == 3.0


@pytest.mark.parametrize("seed", range(5))
def test_the_shares_are_those_of_a_look_at_every_moment(seed: int) -> None:
    rng = np.random.default_rng(seed)
    spans = []
    for number in range(40):  # of one resource they lie in each other or apart, as what calls itself does
        start, resource = 8 * (number // 4), f"env {number % 4}"
        outer, inner = sorted(rng.choice(9, 2, replace=False)), sorted(rng.choice(9, 2, replace=False))
        spans.append(Span(resource, rng.choice(_KINDS), start + outer[0], start + outer[1], 1))
        nested = max(inner[0], outer[0]), min(inner[1], outer[1])
        if nested[0] < nested[1] and nested != tuple(outer):
            spans.append(Span(resource, rng.choice(_KINDS), start + nested[0], start + nested[1], 1))
    since, until = 3, 77
    names = {"render": "draw", "reset": "simulate", "preprocess": "policy", "push": "train"}
    expected = dict.fromkeys(("simulate", "draw", "policy", "train", "idle"), 0.0)
    for moment in range(since, until):
        innermost = {span.resource: span.kind for span in spans if span.start <= moment < span.end}  # the later is the inner
        doing = {names.get(kind, kind) for kind in innermost.values()} or {"idle"}
        for name in doing:
            expected[name] += 1 / len(doing)
    shares = wall_clock_shares([spans[index] for index in rng.permutation(len(spans))], since=since, until=until)
    assert shares == pytest.approx(expected)
    assert sum(shares.values()) == pytest.approx(until - since)
