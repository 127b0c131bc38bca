"""The ids are there wherever Gymnasium is, in processes that never import `vla_envs`, at no cost to those that need neither."""

import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import pytest

IDS = ["Libero-v0", "Libero-Spatial-v0", "Libero-Object-v0", "Libero-Goal-v0", "Libero-10-v0", "Libero-90-v0", "Isaac-v0"]
HEAVY = {"mujoco", "numba", "torch", "robosuite", "libero", "gymnasium", "numpy", "importlib.abc", "typing"}
FAST = "cameras=(), detail='fast', suite='libero_spatial'"


def run(program: str, *options: str) -> str:
    """Standard output of a Python process; a warning of ours is an error there."""
    command = [sys.executable, *options, "-W", "error:vla_envs", "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_an_env_is_made_in_a_process_that_never_imports_vla_envs():
    output = run(
        f"""
import gymnasium, sys
before = [name for name in sys.modules if name.startswith("vla_envs.libero")]
env = gymnasium.make("Libero-v0", task_id=3, {FAST})
print(before, env.reset(seed=0)[0]["instruction"])
"""
    )
    assert output == "[] pick up the black bowl on the cookie box and place it on the plate\n"


def test_vector_envs_are_made_in_a_process_that_never_imports_vla_envs():
    output = run(
        f"""
import gymnasium
for name, arguments in (("Libero-v0", dict(task_ids=[3])), ("Isaac-v0", dict(task_id=3))):
    envs = gymnasium.make_vec(name, num_envs=2, {FAST}, **arguments)
    print(type(envs).__name__, envs.reset(seed=0)[1]["init_state_id"].min() < 0)
    envs.close()
"""
    )
    assert output == "LiberoEnv False\nIsaacEnv True\n"


def test_worker_processes_know_the_ids_too():
    output = run(
        f"""
import gymnasium
if __name__ == "__main__":
    make = lambda: gymnasium.make("Libero-v0", task_id=3, {FAST})
    envs = gymnasium.vector.AsyncVectorEnv([make], context="spawn", shared_memory=False)
    print(envs.reset(seed=0)[0]["state"].shape)
    envs.close()
"""
    )
    assert output == "(1, 8)\n"


def test_every_id_is_registered_once_with_its_suite():
    specs = {env_id: gym.spec(env_id) for env_id in IDS}
    suites = {env_id: spec.kwargs.get("suite") for env_id, spec in specs.items()}
    assert suites == {
        "Libero-v0": "libero_spatial",
        "Libero-Spatial-v0": "libero_spatial",
        "Libero-Object-v0": "libero_object",
        "Libero-Goal-v0": "libero_goal",
        "Libero-10-v0": "libero_10",
        "Libero-90-v0": "libero_90",
        "Isaac-v0": None,
    }
    assert [env_id for env_id in gym.registry if env_id.startswith(("Libero", "Isaac"))] == IDS


@pytest.mark.parametrize("env_id", IDS)
@pytest.mark.parametrize("entry_point", ["entry_point", "vector_entry_point"])
def test_every_entry_point_leads_somewhere(env_id: str, entry_point: str):
    assert callable(gym.envs.registration.load_env_creator(getattr(gym.spec(env_id), entry_point)))


def test_importing_the_package_loads_nothing():
    loaded = set(run("import vla_envs, sys; print(*sys.modules)").split())
    assert "vla_envs" in loaded
    assert loaded & HEAVY == set()


def test_a_process_without_gymnasium_loads_nothing_of_ours_but_the_hook():
    loaded = run("import sys; print(*sorted(name for name in sys.modules if name.startswith('vla_envs')))")
    assert loaded.split() == ["vla_envs", "vla_envs._gymnasium_plugin"]


def test_importing_gymnasium_adds_only_the_registration():
    loaded = run("import gymnasium, sys; print(*sorted(name for name in sys.modules if name.startswith('vla_envs')))")
    assert loaded.split() == ["vla_envs", "vla_envs._gymnasium_plugin", "vla_envs.registration"]
    assert run("import gymnasium, sys; print(bool(set(sys.modules) & {'mujoco', 'numba', 'torch', 'robosuite'}))") == "False\n"


@pytest.mark.parametrize("order", ["import vla_envs, gymnasium", "import gymnasium, vla_envs"])
def test_importing_vla_envs_as_well_changes_nothing(order: str):
    assert run(f"{order}; print([i for i in gymnasium.registry if i.startswith(('Libero', 'Isaac'))])") == f"{IDS}\n"


@pytest.mark.parametrize("options", [["-I"], ["-E"], ["-s"], ["-P"]], ids=lambda options: options[0])
def test_isolated_interpreters_know_the_ids(options: list[str]):
    assert run("import gymnasium; print('Libero-v0' in gymnasium.registry)", *options) == "True\n"


def test_without_site_importing_the_package_is_enough():
    paths = [path for path in sys.path if path.endswith("site-packages")] + [str(Path(__file__).parents[2])]
    program = f"import sys; sys.path += {paths}; import gymnasium, vla_envs; print('Libero-v0' in gymnasium.registry)"
    assert run(program, "-S") == "True\n"


def test_the_ids_come_back_when_gymnasium_is_reloaded_or_imported_anew():
    program = """
import importlib, sys
import gymnasium
importlib.reload(gymnasium.envs)
importlib.reload(gymnasium)
print("Libero-v0" in gymnasium.registry)
for name in [name for name in sys.modules if name.partition(".")[0] == "gymnasium"]:
    del sys.modules[name]
import gymnasium
print("Libero-v0" in gymnasium.registry)
"""
    assert run(program) == "True\nTrue\n"


def test_gymnasiums_modules_keep_their_own_loaders():
    program = """
import gymnasium.envs, importlib.util, inspect
print(type(gymnasium.envs.__loader__).__name__, type(gymnasium.envs.__spec__.loader).__name__)
print(type(importlib.util.find_spec("gymnasium.envs").loader).__name__, len(inspect.getsource(gymnasium.envs)) > 0)
"""
    assert run(program) == "SourceFileLoader SourceFileLoader\nSourceFileLoader True\n"


def test_installing_twice_installs_one_hook():
    program = """
import sys
from vla_envs import _gymnasium_plugin
_gymnasium_plugin.install()
print(sum(type(finder).__name__ == "_GymnasiumFinder" for finder in sys.meta_path))
"""
    assert run(program) == "1\n"


def test_a_failing_registration_is_a_warning_and_gymnasium_still_works():
    program = """
import sys, warnings
sys.modules["vla_envs.registration"] = None
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import gymnasium
print([str(w.message) for w in caught if "vla_envs" in str(w.message)][0][:54])
print(gymnasium.make("CartPole-v1").reset(seed=0)[0].shape)
"""
    assert run(program) == "vla_envs could not register its ids with Gymnasium: Mo\n(4,)\n"


def test_a_process_without_gymnasium_installed_starts_as_ever():
    program = """
import sys
sys.modules["gymnasium"] = None
try:
    import gymnasium
except ImportError as error:
    print(type(error).__name__)
import vla_envs
"""
    assert run(program) == "ModuleNotFoundError\n"
