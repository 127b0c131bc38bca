"""JSON files of a checkpoint: errors name the file."""

import json
from pathlib import Path
from typing import Any


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of a checkpoint."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: not a checkpoint in the published layout") from None
    return json_object(content, name=str(path))


def json_object(content: bytes, *, name: str) -> dict[str, Any]:
    """A JSON object from the content of a file called `name`."""
    try:
        data = json.loads(content)
    except ValueError as error:
        raise ValueError(f"{name} is not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{name} holds a {type(data).__name__}, expected a JSON object")
    return data


def json_bytes(data: dict[str, Any]) -> bytes:
    """The content of a JSON file of a checkpoint."""
    return (json.dumps(data, indent=1) + "\n").encode()
