"""The rollout against a plain loop: same episodes, whatever the env, the worker and the timing."""

import itertools
import math
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from pipeline_envs import DrawingPolicy, assert_played_as_alone, drift_config, make_spec

from vla_train.config import EnvConfig, RolloutConfig
from vla_train.envs.workers import make_workers
from vla_train.pipeline.rollout import Rollout
from vla_train.pipeline.timeline import Timeline
from vla_train.types import EpisodeSpec, Group, Observation, PolicyOutput

GROUP_SIZE = 4


def make_rollout(env: EnvConfig, policy: DrawingPolicy | None = None, **config: object) -> Rollout:
    workers = make_workers(env, chunk_size=DrawingPolicy.chunk_size)
    settings = {"groups_per_iteration": 3, "group_size": GROUP_SIZE, "max_attempts": 5.0, **config}
    return Rollout(RolloutConfig(**settings), policy=policy or DrawingPolicy(), workers=workers, timeline=Timeline(), seed=11)


def prompts(start: int = 0) -> Iterator[tuple[EpisodeSpec, ...]]:
    return (tuple(make_spec(group, sample) for sample in range(GROUP_SIZE)) for group in itertools.count(start))


def mixed(group: Group) -> bool:
    return 0 < group.success_rate < 1


@pytest.mark.parametrize("worker", ["thread", "process"])
def test_every_trajectory_is_what_a_plain_loop_plays(worker: str) -> None:
    rollout = make_rollout(drift_config(worker=worker))
    try:
        for _ in range(2):
            result = rollout.collect(prompts(), mixed) if _ == 0 else rollout.collect(prompts(100), mixed)
            assert len(result.groups) == 3
            for group in result.groups:
                assert [trajectory.spec.sample_id for trajectory in group.trajectories] == list(range(GROUP_SIZE))
                assert {trajectory.spec.group_id for trajectory in group.trajectories} == {group.group_id}
                for trajectory in group.trajectories:
                    assert_played_as_alone(trajectory, seed=11)
    finally:
        rollout.close()


@pytest.mark.parametrize(
    ("env_id", "kwargs"),
    [
        ("Drift-v0", {"vectorization_mode": "sync"}),
        ("Drift-v0", {"vectorization_mode": "async"}),
        ("NextStepDrift-v0", {}),
        ("SameStepDrift-v0", {}),
    ],
)
def test_vector_envs_of_every_autoreset_mode_play_the_same_episodes(env_id: str, kwargs: dict[str, str]) -> None:
    rollout = make_rollout(drift_config(id=f"pipeline_envs:{env_id}", kwargs=kwargs))
    try:
        specs = [make_spec(group, sample) for group in range(5) for sample in range(2)]
        played = list(rollout.play(specs, temperature=0.0))
        assert sorted(t.spec.seed for t in played) == sorted(s.seed for s in specs)
        for trajectory in played:
            assert_played_as_alone(trajectory, seed=None)
        for group in rollout.collect(prompts(), mixed).groups:
            for trajectory in group.trajectories:
                assert_played_as_alone(trajectory, seed=11)
    finally:
        rollout.close()


def test_a_chunked_vector_env_starts_each_slot_from_its_stored_initial_state() -> None:
    rollout = make_rollout(drift_config(id="pipeline_envs:ChunkedDrift-v0"))
    try:
        specs = [make_spec(0, task * 4 + state, task_id=task, init_state_id=state) for task in (0, 1) for state in range(4)]
        played = list(rollout.play(specs, temperature=0.0))
        assert len(played) == 8
        for trajectory in played:
            start = 10 * trajectory.spec.task_id + trajectory.spec.init_state_id
            assert_played_as_alone(trajectory, seed=None, start=start)
    finally:
        rollout.close()


