"""A causal language model whose output head is driven by a function, inside the forward of the root module.

``forward(packed, head)`` runs the backbone over a pack, selects the rows that predict completion tokens and calls
``head(hidden_rows [R, H], head_weight [V, H])``. The call happens inside the root's forward because FSDP2 has the head's
weight gathered only there. Dropout is off always: the policy that is trained is the policy that sampled.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from trainer.modeling.attention import PACKED_ATTENTION, repeat_rows
from trainer.modeling.packed import PackedSequences

Result = TypeVar("Result")
Head = Callable[[Tensor, Tensor], Result]

UNSUPPORTED_HEAD_FIELDS = {"final_logit_softcapping": None, "logit_scale": 1.0, "logits_scaling": 1.0}
"""Config fields that change the logits after the head, with the value that means no change."""


class PolicyModel(nn.Module):
    """A transformers model with our packed attention; parameters keep their checkpoint names below ``model.``."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self._hold_to_what_is_supported()

    @classmethod
    def load(cls, folder: str | Path, *, dtype: torch.dtype = torch.float32) -> PolicyModel:
        """Read a Hugging Face folder: safetensors only, no remote code."""
        transformers_logging.disable_progress_bar()
        model = AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=dtype, attn_implementation=PACKED_ATTENTION, use_safetensors=True, trust_remote_code=False
        )
        return cls(model.eval())

    @classmethod
    def empty(cls, folder: str | Path, *, dtype: torch.dtype = torch.float32) -> PolicyModel:
        """The architecture of a folder with random weights, for weights that come from elsewhere."""
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=PACKED_ATTENTION)
        return cls(model.eval())

    def _hold_to_what_is_supported(self) -> None:
        config = self.model.config
        for field, neutral in UNSUPPORTED_HEAD_FIELDS.items():
            value = getattr(config, field, neutral)
            if value is not None and value != neutral:
                raise ValueError(f"model {config.model_type}: {field} = {value} is not supported; its log-probabilities would be wrong")
        if self.model.get_output_embeddings().bias is not None:
            raise ValueError(f"model {config.model_type}: an output head with a bias is not supported")

    @property
    def config(self) -> Any:
        return self.model.config

    @property
    def backbone(self) -> nn.Module:
        return self.model.base_model

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers, in order; the units that FSDP2 shards."""
        return self.backbone.layers

    @property
    def head_weight(self) -> Tensor:
        """[V, H]; the embedding itself where the model ties them."""
        return self.model.get_output_embeddings().weight

    @property
    def is_tied(self) -> bool:
        return self.model.get_output_embeddings().weight is self.model.get_input_embeddings().weight

    def forward(self, packed: PackedSequences, head: Head) -> Any:
        """Returns whatever ``head`` returns for the pack's rows."""
        output = self.backbone(
            input_ids=packed.token_ids, position_ids=packed.position_ids, use_cache=False, packed_layout=packed.layout
        )
        # a row twice: the last token of a shared prompt predicts the first token of several completions
        return head(repeat_rows(output.last_hidden_state[0], packed.row_indices), self.head_weight)

    @torch.no_grad()
    def hidden_states(self, packed: PackedSequences) -> Tensor:
        """[R, H] final hidden states (after the last norm) of the rows that predict completion tokens."""
        return self(packed, lambda hidden, _: hidden)
