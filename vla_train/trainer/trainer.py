"""One AdamW step after the other: rows in, better weights out.

    step          for each micro-batch: policy.evaluate, loss, backward; clip gradients, AdamW
    measure       the loss of rows, without training on them
    push_weights  -> policies that sample

Invariant: what a step does depends on its rows and on the steps before alone: not on the cut into micro-batches or the number
of ranks (up to rounding). The trainer knows no simulator, no model and no loss, only their protocols; where rows come from
(`group_trainer`: episodes; `sft`: demonstrations) is not its business.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from vla_train.algo.losses import Loss, LossInputs, LossOutput
from vla_train.config import AdamWConfig, AlgoConfig
from vla_train.errors import DivergedError
from vla_train.policy.base import RolloutPolicy, TrainablePolicy
from vla_train.registry import LOSSES, load
from vla_train.trainer.memory_plan import MemoryPlan, plan_microbatches, plan_shared_microbatches
from vla_train.trainer.optimizer import MasterAdamW
from vla_train.trainer.parallel import ONE_RANK, Ranks, distribute, full_tensor, is_sharded, local_part
from vla_train.trainer.schedule import learning_rate
from vla_train.trainer.tensor_files import StoredTensors
from vla_train.types import Observation, TrainBatch

if TYPE_CHECKING:
    from vla_train.pipeline.timeline import Timeline

_ROWS = 8
"""Of a micro-batch, where memory is not asked."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """What one AdamW step gave."""

    output: LossOutput
    """Over all ranks."""
    grad_norm: float
    """Before clipping."""
    learning_rate: float


class Trainer:
    """Trains a policy on rows.

    Args:
        optim: AdamW, and the cut into micro-batches.
        algo: Names the loss, and says what it is told.
        policy: Its trainable weights are updated in place.
        temperature: The one that sampling uses; `Trainer.temperature` may change between steps, as it does.
        total_steps: AdamW steps of the whole run, which its learning rate is scheduled over.
        timeline: Takes the spans of training and pushing.
        ranks: Who else trains (`parallel.join_ranks`); all ranks make the same calls, each with its own rows.
    """

    def __init__(
        self,
        optim: AdamWConfig,
        algo: AlgoConfig,
        *,
        policy: TrainablePolicy,
        temperature: float,
        total_steps: int,
        timeline: "Timeline | None" = None,
        ranks: Ranks = ONE_RANK,
    ) -> None:
        self.ranks = ranks
        self.num_updates = 0
        """AdamW steps so far."""
        self.version = policy.version
        """Of the weights: whoever changes them by steps counts it up, so that no two sets of weights share a number."""
        self._adamw_config = optim
        self._algo = algo
        self._loss: Loss = load(algo.loss, LOSSES, option="algo.loss")
        self._policy = policy
        self.temperature = temperature
        """Of the log-probs that are trained: the one at which rows were sampled."""
        self._total_steps = total_steps
        self._timeline = timeline
        self._module = policy.trainable_module()
        distribute(self._module, ranks, sharding=optim.sharding)
        parameters = {name: value for name, value in self._module.named_parameters() if value.requires_grad}
        if not parameters:
            raise ValueError("the policy has no weights to train: all of them are frozen")
        self.optimizer = MasterAdamW(optim, parameters=parameters, ranks=ranks)
        self.device = next(iter(parameters.values())).device
        """Where it computes."""
        self._plan: MemoryPlan | None = None
        """Made at the first step: what else a run needs is in memory then."""
        self._loss_scale = ranks.size if any(map(is_sharded, parameters.values())) else 1  # FSDP averages, we want the sum

    def step(self, batch: TrainBatch, on_rows: Callable[[int], None] | None = None) -> Step:
        """One AdamW step.

        Args:
            batch: This rank's rows of the mini-batch, R >= 1, as many as each other rank's; weights are normalised over all.
            on_rows: Told of the rows of each micro-batch when they are done.

        Raises:
            ValueError: The rows do not fit the policy.
            DivergedError: The loss or its gradient is not finite; the weights are as before.
        """
        began = time.perf_counter()
        self.optimizer.discard_gradients()  # those of a step that was broken off
        sums: list[LossOutput] = []
        for microbatch in self._microbatches(batch):
            sums.append(self._backward(microbatch))
            if on_rows is not None:
                on_rows(len(microbatch))
        step = self._finish(sums)
        self._record(began, rows=len(batch))
        return step

    def _backward(self, microbatch: TrainBatch) -> LossOutput:
        """Add the gradients of one micro-batch to those of the step under way."""
        output = self._output(microbatch)
        (output.loss * self._loss_scale).backward()
        return output.detach()  # its graph ends here: the next one may be captured, which leftovers of this one would spoil

    def _finish(self, sums: Sequence[LossOutput], *, scale: float = 1.0) -> Step:
        """Take the step of the micro-batches that gave `sums`; `scale` is a factor that their weights still lack."""
        whole = _reduce(sums, self.ranks)
        rate = learning_rate(self._adamw_config, step=self.num_updates, total_steps=self._total_steps)
        grad_norm = self.optimizer.step(rate, scale=scale)
        self.num_updates += 1
        return Step(output=replace(whole, loss=scale * whole.loss), grad_norm=grad_norm, learning_rate=rate)

    def _record(self, began: float, *, rows: int) -> None:
        if self._timeline is not None:
            self._timeline.add("trainer", "train", began, time.perf_counter(), rows=rows)

    def prepare(self, batch: TrainBatch) -> None:
        """Find out how updates fit the GPU before anything else runs on it; the first step does it otherwise."""
        if self._plan is None:
            self._plan = self._make_plan(batch)

    @torch.no_grad()
    def measure(self, batch: TrainBatch) -> LossOutput:
        """The loss of rows over all ranks, and its statistics; nothing is trained. Rows as for `step`.

        Raises:
            DivergedError: It is not finite.
        """
        return _reduce([self._output(microbatch).detach() for microbatch in self._microbatches(batch)], self.ranks)

    def _microbatches(self, batch: TrainBatch) -> Iterator[TrainBatch]:
        self.prepare(batch)
        assert self._plan is not None
        rows = self._plan.microbatch_rows
        for first in range(0, len(batch), rows):
            yield batch.select(slice(first, first + rows))

    def _make_plan(self, batch: TrainBatch) -> MemoryPlan:
        """What fits the GPU, where that is to be found out; it takes a few passes over rows of `batch`."""
        rows = self._adamw_config.microbatch_rows
        recompute = getattr(self._policy, "recompute", None)
        if self.device.type != "cuda" or (rows and recompute is None):
            return MemoryPlan(microbatch_rows=rows or _ROWS, recomputed=0.0)

        def run(num_rows: int) -> None:
            """As a micro-batch that is not the first: the sums of gradients are there, and activations come on top."""
            self._output(batch.select(np.arange(num_rows) % len(batch))).loss.backward()

        sharded = self._loss_scale > 1
        make = partial(plan_shared_microbatches, ranks=self.ranks) if sharded else plan_microbatches
        with torch.enable_grad():
            owed = self.optimizer.bytes_to_come + (0 if sharded else getattr(self._policy, "graphed_bytes", 0))
            plan = make(run, recompute, self.device, owed=owed, rows=rows or None)
        self.optimizer.discard_gradients()
        chosen = plan if recompute is not None else f"micro-batches of {plan.microbatch_rows} rows"
        _log.info("updates: %s, by the memory of the GPU", chosen)
        return plan

    def _output(self, batch: TrainBatch) -> LossOutput:
        def device(array: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(self.device, non_blocking=True)

        decision = {name: device(array) for name, array in batch.decisions.items()}
        observation = Observation(arrays=batch.observations, instructions=batch.instructions)
        return self._loss(
            self._policy.evaluate(observation, decision, temperature=self.temperature),
            LossInputs(decision=decision, advantages=device(batch.advantages), weights=device(batch.weights)),
            self._algo,
        )

    def push_weights(self, *policies: RolloutPolicy) -> None:
        """Give the trained weights and their version to the policies that sample. The trained policy itself may be one."""
        started = time.perf_counter()
        weights = self._gathered_weights() if self.ranks.size > 1 or any(p is not self._policy for p in policies) else {}
        self._policy.version = self.version
        for policy in policies:
            if policy is not self._policy:
                policy.load_weights(weights, version=self.version)
        if self._timeline is not None:
            self._timeline.add("trainer", "push", started, time.perf_counter(), rows=len(policies))

    @torch.no_grad()
    def _gathered_weights(self) -> dict[str, Tensor]:
        return {
            name: full_tensor(local_part(parameter), parameter)
            for name, parameter in self._module.named_parameters()
            if parameter.requires_grad
        }

    @property
    def policy_bytes(self) -> int:
        """Size of the exported policy: what the policy says (`export_bytes`), or all its weights."""
        said: int | None = getattr(self._policy, "export_bytes", None)
        if said is not None:
            return said
        return sum(parameter.numel() * parameter.element_size() for parameter in self._module.parameters())

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """This rank's share of weights and optimizer state, tensor by tensor, as they are now."""
        return self.optimizer.state()

    def load_state(self, stored: StoredTensors, *, num_updates: int, version: int) -> None:
        """Go on from a saved state; the trained policy takes its weights and version.

        Args:
            stored: What `state` gave on all ranks.
            num_updates: AdamW steps so far.
            version: Of these weights.

        Raises:
            ValueError: A tensor does not fit; the state is then partly loaded, and this trainer of no use.
        """
        self.optimizer.load_state(stored)
        self.num_updates = num_updates
        self.version = self._policy.version = version

    def export(self, folder: Path | str) -> None:
        """Write the policy as it saves itself. All ranks must call this."""
        self._policy.save_pretrained(str(folder))

    @property
    def snapshot(self) -> Callable[[Callable[[Tensor], Tensor]], Callable[[Path], list[Path]]] | None:
        """How to export the policy while it is trained (see `TrainablePolicy`); None where it cannot be."""
        return getattr(self._policy, "snapshot", None)


def _reduce(parts: Sequence[LossOutput], ranks: Ranks) -> LossOutput:
    """Sums over micro-batches and ranks.

    Raises:
        DivergedError: The loss is not finite.
    """
    whole = parts[0]
    for part in parts[1:]:
        whole = whole + part
    if ranks.size > 1:
        summed = [whole.loss, whole.count, *whole.sums.values(), *whole.first_sums.values()]
        loss, count, *rest = ranks.sum_(torch.stack([value.float() for value in summed])).unbind()
        values = iter(rest)
        whole = LossOutput(
            loss=loss,
            count=count,
            sums={name: next(values) for name in whole.sums},
            first_sums={name: next(values) for name in whole.first_sums},
            maxima={name: ranks.max_(value.clone()) for name, value in whole.maxima.items()},
        )
    if not whole.loss.isfinite():
        raise DivergedError(
            f"the loss is {float(whole.loss)}: what the policy evaluates is not finite; "
            "the weights are as they were before this mini-batch"
        )
    return whole
