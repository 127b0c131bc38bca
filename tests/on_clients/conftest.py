"""The real clients of both protocols: `make test-serve` runs these tests. Elsewhere there are none."""

import sys
from pathlib import Path

from real_clients import OPENPI, VLA_EVAL

if VLA_EVAL and OPENPI:
    sys.path += [str(Path(__file__).parents[1] / "vla_train" / folder) for folder in ("", "serving")]  # helpers of their tests
else:
    collect_ignore_glob = ["test_*.py"]
