"""How much time the pipeline hides, where the costs of env and policy are known.

The physics: with policy time P and env time E per group and round, a serial loop over W groups takes W (P + E); a pipeline can
take max(W P, E + P), no less. Efficiency is bound / actual: how busy the busier side was.
"""

import os

import pytest
from loops import PipelinedLoop, Trained, play_and_train, play_in_lockstep, play_serially, started_workers
from synthetic import SleepingLearner, SleepingPolicy, make_spec, sleeping_config

ENVS_PER_WORKER = 8
STEP_S = 0.05
SECONDS = float(os.environ.get("PIPELINE_BENCH_SECONDS", "8"))
"""Length of each measurement; longer for numbers to be quoted."""


def test_two_groups_of_equal_cost_against_the_serial_loop() -> None:
    config = sleeping_config(num_workers=2, envs_per_worker=ENVS_PER_WORKER, step_s=STEP_S, shortest=20, longest=20)
    policy = SleepingPolicy(row_s=STEP_S / ENVS_PER_WORKER)
    with started_workers(config, chunk_size=policy.chunk_size) as workers:
        serial = play_serially(workers, policy, make_spec, seconds=SECONDS)
        pipelined = PipelinedLoop(workers, policy, make_spec).play(seconds=SECONDS)
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
    longest = 32
    config = sleeping_config(
        num_workers=4, envs_per_worker=ENVS_PER_WORKER, step_s=STEP_S, sigma=0.5, shortest=8, longest=longest
    )
    policy = SleepingPolicy(row_s=policy_share * STEP_S / ENVS_PER_WORKER)
    round_s = longest * STEP_S * max(1 + policy_share, 4 * policy_share)
    lockstep = play_in_lockstep(config, policy, make_spec, rounds=max(1, round(SECONDS / round_s)), longest=longest)
    with started_workers(config, chunk_size=policy.chunk_size) as workers:
        pipelined = PipelinedLoop(workers, policy, make_spec).play(seconds=SECONDS)
    ratio = pipelined.decisions_per_s / lockstep.decisions_per_s
    print(
        f"\nlognormal, 4 groups, policy {policy_share:g} of env: lockstep {lockstep.decisions_per_s:.0f} chunks/s, "
        f"pipelined {pipelined.decisions_per_s:.0f} chunks/s: {ratio:.2f} x, efficiency {pipelined.efficiency:.3f}"
    )
    if policy_share == 0.5:
        assert ratio >= 1.5
        assert pipelined.efficiency >= 0.93
    else:
        assert ratio >= 1.3


@pytest.mark.parametrize("policy_share", [0.1, 0.5], ids=["policy 0.1", "policy 0.5"])
def test_training_while_others_play_against_training_afterwards(policy_share: float) -> None:
    """`policy_share`: policy time of all rows over the time that the envs take; training takes half of that time.

    What an iteration can save is its update, but for groups that end when it does. Decisions wait for micro-batches of 8 rows
    now and then, and so do envs.
    """
    row_s, groups = STEP_S / (2 * ENVS_PER_WORKER), 8
    config = sleeping_config(num_workers=2, envs_per_worker=ENVS_PER_WORKER, step_s=STEP_S, sigma=0.3, shortest=10, longest=20)

    def measure(*, accumulate: bool) -> Trained:
        policy = SleepingLearner(row_s=policy_share * row_s, training_row_s=0.5 * row_s)
        return play_and_train(config, policy, make_spec, groups=groups, accumulate=accumulate, seconds=SECONDS)

    after, during = measure(accumulate=False), measure(accumulate=True)
    ratio = after.iteration_s / during.iteration_s
    print(
        f"\npolicy {policy_share:g} and update 0.5 of env: {after.iteration_s:.2f} s an iteration, {during.iteration_s:.2f} s "
        f"with {during.rows_during_rollout / during.rows:.0%} of the rows trained on during the rollout: {ratio:.2f} x"
    )
    assert ratio >= 1.1
