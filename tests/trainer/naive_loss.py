"""The loss by its definitions, slow and plain: what the loss head is held to, and what the benchmark compares it with.

``by_rows`` goes row by row and term by term over any samples and terms; ``at_once`` is what one would write first for one
term over all rows, with the whole [R, V] in autograd's graph. Neither shares code with ``trainer``.
"""

from __future__ import annotations

import math

import torch


def by_rows(terms, samples, hidden, head, teacher_head, *, temperature, denominators, top_k_of_policy=True):
    """-> (loss, dh, dW, {term: its part}); in the precision of ``hidden``."""
    hidden, head = hidden.detach().clone().requires_grad_(), head.detach().clone().requires_grad_()
    total, by_term, row = torch.zeros((), dtype=hidden.dtype), {term.name: 0.0 for term in terms}, 0
    for sample in samples:
        first_row, own_rows = row, []
        for token in range(len(sample.completion_token_ids)):
            if any(values[token] != 0 for values in sample.term_weights.values()):
                own_rows.append((token, torch.log_softmax(head @ hidden[row] / temperature, dim=0)))
                row += 1
        assert row - first_row == len(own_rows)
        for term in terms:
            if term.name not in sample.term_weights:
                continue
            importance = _importance(term, sample, own_rows)
            for token, logp in own_rows:
                weight = float(sample.term_weights[term.name][token])
                if weight == 0.0:
                    continue
                value = _value(term, sample, token, logp, teacher_head, temperature)
                part = value * importance[token] * weight / denominators[term.name]
                by_term[term.name] += part.item()
                total = total + term.coefficient * part
    total.backward()
    return total.detach(), hidden.grad, head.grad, by_term


def _before(sample, token, logp):
    own = logp[int(sample.completion_token_ids[token])].item()
    return own if sample.old_logprobs is None else float(sample.old_logprobs[token])


def _importance(term, sample, own_rows):
    weights = {}
    for token, logp in own_rows:
        now = logp[int(sample.completion_token_ids[token])].item()
        # a policy gradient's own ratio goes from before the update to now; every other term is weighed from the rollout to now
        before = _before(sample, token, logp) if term.objective.kind == "policy_gradient" else now
        ratio = math.exp(before - float(sample.rollout_logprobs[token]))
        weights[token] = 1.0 if term.importance_cap is None else min(ratio, term.importance_cap)
    if term.importance_cap is not None and term.importance_level == "sequence_mean":
        seen = [weights[token] for token in weights if sample.term_weights[term.name][token] != 0]
        return dict.fromkeys(weights, sum(seen) / max(len(seen), 1))
    return weights


def _value(term, sample, token, logp, teacher_head, temperature):
    spec, kind, own = term.objective, term.objective.kind, logp[int(sample.completion_token_ids[token])]
    if kind == "cross_entropy":
        return -own
    if kind == "entropy_bonus":
        return (logp.exp() * logp).sum()
    if kind == "reference_kl":
        difference = own - float(sample.reference_logprobs[token])
        return difference**2 / 2 if spec.estimator == "k2" else torch.exp(-difference) - 1 + difference
    if kind == "policy_gradient":
        old = float(sample.rollout_logprobs[token]) if term.importance_cap is None else _before(sample, token, logp)
        return _policy_gradient(spec, (own - old).exp(), float(sample.term_advantages[term.name][token]))
    if term.support.kind == "sampled":
        difference = own.item() - float(sample.teacher_logprobs[token])
        if spec.log_ratio_clip is not None:
            difference = max(-spec.log_ratio_clip, min(spec.log_ratio_clip, difference))
        return difference * own if kind == "reverse_kl" else (math.exp(-difference) - 1) * -own
    logq = _teacher(sample, token, teacher_head, temperature, logp.dtype)
    if term.support.kind == "full":
        return divergence(kind, logp, logq, spec)
    return _on_top_k(term, sample, token, logp, logq, own)


def _policy_gradient(spec, ratio, advantage):
    low = 0.0 if spec.clip_low is None else 1 - spec.clip_low
    high = math.inf if spec.clip_high is None else 1 + spec.clip_high
    gain = torch.minimum(ratio * advantage, ratio.clamp(low, high) * advantage)
    if spec.dual_clip is not None and advantage < 0:
        gain = gain.clamp(min=spec.dual_clip * advantage)
    return -gain


