"""FSDP2 around the policy, and the way from a sharded tensor to a whole one and back.

The invariant: gradients are summed over ranks, never averaged; the loss was already divided by global denominators.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from trainer.modeling.policy_model import PolicyModel

RESHARD_AFTER_FORWARD_PARAMETERS = 2_000_000_000
"""From this many parameters on, layers are freed between forward and backward: memory before speed."""


def pick_device(name: str) -> torch.device:
    """``cpu``, ``cuda`` (this process's current device) or ``cuda:<n>``."""
    device = torch.device(name)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def join_group(rank: int, world_size: int, device: torch.device) -> bool:
    """Check the process group against the learner's place in it; a lone learner without one makes its own.

    Returns whether it was made here. Raises ValueError where rank or size disagree.
    """
    made = not dist.is_initialized()
    if made:
        if world_size != 1:
            raise ValueError(f"a learner of world size {world_size} needs torch.distributed initialised first")
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    if (dist.get_rank(), dist.get_world_size()) != (rank, world_size):
        found = f"rank {dist.get_rank()} of {dist.get_world_size()}"
        raise ValueError(f"learner is rank {rank} of {world_size}, but torch.distributed is {found}")
    return made


def shard_policy(model: PolicyModel, *, device: torch.device, dtype: str, world_size: int) -> PolicyModel:
    """One FSDP2 unit per decoder layer, and the root (embedding, last norm, head) around them; fp32 masters."""
    model = model.to(device)
    mesh = init_device_mesh(device.type, (world_size,))
    precision = MixedPrecisionPolicy()
    if dtype == "bfloat16":
        # inputs are not cast: the loss head's float32 rows must arrive as they are
        precision = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    large = sum(parameter.numel() for parameter in model.parameters()) >= RESHARD_AFTER_FORWARD_PARAMETERS
    for layer in model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=precision, reshard_after_forward=large)
    fully_shard(model, mesh=mesh, mp_policy=precision, reshard_after_forward=False)
    for unit in _units(model):
        unit.set_gradient_divide_factor(1.0)
        # otherwise a factor becomes a scaled reduction, which gloo does not have
        unit.set_force_sum_reduction_for_comms(True)
    return model


def release_gathered(model: PolicyModel) -> None:
    """Free gathered weights after a forward without backward: FSDP2 keeps them, and would miss the next update."""
    for unit in _units(model):
        unit.reshard()


def _units(model: PolicyModel) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def local_shard(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor, sharing its storage."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The full tensor (collective); with one rank it may share the shard's storage."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(full: Tensor, parameter: Tensor) -> Tensor:
    """This rank's shard of a full tensor (no communication: every rank has the whole)."""
    full = full.to(device=parameter.device, dtype=parameter.dtype)
    if not isinstance(parameter, DTensor):
        return full
    return distribute_tensor(full, parameter.device_mesh, parameter.placements, src_data_rank=None).to_local()


def sharded_as(local: Tensor, parameter: Tensor) -> Tensor:
    """This rank's part of a tensor that is sharded as ``parameter`` is, as the sharded tensor (no communication)."""
    if not isinstance(parameter, DTensor):
        return local
    mesh, placements = parameter.device_mesh, parameter.placements
    return DTensor.from_local(local, mesh, placements, shape=parameter.shape, stride=parameter.stride())
