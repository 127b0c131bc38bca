"""The report shows what was recorded, all of it in one page, for runs of every age."""

import base64
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from played_episodes import INSTRUCTIONS, make_specs, play_with

from vla_train.cli import main
from vla_train.config import EnvConfig, EvalConfig, TrainConfig
from vla_train.config_json import config_to_json
from vla_train.evaluation.evaluate import evaluate, summary
from vla_train.pipeline.timeline import Timeline
from vla_train.report import facts, write_report
from vla_train.report.contents import read_run
from vla_train.report.curves import time_bars
from vla_train.report.videos import choose_videos
from vla_train.run.tracking import METRICS_FILE, RunLog

CONFIG = TrainConfig(
    iterations=4, seed=4711, env=EnvConfig(id="Pendulum-v1", instruction="<script>alert(1)</script>"), eval=EvalConfig(every=2)
)


class Page(HTMLParser):
    """A page's visible text, the places it points to, and the ids that it defines."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.source = path.read_text(encoding="utf-8")
        self.pieces: list[str] = []
        self.tags: list[str] = []
        self.pointers: list[str] = []
        self.ids: set[str] = set()
        self._within: list[str] = []
        self.feed(self.source)
        self.text = re.sub(r"\s+", " ", " ".join(self.pieces))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._within.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster"):
                self.pointers.append(value or "")
            if name == "id":
                self.ids.add(value or "")
            self.pointers += re.findall(r"url\(([^)]*)\)", value or "")

    def handle_endtag(self, tag: str) -> None:
        while self._within and self._within.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "style" in self._within:
            self.pointers += re.findall(r"url\(([^)]*)\)|@import\s+(\S+)", data)
        else:
            self.pieces.append(data)

    def files(self, media_type: str) -> list[bytes]:
        """Embedded files of a type."""
        head = f"data:{media_type};base64,"
        return [base64.b64decode(pointer.removeprefix(head)) for pointer in self.pointers if pointer.startswith(head)]


def report(run: Path, **options: int) -> Page:
    assert write_report(run, **options) == run / "report.html"
    return Page(run / "report.html")


def iteration_values(*, updates: int, success_rate: float = 0.25) -> dict[str, float]:
    trained = {
        "entropy": 1.5,
        "approx_kl": 1e-4,
        "sampling_gap": 2e-3,
        "clip_fraction_low": 0.01,
        "clip_fraction_high": 0.02,
        "grad_norm": 0.4,
        "grad_norm_max": 1.4,
        "learning_rate": 1e-5,
        "chunks_per_s": 24.75,
        "duration_s": 180.0,
    }
    values = {f"update/{name}": value if updates else 0.0 for name, value in trained.items()}
    played = {"groups_kept": updates, "groups_rejected": 3, "decisions_per_s": 88.5, "overlap_efficiency": 0.94}
    played |= {"duration_s": 100.0, "policy_s": 94.0, "env_s": 60.0, "success_rate": success_rate}
    played |= {"worker_restarts": 0, "episodes_requeued": 0}
    return {
        **values,
        "update/updates": updates,
        **{f"rollout/{name}": value for name, value in played.items()},
        "time/iteration_s": 285.0,
    }


def begin(run: Path, config: TrainConfig = CONFIG) -> RunLog:
    run.mkdir(parents=True, exist_ok=True)
    return RunLog(run, trackers=(), config=config_to_json(config))


def evaluate_into(run: Path, name: str, *, successes: int) -> dict[str, object]:
    folder = run / "evaluations" / name
    result = evaluate(
        make_specs(2, 5),
        play_with(lambda spec: spec.task_id == 0 and spec.init_state_id < successes),
        folder=folder,
        videos=1,
        mirrored_images=False,
        temperature=0.0,
    )
    return {**summary(result), "folder": str(folder.relative_to(run))}


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four iterations, the second without signal, evaluations after the second and the fourth, a timeline."""
    run = tmp_path_factory.mktemp("runs") / "finished <run>"
    log = begin(run)
    for iteration in (1, 2, 3, 4):
        log.log("iteration", iteration, iteration_values(updates=0 if iteration == 2 else 4, success_rate=iteration / 8))
        if iteration % 2 == 0:
            log.log("eval", iteration, evaluate_into(run, f"iteration_{iteration:06d}", successes=iteration))
    log.close()
    timeline = Timeline()
    timeline.add("policy", "policy", 0.0, 6.0)
    timeline.add("env 0", "simulate", 6.0, 8.0)
    timeline.add("trainer", "train", 8.0, 10.0)
    timeline.plot(run / "timeline" / "iteration_000004.png")
    timeline.write_chrome_trace(run / "timeline" / "iteration_000004.json.gz")
    return run


