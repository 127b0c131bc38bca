"""Everything a run can be told, as frozen dataclasses; importing this needs neither torch nor a simulator.

A config that cannot work is refused when it is built, before anything starts. The command line is generated from these
classes: the text under each field is its `--help`.
"""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from tyro.constructors import PrimitiveConstructorSpec

_Config = TypeVar("_Config")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _parse_pairs(pairs: list[str]) -> dict[str, str]:
    for pair in pairs:
        _require("=" in pair, f"expected KEY=VALUE, got {pair!r}")
    return {key: value for key, _, value in (pair.partition("=") for pair in pairs)}


_KEY_VALUE_PAIRS = PrimitiveConstructorSpec(
    nargs="*",
    metavar="KEY=VALUE",
    instance_from_str=_parse_pairs,
    is_instance=lambda value: isinstance(value, dict),
    str_from_instance=lambda value: [f"{key}={item}" for key, item in value.items()],
)


@dataclass(frozen=True, kw_only=True)
class EnvConfig:
    """Which Gymnasium env, and how many of it."""

    id: str = "Libero-v0"
    """Gymnasium id; any env with continuous actions works."""
    kwargs: Annotated[dict[str, str], _KEY_VALUE_PAIRS] = field(default_factory=dict)
    """Arguments of gym.make_vec as KEY=VALUE, each value JSON or a plain string, for example suite=libero_10 task_ids=[0,3].
    Given, they replace all of the recipe's; another env.id starts with none."""
    num_groups: int = 2
    """Env groups that take turns with the policy: 2 or more overlap simulation and generation."""
    envs_per_group: int = 4
    """Slots of each env group."""
    worker: Literal["thread", "process", "ray"] = "thread"
    """Where a group runs: a thread (envs that release the GIL), a process (any other), or a Ray actor (other machines)."""
    image_key: str = "image"
    """Key of the image in the observation; "render" takes the env's own rendered frame."""
    instruction: str | None = None
    """Instruction (text) for envs whose observation has none."""
    success: Literal["terminated", "return"] = "terminated"
    """An episode succeeds if it terminates with positive reward, or if its return reaches `success_return`."""
    success_return: float = 1.0
    """Return at which an episode counts as a success (with success = return)."""
    max_episode_steps: int | None = None
    """Time limit in env steps; None keeps the env's own."""
    step_timeout_s: float = 300.0
    """Seconds after which a silent env group counts as hung and is restarted."""
    max_restarts: int = 3
    """Restarts of each env group before the run stops with the cause."""

    def __post_init__(self) -> None:
        _require(self.num_groups >= 1, f"env.num_groups must be at least 1, got {self.num_groups}")
        _require(self.envs_per_group >= 1, f"env.envs_per_group must be at least 1, got {self.envs_per_group}")
        _require(self.step_timeout_s > 0, f"env.step_timeout_s must be positive, got {self.step_timeout_s}")
        _require(self.max_restarts >= 0, f"env.max_restarts must not be negative, got {self.max_restarts}")
        _require(
            self.max_episode_steps is None or self.max_episode_steps >= 1,
            f"env.max_episode_steps must be at least 1, got {self.max_episode_steps}",
        )


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """Which SimpleVLA-OFT, and how it runs."""

    checkpoint: str | None = None
    """Folder (or hub id) of a checkpoint in the published layout; None starts from random weights of `size`."""
    size: Literal["tiny", "small", "openvla-7b"] = "tiny"
    """Shape of the model where no checkpoint is given."""
    chunk_size: int = 8
    """Actions decided at once (K); a checkpoint's own value must agree."""
    statistics_key: str | None = None
    """Key of the checkpoint's dataset statistics; None takes `<suite>_no_noops`, or the only one there is."""
    gripper: Literal["auto", "libero", "none"] = "auto"
    """How a checkpoint's data store the gripper: libero is 0 close .. 1 open, none already the env's own values; auto takes
    what the checkpoint or its statistics say, and asks where they do not."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs."""
    worker: Literal["local", "ray"] = "local"
    """Where the sampling copy runs: in the training process, or in Ray actors (on nodes that offer `train_rollout`)."""
    replicas: int = 1
    """Sampling copies that share each batch (with worker = ray), each on a GPU of its own where the model runs on GPUs."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Weights and activations; auto is bfloat16 on a GPU, float32 on the CPU. Log-probs are always float32."""
    jpeg: bool = False
    """Round-trip images through JPEG (quality 95) first, as the published checkpoints' training data was."""
    compile: bool = False
    """Compile the model with torch.compile (pays on GPUs)."""
    lora_rank: int = 0
    """Rank of LoRA adapters on all linear layers; 0 trains all weights."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""

    def __post_init__(self) -> None:
        _require(self.chunk_size >= 1, f"policy.chunk_size must be at least 1, got {self.chunk_size}")
        _require(self.lora_rank >= 0, f"policy.lora_rank must not be negative, got {self.lora_rank}")
        _require(self.replicas >= 1, f"policy.replicas must be at least 1, got {self.replicas}")
        _require(
            self.replicas == 1 or self.worker == "ray",
            f"policy.replicas {self.replicas} needs policy.worker=ray: one process has one",
        )


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """How episodes are sampled."""

    groups_per_iteration: int = 64
    """Prompts with a learning signal to collect before each update."""
    group_size: int = 8
    """Episodes per prompt (G), all from the same task and initial state."""
    temperature: float = 1.6
    """Softmax temperature of sampling."""
    max_policy_batch: int = 256
    """Most rows in one policy call; ready env groups share a call up to this where sharing pays (learnt in the run)."""
    max_wait_s: float = 0.0
    """Seconds to wait for further env groups before serving the ready ones."""
    min_success_rate: float = 0.1
    """Groups whose success rate is below this carry no signal and are replaced (dynamic sampling)."""
    max_success_rate: float = 0.9
    """Groups whose success rate is above this carry no signal and are replaced."""
    max_attempts: float = 4.0
    """Stop an iteration after this many times `groups_per_iteration` prompts, with what signal there is."""
    deterministic: bool = False
    """Play exactly the groups that an iteration needs: its groups then depend on the seed alone, never on timing, and a resumed
    run equals an uninterrupted one. Otherwise slots that would idle at its end start the next iteration's groups (faster)."""
    max_staleness: int = 0
    """1 lets the next rollout overlap the update, with weights one version old; 0 never does."""

    def __post_init__(self) -> None:
        _require(
            self.groups_per_iteration >= 1, f"rollout.groups_per_iteration must be at least 1, got {self.groups_per_iteration}"
        )
        _require(
            self.group_size >= 2,
            f"rollout.group_size must be at least 2, got {self.group_size}: GRPO compares the episodes of a group",
        )
        _require(self.temperature > 0, f"rollout.temperature must be positive, got {self.temperature}")
        _require(self.max_policy_batch >= 1, f"rollout.max_policy_batch must be at least 1, got {self.max_policy_batch}")
        _require(self.max_wait_s >= 0, f"rollout.max_wait_s must not be negative, got {self.max_wait_s}")
        _require(
            0 <= self.min_success_rate <= self.max_success_rate <= 1,
            "rollout.min_success_rate and max_success_rate must satisfy 0 <= min <= max <= 1, "
            f"got {self.min_success_rate} and {self.max_success_rate}",
        )
        _require(self.max_attempts >= 1, f"rollout.max_attempts must be at least 1, got {self.max_attempts}")
        _require(self.max_staleness in (0, 1), f"rollout.max_staleness must be 0 or 1, got {self.max_staleness}")


