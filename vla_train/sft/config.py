"""What `sft` can be told; importing this needs neither torch nor a simulator. The text under each field is its `--help`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vla_train.config import (
    TRACKERS,
    AdamWConfig,
    EnvConfig,
    EvalConfig,
    PolicyConfig,
    RolloutConfig,
    TrackerName,
    check_split,
    check_trained,
)
from vla_train.config_checks import check_at_least, check_fields, check_positive, require


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How training images vary: what a policy should not learn from."""

    crop: bool = True
    """Look at a random crop where the policy looks at the central one: of the same area, anywhere in the image."""
    shift: float = 0.02
    """Move the image by up to this share (0 to 1) of its side beyond that, repeating its border."""
    brightness: float = 0.2
    """Add up to this share (0 to 1) of white, or take it away."""
    contrast: float = 0.2
    """Spread colours around their mean by a factor of up to 1 plus or minus this, in [0, 1)."""
    saturation: float = 0.2
    """Spread colours around their grey by a factor of up to 1 plus or minus this, in [0, 1)."""
    hue: float = 0.05
    """Turn colours around grey by up to this share (0 to 1) of a full turn."""

    def __post_init__(self) -> None:
        check_fields(self, "augment.")
        for name in ("shift", "brightness", "contrast", "saturation", "hue"):
            require(0 <= getattr(self, name) < 1, f"augment.{name} must lie in [0, 1), got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class SftConfig:
    """One run of supervised training."""

    data: Path
    """Folder of demonstrations in LeRobot's format, as collect writes them."""
    output: Path = Path("runs/sft")
    """Folder of the run: config, checkpoints, curves, videos."""
    resume: bool = True
    """Go on from the newest checkpoint in the output folder where there is one; without, such a folder is an error."""
    steps: int = 2000
    """AdamW steps of the run."""
    batch_rows: int = 64
    """Rows per AdamW step, over all ranks: each is a state and the chunk of actions that followed it."""
    stride: int = 1
    """Learn from every state, or of each episode from every second one (2), and so on; counted in env steps."""
    padding: Literal["last-action", "ignore"] = "last-action"
    """Chunks that reach beyond an episode's end: repeat its last action, as OpenVLA-OFT does, or leave the rest out."""
    statistics: Literal["auto", "data", "bounds", "checkpoint"] = "auto"
    """What the bins cover: the data's 1 to 99 % quantiles, the env's bounds, or as the checkpoint (auto: where given)."""
    gripper: Literal["auto", "env", "openvla", "inverted", "zero-one"] = "auto"
    """Open and closed in the data: -1, 1 (env), 1, 0 (openvla), 1, -1 (inverted) or 0, 1 (zero-one); auto finds out."""
    fps: float | None = None
    """Actions per second of the data where they say it wrongly: published LIBERO sets say 10, and hold 20."""
    orientation: Literal["auto", "as-is", "rotated", "flipped", "mirrored"] = "auto"
    """What turns the data's pictures into the env's; auto compares them, where collect did not write the data."""
    label_step: float = 0.0
    """Round normalised actions (-1 to 1) to multiples of this: a small policy learns faster from 0.25 or 0.125; 0 does not."""
    validation_fraction: float = 0.1
    """Share (0 to 1) of the episodes kept for the validation loss, where none are from held-out initial states."""
    validation_rows: int = 256
    """Most rows that a validation looks at."""
    log_every: int = 10
    """AdamW steps between two points of the curves."""
    checkpoint_every: int = 500
    """AdamW steps between checkpoints; the last step always leaves one."""
    keep_checkpoints: int = 1
    """Newest checkpoints kept, besides the one with the best evaluation."""
    seed: int = 0
    """Seed of everything that is drawn, except the split below: weights, order of rows, augmentation."""
    train_fraction: float = 0.8
    """Share (0 to 1) of each task's initial states that belongs to training, as in the GRPO run that follows; 1 uses all."""
    split_seed: int = 0
    """Seed of which states are held out: the same in all runs, demonstrations and evaluations that should agree."""
    trackers: tuple[TrackerName, ...] = ("tensorboard",)
    """Where curves go, besides metrics.jsonl."""
    display: Literal["auto", "rich", "plain", "none"] = "auto"
    """Progress on the terminal; auto is rich on a terminal, plain lines elsewhere."""
    env: EnvConfig = field(default_factory=EnvConfig)
    """Without env.kwargs it is the env that the data were collected in, where they say so."""
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: AdamWConfig = field(
        default_factory=lambda: AdamWConfig(learning_rate=5e-4, schedule="cosine", warmup_steps=50, beta2=0.95)
    )
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    """Only max_policy_batch and max_wait_s matter here: an evaluation has no groups."""
    eval: EvalConfig = field(default_factory=lambda: EvalConfig(every=500, before_training=False, temperatures=(0.0, 1.0)))

    def __post_init__(self) -> None:
        check_fields(self)
        check_trained(self.policy)
        names = ("steps", "batch_rows", "stride", "validation_rows", "log_every", "checkpoint_every", "keep_checkpoints")
        check_at_least(self, "", 1, *names)
        check_at_least(self, "", 0, "seed", "split_seed")
        require(0 <= self.label_step <= 1, f"label_step must lie in [0, 1], got {self.label_step}")
        require(0 <= self.validation_fraction < 1, f"validation_fraction must lie in [0, 1), got {self.validation_fraction}")
        require(
            self.statistics != "checkpoint" or self.policy.checkpoint is not None,
            "statistics checkpoint needs a policy.checkpoint: random weights bring none",
        )
        if self.statistics_source != "checkpoint":
            for name, default in (("statistics_key", None), ("gripper", "auto")):
                value = getattr(self.policy, name)
                require(
                    value == default,
                    f"policy.{name} {value} speaks of a checkpoint's statistics, and these are replaced (statistics "
                    f"{self.statistics_source}): leave it out, or set statistics to checkpoint",
                )
        if self.fps is not None:
            check_positive(self, "", "fps")
        for tracker in self.trackers:
            require(tracker in TRACKERS, f"trackers must be among {', '.join(TRACKERS)}, got {tracker!r}")
        check_split(self.train_fraction, self.eval, evaluates=self.eval.every > 0)

    @property
    def statistics_source(self) -> Literal["data", "bounds", "checkpoint"]:
        """`statistics`, with auto resolved."""
        if self.statistics == "auto":
            return "data" if self.policy.checkpoint is None else "checkpoint"
        return self.statistics
