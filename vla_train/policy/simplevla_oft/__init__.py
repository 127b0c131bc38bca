"""SimpleVLA-OFT: OpenVLA-OFT with a discrete action head and bidirectional attention (see docs/model.md)."""

from vla_train.policy.simplevla_oft.config import SimpleVLAOFTConfig, named_config
from vla_train.policy.simplevla_oft.model import SimpleVLAOFT

__all__ = ["SimpleVLAOFT", "SimpleVLAOFTConfig", "named_config"]
