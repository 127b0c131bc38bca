"""What limits a machine, and what to change: every branch, on made-up numbers."""

from dataclasses import replace
from typing import Any

import pytest

from vla_train.bench.advice import (
    MOST_CHANGES,
    RECIPE_GB,
    Advice,
    GpuMemory,
    Rates,
    advise,
    fitting_recipe,
    limit_of,
    out_of_memory,
)
from vla_train.bench.machine import Machine
from vla_train.config import EnvConfig, OptimConfig, PolicyConfig, RolloutConfig, TrainConfig

H100 = Machine(cores=16, gpu="H100", gpu_gb=85.0, capability=(9, 0))
A100 = Machine(cores=16, gpu="A100", gpu_gb=42.3, capability=(8, 0))
RTX_4090 = Machine(cores=16, gpu="RTX 4090", gpu_gb=25.7, capability=(8, 9))
TWO_CORES = Machine(cores=2, gpu=None)
HALF_FULL = GpuMemory(before_gb=0.5, playing_gb=20.0, peak_gb=40.0)
BALANCED = Rates(policy={32: 95.0, 64: 100.0}, envs=110.0, both=95.0, update=200.0)

TUNED = TrainConfig(
    env=EnvConfig(num_workers=3, envs_per_worker=32),
    policy=PolicyConfig(compile=True, lora_rank=32, lora_layers="language", base_dtype="fp8"),
    rollout=RolloutConfig(groups_per_iteration=16, group_size=8, max_policy_batch=64),
    optim=OptimConfig(microbatch_rows=8),
)
"""Nothing of the policy can be made faster."""


def changed(**sections: dict[str, Any]) -> TrainConfig:
    return replace(TUNED, **{name: replace(getattr(TUNED, name), **fields) for name, fields in sections.items()})


def advice(
    config: TrainConfig = TUNED,
    rates: Rates = BALANCED,
    machine: Machine = H100,
    *,
    memory: GpuMemory | None = HALF_FULL,
    num_weights: int = 7_500_000_000,
    recipes: tuple[str, ...] = tuple(RECIPE_GB),
) -> Advice:
    if machine.gpu is None:
        memory = None
    return advise(config, rates, machine, memory=memory, num_weights=num_weights, recipes=recipes)


# --- arithmetic


def test_an_iteration_plays_and_trains_one_after_the_other() -> None:
    rates = Rates(policy={8: 50.0, 16: 60.0}, envs=40.0, both=30.0, update=60.0)
    assert rates.iteration == pytest.approx(20.0)
    assert rates.update_share == pytest.approx(1 / 3)
    assert (rates.best_batch, rates.best_policy, rates.slower) == (16, 60.0, 40.0)
    assert rates.overlap == pytest.approx(0.75)
    assert rates.in_turn == pytest.approx(24.0)


# --- what limits


@pytest.mark.parametrize(
    ("rates", "machine", "limit", "said"),
    [
        (replace(BALANCED, update=50.0), H100, "update", "The update limits this machine: it takes 66% of an iteration."),
        (BALANCED, H100, "policy", "the policy is slower (policy 100 chunks/s alone, envs 110)"),
        (replace(BALANCED, envs=60.0, both=55.0), H100, "envs", "the envs are slower (policy 100 chunks/s alone, envs 60)"),
        (replace(BALANCED, both=50.0), H100, "waiting", "both together reach 0.50 of the slower one alone"),
        (replace(BALANCED, both=50.0), TWO_CORES, "cores", "policy and envs share 2, and both together reach 0.50"),
    ],
)
def test_what_limits_is_named(rates: Rates, machine: Machine, limit: str, said: str) -> None:
    assert limit_of(rates, machine) == limit
    assert said in advice(rates=rates, machine=machine).limit


# --- the policy limits


def test_a_tuned_policy_on_a_saturated_batch_is_left_alone() -> None:
    assert advice().changes == ()


def test_too_few_envs_for_the_batch_are_doubled() -> None:
    rates = replace(BALANCED, policy={4: 40.0, 8: 70.0}, both=68.0)
    changes = advice(changed(env={"num_workers": 2, "envs_per_worker": 4}), rates).changes
    assert changes == (
        "play more envs, it is faster in larger batches (40 chunks/s at 4 rows, 70 at 8): --env.envs-per-worker 8",
    )


def test_a_batch_that_is_cut_too_small_is_widened() -> None:
    rates = replace(BALANCED, policy={32: 60.0, 64: 100.0})
    assert "--rollout.max-policy-batch 128 and --env.envs-per-worker 64" in advice(rates=rates).changes[0]


