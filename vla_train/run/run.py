"""One training run: the parts that the loop moves, and what is kept of them in the run's folder.

    RUN/config.json  metrics.jsonl  tensorboard/    what was asked for, and the curves
    RUN/checkpoints/step_000010/                    everything needed to go on (see trainer.checkpoint)
    RUN/evaluations/iteration_000010/               episodes.jsonl and videos/
    RUN/timeline/iteration_000010.png, .json.gz     who worked when; the second one opens in Perfetto

Invariant: what the folder says of iteration i was computed by the weights after i updates, also after a resume.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict
from typing import Any

import torch
from rich.markup import escape

from vla_train.algo.filters import has_signal
from vla_train.config import TrainConfig
from vla_train.config_json import config_to_json
from vla_train.display import Display
from vla_train.envs.workers import make_workers
from vla_train.pipeline.episodes import PromptStream
from vla_train.pipeline.prompt_share import PromptPosition, PromptShare
from vla_train.pipeline.rollout import Rollout, RolloutProgress, RolloutResult
from vla_train.pipeline.rollout_result import combine_stats
from vla_train.pipeline.timeline import Timeline
from vla_train.pipeline.wall_clock import wall_clock_shares
from vla_train.policy.factory import policy_factory
from vla_train.run.evaluations import RunEvaluations, forget_evaluations
from vla_train.run.identity import holds_same_start, start_of
from vla_train.run.lines import end_lines, iteration_lines, progress_text, saved_line, set_up_line, speed_text
from vla_train.run.opening import setting_up
from vla_train.run.policies import build_policies
from vla_train.run.room import most_checkpoints
from vla_train.run.tracking import RunLog, read_records
from vla_train.trainer.accumulation import require_accumulable
from vla_train.trainer.checkpoint import load_checkpoint, newest_checkpoint, prepare_run
from vla_train.trainer.group_trainer import GroupTrainer, UpdateMetrics
from vla_train.trainer.parallel import Ranks, share_of_rank, useful_slots
from vla_train.trainer.saving import CheckpointSaver
from vla_train.trainer.schedule import planned_steps
from vla_train.types import Group


class Run:
    """A run, set up or resumed; `close` ends it.

    Args:
        config: What to train, where, and how.
        ranks: Who else trains. Each rank has workers and a sampling policy of its own, and plays its share of the groups.
        display: Where progress is shown.

    Raises:
        ValueError: It cannot work as configured, or its folder cannot be written to.
    """

    unit = "iterations"

    def __init__(self, config: TrainConfig, *, ranks: Ranks, display: Display) -> None:
        self.config = config = start_of(config)
        self.ranks = ranks
        self.display = display
        self.timeline = Timeline()
        self.done = 0
        """Iterations done."""
        self._score: float | None = None
        """Success rate of the evaluation at `done`."""
        self._saved = 0
        """Iterations done at the newest checkpoint."""
        self._score_missing = False
        """Whether that checkpoint is of the present weights, and was saved before they were evaluated."""
        self._rollout_config = share_of_rank(config.rollout, ranks)
        self._next: Future[RolloutResult] | None = None
        self._before_next: dict[str, Any] | None = None
        """State of rollout and prompts before the rollout that is under way in the background."""
        self._background = ThreadPoolExecutor(1, thread_name_prefix="next-rollout")
        self._interruptible: Callable[[], AbstractContextManager[None]] = nullcontext
        self._compiled: set[str] = set()
        """What the policy was compiled for so far."""
        self._began = time.perf_counter()
        self._show_rollout: Callable[[RolloutProgress], None] = _show_nothing
        self._closing = ExitStack()
        """What `close` ends, but for the rollout and the log."""

        policy_factory(config.policy)  # refuses at once what cannot become a policy
        if config.optim.accumulate_during_rollout:
            require_accumulable(config.algo, ranks)
        with setting_up(config, self._closing, ranks=ranks, display=display) as undo:
            self._set_up(undo)

    def _set_up(self, undo: ExitStack) -> None:
        config, ranks = self.config, self.ranks
        env = useful_slots(config.env, self._rollout_config) if ranks.size > 1 else config.env
        self.display.line(
            f"[bold]{escape(str(config.output))}[/bold]: "
            f"starting {env.num_workers} workers of {env.envs_per_worker} {env.id} envs"
        )
        workers = make_workers(env, chunk_size=config.policy.chunk_size)
        for worker in workers:
            undo.callback(worker.close)
        self.env = workers[0].description
        policies = build_policies(
            config.policy,
            policy_factory(config.policy),
            self.env,
            seed=config.seed,
            separate=self._rollout_config.max_staleness > 0 or ranks.size > 1,
        )
        self.policy = policies.sampler
        self._closing.callback(policies.close)
        self.rollout = Rollout(
            self._rollout_config, policy=self.policy, workers=workers, timeline=self.timeline, seed=config.seed
        )
        self.trainer = GroupTrainer(
            config.optim,
            config.algo,
            policy=policies.trained,
            temperature=config.rollout.temperature,
            total_steps=planned_steps(config),
            timeline=self.timeline,
            seed=config.seed,
            ranks=ranks,
        )
        prepare_run(
            config.output,
            trainer=self.trainer,
            rollout_bytes=ranks.size * self.rollout.max_state_bytes,
            count=most_checkpoints(config),
        )
        self.saver = CheckpointSaver(
            config.output,
            trainer=self.trainer,
            keep=config.keep_checkpoints,
            on_saved=lambda path, still_s: self.display.line(saved_line(path, still_s)),
        )
        self._closing.callback(self.saver.close)
        stream = PromptStream(
            self.env.task_ids,
            self.env.num_init_states,
            group_size=config.rollout.group_size,
            train_fraction=config.train_fraction,
            split_seed=config.split_seed,
            seed=config.seed,
        )
        self._prompts = PromptShare(stream, rank=ranks.rank, size=ranks.size)
        self._evaluations = RunEvaluations(config, self.env, ranks=ranks, display=self.display)
        resumed = self._restore()
        self.trainer.push_weights(self.policy)
        self._log = self._open_log(resumed) if ranks.rank == 0 else None
        seconds = time.perf_counter() - self._began
        self.display.line(set_up_line(config, policies.trained, self.env, done=self.done, seconds=seconds))

    def interrupt_in(self, interruptible: Callable[[], AbstractContextManager[None]]) -> None:
        """Enter `interruptible()` around work that a signal may break off without loss; see `interruption`."""
        self._interruptible = self.rollout.breakable = interruptible

    def _announce_compiling(self, what: str) -> None:
        """Say, once for each use of the policy, why its first calls take long."""
        if self.config.policy.compile and what not in self._compiled:
            self._compiled.add(what)
            self.display.line(f"compiling the policy for {what}: this takes about a minute")

    # --- an iteration

    @property
    def has_begun(self) -> bool:
        """Whether there is anything to save: episodes of an iteration that is not done are kept, too."""
        return True

    @property
    def complete(self) -> bool:
        """Whether all iterations are done."""
        return self.done >= self.config.iterations

    @property
    def evaluation_due(self) -> bool:
        """Whether the present weights are to be evaluated."""
        asked = self.config.eval
        if asked.every == 0 or self._score is not None or (self.done == 0 and not asked.before_training):
            return False
        return self.done % asked.every == 0 or self.complete

    @property
    def checkpoint_due(self) -> bool:
        """Whether the present state is to be saved."""
        is_new = self.done > self._saved and (self.done % self.config.checkpoint_every == 0 or self.complete)
        return is_new or self._score_missing

    def collect(self) -> RolloutResult:
        """Play the groups of the next iteration, or wait for those that are being played in the background."""
        self._began = time.perf_counter()
        self.trainer.temperature = self._temperature_of(self.done)
        self._announce_compiling("sampling")
        groups = self._rollout_config.groups_per_iteration
        with self.ranks.apart(), self.display.phase("rollout", total=groups, unit="groups with signal") as show:
            self._show_rollout = lambda progress: show(progress.kept, progress_text(progress))
            try:
                if self._next is None:
                    self._push_weights()
                    result = self._play(self.done)
                else:
                    with self._interruptible():
                        result = self._next.result()
            finally:
                self._show_rollout = _show_nothing
        self._next = self._before_next = None
        return result

    def begin_next(self, groups: tuple[Group, ...]) -> None:
        """Let the workers work while the model trains on `groups`: resets, or with `max_staleness` the whole next rollout."""
        if self.done + 1 >= self.config.iterations:
            return
        if self._rollout_config.max_staleness > 0:
            if all(self.ranks.gather_objects(bool(groups))):
                self._announce_compiling("updates")
                with self.display.waiting("preparing updates"):
                    self.trainer.prepare_for(groups)
            with self.ranks.apart():
                self._push_weights()
            self.rollout.release()  # the update that follows ends, or nothing is saved any more
            self._before_next = self._rollout_state()
            self._next = self._background.submit(self._play, self.done + 1)
        else:
            self.rollout.prefetch(self._prompts)

    def update(self, groups: tuple[Group, ...]) -> UpdateMetrics:
        """Train on the groups."""
        rows = sum(len(trajectory) for group in groups for trajectory in group.trajectories)
        if rows:
            self._announce_compiling("updates")
        if self._next is None:
            getattr(self.policy, "rest", _nothing)()
        left = rows * self.config.optim.epochs - self.trainer.rows_accumulated
        with self.display.phase("update", total=max(1, left), unit="chunks") as show:
            metrics = self.trainer.update(groups, iteration=self.done, on_progress=lambda done, total: show(done, ""))
        if self._next is None:
            self.rollout.release()
        self.done += 1
        self._score = None
        return metrics

    def _push_weights(self) -> None:
        """Let the next decisions be taken by the newest weights; nobody may be sampling."""
        if self.policy.version != self.trainer.version:
            self.trainer.push_weights(self.policy)

    def record(self, result: RolloutResult, update: UpdateMetrics) -> None:
        """Write down and show what the iteration did."""
        stats, ended = combine_stats(self.ranks.gather_objects(result.stats)), time.perf_counter()
        if self._log is None:
            return
        values = {f"rollout/{name}": value for name, value in asdict(stats).items()}
        values["rollout/temperature"] = self.trainer.temperature
        values |= {"rollout/decisions_per_s": stats.decisions_per_s, "rollout/rows_per_batch": stats.rows_per_batch}
        values["time/iteration_s"] = ended - self._began
        spans = self.timeline.spans(since=self._began, until=ended)
        shares = wall_clock_shares(spans, since=self._began, until=ended)
        values |= {f"time/{activity}_s": seconds for activity, seconds in shares.items()}
        if update.rows:
            values["time/chunks_per_s"] = update.rows / (ended - self._began)
        if torch.cuda.is_available():
            free, total = torch.cuda.mem_get_info()
            values["time/gpu_memory_gb"] = (total - free) / 1e9
        if update.updates:
            values |= {f"update/{name}": value for name, value in asdict(update).items() if name != "loss_metrics"}
            values |= {f"update/{name}": value for name, value in update.loss_metrics.items()}
            values["update/chunks_per_s"] = update.chunks_per_s
        self._log.log("iteration", self.done, values, file_only={"update/updates": update.updates})
        for line in iteration_lines(self.done, self.config.iterations, stats, update):
            self.display.line(line)
        if self.checkpoint_due:
            name = self.config.output / "timeline" / f"iteration_{self.done:06d}"
            self.timeline.write_chrome_trace(name.with_suffix(".json.gz"), since=self._began)
            title = f"iteration {self.done}: {speed_text(stats)}"
            self.timeline.plot(name.with_suffix(".png"), since=self._began, until=ended, title=title)

    def evaluate(self) -> None:
        """Play the evaluation episodes with the trained weights; each rank plays its share."""
        began = time.perf_counter()
        with self.ranks.apart():
            if self._next is not None:
                with self.display.waiting("finishing the rollout under way"), self._interruptible():
                    self._next.result()
            self._push_weights()
        self._announce_compiling("sampling")
        title = f"after iteration {self.done}" if self.done else "before training"
        self._score, record = self._evaluations.play(self.rollout, iteration=self.done, title=title)
        self._score_missing = self._saved == self.done > 0
        if self._log is not None:
            self._log.log("eval", self.done, {**record, "duration_s": time.perf_counter() - began})

    def show_end(self) -> None:
        """Say where everything is, and what was learnt."""
        evaluations = read_records(self.config.output, "eval")
        for line in end_lines(str(self.config.output), evaluations, updates=self.trainer.num_updates):
            self.display.line(line)

    # --- what outlives the process

    def save(self) -> None:
        """Begin a checkpoint of the present state; it is written while the run goes on.

        Raises:
            CheckpointError: The one before could not be written; older ones are as they were.
        """
        state = self._before_next or self._rollout_state()
        position = self._prompts.position(self.ranks.gather_objects(state["next_group_id"]))
        with self.display.waiting(f"saving iteration {self.done}"):
            self.saver.begin(iteration=self.done, rollout_state=state["rollout"], extra=asdict(position), score=self._score)
        self._saved = self.done
        self._score_missing = False

    def close(self) -> None:
        """End workers, policies in Ray actors and trackers; a rollout under way is broken off."""
        self.rollout.close()
        self._background.shutdown()
        if self._log is not None:
            self._log.close()
        self._closing.close()

    def _rollout_state(self) -> dict[str, Any]:
        return {"rollout": self.rollout.state_dict(), "next_group_id": self._prompts.next_group_id}

    def _restore(self) -> bool:
        """Go on from the newest checkpoint; returns whether there is one."""
        path = newest_checkpoint(self.config.output, self.ranks)
        if path is not None:
            checkpoint = load_checkpoint(path, trainer=self.trainer)
            self.done = self._saved = checkpoint.iteration
            self._score = checkpoint.score
            self._prompts.go_on_from(PromptPosition.from_json(checkpoint.extra))
            self.rollout.load_state_dict(*checkpoint.rollout_states, is_own=self._prompts.is_own)
            asked = f"of {self.config.iterations}"
            if self.complete:
                asked = f"and no more than {self.config.iterations} were asked for: nothing is left to train"
            self.display.line(f"going on from {escape(str(path))}: {self.done} iterations done {asked}")
        if self.ranks.rank == 0:
            started_here = path is not None or holds_same_start(self.config)
            forget_evaluations(self.config.output, after=self.done if started_here else -1)
        return path is not None

    def _open_log(self, resumed: bool) -> RunLog:
        return RunLog(
            self.config.output,
            trackers=self.config.trackers,
            config=config_to_json(self.config),
            resume_iteration=self.done if resumed else None,
        )

    # --- parts

    def _temperature_of(self, iteration: int) -> float:
        return self.config.rollout.temperature_of(iteration, iterations=self.config.iterations)

    def _play(self, iteration: int) -> RolloutResult:
        def keep(group: Group) -> bool:
            return has_signal(group, self.config.rollout, self.config.algo)

        return self.rollout.collect(
            self._prompts,
            keep,
            lambda progress: self._show_rollout(progress),
            meanwhile=self.trainer.accumulate if self.config.optim.accumulate_during_rollout else None,
            temperature=self._temperature_of(iteration),
        )


def _nothing() -> None:
    pass


def _show_nothing(progress: RolloutProgress) -> None:
    pass
