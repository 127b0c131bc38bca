"""vla-eval's own `Connection` plays a server: several clients at once, two episodes each, and one who says what is wrong."""

import json
import sys
from typing import Any

import anyio
import numpy as np
from vla_eval.benchmarks.libero.benchmark import LIBEROBenchmark
from vla_eval.connection import Connection
from vla_eval.protocol.messages import MessageType
from vla_eval.protocol.numpy_codec import set_image_format
from vla_eval.specs import DimSpec, check_specs


async def play(url: str, value: int, steps: int, actions: list[list[float]]) -> None:
    async with Connection(url, timeout=20, max_retries=1) as connection:
        for episode in range(2):
            await connection.start_episode({"task": {"name": "go"}, "recording": {"sid": "s", "eid": f"{value}-{episode}"}})
            for _ in range(steps):
                picture = np.full((64, 64, 3), value, np.uint8)
                action = await connection.act({"images": {"agentview": picture}, "task_description": "go"})
                assert action["actions"].shape == (7,)
                actions.append(action["actions"].tolist())
            await connection.end_episode({"metrics": {"success": True}})


async def complain(url: str) -> list[str]:
    """What is wrong is told, and the same connection goes on."""
    errors = []
    async with Connection(url, timeout=20, max_retries=1) as connection:
        good = {"images": {"agentview": np.zeros((64, 64, 3), np.uint8)}, "task_description": "go"}
        for observation in (good, {}, {**good, "images": {}}, good):
            try:
                await connection.act(observation)
                errors.append("")
            except RuntimeError as error:
                errors.append(str(error))
            if len(errors) == 1:
                await connection.start_episode({"task": {"name": "go"}})
    return errors


async def main(arguments: dict[str, Any]) -> dict[str, Any]:
    url = arguments["url"]
    async with Connection(url, timeout=20) as connection:
        info = connection.server_info
    benchmark = LIBEROBenchmark(**{key: value for key, value in info["observation_params"].items()})
    specs = [{key: DimSpec.from_dict(spec) for key, spec in info[name].items()} for name in ("action_spec", "observation_spec")]
    mismatches = check_specs(specs[0], benchmark.get_action_spec(), specs[1], benchmark.get_observation_spec())
    actions: dict[str, list[list[float]]] = {}
    for image_format in ("png", "raw", "jpeg"):
        set_image_format(image_format)
        async with anyio.create_task_group() as together:
            for value in arguments["values"]:
                actions[f"{image_format} {value}"] = []
                together.start_soon(play, url, value, arguments["steps"], actions[f"{image_format} {value}"])
    return {"info": info, "mismatches": mismatches, "actions": actions, "errors": await complain(url)}


assert MessageType.HELLO.value == "hello"
print(json.dumps(anyio.run(main, json.loads(sys.argv[1]))))
