"""Causal attention over packed sequences, registered with transformers as ``holdfast_packed``.

Every token sees its own sequence only. On CUDA it is PyTorch's variable-length attention; elsewhere the pack is unfolded
into a padded batch, attended by one fused causal call, and folded back. Padding lies behind the real tokens, so a causal
query never reads it.

No mask function is registered under the name: transformers then builds no mask at all and passes None (a test holds it
to that), which saves a tokens x tokens matrix per forward.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

from trainer.modeling.packed import SequenceLayout

PACKED_ATTENTION = "holdfast_packed"


class _Reindex(torch.autograd.Function):
    """out[i] = source[forward_index[i]] along dim 0, whose gradient is a gather as well (an index_add is far slower).

    ``backward_index[j]`` names the one output row that depends on source row j through a real token; padding rows of the
    output carry no gradient, and source rows without an output are told apart by ``backward_mask``.
    """

    @staticmethod
    def forward(ctx, source: Tensor, forward_index: Tensor, backward_index: Tensor, backward_mask: Tensor | None) -> Tensor:
        ctx.save_for_backward(backward_index, backward_mask)
        return source.index_select(0, forward_index)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        backward_index, backward_mask = ctx.saved_tensors
        result = gradient.index_select(0, backward_index)
        if backward_mask is not None:
            result.masked_fill_(backward_mask.view(-1, *[1] * (result.dim() - 1)), 0.0)
        return result, None, None, None


class _Repeat(torch.autograd.Function):
    """out[i] = source[index[i]] along dim 0, where a source row comes any number of times. Its gradient is summed in float32 (float64
    for float64): of half precision, many copies of a prompt would lose what each of them says."""

    @staticmethod
    def forward(ctx, source: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.num_rows = source.shape[0]
        return source.index_select(0, index)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        (index,) = ctx.saved_tensors
        wide = gradient if gradient.dtype == torch.float64 else gradient.float()
        total = torch.zeros((ctx.num_rows, *gradient.shape[1:]), dtype=wide.dtype, device=gradient.device)
        return total.index_add_(0, index, wide).to(gradient.dtype), None


def repeat_rows(source: Tensor, index: Tensor) -> Tensor:
    """[U, ...], int64 [R] -> [R, ...]: rows of ``source`` that may come several times, with the gradient of all of them."""
    return _Repeat.apply(source, index)


def _unfold(packed: Tensor, layout: SequenceLayout) -> Tensor:
    """[N, heads, D] -> [B, heads, L, D]"""
    if layout.padded_from_packed is not None:
        packed = _Reindex.apply(packed, layout.padded_from_packed, layout.packed_from_padded, None)
    return packed.view(layout.num_sequences, layout.max_length, *packed.shape[1:]).transpose(1, 2)


def _fold(padded: Tensor, layout: SequenceLayout) -> Tensor:
    """[B, heads, L, D] -> [N, heads, D]"""
    flat = padded.transpose(1, 2).reshape(-1, padded.shape[1], padded.shape[3])
    if layout.padded_from_packed is None:
        return flat
    return _Reindex.apply(flat, layout.packed_from_padded, layout.padded_from_packed, layout.is_padding)


def _padded_attention(query: Tensor, key: Tensor, value: Tensor, layout: SequenceLayout, scaling, window: int | None) -> Tensor:
    band = None
    if window is not None and window < layout.max_length:
        positions = torch.arange(layout.max_length, device=query.device)
        distance = positions[:, None] - positions[None, :]
        band = (distance >= 0) & (distance < window)
    output = F.scaled_dot_product_attention(
        _unfold(query, layout),
        _unfold(key, layout),
        _unfold(value, layout),
        attn_mask=band,
        is_causal=band is None,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return _fold(output, layout)


def _varlen_attention(query: Tensor, key: Tensor, value: Tensor, layout: SequenceLayout, scaling, window: int | None) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    lengths, longest = layout.cumulative_lengths, layout.max_length
    return varlen_attn(
        query,
        key,
        value,
        lengths,
        lengths,
        longest,
        longest,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    packed_layout: SequenceLayout | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """transformers' attention signature: query [1, heads, N, D], key and value [1, kv heads, N, D] -> [1, N, heads, D].

    ``packed_layout`` comes through the model's keyword arguments. Half precision on CUDA takes the variable-length
    kernel, which knows no float32.
    """
    if packed_layout is None or attention_mask is not None:
        raise ValueError(f"{PACKED_ATTENTION} needs packed_layout and no attention mask")
    packed = [part[0].transpose(0, 1) for part in (query, key, value)]
    half = query.is_cuda and query.dtype in (torch.bfloat16, torch.float16)
    attend = _varlen_attention if half else _padded_attention
    shared = packed_layout.shared
    if shared is None:
        return attend(*packed, packed_layout, scaling, sliding_window)[None], None
    # of a query that stands in several places one is read, so one has a gradient; of its key and value all are read
    queries = _Reindex.apply(packed[0], shared.repeated_from_shared, shared.shared_from_repeated, None)
    keys, values = (repeat_rows(part, shared.repeated_from_shared) for part in packed[1:])
    output = attend(queries, keys, values, packed_layout, scaling, sliding_window)
    return _Reindex.apply(output, shared.shared_from_repeated, shared.repeated_from_shared, shared.is_left_out)[None], None


AttentionInterface.register(PACKED_ATTENTION, packed_attention)
