"""What limits a machine, and what to change: numbers in, sentences out.

Invariant: pure functions, which neither measure nor know how that is done. All rates are chunks (decisions of one slot) per
second.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from vla_train.bench.machine import Machine
from vla_train.config import TrainConfig

RECIPE_GB: Mapping[str, float] = {"one-gpu": 80, "gpu-48gb": 48, "gpu-24gb": 24}
"""GPU memory, in 10^9 bytes, that recipes for the 7B policy are made for."""
MOST_CHANGES = 3
_OF_ITS_NAME = 0.95
"""A card may have less memory than its name says."""
_WORTH_IT = 1.1
"""A faster batch is this much faster."""
_OVERLAPPED = 0.75
"""Policy and envs that reach this much of the slower one alone wait little for each other."""
_TIGHT, _ROOMY = 0.92, 0.65
"""Shares of a GPU's memory: above the first, little is free; below the second, much."""
_SMALL_SHARE = 0.3
"""Of the time of a chunk: a policy that takes less of shared cores would free little by leaving them."""
_FP8_CAPABILITY = (8, 9)
_FREE_OF_THE_GIL = {"Libero": 300.0, "Isaac": math.inf}
"""How ids of envs begin whose threads hardly hold each other up, up to so many chunks/s (benchmarks/envs/bench_gil.py)."""
_LARGE = 1e9
"""Weights of a policy whose base is worth quantising."""


@dataclass(frozen=True, kw_only=True)
class PlayRates:
    """How fast episodes are played."""

    policy: Mapping[int, float]
    """The policy alone, by the rows of its calls."""
    envs: float
    """All workers with random actions."""
    both: float
    """All workers with the policy, pipelined."""

    @property
    def best_batch(self) -> int:
        """Rows at which the policy alone is fastest."""
        return max(self.policy, key=lambda rows: self.policy[rows])

    @property
    def best_policy(self) -> float:
        return self.policy[self.best_batch]

    @property
    def slower(self) -> float:
        """What both together cannot exceed."""
        return min(self.best_policy, self.envs)

    @property
    def in_turn(self) -> float:
        """What both would reach one after the other: the bound where they share cores that each of them fills."""
        return 1 / (1 / self.best_policy + 1 / self.envs)

    @property
    def overlap(self) -> float:
        """How much of the slower one's rate both together reach."""
        return self.both / self.slower


@dataclass(frozen=True, kw_only=True)
class Rates(PlayRates):
    """How fast episodes are played and trained on."""

    update: float
    """The update, with all its epochs."""

    @property
    def iteration(self) -> float:
        """Chunks played and trained on, one after the other."""
        return 1 / (1 / self.both + 1 / self.update)

    @property
    def update_share(self) -> float:
        """Of an iteration's time."""
        return self.iteration / self.update


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuMemory:
    """GPU memory, in 10^9 bytes, as the driver sees it: of all programs."""

    before_gb: float
    """Held before anything was set up."""
    playing_gb: float
    """Held after policy and envs have played."""
    peak_gb: float
    """The most at any time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Advice:
    """What to know, in plain sentences."""

    limit: str
    changes: tuple[str, ...]
    """What to try, the most promising first."""


Limit = Literal["update", "policy", "envs", "waiting", "cores"]


def limit_of(rates: Rates, machine: Machine) -> Limit:
    """What most of an iteration's time is lost to."""
    if rates.update_share > 0.5:
        return "update"
    if rates.overlap < _OVERLAPPED:
        return "cores" if machine.gpu is None else "waiting"
    return "policy" if rates.best_policy < rates.envs else "envs"


def advise(
    config: TrainConfig,
    rates: Rates,
    machine: Machine,
    *,
    memory: GpuMemory | None,
    num_weights: int,
    recipes: Collection[str],
) -> Advice:
    """What limits this machine, and what to change.

    Args:
        config: What was measured.
        rates: How fast it was.
        machine: Where.
        memory: None without a GPU.
        num_weights: Of the policy.
        recipes: Names of those that there are.
    """
    limit = limit_of(rates, machine)
    changes = _memory_changes(config, machine, memory, num_weights=num_weights, recipes=recipes)
    match limit:
        case "update":
            changes += _update_changes(config, machine, memory, num_weights=num_weights)
        case "policy":
            changes += _policy_changes(config, rates, machine, num_weights=num_weights)
        case "envs":
            changes += _env_changes(config, rates, machine)
        case "waiting":
            changes += _waiting_changes(config, rates)
        case "cores":
            mostly_envs = rates.envs / (rates.envs + rates.best_policy) < _SMALL_SHARE
            changes.append(f"use more than {machine.cores} cores" if mostly_envs else _more_cores(machine))
    changes += _idle_changes(config, rates, machine)
    return Advice(limit=_limit_text(limit, rates, machine), changes=tuple(changes[:MOST_CHANGES]))