@pytest.mark.parametrize(
    ("env_id", "kwargs", "worker"),
    [
        ("Drift-v0", {}, "thread"),
        ("Drift-v0", {}, "process"),
        ("Drift-v0", {"vectorization_mode": "sync"}, "thread"),
        ("NextStepDrift-v0", {}, "thread"),
        ("SameStepDrift-v0", {}, "thread"),
        ("ChunkedDrift-v0", {}, "thread"),
    ],
)
def test_a_film_shows_each_action_up_to_the_end_and_without_one_each_decision_and_the_end(
    env_id: str, kwargs: dict[str, str], worker: str
) -> None:
    """The image shows the step. An env that plays chunks itself and draws once in each has no more to show."""
    rollout = make_rollout(drift_config(id=f"pipeline_envs:{env_id}", kwargs=kwargs, worker=worker))
    chunked = env_id == "ChunkedDrift-v0"
    specs = [make_spec(group, init_state_id=group % 4 if chunked else -1) for group in range(5)]
    try:
        for trajectory in rollout.play(specs, temperature=0.0, film=specs[:2]):
            assert trajectory.film is not None
            apart = 1 if trajectory.spec in specs[:2] and not chunked else DrawingPolicy.chunk_size
            assert trajectory.film[:, 0, 0, 1].tolist() == [*range(0, trajectory.length, apart), trajectory.length]
        groups = rollout.collect(prompts(), mixed).groups if not chunked else ()
        assert all(trajectory.film is None for group in groups for trajectory in group.trajectories)
    finally:
        rollout.close()


@pytest.mark.parametrize(("env_id", "kwargs"), [("Drift-v0", {}), ("Drift-v0", {"vectorization_mode": "sync"})])
def test_a_time_limit_ends_episodes_as_truncated(env_id: str, kwargs: dict[str, str]) -> None:
    rollout = make_rollout(drift_config(id=f"pipeline_envs:{env_id}", kwargs=kwargs, max_episode_steps=4))
    try:
        played = list(rollout.play((make_spec(group) for group in range(7)), temperature=0.0))
        assert any(trajectory.truncated for trajectory in played)
        for trajectory in played:
            assert_played_as_alone(trajectory, seed=None, time_limit=4)
    finally:
        rollout.close()


@pytest.mark.parametrize(
    ("num_workers", "envs_per_worker", "max_policy_batch", "groups_per_iteration"),
    [(1, 1, 1, 1), (3, 5, 4, 2), (2, 7, 256, 3), (4, 1, 3, 5)],
)
def test_numbers_of_envs_groups_and_rows_need_not_divide_each_other(
    num_workers: int, envs_per_worker: int, max_policy_batch: int, groups_per_iteration: int
) -> None:
    policy = DrawingPolicy()
    env = drift_config(num_workers=num_workers, envs_per_worker=envs_per_worker)
    rollout = make_rollout(
        env, policy, max_policy_batch=max_policy_batch, groups_per_iteration=groups_per_iteration, max_attempts=20.0
    )
    try:
        result = rollout.collect(prompts(), mixed)
        assert len(result.groups) == groups_per_iteration
        assert max(policy.batch_sizes) <= max_policy_batch
        for group in result.groups:
            for trajectory in group.trajectories:
                assert_played_as_alone(trajectory, seed=11)
    finally:
        rollout.close()


def test_groups_are_consumed_in_the_order_of_their_ids_and_surplus_is_carried_over() -> None:
    rollout = make_rollout(drift_config(num_workers=3, envs_per_worker=8))
    stream = prompts()
    try:
        kept = [group.group_id for _ in range(4) for group in rollout.collect(stream, mixed).groups]
    finally:
        rollout.close()
    expected = []
    for specs in prompts():
        if 0 < sum(assert_success(spec) for spec in specs) < GROUP_SIZE:
            expected.append(specs[0].group_id)
        if len(expected) == len(kept):
            break
    assert kept == expected


def assert_success(spec: EpisodeSpec) -> bool:
    from pipeline_envs import play_alone

    return bool(play_alone(spec, seed=11)["success"])


