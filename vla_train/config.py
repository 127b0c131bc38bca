"""Everything a run can be told, as frozen dataclasses; importing this needs neither torch nor a simulator.

A config that cannot work is refused when it is built, before anything starts. The command line is generated from these
classes: the text under each field is its `--help`.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, get_args

from vla_train.config_checks import check_at_least, check_fields, check_positive, require
from vla_train.config_pairs import KEY_VALUE_PAIRS
from vla_train.registry import ESTIMATORS, LOSSES, POLICIES, is_trainable, require_known

TrackerName = Literal["tensorboard", "wandb", "trackio"]
ProtocolName = Literal["none", "simplevla-rl", "rlinf", "openvla-oft"]
DEMO_CHECKPOINT = "demo"
"""Name of the small policy that comes along with this package."""
TRACKERS: tuple[TrackerName, ...] = get_args(TrackerName)


@dataclass(frozen=True, kw_only=True)
class EnvConfig:
    """Which Gymnasium env, and how many of it."""

    id: str = "Libero-v0"
    """Gymnasium id, or MODULE:ID where importing MODULE registers it. Any env with continuous, bounded actions works."""
    kwargs: Annotated[dict[str, str], KEY_VALUE_PAIRS] = field(default_factory=dict)
    """Arguments of the env, values JSON or text, such as suite=libero_10 task_ids=[0,3]; they replace all defaults shown."""
    num_workers: int = 2
    """Workers that take turns with the policy: with 2 or more, one simulates while the policy decides for another."""
    envs_per_worker: int = 4
    """Envs of each worker, simulated side by side."""
    worker: Literal["thread", "process", "ray"] = "thread"
    """Where a worker runs: a thread (envs that release the GIL), a process (any other), or a Ray actor (other machines)."""
    image_key: str = "image"
    """Key of the main image in the observation ("outer/inner" in a nested one); render: the frame that render() draws."""
    instruction: str | None = None
    """What the policy is told to do, for envs whose observation has no "instruction"."""
    success: str = "auto"
    """auto: info["success"] or "is_success"; info:KEY; return: reached; terminated: ended, last (chunk's) reward positive."""
    success_return: float = 1.0
    """Return (sum of an episode's rewards) from which it counts as a success, with env.success return."""
    max_episode_steps: int | None = None
    """Time limit in env steps (single actions); None keeps the env's own."""
    step_timeout_s: float = 300.0
    """Seconds after which a worker that does not answer counts as hung and is restarted."""
    max_restarts: int = 3
    """Restarts of a worker while it plays as many episodes to their end as it has envs; one more ends the run."""

    def __post_init__(self) -> None:
        check_fields(self, "env.")
        require(bool(self.id), "env.id must name an env")
        known = self.success in ("auto", "terminated", "return") or self.success.removeprefix("info:") not in ("", self.success)
        require(known, f"env.success must be auto, terminated, return or info:KEY, got {self.success!r}")
        check_at_least(self, "env.", 1, "num_workers", "envs_per_worker")
        check_at_least(self, "env.", 0, "max_restarts")
        check_positive(self, "env.", "step_timeout_s")
        if self.max_episode_steps is not None:
            check_at_least(self, "env.", 1, "max_episode_steps")


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """Which policy, and how it runs."""

    factory: str = "simplevla_oft"
    """What builds it: simplevla_oft, vllm (docs/vllm.md), remote (a server, only eval: docs/serve.md), MODULE:FUNCTION."""
    url: str | None = None
    """Address of a server with policy.factory remote: ws://HOST:PORT (of openpi with policy.kwargs protocol=openpi)."""
    kwargs: Annotated[dict[str, str], KEY_VALUE_PAIRS] = field(default_factory=dict)
    """Arguments for a factory, as KEY=VALUE: your own's; vllm's sleep, max_batched_tokens; remote's protocol, timeout_s, ..."""
    checkpoint: str | None = None
    """A run's folder, one of its checkpoints, a folder or hub id of weights or LoRA adapters, or demo; None: random weights."""
    companion: str | None = None
    """Folder or hub id of what the checkpoint lacks: tokenizer, statistics, image settings. The one it came from has them."""
    adapters: Literal["auto", "merged", "separate"] = "auto"
    """A lora_adapter/ beside whole weights: merged (they hold it), separate (it goes on top); auto: by its record, or asks."""
    size: Literal["tiny", "small", "openvla-7b"] = "tiny"
    """Size of the model where no checkpoint is given: about 5 million, 16 million, or 7.5 billion weights."""
    random_weights: bool = False
    """Start openvla-7b from random weights, to try the machinery; the smaller sizes always do without a checkpoint."""
    chunk_size: int = 8
    """Actions decided at once, a chunk (K); a checkpoint's own value must agree."""
    statistics_key: str | None = None
    """Dataset whose action statistics to use; None takes the checkpoint's own choice or the one that covers the suite."""
    gripper: Literal["auto", "libero", "none"] = "auto"
    """How the checkpoint's data store the gripper: libero (0 close, 1 open), none (as the env does); auto finds it out."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs; auto takes a GPU where there is one."""
    worker: Literal["local", "ray"] = "local"
    """Where the sampling copy runs: in the training process, or in Ray actors (on nodes that offer `train_rollout`)."""
    replicas: int = 1
    """Sampling copies that share each batch (with worker = ray), each on a GPU of its own where the model runs on GPUs."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Weights and activations; auto: bfloat16 on GPUs and on CPUs that have it, else float32. Log-probs are always float32."""
    images: Literal["auto", "openvla", "rlinf"] = "auto"
    """openvla: JPEG, Lanczos, centre crop; rlinf: bicubic alone; auto: as the checkpoint says or its trainer did."""
    jpeg: Literal["auto", "on", "off"] = "auto"
    """Pass images through JPEG (quality 95) first; auto: as the checkpoint says, otherwise on for LIBERO's datasets."""
    compile: bool = False
    """Compile the model with torch.compile (worth it on GPUs)."""
    lora_rank: int = 0
    """Rank of LoRA adapters, which alone are then trained; 0 trains all weights. A checkpoint's adapters of that rank go on."""
    lora_layers: Literal["all", "language"] = "all"
    """Where adapters go: on all linear layers that run, or on the language model's alone (a faster update)."""
    base_dtype: Literal["auto", "fp8", "nf4"] = "auto"
    """Language model under adapters. auto: as dtype; fp8: half (Ada, Hopper); nf4: a quarter. Eval merges only with auto."""
    activation_checkpointing: Literal["auto", "on", "off"] = "auto"
    """Recompute activations in the backward pass: less memory, a third more time; auto: as few blocks as a GPU asks for."""
    gpu_memory_gb: float | None = None
    """Use a GPU as if it had so much memory (1e9 bytes), simulators included; None: all that it has."""

    def __post_init__(self) -> None:
        check_fields(self, "policy.")
        require_known(self.factory, POLICIES, option="policy.factory")
        is_remote = self.factory == "remote"
        require(
            not is_remote or bool(self.url), "policy.factory remote needs its server's address: --policy.url ws://HOST:PORT"
        )
        require(is_remote or self.url is None, f"policy.url {self.url} is for policy.factory remote, got {self.factory}")
        check_at_least(self, "policy.", 1, "chunk_size", "replicas")
        check_at_least(self, "policy.", 0, "lora_rank")
        require(
            not (self.images == "rlinf" and self.jpeg == "on"),
            "policy.jpeg on contradicts policy.images rlinf, which has no JPEG",
        )
        if self.gpu_memory_gb is not None:
            check_positive(self, "policy.", "gpu_memory_gb")
        require(
            self.replicas == 1 or self.worker == "ray",
            f"policy.replicas {self.replicas} needs policy.worker=ray: one process has one",
        )


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """How episodes are sampled."""

    groups_per_iteration: int = 64
    """Groups of episodes with a learning signal to collect before each update."""
    group_size: int = 8
    """Episodes per group (G), all of one task from one initial state; most estimators compare them with each other."""
    temperature: float = 1.6
    """Softmax temperature at which training's actions are sampled: above 1 explores more. Evaluations have their own."""
    final_temperature: float | None = None
    """Temperature of the last iteration, in equal steps: a low one trains what greedy play does. By default it stays."""
    max_policy_batch: int = 256
    """Most decisions in one policy call: workers that are ready together share a call up to this."""
    max_wait_s: float = 0.0
    """Seconds to wait for further workers before serving the ready ones, so that they share a call."""
    min_success_rate: float = 0.1
    """Groups whose success rate (0 to 1) is below this carry no signal and are replaced (dynamic sampling)."""
    max_success_rate: float = 0.9
    """Groups whose success rate (0 to 1) is above this carry no signal and are replaced."""
    max_attempts: float = 4.0
    """End an iteration after this many times rollout.groups-per-iteration groups, with what signal there is."""
    deterministic: bool = False
    """Play only groups that are needed: at max-staleness 0 a resumed run equals an unbroken one (GPU: with microbatch-rows)."""
    max_staleness: int = 0
    """Age of the weights that may sample, in updates: 1 lets the next rollout overlap the update, 0 never does."""

    def __post_init__(self) -> None:
        check_fields(self, "rollout.")
        check_at_least(self, "rollout.", 1, "groups_per_iteration", "group_size", "max_policy_batch", "max_attempts")
        check_at_least(self, "rollout.", 0, "max_wait_s")
        check_positive(self, "rollout.", "temperature")
        if self.final_temperature is not None:
            check_positive(self, "rollout.", "final_temperature")
        require(
            0 <= self.min_success_rate <= self.max_success_rate <= 1,
            "rollout.min_success_rate and max_success_rate must satisfy 0 <= min <= max <= 1, "
            f"got {self.min_success_rate} and {self.max_success_rate}",
        )
        require(self.max_staleness in (0, 1), f"rollout.max_staleness must be 0 or 1, got {self.max_staleness}")

    def temperature_of(self, iteration: int, *, iterations: int) -> float:
        """Temperature of an iteration, counted from 0, of a run of `iterations`."""
        if self.final_temperature is None or iterations == 1:
            return self.temperature
        return self.temperature + (self.final_temperature - self.temperature) * iteration / (iterations - 1)


@dataclass(frozen=True, kw_only=True)
class AlgoConfig:
    """Advantages and loss (see docs/algorithm.md)."""

    advantage: str = "grpo"
    """Estimator: grpo, rloo, reinforce++, reinforce (needs no groups), or MODULE:FUNCTION (see docs/algorithm.md)."""
    loss: str = "clipped"
    """clipped (PPO's, with the bounds below), cross-entropy (without a ratio), or MODULE:FUNCTION (see docs/algorithm.md)."""
    reward: Literal["success", "return"] = "success"
    """What is compared within a group: 0/1 success, or the episode's return (sum of its rewards)."""
    clip_low: float = 0.2
    """A token's probability ratio, new weights to sampling weights, is clipped below at 1 - this."""
    clip_high: float = 0.28
    """The ratio is clipped above at 1 + this ("clip-higher")."""
    aggregation: Literal["seq-mean-token-mean", "token-mean"] = "seq-mean-token-mean"
    """Mean over the tokens of each trajectory and then over trajectories, or over all tokens at once."""

    def __post_init__(self) -> None:
        check_fields(self, "algo.")
        require_known(self.advantage, ESTIMATORS, option="algo.advantage")
        require_known(self.loss, LOSSES, option="algo.loss")
        require(0 < self.clip_low <= 1, f"algo.clip_low must lie in (0, 1], got {self.clip_low}")
        check_positive(self, "algo.", "clip_high")


@dataclass(frozen=True, kw_only=True)
class AdamWConfig:
    """AdamW, its learning rate, and how its steps are computed."""

    learning_rate: float = 5e-6
    """Step size of AdamW: the largest, which the warm-up ends at."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """How the learning rate goes on after the warm-up: it stays, or falls until the run's last AdamW step."""
    warmup_steps: int = 0
    """AdamW steps over which the learning rate rises from 0."""
    min_learning_rate_fraction: float = 0.0
    """Where cosine and linear end, as a fraction (0 to 1) of learning_rate."""
    beta1: float = 0.9
    """AdamW's decay of the gradient's running mean, in [0, 1)."""
    beta2: float = 0.999
    """AdamW's decay of the squared gradient's running mean, in [0, 1)."""
    weight_decay: float = 0.01
    """AdamW's decoupled weight decay; each step shrinks weights by this times the learning rate."""
    max_grad_norm: float = 1.0
    """A larger gradient (L2 norm over all weights) is scaled down to this."""
    microbatch_rows: int = 0
    """Decisions (chunks) per forward-backward pass: bounds memory, does not change the result; 0: by a GPU's memory, else 8."""
    cpu_offload: bool = False
    """Keep AdamW's state in host memory instead of the GPU's."""
    sharding: Literal["auto", "shard", "replicate"] = "auto"
    """On several ranks: each holds a part of the weights (FSDP2), or all; auto shards unless little is trained (LoRA)."""

    def __post_init__(self) -> None:
        check_fields(self, "optim.")
        check_positive(self, "optim.", "learning_rate", "max_grad_norm")
        check_at_least(self, "optim.", 0, "microbatch_rows", "warmup_steps", "weight_decay")
        for name in ("beta1", "beta2"):
            require(0 <= getattr(self, name) < 1, f"optim.{name} must lie in [0, 1), got {getattr(self, name)}")
        require(
            0 <= self.min_learning_rate_fraction <= 1,
            f"optim.min_learning_rate_fraction must lie in [0, 1], got {self.min_learning_rate_fraction}",
        )


@dataclass(frozen=True, kw_only=True)
class OptimConfig(AdamWConfig):
    """AdamW, its learning rate, and the cut of an iteration into updates."""

    minibatch_trajectories: int = 128
    """Episodes per AdamW step."""
    epochs: int = 1
    """Passes over the episodes of each iteration."""
    accumulate_during_rollout: bool = False
    """Compute gradients of groups that are complete while the others are played; wants one AdamW step for all the episodes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, "optim.", 1, "minibatch_trajectories", "epochs")


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Evaluation: which episodes, and how the policy plays them."""

    every: int = 10
    """Iterations (of sft: AdamW steps) between evaluations; 0 never evaluates."""
    before_training: bool = True
    """Evaluate the start too, so that what was learnt can be seen."""
    temperatures: tuple[float, ...] = (0.0,)
    """0 plays greedily, above 0 samples at that temperature; each plays all episodes, and the first decides what is best."""
    episodes_per_task: int = 10
    """Episodes per task, each from another initial state while there are any, then again if sampled; 0: each state once."""
    initial_states: Literal["held-out", "all", "train"] = "held-out"
    """held-out: never trained on; train: only those trained on; all: with train-fraction 1, the paper's protocol."""
    videos: int = 2
    """Most videos of successes, and of failures, kept per evaluation; what a run's first one filmed, all others film too."""

    def __post_init__(self) -> None:
        check_fields(self, "eval.")
        check_at_least(self, "eval.", 0, "every", "episodes_per_task", "videos")
        for temperature in self.temperatures:
            require(
                math.isfinite(temperature) and temperature >= 0, f"eval.temperatures must be 0 or positive, got {temperature}"
            )
        require(
            0 < len(self.temperatures) == len(set(self.temperatures)),
            f"eval.temperatures must be one or more numbers, each once, got {self.temperatures}",
        )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One run."""

    output: Path = Path("runs/train")
    """Folder of the run: config, checkpoints, curves, videos, timeline."""
    resume: bool = True
    """Go on from the newest checkpoint in the output folder where there is one; without, such a folder is an error."""
    iterations: int = 100
    """Iterations of the run: each plays groups of episodes and updates the policy with them."""
    seed: int = 0
    """Seed of everything that is drawn, except the split below: weights, order of tasks, actions."""
    train_fraction: float = 0.8
    """Share (0 to 1) of each task's initial states used for training; the rest is held out for evaluation. 1 uses all."""
    split_seed: int = 0
    """Seed of which states are held out: the same in all runs, demonstrations and evaluations that should agree."""
    checkpoint_every: int = 10
    """Iterations between checkpoints; the last iteration always leaves one."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept, besides the one with the best evaluation; docs/algorithm.md says how much disk they take."""
    trackers: tuple[TrackerName, ...] = ("tensorboard",)
    """Where curves go, besides metrics.jsonl."""
    display: Literal["auto", "rich", "plain", "none"] = "auto"
    """Progress on the terminal; auto is rich on a terminal, plain lines elsewhere."""
    env: EnvConfig = field(default_factory=EnvConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    algo: AlgoConfig = field(default_factory=AlgoConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    def __post_init__(self) -> None:
        check_fields(self)
        check_at_least(self, "", 1, "iterations", "checkpoint_every", "keep_checkpoints")
        check_at_least(self, "", 0, "seed", "split_seed")
        estimator = ESTIMATORS.get(self.algo.advantage)
        require(
            self.rollout.group_size >= 2 or estimator is None or not estimator.needs_group,
            f"rollout.group_size must be at least 2, got {self.rollout.group_size}: algo.advantage {self.algo.advantage} "
            "compares the episodes of a group (reinforce does not)",
        )
        check_trained(self.policy)
        if self.optim.accumulate_during_rollout:
            check_accumulation(self.rollout, self.algo, self.optim)
        for tracker in self.trackers:
            require(tracker in TRACKERS, f"trackers must be among {', '.join(TRACKERS)}, got {tracker!r}")
        check_split(self.train_fraction, self.eval, evaluates=self.eval.every > 0)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """One evaluation of one checkpoint."""

    checkpoint: str | None = None
    """A run's folder (its newest checkpoint), one of its checkpoints, or a folder or hub id of weights or LoRA adapters."""
    output: Path | None = None
    """Folder of the results, by default in the run or beside the checkpoint; episodes that it holds are not played again."""
    protocol: ProtocolName = "none"
    """Whose figures to compare with: sets temperature, states, time limit, images and detail; options given come on top."""
    suites: tuple[str, ...] = ()
    """Suites to play one after the other, as a table; NAME+pro is a suite and LIBERO-PRO's perturbed versions of it."""
    seed: int = 0
    """Seed of what a policy that samples draws."""
    train_fraction: float = 0.8
    """Share (0 to 1) of each task's initial states that belonged to training."""
    split_seed: int = 0
    """Seed of which states were held out: the run's own, so that held-out means held out."""
    display: Literal["auto", "rich", "plain", "none"] = "auto"
    """Progress on the terminal; auto is rich on a terminal, plain lines elsewhere."""
    env: EnvConfig = field(default_factory=EnvConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    """Only max_policy_batch and max_wait_s matter here: an evaluation has no groups, and temperatures of its own."""
    eval: EvalConfig = field(default_factory=lambda: EvalConfig(episodes_per_task=0))

    def __post_init__(self) -> None:
        check_fields(self)
        check_at_least(self, "", 0, "seed", "split_seed")
        require(self.policy.checkpoint is None, "name the checkpoint with --checkpoint, not with policy.checkpoint")
        if self.policy.url is None:
            require(self.checkpoint is not None, "name a checkpoint with --checkpoint, or a policy's server with --policy.url")
        else:
            require(
                self.checkpoint is None, f"--checkpoint {self.checkpoint} contradicts --policy.url: the server has the weights"
            )
            require(
                self.eval.temperatures == (0.0,),
                "eval.temperatures is for policies of this process: how a server samples is set where it runs",
            )
        for name in ("suite", "bddl_file"):
            require(
                not self.suites or name not in self.env.kwargs,
                f"suites and env.kwargs {name}={self.env.kwargs.get(name)} both say what is played: leave one of them out",
            )
        check_split(self.train_fraction, self.eval, evaluates=True)


def check_trained(policy: PolicyConfig) -> None:
    """Refuse a policy of which nothing would be trained."""
    require(
        is_trainable(policy.factory),
        f"policy.factory {policy.factory} cannot be trained, only evaluated: it has no weights here",
    )
    require(
        policy.base_dtype == "auto" or policy.lora_rank > 0,
        f"policy.base_dtype {policy.base_dtype} freezes the language model: train adapters, with policy.lora_rank",
    )


def check_accumulation(rollout: RolloutConfig, algo: AlgoConfig, optim: OptimConfig) -> None:
    """Refuse to train during the rollout what has to wait for its end."""
    name = "optim.accumulate_during_rollout"
    episodes = rollout.groups_per_iteration * rollout.group_size
    require(
        optim.epochs == 1 and optim.minibatch_trajectories >= episodes,
        f"{name} needs one AdamW step per iteration: optim.epochs 1 and optim.minibatch_trajectories at least {episodes} (all "
        f"episodes), got {optim.epochs} and {optim.minibatch_trajectories}",
    )
    require(
        rollout.max_staleness == 0,
        f"{name} needs rollout.max_staleness 0, got {rollout.max_staleness}: the whole rollout overlaps the update there",
    )
    estimator = ESTIMATORS.get(algo.advantage)
    per_group = ", ".join(known for known, entry in ESTIMATORS.items() if entry.per_group)
    require(
        estimator is None or estimator.per_group,
        f"{name} needs an algo.advantage that looks at one group at a time ({per_group}), got {algo.advantage}",
    )


def check_split(train_fraction: float, evaluation: EvalConfig, *, evaluates: bool) -> None:
    """Refuse a split of initial states that leaves nothing to do."""
    require(0 < train_fraction <= 1, f"train_fraction must lie in (0, 1], got {train_fraction}")
    require(
        train_fraction < 1 or evaluation.initial_states != "held-out" or not evaluates,
        "train_fraction 1 leaves no held-out initial states: lower it, or set eval.initial_states to all or train",
    )
