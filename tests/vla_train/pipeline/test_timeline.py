"""What the timeline says about spans whose answer is known."""

import gzip
import json
import threading
from pathlib import Path

import imageio.v3 as iio
import pytest

from vla_train.pipeline.timeline import Timeline, read_chrome_trace


def test_utilisation_and_overlap_efficiency_of_a_known_schedule() -> None:
    timeline = Timeline()
    for start in range(4):
        timeline.add("env 0", "simulate", start, start + 0.5)
        timeline.add("policy", "policy", start + 0.25, start + 1.0)
    metrics = timeline.metrics(since=0.0, until=4.0)
    assert metrics.busy_s == pytest.approx({"env 0": 2.0, "policy": 3.0})
    assert metrics.utilisation == pytest.approx({"env 0": 0.5, "policy": 0.75})
    assert metrics.bound_s == pytest.approx(3.0)
    assert metrics.overlap_efficiency == pytest.approx(0.75)


def test_nested_and_overlapping_spans_of_one_resource_count_once() -> None:
    timeline = Timeline()
    timeline.add("trainer", "train", 0.0, 2.0)
    timeline.add("trainer", "push", 1.0, 3.0)
    timeline.add("trainer", "push", 1.0, 1.5)
    assert timeline.metrics().busy_s == pytest.approx({"trainer": 3.0})


def test_a_window_cuts_the_spans_at_its_edges() -> None:
    timeline = Timeline()
    timeline.add("env 0", "simulate", 0.0, 10.0)
    timeline.add("env 1", "simulate", 20.0, 30.0)
    metrics = timeline.metrics(since=8.0, until=12.0)
    assert metrics.busy_s == pytest.approx({"env 0": 2.0})
    assert metrics.wall_s == pytest.approx(4.0)
    assert timeline.metrics(since=8.0, until=12.0, resources=["policy"]).busy_s == {"policy": 0.0}


def test_nothing_recorded_is_no_work_and_no_error(tmp_path: Path) -> None:
    timeline = Timeline()
    assert timeline.metrics().overlap_efficiency == 0.0
    timeline.plot(tmp_path / "empty.png")
    timeline.write_chrome_trace(tmp_path / "empty.json")


def test_old_spans_are_dropped_so_that_memory_stays_bounded() -> None:
    timeline = Timeline(max_spans=10)
    for index in range(100):
        timeline.add("env 0", "simulate", index, index + 0.5)
    assert [span.start for span in timeline.spans()] == list(range(90, 100))


def test_spans_of_many_threads_are_all_recorded_while_others_read() -> None:
    timeline = Timeline()

    def work(name: str) -> None:
        for _ in range(500):
            with timeline.span(name, "simulate", rows=3):
                pass

    threads = [threading.Thread(target=work, args=(f"env {index}",)) for index in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(50):
        timeline.metrics()
    for thread in threads:
        thread.join()
    assert len(timeline.spans()) == 2000


@pytest.mark.parametrize("name", ["trace.json", "trace.json.gz"])
def test_the_trace_holds_every_span_with_its_lane_and_duration(name: str, tmp_path: Path) -> None:
    timeline = Timeline()
    timeline.add("policy", "policy", 100.0, 100.5, rows=8)
    timeline.add("env 1", "simulate", 100.1, 100.2)
    timeline.add("env 0", "reset", 100.0, 100.1)
    timeline.write_chrome_trace(tmp_path / name)
    data = (tmp_path / name).read_bytes()
    events = json.loads(gzip.decompress(data) if name.endswith("gz") else data)["traceEvents"]
    lanes = {event["tid"]: event["args"]["name"] for event in events if event["ph"] == "M"}
    assert [lanes[index] for index in sorted(lanes)] == ["policy", "env 0", "env 1"]
    spans = [event for event in events if event["ph"] == "X"]
    assert [(lanes[event["tid"]], event["name"]) for event in spans] == [
        ("policy", "policy"),
        ("env 0", "reset"),
        ("env 1", "simulate"),
    ]
    assert [event["dur"] for event in spans] == pytest.approx([5e5, 1e5, 1e5], rel=1e-3)
    assert spans[0]["args"] == {"rows": 8}


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    timeline = Timeline()
    timeline.add("policy", "policy", 0.0, 0.5)
    timeline.add("env 0", "simulate", 0.2, 1.0)
    timeline.plot(tmp_path / "timeline.png", title="two lanes")
    image = iio.imread(tmp_path / "timeline.png")
    assert image.shape[1] > 1000
    colours = {tuple(pixel) for pixel in image[::4, ::4, :3].reshape(-1, 3)}
    assert {(242, 142, 43), (78, 121, 167)} <= colours  # policy and simulation


@pytest.mark.parametrize("name", ["trace.json", "trace.json.gz"])
def test_a_trace_that_was_written_is_read_back(name: str, tmp_path: Path) -> None:
    timeline = Timeline()
    timeline.add("policy", "policy", 100.0, 100.5, rows=8)
    timeline.add("env 0", "simulate", 100.25, 101.0, rows=4)
    timeline.write_chrome_trace(tmp_path / name)
    policy, simulate = read_chrome_trace(tmp_path / name)
    assert (policy.resource, policy.kind, policy.rows) == ("policy", "policy", 8)
    assert (simulate.resource, simulate.kind, simulate.rows) == ("env 0", "simulate", 4)
    assert policy.end - policy.start == pytest.approx(0.5)
    assert simulate.start - policy.start == pytest.approx(0.25)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        gzip.compress(b"[]"),
        gzip.compress(b"x" * 999)[:20],  # cut short
        b"\x1f\x8b\x08" + bytes(7) + b"\xff" * 30,  # a good head, and then noise
    ],
    ids=["empty", "another JSON", "another JSON, packed", "cut short", "noise"],
)
def test_a_damaged_trace_is_an_error_that_names_the_file(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "trace.json.gz").write_bytes(content)
    with pytest.raises(ValueError, match=r"trace\.json\.gz"):
        read_chrome_trace(tmp_path / "trace.json.gz")


def test_pictures_and_traces_replace_older_ones_as_a_whole(tmp_path: Path) -> None:
    timeline = Timeline()
    timeline.add("policy", "policy", 0.0, 0.5)
    for _ in range(2):
        timeline.plot(tmp_path / "timeline.svg")
        timeline.write_chrome_trace(tmp_path / "timeline.json.gz")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["timeline.json.gz", "timeline.svg"]
    assert (tmp_path / "timeline.svg").read_text().lstrip().startswith("<?xml")
