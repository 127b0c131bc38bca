"""The examples do what they say: their commands, run as a user would, with fewer iterations."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vla_train.algo.advantages import grpo

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def run(*arguments: str) -> str:
    paths = [str(ROOT / "examples"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def command_of(example: str) -> list[str]:
    """The options of the training command in the example's docstring."""
    text = (ROOT / "examples" / example).read_text().partition("python -m vla_train ")[2].partition("\n\n")[0]
    return shlex.split(text.replace("\\\n", " "))


def changed(options: list[str], **changes: str) -> list[str]:
    for name, value in changes.items():
        option = f"--{name.replace('__', '.').replace('_', '-')}"
        if option in options:
            options[options.index(option) + 1] = value
        else:
            options += [option, value]
    return options


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the example's policy on the example's env."""
    output = tmp_path_factory.mktemp("examples") / "run"
    options = changed(command_of("own_policy.py"), iterations="30", checkpoint_every="30", eval__every="30", output=str(output))
    run("-m", "vla_train", *options)
    return output


def records(run_folder: Path, kind: str) -> list[dict[str, float]]:
    lines = map(json.loads, (run_folder / "metrics.jsonl").read_text().splitlines())
    return [record for record in lines if record["kind"] == kind]


def test_a_gaussian_policy_learns_an_env_that_no_file_of_the_packages_knows(trained: Path) -> None:
    iterations, evaluations = records(trained, "iteration"), records(trained, "eval")
    assert iterations[0]["rollout/success_rate"] < 0.5
    assert evaluations[-1]["success_rate"] > 0.8
    assert any((trained / "evaluations").rglob("*.mp4"))


def test_a_checkpoint_is_evaluated_from_python(trained: Path) -> None:
    output = run(str(ROOT / "examples" / "evaluate_checkpoint.py"), str(trained), "--episodes", "3")
    assert len(re.findall(r"task 0, start -1, seed \d+: (?:succeeded|failed), \d steps", output)) == 3
    assert re.search(r"\d of 3 succeeded", output)


def test_a_loss_and_an_estimator_are_given_by_name(tmp_path: Path) -> None:
    options = changed(
        command_of("own_policy.py"),
        **{"algo__loss": "own_loss:penalised", "algo__advantage": "own_loss:median_baseline"},
        iterations="12",
        checkpoint_every="12",
        eval__every="0",
        output=str(tmp_path / "run"),
    )
    run("-m", "vla_train", *options)
    iterations = records(tmp_path / "run", "iteration")
    assert iterations[-1]["rollout/success_rate"] > iterations[0]["rollout/success_rate"] + 0.1
    assert iterations[-1]["update/squared_step"] > 0


def test_the_examples_env_trains_the_default_policy(tmp_path: Path) -> None:
    options = changed(command_of("own_env.py"), iterations="1", eval__every="0", output=str(tmp_path / "run"))
    run("-m", "vla_train", *options)
    assert records(tmp_path / "run", "iteration")[0]["rollout/episodes"] > 0


def test_a_task_of_ones_own_is_played_by_the_expert_with_a_reward_of_ones_own() -> None:
    output = run(str(ROOT / "examples" / "own_task.py"))
    assert output.startswith("put the bowl on the plate: from starts")
    returns = re.findall(r"success True, return (\d+\.\d)", output)
    assert len(returns) == 2
    assert all(float(total) > 1.0 for total in returns)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_short(example: Path) -> None:
    assert len(example.read_text().splitlines()) < 100


def test_shuffled_rewards_deal_each_group_its_own_advantages_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    from shuffled_rewards import shuffled

    groups = torch.arange(6).repeat(8)
    drawn = torch.Generator().manual_seed(0)
    products = []
    for _ in range(100):
        rewards = torch.randint(2, (48,), generator=drawn).double()
        dealt, honest = shuffled(rewards, groups), grpo(rewards, groups)
        for group in range(6):
            assert dealt[groups == group].sort().values == pytest.approx(honest[groups == group].sort().values)
        assert torch.equal(dealt, shuffled(rewards, groups))
        products.append(float((dealt * honest).mean()))
    assert abs(sum(products) / len(products)) < 0.05  # of those that are not shuffled it is 7/8
    assert shuffled(torch.ones(3).double(), torch.arange(3)).tolist() == [0.0, 0.0, 0.0]
