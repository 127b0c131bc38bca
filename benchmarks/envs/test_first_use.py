"""What the first use of a task costs, beside the construction and first reset of one stock env; each in a fresh process.

Both build the same MuJoCo model with LIBERO and robosuite, twice, for the constructor and for the reset. Stock LIBERO does so
in every env of every process; here the first process does, without cameras, and writes the model to the cache, from where it
is read ever after.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from stock import SUITE, TASK_ID

ROUNDS = 3
_PROGRAM = """
import contextlib, io, json, sys, time
with contextlib.redirect_stdout(io.StringIO()):
    import libero.libero.envs
from stock import make_stock_env
from vla_envs.libero.cache import load_scene
from vla_envs.libero.suites import benchmark_suite, quiet
what, suite, task_id = sys.argv[1], sys.argv[2], int(sys.argv[3])
bddl_file = benchmark_suite(suite).get_task_bddl_file_path(task_id)
start = time.perf_counter()
if what == "stock":
    with quiet():
        make_stock_env(bddl_file, drawing=True).reset()
else:
    load_scene(suite, task_id)
print(json.dumps(time.perf_counter() - start), flush=True)
"""


def seconds_in_a_fresh_process(what: str, cache: Path) -> float:
    """How long it takes, imports not counted. `what`: "stock", or "scene"."""
    folder = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, what, SUITE, str(TASK_ID)],
        cwd=folder,
        env={**os.environ, "VLA_ENVS_CACHE": str(cache), "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    return float(json.loads(done.stdout.splitlines()[-1]))


def test_compiling_a_task_and_loading_it_again(benchmark: Any, tmp_path: Path) -> None:
    seconds: dict[str, list[float]] = {"stock": [], "compile": [], "load": []}

    def measure() -> None:
        cache = tmp_path / str(len(seconds["load"]))
        seconds["stock"].append(seconds_in_a_fresh_process("stock", cache))
        seconds["compile"].append(seconds_in_a_fresh_process("scene", cache))
        seconds["load"].append(seconds_in_a_fresh_process("scene", cache))
        shutil.rmtree(cache)

    benchmark.pedantic(measure, rounds=ROUNDS)
    stock, compiling, loading = (statistics.median(seconds[what]) for what in ("stock", "compile", "load"))
    benchmark.extra_info.update({"stock_s": stock, "compile_s": compiling, "load_s": loading})
    print(
        f"\nfirst use of a task: {compiling:.1f} s, from the cache {loading:.2f} s; construction and first reset in stock "
        f"LIBERO {stock:.1f} s: {stock / compiling:.1f} x, {stock / loading:.0f} x"
    )
    assert stock / compiling >= 1.0
    assert stock / loading >= 5.0
