"""From nothing to a policy that GRPO made good, on one screen.

    expert --demonstrations/--> sft --start/--> GRPO --grpo/--> evaluation of start and end --> result.json

Each stage is a command of its own and goes on by itself where it was interrupted; one that is done is not done again.
"""

import gc
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from vla_train.display import Display
from vla_train.errors import RunError
from vla_train.from_scratch.config import COLLECT, EVALUATION, GRPO, SFT, TRAIN, FromScratchConfig
from vla_train.from_scratch.progress import Progress


class FromScratch:
    """The stages, and the first of them set up; `run` does them all.

    Args:
        config: What to do, and where. What is there already is kept.

    Raises:
        ValueError: The output cannot be used, or demonstrations cannot be collected; nothing was begun.
        ImportError: A package is missing.
    """

    def __init__(self, config: FromScratchConfig) -> None:
        self._began = time.perf_counter()
        from vla_train.demonstrations.collect import Collection  # as all commands are: when needed, and its time counts
        from vla_train.run.lock import lock_run

        _require_one_process()
        self.config = config
        self._display = Display(config.display)
        with ExitStack() as undo:
            is_new = not config.output.exists()
            self._unlock = lock_run(config.output, activity="works")
            undo.callback(self._unlock)
            if is_new:  # and ours: whoever was faster has the lock
                undo.callback(shutil.rmtree, config.output, ignore_errors=True)
            self._progress = Progress(config)
            self._collection = None if self._progress.is_done(COLLECT) else Collection(config.collecting)
            undo.pop_all()

    def run(self) -> None:
        """Do what is left of each stage, then write and show the result.

        Raises:
            RunError, SystemExit: It ended before it was done; the same command goes on.
        """
        stages: dict[str, Callable[[], None]] = {
            COLLECT: self._collect,
            SFT: self._teach,
            TRAIN: self._train,
            EVALUATION: self._evaluate,
        }
        began: float | None = self._began
        try:
            for number, (name, work) in enumerate(stages.items(), start=1):
                title = f"[bold]stage {number} of {len(stages)}: {name}[/bold]"
                if began is not None and self._progress.is_done(name):  # and all before it
                    self._display.line(f"{title}, done already")
                    continue
                self._display.line(title)
                with self._progress.working(name, since=began):
                    work()
                    _free_memory()
                began = None
            self._conclude()
        except KeyboardInterrupt:
            self._display.line("interrupted; the same command goes on")
            raise SystemExit(130) from None
        finally:
            self._unlock()

    def _collect(self) -> None:
        assert self._collection is not None, "not done when it was set up, and done now"
        self._collection.collect()

    def _teach(self) -> None:
        from vla_train.sft.loop import iterate, set_up

        with _refusals():
            run = set_up(self.config.teaching)
        iterate(run, last_words=False)

    def _train(self) -> None:
        from vla_train.loop import iterate, set_up

        with _refusals():
            run = set_up(self.config.training)
        iterate(run, last_words=False)

    def _evaluate(self) -> None:
        from vla_train.evaluation.of_checkpoint import CheckpointEvaluation
        from vla_train.from_scratch.result import compared

        for checkpoint in compared(self.config.output).values():
            with _refusals():
                evaluation = CheckpointEvaluation(self.config.evaluating(checkpoint))
            evaluation.play()

    def _conclude(self) -> None:
        from vla_train.from_scratch.result import read_result, show_result, write_result
        from vla_train.report import write_report

        result = read_result(self.config, seconds=self._progress.seconds)
        show_result(self._display, result)
        file = write_result(self.config.output, result)
        page = write_report(self.config.output / GRPO)
        self._display.line(f"result: {file}; GRPO's report: {page}")


def _require_one_process() -> None:
    processes = os.environ.get("WORLD_SIZE", "1")
    if processes != "1":
        raise ValueError(
            f"this recipe runs in one process, and was started in {processes}: start it without torchrun, "
            "or do its stages one by one (collect, sft, train, eval)"
        )


@contextmanager
def _refusals() -> Iterator[None]:
    """What refuses the config of a later stage in this block ends a run that had begun."""
    try:
        yield
    except (ValueError, ImportError) as error:
        raise RunError(str(error)) from error


def _free_memory() -> None:
    """Give the GPU back what a stage held there."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
