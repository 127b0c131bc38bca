"""A signal while a policy on another node decides: Ray puts an exception of its own in the place of ours."""

import functools
import signal
import threading
from collections.abc import Callable

import pytest
from pipeline_envs import DrawingPolicy

from vla_train.config import TrainConfig
from vla_train.loop import iterate, set_up


class SlowPolicy(DrawingPolicy):
    """Decides after Ray has looked for signals, which it does once a second."""

    chunk_size = 2


@pytest.mark.slow
@pytest.mark.usefixtures("ray_nodes")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_a_long_policy_call_saves_the_run(number: int, small_run: Callable[..., TrainConfig]) -> None:
    from vla_train.distributed.ray_policy import RayPolicy

    config = small_run()
    run = set_up(config)
    policy = run.rollout._policy = RayPolicy(functools.partial(SlowPolicy, seconds_per_call=3.0))
    run.rollout._begin_call = policy.begin_act
    threading.Timer(1.0, signal.pthread_kill, (threading.get_ident(), number)).start()
    try:
        with pytest.raises(SystemExit) as stop:
            iterate(run)
    finally:
        policy.close()
    assert stop.value.code == 130
    assert [path.name for path in (config.output / "checkpoints").iterdir()] == ["step_000000"]