def fitting_recipe(gpu_gb: float, recipes: Collection[str]) -> str | None:
    """The recipe for the most memory that a card has; None where there is none."""
    fitting = [name for name, needed in RECIPE_GB.items() if name in recipes and gpu_gb >= _OF_ITS_NAME * needed]
    return max(fitting, key=lambda name: RECIPE_GB[name], default=None)


def out_of_memory(config: TrainConfig, machine: Machine, *, doing: str, recipes: Collection[str]) -> str:
    """What to say where the GPU's memory was too small."""
    recipe = fitting_recipe(machine.gpu_gb, recipes)
    ways = [f"--recipe {recipe} is made for this card"] if recipe is not None else []
    ways += _less_memory(config, machine)
    return f"{doing} does not fit into the {machine.gpu_gb:.0f} GB of {machine.gpu}: {'; or '.join(ways)}"


def _limit_text(limit: Limit, rates: Rates, machine: Machine) -> str:
    alone = f"policy {rates.best_policy:.3g} chunks/s alone, envs {rates.envs:.3g}"
    together = f"both together reach {rates.overlap:.2f} of the slower one alone"
    match limit:
        case "update":
            return f"The update limits this machine: it takes {rates.update_share:.0%} of an iteration."
        case "policy":
            return f"The policy limits this machine: playing takes longer than updates, and the policy is slower ({alone})."
        case "envs":
            return f"The envs limit this machine: playing takes longer than updates, and the envs are slower ({alone})."
        case "waiting":
            return f"Waiting limits this machine: policy and envs have too little to do at a time, and {together}."
        case "cores":
            return f"The cores limit this machine: policy and envs share {machine.cores}, and {together}."


def _more_cores(machine: Machine) -> str:
    return f"use a GPU for the policy, or more than {machine.cores} cores"


def _memory_changes(
    config: TrainConfig, machine: Machine, memory: GpuMemory | None, *, num_weights: int, recipes: Collection[str]
) -> list[str]:
    """Where little memory is free, though nobody planned it so."""
    planned = config.optim.microbatch_rows == 0
    if memory is None or planned or memory.peak_gb < _TIGHT * machine.gpu_gb:
        return []
    recipe = fitting_recipe(machine.gpu_gb, recipes) if num_weights >= _LARGE else None
    ways = [f"take what --recipe {recipe} sets for such a card"] if recipe is not None else []
    ways += _less_memory(config, machine)
    return [f"leave some memory free ({memory.peak_gb:.0f} of {machine.gpu_gb:.0f} GB were held): {ways[0]}"]


def _less_memory(config: TrainConfig, machine: Machine) -> list[str]:
    """Ways to hold less; one at least."""
    policy, optim, ways = config.policy, config.optim, []
    if _is_built_in(config):
        if policy.lora_rank == 0:
            ways.append("train adapters alone (--policy.lora-rank 32)")
        elif policy.base_dtype == "auto":
            base = "fp8" if machine.capability >= _FP8_CAPABILITY else "nf4"
            ways.append(f"hold the frozen weights in less (--policy.base-dtype {base})")
    if optim.microbatch_rows > 1:
        ways.append(f"train on fewer rows at a time (--optim.microbatch-rows {optim.microbatch_rows // 2})")
    ways.append(f"decide for fewer rows at a time (--rollout.max-policy-batch {max(1, _largest_batch(config) // 2)})")
    return ways


def _update_changes(config: TrainConfig, machine: Machine, memory: GpuMemory | None, *, num_weights: int) -> list[str]:
    policy, rows = config.policy, config.optim.microbatch_rows
    changes = []
    if config.optim.epochs > 1:
        changes.append(f"go through each iteration's episodes fewer times: --optim.epochs {config.optim.epochs - 1}")
    if machine.gpu is None:
        return [*changes, _more_cores(machine)]
    assert memory is not None
    if _is_built_in(config) and policy.lora_rank == 0 and num_weights >= _LARGE:
        changes.append("train adapters alone: --policy.lora-rank 32")
    if _is_built_in(config) and policy.lora_rank > 0 and policy.lora_layers == "all":
        changes.append("put adapters on the language model alone: --policy.lora-layers language")
    changes += _faster_model(config, machine, num_weights=num_weights)
    free_gb = machine.gpu_gb - memory.peak_gb
    if rows > 0 and memory.peak_gb < _ROOMY * machine.gpu_gb:
        changes.append(f"train on more rows at a time, {free_gb:.0f} GB are free: --optim.microbatch-rows {2 * rows}")
    return changes


