"""A server of vla-eval's own making; prints its port, and serves until it is ended."""

import json
import sys
from typing import Any

import anyio
import numpy as np
from vla_eval.model_servers.predict import PredictModelServer
from vla_eval.model_servers.serve import serve_async
from vla_eval.specs import GRIPPER_CLOSE_POS, IMAGE_RGB, LANGUAGE, POSITION_DELTA, ROTATION_AA, STATE_EEF_POS_AA_GRIP, DimSpec


class Telling(PredictModelServer):
    """Its actions tell what it saw: the mean of both images, the state, which session, the number in the chunk."""

    def __init__(self, *, params: dict[str, Any], **options: Any) -> None:
        super().__init__(**options)
        self.params = params
        self.episodes: list[str] = []

    def get_observation_params(self) -> dict[str, Any]:
        return self.params

    def get_action_spec(self) -> dict[str, DimSpec]:
        return {"position": POSITION_DELTA, "rotation": ROTATION_AA, "gripper": GRIPPER_CLOSE_POS}

    def get_observation_spec(self) -> dict[str, DimSpec]:
        return {"agentview": IMAGE_RGB, "wrist": IMAGE_RGB, "state": STATE_EEF_POS_AA_GRIP, "language": LANGUAGE}

    async def on_episode_start(self, config: dict[str, Any], ctx: Any) -> None:
        self.episodes.append(config["task"]["suite"])
        await super().on_episode_start(config, ctx)

    def predict_batch(self, obs_batch: list[Any], ctx_batch: list[Any]) -> list[Any]:
        answers = []
        for obs in obs_batch:
            actions = np.zeros((4, 7))
            actions[:, 0] = obs["images"]["agentview"].mean() / 255
            actions[:, 1] = obs["images"]["wrist"].mean() / 255
            actions[:, 2:5] = obs["states"][3:6] / 4
            actions[:, 5] = np.arange(4) / 4
            actions[:, 6] = 0.3 if obs["task_description"] == "close" else -0.3
            answers.append({"actions": actions})
        return answers


async def main(arguments: dict[str, Any]) -> None:
    server = Telling(**arguments)
    async with anyio.create_task_group() as group:
        print(json.dumps(await group.start(serve_async, server, "127.0.0.1", 0)), flush=True)


anyio.run(main, json.loads(sys.argv[1]))
