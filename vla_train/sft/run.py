"""One run of supervised training: the parts that the loop moves, and what is kept of them in the run's folder.

The folder is laid out as that of a GRPO run, with AdamW steps where that one counts iterations: whatever reads one reads the
other (`eval`, `report`, `policy.checkpoint`).

Invariant: the weights after a step depend on config, data and the step alone, also after a resume.
"""

import hashlib
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from rich.markup import escape

from vla_train.config import AlgoConfig, PolicyConfig
from vla_train.config_json import config_to_json
from vla_train.demonstrations.dataset import DemonstrationDataset
from vla_train.demonstrations.statistics import action_statistics
from vla_train.display import Display
from vla_train.envs.workers import make_workers
from vla_train.errors import DataError
from vla_train.pipeline.rollout import Rollout
from vla_train.pipeline.timeline import Timeline
from vla_train.policy.base import PolicyFactory, TrainablePolicy
from vla_train.policy.factory import policy_factory
from vla_train.run.evaluations import RunEvaluations, forget_evaluations
from vla_train.run.identity import start_of
from vla_train.run.lines import describe_policy, evaluation_line, saved_line
from vla_train.run.opening import setting_up
from vla_train.run.policies import build_policies
from vla_train.run.room import most_checkpoints
from vla_train.run.tracking import RunLog, read_records
from vla_train.sft.batches import BatchMaker
from vla_train.sft.config import SftConfig
from vla_train.sft.fit import (
    drawing_warning,
    env_of,
    require_demonstrations_of,
    require_own_folder,
    require_readable,
    require_supervised,
)
from vla_train.sft.next_commands import next_commands
from vla_train.sft.progress import StepSums, mean_metrics
from vla_train.sft.samples import Demonstrations, sample_places, split_episodes
from vla_train.sft.translation import as_the_env_has_them
from vla_train.trainer.checkpoint import load_checkpoint, newest_checkpoint, prepare_run
from vla_train.trainer.host_memory import free_host_bytes
from vla_train.trainer.parallel import Ranks
from vla_train.trainer.saving import CheckpointSaver
from vla_train.trainer.trainer import Trainer
from vla_train.types import EnvDescription, TrainBatch

_BINS = {
    "data": "the 1 to 99 % quantiles of these episodes' actions",
    "bounds": "the env's bounds",
    "checkpoint": "what the checkpoint's do",
}
"""By where statistics come from."""
_LEAST_FOR_PICTURES = 4 << 30
"""Bytes of memory that pictures may take on any machine."""