def test_a_batch_that_is_too_large_is_cut() -> None:
    rates = replace(BALANCED, policy={32: 100.0, 64: 70.0})
    assert advice(rates=rates).changes == ("let it decide for fewer rows at a time: --rollout.max-policy-batch 32",)


def test_a_plain_model_is_compiled_and_quantised_where_the_gpu_can() -> None:
    plain = changed(policy={"compile": False, "base_dtype": "auto"})
    on_h100, on_a100 = advice(plain), advice(plain, machine=A100, memory=replace(HALF_FULL, peak_gb=30.0))
    assert on_h100.changes == (
        "compile the policy: --policy.compile",
        "hold the frozen weights in FP8: --policy.base-dtype fp8",
    )
    assert on_a100.changes == ("compile the policy: --policy.compile",)


def test_fp8_needs_adapters_and_a_large_model() -> None:
    full = changed(policy={"base_dtype": "auto", "lora_rank": 0, "lora_layers": "all"})
    assert advice(full).changes == ("hold the frozen weights in FP8: --policy.base-dtype fp8 --policy.lora-rank 32",)
    assert advice(full, num_weights=16_000_000).changes == ()


def test_a_policy_of_ones_own_is_not_told_of_options_that_it_does_not_have() -> None:
    own = changed(policy={"factory": "mine:make", "compile": False, "base_dtype": "auto", "lora_rank": 0})
    assert advice(own).changes == ()
    assert advice(own, replace(BALANCED, update=20.0), memory=replace(HALF_FULL, peak_gb=70.0)).changes == ()


def test_without_a_gpu_the_policy_wants_one() -> None:
    slow = Rates(policy={8: 10.0}, envs=30.0, both=9.0, update=30.0)
    assert advice(rates=slow, machine=TWO_CORES).changes == ("use a GPU for the policy, or more than 2 cores",)


# --- the envs limit


def test_envs_that_limit_want_cores_as_many_as_the_policy_could_use() -> None:
    rates = replace(BALANCED, envs=50.0, both=48.0)
    assert advice(rates=rates).changes == ("use more cores: about 32 instead of 16 would keep up with the policy",)
    assert advice(rates=rates, machine=TWO_CORES).changes == ("use more than 2 cores",)


def test_few_envs_for_the_cores_are_more_before_cores_are() -> None:
    rates = replace(BALANCED, envs=50.0, both=48.0)
    changes = advice(changed(env={"num_workers": 2, "envs_per_worker": 4}), rates).changes
    assert changes[0] == "play more envs, 8 are few for 16 cores: --env.envs-per-worker 16"


def test_an_env_that_may_hold_the_gil_is_offered_processes() -> None:
    rates = replace(BALANCED, envs=50.0, both=48.0)
    own = {"id": "mine:Pick-v0"}
    processes = "if the env is written in Python, use processes: --env.worker process"
    assert processes in advice(changed(env=own), rates).changes
    assert processes not in advice(changed(env={**own, "worker": "process"}), rates).changes
    assert processes not in advice(changed(env={"id": "vla_envs:Libero-v0"}), rates).changes


@pytest.mark.parametrize(
    ("env_id", "rate", "offered"), [("Libero-v0", 250, False), ("Libero-v0", 450, True), ("Isaac-v0", 450, False)]
)
def test_an_env_whose_threads_wait_for_each_other_when_they_are_fast_is_offered_processes_then(
    env_id: str, rate: float, offered: bool
) -> None:
    rates = Rates(policy={32: 1000.0, 64: 1100.0}, envs=rate, both=0.9 * rate, update=4000.0)
    changes = advice(changed(env={"id": env_id}), rates).changes
    assert any(change.startswith("use processes, since threads") for change in changes) == offered


# --- waiting and shared cores


def test_waiting_is_filled_by_a_third_worker_and_more_envs() -> None:
    rates = replace(BALANCED, both=50.0)
    assert advice(changed(env={"num_workers": 2, "envs_per_worker": 8}), rates).changes == (
        "let one more worker simulate meanwhile: --env.num-workers 3",
        "play more envs: --env.envs-per-worker 16",
    )
    assert advice(rates=rates).changes == ("play more envs: --env.envs-per-worker 64",)


def test_shared_cores_cannot_be_scheduled_away_and_a_gpu_helps_where_the_policy_takes_much_of_them() -> None:
    rates = replace(BALANCED, both=50.0)
    assert advice(rates=rates, machine=TWO_CORES).changes == ("use a GPU for the policy, or more than 2 cores",)
    mostly_envs = replace(rates, envs=20.0, both=12.0)
    assert advice(rates=mostly_envs, machine=TWO_CORES).changes == ("use more than 2 cores",)


