"""Which models of a measurement lie on the device at the moment; the others wait in host memory.

Beside the learner's own weights there may be room for one more model, or for none. Invariant: a model is put on the device only
where its bytes and ``SPARE_BYTES`` for logits and states are free, others of the measurement go back first, and one that still
has no room runs on the processor; ``release`` leaves nothing behind. On a CPU nothing moves.
"""

from __future__ import annotations

import torch

from trainer.modeling.policy_model import PolicyModel

SPARE_BYTES = 4 << 30
"""A chunk of logits takes 0.5 GiB in each of eight buffers."""


class Placement:
    def __init__(self, device: str | torch.device):
        self.device = torch.device(device)
        self._resident: list[PolicyModel] = []

    def use(self, model: PolicyModel) -> torch.device:
        """Put the model where its next forward runs; returns that device."""
        if self.device.type == "cpu" or model in self._resident:
            return model.head_weight.device
        needed = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters()) + SPARE_BYTES
        while self._resident and self._free() < needed:
            self._evict(self._resident[0])
        if self._free() < needed:
            return torch.device("cpu")
        model.to(self.device)
        self._resident.append(model)
        return self.device

    def release(self) -> None:
        """Everything back to host memory, and the memory back to the device."""
        if self._resident:
            for model in list(self._resident):
                self._evict(model)

    def _evict(self, model: PolicyModel) -> None:
        self._resident.remove(model)
        model.to("cpu")
        torch.cuda.empty_cache()

    def _free(self) -> int:
        """Bytes of the device that are free, those that torch holds without using them included."""
        held = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return torch.cuda.mem_get_info(self.device)[0] + held
