"""What came of it: success of start and end per task, and where the time went; `OUTPUT/result.json`, and tables.

    success        start, final and best -> greedy, sampled -> rates with 95 % intervals, in all and per task
    seconds        wall-clock of each stage, over all the processes that worked on it, and of all
    grpo_seconds   where those of GRPO went
    work           how much was demonstrated, taught and played
    config, machine

`best` is there where the best checkpoint of GRPO's own evaluations is not the last one.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from vla_train.bench.machine import machine_of
from vla_train.config_json import config_to_json
from vla_train.demonstrations.dataset import DemonstrationDataset
from vla_train.display import Display
from vla_train.evaluation.evaluate import play_name
from vla_train.evaluation.record import summaries
from vla_train.from_scratch.config import DEMONSTRATIONS, GRPO, START, TRAIN, FromScratchConfig
from vla_train.run.tracking import read_records
from vla_train.trainer.checkpoint_folder import best_checkpoint, list_checkpoints

Result = Mapping[str, Any]
_ACTIVITIES = ("simulate", "draw", "policy", "train", "idle")


def compared(output: Path) -> dict[str, Path]:
    """The checkpoints that are compared: start, final, and best where that is another one."""
    best, final = best_checkpoint(output / GRPO), list_checkpoints(output / GRPO)[-1]
    found = {"start": list_checkpoints(output / START)[-1], "final": final}
    return found if best is None or best == final else {**found, "best": best}


def read_result(config: FromScratchConfig, *, seconds: Mapping[str, float]) -> Result:
    """The result, from what the stages left.

    Args:
        config: Of them all.
        seconds: Wall-clock of each stage.
    """
    records = read_records(config.output / GRPO)
    device = torch.device("cuda" if torch.cuda.is_available() and config.policy.device != "cpu" else "cpu")
    return {
        "success": {
            name: {"checkpoint": str(checkpoint.relative_to(config.output)), **_success(config.evaluation_folder(checkpoint))}
            for name, checkpoint in compared(config.output).items()
        },
        "seconds": {**seconds, "all": sum(seconds.values())},
        "grpo_seconds": grpo_seconds(records, seconds[TRAIN]),
        "work": _work(config, records),
        "config": config_to_json(config),
        "machine": asdict(machine_of(device)),
    }


def grpo_seconds(records: Sequence[Mapping[str, Any]], whole: float) -> dict[str, float]:
    """Where the time of GRPO went.

    Args:
        records: Of the run's log.
        whole: Seconds of the stage.

    Returns:
        Seconds of the iterations by activity (see `pipeline.wall_clock`), of the evaluations on the way, and of what is left:
        setting up, checkpoints, and what an interruption lost.
    """
    parts = {activity: sum(record.get(f"time/{activity}_s", 0.0) for record in records) for activity in _ACTIVITIES}
    parts["evaluations"] = sum(record["duration_s"] for record in records if record["kind"] == "eval")
    return {**parts, "other": whole - sum(parts.values())}


def write_result(output: Path, result: Result) -> Path:
    """Write it to `OUTPUT/result.json`."""
    file = output / "result.json"
    file.write_text(json.dumps(result, indent=1) + "\n")
    return file


def show_result(display: Display, result: Result) -> None:
    """Print it: success per task, then the time."""
    success: Mapping[str, Any] = result["success"]
    ways = [way for way in success["start"] if way != "checkpoint"]
    for way in ways:
        by_task = [{task["task_id"]: task for task in numbers[way]["tasks"]} for numbers in success.values()]
        rows = [
            [f"{task_id} {task['instruction']}", *(_rate(tasks[task_id], *tasks[task_id]["interval"]) for tasks in by_task)]
            for task_id, task in by_task[0].items()
        ]
        whole = [numbers[way] for numbers in success.values()]
        rows.append(["all", *(_rate(one, one["interval_low"], one["interval_high"]) for one in whole)])
        display.table(f"held-out initial states, {way}: success (95 % interval)", ["task", *success], rows)
    seconds: Mapping[str, float] = result["seconds"]
    display.table("from nothing to the result", ["stage", "wall-clock"], [[name, _time(s)] for name, s in seconds.items()])
    parts: Mapping[str, float] = result["grpo_seconds"]
    whole_s = max(sum(parts.values()), 1e-9)
    display.table(
        "where GRPO's time went", ["", "wall-clock", "share"], [[n, _time(s), f"{s / whole_s:.0%}"] for n, s in parts.items()]
    )


def _work(config: FromScratchConfig, records: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    episodes = DemonstrationDataset(config.output / DEMONSTRATIONS).episodes
    iterations = [record for record in records if record["kind"] == "iteration"]
    return {
        "demonstrations": len(episodes),
        "demonstrated_steps": sum(episode.length for episode in episodes),
        "sft_rows": config.sft.steps * config.sft.batch_rows,
        "grpo_iterations": len(iterations),
        "grpo_episodes": sum(record["rollout/episodes"] for record in iterations),
        "grpo_env_steps": sum(record["rollout/env_steps"] for record in iterations),
    }


def _success(evaluation: Path) -> dict[str, Any]:
    record = json.loads((evaluation / "results.json").read_text())
    return {play_name(temperature): numbers for temperature, numbers in summaries(record).items()}


def _rate(numbers: Mapping[str, Any], low: float, high: float) -> str:
    rate = numbers["successes"] / numbers["episodes"]
    return f"{rate:.0%} of {numbers['episodes']} ({low:.0%} - {high:.0%})"


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d} min"
