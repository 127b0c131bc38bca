"""Evaluation of one checkpoint, apart from any training run (`python -m vla_train eval`).

    OUTPUT/evaluation.json    what was asked for
    OUTPUT/episodes.jsonl     one line per finished episode: an interrupted evaluation goes on from there
    OUTPUT/results.json       rates with intervals, in all and per task, and how they were played
    OUTPUT/videos/

Invariant: all episodes in a folder were played by the same weights on the same env.
"""

import json
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from vla_train.config import DEMO_CHECKPOINT, EvaluateConfig
from vla_train.config_json import config_to_json
from vla_train.display import Display
from vla_train.envs.workers import make_workers
from vla_train.evaluation.display import evaluate_with_progress, show_evaluation
from vla_train.evaluation.evaluate import EvaluationResult
from vla_train.evaluation.played import played
from vla_train.evaluation.record import evaluation_record
from vla_train.interruption import Interruption
from vla_train.pipeline.episodes import evaluation_plan
from vla_train.pipeline.rollout import Rollout
from vla_train.pipeline.timeline import Timeline
from vla_train.policy.checkpoint_name import checkpoint_folder
from vla_train.policy.factory import policy_factory
from vla_train.run.named_checkpoint import checkpoint_of_run, resolve_checkpoint
from vla_train.run.policies import build_sampler

_ENV_CAPACITY = ("num_workers", "envs_per_worker", "worker", "step_timeout_s", "max_restarts")
"""Fields of `EnvConfig` that change how fast episodes are played, not what they are."""
_POLICY_CAPACITY = ("worker", "replicas")
"""The same of `PolicyConfig`."""


class CheckpointEvaluation:
    """An evaluation, set up; `play` plays it and closes everything.

    Args:
        config: Which checkpoint (or whose server), on which episodes. Results go to `config.output`, where an earlier part is
            kept.

    Raises:
        ValueError: There is no such checkpoint, it does not fit the env, or the output holds results of another evaluation.
    """

    def __init__(self, config: EvaluateConfig) -> None:
        self.config = config
        policy_config = config.policy
        if config.policy.url is None:
            assert config.checkpoint is not None
            named = resolve_checkpoint(config.checkpoint)
            self.checkpoint = str(Path(named).resolve()) if named != DEMO_CHECKPOINT and Path(named).is_dir() else named
            policy_config = replace(config.policy, checkpoint=self.checkpoint, lora_rank=0, random_weights=False)
            default_output = _default_output(self.checkpoint)
        else:
            self.checkpoint = config.policy.url
            default_output = _output_of_server(config.policy.url)
        build_policy = policy_factory(policy_config)
        self.output = config.output or default_output
        self._display = Display(config.display)
        identity = _identity(config, self.checkpoint)
        _require_same(self.output, identity)
        with ExitStack() as undo, self._display.waiting("setting up"):
            self._display.line(f"{self.checkpoint}: starting {config.env.id}")
            workers = make_workers(config.env, chunk_size=config.policy.chunk_size)
            for worker in workers:
                undo.callback(worker.close)
            env = workers[0].description
            self._env = env
            self.episodes = evaluation_plan(
                env, config.eval, train_fraction=config.train_fraction, split_seed=config.split_seed
            )
            policy, close_policy = build_sampler(
                partial(build_policy, policy_config, env, seed=config.seed),
                config.policy,
                use_gpu=None if config.policy.device == "auto" else config.policy.device == "cuda",
            )
            undo.callback(close_policy)
            self.played = played(config, env, self.episodes, policy)
            """What the result will mean."""
            self._rollout = Rollout(config.rollout, policy=policy, workers=workers, timeline=Timeline(), seed=config.seed)
            _claim(self.output, identity)
            self._undo = undo.pop_all()

    def play(self) -> list[EvaluationResult]:
        """Play what is missing, write and show the results, by temperature. Ctrl-C and SIGTERM end it; what was played is kept.

        Raises:
            RunError: A worker failed more often than it may, or the policy gives no numbers.
            SystemExit: It was interrupted.
        """
        if self.played.differs:
            self._display.line(self.played.lines()[-1])
        if self.config.policy.compile:
            self._display.line("compiling the policy: this takes about a minute")
        interruption = Interruption(lambda: None)
        self._rollout.breakable = interruption.allowed
        with self._undo, interruption.watch():
            try:
                results = evaluate_with_progress(
                    self.episodes,
                    self._rollout,
                    self.config.eval,
                    folder=self.output,
                    env=self._env,
                    display=self._display,
                    name=self.played.how,
                )
            except KeyboardInterrupt:
                named = f" with --output {self.output}" if self.config.policy.url is not None else ""
                self._display.line(f"interrupted; the same command{named} goes on with the episodes that are missing")
                raise SystemExit(130) from None
        record = {**evaluation_record(results), "played": self.played.to_json()}
        (self.output / "results.json").write_text(json.dumps(record, indent=1) + "\n")
        show_evaluation(self._display, results, title=self.checkpoint, name=self.played.how)
        for line in self.played.lines():
            self._display.line(line)
        self._display.line(f"results: {self.output}/results.json, videos: {self.output}/videos")
        return results


def _default_output(checkpoint: str) -> Path:
    """Where results go: into the run, or beside the checkpoint; below the working directory for others."""
    if checkpoint == DEMO_CHECKPOINT or not Path(checkpoint).is_dir():
        return Path("evaluations") / checkpoint.replace("/", "--")
    step = checkpoint_of_run(checkpoint)
    if step is None:
        return Path(checkpoint).with_name(f"{Path(checkpoint).name}-evaluation")
    return step.parent.parent / "evaluations" / step.name


def _output_of_server(url: str) -> Path:
    """A folder of its own for each evaluation: an address does not say whose weights answer there."""
    return (
        Path("evaluations")
        / url.partition("://")[2].strip("/").replace("/", "--").replace(":", "-")
        / f"{datetime.now():%Y%m%d-%H%M%S}"
    )


def _identity(config: EvaluateConfig, checkpoint: str) -> dict[str, Any]:
    """What all episodes of one evaluation have in common. How many are played is free: more can be added."""
    asked = config_to_json(config)
    folder = None if config.policy.url is not None else checkpoint_folder(checkpoint) or Path(checkpoint)
    weights = [] if folder is None else sorted(folder.glob("*.safetensors"))
    return {
        "checkpoint": checkpoint,
        "weights": {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in weights},
        "env": {name: value for name, value in asked["env"].items() if name not in _ENV_CAPACITY},
        "policy": {name: value for name, value in asked["policy"].items() if name not in _POLICY_CAPACITY},
        "seed": config.seed,
        "split_seed": config.split_seed,
        "train_fraction": config.train_fraction,
    }


def _require_same(output: Path, identity: dict[str, Any]) -> None:
    file = output / "evaluation.json"
    if not file.exists():
        return
    try:
        held = json.loads(file.read_text())
    except json.JSONDecodeError:  # cut short
        return
    for name, value in identity.items():
        if held.get(name) != value:
            raise ValueError(
                f"{output} holds results of another evaluation (other {name}, see {file}): choose another --output or delete it"
            )


def _claim(output: Path, identity: dict[str, Any]) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
        (output / "evaluation.json").write_text(json.dumps(identity, indent=1) + "\n")
    except OSError as error:
        raise ValueError(f"results cannot be written to {output}: {error.strerror or error}; choose another output") from error