def _teacher(sample, token, teacher_head, temperature, dtype):
    if sample.teacher_full_logprobs is not None:
        return torch.from_numpy(sample.teacher_full_logprobs[token]).to(dtype)
    if sample.teacher_hidden is None:
        return None
    return torch.log_softmax(teacher_head @ torch.from_numpy(sample.teacher_hidden[token]).to(dtype) / temperature, 0)


def _on_top_k(term, sample, token, logp, logq, own):
    support, target = term.support, int(sample.completion_token_ids[token])
    if support.support_from == "policy":
        ids = logp.topk(support.k).indices.tolist()
        ids += [target] if support.join_sampled and target not in ids else []
        q = {vocabulary_id: logq[vocabulary_id] for vocabulary_id in ids}
    else:
        given = sample.support_ids[token].tolist()
        q = dict(zip(given, torch.from_numpy(sample.teacher_support_logprobs[token]).to(logp.dtype), strict=True))
        ids = list(dict.fromkeys(given))
    p_on, q_on = logp[ids], torch.stack([q[vocabulary_id] for vocabulary_id in ids])
    if support.tail == "bucket":
        p_on, q_on = (torch.cat((values, (1 - values.exp().sum()).log()[None])) for values in (p_on, q_on))
    if support.tail == "renormalise":
        p_on, q_on = (values - values.exp().sum().log() for values in (p_on, q_on))
    value = divergence(term.objective.kind, p_on, q_on, term.objective)
    if support.tail == "sampled_correction" and target not in ids:
        value = value + (own - float(sample.teacher_logprobs[token])) * own.exp() / own.exp().detach()
    return value


def divergence(kind, logp, logq, spec):
    """[..., K] -> [...] by the definitions; gradient by autograd."""
    ratio = logp - logq
    if spec.log_ratio_clip is not None:
        ratio = ratio.clamp(-spec.log_ratio_clip, spec.log_ratio_clip)
    p, q = logp.exp(), logq.exp()
    if kind == "forward_kl":
        entries = -q * ratio
    elif kind == "reverse_kl":
        entries = p * ratio
    else:
        w = spec.weight
        entries = -(1 - w) * p * ((1 - w) + w * torch.exp(-ratio)).log() - w * q * ((1 - w) * torch.exp(ratio) + w).log()
    if spec.entry_clip is not None:
        entries = entries.clamp(max=spec.entry_clip)
    value = entries.sum(-1)
    return value if spec.token_clip is None else value.clamp(max=spec.token_clip)


def at_once(kind, spec, hidden, head, teacher_hidden, teacher_head, *, support_ids=None, token_ids=None):
    """[R] values of one divergence over all rows, as one would write it first; gradient by autograd."""
    policy_logits, teacher_logits = (states @ matrix.T for states, matrix in ((hidden, head), (teacher_hidden, teacher_head)))
    if hidden.dtype == torch.bfloat16:
        policy_logits, teacher_logits = policy_logits.float(), teacher_logits.float()
    logp, logq = torch.log_softmax(policy_logits, -1), torch.log_softmax(teacher_logits, -1)
    if token_ids is not None:
        own, other = (values.gather(1, token_ids[:, None])[:, 0] for values in (logp, logq))
        return (own - other).detach() * own if kind == "reverse_kl" else (other - own).detach().expm1() * -own
    if support_ids is not None:
        logp, logq = (values.gather(1, support_ids) for values in (logp, logq))
        logp, logq = (torch.cat((values, (1 - values.exp().sum(-1, keepdim=True)).log()), -1) for values in (logp, logq))
        return divergence(kind, logp, logq, spec)
    if kind == "jensen_shannon":
        w = spec.weight
        mixture = torch.logaddexp(logp + math.log(1 - w), logq + math.log(w))
        return (1 - w) * (logp.exp() * (logp - mixture)).sum(-1) + w * (logq.exp() * (logq - mixture)).sum(-1)
    return divergence(kind, logp, logq, spec)
