"""GRPO, on one screen.

collect: env groups and policy, overlapped --groups--> update: trainer --weights--> policy
         next iteration's resets (or its whole rollout) run during the update
"""

from contextlib import closing

from vla_train.config import TrainConfig
from vla_train.display import Display
from vla_train.envs.worker import WorkerError
from vla_train.interruption import Interruption
from vla_train.run.run import Run
from vla_train.trainer.parallel import join_ranks


def train(config: TrainConfig) -> None:
    """Train from the newest checkpoint in `config.output`, or from the start; see `set_up` and `finish` for errors."""
    finish(set_up(config))


def set_up(config: TrainConfig) -> Run:
    """Everything that can be refused before anything is trained; `finish` or `close` the run.

    Raises:
        ValueError: It cannot work as configured; nothing was begun.
        ImportError: It needs a package that is not installed.
    """
    ranks = join_ranks()
    return Run(config, ranks=ranks, display=Display(config.display if ranks.rank == 0 else "none"))


def finish(run: Run) -> None:
    """Do the iterations that are left. Ctrl-C and SIGTERM save a checkpoint and end.

    Raises:
        WorkerError: An env group failed more often than it may; a checkpoint was saved.
        CheckpointError: A checkpoint could not be written; the ones before are as they were.
        SystemExit: It was interrupted.
    """
    alone = run.ranks.size == 1  # ranks save together, and others may be in the middle of an update
    interruption = Interruption(lambda: run.display.line("ending as soon as this can be saved; once more to lose it"))
    run.allow_breaking_off(interruption.allowed)
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
        except WorkerError:
            if alone:
                run.save()
            raise
    run.show_end()
