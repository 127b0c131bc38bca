"""Who imports whom, proved on the code itself: every import statement of both packages, lazy ones included."""

import ast
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from vla_train.registry import ESTIMATORS, LOSSES, POLICIES, Entry, load

ROOT = Path(__file__).parents[1]
PACKAGES = ("vla_envs", "vla_train")
BUILD_SCRIPT = "vla_envs.hatch_build"

RANKS = (
    (
        *("vla_train.types", "vla_train.errors", "vla_train.units", "vla_train.safetensors_file"),
        *("vla_train.registry", "vla_train.config", "vla_train.config_checks", "vla_train.config_json"),
        *("vla_train.config_pairs", "vla_train.wire", "vla_train.gpu_memory"),
    ),
    ("vla_train.policy", "vla_train.algo"),
    ("vla_train.envs", "vla_train.pipeline", "vla_train.trainer", "vla_train.distributed"),
    (),  # `loop` and what it moves: run, evaluation, display, report
    ("vla_train.recipes",),
    ("vla_train.command_line",),
    ("vla_train.cli", "vla_train.__main__"),
)
"""A module imports its own rank and those before it; what is not named here has the rank of `loop`."""
LOOP_RANK = RANKS.index(())
FACADE = "vla_train"
"""Names what is public of all ranks: it is above them."""


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(file): file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))}

OWNERS = {
    "ray": {"vla_train.distributed.ray"},
    "vllm": {"vla_train.policy.vllm"},
    "websockets": {"vla_train.wire.sockets"},
    "msgpack": {"vla_train.wire.packing"},
    "lerobot": {"vla_envs.lerobot.config"},
    "isaaclab": {"vla_envs.isaac.lab"},
    "isaaclab_newton": {"vla_envs.isaac.lab"},
    "isaaclab_tasks": {"vla_envs.isaac.lab"},
    "newton": {"vla_envs.isaac.lab"},
    "pxr": {"vla_envs.isaac.lab.usd_files"},
    "warp": {"vla_envs.warp", "vla_envs.isaac.lab"},
    "mujoco_warp": {"vla_envs.warp.worlds", "vla_envs.warp.cameras", "vla_envs.isaac.lab.physics"},
    "robosuite": {"vla_envs.libero.compile"},
    "libero": {f"vla_envs.libero.{name}" for name in ("compile", "libero_paths", "own_suite", "suites")},
    "bitsandbytes": {"vla_train.policy.simplevla_oft.nf4"},
    "triton": {"vla_train.policy.simplevla_oft.fp8_kernels"},
    "imageio": {"vla_train.evaluation.evaluate"},
    "imageio_ffmpeg": {"vla_train.demonstrations.videos"},
    "pyarrow": {"vla_train.demonstrations.parquet"},
    "stable_baselines3": {"vla_envs.vector.sb3_env"},
    "wandb": {"vla_train.run.tracking"},
    "tyro": {"vla_train.command_line", "vla_train.config_pairs"},
}
"""Libraries that few modules, or those of one folder, may touch."""
HEAVY = {
    *("torch", "transformers", "ray", "gymnasium", "mujoco", "numba", "robosuite", "libero"),
    *("matplotlib", "imageio", "tensorboard", "PIL", "pyarrow", "vla_envs.libero", "vla_train.policy"),
}


