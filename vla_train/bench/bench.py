"""Measures a machine with the options of a run: policy, envs, both together, update; and says what limits it.

The parts are those of a run, in its own process: workers, sampling policy, trainer. No folder is made, and nothing is learnt.
"""

import itertools
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import torch
from rich.markup import escape

from vla_train.bench.advice import GpuMemory, PlayRates, Rates, advise, out_of_memory
from vla_train.bench.config import BenchConfig
from vla_train.bench.machine import held_gb, machine_of, peak_gb
from vla_train.bench.material import first_observations
from vla_train.bench.measure import PolicyAlone, batch_sizes, play, update_rate
from vla_train.bench.policies import MeteredPolicy, RandomPolicy
from vla_train.bench.report import (
    HEADER,
    Results,
    both_row,
    end_lines,
    envs_row,
    iteration_row,
    machine_text,
    policy_rows,
    to_json,
    update_row,
)
from vla_train.display import Display
from vla_train.envs.workers import close_workers, make_workers
from vla_train.errors import RunError
from vla_train.files import replace_file
from vla_train.interruption import Interruption
from vla_train.pipeline.episodes import PromptStream
from vla_train.pipeline.policy_contract import require_fit
from vla_train.pipeline.rollout import Rollout
from vla_train.pipeline.timeline import Timeline
from vla_train.policy.factory import policy_factory
from vla_train.run.named_checkpoint import resolve_checkpoint
from vla_train.run.policies import build_policies
from vla_train.trainer.group_trainer import GroupTrainer
from vla_train.types import EpisodeSpec

_LEARNING_RATE = 1e-12
"""Costs as much as any other, and leaves the weights as they are, however often the same rows are trained on."""
_DEFAULT_DECISIONS = 32
"""Of an episode, where neither the env nor what was played says how long one is."""