@pytest.fixture(scope="module")
def page(finished_run: Path) -> Page:
    return report(finished_run)


def test_time_spent_drawing_inside_a_step_is_counted_once() -> None:
    timeline = Timeline()
    for second in range(10):
        timeline.add("env 0", "simulate", second, second + 0.8)
        timeline.add("env 0", "render", second + 0.3, second + 0.8)
    timeline.add("policy", "policy", 0, 10)
    policy, env = time_bars(timeline.spans())
    assert policy.parts == pytest.approx({"policy": 1.0, "idle": 0.0})
    assert env.parts == pytest.approx({"simulate": 0.3, "render": 0.5, "idle": 0.2})
    assert 1 - env.parts["idle"] == pytest.approx(timeline.metrics().utilisation["env 0"])


def test_the_page_says_what_was_trained_and_how_far_it_is(page: Page) -> None:
    for fact in ("finished <run>", "complete: 4 of 4 iterations", "Pendulum-v1", "64 groups of 8 episodes", "grpo", "4711"):
        assert fact in page.text


def test_the_page_shows_success_per_task_with_intervals(page: Page) -> None:
    for instruction in INSTRUCTIONS:
        assert instruction in page.text
    assert re.search(r"4 / 5 80\.0 % 37\.6 % . 96\.4 %", page.text), "task 0 of the newest evaluation"
    assert re.search(r"0 / 5 0\.0 % 0\.0 % . 43\.4 %", page.text), "task 1 of it"
    assert re.search(r"4 / 10 40\.0 % 16\.8 % . 68\.7 %", page.text), "all tasks of it"
    assert "after iteration 2" in page.text
    assert "Per task, with 95 % intervals" in page.text


def test_the_page_draws_curves_of_training_and_throughput_with_units(page: Page) -> None:
    titles = ["Entropy", "KL divergence", "Clip fractions", "Gradient norm", "Learning rate", "Chunks per second"]
    for text in [*titles, "nats per token", "chunks/s", "fraction of tokens", "iteration", "88.5", "24.8"]:
        assert text in page.text
    assert page.tags.count("svg") == 1 + 2 + 6 + 3 + 1  # success, tasks, training, throughput, time


def test_the_page_shows_where_the_time_went(page: Page, finished_run: Path) -> None:
    for text in ("60%", "20%", "80%", "simulate", "policy", "train", "idle"):
        assert text in page.text
    assert page.files("image/png") == [(finished_run / "timeline" / "iteration_000004.png").read_bytes()]


def test_the_page_holds_videos_of_successes_and_failures(page: Page, finished_run: Path) -> None:
    on_disk = {file.read_bytes() for file in finished_run.glob("evaluations/*/videos/*.mp4")}
    assert len(page.files("video/mp4")) == 4
    assert set(page.files("video/mp4")) == on_disk


def test_the_page_tells_of_iterations_without_signal(page: Page) -> None:
    assert "No group with signal in 1 of 4 iterations (2)" in page.text


def test_the_whole_config_is_in_the_page(page: Page) -> None:
    for section, values in config_to_json(CONFIG).items():
        for name in [section, *(values if isinstance(values, dict) else [])]:
            assert name in page.text


def test_the_page_needs_nothing_but_itself(page: Page) -> None:
    assert page.pointers
    for pointer in page.pointers:
        assert pointer.startswith(("data:", "#")), pointer[:80]
    assert {pointer[1:] for pointer in page.pointers if pointer.startswith("#")} <= page.ids
    assert not re.search(r"https?://", page.source)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(page.tags)


