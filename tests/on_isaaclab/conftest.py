"""Tests of Isaac Lab's backend: `make test-isaaclab` runs them, in an environment of their own. Elsewhere there are none."""

import os
from importlib.util import find_spec

if find_spec("isaaclab") is None or "ISAACLAB_TASKS" not in os.environ:
    collect_ignore_glob = ["test_*.py"]
