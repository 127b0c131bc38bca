"""What happens where Ray is not installed."""

import subprocess
import sys

_SCRIPT = """
import sys
sys.modules["ray"] = None  # as if it were not installed
from vla_train.config import EnvConfig
from vla_train.envs.workers import make_workers
try:
    make_workers(EnvConfig(id="Pendulum-v1", worker="ray"), chunk_size=1)
except ImportError as error:
    print(error)
"""


def test_a_missing_ray_is_an_error_that_says_what_to_install() -> None:
    output = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True, check=True).stdout
    assert "vla-train[ray]" in output


def test_the_pipeline_imports_neither_torch_nor_ray() -> None:
    script = "import sys, vla_train.pipeline.rollout, vla_train.envs.process; print({'torch', 'ray'} & set(sys.modules))"
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "set()"