def test_deterministic_rollouts_play_exactly_the_groups_they_consume() -> None:
    rollout = make_rollout(drift_config(num_workers=3, envs_per_worker=8), deterministic=True)
    read: list[int] = []

    def stream() -> Iterator[tuple[EpisodeSpec, ...]]:
        for specs in prompts():
            read.append(specs[0].group_id)
            yield specs

    source = stream()
    try:
        for _ in range(3):
            before = len(read)
            result = rollout.collect(source, mixed)
            assert len(read) - before == result.stats.groups_kept + result.stats.groups_rejected
            assert result.stats.episodes_in_flight == result.stats.groups_carried_over == 0
    finally:
        rollout.close()


def test_an_iteration_without_signal_stops_at_its_allowance() -> None:
    rollout = make_rollout(drift_config(), max_attempts=2.0)
    try:
        result = rollout.collect(prompts(), lambda group: False)
        assert result.groups == ()
        assert result.stats.groups_rejected == 6
    finally:
        rollout.close()


def test_a_finite_stream_of_prompts_ends_the_iteration() -> None:
    rollout = make_rollout(drift_config(), groups_per_iteration=50)
    try:
        result = rollout.collect(itertools.islice(prompts(), 5), lambda group: True)
        assert [group.group_id for group in result.groups] == list(range(5))
        assert list(rollout.play([], temperature=0.0)) == []
    finally:
        rollout.close()


def test_a_checkpoint_carries_finished_and_begun_groups_over() -> None:
    first, second = make_rollout(drift_config(num_workers=3)), make_rollout(drift_config(num_workers=1, envs_per_worker=2))
    stream = prompts()
    try:
        first.collect(stream, mixed)
        first.release()
        state = {name: np.array(value) for name, value in first.state_dict().items()}
        assert all(value.dtype != object for value in state.values())
        expected = [group.group_id for group in first.collect(itertools.islice(stream, 20), mixed).groups]
        second.load_state_dict(state)
        read = max(state["specs"][:, 0], default=2) + 1
        resumed = second.collect(itertools.islice(prompts(int(read)), 20), mixed)
        assert [group.group_id for group in resumed.groups] == expected
        for group in resumed.groups:
            for trajectory in group.trajectories:
                assert_played_as_alone(trajectory, seed=11)
    finally:
        first.close()
        second.close()


def test_groups_that_were_not_trained_on_yet_come_again_and_their_speed_was_not_measured() -> None:
    first, second = make_rollout(drift_config(), deterministic=True), make_rollout(drift_config(), deterministic=True)
    try:
        given = first.collect(prompts(), mixed)
        assert given.stats.overlap_efficiency > 0
        second.load_state_dict(first.state_dict())
        again = second.collect(prompts(100), mixed)
        first.release()
        assert not len(first.state_dict()["specs"])
    finally:
        first.close()
        second.close()
    assert [group.group_id for group in again.groups] == [group.group_id for group in given.groups]
    assert again.stats.decisions == 0
    assert math.isnan(again.stats.overlap_efficiency)
    assert math.isnan(again.stats.decisions_per_s)


def test_evaluation_between_iterations_loses_no_training_episode() -> None:
    rollout = make_rollout(drift_config(num_workers=3, envs_per_worker=8))
    stream = prompts()
    try:
        kept = []
        for _ in range(3):
            kept += [group.group_id for group in rollout.collect(stream, mixed).groups]
            assert len(list(rollout.play((make_spec(group) for group in range(10)), temperature=0.0))) == 10
            next(rollout.play((make_spec(group) for group in range(10)), temperature=0.0))  # given up after one episode
        undisturbed = make_rollout(drift_config(num_workers=3, envs_per_worker=8))
        stream = prompts()
        assert kept == [group.group_id for _ in range(3) for group in undisturbed.collect(stream, mixed).groups]
        undisturbed.close()
    finally:
        rollout.close()


