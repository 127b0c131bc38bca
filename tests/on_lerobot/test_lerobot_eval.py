"""LeRobot's own evaluation plays our env: from its command line, and with a policy that succeeds where it should."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.envs import make_env
from lerobot.policies import PreTrainedPolicy
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.processor import PolicyProcessorPipeline
from lerobot.scripts.lerobot_eval import eval_policy

from vla_envs.lerobot import VlaLiberoEnv
from vla_envs.lerobot.env import LeRobotVectorEnv

RunCommand = Callable[..., str]


@pytest.mark.parametrize("options", [{}, {"env.n_action_steps": 4, "env.max_parallel_tasks": 2}], ids=["singly", "chunks"])
def test_lerobot_eval_writes_results_and_videos(
    lerobot_command: RunCommand, act_checkpoint: Path, tmp_path: Path, options: Mapping[str, object]
):
    limits = {"env.episode_length": 6, "eval.n_episodes": 3, "eval.batch_size": 2}
    lerobot_command(
        "lerobot-eval", **{"env.task_ids": [0, 1], "policy.path": act_checkpoint, "output_dir": tmp_path}, **limits, **options
    )
    results = json.loads((tmp_path / "eval_info.json").read_text())
    assert sorted((task["task_group"], task["task_id"]) for task in results["per_task"]) == [
        ("libero_spatial", 0),
        ("libero_spatial", 1),
    ]
    assert results["per_group"]["libero_spatial"]["n_episodes"] == results["overall"]["n_episodes"] == 6
    assert results["overall"]["pc_success"] == 0
    for task_id in (0, 1):
        with av.open(str(tmp_path / "videos" / f"libero_spatial_{task_id}" / "eval_episode_2.mp4")) as video:
            frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
            assert video.streams.video[0].average_rate == 20
        assert len(frames) == 6
        assert np.ptp(frames[0]) > 100


def test_lerobot_eval_records_a_dataset(lerobot_command: RunCommand, act_checkpoint: Path, tmp_path: Path):
    limits = {"env.episode_length": 5, "eval.n_episodes": 2, "eval.batch_size": 2, "eval.recording": True}
    lerobot_command("lerobot-eval", **{"env.task_ids": [0], "policy.path": act_checkpoint, "output_dir": tmp_path}, **limits)
    recorded = LeRobotDataset("own/recorded", root=tmp_path / "recordings" / "libero_spatial_0" / "env_1")
    assert (recorded.num_episodes, recorded.num_frames, recorded.fps) == (1, 5, 20)
    assert recorded[4]["task"].startswith("pick up the black bowl")
    assert recorded[4]["observation.images.image2"].shape == (3, 84, 84)
    assert [bool(recorded[step]["next.done"]) for step in range(5)] == [False] * 4 + [True]


class ExpertInSomeSlots(PreTrainedPolicy):
    """Plays the expert in the slots of even numbers, and stands still in the others."""

    config_class = ACTConfig
    name = "expert"

    def __init__(self, envs: LeRobotVectorEnv) -> None:
        super().__init__(ACTConfig(device="cpu", push_to_hub=False))
        self._envs = envs
        self.begun: list[tuple[int, ...]] = []
        """Initial states of each rollout."""

    def reset(self) -> None:
        self._experts: tuple[Any, ...] | None = None

    def select_action(self, batch: dict[str, Any], **_: Any) -> torch.Tensor:
        if self._experts is None:
            self._experts = self._envs.call("make_expert", seed=0)
            self.begun.append(self._envs.call("init_state_id"))
        assert batch["task"] == list(self._envs.call("task_description"))
        still = np.array([0, 0, 0, 0, 0, 0, -1], np.float32)
        actions = [still if slot % 2 else expert.act() for slot, expert in enumerate(self._experts)]
        return torch.from_numpy(np.array(actions, np.float32))

    def get_optim_params(self) -> dict:
        raise NotImplementedError

    def predict_action_chunk(self, batch: dict[str, Any], **_: Any) -> torch.Tensor:
        raise NotImplementedError

    def forward(self, batch: dict[str, Any]) -> tuple[torch.Tensor, dict | None]:
        raise NotImplementedError


def test_successes_are_those_of_the_slots_that_succeed_and_states_do_not_depend_on_them():
    config = VlaLiberoEnv(
        task="libero_spatial",
        task_ids=[0],
        detail="fast",
        camera_name="agentview_image",
        observation_height=8,
        observation_width=8,
    )
    envs = make_env(config, n_envs=2)["libero_spatial"][0]
    policy = ExpertInSomeSlots(envs)
    nothing = PolicyProcessorPipeline(steps=[])
    as_it_is = PolicyProcessorPipeline(steps=[], to_transition=lambda given: given, to_output=lambda given: given)
    result = eval_policy(envs, policy, *config.get_env_processors(), nothing, as_it_is, n_episodes=4, start_seed=1000)
    envs.close()
    assert policy.begun == [(0, 1), (2, 3)]
    assert [episode["success"] for episode in result["per_episode"]] == [True, False, True, False]
    assert [episode["sum_reward"] for episode in result["per_episode"]] == [1, 0, 1, 0]
    assert result["aggregated"]["pc_success"] == 50
