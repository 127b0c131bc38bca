"""What of the stages is done, with which options, and how long each took: `OUTPUT/stages.json`.

Time is written down while it passes, so that a process that is killed has been counted too.
"""

import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vla_train.config_json import config_to_json
from vla_train.files import replace_file
from vla_train.from_scratch.config import COLLECT, GRPO, SFT, STAGES, START, FromScratchConfig
from vla_train.run.identity import absolute_place
from vla_train.trainer.checkpoint_folder import list_checkpoints

_FILE = "stages.json"
_EVERY_S = 1.0
"""Between two times that are written down."""
_OF_PLACE = {
    *("display", "trackers", "log_every", "checkpoint_every", "keep_checkpoints"),
    *("workers", "num_workers", "envs_per_worker", "worker", "step_timeout_s", "max_restarts"),
    *("device", "replicas", "gpu_memory_gb", "compile", "max_policy_batch", "max_wait_s", "microbatch_rows", "videos"),
}
"""Options that change how fast a stage is, or what is kept of it, and not what comes out."""


@dataclass(kw_only=True)
class _Stage:
    settings: Mapping[str, Any]
    """Options that decide what comes out, by full name."""
    seconds: float = 0.0
    done: bool = False


class Progress:
    """Of the stages in an output folder.

    Args:
        config: What was asked for.

    Raises:
        ValueError: The folder holds a start made otherwise, or GRPO from one, or what is no record of stages.
    """

    def __init__(self, config: FromScratchConfig) -> None:
        self._file = config.output / _FILE
        self._asked = _settings(config)
        self._stages = self._read()
        if list_checkpoints(config.output / GRPO):
            self._require_unchanged("GRPO from a start")
        elif list_checkpoints(config.output / START):
            self._require_unchanged("a start", may_grow=("sft.steps",))

    def is_done(self, name: str) -> bool:
        """Whether a stage is done, with these options."""
        stage = self._stages.get(name)
        return stage is not None and stage.done and stage.settings == self._asked[name]

    @property
    def seconds(self) -> dict[str, float]:
        """Wall-clock of each stage begun so far, over all the processes that worked on it."""
        return {name: stage.seconds for name, stage in self._stages.items()}

    @contextmanager
    def working(self, name: str, *, since: float | None = None) -> Iterator[None]:
        """Do a stage in this block, or go on with it: the time counts, and if nothing is raised it is done.

        Args:
            name: Of the stage.
            since: `time.perf_counter()` reading from which the time counts; None begins now.
        """
        before = self._stages.get(name, _Stage(settings={})).seconds
        stage = self._stages[name] = _Stage(settings=self._asked[name], seconds=before)
        began, ended = time.perf_counter() if since is None else since, threading.Event()

        def write() -> None:
            stage.seconds = before + time.perf_counter() - began
            self._write()

        def write_now_and_then() -> None:
            while not ended.wait(_EVERY_S):
                write()

        write()
        clock = threading.Thread(target=write_now_and_then, name="stage-clock", daemon=True)
        clock.start()
        try:
            yield
            stage.done = True
        finally:
            ended.set()
            clock.join()
            write()

    def _require_unchanged(self, what: str, *, may_grow: tuple[str, ...] = ()) -> None:
        """Refuse other options of what leads to the start that is there: it would be neither one's."""
        for name in (COLLECT, SFT):
            asked = self._asked[name]
            held = self._stages[name].settings if name in self._stages else asked
            for option in sorted(held.keys() | asked.keys()):
                before, now = held.get(option), asked.get(option)
                grew = option in may_grow and held[option] < asked[option]
                if before != now and not grew:
                    raise ValueError(
                        f"{self._file.parent} holds {what} with {option} {before!r}, not {now!r}: choose another output"
                    )

    def _read(self) -> dict[str, _Stage]:
        if not self._file.exists():
            return {}
        try:
            return {name: _Stage(**stage) for name, stage in json.loads(self._file.read_text()).items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{self._file} is damaged ({error}): delete it, and the stages are looked at again") from error

    def _write(self) -> None:
        stages = {name: vars(stage) for name, stage in self._stages.items()}
        replace_file(self._file, (json.dumps(stages, indent=1) + "\n").encode())


def _settings(config: FromScratchConfig) -> dict[str, dict[str, Any]]:
    """Options that decide what comes out, by stage; the same wherever the output folder is."""
    policy = replace(config.policy, checkpoint=absolute_place(config.policy.checkpoint))
    config = replace(config, output=Path(), policy=policy)
    return {name: dict(_flat(config_to_json(config.of_stage(name)), name)) for name in STAGES}


def _flat(data: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in data.items():
        if name in _OF_PLACE:
            continue
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}.{name}")
        else:
            yield f"{prefix}.{name}", value
