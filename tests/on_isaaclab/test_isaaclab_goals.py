"""Goals of converted tasks on Isaac Lab, judged when MuJoCo judges them reached, and not before."""

import numpy as np
import pytest
from converted import FOLDER, TASKS, begin, make, name_of, play, reference


@pytest.mark.parametrize("task", TASKS, ids=name_of)
def test_a_goal_is_reached_when_mujoco_says_so(task: tuple[str, int]):
    expected = reference(task)
    env = make(task, folder=FOLDER / "placed", cameras=())
    try:
        begin(env, 0)
        reached = play(env, expected["placed.actions"])["reached"]
        first = int(np.flatnonzero(expected["placed.reached"])[0])
        assert not reached[:first].any()
        assert reached[first].all()  # from the next step on Isaac Lab plays another episode
        begin(env, 1)
        assert not play(env, expected["placed.actions"])["reached"].any()
    finally:
        env.close()
