"""How much time the pipeline hides, where the costs of env and policy are known.

The physics: with policy time P and env time E per group and round, a serial loop over W groups takes W (P + E); a pipeline can
take max(W P, E + P), no less. Utilisation of the busier side is what is left to win: "efficiency" is bound / actual.
"""

import itertools
import os

import pytest
from synthetic import Played, SleepingPolicy, make_spec, play_in_lockstep, play_serially, sleeping_config

from vla_train.config import EnvConfig, RolloutConfig
from vla_train.pipeline.rollout import Rollout
from vla_train.pipeline.timeline import Timeline
from vla_train.pipeline.workers import make_workers

ENVS_PER_GROUP = 8
GROUP_SIZE = 8
STEP_S = 0.02
SCALE = float(os.environ.get("PIPELINE_BENCH_SCALE", "1"))
"""Longer runs, for numbers to be quoted."""


def play_pipelined(config: EnvConfig, policy: SleepingPolicy, *, iterations: int) -> Played:
    """The rollout under test, as training uses it: every slot refilled, into the next iteration too.

    The first iteration, in which all episodes begin at once, is not counted.
    """
    workers = make_workers(config, chunk_size=policy.chunk_size, seed=0)
    slots = config.num_groups * config.envs_per_group
    settings = RolloutConfig(groups_per_iteration=slots // GROUP_SIZE, group_size=GROUP_SIZE)
    rollout = Rollout(settings, policy=policy, workers=workers, timeline=Timeline(), seed=0)
    prompts = (
        tuple(make_spec(group * GROUP_SIZE + sample, group_id=group) for sample in range(GROUP_SIZE))
        for group in itertools.count()
    )
    try:
        rollout.collect(prompts, lambda group: True)
        played = [rollout.collect(prompts, lambda group: True).stats for _ in range(iterations)]
    finally:
        rollout.close()
    seconds = sum(stats.duration_s for stats in played)
    return Played(
        decisions=sum(stats.decisions for stats in played),
        seconds=seconds,
        efficiency=sum(stats.overlap_efficiency * stats.duration_s for stats in played) / seconds,
    )


def test_two_groups_of_equal_cost_against_the_serial_loop() -> None:
    config = sleeping_config(num_groups=2, envs_per_group=ENVS_PER_GROUP, step_s=STEP_S, shortest=20, longest=20)
    policy = SleepingPolicy(row_s=STEP_S / ENVS_PER_GROUP)
    serial = play_serially(config, policy, episodes=int(4 * SCALE) * 2 * ENVS_PER_GROUP)
    pipelined = play_pipelined(config, policy, iterations=int(4 * SCALE))
    ratio = pipelined.decisions_per_s / serial.decisions_per_s
    print(
        f"\nequal cost, 2 groups: serial {serial.decisions_per_s:.0f} chunks/s, pipelined {pipelined.decisions_per_s:.0f} "
        f"chunks/s: {ratio:.2f} x, efficiency {pipelined.efficiency:.3f}"
    )
    assert ratio >= 1.85
    assert pipelined.efficiency >= 0.93


@pytest.mark.parametrize("policy_share", [1.0, 0.5, 0.25], ids=["policy 1.0", "policy 0.5", "policy 0.25"])
def test_random_costs_and_lengths_against_lockstep_without_refill(policy_share: float) -> None:
    """`policy_share`: policy time of one group's rows over its mean env time.

    At 1 the policy is the bottleneck of both loops, so that only refill can win (the limit is longest / mean length = 1.6). At
    0.25 the totals of 4 groups and policy are exactly balanced, the hardest case: four customers of a closed queue with these
    times keep its server busy for 0.74 of the time, whoever is served first.
    """
    num_groups, shortest, longest = 4, 8, 32
    config = sleeping_config(
        num_groups=num_groups, envs_per_group=ENVS_PER_GROUP, step_s=STEP_S, sigma=0.5, shortest=shortest, longest=longest
    )
    policy = SleepingPolicy(row_s=policy_share * STEP_S / ENVS_PER_GROUP)
    lockstep = play_in_lockstep(config, policy, rounds=int(3 * SCALE), longest=longest)
    pipelined = play_pipelined(config, policy, iterations=int(5 * SCALE))
    ratio = pipelined.decisions_per_s / lockstep.decisions_per_s
    print(
        f"\nlognormal, 4 groups, policy {policy_share:g} of env: lockstep {lockstep.decisions_per_s:.0f} chunks/s, "
        f"pipelined {pipelined.decisions_per_s:.0f} chunks/s: {ratio:.2f} x, efficiency {pipelined.efficiency:.3f}"
    )
    if policy_share == 0.5:
        assert ratio >= 1.5
        assert pipelined.efficiency >= 0.93
    else:
        assert ratio >= 1.4
