"""GRPO, on one screen.

collect: workers and policy, overlapped --groups--> update: trainer --weights--> policy
         next iteration's resets (or its whole rollout) run during the update
"""

from contextlib import closing

from vla_train.config import TrainConfig
from vla_train.display import Display
from vla_train.envs.worker import WorkerError
from vla_train.errors import DivergedError, RunError
from vla_train.interruption import Interruption
from vla_train.run.run import Run
from vla_train.trainer.checkpoint_folder import list_checkpoints
from vla_train.trainer.manifest import CheckpointError
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
    return Run(config, ranks=ranks, display=Display(config.display if ranks.rank == 0 else "none"))


def iterate(run: Run) -> None:
    """Do the iterations that are left, and close the run. Ctrl-C and SIGTERM save a checkpoint and end.

    Raises:
        WorkerError: A worker failed more often than it may; a checkpoint was saved.
        DivergedError: Loss or log-probs are not finite; older checkpoints are as they were.
        CheckpointError: A checkpoint could not be written; older ones are as they were.
        RunError: Something else could not be written; the same.
        SystemExit: It was interrupted.
    """
    alone = run.ranks.size == 1  # ranks save together, and others may be in the middle of an update
    interruption = Interruption(
        lambda: run.display.line("ending: this step is finished and saved first; Ctrl-C again ends at once, and loses it")
    )
    run.interrupt_in(interruption.allowed)
    with closing(run), interruption.watch():
        try:
            while True:
                interruption.check()
                if run.evaluation_due:
                    run.evaluate()
                if run.checkpoint_due:
                    run.save()
                if run.complete:
                    break
                result = run.collect()
                run.begin_next()
                metrics = run.update(result.groups)
                run.record(result, metrics)
        except KeyboardInterrupt:
            if alone and not interruption.broke_off:
                run.save()
            run.display.line("interrupted; the same command goes on from the newest checkpoint")
            raise SystemExit(130) from None
        except WorkerError as error:
            raise WorkerError(f"{error}; {_save(run) if alone else _newest(run)}") from error.__cause__
        except DivergedError as error:
            raise DivergedError(f"{error}; {_newest(run)}; lower optim.learning_rate first") from error
        except OSError as error:
            raise RunError(f"{run.config.output} cannot be written to ({error}); {_newest(run)}") from error
    run.show_end()


def _save(run: Run) -> str:
    """Save what was done, and say so; or why not."""
    try:
        run.save()
    except CheckpointError as error:
        return str(error)
    return f"{run.done} iterations are saved, and the same command goes on from there"


def _newest(run: Run) -> str:
    """What the run goes on from without another checkpoint."""
    checkpoints = list_checkpoints(run.config.output)
    where = f"goes on from {checkpoints[-1].name}" if checkpoints else "starts again: nothing was saved yet"
    return f"the same command {where}"
