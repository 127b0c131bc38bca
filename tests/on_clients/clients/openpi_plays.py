"""openpi-client plays a server as openpi's LIBERO example does, action by action, and goes on after an error."""

import json
import sys

import numpy as np
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.image_tools import resize_with_pad
from openpi_client.websocket_client_policy import WebsocketClientPolicy

arguments = json.loads(sys.argv[1])
client = WebsocketClientPolicy(arguments["host"], arguments["port"])
policy = ActionChunkBroker(client, arguments["horizon"])
actions = []
for step in range(arguments["steps"]):
    image = resize_with_pad(np.full((256, 256, 3), 10 * step, np.uint8), 224, 224)
    state = np.concatenate([np.arange(3) / 10, np.zeros(3), [0.02, -0.02]])
    element = {"observation/image": image, "observation/wrist_image": image, "observation/state": state, "prompt": "go"}
    actions.append(policy.infer(element)["actions"].tolist())
try:
    client.infer({"observation/image": image})
    error = ""
except RuntimeError as refused:
    error = str(refused)
chunk = client.infer(element)["actions"]
print(json.dumps({"metadata": client.get_server_metadata(), "actions": actions, "error": error, "shape": chunk.shape}))
