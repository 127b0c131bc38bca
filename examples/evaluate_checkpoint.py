"""Evaluate a checkpoint from Python, and look at the outcome of each episode.

    python examples/evaluate_checkpoint.py runs/demo --episodes 5

For a run it takes the run's own env, policy and held-out starts. The command line does the same:
python -m vla_train eval --checkpoint runs/demo --eval.episodes-per-task 5.
"""

import argparse
from dataclasses import replace

from vla_train import CheckpointEvaluation, parse_evaluate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="folder of a run, or of a checkpoint")
    parser.add_argument("--episodes", type=int, default=5, help="per task, each from another initial state")
    arguments = parser.parse_args()

    config = parse_evaluate(["--checkpoint", arguments.checkpoint])
    config = replace(config, eval=replace(config.eval, episodes_per_task=arguments.episodes, videos=1))
    result, *_ = CheckpointEvaluation(config).play()  # the first of the temperatures that were asked for

    for episode in result.episodes:
        outcome = "succeeded" if episode.success else "failed"
        print(f"task {episode.task_id}, start {episode.init_state_id}, seed {episode.seed}: {outcome}, {episode.length} steps")
    low, high = result.interval
    print(f"{result.successes} of {len(result.episodes)} succeeded: {result.success_rate:.0%} ({low:.0%} to {high:.0%})")


if __name__ == "__main__":
    main()
