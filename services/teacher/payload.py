"""How the teacher's whole distribution travels to the learner: by log-probabilities or by hidden states. No torch.

Legend: n tokens of the batch, V vocabulary, H' width of the teacher's hidden states (of a mixed teacher the sum of its
parts'). Both ways are exact, the learner's softmax included:

- ``logprobs``: float32 [n, V]. Bytes: 4 n V.
- ``hidden``: float32 [n, H'] for the tokens and [V, H'] once for the output matrix. Bytes: 4 (n H' + V H').

Invariant: hidden states are sent only where one output matrix serves all requests; teachers by domain have one each.
"""

from __future__ import annotations

from typing import Literal

Payload = Literal["hidden", "logprobs"]
FLOAT_BYTES = 4


def logprobs_bytes(num_tokens: int, vocabulary: int) -> int:
    return FLOAT_BYTES * num_tokens * vocabulary


def hidden_bytes(num_tokens: int, vocabulary: int, width: int) -> int:
    """With the output matrix, which moves with the teacher and is sent again for every batch."""
    return FLOAT_BYTES * (num_tokens + vocabulary) * width


def cheaper_payload(num_tokens: int, *, vocabulary: int, width: int, one_head: bool = True) -> Payload:
    """The way that sends fewer bytes; hidden states where both send the same."""
    if not one_head:
        return "logprobs"
    fewer = hidden_bytes(num_tokens, vocabulary, width) <= logprobs_bytes(num_tokens, vocabulary)
    return "hidden" if fewer else "logprobs"
