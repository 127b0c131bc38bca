"""What ends a run that had begun, though nobody's code is wrong: one line says what happened and what is saved."""


class RunError(RuntimeError):
    """The run, or an evaluation, cannot go on."""


class DataError(RunError):
    """What is learnt from cannot be read."""


class DivergedError(RunError):
    """A loss, a gradient or a log-prob is not finite."""
