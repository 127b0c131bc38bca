"""GRPO, on one screen.

collect: env groups and policy, overlapped --groups--> update: trainer --weights--> policy
         next iteration's resets (or its whole rollout) run during the update
"""

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from vla_train.config import EvaluateConfig, RolloutConfig, TrainConfig, config_to_json
from vla_train.display import Display
from vla_train.evaluation import evaluate, summary
from vla_train.interruption import Interrupted, Interruption
from vla_train.pipeline.rollout import Rollout
from vla_train.pipeline.timeline import Timeline
from vla_train.pipeline.workers import make_workers
from vla_train.policy.torch_policy import build_policy
from vla_train.prompts import evaluation_episodes
from vla_train.run import Run, show_evaluation
from vla_train.trainer.checkpoint import latest_checkpoint
from vla_train.trainer.parallel import join_ranks


def train(config: TrainConfig) -> None:
    """Train from the newest checkpoint in `config.output`, or from the start. Ctrl-C and SIGTERM save a checkpoint and end.

    Raises:
        ValueError: It cannot work as configured; nothing was begun.
        WorkerError: An env group failed more often than it may.
        CheckpointError: A checkpoint could not be written; the ones before are as they were.
    """
    ranks = join_ranks()
    display = Display(config.display if ranks.rank == 0 else "none")
    interruption = Interruption(lambda: display.line("ending after this update; once more to lose it"))
    with closing(Run(config, ranks=ranks, display=display)) as run, interruption.watch():
        try:
            while True:
                if run.evaluation_due:
                    run.evaluate()
                if run.checkpoint_due:
                    run.save()
                if run.complete:
                    break
                result = run.collect()
                with interruption.deferred():
                    run.begin_next()
                    metrics = run.update(result.groups)
                    run.record(result, metrics)
        except Interrupted:
            if ranks.size == 1 and not interruption.broke_off:
                run.save()
            display.line("interrupted; the same command goes on from the newest checkpoint")
            raise SystemExit(130) from None
    display.line(f"done: {config.output}. Look at it: python -m vla_train report {config.output}")


def evaluate_checkpoint(config: EvaluateConfig) -> None:
    """Play every episode that the config asks for, greedily; results go to `config.output`, where an earlier part is kept.

    Raises:
        ValueError: There is no such checkpoint, or the output holds results of another evaluation.
    """
    display = Display(config.display)
    checkpoint, output = _find_checkpoint(config)
    _claim(output, {**config_to_json(config), "checkpoint": checkpoint, "output": str(output)})
    workers = make_workers(config.env, chunk_size=config.policy.chunk_size, seed=config.seed)
    env = workers[0].description
    try:
        episodes = evaluation_episodes(
            env.task_ids,
            env.num_init_states,
            episodes_per_task=config.eval.episodes_per_task,
            initial_states=config.eval.initial_states,
            train_fraction=config.train_fraction,
            seed=config.seed,
        )
        policy = build_policy(
            replace(config.policy, checkpoint=checkpoint, lora_rank=0),
            action_low=env.action_low,
            action_high=env.action_high,
            suite=env.suite,
            seed=config.seed,
        )
        rollout = Rollout(RolloutConfig(), policy=policy, workers=workers, timeline=Timeline(), seed=config.seed)
    except BaseException:
        for worker in workers:
            worker.kill()
        raise
    with closing(rollout), display.phase("evaluation", total=len(episodes), unit="episodes") as show:
        result = evaluate(
            episodes,
            rollout.play,
            folder=output,
            videos=config.eval.videos,
            mirrored_images=env.mirrored_images,
            on_episode=lambda _, done, total: show(done, ""),
        )
    (output / "results.json").write_text(json.dumps(summary(result), indent=1) + "\n")
    show_evaluation(display, result, title=checkpoint)
    display.line(f"results: {output}/results.json, videos: {output}/videos")


def _find_checkpoint(config: EvaluateConfig) -> tuple[str, Path]:
    """The policy's folder or hub id, and where results go."""
    named = Path(config.checkpoint)
    found = latest_checkpoint(named) if (named / "checkpoints").is_dir() else named
    if found is None:
        raise ValueError(f"{named} holds no complete checkpoint")
    if not found.exists():
        return config.checkpoint, config.output or Path("evaluations") / config.checkpoint.replace("/", "--")
    if found.parent.name == "checkpoints":
        return str(found / "policy"), config.output or found.parent.parent / "evaluations" / found.name
    return str(found), config.output or found.parent / f"{found.name}-evaluation"


def _claim(output: Path, asked: dict[str, object]) -> None:
    """Make the folder, or see that what it holds is part of this same evaluation."""
    file = output / "evaluation.json"
    if file.exists() and json.loads(file.read_text()) != asked:
        raise ValueError(f"{output} holds the results of another evaluation ({file}): choose another --output")
    try:
        output.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asked, indent=1) + "\n")
    except OSError as error:
        raise ValueError(
            f"results cannot be written to {output}: {error.strerror or error}; choose another --output"
        ) from error