@dataclass(frozen=True, kw_only=True)
class AlgoConfig:
    """Advantages and loss (see docs/algorithm.md)."""

    advantage: Literal["grpo", "rloo", "reinforce++"] = "grpo"
    """Advantage estimator."""
    reward: Literal["success", "return"] = "success"
    """What is compared within a group: 0/1 success, or the episode's return."""
    clip_low: float = 0.2
    """The ratio is clipped below at 1 - clip_low."""
    clip_high: float = 0.28
    """The ratio is clipped above at 1 + clip_high (clip-higher)."""
    aggregation: Literal["seq-mean-token-mean", "token-mean"] = "seq-mean-token-mean"
    """Mean over the tokens of each trajectory and then over trajectories, or over all tokens at once."""

    def __post_init__(self) -> None:
        _require(0 < self.clip_low <= 1, f"algo.clip_low must lie in (0, 1], got {self.clip_low}")
        _require(self.clip_high > 0, f"algo.clip_high must be positive, got {self.clip_high}")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW and the cut of an iteration into updates."""

    learning_rate: float = 5e-6
    """Constant after warm-up."""
    warmup_steps: int = 0
    """Updates over which the learning rate rises from 0."""
    beta1: float = 0.9
    """AdamW."""
    beta2: float = 0.999
    """AdamW."""
    weight_decay: float = 0.01
    """AdamW."""
    max_grad_norm: float = 1.0
    """Gradient clipping."""
    minibatch_trajectories: int = 128
    """Trajectories per update."""
    microbatch_rows: int = 8
    """Decision steps per forward-backward pass: bounds memory, does not change the result."""
    epochs: int = 1
    """Passes over each iteration's trajectories."""
    cpu_offload: bool = False
    """Keep the optimizer's state in host memory."""
    sharding: Literal["auto", "shard", "replicate"] = "auto"
    """On several ranks: each holds a part of the weights (FSDP2), or all; auto shards unless little is trained (LoRA)."""

    def __post_init__(self) -> None:
        _require(self.learning_rate > 0, f"optim.learning_rate must be positive, got {self.learning_rate}")
        _require(self.max_grad_norm > 0, f"optim.max_grad_norm must be positive, got {self.max_grad_norm}")
        for name in ("minibatch_trajectories", "microbatch_rows", "epochs"):
            _require(getattr(self, name) >= 1, f"optim.{name} must be at least 1, got {getattr(self, name)}")
        _require(self.warmup_steps >= 0, f"optim.warmup_steps must not be negative, got {self.warmup_steps}")


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Greedy evaluation."""

    every: int = 10
    """Iterations between evaluations; 0 never evaluates."""
    episodes_per_task: int = 10
    """Held-out initial states played per task; 0 plays all there are."""
    initial_states: Literal["held-out", "all", "train"] = "held-out"
    """held-out keeps evaluation apart from training (split by seed); all is the paper's protocol, which overlaps."""
    videos: int = 2
    """Videos of successes and of failures kept per evaluation (at most this many each)."""

    def __post_init__(self) -> None:
        for name in ("every", "episodes_per_task", "videos"):
            _require(getattr(self, name) >= 0, f"eval.{name} must not be negative, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One run."""

    output: Path = Path("runs/train")
    """Folder of the run: config, checkpoints, curves, videos, timeline."""
    resume: bool = True
    """Go on from the newest checkpoint in `output` where there is one."""
    iterations: int = 100
    """Rollout and update, this many times."""
    seed: int = 0
    """Seed of everything that is drawn: weights, prompts, samples, the split of initial states."""
    train_fraction: float = 0.8
    """Share of each task's initial states used for training; the rest is held out for evaluation. 1 uses all."""
    checkpoint_every: int = 10
    """Iterations between checkpoints; the last iteration always leaves one."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept, besides the best."""
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ("tensorboard",)
    """Where metrics go, besides metrics.jsonl."""
    display: Literal["auto", "rich", "plain", "none"] = "auto"
    """Progress on the terminal; auto is rich on a terminal, plain lines elsewhere."""
    env: EnvConfig = field(default_factory=EnvConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    algo: AlgoConfig = field(default_factory=AlgoConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    def __post_init__(self) -> None:
        _require(self.iterations >= 1, f"iterations must be at least 1, got {self.iterations}")
        _require(0 < self.train_fraction <= 1, f"train_fraction must lie in (0, 1], got {self.train_fraction}")
        _require(
            self.train_fraction < 1 or self.eval.initial_states != "held-out" or self.eval.every == 0,
            "train_fraction 1 leaves no held-out initial states: lower it, or set eval.initial_states to all or train",
        )
        _require(self.checkpoint_every >= 1, f"checkpoint_every must be at least 1, got {self.checkpoint_every}")
        _require(self.keep_checkpoints >= 1, f"keep_checkpoints must be at least 1, got {self.keep_checkpoints}")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """One evaluation of one checkpoint."""

    checkpoint: str
    """A run's folder (its newest checkpoint), one of its checkpoints, or a checkpoint in the published layout."""
    output: Path | None = None
    """Folder of the results; None makes one beside the checkpoint. A folder that holds results already is completed."""
    seed: int = 0
    """Seed of the split of initial states: the run's own, so that held-out means held out."""
    train_fraction: float = 0.8
    """Share of each task's initial states that belonged to training."""
    display: Literal["auto", "rich", "plain", "none"] = "auto"
    """Progress on the terminal; auto is rich on a terminal, plain lines elsewhere."""
    env: EnvConfig = field(default_factory=EnvConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    eval: EvalConfig = field(default_factory=lambda: EvalConfig(episodes_per_task=0))


def config_to_json(config: TrainConfig | EvaluateConfig) -> dict[str, Any]:
    """The config as plain JSON data; `config_from_json` gives a `TrainConfig` back."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    return plain(asdict(config))


def config_from_json(data: dict[str, Any]) -> TrainConfig:
    """Rebuild a config that `config_to_json` wrote.

    Raises:
        ValueError: A section or field is unknown (the config is from another version), or its values cannot work.
    """
    sections = {
        "env": EnvConfig,
        "policy": PolicyConfig,
        "rollout": RolloutConfig,
        "algo": AlgoConfig,
        "optim": OptimConfig,
        "eval": EvalConfig,
    }
    arguments = {name: _build(sections[name], value) if name in sections else value for name, value in data.items()}
    if "output" in arguments:
        arguments["output"] = Path(arguments["output"])
    if "trackers" in arguments:
        arguments["trackers"] = tuple(arguments["trackers"])
    return _build(TrainConfig, arguments)


def _build(cls: type[_Config], data: dict[str, Any]) -> _Config:
    known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(data) - known)
    _require(not unknown, f"{cls.__name__} has no field {', '.join(unknown)}: this config was written by another version")
    return cls(**data)
