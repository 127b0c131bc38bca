"""A server that packs and unpacks with openpi-client, as openpi's own does; prints its port, and serves until it is ended.

openpi's server is not on PyPI; this one says the same things in the same order: metadata, then an answer to each observation.
"""

import json
import sys
from typing import Any

import numpy as np
from openpi_client import msgpack_numpy
from openpi_client.image_tools import resize_with_pad
from websockets.sync.server import serve

arguments = json.loads(sys.argv[1])
drawn = np.array(arguments["image"], np.uint8)
expected = {"observation/image": resize_with_pad(drawn, 224, 224), "observation/wrist_image": resize_with_pad(drawn, 224, 224)}


def talk(socket: Any) -> None:
    packer = msgpack_numpy.Packer()
    socket.send(packer.pack({"reset_pose": [0.0, 1.0]}))
    for data in socket:
        observation = msgpack_numpy.unpackb(data)
        actions = np.zeros((10, 7))
        actions[:, 0] = [np.array_equal(observation[key], expected[key]) for key in expected] == [True, True]
        actions[:, 1] = observation["observation/state"].dtype == np.float64
        actions[:, 2] = np.arange(10) / 10
        actions[:, 3] = observation["observation/state"][4] / 4
        actions[:, 6] = len(observation["prompt"]) / 100
        socket.send(packer.pack({"actions": actions, "server_timing": {"infer_ms": np.float64(0.1)}}))


with serve(talk, "127.0.0.1", 0, compression=None) as server:
    print(json.dumps(server.socket.getsockname()[1]), flush=True)
    server.serve_forever()