class SftRun:
    """A run, set up or resumed; `close` ends it.

    Args:
        config: What to learn from, how, and where.
        ranks: Who else trains; each has its share of every step's rows, and workers of its own for evaluations.
        display: Where progress is shown.

    Raises:
        ValueError: It cannot work as configured, or its folder cannot be written to.
    """

    unit = "steps"

    def __init__(self, config: SftConfig, *, ranks: Ranks, display: Display) -> None:
        self.config = config = start_of(config)
        self.ranks = ranks
        self.display = display
        self.done = 0
        """AdamW steps done."""
        self._score: float | None = None
        """Success rate of the evaluation at `done`."""
        self._saved = 0
        """Steps done at the newest checkpoint."""
        self._score_missing = False
        """Whether that checkpoint is of the present weights, and was saved before they were evaluated."""
        self._closing = ExitStack()
        """What `close` ends, but for the rollout and the log."""
        self._ahead = ThreadPoolExecutor(1, thread_name_prefix="next-rows")
        self._next: tuple[int, Future[TrainBatch]] | None = None
        """The rows of a step, being made while the one before is trained on."""
        if config.batch_rows % ranks.size:
            raise ValueError(f"batch_rows {config.batch_rows} must be a multiple of {ranks.size} ranks")
        policy_factory(config.policy)  # refuses at once what cannot become a policy
        memory_bytes = max(_LEAST_FOR_PICTURES, free_host_bytes() // 4 // ranks.size)  # a checkpoint's copies may take the rest
        dataset = DemonstrationDataset(config.data, memory_bytes=memory_bytes)
        require_own_folder(config.data, config.output)
        self.config = config = replace(config, env=env_of(dataset, config.env))
        with setting_up(config, self._closing, ranks=ranks, display=display) as undo:
            self._set_up(dataset, undo)

    def _set_up(self, dataset: DemonstrationDataset, undo: ExitStack) -> None:
        config, ranks = self.config, self.ranks
        began = time.perf_counter()
        self.display.line(f"[bold]{escape(str(config.output))}[/bold]: learning from {escape(str(config.data))}")
        workers = make_workers(config.env, chunk_size=config.policy.chunk_size)
        for worker in workers:
            undo.callback(worker.close)
        env = workers[0].description
        require_demonstrations_of(config.data, dataset, env, fps=config.fps)
        if warning := drawing_warning(config.data, dataset, config.env):
            self.display.line(f"[yellow]{escape(warning)}[/yellow]")
        if not dataset.stays_decoded:
            self.display.line("pictures are decoded at each use: the host's memory has no room for all of them")
        data = as_the_env_has_them(dataset, config, env)
        train, validation = self._episodes(dataset, data, env)
        self._learnt_from = _fingerprint(data, train, validation)
        places = sample_places(dataset.episodes, train, stride=config.stride)
        if len(places) < config.batch_rows:
            raise ValueError(
                f"batch_rows {config.batch_rows} is more than the {len(places)} samples of the {len(train)} episodes to train "
                f"on in {config.data}: lower it, lower stride, or collect more"
            )
        factory = self._factory(data, train, env)
        policies = build_policies(config.policy, factory, env, seed=config.seed, separate=ranks.size > 1)
        self._closing.callback(policies.close)
        policy = require_supervised(policies.trained, config.policy)
        require_readable(config.data, dataset, policy, env)
        for key in set(policy.observation_keys).intersection(dataset.image_keys):
            data.images(train[0], key, [0])  # what cannot be read at all is found out before there is a run
        self._policy = policies.sampler
        self.rollout = Rollout(config.rollout, policy=self._policy, workers=workers, timeline=Timeline(), seed=config.seed)
        self.trainer = Trainer(
            config.optim,
            AlgoConfig(loss="cross-entropy"),
            policy=policy,
            temperature=1.0,
            total_steps=config.steps,
            ranks=ranks,
        )
        if ranks.rank == 0:
            prepare_run(config.output, trainer=self.trainer, count=most_checkpoints(config))
        self.saver = CheckpointSaver(
            config.output,
            trainer=self.trainer,
            keep=config.keep_checkpoints,
            on_saved=lambda path, still_s: self.display.line(saved_line(path, still_s)),
        )
        self._closing.callback(self.saver.close)
        self._batches = BatchMaker(
            config,
            data=data,
            policy=policy,
            train=places,
            validation=sample_places(dataset.episodes, validation, stride=config.stride),
            ranks=ranks,
        )
        self._closing.callback(self._batches.close)
        self._evaluations = RunEvaluations(config, env, ranks=ranks, display=self.display)
        resumed = self._restore()
        self._sums = StepSums()
        self._log = self._open_log(resumed) if ranks.rank == 0 else None
        seconds = time.perf_counter() - began
        self.display.line(
            f"set up in {seconds:.1f} s: {len(places)} samples of {len(train)} episodes, {len(validation)} episodes for "
            f"validation; bins cover {_BINS[config.statistics_source]}; {describe_policy(policy, env)}; "
            f"{max(0, config.steps - self.done)} steps of {config.batch_rows} rows to do"
        )

    def _episodes(
        self, dataset: DemonstrationDataset, data: Demonstrations, env: EnvDescription
    ) -> tuple[list[int], list[int]]:
        """Indices of the episodes to train on, and of those for validation.

        Raises:
            ValueError: There are none to train on, or an action is not finite.
        """
        config = self.config
        train, validation = split_episodes(
            dataset.episodes,
            env.num_init_states,
            train_fraction=config.train_fraction,
            split_seed=config.split_seed,
            validation_fraction=config.validation_fraction,
            seed=config.seed,
        )
        if not train:
            raise ValueError(
                f"none of the {len(dataset.episodes)} episodes in {config.data} may be trained on: they are failures, or start "
                f"from states that train_fraction {config.train_fraction} and split_seed {config.split_seed} hold out"
            )
        if not all(np.isfinite(data.actions(index)).all() for index in train + validation):
            raise ValueError(f"an action in {config.data} is not finite: the dataset is damaged")
        return train, validation

    def _factory(self, data: Demonstrations, train: list[int], env: EnvDescription) -> PolicyFactory:
        """Builds policies whose bins cover what was asked for."""
        factory = policy_factory(self.config.policy)
        source = self.config.statistics_source
        if source == "checkpoint":
            return factory
        if source == "bounds":
            low, high = env.action_low.tolist(), env.action_high.tolist()
            statistics: dict[str, Any] = {"action": {"q01": low, "q99": high, "mask": [True] * len(low)}}
        else:
            statistics = action_statistics([data.actions(index) for index in train])
        name = "demonstrations" if env.suite is None else f"{env.suite}_demonstrations"
        return partial(_build_with_statistics, factory, name, statistics)

    # --- the loop's side

    @property
    def has_begun(self) -> bool:
        """Whether there is anything to save."""
        return self.done > 0

    @property
    def complete(self) -> bool:
        """Whether all steps are done."""
        return self.done >= self.config.steps

    @property
    def evaluation_due(self) -> bool:
        """Whether the present weights are to be validated and played."""
        asked = self.config.eval
        if asked.every == 0 or (self.done == 0 and not asked.before_training):
            return False
        return (self.done % asked.every == 0 or self.complete) and self._score is None

    @property
    def checkpoint_due(self) -> bool:
        """Whether the present state is to be saved."""
        is_new = self.done > self._saved and (self.done % self.config.checkpoint_every == 0 or self.complete)
        return is_new or self._score_missing

    @property
    def due(self) -> bool:
        """Whether anything but training comes next."""
        return self.evaluation_due or self.checkpoint_due or self.complete

    def step(self) -> None:
        """Train on the rows of the next step."""
        if self._next is None or self._next[0] != self.done:
            self._next = self.done, self._ahead.submit(self._batches.of_step, self.done)
        with self._reading():
            batch = self._next[1].result()
        self._next = None
        if self.done + 1 < self.config.steps:
            self._next = self.done + 1, self._ahead.submit(self._batches.of_step, self.done + 1)
        self._sums.add(self.trainer.step(batch), rows=self.config.batch_rows)
        self.trainer.version += 1
        self.done += 1
        self._score = None
        if self.done % self.config.log_every == 0 or self.due:
            self._record()

    def _record(self) -> None:
        values = self._sums.take()
        if self._log is not None:
            self._log.log("iteration", self.done, values, file_only={"update/updates": 1})

    def evaluate(self) -> None:
        """Measure the loss on what is not trained on, and play the evaluation episodes."""
        validation = self._validate()
        self.trainer.push_weights(self._policy)
        title = f"after step {self.done}" if self.done else "before training"
        self._score, record = self._evaluations.play(self.rollout, iteration=self.done, title=title)
        self._score_missing = self._saved == self.done > 0
        if self._log is not None:
            self._log.log("eval", self.done, {**validation, **record})

    def _validate(self) -> dict[str, float]:
        with self._reading():
            batch = self._batches.of_validation()
        if batch is None:
            return {}
        output = self.trainer.measure(batch)
        values = {"loss": float(output.loss), **mean_metrics(output)}
        text = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in values.items())
        self.display.line(f"validation at step {self.done}: {text}")
        return {f"validation/{name}": value for name, value in values.items()}

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """A block that waits for rows. What is small was checked before; pictures are first looked at here.

        Raises:
            DataError: One is damaged.
        """
        with self.ranks.apart():
            try:
                yield
            except ValueError as error:
                where = "" if str(self.config.data) in str(error) else f"{self.config.data} is damaged: "
                raise DataError(f"{where}{error}") from error

    def show_end(self) -> None:
        """Say where everything is, and how well the policy plays."""
        for line in evaluation_line(read_records(self.config.output, "eval"), counted="step"):
            self.display.line(line)
        for line in next_commands(self.config):
            self.display.line(escape(line))

    # --- what outlives the process

    def save(self) -> None:
        """Begin a checkpoint of the present state; it is written while the run goes on.

        Raises:
            CheckpointError: The one before could not be written; older ones are as they were.
        """
        with self.display.waiting(f"saving step {self.done}"):
            self.saver.begin(iteration=self.done, rollout_state={}, extra=self._learnt_from, score=self._score)
        self._saved = self.done
        self._score_missing = False

    def close(self) -> None:
        """End workers, policies in Ray actors and trackers."""
        self._ahead.shutdown(cancel_futures=True)
        self.rollout.close()
        if self._log is not None:
            self._log.close()
        self._closing.close()

    def _restore(self) -> bool:
        """Go on from the newest checkpoint; returns whether there is one."""
        path = newest_checkpoint(self.config.output, self.ranks)
        if path is not None:
            checkpoint = load_checkpoint(path, trainer=self.trainer)
            before, now = checkpoint.extra, self._learnt_from
            if before not in ({}, now):  # the first: of an earlier version
                raise ValueError(
                    f"{self.config.output} learnt from {before['episodes']} episodes of {self.config.data}, which has others "
                    f"now ({now['episodes']} to learn from): choose another output (policy.checkpoint may start it from here)"
                )
            self.done = self._saved = checkpoint.iteration
            self._score = checkpoint.score
            asked = f"of {self.config.steps}"
            if self.complete:
                asked = f"and no more than {self.config.steps} were asked for: nothing is left to train"
            self.display.line(f"going on from {escape(str(path))}: {self.done} steps done {asked}")
        if self.ranks.rank == 0:
            forget_evaluations(self.config.output, after=-1 if path is None else self.done)
        return path is not None

    def _open_log(self, resumed: bool) -> RunLog:
        return RunLog(
            self.config.output,
            trackers=self.config.trackers,
            config=config_to_json(self.config),
            resume_iteration=self.done if resumed else None,
        )


def _fingerprint(data: Demonstrations, train: list[int], validation: list[int]) -> dict[str, Any]:
    """What tells other episodes apart, as JSON: the order of samples and the bins of actions depend on them.

    Pictures are not looked at: reading them all takes minutes.
    """
    digest = hashlib.sha256()
    digest.update(repr((train, validation)).encode())
    for index in train + validation:
        digest.update(data.episodes[index].task.encode())
        for numbers in (data.actions(index), data.states(index)):
            digest.update(b"" if numbers is None else numbers.tobytes())
    return {"episodes": len(train), "digest": digest.hexdigest()}


def _build_with_statistics(
    factory: PolicyFactory, name: str, statistics: dict[str, Any], config: PolicyConfig, env: EnvDescription, *, seed: int
) -> TrainablePolicy:
    """A policy factory (with the first three given): the policy of another one, its actions stretched over a dataset's."""
    policy = require_supervised(factory(config, env, seed=seed), config)
    policy.use_statistics(name, statistics)
    return policy
