"""What both kinds of runs do before they set up: take their folder, and see that it can hold them."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from rich.markup import escape

from vla_train.config_file import RunConfig
from vla_train.display import Display
from vla_train.run.identity import require_same_run, split_warning
from vla_train.run.lock import lock_run
from vla_train.run.room import least_checkpoint_bytes, most_checkpoints
from vla_train.trainer.checkpoint import prepare_run, require_room
from vla_train.trainer.checkpoint_folder import list_checkpoints
from vla_train.trainer.parallel import Ranks


@contextmanager
def setting_up(config: RunConfig, closing: ExitStack, *, ranks: Ranks, display: Display) -> Iterator[ExitStack]:
    """The block in which a run is set up; where it fails, nothing is left behind.

    Args:
        config: Of the run; its checkpoint is as `start_of` gives it.
        closing: What ends with the run, or with a failure: the folder is let go by it.
        ranks: Only the first one touches the folder.
        display: Says what takes long.

    Yields:
        What only a failure undoes.

    Raises:
        ValueError: The folder is another run's, in use, not writable, or has too little room.
    """
    if list_checkpoints(config.output):
        require_same_run(config)
    made = ExitStack()
    with ExitStack() as undo:
        undo.callback(closing.close)
        if ranks.rank == 0:
            is_new = not config.output.exists()
            closing.callback(lock_run(config.output))
            closing.callback(made.close)  # while it is ours
            if is_new:
                made.callback(shutil.rmtree, config.output, ignore_errors=True)
            prepare_run(config.output)
            checkpoint_bytes = least_checkpoint_bytes(config.policy)
            require_room(config.output, checkpoint_bytes=checkpoint_bytes, count=most_checkpoints(config))
        if warning := split_warning(config):
            display.line(f"[yellow]{escape(warning)}[/yellow]")
        with display.waiting("setting up"):
            yield undo
        undo.pop_all()
        made.pop_all()
