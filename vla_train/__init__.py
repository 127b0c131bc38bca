"""GRPO training of vision-language-action policies on any Gymnasium vector environment.

Importing this loads nothing: a public name (`__all__`) is imported from its module when it is first asked for. The modules of
the package import each other, never this one.
"""

TYPE_CHECKING = False  # instead of importing `typing`, which nothing here needs
if TYPE_CHECKING:
    from vla_train.algo.advantages import Estimator as Estimator
    from vla_train.algo.losses import Loss as Loss
    from vla_train.algo.losses import LossInputs as LossInputs
    from vla_train.algo.losses import LossOutput as LossOutput
    from vla_train.algo.losses import spread_weights as spread_weights
    from vla_train.command_line import parse_evaluate as parse_evaluate
    from vla_train.command_line import parse_train as parse_train
    from vla_train.config import AlgoConfig as AlgoConfig
    from vla_train.config import EnvConfig as EnvConfig
    from vla_train.config import EvalConfig as EvalConfig
    from vla_train.config import EvaluateConfig as EvaluateConfig
    from vla_train.config import OptimConfig as OptimConfig
    from vla_train.config import PolicyConfig as PolicyConfig
    from vla_train.config import RolloutConfig as RolloutConfig
    from vla_train.config import TrainConfig as TrainConfig
    from vla_train.demonstrations.dataset import DemonstrationDataset as DemonstrationDataset
    from vla_train.demonstrations.expert import Expert as Expert
    from vla_train.envs.worker import WorkerError as WorkerError
    from vla_train.errors import DataError as DataError
    from vla_train.errors import DivergedError as DivergedError
    from vla_train.errors import RunError as RunError
    from vla_train.evaluation.evaluate import EpisodeResult as EpisodeResult
    from vla_train.evaluation.evaluate import EvaluationResult as EvaluationResult
    from vla_train.evaluation.of_checkpoint import CheckpointEvaluation as CheckpointEvaluation
    from vla_train.evaluation.suites import SuitesEvaluation as SuitesEvaluation
    from vla_train.loop import train as train
    from vla_train.policy.base import Policy as Policy
    from vla_train.policy.base import PolicyFactory as PolicyFactory
    from vla_train.policy.base import RolloutPolicy as RolloutPolicy
    from vla_train.policy.base import SupervisedPolicy as SupervisedPolicy
    from vla_train.policy.base import TrainablePolicy as TrainablePolicy
    from vla_train.policy.simplevla_oft import SimpleVLAOFT as SimpleVLAOFT
    from vla_train.recipes import RECIPES as RECIPES
    from vla_train.run.tracking import read_records as read_records
    from vla_train.types import ArraySpec as ArraySpec
    from vla_train.types import EnvDescription as EnvDescription
    from vla_train.types import Observation as Observation
    from vla_train.types import PolicyOutput as PolicyOutput

__version__ = "0.1.0"

_MODULES = {
    "AlgoConfig": "vla_train.config",
    "ArraySpec": "vla_train.types",
    "CheckpointEvaluation": "vla_train.evaluation.of_checkpoint",
    "DataError": "vla_train.errors",
    "DemonstrationDataset": "vla_train.demonstrations.dataset",
    "DivergedError": "vla_train.errors",
    "EnvConfig": "vla_train.config",
    "EnvDescription": "vla_train.types",
    "EpisodeResult": "vla_train.evaluation.evaluate",
    "Estimator": "vla_train.algo.advantages",
    "EvalConfig": "vla_train.config",
    "EvaluateConfig": "vla_train.config",
    "EvaluationResult": "vla_train.evaluation.evaluate",
    "Expert": "vla_train.demonstrations.expert",
    "Loss": "vla_train.algo.losses",
    "LossInputs": "vla_train.algo.losses",
    "LossOutput": "vla_train.algo.losses",
    "Observation": "vla_train.types",
    "OptimConfig": "vla_train.config",
    "Policy": "vla_train.policy.base",
    "PolicyConfig": "vla_train.config",
    "PolicyFactory": "vla_train.policy.base",
    "PolicyOutput": "vla_train.types",
    "RECIPES": "vla_train.recipes",
    "RolloutConfig": "vla_train.config",
    "RolloutPolicy": "vla_train.policy.base",
    "RunError": "vla_train.errors",
    "SimpleVLAOFT": "vla_train.policy.simplevla_oft",
    "SuitesEvaluation": "vla_train.evaluation.suites",
    "SupervisedPolicy": "vla_train.policy.base",
    "TrainConfig": "vla_train.config",
    "TrainablePolicy": "vla_train.policy.base",
    "WorkerError": "vla_train.envs.worker",
    "parse_evaluate": "vla_train.command_line",
    "parse_train": "vla_train.command_line",
    "read_records": "vla_train.run.tracking",
    "spread_weights": "vla_train.algo.losses",
    "train": "vla_train.loop",
}
"""Where each public name is defined; what type checkers see stands above, and a test holds the two equal."""

__all__ = list(_MODULES)

if not TYPE_CHECKING:  # a type checker that saw this function would take any name for a public one

    def __getattr__(name):
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module(_MODULES[name]), name)

    def __dir__():
        return sorted({*globals(), *__all__})
