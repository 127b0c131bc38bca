"""The numbers as lines of a table, each beside its bound, and as JSON. Knows nothing of how they came about."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from vla_train.bench.advice import Advice, GpuMemory, PlayRates, Rates
from vla_train.bench.machine import Machine
from vla_train.config import TrainConfig
from vla_train.config_json import config_to_json

HEADER = f"  {'':<26}{'chunks/s':>10}   beside its bound"


@dataclass(frozen=True, kw_only=True, slots=True)
class Results:
    """Everything that was found out."""

    machine: Machine
    rates: Rates
    memory: GpuMemory | None
    iteration_chunks: int
    """Chunks that an iteration plays and trains on, if all its groups are kept and all episodes are as long as they may be."""
    advice: Advice

    @property
    def iteration_s(self) -> float:
        return self.iteration_chunks / self.rates.iteration


def row(what: str, chunks_per_s: float, bound: str = "") -> str:
    """A line of the table."""
    return f"  {what:<26}{_number(chunks_per_s):>10}   {bound}".rstrip()


def policy_rows(policy: Mapping[int, float]) -> list[str]:
    """The policy alone, by batch size."""
    best = max(policy.values())
    return [row(f"policy, {rows} rows a call", rate, f"{rate / best:.2f} of its best batch") for rows, rate in policy.items()]


def envs_row(envs: float, machine: Machine) -> str:
    """The envs alone."""
    return row("envs, random actions", envs, f"{_number(envs / machine.cores)} per core")


def both_row(rates: PlayRates, machine: Machine) -> str:
    """Both together; where they share cores, beside taking turns too."""
    slower = "policy" if rates.best_policy < rates.envs else "envs"
    bound = f"{rates.overlap:.2f} of the slower one alone ({slower})"
    if machine.gpu is None:
        bound += f", {rates.both / rates.in_turn:.2f} of taking turns on the same cores"
    return row("both, pipelined", rates.both, bound)


def update_row(rates: Rates) -> str:
    """Training on what was decided: a forward pass like the policy's, and its gradients."""
    return row("update", rates.update, f"{rates.update / rates.best_policy:.2f} of the policy's best batch")


def iteration_row(rates: Rates) -> str:
    """Playing and training, one after the other."""
    bound = f"{rates.iteration / rates.both:.2f} of playing alone, {rates.iteration / rates.update:.2f} of the update alone"
    return row("iteration, one by one", rates.iteration, bound)


def machine_text(machine: Machine) -> str:
    """Where the policy runs, and what simulates."""
    cores = f"{machine.cores} cores" if machine.cores > 1 else "1 core"
    return f"{cores}, no GPU" if machine.gpu is None else f"{machine.gpu} ({machine.gpu_gb:.0f} GB), {cores}"


def end_lines(results: Results, config: TrainConfig) -> list[str]:
    """What an iteration takes, what memory is held, what limits, and what to change."""
    rollout, rates = config.rollout, results.rates
    playing, training = results.iteration_chunks / rates.both, results.iteration_chunks / rates.update
    lines = [
        f"An iteration of {rollout.groups_per_iteration} groups of {rollout.group_size} episodes, at most "
        f"{results.iteration_chunks} chunks, takes about {_seconds(results.iteration_s)}: {_seconds(playing)} to play, "
        f"{_seconds(training)} to train. Groups without signal, played and not trained on, come on top."
    ]
    if results.memory is not None:
        memory, total = results.memory, results.machine.gpu_gb
        others = f" ({memory.before_gb:.1f} GB of it by other programs)" if memory.before_gb >= 1 else ""
        lines.append(
            f"GPU memory: {memory.playing_gb:.1f} GB held while playing, {memory.peak_gb:.1f} GB at most, "
            f"of {total:.1f} GB{others}."
        )
    lines.append(results.advice.limit)
    changes = results.advice.changes
    if changes:
        lines.append("What to change" + (", the most promising first:" if len(changes) > 1 else ":"))
    return [*lines, *(f"  * {change}" for change in changes)]


def to_json(results: Results, config: TrainConfig) -> dict[str, Any]:
    """All of it as plain JSON data."""
    rates = results.rates
    return {
        "config": config_to_json(config),
        "machine": asdict(results.machine),
        "policy_chunks_per_s": {str(rows): rate for rows, rate in rates.policy.items()},
        "envs_chunks_per_s": rates.envs,
        "both_chunks_per_s": rates.both,
        "overlap": rates.overlap,
        "update_chunks_per_s": rates.update,
        "iteration_chunks_per_s": rates.iteration,
        "iteration_chunks": results.iteration_chunks,
        "iteration_s": results.iteration_s,
        "gpu_memory": None if results.memory is None else asdict(results.memory),
        "limit": results.advice.limit,
        "changes": list(results.advice.changes),
    }


def _number(value: float) -> str:
    """Three digits, without an exponent."""
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value < 10 else f"{value:.0f} s" if value < 120 else f"{value / 60:.0f} min"
