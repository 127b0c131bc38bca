"""Programs of `clients/`, run where a real client is installed.

Each client has an environment of its own, whose interpreter a variable names; what is tested runs in this one. A program gets
its arguments as JSON, and prints what it saw as one line of JSON.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

VLA_EVAL = os.environ.get("VLA_EVAL_PYTHON", "")
OPENPI = os.environ.get("OPENPI_PYTHON", "")
_PROGRAMS = Path(__file__).parent / "clients"
_TIMEOUT_S = 60


def start(python: str, program: str, **arguments: Any) -> "subprocess.Popen[str]":
    command = [python, str(_PROGRAMS / program), json.dumps(arguments)]
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=clean)


def run(python: str, program: str, **arguments: Any) -> Any:
    """What a program prints."""
    process = start(python, program, **arguments)
    out, errors = process.communicate(timeout=_TIMEOUT_S)
    assert process.returncode == 0, errors
    return json.loads(out.splitlines()[-1])
