"""The learner: a policy in FSDP2 shards, its optimizer, one update at a time.

It knows no Ray, no job and no file but those it is told to write. Every method is collective unless it says otherwise.
The invariant: the gradient of a step is that of the loss over the global denominators, whatever the number of ranks,
micro-batches or chunks. FSDP2 would divide by the number of ranks; it is told to sum.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor

from cluster.errors import StageError
from cluster.messages import BatchShard, StepReport, TrainingSample
from trainer import state_files
from trainer.collectives import gather_vectors
from trainer.given_weights import finite_tensors, open_given
from trainer.modeling.loss_head import LossJob
from trainer.modeling.loss_rows import collate
from trainer.modeling.packed import pack_sequences
from trainer.modeling.policy_model import PolicyModel
from trainer.optimizer import MOMENTS, ShardedAdamW
from trainer.sequence_scores import SequenceScores, score_sequences
from trainer.sharding import join_group, local_shard, pick_device, release_gathered, shard_like, shard_policy, whole
from trainer.step_metrics import StepMetrics
from trainer.terms import StageLoss, stage_loss
from trainer.weight_anchor import WeightAnchor

CLIP_EPSILON = 1e-6
TIED_HEAD = "lm_head.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerSettings:
    """What a learner is made of; the same on every rank."""

    model_folder: str
    """Hugging Face folder of the base model, safetensors."""
    device: str
    """``cpu``, ``cuda`` (this rank's current device) or ``cuda:<n>``."""
    dtype: str
    """``float32`` or ``bfloat16``: of forward and backward. Masters, gradients' reduction and optimizer are float32."""
    micro_batch_tokens: int
    """Token budget of a forward pass that the learner cuts itself (``sequence_logprobs``)."""
    seed: int


class Learner:
    """One rank of a learner group. Makes a one-rank gloo group where torch.distributed is not initialised."""

    def __init__(self, settings: LearnerSettings, *, rank: int = 0, world_size: int = 1):
        self.settings, self.rank, self.world_size = settings, rank, world_size
        self.device = pick_device(settings.device)
        self._owns_group = join_group(rank, world_size, self.device)
        torch.manual_seed(settings.seed * 1_000_003 + rank)
        self.model = shard_policy(
            PolicyModel.load(settings.model_folder), device=self.device, dtype=settings.dtype, world_size=world_size
        )
        self._parameters = dict(self.model.model.named_parameters())
        self._is_tied = self.model.is_tied
        self._optimizer = ShardedAdamW(self._parameters)
        self._anchor = WeightAnchor(self._parameters)
        self._loss: StageLoss | None = None
        self._gradient_clip = math.inf
        self.keep_gradient = False
        """Set on every rank alike: ``last_gradient`` then holds the full gradient of the last step, before the clip."""
        self.last_gradient: dict[str, Tensor] = {}

    def close(self) -> None:
        """Leave the one-rank group that this learner made. Not collective."""
        if self._owns_group and dist.is_initialized():
            dist.destroy_process_group()
        self._owns_group = False

    # -- stages ------------------------------------------------------------------------------------------------------

    def begin_stage(
        self,
        composition: Any,
        optimizer: Any,
        *,
        temperature: float,
        reset_optimizer: bool,
        truncated_sampling: bool = False,
        resumed: bool = False,
    ) -> None:
        """Take a stage's loss, temperature, anchor and optimizer settings. Without reset the moments and their count stay.

        ``truncated_sampling``: rollouts were drawn with top_p or top_k. A stage that is ``resumed`` keeps the anchor that
        ``load_state`` brings; otherwise one at the stage's start is taken from the weights as they are now.
        """
        self._loss = stage_loss(composition, temperature=temperature, truncated_sampling=truncated_sampling)
        self._optimizer.configure(optimizer, reset=reset_optimizer)
        self._gradient_clip = optimizer.gradient_clip
        base_folder = Path(self.settings.model_folder)
        self._anchor.begin_stage(composition.l2_anchor, resumed=resumed, base=lambda: state_files.read_policy(base_folder))

    # -- one update --------------------------------------------------------------------------------------------------

    def step(self, shard: BatchShard) -> StepReport:
        """Forward, backward, clip, update. Nothing is applied when no row is live anywhere or a value is not finite."""
        if self._loss is None:
            raise ValueError("begin_stage must come before step")
        denominators, live_samples = self._agree(shard)
        metrics = self._new_metrics()
        started = time.perf_counter()
        if live_samples > 0:
            self._forward_backward(shard, denominators, metrics)
        values = self._reduce(metrics, live=live_samples > 0)
        middle = time.perf_counter()
        norm = math.sqrt(values.pop("gradient/squared"))
        if self._anchor.is_active:
            values |= self._anchor_metrics(values)
        finite = math.isfinite(norm) and math.isfinite(values["loss/total"])
        applied = finite and live_samples > 0
        values |= self._digest(values)
        values["optimizer/learning_rate"] = self._optimizer.learning_rate
        if applied:
            self._optimizer.step(gradient_scale=min(1.0, self._gradient_clip / (norm + CLIP_EPSILON)))
        self.model.zero_grad(set_to_none=True)
        values["gradient/norm"] = norm
        values["gradient/clipped"] = float(norm > self._gradient_clip)
        values["seconds/forward_backward"] = middle - started
        values["seconds/optimizer"] = time.perf_counter() - middle
        return StepReport(loss=values["loss/total"], gradient_norm=norm, applied=applied, finite=finite, metrics=values)

    def _agree(self, shard: BatchShard) -> tuple[dict[str, float], int]:
        """Global denominators and live samples, before any forward; raises on every rank where the shards do not match."""
        names = [term.name for term in self._loss.terms]
        unknown = set(shard.term_counts) - set(names)
        live = sum(len(samples) for samples in shard.micro_batches)
        own = [*(shard.term_counts.get(name, 0.0) for name in names), live, len(shard.micro_batches), float(bool(unknown))]
        everyone = gather_vectors(torch.tensor(own, dtype=torch.float64, device=self.device)).cpu()
        *counts, live, _, faults = everyone.sum(0).tolist()
        micro_batches = everyone[:, -2].long().tolist()
        if len(set(micro_batches)) > 1:
            raise ValueError(f"every rank needs the same number of micro-batches, got {micro_batches}; pad with empty tuples")
        if faults:
            raise ValueError(f"term_counts may name {names} only, rank {self.rank} got {sorted(shard.term_counts)}")
        return dict(zip(names, counts, strict=True)), int(live)

    def _new_metrics(self) -> StepMetrics:
        loss = self._loss
        own = ("rows/live", "samples/live", "tokens/trained", "tokens/forward", "gradient/squared")
        own += ("anchor/squared",) if self._anchor.is_active else ()
        digest = tuple(f"gradient/squared_of/{name}" for name in self._digest_names())
        return StepMetrics(
            sums=(*loss.sum_names, *own, *digest), means=loss.mean_names, maxima=loss.maximum_names, device=self.device
        )

    def _forward_backward(self, shard: BatchShard, denominators: dict[str, float], metrics: StepMetrics) -> None:
        teacher_head = None
        if shard.teacher_head is not None:
            teacher_head = torch.tensor(shard.teacher_head, device=self.device)  # a copy: what came through Ray is read-only
        for samples in shard.micro_batches:
            if samples:
                self._train_on(samples, denominators, metrics, teacher_head)
            else:
                self._train_on_nothing()

    def _train_on(self, samples: tuple[TrainingSample, ...], denominators, metrics: StepMetrics, teacher_head) -> None:
        packed, rows = collate(samples, self._loss, device=self.device)
        job = LossJob(loss=self._loss, rows=rows, denominators=denominators, metrics=metrics, teacher_head=teacher_head)
        self.model(packed, job).backward()
        metrics.add_sum("rows/live", rows.count)
        metrics.add_sum("samples/live", len(samples))
        metrics.add_sum("tokens/trained", sum(len(sample.prompt_token_ids) + len(sample.completion_token_ids) - 1 for sample in samples))
        metrics.add_sum("tokens/forward", packed.token_ids.shape[1])  # fewer: a prompt that comes again is read once

    def _train_on_nothing(self) -> None:
        """One token and a zero loss through every parameter, so that this rank's collectives match the others'."""
        token = np.zeros(1, dtype=np.int64)
        self.model(pack_sequences([(token, token)], device=self.device), lambda hidden, head: (hidden.sum() + head.sum()) * 0.0).backward()

    # -- gradient ----------------------------------------------------------------------------------------------------

    def _reduce(self, metrics: StepMetrics, *, live: bool) -> dict[str, float]:
        """Metrics and squared gradient norms over all ranks, in one collective; the anchor's pull is added first."""
        self.last_gradient = {}
        if self._anchor.is_active:
            metrics.add_sum("anchor/squared", self._anchor.squared_distance(pull=live))
        if live:
            gradients = {name: parameter.grad for name, parameter in self._parameters.items()}
            norms = torch._foreach_norm([local_shard(gradient) for gradient in gradients.values()], dtype=torch.float64)
            squares = {name: norm * norm for name, norm in zip(gradients, norms, strict=True)}
            metrics.add_sum("gradient/squared", torch.stack(list(squares.values())).sum())
            for name in self._digest_names():
                metrics.add_sum(f"gradient/squared_of/{name}", squares[name])
            if self.keep_gradient:
                self.last_gradient = {name: whole(gradient).clone() for name, gradient in gradients.items()}
        return metrics.reduce()

    def _anchor_metrics(self, values: dict[str, float]) -> dict[str, float]:
        squared = values.pop("anchor/squared")
        penalty = self._anchor.penalty(squared)
        return {"loss/l2_anchor": penalty, "loss/total": values["loss/total"] + penalty, "drift/l2_from_anchor": math.sqrt(squared)}

    def _digest_names(self) -> tuple[str, ...]:
        """The first, the middle and the last parameter: enough to tell two gradients apart."""
        names = list(self._parameters)
        return tuple(dict.fromkeys((names[0], names[len(names) // 2], names[-1])))

    def _digest(self, values: dict[str, float]) -> dict[str, float]:
        return {f"gradient/norm_of/{name}": math.sqrt(values.pop(f"gradient/squared_of/{name}")) for name in self._digest_names()}

    # -- log-probabilities -------------------------------------------------------------------------------------------

    def sequence_logprobs(
        self, prompts: list[np.ndarray], completions: list[np.ndarray], *, temperature: float
    ) -> list[np.ndarray]:
        """float32 [T] per completion, normalised over the full vocabulary; the same inputs and results on every rank."""
        return [scores.logprobs for scores in self.sequence_scores(prompts, completions, temperature=temperature)]

    def sequence_scores(
        self, prompts: list[np.ndarray], completions: list[np.ndarray], *, temperature: float, entropies: bool = False
    ) -> list[SequenceScores]:
        """Log-probabilities and, if wanted, entropies; the same inputs and results on every rank, the work shared out."""
        results = score_sequences(
            self.model,
            list(zip(prompts, completions, strict=True)),
            temperature=temperature,
            entropies=entropies,
            budget_tokens=self.settings.micro_batch_tokens,
            rank=self.rank,
            world_size=self.world_size,
            device=self.device,
        )
        release_gathered(self.model)
        return results

    # -- weights and state -------------------------------------------------------------------------------------------

    def named_full_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """(checkpoint name, whole fp32 tensor) in a fixed order; a tied head comes last, under its own name.

        Every rank must iterate to the end. Tensors are the caller's: never views of the learner's storage.
        """
        for name, parameter in self._parameters.items():
            full = whole(parameter.detach()).clone() if self.world_size == 1 else whole(parameter.detach())
            yield name, full
            if self._is_tied and parameter is self._embedding:
                tied = full
        if self._is_tied:
            yield TIED_HEAD, tied

    @property
    def _embedding(self) -> Tensor:
        return self.model.model.get_input_embeddings().weight

    def parameter_metadata(self) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
        """(name, dtype, shape) in the order of ``named_full_parameters``; not collective."""
        metadata = [(name, torch.float32, tuple(parameter.shape)) for name, parameter in self._parameters.items()]
        if self._is_tied:
            metadata.append((TIED_HEAD, torch.float32, tuple(self._embedding.shape)))
        return metadata

    def save_policy(self, folder: str | Path) -> None:
        """Write a Hugging Face folder (float32); the lead writes, every rank returns when it is there."""
        tensors = self._gathered(self._parameters.items())
        if self.rank == 0:
            state_files.write_policy(Path(folder), Path(self.settings.model_folder), tensors.items())
        dist.barrier()

    def load_policy(self, folder: str | Path) -> None:
        """Weights only, from a Hugging Face folder; every rank reads its shards. Optimizer state stays."""
        self._take_weights(state_files.read_policy(Path(folder)), where=str(folder))

    def take_policy(self, folder: str | Path) -> None:
        """Begin anew at weights that another trainer wrote: a Hugging Face folder, of any float dtype and number of shards.

        Optimizer, its count, stage and anchor are forgotten. Raises StageError ``policy_unusable`` on every rank where the folder
        does not fit on one of them, before any weight has changed.
        """
        shapes = {name: tuple(parameter.shape) for name, parameter in self._parameters.items()}
        tied = (TIED_HEAD, next(name for name, value in self._parameters.items() if value is self._embedding)) if self._is_tied else None
        found, problem = None, None
        try:
            found = open_given(Path(folder), shapes, tied=tied)
            for _ in finite_tensors(found, self._parameters):
                pass
        except StageError as error:
            problem = error
        except (OSError, SafetensorError) as error:  # raised past the vote, it would leave the other ranks waiting in it
            problem = StageError(f"checkpoint {folder} cannot be read: {type(error).__name__}: {error}", reason="policy_unusable")
        faults = gather_vectors(torch.tensor([float(problem is not None)], device=self.device)).flatten().tolist()
        if any(faults):
            raise problem or StageError(f"checkpoint {folder} cannot be read by rank {faults.index(1.0)}", reason="policy_unusable")
        release_gathered(self.model)
        self._take_weights(((name, found.read(name)) for name in self._parameters), where=str(folder))
        self._optimizer.restore({}, 0)
        self._anchor.begin_stage(None, resumed=False, base=tuple)
        self._loss = None

    def save_state(self, folder: str | Path) -> None:
        """Policy, optimizer, random state and the stage's own anchor, for ``load_state`` on any number of ranks."""
        folder = Path(folder)
        policy = self._gathered(self._parameters.items())
        moments = self._gathered(
            (f"{moment}.{name}", self._optimizer.moment(name, moment)) for name in self._parameters for moment in MOMENTS
        )
        anchor = self._gathered(self._anchor.tensors()) if self._anchor.is_saved else None
        rng = gather_vectors(state_files.rng_state(self.device).to(self.device)).cpu()
        if self.rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            state_files.write_tensors(folder / "policy.safetensors", policy)
            state_files.write_tensors(folder / "optimizer.safetensors", moments)
            if anchor is not None:
                state_files.write_tensors(folder / state_files.ANCHOR_FILE, anchor)
            state_files.write_tensors(folder / "rng.safetensors", {f"rank{rank}": state.clone() for rank, state in enumerate(rng)})
            record = {"format": state_files.STATE_FORMAT, "optimizer_steps": self._optimizer.steps_taken, "ranks": self.world_size}
            state_files.write_json(folder / "state.json", record)
        dist.barrier()

    def load_state(self, folder: str | Path) -> None:
        """Undo ``save_state``; the number of ranks may differ from the one that saved."""
        folder = Path(folder)
        record = json.loads((folder / "state.json").read_text())
        if record["format"] != state_files.STATE_FORMAT:
            raise ValueError(f"{folder}: state format {record['format']}, this version reads {state_files.STATE_FORMAT}")
        self._take_weights(state_files.read_tensors(folder / "policy.safetensors"), where=str(folder))
        moments = {}
        for name, tensor in state_files.read_tensors(folder / "optimizer.safetensors"):
            moment, _, parameter = name.partition(".")
            moments[parameter, moment] = tensor
        self._optimizer.restore(moments, record["optimizer_steps"])
        if (folder / state_files.ANCHOR_FILE).is_file():
            self._anchor.restore(state_files.read_tensors(folder / state_files.ANCHOR_FILE))
        else:
            self._anchor.forget()
        rng = dict(state_files.read_tensors(folder / "rng.safetensors"))
        state_files.restore_rng(rng[f"rank{self.rank % record['ranks']}"], self.device)

    def _gathered(self, tensors) -> dict[str, Tensor]:
        """Whole tensors on the lead's CPU, one gathered at a time; empty on the other ranks."""
        result = {}
        for name, tensor in tensors:
            full = whole(tensor.detach())
            if self.rank == 0:
                result[name] = full.cpu().contiguous()
        return result

    @torch.no_grad()
    def _take_weights(self, tensors: Iterator[tuple[str, Tensor]], *, where: str) -> None:
        missing = set(self._parameters)
        for name, full in tensors:
            if name == TIED_HEAD and self._is_tied:
                continue
            if name not in self._parameters or full.shape != self._parameters[name].shape:
                raise ValueError(f"{where}: tensor {name} {tuple(full.shape)} does not fit this model")
            parameter = self._parameters[name]
            local_shard(parameter).copy_(shard_like(full, parameter))
            missing.discard(name)
        if missing:
            raise ValueError(f"{where}: {len(missing)} tensors are missing, the first is {min(missing)}")
