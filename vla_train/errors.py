"""What ends a run that had begun, though nobody's code is wrong: one line says what happened and what is saved."""


class RunError(RuntimeError):
    """The run, or an evaluation, cannot go on."""


class DamagedFileError(RunError, ValueError):
    """A file that a run or an evaluation wrote does not hold what it should; as what was asked for, or in the middle of it."""


class DataError(RunError):
    """What is learnt from cannot be read."""


class DivergedError(RunError):
    """A loss, a gradient or a log-prob is not finite."""


def gpu_too_small(error: RuntimeError) -> str:
    """What to say of PyTorch's `OutOfMemoryError`."""
    return (
        f"the GPU's memory is too small ({str(error).partition('. ')[0]}): take --policy.base-dtype fp8 or nf4 with "
        "--policy.lora-rank 32, fewer --env.envs-per-worker, a smaller --rollout.max-policy-batch or --optim.microbatch-rows, "
        "or a recipe for a smaller card"
    )
