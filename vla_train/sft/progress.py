"""What the steps between two points of the curves did, added up."""

import time

from vla_train.algo.losses import LossOutput
from vla_train.trainer.trainer import Step


class StepSums:
    """Sums over steps since the last `take`."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._steps: list[Step] = []
        self._rows = 0
        self._began = time.perf_counter()

    def add(self, step: Step, *, rows: int) -> None:
        """Count a step of so many rows over all ranks."""
        self._steps.append(step)
        self._rows += rows

    def take(self) -> dict[str, float]:
        """Means under their names in the curves, over at least one step; what follows is counted anew."""
        steps, seconds = self._steps, time.perf_counter() - self._began
        whole = steps[0].output
        for step in steps[1:]:
            whole = whole + step.output
        values = {
            "update/loss": float(whole.loss) / len(steps),
            **{f"update/{name}": value for name, value in mean_metrics(whole).items()},
            "update/grad_norm": sum(step.grad_norm for step in steps) / len(steps),
            "update/grad_norm_max": max(step.grad_norm for step in steps),
            "update/learning_rate": steps[-1].learning_rate,
            "update/chunks_per_s": self._rows / seconds,
            "update/duration_s": seconds,
        }
        self._clear()
        return values


def mean_metrics(output: LossOutput) -> dict[str, float]:
    """What a loss reports, over what counted in it."""
    count = output.count.clamp(min=1)
    return {name: float(value / count) for name, value in output.sums.items()}
