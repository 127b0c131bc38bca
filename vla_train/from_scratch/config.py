"""What `train --recipe gpu-from-scratch` can be told; importing this needs neither torch nor a simulator.

The stages are the commands `collect`, `sft`, `train` and `eval`, with their options. What they must agree about (env, policy,
tasks, pictures, seeds, the split of initial states) cannot be said for one of them: it stands here once.
"""

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from vla_train.config import EnvConfig, EvalConfig, EvaluateConfig, PolicyConfig, RolloutConfig, TrainConfig
from vla_train.config_checks import check_at_least, check_fields, require
from vla_train.demonstrations.config import CollectConfig
from vla_train.from_scratch.stage_options import CollectStage, Detail, DisplayMode, LastEvaluation, SftStage, TrainStage
from vla_train.sft.config import SftConfig

_Config = TypeVar("_Config")
COLLECT, SFT, TRAIN, EVALUATION = STAGES = ("collect", "sft", "train", "evaluation")
"""In their order; the options of each stand under its name."""
DEMONSTRATIONS, START, GRPO = "demonstrations", "start", "grpo"
"""Folders of the first three; that of the last has its name."""


@dataclass(frozen=True, kw_only=True)
class FromScratchConfig:
    """From nothing to a policy that GRPO made good: demonstrations, supervised training, GRPO, evaluation."""

    output: Path = Path("runs/from-scratch")
    """Folder of it all: demonstrations/, start/, grpo/, evaluation/, result.json. The same command goes on where it ended."""
    suite: str | None = None
    """Suite of tasks, short for env.kwargs suite=NAME; None takes the env's own choice."""
    task_ids: tuple[int, ...] = ()
    """Tasks that one policy learns; none: all of the suite."""
    demonstrations_per_task: int = 10
    """Demonstrations of each task."""
    image_size: int | None = None
    """Height and width of images in pixels, short for env.kwargs image_size=SIZE; None takes the env's own."""
    detail: Detail | None = None
    """How exactly LIBERO is drawn, short for env.kwargs detail=NAME; None takes the env's own."""
    seed: int = 0
    """Seed of everything that is drawn, except the split below."""
    train_fraction: float = 0.8
    """Share (0 to 1) of each task's initial states that are demonstrated and trained on; the rest is held out."""
    split_seed: int = 0
    """Seed of which states are held out."""
    display: DisplayMode = "auto"
    """Progress on the terminal; auto is rich on a terminal, plain lines elsewhere."""
    env: EnvConfig = field(default_factory=EnvConfig)
    """Of all stages. The expert has the env's own time limit: max-episode-steps is the policy's."""
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    """Of all stages; a checkpoint is what supervised training starts from."""
    collect: CollectStage = field(default_factory=CollectStage)
    sft: SftStage = field(default_factory=SftStage)
    train: TrainStage = field(default_factory=TrainStage)
    evaluation: LastEvaluation = field(default_factory=LastEvaluation)

    def __post_init__(self) -> None:
        check_fields(self)
        check_at_least(self, "", 1, "demonstrations_per_task")
        require(
            0 < self.train_fraction < 1,
            f"train_fraction must lie between 0 and 1, got {self.train_fraction}: success is measured on held-out states",
        )
        for name in STAGES:
            try:
                self.of_stage(name)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error

    def of_stage(self, name: str) -> CollectConfig | SftConfig | TrainConfig | EvaluateConfig:
        """The config of a stage's command; the last one's names no checkpoint."""
        match name:
            case "collect":
                return self.collecting
            case "sft":
                return self.teaching
            case "train":
                return self.training
            case "evaluation":
                return self.evaluating(Path())
        raise KeyError(name)

    @property
    def collecting(self) -> CollectConfig:
        """Of the first stage."""
        return _complete(
            CollectConfig,
            self.collect,
            **self._shared,
            output=self.output / DEMONSTRATIONS,
            suite=self.suite,
            task_ids=self.task_ids,
            episodes_per_task=self.demonstrations_per_task,
            image_size=self.image_size,
            detail=self.detail,
            env=replace(self.env, max_episode_steps=None),
        )

    @property
    def teaching(self) -> SftConfig:
        """Of the second."""
        return _complete(
            SftConfig,
            self.sft,
            **self._shared,
            data=self.output / DEMONSTRATIONS,
            output=self.output / START,
            env=self._played_env,
            policy=self.policy,
            rollout=self._serving,
        )

    @property
    def training(self) -> TrainConfig:
        """Of the third, which starts from the newest checkpoint of the second."""
        policy = replace(self._taught_policy, checkpoint=str(self.output / START))
        return _complete(
            TrainConfig, self.train, **self._shared, output=self.output / GRPO, env=self._played_env, policy=policy
        )

    def evaluating(self, checkpoint: Path) -> EvaluateConfig:
        """Of the last: one for each checkpoint, in a folder of its own."""
        return EvaluateConfig(
            **self._shared,
            checkpoint=str(checkpoint),
            output=self.evaluation_folder(checkpoint),
            env=self._played_env,
            policy=replace(self._taught_policy, compile=False),  # plays too little to be worth the wait
            rollout=self._serving,
            eval=_complete(EvalConfig, self.evaluation),
        )

    def evaluation_folder(self, checkpoint: Path) -> Path:
        """Of a checkpoint of the second or third stage, `.../grpo/checkpoints/step_000010`."""
        return self.output / EVALUATION / f"{checkpoint.parent.parent.name}_{checkpoint.name}"

    @property
    def _shared(self) -> dict[str, Any]:
        names = ("seed", "train_fraction", "split_seed", "display")
        return {name: getattr(self, name) for name in names}

    @property
    def _played_env(self) -> EnvConfig:
        return replace(self.env, kwargs=self.collecting.played_env.kwargs)

    @property
    def _serving(self) -> RolloutConfig:
        """What matters where there are no groups."""
        rollout = self.train.rollout
        return RolloutConfig(max_policy_batch=rollout.max_policy_batch, max_wait_s=rollout.max_wait_s)

    @property
    def _taught_policy(self) -> PolicyConfig:
        """Of a checkpoint that has all that the first one may have lacked."""
        return replace(self.policy, checkpoint=None, companion=None, adapters="auto", random_weights=False)


def _complete(kind: type[_Config], stage: Any, **given: Any) -> _Config:
    """The config of a command: what its stage was told, and what all share."""
    return kind(**({f.name: getattr(stage, f.name) for f in fields(kind)} | given))  # type: ignore[arg-type]