def _policy_changes(config: TrainConfig, rates: Rates, machine: Machine, *, num_weights: int) -> list[str]:
    if machine.gpu is None:
        return [_more_cores(machine)]
    return [*_batch_changes(config, rates), *_faster_model(config, machine, num_weights=num_weights)]


def _batch_changes(config: TrainConfig, rates: Rates) -> list[str]:
    """Where the policy would be faster with other batches."""
    sizes = sorted(rates.policy)
    smallest, largest = sizes[0], sizes[-1]
    if rates.best_policy > _WORTH_IT * rates.policy[largest]:
        return [f"let it decide for fewer rows at a time: --rollout.max-policy-batch {rates.best_batch}"]
    if rates.policy[largest] < _WORTH_IT * rates.policy[smallest]:
        return []
    faster = f"it is faster in larger batches ({rates.policy[smallest]:.3g} chunks/s at {smallest} rows, "
    faster += f"{rates.policy[largest]:.3g} at {largest})"
    if 2 * largest <= config.rollout.max_policy_batch:
        return [f"play more envs, {faster}: --env.envs-per-worker {2 * config.env.envs_per_worker}"]
    return [
        f"allow larger batches, {faster}: --rollout.max-policy-batch {2 * largest} and "
        f"--env.envs-per-worker {2 * config.env.envs_per_worker}"
    ]


def _faster_model(config: TrainConfig, machine: Machine, *, num_weights: int) -> list[str]:
    """What makes both sampling and updates faster on a GPU."""
    policy, changes = config.policy, []
    if not _is_built_in(config):
        return []
    if not policy.compile:
        changes.append("compile the policy: --policy.compile")
    if policy.base_dtype == "auto" and num_weights >= _LARGE and machine.capability >= _FP8_CAPABILITY:
        adapters = "" if policy.lora_rank > 0 else " --policy.lora-rank 32"
        changes.append(f"hold the frozen weights in FP8: --policy.base-dtype fp8{adapters}")
    return changes


def _env_changes(config: TrainConfig, rates: Rates, machine: Machine) -> list[str]:
    env, changes = config.env, []
    if env.num_workers * env.envs_per_worker < 2 * machine.cores:
        wanted = math.ceil(2 * machine.cores / env.num_workers)
        changes.append(
            f"play more envs, {env.num_workers * env.envs_per_worker} are few for {machine.cores} cores: "
            f"--env.envs-per-worker {wanted}"
        )
    if machine.gpu is not None:
        cores = math.ceil(machine.cores * rates.best_policy / rates.envs)
        changes.append(f"use more cores: about {cores} instead of {machine.cores} would keep up with the policy")
    else:
        changes.append(f"use more than {machine.cores} cores")
    return [*changes, *_process_changes(config, rates)]


def _waiting_changes(config: TrainConfig, rates: Rates) -> list[str]:
    env, changes = config.env, []
    if env.num_workers < 3:
        changes.append("let one more worker simulate meanwhile: --env.num-workers 3")
    changes.append(f"play more envs: --env.envs-per-worker {2 * env.envs_per_worker}")
    return [*changes, *_process_changes(config, rates)]


def _process_changes(config: TrainConfig, rates: Rates) -> list[str]:
    """Where threads may hold each other up."""
    if config.env.worker != "thread":
        return []
    name = config.env.id.rpartition(":")[2]
    free_up_to = next((rate for begin, rate in _FREE_OF_THE_GIL.items() if name.startswith(begin)), None)
    if free_up_to is None:
        return ["if the env is written in Python, use processes: --env.worker process"]
    if rates.envs <= free_up_to:
        return []
    return ["use processes, since threads this fast wait for each other in Python: --env.worker process"]


def _idle_changes(config: TrainConfig, rates: Rates, machine: Machine) -> list[str]:
    """What is there and not used."""
    env, rollout, changes = config.env, config.rollout, []
    episodes = rollout.groups_per_iteration * rollout.group_size
    if env.num_workers * env.envs_per_worker > episodes:
        fewer = max(1, episodes // env.num_workers)
        changes.append(
            f"play fewer envs, an iteration has {episodes} episodes for {env.num_workers * env.envs_per_worker}: "
            f"--env.envs-per-worker {fewer}"
        )
    needed = math.ceil(1.25 * machine.cores * rates.best_policy / rates.envs)
    if machine.gpu is not None and needed <= machine.cores // 2:
        changes.append(f"save cores: the envs would keep up with the policy on about {needed} of {machine.cores}")
    return changes


def _largest_batch(config: TrainConfig) -> int:
    return min(config.rollout.max_policy_batch, config.env.num_workers * config.env.envs_per_worker)


def _is_built_in(config: TrainConfig) -> bool:
    """Whether the policy takes the options of SimpleVLA-OFT."""
    return config.policy.factory == "simplevla_oft"
