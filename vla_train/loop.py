"""GRPO, on one screen.

collect: workers and policy, overlapped --groups--> update: trainer --weights--> policy
         next iteration's resets (or its whole rollout) run during the update
"""

from contextlib import closing

from vla_train.config import TrainConfig
from vla_train.display import Display
from vla_train.interruption import Interruption
from vla_train.run.ending import saved_when_it_ends
from vla_train.run.run import Run
from vla_train.run.together import end_together, set_up_together
from vla_train.trainer.parallel import join_ranks


def train(config: TrainConfig) -> None:
    """Train from the newest checkpoint in `config.output`, or from the start; see `set_up` and `iterate` for errors."""
    iterate(set_up(config))


def set_up(config: TrainConfig) -> Run:
    """A run that is ready for `iterate`, or to be closed: all that can be refused is refused here.

    Raises:
        ValueError: It cannot work as configured; nothing was begun.
        ImportError: It needs a package that is not installed.
        RunError: A worker or a Ray actor was lost while it started, or an env has a bug.
    """
    ranks = join_ranks()
    with set_up_together(ranks):
        return Run(config, ranks=ranks, display=Display(config.display if ranks.rank == 0 else "none"))


def iterate(run: Run, *, last_words: bool = True) -> None:
    """Do the iterations that are left, and close the run. Ctrl-C and SIGTERM save a checkpoint and end.

    Args:
        run: Set up.
        last_words: Say in the end what was learnt, and how to go on.

    Raises:
        RunError, SystemExit: It ended before it was done; see `saved_when_it_ends`.
    """
    interruption = Interruption(
        lambda: run.display.line("ending: this step is finished and saved first; Ctrl-C again ends at once, and loses it"),
        on_ask=run.ranks.call,
    )
    run.interrupt_in(interruption.allowed)
    with closing(run), end_together(run, interruption), interruption.watch(), saved_when_it_ends(run, interruption):
        while True:
            with run.ranks.apart():
                interruption.check()
                run.saver.check()
            if run.evaluation_due:
                run.evaluate()
            if run.checkpoint_due:
                run.save()
            if run.complete:
                break
            result = run.collect()
            run.begin_next(result.groups)
            metrics = run.update(result.groups)
            run.record(result, metrics)
    if last_words:
        run.show_end()
