"""How one rank's end is known to the others: none is left waiting for what never comes.

A rank leaves as agreed where all end at the same point (see `Ranks.apart`); for any other reason it says so, and the others end
too. Where a rank was lost, the error says which, and what is kept, instead of what a collective says of its connection.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vla_train.envs.worker import WorkerError
from vla_train.errors import DataError, DivergedError, RunError
from vla_train.interruption import Interruption
from vla_train.run.ending import SavedRun, newest_text
from vla_train.trainer.manifest import CheckpointError
from vla_train.trainer.parallel import Ranks
from vla_train.trainer.rank_lines import RankLostError

_AGREED = (SystemExit, WorkerError, DataError, DivergedError, CheckpointError)
"""What all ranks raise at the same point of a run, if one does."""
_NOTICE_S = 5.0
"""A lost rank breaks collectives at once; the roll call notices it no later than this."""


@contextmanager
def set_up_together(ranks: Ranks) -> Iterator[None]:
    """The block in which ranks are set up, each by itself.

    Raises:
        RankLostError: Another one is gone, or cannot be set up.
    """
    with _telling(ranks, kept=lambda: "nothing was begun", agreed=()):
        yield


@contextmanager
def end_together(run: SavedRun, interruption: Interruption) -> Iterator[None]:
    """The block in which ranks do a run; outside of the one that saves it.

    Raises:
        RankLostError: Another rank is gone.
    """
    if run.ranks.roll_call is not None:
        run.ranks.roll_call.on_call = interruption.ask
    with _telling(run.ranks, kept=lambda: newest_text(run.config.output), agreed=_AGREED):
        yield
    run.ranks.leave()


@contextmanager
def _telling(ranks: Ranks, *, kept: Callable[[], str], agreed: tuple[type[BaseException], ...]) -> Iterator[None]:
    roll_call = ranks.roll_call
    if roll_call is None:
        yield
        return
    roll_call.kept = kept
    try:
        yield
    except BaseException as error:
        lost = str(error) if isinstance(error, RankLostError) else None
        if isinstance(error, RuntimeError) and not isinstance(error, RunError):
            lost = roll_call.find_lost(_NOTICE_S)
        roll_call.leave(None if isinstance(error, agreed) else f"{type(error).__name__}: {error}")
        if lost is not None:
            raise RankLostError(roll_call.with_kept(lost)) from error
        raise