def test_prefetched_resets_change_nothing_but_the_time() -> None:
    plain, prefetching = make_rollout(drift_config(), deterministic=True), make_rollout(drift_config(), deterministic=True)
    streams = prompts(), prompts()
    try:
        for _ in range(3):
            expected = plain.collect(streams[0], mixed)
            prefetching.prefetch(streams[1])
            result = prefetching.collect(streams[1], mixed)
            assert [group.group_id for group in result.groups] == [group.group_id for group in expected.groups]
            for got, want in zip(result.groups, expected.groups, strict=True):
                for one, other in zip(got.trajectories, want.trajectories, strict=True):
                    np.testing.assert_array_equal(one.decisions["token_ids"], other.decisions["token_ids"])
    finally:
        plain.close()
        prefetching.close()


def test_resets_of_the_next_iteration_are_done_while_the_caller_trains() -> None:
    rollout = make_rollout(drift_config(), deterministic=True)
    try:
        rollout.prefetch(prompts())
        while rollout._conductor.inbox.qsize() < 2:  # both workers have answered
            time.sleep(0.001)
        trained = time.perf_counter()
        rollout.collect(prompts(3), mixed)
        resets = [span for span in rollout._timeline.spans() if span.kind == "reset"]
        assert {span.resource for span in resets if span.end < trained} == {"env 0", "env 1"}
    finally:
        rollout.close()


def test_other_work_is_done_in_the_policys_thread_with_the_groups_so_far_and_changes_no_episode() -> None:
    plain, working = make_rollout(drift_config()), make_rollout(drift_config())
    streams = prompts(), prompts()
    seen: list[list[int]] = []
    threads = set()

    def work(groups: tuple[Group, ...]) -> bool:
        threads.add(threading.current_thread())
        seen.append([group.group_id for group in groups])
        assert all(len(group.trajectories) == GROUP_SIZE and mixed(group) for group in groups)
        return len(seen) % 2 == 0

    try:
        for _ in range(2):
            seen.clear()
            expected = [group.group_id for group in plain.collect(streams[0], mixed).groups]
            result = working.collect(streams[1], mixed, meanwhile=work)
            assert [group.group_id for group in result.groups] == expected
            for group in result.groups:
                for trajectory in group.trajectories:
                    assert_played_as_alone(trajectory, seed=11)
            assert seen
            assert all(ids == expected[: len(ids)] for ids in seen)
            assert [len(ids) for ids in seen] == sorted(len(ids) for ids in seen)
    finally:
        plain.close()
        working.close()
    assert threads == {threading.current_thread()}


def test_an_error_of_other_work_reaches_the_caller_and_loses_nothing() -> None:
    def broken(groups: tuple[Group, ...]) -> bool:
        if groups:
            raise FloatingPointError("it broke")
        return False

    plain, rollout = make_rollout(drift_config()), make_rollout(drift_config())
    stream = prompts()
    try:
        with pytest.raises(FloatingPointError, match="it broke"):
            rollout.collect(stream, mixed, meanwhile=broken)
        result = rollout.collect(stream, mixed, meanwhile=lambda groups: False)
        expected = plain.collect(prompts(), mixed)
        assert [group.group_id for group in result.groups] == [group.group_id for group in expected.groups]
    finally:
        plain.close()
        rollout.close()


def test_told_to_wait_the_policy_serves_all_workers_at_once() -> None:
    policy = DrawingPolicy()
    env = drift_config(kwargs={"jitter_s": "0.005"}, max_episode_steps=9)
    rollout = make_rollout(env, policy, max_wait_s=30.0)
    try:
        assert len(list(rollout.play((make_spec(0) for _ in range(6)), temperature=0.0))) == 6
        assert policy.batch_sizes == [6] * len(policy.batch_sizes)
    finally:
        rollout.close()


def test_when_cameras_drew_is_part_of_the_timeline() -> None:
    rollout = make_rollout(drift_config(id="pipeline_envs:ChunkedDrift-v0"))
    try:
        list(rollout.play([make_spec(0, 0, init_state_id=0), make_spec(0, 1, init_state_id=1)], temperature=0.0))
        spans = rollout._timeline.spans()
    finally:
        rollout.close()
    steps = [span for span in spans if span.kind == "simulate"]
    drawn = [span for span in spans if span.kind == "render"]
    assert len(drawn) == len(steps) > 0, "this env draws when it steps, not when it resets"
    for span in drawn:
        assert any(step.resource == span.resource and step.start <= span.start < span.end <= step.end for step in steps)