def test_texts_of_users_cannot_become_markup(page: Page) -> None:
    assert "<script>alert(1)</script>" in page.text
    assert "<script" not in page.source
    assert "<b>the cup</b>" not in page.source


def test_curves_take_their_ink_from_the_page(page: Page) -> None:
    assert "currentColor" in page.source
    assert "#000000" not in page.source


def test_a_run_that_has_just_begun_gets_a_page_that_says_so(tmp_path: Path) -> None:
    begin(tmp_path).close()
    page = report(tmp_path)
    for text in (
        "iteration 0 of 4",
        "No iteration has ended yet",
        "No evaluation yet",
        "every 2 iterations",
        "No timeline yet",
    ):
        assert text in page.text
    assert "svg" not in page.tags


def test_a_run_that_learnt_nothing_yet_draws_no_curves_of_updates(tmp_path: Path) -> None:
    log = begin(tmp_path)
    for iteration in (1, 2):
        log.log("iteration", iteration, iteration_values(updates=0, success_rate=0.0))
    log.close()
    page = report(tmp_path)
    assert "No group with signal in 2 of 2 iterations (1-2)" in page.text
    assert "Entropy" not in page.text
    assert "Groups with a learning signal" in page.text
    assert "nan" not in page.text


def test_a_run_that_never_evaluates_says_how_to(tmp_path: Path) -> None:
    begin(tmp_path, TrainConfig(eval=EvalConfig(every=0))).close()
    assert "python -m vla_train eval" in report(tmp_path).text


def test_a_resumed_run_shows_each_iteration_once(tmp_path: Path) -> None:
    log = begin(tmp_path)
    for iteration in (1, 2, 3):
        log.log("iteration", iteration, iteration_values(updates=4))
    log.close()
    log = RunLog(tmp_path, trackers=(), config=config_to_json(CONFIG), resume_iteration=2)
    log.log("iteration", 3, iteration_values(updates=0))
    log.close()
    run = read_run(tmp_path)
    assert facts.state(run).startswith("iteration 3 of 4")
    assert "in 1 of 3 iterations (3)" in facts.notices(run)[0]


def test_a_picture_of_an_iteration_that_a_resumed_run_forgot_is_not_shown(finished_run: Path, tmp_path: Path) -> None:
    shutil.copytree(finished_run / "timeline", tmp_path / "timeline")
    log = begin(tmp_path)
    log.log("iteration", 3, iteration_values(updates=4))
    assert read_run(tmp_path).timeline_picture is None
    log.log("iteration", 4, iteration_values(updates=4))
    assert read_run(tmp_path).timeline_iteration == 4
    log.close()


def test_an_evaluation_under_way_shows_what_there_is(tmp_path: Path) -> None:
    begin(tmp_path).close()
    evaluate_into(tmp_path, "iteration_000002", successes=3)  # and no record: the run had not got that far
    page = report(tmp_path)
    assert "under way, or interrupted" in page.text
    assert "3 of 10 episodes" in page.text


def test_evaluations_of_checkpoints_are_shown_beside_the_runs_own(tmp_path: Path) -> None:
    log = begin(tmp_path)
    log.log("eval", 1, evaluate_into(tmp_path, "iteration_000001", successes=1))
    log.close()
    results = evaluate_into(tmp_path, "step_000001", successes=5)
    (tmp_path / "evaluations" / "step_000001" / "results.json").write_text(json.dumps(results))
    page = report(tmp_path)
    assert "checkpoint of iteration 1 5 of 10 episodes" in page.text
    assert "after iteration 1 1 of 10 episodes" in page.text
    assert "under way" not in page.text


def test_the_parts_of_several_ranks_are_one_evaluation(tmp_path: Path) -> None:
    begin(tmp_path).close()
    evaluate_into(tmp_path, "iteration_000002", successes=3)
    evaluate_into(tmp_path, "iteration_000002/rank_1", successes=1)
    page = report(tmp_path)
    assert "4 of 20 episodes" in page.text
    assert len(page.files("video/mp4")) == 4