def imports_of(module: str) -> set[str]:
    """Full names of all modules that a module imports, anywhere in its text."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else str(node.module) for name in names}
    return found


IMPORTS = {module: imports_of(module) for module in MODULES if module != BUILD_SCRIPT}


def within(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def arrows(*sources: str) -> list[tuple[str, str]]:
    """(importer, imported) of all modules in these packages."""
    return [(module, target) for module, targets in IMPORTS.items() if within(module, *sources) for target in sorted(targets)]


def rank(module: str) -> int:
    if module == FACADE:
        return len(RANKS)
    return next((level for level, names in enumerate(RANKS) if within(module, *names)), LOOP_RANK)


def test_the_parser_sees_plain_lazy_and_submodule_imports():
    assert "gymnasium.vector" in IMPORTS["vla_envs.vector.base"]
    assert "ray" in IMPORTS["vla_train.distributed.ray"]
    assert "vla_envs.libero.compile" in IMPORTS["vla_envs.libero.cache"]  # inside a function
    assert "vla_envs._gymnasium_plugin" in IMPORTS["vla_envs"]  # from a package
    assert len(IMPORTS) > 80


def test_the_environments_never_import_the_trainer():
    assert [arrow for arrow in arrows("vla_envs") if within(arrow[1], "vla_train", "transformers")] == []


def test_the_environments_know_pytorch_only_where_a_user_asks_for_tensors_its_files_or_for_isaac_lab():
    users = {source for source, target in arrows("vla_envs") if within(target, "torch")}
    others = {user for user in users if not within(user, "vla_envs.isaac.lab")}
    assert others == {"vla_envs.vector.arrays", "vla_envs.warp.device", "vla_envs.libero.own_states"}


def test_the_trainer_never_imports_the_environments():
    assert [arrow for arrow in arrows("vla_train") if within(arrow[1], "vla_envs")] == []


def test_what_simulators_share_knows_no_simulator_task():
    known = ("vla_envs.libero", "vla_envs.isaac", "libero", "robosuite")
    assert [arrow for arrow in arrows("vla_envs.vector") if within(arrow[1], *known)] == []


def test_libero_does_not_know_isaac():
    assert [arrow for arrow in arrows("vla_envs.libero") if within(arrow[1], "vla_envs.isaac")] == []


def test_the_envs_do_not_know_lerobot():
    others = [arrow for arrow in arrows("vla_envs") if not within(arrow[0], "vla_envs.lerobot")]
    assert [arrow for arrow in others if within(arrow[1], "vla_envs.lerobot")] == []


def test_the_algorithms_know_tensors_only():
    known = ("torch", "numpy", "vla_train.algo", "vla_train.types", "vla_train.config", *sys.stdlib_module_names)
    assert [arrow for arrow in arrows("vla_train.algo") if not within(arrow[1], *known)] == []


@pytest.mark.parametrize("package", ["pipeline", "trainer", "distributed"])
def test_rollout_training_and_placement_know_the_policy_protocol_only(package: str):
    policies = [arrow for arrow in arrows(f"vla_train.{package}") if within(arrow[1], "vla_train.policy")]
    assert [arrow for arrow in policies if arrow[1] != "vla_train.policy.base"] == []


def test_the_pipeline_knows_no_tensors_and_no_simulators():
    concrete = ("torch", "transformers", "mujoco", "libero", "robosuite", "vla_train.algo", "vla_train.trainer")
    assert [arrow for arrow in arrows("vla_train.pipeline") if within(arrow[1], *concrete)] == []


def test_policies_and_algorithms_do_not_know_each_other():
    assert [arrow for arrow in arrows("vla_train.policy") if within(arrow[1], "vla_train.algo")] == []
    assert [arrow for arrow in arrows("vla_train.algo") if within(arrow[1], "vla_train.policy")] == []


def test_no_arrow_of_the_trainer_points_back():
    own = [arrow for arrow in arrows("vla_train") if within(arrow[1], "vla_train")]
    assert len(own) > 100
    assert [(source, target) for source, target in own if rank(target) > rank(source)] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_imports_the_public_names_of_its_own_package(package: str):
    assert [arrow for arrow in arrows(package) if arrow[1] == package] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_no_modules_import_each_other_in_a_circle(package: str):
    """Lazy imports count: what needs a detour at run time is a knot for whoever reads it."""
    inside = {module: {target for target in IMPORTS[module] if within(target, package)} for module in IMPORTS}
    left = {module: targets & IMPORTS.keys() for module, targets in inside.items() if within(module, package)}
    while leaves := [module for module, targets in left.items() if not targets & left.keys() - {module}]:
        for module in leaves:
            del left[module]
    assert {module: sorted(targets & left.keys()) for module, targets in left.items()} == {}


@pytest.mark.parametrize("library", sorted(OWNERS))
def test_a_library_is_imported_by_its_owners_only(library: str):
    importers = {module for module, targets in IMPORTS.items() if any(within(target, library) for target in targets)}
    assert {module for module in importers if not within(module, *OWNERS[library])} == set()


def test_no_import_hides_in_a_string():
    """A module that the user names may be imported by name; one that the code names is a statement, seen above."""
    hidden = [
        (module, ast.unparse(node))
        for module in IMPORTS
        for node in ast.walk(ast.parse(MODULES[module].read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__")
        if any(isinstance(argument, ast.Constant | ast.JoinedStr) for argument in node.args)
    ]
    assert hidden == []


@pytest.mark.parametrize("table", [POLICIES, ESTIMATORS, LOSSES])
def test_whatever_has_a_name_is_there(table: Mapping[str, Entry]):
    """These imports are strings: they keep what the command line reads light."""
    assert all(callable(load(name, table, option="name")) for name in table)
    assert all(entry.function.partition(":")[0] in MODULES for entry in table.values())


@pytest.mark.parametrize("module", ["vla_train", "vla_train.config", "vla_train.recipes", "vla_train.cli", "vla_envs"])
def test_importing_it_loads_nothing_heavy(module: str):
    program = f"import sys, {module}; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    loaded = set(result.stdout.split())
    assert module in loaded
    assert loaded & HEAVY == set()
