"""What `collect` can be told; importing this needs neither torch nor a simulator. The text under each field is its `--help`."""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from vla_train.config import EnvConfig
from vla_train.config_checks import check_at_least, check_fields, require

InitialStates = Literal["train", "all", "held-out"]


@dataclass(frozen=True, kw_only=True)
class CollectConfig:
    """One dataset of demonstrations."""

    output: Path = Path("runs/demonstrations")
    """Folder of the dataset, in LeRobot's format; the same command goes on where it was interrupted."""
    suite: str | None = None
    """Suite of tasks, short for env.kwargs suite=NAME; None takes the env's own choice."""
    task_ids: tuple[int, ...] = ()
    """Tasks to demonstrate; none: all of the suite."""
    episodes_per_task: int = 50
    """Demonstrations of each task."""
    max_attempts: float = 3.0
    """Give a task up after this many times episodes-per-task attempts."""
    keep_failures: bool = False
    """Keep episodes that fail too, marked as such; they do not count as demonstrations."""
    initial_states: InitialStates = "train"
    """train: only states that training uses; held-out: only the others; all: both."""
    train_fraction: float = 0.8
    """Share (0 to 1) of each task's initial states that belongs to training, as in the run that will learn from this."""
    split_seed: int = 0
    """Seed of which states belong to training, as in the run that will learn from this."""
    seed: int = 0
    """Seed of the order of initial states, of the expert, and of the noise."""
    noise: float = 0.05
    """Standard deviation of what is added to the expert's actions, 0 to 1; what is recorded is the action without it."""
    expert: str | None = None
    """MODULE:FUNCTION that makes the expert of an episode; None asks the env (see docs/demonstrations.md)."""
    image_size: int | None = None
    """Height and width of images in pixels, short for env.kwargs image_size=SIZE; None takes the env's own."""
    detail: Literal["full", "fast"] | None = None
    """How exactly LIBERO is drawn, short for env.kwargs detail=NAME; None takes the env's own."""
    wrist_camera: bool = False
    """Record the wrist camera too."""
    workers: int | Literal["auto"] = "auto"
    """Processes that play side by side; auto takes one per core."""
    display: Literal["auto", "rich", "plain", "none"] = "auto"
    """Progress on the terminal; auto is rich on a terminal, plain lines elsewhere."""
    env: EnvConfig = field(default_factory=EnvConfig)
    """Its workers and timeouts do not matter here."""

    def __post_init__(self) -> None:
        check_fields(self)
        check_at_least(self, "", 1, "episodes_per_task", "max_attempts")
        check_at_least(self, "", 0, "seed", "split_seed")
        require(0 < self.train_fraction <= 1, f"train_fraction must lie in (0, 1], got {self.train_fraction}")
        require(0 <= self.noise <= 1, f"noise must lie in [0, 1], got {self.noise}")
        require(
            self.train_fraction < 1 or self.initial_states != "held-out",
            "train_fraction 1 leaves no held-out initial states: lower it, or set initial_states to all or train",
        )
        require(self.workers == "auto" or int(self.workers) >= 1, f"workers must be auto or at least 1, got {self.workers}")
        require(self.image_size is None or self.image_size >= 1, f"image_size must be at least 1, got {self.image_size}")
        require(len(set(self.task_ids)) == len(self.task_ids), f"task_ids must differ, got {self.task_ids}")
        require(min(self.task_ids, default=0) >= 0, f"task_ids must be at least 0, got {self.task_ids}")
        if self.expert is not None:
            require(all(self.expert.partition(":")), f"expert must be MODULE:FUNCTION, got {self.expert!r}")
        for name in self._shortcuts:
            require(name not in self.env.kwargs, f"{name} was given twice: leave it out of env.kwargs")

    @property
    def played_env(self) -> EnvConfig:
        """The env of one player, with all arguments."""
        kwargs = {**self.env.kwargs, **self._shortcuts}
        return replace(self.env, kwargs=kwargs, num_workers=1, envs_per_worker=1, worker="thread")

    @property
    def max_attempts_per_task(self) -> int:
        """Attempts at a task after which it is given up."""
        return math.ceil(self.max_attempts * self.episodes_per_task)

    @property
    def _shortcuts(self) -> dict[str, str]:
        given = {
            "suite": self.suite,
            "task_ids": list(self.task_ids) or None,
            "image_size": self.image_size,
            "detail": self.detail,
        }
        return {name: str(value) for name, value in given.items() if value is not None}
