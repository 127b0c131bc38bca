"""Where published tensors live in the model: query, key and value are one matrix there, gate and up projection another."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

_FUSED = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
}


@dataclass(frozen=True, slots=True)
class Piece:
    """Where a published tensor lives in a plain model: a whole parameter, or equal parts of its rows."""

    parameter: str
    part: int = 0
    num_parts: int = 1

    def of(self, tensor: Tensor) -> Tensor:
        """This piece of the parameter's tensor, as a view."""
        return tensor.chunk(self.num_parts, dim=0)[self.part]


def published_pieces(names: Iterable[str]) -> dict[str, Piece]:
    """Published key of every weight of a plain model, and where it lives."""
    pieces = {}
    for name in names:
        for fused, parts in _FUSED.items():
            if f".{fused}." in name:
                for index, part in enumerate(parts):
                    pieces[name.replace(fused, part)] = Piece(name, index, len(parts))
                break
        else:
            pieces[name] = Piece(name)
    return pieces
