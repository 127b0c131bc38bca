"""Evaluation of one checkpoint on several suites, as a table (`python -m vla_train eval --suites`).

    OUTPUT/SUITE/         an evaluation of its own: see `of_checkpoint.py`
    OUTPUT/results.json   the rates of all of them

Invariant: nothing is played before it is known that every suite can be. Each suite's folder is an evaluation, so an interrupted
table goes on as evaluations do.
"""

import gc
import json
from dataclasses import replace

from vla_train.config import EvaluateConfig
from vla_train.display import Display
from vla_train.envs.trial import TriedEnv
from vla_train.errors import RunError
from vla_train.evaluation.display import show_suites
from vla_train.evaluation.evaluate import EvaluationResult
from vla_train.evaluation.of_checkpoint import CheckpointEvaluation, default_output, interrupted_line, look_up, whose
from vla_train.evaluation.played import require_protocol
from vla_train.evaluation.record import suites_record
from vla_train.pipeline.episodes import evaluation_plan
from vla_train.policy.factory import check_env
from vla_train.suite_names import each_suite, of_suite


class SuitesEvaluation:
    """An evaluation on several suites, set up; `play` plays one after the other.

    Args:
        config: Which checkpoint and which suites. Results go to `config.output`, where an earlier part is kept.

    Raises:
        ValueError: There is no such checkpoint or suite, the two do not fit, files of a suite are missing, or the output holds
            results of another evaluation.
    """

    def __init__(self, config: EvaluateConfig) -> None:
        if not config.suites:
            raise ValueError("an evaluation without suites is a CheckpointEvaluation")
        self._display = Display(config.display)
        self.checkpoint = whose(config)  # of a run that goes on, the same for all suites
        alone = default_output(self.checkpoint)
        self.output = config.output or alone.with_name(f"{alone.name}-suites")
        named = None if config.policy.url is not None else self.checkpoint
        self.suites = {
            suite: replace(of_suite(config, suite), checkpoint=named, output=self.output / suite)
            for suite in each_suite(config.suites)
        }
        """What is played, by name."""
        for suite, its_config in self.suites.items():
            with self._display.waiting(f"looking at {suite}"):
                _require_playable(suite, its_config)
        first = self._evaluation(next(iter(self.suites.values())))
        self._how = first.played.how
        self._next: CheckpointEvaluation | None = first
        """Set up already: what is wrong with the weights is said before anything has begun."""

    def play(self) -> dict[str, list[EvaluationResult]]:
        """Play what is missing, write and show the results, by suite. Ctrl-C and SIGTERM end it; what was played is kept.

        Raises:
            RunError: A worker failed more often than it may, or the policy gives no numbers.
            SystemExit: It was interrupted.
        """
        results = {suite: self._play(config) for suite, config in self.suites.items()}
        (self.output / "results.json").write_text(json.dumps(suites_record(results), indent=1) + "\n")
        show_suites(self._display, results, title=self.checkpoint, name=self._how)
        self._display.line(f"results: {self.output}/results.json, and each suite's in {self.output}")
        return results

    def _evaluation(self, config: EvaluateConfig) -> CheckpointEvaluation:
        return CheckpointEvaluation(config, named_output=self.output)

    def _play(self, config: EvaluateConfig) -> list[EvaluationResult]:
        try:
            evaluation, self._next = self._next or self._evaluation(config), None
        except KeyboardInterrupt:
            self._display.line(interrupted_line(config, self.output))
            raise SystemExit(130) from None
        except (ValueError, ImportError) as error:
            raise RunError(str(error)) from error
        try:
            return evaluation.play()
        finally:
            del evaluation
            gc.collect()  # a GPU may have no room for the weights twice


def _require_playable(suite: str, config: EvaluateConfig) -> None:
    """Look for all that would keep a suite from being played, but for the weights: they may take minutes to read."""
    named = look_up(config)
    try:
        with TriedEnv(config.env, chunk_size=config.policy.chunk_size) as env:
            check_env(named.policy, env.description)
            require_protocol(config, env.description)
            episodes = evaluation_plan(
                env.description, config.eval, train_fraction=config.train_fraction, split_seed=config.split_seed
            )
            env.begin(episodes[config.eval.temperatures[0]][0])
    except (ValueError, ImportError) as error:
        raise ValueError(f"{suite}: {error}") from error
