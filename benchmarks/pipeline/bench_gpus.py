"""Chunks per second of whole iterations, rollout and update, on one GPU, on several, and on GPUs that divide the work.

    python benchmarks/pipeline/bench_gpus.py 1 2 4 1+1                   # 7B with adapters, LIBERO; three minutes each
    python benchmarks/pipeline/bench_gpus.py 4 -- --policy.lora-rank 0   # with other options of `train`
    python benchmarks/pipeline/bench_gpus.py 1 2 1+1 --workers 2 --envs 4 --groups 2 -- --policy.size tiny \\
        --policy.no-compile --policy.base-dtype auto                     # without a GPU

A layout is a number of GPUs that each train and sample, as torchrun starts them, or T+S: T GPUs train, S others sample (Ray).
Each GPU brings its share of the host's cores, `--workers` workers and `--groups` groups of an iteration: layouts of as many
GPUs have as much to do, with as much. Weights are random, so that all episodes have the same length.

Each layout is a run of `python -m vla_train train` that is ended when `--iterations` are done. The first two, in which it
compiles and plays its first rollout, do not count; the others count in pairs. One JSON line for each layout, and a table.
Logs, metrics and timelines stay in `--output`.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from vla_train.run.tracking import read_records

WARM_UP = 2
RAY_PORT = 6391
ACTIVITIES = ("simulate", "draw", "policy", "train", "idle")
OPTIONS: dict[str, list[str]] = {
    "--recipe": ["one-gpu"],
    "--policy.random-weights": [],
    "--env.kwargs": ["suite=libero_object", "detail=fast", "image_size=256", "sleep=true"],
    "--env.worker": ["process"],
    "--env.max-episode-steps": ["96"],
    "--rollout.max-staleness": ["1"],
    "--rollout.min-success-rate": ["0"],
    "--rollout.max-success-rate": ["1"],
    "--eval.every": ["0"],
    "--keep-checkpoints": ["1"],
    "--iterations": ["1000"],
    "--display": ["plain"],
}
"""Of every run, unless others are given."""


@dataclass(frozen=True)
class Layout:
    """GPUs that train, and GPUs that only sample; where there are none of those, all do both."""

    trainers: int
    samplers: int

    @classmethod
    def parse(cls, text: str) -> "Layout":
        trainers, _, samplers = text.partition("+")
        layout = cls(int(trainers), int(samplers or 0))
        if layout.trainers < 1 or layout.samplers % layout.trainers:
            raise argparse.ArgumentTypeError(f"{text}: each GPU that trains has as many that sample")
        return layout

    @property
    def gpus(self) -> int:
        return self.trainers + self.samplers

    def __str__(self) -> str:
        return f"{self.trainers}+{self.samplers}" if self.samplers else str(self.trainers)


@dataclass(frozen=True)
class Share:
    """What of the host a layout may use."""

    gpus: list[str]
    """As in CUDA_VISIBLE_DEVICES; none on a host without."""
    cores: set[int]

    @classmethod
    def of(cls, layout: Layout, pool: list[str]) -> "Share":
        """The first of the GPUs, and as large a part of the cores."""
        cores = sorted(os.sched_getaffinity(0))
        if not pool:
            return cls([], set(cores))
        if layout.gpus > len(pool):
            raise SystemExit(f"{layout} needs {layout.gpus} GPUs; there are {len(pool)}")
        return cls(pool[: layout.gpus], set(cores[: layout.gpus * len(cores) // len(pool)]))

    def bound(self, words: list[str]) -> list[str]:
        """A command that keeps to the cores."""
        return ["taskset", "-c", ",".join(map(str, sorted(self.cores))), *words]


def command(layout: Layout, arguments: argparse.Namespace, output: Path) -> list[str]:
    """What runs a layout."""
    given = {option for option in arguments.options if option.startswith("--")}
    numbers = {
        "--env.num-workers": arguments.workers * layout.gpus // layout.trainers,
        "--env.envs-per-worker": arguments.envs,
        "--rollout.groups-per-iteration": arguments.groups * layout.gpus,
        "--checkpoint-every": arguments.iterations,
        "--output": output,
    }
    options = OPTIONS | {name: [str(value)] for name, value in numbers.items()}
    if layout.samplers:
        options |= {"--policy.worker": ["ray"], "--policy.replicas": [str(layout.samplers // layout.trainers)]}
    words = [word for name, values in options.items() if name not in given for word in (name, *values)]
    return [sys.executable, "-m", "vla_train", "train", *words, *arguments.options]


@contextmanager
def ray_on(gpus: list[str], share: Share) -> Iterator[dict[str, str]]:
    """A Ray cluster on these GPUs of the share; yields how to reach it."""
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "CUDA_VISIBLE_DEVICES": ",".join(gpus)}
    start = ["start", "--head", "--port", str(RAY_PORT), "--num-gpus", str(len(gpus)), "--include-dashboard", "false"]
    subprocess.run(share.bound([*ray, *start]), check=True, env=environment, stdout=subprocess.DEVNULL)
    try:
        yield {"RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": f"127.0.0.1:{RAY_PORT}"}
    finally:
        subprocess.run([*ray, "stop", "--force"], check=False, env=environment, stdout=subprocess.DEVNULL)


def play(run: list[str], environments: list[dict[str, str]], output: Path, *, iterations: int, seconds: float) -> None:
    """One process for each of the environments, until the iterations are done and the timeline is drawn, or time is up."""
    ends = time.monotonic() + seconds
    timeline = output / "timeline" / f"iteration_{iterations:06d}.png"
    with open(output.with_suffix(".log"), "w") as log:
        ranks = [
            subprocess.Popen(run, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
            for environment in environments
        ]
        try:
            while all(rank.poll() is None for rank in ranks) and time.monotonic() < ends and not timeline.exists():
                time.sleep(0.5)
            time.sleep(1.0)  # the picture is being written
        finally:
            for rank in ranks:
                with suppress(ProcessLookupError):
                    os.killpg(rank.pid, signal.SIGKILL)  # nothing of the run is wanted but its metrics
            for rank in ranks:
                rank.wait()


def environments_of(layout: Layout, gpus: list[str]) -> list[dict[str, str]]:
    """What torchrun would set, of each process that trains."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    told = {"WORLD_SIZE": layout.trainers, "LOCAL_WORLD_SIZE": layout.trainers, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    visible = {"CUDA_VISIBLE_DEVICES": ",".join(gpus[: layout.trainers])} if gpus else {}
    if layout.trainers == 1:
        return [os.environ | visible]
    shared = os.environ | visible | {name: str(value) for name, value in told.items()}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(layout.trainers)]


