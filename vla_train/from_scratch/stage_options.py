"""The options that are one stage's own: those of its command, without what all stages share.

A field marked `NO_OPTION` cannot be set: `FromScratchConfig` puts there what it says for all stages, and checks the whole.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from vla_train.config import EnvConfig, EvalConfig, PolicyConfig, RolloutConfig, TrainConfig
from vla_train.config_pairs import NO_OPTION
from vla_train.demonstrations.config import CollectConfig, InitialStates
from vla_train.sft.config import SftConfig

Detail = Literal["full", "fast"]
DisplayMode = Literal["auto", "rich", "plain", "none"]


@dataclass(frozen=True, kw_only=True)
class CollectStage(CollectConfig):
    """The expert's demonstrations."""

    output: Annotated[Path, NO_OPTION] = field(init=False, default=Path())
    suite: Annotated[str | None, NO_OPTION] = field(init=False, default=None)
    task_ids: Annotated[tuple[int, ...], NO_OPTION] = field(init=False, default=())
    episodes_per_task: Annotated[int, NO_OPTION] = field(init=False, default=1)
    initial_states: Annotated[InitialStates, NO_OPTION] = field(init=False, default="train")
    train_fraction: Annotated[float, NO_OPTION] = field(init=False, default=0.8)
    split_seed: Annotated[int, NO_OPTION] = field(init=False, default=0)
    seed: Annotated[int, NO_OPTION] = field(init=False, default=0)
    image_size: Annotated[int | None, NO_OPTION] = field(init=False, default=None)
    detail: Annotated[Detail | None, NO_OPTION] = field(init=False, default=None)
    display: Annotated[DisplayMode, NO_OPTION] = field(init=False, default="auto")
    env: Annotated[EnvConfig, NO_OPTION] = field(init=False, default_factory=EnvConfig)

    def __post_init__(self) -> None:
        """Checked with what it shares, by `FromScratchConfig`."""


@dataclass(frozen=True, kw_only=True)
class SftStage(SftConfig):
    """Supervised training on them: what GRPO starts from."""

    data: Annotated[Path, NO_OPTION] = field(init=False, default=Path())
    output: Annotated[Path, NO_OPTION] = field(init=False, default=Path())
    resume: Annotated[bool, NO_OPTION] = field(init=False, default=True)
    seed: Annotated[int, NO_OPTION] = field(init=False, default=0)
    train_fraction: Annotated[float, NO_OPTION] = field(init=False, default=0.8)
    split_seed: Annotated[int, NO_OPTION] = field(init=False, default=0)
    display: Annotated[DisplayMode, NO_OPTION] = field(init=False, default="auto")
    env: Annotated[EnvConfig, NO_OPTION] = field(init=False, default_factory=EnvConfig)
    policy: Annotated[PolicyConfig, NO_OPTION] = field(init=False, default_factory=PolicyConfig)
    rollout: Annotated[RolloutConfig, NO_OPTION] = field(init=False, default_factory=RolloutConfig)

    def __post_init__(self) -> None:
        """Checked with what it shares, by `FromScratchConfig`."""


@dataclass(frozen=True, kw_only=True)
class TrainStage(TrainConfig):
    """GRPO."""

    output: Annotated[Path, NO_OPTION] = field(init=False, default=Path())
    resume: Annotated[bool, NO_OPTION] = field(init=False, default=True)
    seed: Annotated[int, NO_OPTION] = field(init=False, default=0)
    train_fraction: Annotated[float, NO_OPTION] = field(init=False, default=0.8)
    split_seed: Annotated[int, NO_OPTION] = field(init=False, default=0)
    display: Annotated[DisplayMode, NO_OPTION] = field(init=False, default="auto")
    env: Annotated[EnvConfig, NO_OPTION] = field(init=False, default_factory=EnvConfig)
    policy: Annotated[PolicyConfig, NO_OPTION] = field(init=False, default_factory=PolicyConfig)

    def __post_init__(self) -> None:
        """Checked with what it shares, by `FromScratchConfig`."""


@dataclass(frozen=True, kw_only=True)
class LastEvaluation(EvalConfig):
    """The evaluation of start and end: by default every held-out initial state of every task."""

    every: Annotated[int, NO_OPTION] = field(init=False, default=1)
    before_training: Annotated[bool, NO_OPTION] = field(init=False, default=True)
    initial_states: Annotated[InitialStates, NO_OPTION] = field(init=False, default="held-out")
    temperatures: tuple[float, ...] = (0.0, 1.0)
    """0 plays greedily, above 0 samples at that temperature; each plays all episodes."""
    episodes_per_task: int = 0
    """Episodes per task; 0: each held-out initial state once. Sampled ones begin again where more are asked for."""