# --- the update limits

SLOW_UPDATE = replace(BALANCED, update=30.0)


def test_an_update_that_limits_trains_less_and_more_at_a_time() -> None:
    loose = changed(policy={"lora_layers": "all"}, optim={"epochs": 2})
    assert advice(loose, SLOW_UPDATE).changes == (
        "go through each iteration's episodes fewer times: --optim.epochs 1",
        "put adapters on the language model alone: --policy.lora-layers language",
        "train on more rows at a time, 45 GB are free: --optim.microbatch-rows 16",
    )


def test_an_update_of_all_weights_is_offered_adapters() -> None:
    full = changed(policy={"lora_rank": 0, "base_dtype": "auto", "lora_layers": "all"})
    assert advice(full, SLOW_UPDATE).changes[0] == "train adapters alone: --policy.lora-rank 32"


def test_more_rows_at_a_time_need_free_memory_and_a_number_to_double() -> None:
    assert advice(TUNED, SLOW_UPDATE, memory=replace(HALF_FULL, peak_gb=70.0)).changes == ()
    automatic = replace(TUNED, optim=replace(TUNED.optim))
    object.__setattr__(automatic.optim, "microbatch_rows", 0)  # chosen from the memory there is
    assert advice(automatic, SLOW_UPDATE).changes == ()


def test_an_update_on_a_cpu_wants_a_gpu() -> None:
    assert advice(rates=SLOW_UPDATE, machine=TWO_CORES).changes == ("use a GPU for the policy, or more than 2 cores",)


# --- memory


@pytest.mark.parametrize(
    ("gpu_gb", "recipe"), [(85.0, "one-gpu"), (150.0, "one-gpu"), (48.3, "gpu-48gb"), (25.7, "gpu-24gb"), (23.7, "gpu-24gb")]
)
def test_a_card_gets_the_largest_recipe_that_fits(gpu_gb: float, recipe: str) -> None:
    assert fitting_recipe(gpu_gb, tuple(RECIPE_GB)) == recipe


def test_a_recipe_that_is_not_there_is_not_named() -> None:
    assert fitting_recipe(48.3, ("demo", "one-gpu")) is None
    assert fitting_recipe(16.0, tuple(RECIPE_GB)) is None


def test_a_card_that_is_nearly_full_comes_first() -> None:
    full = GpuMemory(before_gb=0.5, playing_gb=20.0, peak_gb=25.0)
    first = "leave some memory free (25 of 26 GB were held): "
    assert advice(machine=RTX_4090, memory=full).changes[0] == first + "take what --recipe gpu-24gb sets for such a card"
    without = advice(machine=RTX_4090, memory=full, recipes=("demo", "one-gpu")).changes[0]
    assert without == first + "train on fewer rows at a time (--optim.microbatch-rows 4)"


def test_what_does_not_fit_is_told_how_it_would() -> None:
    plain = changed(policy={"base_dtype": "auto"})
    ways = (
        "train on fewer rows at a time (--optim.microbatch-rows 4); or decide for fewer rows at a time "
        "(--rollout.max-policy-batch 32)"
    )
    assert out_of_memory(plain, RTX_4090, doing="the update", recipes=tuple(RECIPE_GB)) == (
        "the update does not fit into the 26 GB of RTX 4090: --recipe gpu-24gb is made for this card; or hold the frozen "
        f"weights in less (--policy.base-dtype fp8); or {ways}"
    )
    assert "--policy.base-dtype nf4" in out_of_memory(plain, A100, doing="the update", recipes=())
    full = changed(policy={"base_dtype": "auto", "lora_rank": 0})
    assert "train adapters alone (--policy.lora-rank 32)" in out_of_memory(full, A100, doing="the policy", recipes=())


# --- what is not used


def test_envs_that_no_episode_is_left_for_are_named() -> None:
    few = changed(rollout={"groups_per_iteration": 2, "group_size": 8})
    assert advice(few).changes == ("play fewer envs, an iteration has 16 episodes for 96: --env.envs-per-worker 5",)


def test_cores_that_stand_idle_are_named() -> None:
    assert advice(rates=replace(BALANCED, envs=1000.0)).changes == (
        "save cores: the envs would keep up with the policy on about 2 of 16",
    )


def test_no_more_is_said_than_can_be_tried() -> None:
    loose = changed(policy={"compile": False, "base_dtype": "auto"}, rollout={"groups_per_iteration": 2, "group_size": 8})
    rates = replace(BALANCED, policy={32: 60.0, 64: 100.0}, envs=1000.0)
    assert len(advice(loose, rates).changes) == MOST_CHANGES