class Bench:
    """Workers, policy and trainer, set up; `measure` measures and closes them.

    Args:
        config: What a run would be told, and how long to measure.
        recipes: Names that advice may give.

    Raises:
        ValueError: It cannot work as configured.
        ImportError: It needs a package that is not installed.
        RunError: A worker was lost while it started, or the GPU's memory is too small for the policy.
    """

    def __init__(self, config: BenchConfig, *, recipes: tuple[str, ...]) -> None:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError("bench measures one process: start it without torchrun")
        if config.policy.checkpoint is not None:
            checkpoint = resolve_checkpoint(config.policy.checkpoint)
            config = replace(config, policy=replace(config.policy, checkpoint=checkpoint))
        self._config = config
        self._recipes = recipes
        self._display = Display(config.display)
        factory = policy_factory(config.policy)
        with ExitStack() as undo, self._display.waiting("setting up"):
            env = config.env
            self._display.line(
                f"starting {env.num_workers} workers of {env.envs_per_worker} {escape(env.id)} envs, and the policy"
            )
            self._workers = make_workers(env, chunk_size=config.policy.chunk_size)
            undo.callback(close_workers, self._workers)
            self._env = self._workers[0].description
            self._specs = self._episodes()
            on_gpu = config.policy.device != "cpu" and torch.cuda.is_available()
            self._before_gb = held_gb(torch.device("cuda")) if on_gpu else 0.0
            with self._fitting("the policy"):
                policies = build_policies(
                    config.policy, factory, self._env, seed=config.seed, separate=config.rollout.max_staleness > 0
                )
                undo.callback(policies.close)
                self._trainer = GroupTrainer(
                    replace(config.optim, learning_rate=_LEARNING_RATE),
                    config.algo,
                    policy=policies.trained,
                    temperature=config.rollout.temperature,
                    total_steps=1,
                    seed=config.seed,
                )
            self._policy = policies.sampler
            require_fit(self._policy, self._env)
            weights = list(policies.trained.trainable_module().parameters())
            self._device = weights[0].device
            self._num_weights = sum(weight.numel() for weight in weights)
            self._machine = machine_of(self._device)
            self._undo = undo.pop_all()

    def measure(self) -> Results:
        """Measure everything, show and write the results, and close all. Ctrl-C and SIGTERM end it.

        Raises:
            RunError: A worker failed more often than it may, the policy gives no numbers, or the GPU's memory is too small.
            SystemExit: It was interrupted.
        """
        interruption = Interruption(lambda: None)
        with self._undo, interruption.watch():
            try:
                with interruption.allowed():
                    results = self._measure()
            except KeyboardInterrupt:
                self._display.line("interrupted: nothing was written")
                raise SystemExit(130) from None
        if self._config.json is not None:
            replace_file(self._config.json, json.dumps(to_json(results, self._config), indent=1).encode() + b"\n")
            self._display.line(f"written to {escape(str(self._config.json))}")
        return results

    def _measure(self) -> Results:
        config, show = self._config, self._display.line
        seconds, temperature = config.seconds, config.rollout.temperature
        slots = config.env.num_workers * config.env.envs_per_worker
        show(
            f"on {escape(machine_text(self._machine))}; a chunk is one decision: {config.policy.chunk_size} actions of one env"
        )
        show(HEADER)
        with self._phase("what the envs show first: scenes are loaded"):
            observation = first_observations(self._workers, self._specs, self._policy.observation_keys)
        alone = PolicyAlone(self._policy, observation, temperature=temperature)
        sizes = batch_sizes(config.env, config.rollout.max_policy_batch)
        compiling = ": compiling it, a minute or two" if config.policy.compile else ""
        with self._phase(f"the policy alone, one call after another, {seconds:g} s{compiling}", fits="playing"):
            for rows in sizes:
                alone.warm_up(rows)
            policy = {rows: alone.chunks_per_s(rows, seconds=seconds / len(sizes)) for rows in sizes}
            decision = alone.decide(max_rows=sizes[-1])
        for line in policy_rows(policy):
            show(line)

        metered = MeteredPolicy(self._policy)
        rollout = Rollout(
            config.rollout, policy=metered, workers=self._workers, timeline=Timeline(max_spans=1), seed=config.seed
        )
        self._undo.callback(rollout.close)
        with self._phase(f"the envs alone, with random actions, {seconds:g} s"):
            random = RandomPolicy(self._env, chunk_size=config.policy.chunk_size)
            envs = play(rollout, metered, random, self._specs, slots=slots, temperature=temperature, seconds=seconds)
        show(envs_row(envs.chunks_per_s, self._machine))
        with self._phase(f"both together, as a run plays, {seconds:g} s", fits="playing"):
            both = play(rollout, metered, self._policy, self._specs, slots=slots, temperature=temperature, seconds=seconds)
        playing_gb = held_gb(self._device) if self._on_gpu else 0.0
        played = PlayRates(policy=policy, envs=envs.chunks_per_s, both=both.chunks_per_s)
        show(both_row(played, self._machine))
        episode_decisions = self._episode_decisions(both.mean_decisions)
        with self._phase(f"the update, {seconds:g} s or a little more{compiling}", fits="the update"):
            update = update_rate(
                self._trainer, observation, decision, config, episode_decisions=episode_decisions, seconds=seconds
            )
        rates = Rates(policy=played.policy, envs=played.envs, both=played.both, update=update)
        show(update_row(rates))
        show(iteration_row(rates))
        memory = None
        if self._on_gpu:
            memory = GpuMemory(before_gb=self._before_gb, playing_gb=playing_gb, peak_gb=peak_gb(self._device))
        results = Results(
            machine=self._machine,
            rates=rates,
            memory=memory,
            iteration_chunks=config.rollout.groups_per_iteration * config.rollout.group_size * episode_decisions,
            advice=advise(config, rates, self._machine, memory=memory, num_weights=self._num_weights, recipes=self._recipes),
        )
        for line in end_lines(results, config):
            show(escape(line))
        return results

    @property
    def _on_gpu(self) -> bool:
        return self._device.type == "cuda"

    @contextmanager
    def _phase(self, what: str, *, fits: str | None = None) -> Iterator[None]:
        """Say what begins, and while it takes long, that it goes on; `fits`: what needs the GPU's memory."""
        self._display.line(f"[dim]{escape(what)}[/dim]")
        with self._display.waiting(what.partition(":")[0].partition(",")[0]), self._fitting(fits or what):
            yield

    @contextmanager
    def _fitting(self, doing: str) -> Iterator[None]:
        """Turn a GPU's memory that is too small into one line.

        Raises:
            RunError: It is.
        """
        try:
            yield
        except torch.OutOfMemoryError as error:
            machine = machine_of(torch.device("cuda"))
            raise RunError(out_of_memory(self._config, machine, doing=doing, recipes=self._recipes)) from error

    def _episodes(self) -> Iterator[EpisodeSpec]:
        """Endless training episodes, of the tasks that fill the slots first: others would load scenes while time is measured.

        Raises:
            ValueError: No initial state is left to train on.
        """
        config, env = self._config, self._env
        stream = PromptStream(
            env.task_ids,
            env.num_init_states,
            group_size=config.rollout.group_size,
            train_fraction=config.train_fraction,
            split_seed=config.split_seed,
            seed=config.seed,
        )
        slots = config.env.num_workers * config.env.envs_per_worker
        first = list(itertools.islice(stream, -(-slots // config.rollout.group_size)))
        tasks = {prompt[0].task_id for prompt in first}
        familiar = (prompt for prompt in stream if prompt[0].task_id in tasks)
        return (spec for prompt in itertools.chain(first, familiar) for spec in prompt)

    def _episode_decisions(self, played: float | None) -> int:
        """S of an episode as long as it may be, or of those played where there is no limit."""
        if self._env.max_episode_steps is not None:
            return -(-self._env.max_episode_steps // self._config.policy.chunk_size)
        return max(1, round(played or _DEFAULT_DECISIONS))