def measure(layout: Layout, arguments: argparse.Namespace, pool: list[str]) -> dict[str, object]:
    """A layout's record."""
    share = Share.of(layout, pool)
    output = arguments.output / str(layout)
    run = share.bound(command(layout, arguments, output))
    environments = environments_of(layout, share.gpus)
    limits = {"iterations": arguments.iterations, "seconds": arguments.seconds}
    if layout.samplers:
        with ray_on(share.gpus[layout.trainers :], share) as reached:
            play(run, [environment | reached for environment in environments], output, **limits)
    else:
        play(run, environments, output, **limits)
    counted = read_records(output, "iteration")[WARM_UP : arguments.iterations]
    counted = counted[len(counted) % 2 :]  # a rollout that plays ahead leaves the next one little to do: they count in pairs
    if not counted:
        tail = output.with_suffix(".log").read_text().splitlines()[-5:]
        return {"layout": str(layout), "failed": f"fewer than {WARM_UP + 2} iterations", "log": tail}
    seconds = sum(record["time/iteration_s"] for record in counted)
    chunks = sum(record["update/rows"] for record in counted)
    shares = {activity: round(sum(record[f"time/{activity}_s"] for record in counted) / seconds, 3) for activity in ACTIVITIES}
    return {
        "layout": str(layout),
        "gpus": layout.gpus,
        "cores": len(share.cores),
        "iterations": len(counted),
        "chunks_per_s": round(chunks / seconds, 2),
        "iteration_s": round(seconds / len(counted), 2),
        "update_chunks_per_s": round(counted[-1]["update/chunks_per_s"], 1),
        "shares": shares,
        "gb_on_gpu": round(max(record.get("time/gpu_memory_gb", 0.0) for record in counted), 1),
    }


def table(records: list[dict[str, object]]) -> str:
    """Chunks per second, and how many times those of the first layout."""
    lines = ["| layout | chunks/s | against the first | s an iteration |", "|---|---|---|---|"]
    measured = [record for record in records if "chunks_per_s" in record]
    for record in measured:
        ratio = record["chunks_per_s"] / measured[0]["chunks_per_s"]  # type: ignore[operator]
        lines.append(f"| {record['layout']} | {record['chunks_per_s']} | {ratio:.2f} x | {record['iteration_s']} |")
    return "\n".join(lines)


def main() -> None:
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # `timeout` says: ranks end too
    words = sys.argv[1:]
    split = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("layouts", nargs="+", type=Layout.parse, help="1, 2, 4, 1+1, 2+2, ...")
    parser.add_argument("--workers", type=int, default=8, help="for each GPU")
    parser.add_argument("--envs", type=int, default=16, help="of each worker")
    parser.add_argument("--groups", type=int, default=8, help="of an iteration, for each GPU")
    parser.add_argument("--iterations", type=int, default=6, help="with the two that do not count")
    parser.add_argument("--seconds", type=float, default=600.0, help="for one layout at most")
    parser.add_argument("--output", type=Path, help="a new folder; by default one for temporary files")
    arguments = parser.parse_args(words[:split])
    arguments.options = words[split + 1 :]
    arguments.output = arguments.output or Path(tempfile.mkdtemp())
    arguments.output.mkdir(parents=True, exist_ok=True)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    pool = visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]
    print(f"{len(pool)} GPUs, {len(os.sched_getaffinity(0))} cores; logs and timelines: {arguments.output}", flush=True)
    records = []
    for layout in arguments.layouts:
        records.append(measure(layout, arguments, pool))
        print(json.dumps(records[-1]), flush=True)
    print(table(records))


if __name__ == "__main__":
    main()
