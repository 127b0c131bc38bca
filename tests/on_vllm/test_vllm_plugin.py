"""vLLM finds our network by itself: in processes that it starts nobody imports anything of ours."""

import subprocess
import sys
from importlib.metadata import entry_points

from vla_train.policy.vllm.plugin import ARCHITECTURE, register


def test_the_package_declares_the_plugin():
    (entry,) = entry_points(group="vllm.general_plugins", name="simplevla_oft")
    assert entry.load() is register


def test_vllm_knows_the_network_in_a_process_that_imports_nothing_of_ours():
    program = (
        "from vllm.plugins import load_general_plugins; load_general_plugins();"
        "from vllm import ModelRegistry; print(ModelRegistry.get_supported_archs())"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=True)
    assert ARCHITECTURE in result.stdout
