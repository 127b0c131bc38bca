"""Evaluation of one checkpoint, apart from any training run (`python -m vla_train eval`).

    OUTPUT/evaluation.json    what was asked for
    OUTPUT/episodes.jsonl     one line per finished episode: an interrupted evaluation goes on from there
    OUTPUT/results.json       rates with intervals, in all and per task, and how they were played
    OUTPUT/videos/

Invariant: all episodes in a folder were played by the same weights on the same env.
"""

import json
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from vla_train.config import DEMO_CHECKPOINT, EvaluateConfig, PolicyConfig
from vla_train.config_json import config_to_json
from vla_train.display import Display
from vla_train.envs.workers import make_workers
from vla_train.evaluation.display import evaluate_with_progress, show_evaluation
from vla_train.evaluation.evaluate import EvaluationResult, read_episodes
from vla_train.evaluation.played import played
from vla_train.evaluation.record import evaluation_record
from vla_train.files import replace_file
from vla_train.interruption import Interruption
from vla_train.pipeline.episodes import evaluation_plan
from vla_train.pipeline.rollout import Rollout
from vla_train.pipeline.timeline import Timeline
from vla_train.policy.base import PolicyFactory
from vla_train.policy.checkpoint_name import checkpoint_folder
from vla_train.policy.factory import policy_factory
from vla_train.run.lock import lock_run
from vla_train.run.named_checkpoint import absolute_checkpoint, checkpoint_of_run
from vla_train.run.policies import build_sampler

_ENV_CAPACITY = ("num_workers", "envs_per_worker", "worker", "step_timeout_s", "max_restarts")
"""Fields of `EnvConfig` that change how fast episodes are played, not what they are."""
_POLICY_CAPACITY = ("worker", "replicas")
"""The same of `PolicyConfig`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Named:
    """What a config names, found and looked at; nothing is started yet."""

    checkpoint: str
    """Its policy's absolute folder, `demo`, or a hub id; of a server, its address."""
    policy: PolicyConfig
    """Of the policy that plays."""
    build_policy: PolicyFactory
    output: Path
    identity: dict[str, Any]
    """What all episodes in `output` have in common."""


def whose(config: EvaluateConfig) -> str:
    """What plays: the absolute folder of a policy, `demo`, a hub id, or a server's address.

    Raises:
        ValueError: There is no such checkpoint.
    """
    if config.policy.url is not None:
        return config.policy.url
    assert config.checkpoint is not None, "the config has refused this"
    return absolute_checkpoint(config.checkpoint)


def look_up(config: EvaluateConfig) -> Named:
    """What a config names.

    Raises:
        ValueError: There is no such checkpoint, its options cannot be, or the output holds results of another evaluation.
    """
    checkpoint = whose(config)
    policy = config.policy
    if policy.url is None:
        policy = replace(policy, checkpoint=checkpoint, lora_rank=0, random_weights=False)
    build_policy = policy_factory(policy)
    output, identity = config.output or default_output(checkpoint), _identity(config, checkpoint)
    _require_same(output, identity)
    return Named(checkpoint=checkpoint, policy=policy, build_policy=build_policy, output=output, identity=identity)


class CheckpointEvaluation:
    """An evaluation, set up; `play` plays it and closes everything.

    Args:
        config: Which checkpoint (or whose server), on which episodes. Results go to `config.output`, where an earlier part is
            kept.
        named_output: What an interrupted command is to be given as --output, where that is not the folder of these results.

    Raises:
        ValueError: There is no such checkpoint, it does not fit the env, or the output holds results of another evaluation,
            or is another process's; or the config names several suites, which `SuitesEvaluation` plays.
    """

    def __init__(self, config: EvaluateConfig, *, named_output: Path | None = None) -> None:
        if config.suites:
            raise ValueError(f"an evaluation of suites ({', '.join(config.suites)}) is a SuitesEvaluation")
        self.config = config
        named = look_up(config)
        self.checkpoint, self.output = named.checkpoint, named.output
        self._named_output = named_output or named.output
        self._display = Display(config.display)
        with ExitStack() as undo, self._display.waiting("setting up"):
            suite = config.env.kwargs.get("suite")
            self._display.line(f"{self.checkpoint}: starting {config.env.id}{f', {suite}' if suite else ''}")
            workers = make_workers(config.env, chunk_size=config.policy.chunk_size)
            for worker in workers:
                undo.callback(worker.close)
            env = workers[0].description
            self._env = env
            self.episodes = evaluation_plan(
                env, config.eval, train_fraction=config.train_fraction, split_seed=config.split_seed
            )
            policy, close_policy = build_sampler(
                partial(named.build_policy, named.policy, env, seed=config.seed),
                config.policy,
                use_gpu=None if config.policy.device == "auto" else config.policy.device == "cuda",
            )
            undo.callback(close_policy)
            self.played = played(config, env, self.episodes, policy)
            """What the result will mean."""
            self._rollout = Rollout(config.rollout, policy=policy, workers=workers, timeline=Timeline(), seed=config.seed)
            undo.callback(lock_run(self.output, activity="evaluates"))
            read_episodes(self.output / "episodes.jsonl")  # refuses a damaged one
            _claim(self.output, named.identity)
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
                self._display.line(interrupted_line(self.config, self._named_output))
                raise SystemExit(130) from None
        record = {**evaluation_record(results), "played": self.played.to_json()}
        (self.output / "results.json").write_text(json.dumps(record, indent=1) + "\n")
        on = f" on {self._env.suite}" if self._env.suite else ""
        show_evaluation(self._display, results, title=f"{self.checkpoint}{on}", name=self.played.how)
        for line in self.played.lines():
            self._display.line(line)
        self._display.line(f"results: {self.output}/results.json, videos: {self.output}/videos")
        return results


def interrupted_line(config: EvaluateConfig, output: Path) -> str:
    """What to say where an evaluation with these results was interrupted. A server's have another folder each time."""
    where = f" with --output {output}" if config.policy.url is not None else ""
    return f"interrupted; the same command{where} goes on with the episodes that are missing"


def default_output(checkpoint: str) -> Path:
    """Where results go, by what `whose` says: into the run, or beside the checkpoint; for others below the working directory.

    Each evaluation of a server has a folder of its own: an address does not say whose weights answer there.
    """
    if "://" in checkpoint:
        address = checkpoint.partition("://")[2].strip("/").replace("/", "--").replace(":", "-")
        return Path("evaluations") / address / f"{datetime.now():%Y%m%d-%H%M%S}"
    if checkpoint == DEMO_CHECKPOINT or not Path(checkpoint).is_dir():
        return Path("evaluations") / checkpoint.replace("/", "--")
    step = checkpoint_of_run(checkpoint)
    if step is None:
        return Path(checkpoint).with_name(f"{Path(checkpoint).name}-evaluation")
    return step.parent.parent / "evaluations" / step.name


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
        held = json.loads(file.read_bytes())
    except ValueError:
        held = None
    if not isinstance(held, dict):
        if not read_episodes(output / "episodes.jsonl"):
            return
        raise ValueError(f"{file} is damaged, and nothing else says whose results these are: choose another --output")
    for name, value in identity.items():
        if held.get(name) != value:
            raise ValueError(
                f"{output} holds results of another evaluation (other {name}, see {file}): choose another --output or delete it"
            )


def _claim(output: Path, identity: dict[str, Any]) -> None:
    try:
        replace_file(output / "evaluation.json", (json.dumps(identity, indent=1) + "\n").encode())
    except OSError as error:
        raise ValueError(f"results cannot be written to {output}: {error.strerror or error}; choose another output") from error
