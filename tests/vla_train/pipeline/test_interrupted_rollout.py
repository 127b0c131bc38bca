"""A signal at any point of a rollout: what was played can be saved, nothing is left running, and everything closes."""

import itertools
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest
from pipeline_envs import DrawingPolicy, drift_config, make_spec

import vla_train.pipeline.rollout
from vla_train.config import RolloutConfig
from vla_train.envs.workers import make_workers
from vla_train.interruption import Interrupted, Interruption
from vla_train.pipeline.rollout import Rollout
from vla_train.pipeline.timeline import Timeline
from vla_train.types import EpisodeSpec

EVERY = 11
"""Every how manieth bytecode is tried: one rollout each."""


def make_rollout(**changes: Any) -> Rollout:
    workers = make_workers(drift_config(num_workers=1, envs_per_worker=2, **changes), chunk_size=3)
    config = RolloutConfig(groups_per_iteration=1, group_size=2, max_attempts=1, deterministic=True)
    return Rollout(config, policy=DrawingPolicy(), workers=workers, timeline=Timeline(), seed=0)


def signal_at(bytecode: int, interruption: Interruption) -> Any:
    """A trace function: the signal arrives before the given bytecode of the module `rollout`, counted as they are run."""
    passed = itertools.count()

    def each(frame: FrameType, event: str, argument: object) -> Any:
        if event == "opcode" and next(passed) == bytecode:
            sys.settrace(None)
            interruption._handle(signal.SIGINT, frame)
        return each

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code.co_filename != vla_train.pipeline.rollout.__file__ or frame.f_code.co_name == "progress":
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return each

    return trace


@pytest.mark.parametrize("what", ["collect", "collect beside other work", "play"])
def test_a_signal_at_any_bytecode_leaves_a_rollout_that_can_be_saved_and_closed(what: str) -> None:
    for bytecode in range(0, 10_000, EVERY):
        rollout, asked = make_rollout(), []

        def prompts(asked: list[int] = asked) -> Iterator[tuple[EpisodeSpec, ...]]:
            for group_id in itertools.count():
                asked.append(group_id)
                yield make_spec(group_id, 0), make_spec(group_id, 1)

        interruption = Interruption(lambda: None)
        rollout.breakable = interruption.allowed
        sys.settrace(signal_at(bytecode, interruption))
        try:
            if what == "play":
                list(rollout.play([make_spec(1), make_spec(2)], temperature=0.0))
            else:
                rollout.collect(prompts(), lambda group: True, meanwhile=None if what == "collect" else lambda groups: False)
        except Interrupted:
            pass
        finally:
            sys.settrace(None)
        assert not [thread for thread in threading.enumerate() if thread.name == "rollout"]
        held = set(rollout.state_dict()["specs"][:, 0].tolist())
        rollout.close()
        assert set(asked) == held, f"groups lost at bytecode {bytecode}"
        try:
            interruption.check()
        except Interrupted:
            continue
        assert bytecode > 100
        return  # it was over before


def test_a_signal_breaks_off_a_wait_for_simulators() -> None:
    rollout = make_rollout(kwargs={"seconds_per_step": "3600"})
    interruption = Interruption(lambda: None)
    rollout.breakable = interruption.allowed
    with interruption.watch():
        threading.Timer(0.3, signal.pthread_kill, (threading.get_ident(), signal.SIGTERM)).start()
        with pytest.raises(Interrupted):
            rollout.collect(iter([(make_spec(0, 0), make_spec(0, 1))]), lambda group: True)
    assert set(rollout.state_dict()["specs"][:, 0].tolist()) == {0}


def test_a_signal_waits_for_a_piece_of_other_work() -> None:
    rollout, interruption, pieces = make_rollout(), Interruption(lambda: None), []
    rollout.breakable = interruption.allowed

    def work(groups: object) -> bool:
        pieces.append("begun")
        signal.raise_signal(signal.SIGTERM)
        pieces.append("done")
        return True

    with interruption.watch(), pytest.raises(Interrupted):
        rollout.collect(iter([(make_spec(0, 0), make_spec(0, 1))]), lambda group: True, meanwhile=work)
    assert pieces == ["begun", "done"]
    assert set(rollout.state_dict()["specs"][:, 0].tolist()) == {0}
    rollout.close()
