"""Weights that another trainer wrote, held against the model that is to take them before any of its own is touched.

Invariant: a folder fits whole or is refused with the tensor, what it is and what the model has. Headers and maps only: one
tensor is in memory at a time.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from cluster.errors import StageError
from trainer.diagnostics.weight_files import DriftRefused, WeightFiles, open_weights

BUFFER = re.compile(r"rotary_emb\.inv_freq$")
"""Tensors that older versions of transformers wrote although they follow from the configuration."""
REASON = "policy_unusable"


def open_given(folder: Path, shapes: Mapping[str, tuple[int, ...]], *, tied: tuple[str, str] | None) -> WeightFiles:
    """The folder's weights, which have the names and shapes of ``shapes`` and are floats. Raises StageError ``policy_unusable``.

    ``tied``: the names of a head that is the embedding, and of the embedding; where the folder has both they must be equal.
    """
    try:
        found = open_weights(folder)
    except DriftRefused as error:
        raise StageError(f"checkpoint {folder}: {error.field}: {error.detail}", reason=REASON) from None
    head = tied[0] if tied is not None else None
    names = {name for name in found.files if name != head and not BUFFER.search(name)}
    for words, lacking in (("lacks", sorted(shapes.keys() - names)), ("has, and the model has not,", sorted(names - shapes.keys()))):
        if lacking:
            raise StageError(f"checkpoint {folder} {words} {len(lacking)} tensors; the first is {lacking[0]}", reason=REASON)
    for name in sorted(names):
        if found.shapes[name] != tuple(shapes[name]):
            raise StageError(f"checkpoint {folder}: {name} is {list(found.shapes[name])}, the model's is {list(shapes[name])}", reason=REASON)
    if tied is not None and head in found.files and not _equal(found, *tied):
        detail = f"{head} differs from {tied[1]}, which the model's configuration ties it to (tie_word_embeddings)"
        raise StageError(f"checkpoint {folder}: {detail}", reason=REASON)
    return found


def _equal(found: WeightFiles, one: str, other: str) -> bool:
    return found.shapes[one] == found.shapes[other] and torch.equal(found.read(one), found.read(other))


def finite_tensors(found: WeightFiles, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor as stored) one at a time. Raises StageError ``policy_unusable`` at one with a value that is not finite."""
    for name in names:
        tensor = found.read(name)
        if not bool(torch.isfinite(tensor).all()):
            raise StageError(f"checkpoint {found.path}: {name} has values that are not finite", reason=REASON)
        yield name, tensor