def test_the_policy_version_of_every_decision_is_recorded() -> None:
    policy = DrawingPolicy(seconds_per_call=0.002)
    rollout = make_rollout(drift_config(), policy)
    try:
        thread = threading.Thread(target=lambda: [setattr(policy, "version", version) for version in range(50)])
        results = []
        collector = threading.Thread(target=lambda: results.append(rollout.collect(prompts(), mixed)))
        collector.start()
        thread.start()
        thread.join()
        collector.join()
        versions = [t.policy_versions for group in results[0].groups for t in group.trajectories]
        assert all((np.diff(version) >= 0).all() for version in versions)
        policy.version = 77
        for group in rollout.collect(prompts(1000), mixed).groups:
            if group.group_id >= 1000:
                assert all(trajectory.policy_versions[-1] == 77 for trajectory in group.trajectories)
    finally:
        rollout.close()


def test_a_rollout_refuses_to_be_used_twice_at_once() -> None:
    rollout = make_rollout(drift_config())
    try:
        playing = rollout.play((make_spec(group) for group in range(10)), temperature=0.0)
        next(playing)
        with pytest.raises(RuntimeError, match="busy"):
            rollout.collect(prompts(), mixed)
        playing.close()
        assert len(rollout.collect(prompts(), mixed).groups) == 3
    finally:
        rollout.close()
    with pytest.raises(RuntimeError, match="closed"):
        rollout.collect(prompts(), mixed)


class _Broken(DrawingPolicy):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def act(self, observation: Observation, *, uniforms: np.ndarray | None, temperature: float) -> PolicyOutput:
        output = super().act(observation, uniforms=uniforms, temperature=temperature)
        if self.how == "nan":
            output.decision["logprobs"][0, 0] = np.nan
        elif self.how == "raise":
            raise FloatingPointError("the policy broke")
        elif self.how == "interrupt":
            raise KeyboardInterrupt
        return output


@pytest.mark.parametrize(
    ("how", "error"), [("nan", ValueError), ("raise", FloatingPointError), ("interrupt", KeyboardInterrupt)]
)
def test_an_error_of_the_policy_ends_the_rollout_and_loses_nothing(how: str, error: type[BaseException]) -> None:
    policy = _Broken(how)
    rollout = make_rollout(drift_config(), policy)
    stream = prompts()
    try:
        with pytest.raises(error):
            rollout.collect(stream, mixed)
        policy.how = "well"
        result = rollout.collect(stream, mixed)
        for group in result.groups:
            for trajectory in group.trajectories:
                assert_played_as_alone(trajectory, seed=11)
        undisturbed = make_rollout(drift_config())
        expected = undisturbed.collect(prompts(), mixed)
        undisturbed.close()
        assert [group.group_id for group in result.groups] == [group.group_id for group in expected.groups]
    finally:
        rollout.close()


def test_an_error_of_the_filter_reaches_the_caller() -> None:
    rollout = make_rollout(drift_config())

    def broken(group: Group) -> bool:
        raise FloatingPointError("the filter broke")

    try:
        with pytest.raises(FloatingPointError):
            rollout.collect(prompts(), broken)
    finally:
        rollout.close()


def test_what_is_carried_over_takes_no_more_room_than_was_announced() -> None:
    for deterministic in (False, True):
        rollout = make_rollout(drift_config(), deterministic=deterministic)
        try:
            for start in range(0, 300, 100):
                rollout.collect(prompts(start), mixed)
                rollout.release()
                held = sum(array.nbytes for name, array in rollout.state_dict().items() if name.startswith("observations/"))
                assert held <= rollout.max_state_bytes
            assert (rollout.max_state_bytes == 0) == deterministic
        finally:
            rollout.close()
