"""The one exchange between learner ranks outside FSDP2: everybody's small vector, to everybody."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def gather_vectors(vector: Tensor) -> Tensor:
    """[n] on the group's device -> [ranks, n], in rank order, the same on every rank (collective). Lengths must agree."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return vector[None]
    gathered = [torch.empty_like(vector) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, vector)
    return torch.stack(gathered)
