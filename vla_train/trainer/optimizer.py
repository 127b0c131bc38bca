"""AdamW that loses no small updates: float32 weights and gradients behind whatever the module computes in.

An update of 5e-6 is below the spacing of bfloat16 weights, and a sum over thousands of micro-batches is below that of
bfloat16 gradients. So weights that are not float32 get a float32 twin here, which the optimizer updates and which is then
rounded into the module; and their gradients are added up in float32, each one freed as soon as it is added.

Memory per trained weight: 4 bytes of accumulated gradient while an update is being computed, 8 of optimizer state, and 4 of
twin where the module is not float32. With `cpu_offload` state and twins are in host memory, and only they are.
"""

import math
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from vla_train.config import AdamWConfig
from vla_train.errors import DivergedError
from vla_train.trainer.parallel import Ranks, is_sharded, local_part, own_rows, squared_norm
from vla_train.trainer.tensor_files import StoredTensors

_STATE_KEYS = ("exp_avg", "exp_avg_sq")
_MOVED_AT_ONCE = 1 << 30
"""Bytes of gradients that are brought into host memory together: all of them would be half as much as the state there."""


class MasterAdamW:
    """The optimizer of a module's trained weights. Gradients are added by `backward`, and used up by `step`.

    Args:
        config: Betas, weight decay, clipping, offload.
        parameters: Trained weights by name; sharded ones are updated part by part.
        ranks: Who else trains them.
    """

    def __init__(self, config: AdamWConfig, *, parameters: Mapping[str, nn.Parameter], ranks: Ranks) -> None:
        self._config = config
        self._ranks = ranks
        self._parameters = dict(parameters)
        self._sums: dict[str, Tensor] = {}
        self._masters: dict[str, nn.Parameter] = {}
        for name, parameter in self._parameters.items():
            part = local_part(parameter)
            twin = config.cpu_offload or part.dtype != torch.float32
            master = part.to("cpu" if config.cpu_offload else part.device, torch.float32, copy=twin)
            self._masters[name] = nn.Parameter(master)
            parameter.register_post_accumulate_grad_hook(self._accumulator(name))
        self._adamw = torch.optim.AdamW(
            self._masters.values(),
            lr=config.learning_rate,
            betas=(config.beta1, config.beta2),
            weight_decay=config.weight_decay,
            fused=True,
        )

    def _accumulator(self, name: str) -> Callable[[Tensor], None]:
        def add(parameter: Tensor) -> None:
            gradient = parameter.grad
            assert gradient is not None
            parameter.grad = None
            part = local_part(gradient)
            if name in self._sums:
                self._sums[name].add_(part)
            else:
                self._sums[name] = part.to(torch.float32, copy=True)

        return add

    def discard_gradients(self) -> None:
        """Forget the gradients added since the last step."""
        self._sums = {}

    @torch.no_grad()
    def step(self, learning_rate: float, *, scale: float = 1.0) -> float:
        """Clip the gradients added since the last step, and update the weights.

        Args:
            learning_rate: Of this step.
            scale: What the sums of gradients are multiplied by first.

        Returns:
            The gradients' norm before clipping, over all ranks.

        Raises:
            DivergedError: The gradients are not finite; the weights are as they were.
        """
        sums, self._sums = self._sums, {}
        if not sums:
            raise RuntimeError("no gradient has been computed: call backward() on the loss before step()")
        for name, parameter in self._parameters.items():  # one order for all ranks
            if name in sums and not is_sharded(parameter):
                self._ranks.sum_(sums[name])
        device = next(iter(sums.values())).device
        sharded = [part for name, part in sums.items() if is_sharded(self._parameters[name])]
        square = squared_norm((part for name, part in sums.items() if not is_sharded(self._parameters[name])), device)
        if sharded:
            square += self._ranks.sum_(squared_norm(sharded, device))
        norm = scale * float(square.sqrt())
        if not math.isfinite(norm):
            raise DivergedError(f"the gradients are not finite (norm {norm}): the weights are as they were before this update")
        scale *= min(1.0, self._config.max_grad_norm / (norm + 1e-6))
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate
        moved = 0
        for name in list(sums):
            master, part = self._masters[name], sums.pop(name)
            master.grad = part.mul_(scale).to(master.device)
            moved += part.nbytes if self._config.cpu_offload else 0
            if moved >= _MOVED_AT_ONCE or not sums:
                self._adamw.step()
                self._adamw.zero_grad()
                moved = 0
        self._write_back()
        return norm

    def _write_back(self) -> None:
        for name, parameter in self._parameters.items():
            part, master = local_part(parameter), self._masters[name].detach()
            if part.data_ptr() != master.data_ptr():
                part.copy_(master)
            else:  # the fused AdamW does not count its changes, which others look at
                torch.autograd.graph.increment_version(part)

    @property
    def bytes_to_come(self) -> int:
        """On the parameters' device, of this rank: moments that do not exist yet."""
        if self._config.cpu_offload or self._adamw.state:
            return 0
        return 8 * sum(local_part(parameter).numel() for parameter in self._parameters.values())

    @property
    def num_bytes(self) -> int:
        """Size of the whole state, over all ranks."""
        return sum(3 * 4 * parameter.numel() for parameter in self._parameters.values())

    @property
    def own_bytes(self) -> int:
        """Size of what `state` gives on this rank."""
        return sum(3 * 4 * local_part(parameter).numel() for parameter in self._own().values())

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """This rank's share of weights in float32 and moments, tensor by tensor, as they are now.

        Of a sharded weight these are the rows that this rank holds; the others are divided among the ranks. Moments that do
        not exist yet are 0.
        """
        for name in self._own():
            master = self._masters[name]
            yield f"weight.{name}", master.detach()
            for key in _STATE_KEYS:
                moment = self._adamw.state[master].get(key)
                yield f"{key}.{name}", torch.zeros_like(master) if moment is None else moment
        if self._ranks.rank == 0:
            yield "step", torch.tensor([float(self._adamw.state[master].get("step", 0.0)) for master in self._masters.values()])

    def _own(self) -> dict[str, nn.Parameter]:
        """Parameters of which this rank saves something."""
        rank, size = self._ranks.rank, self._ranks.size
        numbered = enumerate(self._parameters.items())
        return {name: value for number, (name, value) in numbered if is_sharded(value) or number % size == rank}

    @torch.no_grad()
    def load_state(self, stored: StoredTensors) -> None:
        """Take what `state` gave, on any number of ranks.

        Raises:
            ValueError: A tensor is missing, or has another shape here.
        """
        for name, parameter in self._parameters.items():
            shape = stored.shape(f"weight.{name}")
            if shape != parameter.shape:
                raise ValueError(f"{name} has shape {tuple(shape)} in the checkpoint, {tuple(parameter.shape)} here")
        steps = stored.read("step").expand(len(self._parameters))  # older checkpoints have one for all
        for (name, parameter), step in zip(self._parameters.items(), steps, strict=True):
            master, rows = self._masters[name], own_rows(parameter)
            master.copy_(stored.read(f"weight.{name}", rows))
            moments = {key: stored.read(f"{key}.{name}", rows).to(master.device, copy=True) for key in _STATE_KEYS}
            self._adamw.state[master] = {"step": step.clone().to(master.device), **moments} if step > 0 else {}
        self._write_back()
