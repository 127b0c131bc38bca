"""Writes the page: what was found, put into `page.html`. Every text is escaped there, and nothing is fetched from anywhere."""

from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

import jinja2
from markupsafe import Markup

from vla_train.evaluation.evaluate import play_name
from vla_train.files import replace_file
from vla_train.pipeline.timeline import SPAN_COLOURS
from vla_train.report import facts, supervised
from vla_train.report.contents import RunContents, read_run
from vla_train.report.curves import success_panel, task_panels, throughput_panels, time_bars, training_panels
from vla_train.report.figures import Panel, draw_bars, draw_panel
from vla_train.report.videos import choose_videos, data_url
from vla_train.sft.config import SftConfig

_MAX_VIDEOS = 24
_VIDEO_BYTES = 16_000_000


def write_report(run: Path, *, video_bytes: int = _VIDEO_BYTES) -> Path:
    """Write `RUN/report.html`, one page that needs no other file and no network.

    Args:
        run: The run's folder; the run may be going on.
        video_bytes: Bound of the embedded videos' sizes; the page says what it leaves out.

    Returns:
        The page's path.

    Raises:
        ValueError: It is not the folder of a run, something in it is damaged, or the page cannot be written.
    """
    page = run / "report.html"
    text = _render(read_run(run), video_bytes=video_bytes)
    try:
        replace_file(page, text.encode())
    except OSError as error:
        raise ValueError(f"{page} cannot be written: {error.strerror}") from error
    return page


def _render(run: RunContents, *, video_bytes: int) -> str:
    here = files("vla_train.report")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((here / "page.html").read_text(encoding="utf-8"))
    bars = time_bars(run.spans)
    if isinstance(run.config, SftConfig):
        headline, tiles = supervised.headline(run.config), supervised.tiles(run)
        training, throughput = supervised.training_panels(run, run.config), supervised.throughput_panels(run)
    else:
        headline, tiles = facts.headline(run.config), facts.tiles(run)
        training, throughput = training_panels(run, run.config), throughput_panels(run)
    newest = next((evaluation for evaluation in run.evaluations if evaluation.of_iteration), None)
    return template.render(
        play_name=play_name,
        css=Markup((here / "page.css").read_text(encoding="utf-8")),
        name=run.path.resolve().name,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        state=facts.state(run),
        headline=headline,
        tiles=tiles,
        notices=facts.notices(run),
        eval_every=run.config.eval.every,
        iterations_done=run.done,
        success=_drawn([success_panel(run)], width=11.5, height=3.2),
        tasks=_drawn(task_panels(run)) if len(run.evaluation_records) > 1 else [],
        evaluations=[evaluation for evaluation in run.evaluations if evaluation is newest or not evaluation.of_iteration],
        earlier=[evaluation for evaluation in run.evaluations if evaluation is not newest and evaluation.of_iteration],
        videos=choose_videos(run.evaluations, max_videos=_MAX_VIDEOS, max_bytes=video_bytes),
        training=_drawn(training),
        throughput=_drawn(throughput),
        unit=run.unit,
        bars=draw_bars(bars, SPAN_COLOURS, title="Where the time went") if bars else "",
        timeline=run.timeline_picture and data_url(run.timeline_picture, "image/png"),
        timeline_iteration=run.timeline_iteration,
        config=run.config_json,
    )


def _drawn(panels: list[Panel], *, width: float = 3.7, height: float = 2.1) -> list[tuple[Panel, Markup]]:
    """Panels with their pictures; those without a number yet are left out."""
    return [(panel, draw_panel(panel, width=width, height=height)) for panel in panels if panel.measured]