def test_videos_stay_within_their_bounds_and_the_rest_is_counted(finished_run: Path) -> None:
    evaluations = read_run(finished_run).evaluations
    sizes = sorted(len(file.read_bytes()) for file in finished_run.glob("evaluations/*/videos/*.mp4"))
    by_size = choose_videos(evaluations, max_videos=9, max_bytes=sizes[0] + sizes[1])
    assert 1 <= len(by_size.others) <= 2
    assert len(by_size.others) + by_size.left_out == 4
    by_number = choose_videos(evaluations, max_videos=3, max_bytes=sum(sizes))
    assert [(video.evaluation, video.episode.success) for video in by_number.others] == [
        ("after iteration 4", True),
        ("after iteration 4", False),
        ("after iteration 2", True),
    ]
    assert (by_size.pairs, by_number.pairs, by_number.left_out) == ((), (), 1)


def test_what_was_filmed_before_and_after_is_shown_side_by_side(finished_run: Path) -> None:
    evaluations = read_run(finished_run).evaluations
    choice = choose_videos(evaluations, max_videos=9, max_bytes=1_000_000)
    assert [[(video.evaluation, video.episode.task_id) for video in pair] for pair in choice.pairs] == [
        [("after iteration 2", task_id), ("after iteration 4", task_id)] for task_id in (0, 1)
    ]
    assert (choice.others, choice.left_out) == ((), 0)


def test_the_page_tells_of_videos_that_it_leaves_out(tmp_path: Path) -> None:
    begin(tmp_path).close()
    evaluate_into(tmp_path, "iteration_000002", successes=3)
    page = report(tmp_path, video_bytes=0)
    assert page.files("video/mp4") == []
    assert "No videos fit into this page" in page.text
    assert "2 more, in the run's" in page.text


def test_missing_videos_are_counted_and_the_others_shown(tmp_path: Path) -> None:
    begin(tmp_path).close()
    evaluate_into(tmp_path, "iteration_000002", successes=3)
    next(tmp_path.glob("evaluations/*/videos/*.mp4")).unlink()
    page = report(tmp_path)
    assert len(page.files("video/mp4")) == 1
    assert "1 videos that the results name" in page.text


def test_restarted_workers_are_told(tmp_path: Path) -> None:
    log = begin(tmp_path)
    log.log("iteration", 1, iteration_values(updates=4) | {"rollout/worker_restarts": 2, "rollout/episodes_requeued": 9})
    log.close()
    assert "restarted (2 in all); 9 episodes" in facts.notices(read_run(tmp_path))[0]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        (METRICS_FILE, "{broken\n"),
        ("config.json", "{broken"),
        ("config.json", '{"no_such_option": 1}'),
        ("evaluations/iteration_000004/episodes.jsonl", "{broken\n"),
        (METRICS_FILE, '{"kind": "eval", "iteration": 4}\n'),
        ("evaluations/iteration_000004/results.json", "{broken"),
        ("evaluations/iteration_000004/results.json", '{"success_rate": 1, "tasks": 3, "episodes": 2}'),
        ("evaluations/iteration_000004/results.json", "[]"),
        ("timeline/iteration_000004.json.gz", "broken"),
    ],
)
def test_a_damaged_file_is_an_error_that_names_it(
    file: str, content: str, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    (run / "report.html").write_text("of an earlier time")
    (run / file).write_text(content)
    with pytest.raises(SystemExit) as stopped:
        main(["report", str(run)])
    assert stopped.value.code == 2
    assert file in capsys.readouterr().err
    assert (run / "report.html").read_text() == "of an earlier time"


def test_the_command_writes_the_page_and_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begin(tmp_path).close()
    main(["report", str(tmp_path)])
    assert capsys.readouterr().out == f"report: {tmp_path}/report.html\n"
    assert (tmp_path / "report.html").stat().st_size > 1000


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["report", str(tmp_path)])
    assert "not the folder of a run" in capsys.readouterr().err
    with pytest.raises(ValueError, match="not the folder of a run"):
        write_report(tmp_path)
