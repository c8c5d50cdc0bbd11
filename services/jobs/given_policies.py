"""Checkpoints that stages are given instead of being trained: held against the base model before the job is accepted.

Invariant: of such a folder only ``config.json``, ``tokenizer.json`` and the safetensors files are ever opened, by their headers
here; the optimizer's pickles that other trainers leave beside them are neither read nor a reason to refuse. No torch.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.spec.job import ModelSpec, ResolvedStage
from cluster.spec.teachers import ModelFolder, external_key
from services.jobs.faults import Fault, pointer, show
from services.jobs.model_files import check_model, file_sha256, read_json, safetensors_header, safetensors_problem

INDEX = "model.safetensors.index.json"
ARCHITECTURE = (
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "tie_word_embeddings",
    "hidden_act",
    "rms_norm_eps",
    "rope_theta",
)
"""Of ``config.json``, compared where both state them: what makes the same tensors another function."""
BUFFER = re.compile(r"rotary_emb\.inv_freq$")
"""Tensors that older versions of transformers wrote although they follow from the configuration."""
TIED_HEAD = "lm_head.weight"
FLOATS = ("F64", "F32", "F16", "BF16")


def check_given_policies(
    stages: tuple[ResolvedStage, ...], base_dir: Path, base_folder: str | None
) -> tuple[list[Fault], dict[str, Any]]:
    """Faults of every given checkpoint, and ``policies`` (key: folder), ``policy_sha256``, ``policy_revisions`` for the row.

    ``base_folder`` is the base model's where that is sound and on this machine, otherwise the two are not compared here.
    """
    faults: list[Fault] = []
    resolved: dict[str, Any] = {}
    for stage in stages:
        if stage.policy is None:
            continue
        at = pointer(("stages", stage.index, "policy", "id" if stage.policy.path is None else "path"))
        found, known = _check_one(stage.policy, base_dir, base_folder)
        faults += [Fault(at, detail, code) for detail, code in found]
        for name, value in known.items():
            resolved.setdefault(name, {})[external_key(stage.policy)] = value
    return faults, resolved


def _check_one(policy: ModelFolder, base_dir: Path, base_folder: str | None) -> tuple[list[tuple[str, str]], dict[str, str]]:
    """(detail, code) of each fault, and what is known of the checkpoint."""
    if policy.path is None:
        found, _, known = check_model(ModelSpec(id=policy.id, revision=policy.revision), base_dir)
        return [(fault.detail, fault.code) for fault in found], {"policy_revisions": known["model_revision"]} if "model_revision" in known else {}
    folder = base_dir / policy.path
    found = folder_faults(folder, policy.path)
    known = {"policies": str(folder.resolve())}
    if not found and base_folder is not None:
        different = difference(Path(base_folder), folder)
        found = [] if different is None else [(f"checkpoint {policy.path} {different[0]}", different[1])]
    return found, known if found else known | {"policy_sha256": given_sha256(folder)}


def folder_faults(folder: Path, name: str) -> list[tuple[str, str]]:
    """What keeps a folder from being read at all: nothing there, no configuration, no whole safetensors."""
    if not folder.is_dir():
        return [(f"checkpoint folder {show(name)} {'is not a folder' if folder.exists() else 'does not exist'}", "model_not_found")]
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        return [(f"checkpoint {name} is an adapter; merge it into its base model and give that folder", "model_incomplete")]
    config = read_json(folder / "config.json")
    if config is None:
        return [(f"checkpoint {name} has no config.json that is a JSON object", "model_incomplete")]
    if "auto_map" in config:
        return [(f"checkpoint {name} asks for remote code (auto_map); only architectures that transformers has are loaded", "remote_code")]
    files = weight_files(folder)
    if not files:
        return [(f"checkpoint {name} has no model.safetensors and no {INDEX}; weights in other formats (pickles) are never read", "model_incomplete")]
    found = [(f"checkpoint {name}: {file.name} is named by {INDEX} and missing", "model_incomplete") for file in files if not file.is_file()]
    problems = [(file.name, safetensors_problem(file)) for file in files if file.is_file()]
    return found + [(f"checkpoint {name}: {file} {problem}", "model_damaged") for file, problem in problems if problem]


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that make up the model: those of the index, else ``model.safetensors``, else the only one."""
    index = read_json(folder / INDEX) if (folder / INDEX).is_file() else None
    if index is not None:
        weight_map = index.get("weight_map")
        return [folder / Path(name).name for name in sorted({str(name) for name in weight_map.values()})] if isinstance(weight_map, dict) else []
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    found = sorted(path for path in folder.glob("*.safetensors") if not path.name.startswith("adapter_"))
    return found if len(found) == 1 else []


def given_sha256(folder: Path) -> str:
    """One hash over what is read of a checkpoint's folder."""
    total = hashlib.sha256()
    for path in (folder / "config.json", folder / "tokenizer.json", folder / INDEX, *weight_files(folder)):
        if path.is_file():
            total.update(f"{path.name}\0{file_sha256(path)}\n".encode())
    return total.hexdigest()


def difference(base: Path, given: Path) -> tuple[str, str] | None:
    """What first tells a checkpoint from the base model, in words with both values, and the fault's code; None where they are alike."""
    ours, theirs = read_json(base / "config.json") or {}, read_json(given / "config.json") or {}
    for field in ARCHITECTURE:
        one, other = _stated(ours, field), _stated(theirs, field)
        if one is not None and other is not None and one != other:
            return f"has another architecture than the base model: {field} is {show(other)}, the base model's is {show(one)}", "architecture_differs"
    return _tensors_differ(base, given, tied=_stated(ours, "tie_word_embeddings") is True) or _vocabulary_differs(base, given)


def _stated(config: Mapping[str, Any], field: str) -> Any:
    text = config["text_config"] if isinstance(config.get("text_config"), dict) else config
    if field == "rope_theta" and isinstance(text.get("rope_parameters"), dict):  # where newer versions of transformers have it
        return text["rope_parameters"].get(field, text.get(field))
    return text.get(field, config.get(field))


def _tensors_differ(base: Path, given: Path, *, tied: bool) -> tuple[str, str] | None:
    """Names, shapes and dtypes by the headers."""
    ours, theirs = (_tensors(folder, tied=tied) for folder in (base, given))
    missing, strange = sorted(ours.keys() - theirs.keys()), sorted(theirs.keys() - ours.keys())
    if missing:
        return f"lacks {len(missing)} of the base model's {len(ours)} tensors, the first is {missing[0]}", "weights_differ"
    if strange:
        return f"has {len(strange)} tensors that the base model has not, the first is {strange[0]}", "weights_differ"
    for name in sorted(ours):
        (_, shape), (dtype, other) = ours[name], theirs[name]
        if other != shape:
            return f"has {name} of shape {other}, the base model's is {shape}", "weights_differ"
        if dtype not in FLOATS:
            return f"has {name} in {dtype}; allowed are {', '.join(FLOATS)}: quantised weights are not read", "weights_differ"
    return None


def _tensors(folder: Path, *, tied: bool) -> dict[str, tuple[str, list[int]]]:
    found = {}
    for path in weight_files(folder):
        for name, entry in safetensors_header(path).items():
            if name != "__metadata__" and not BUFFER.search(name) and not (tied and name == TIED_HEAD):
                found[name] = (entry["dtype"], entry["shape"])
    return found


def _vocabulary_differs(base: Path, given: Path) -> tuple[str, str] | None:
    """Ids that spell something else. A checkpoint without a tokenizer is read with the base model's, as all of them are."""
    from services.teacher.vocabulary import read_vocabulary

    if not (given / "tokenizer.json").is_file():
        return None
    try:
        ours, theirs = (read_vocabulary(folder).spelling for folder in (base, given))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"has a tokenizer that cannot be compared with the base model's: {type(error).__name__}: {error}", "vocabulary_differs"
    differing = sorted(token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token))
    if not differing:
        return None
    first = differing[0]
    detail = (
        f"has another vocabulary than the base model: {len(differing)} ids differ, the first is {first}, {show(theirs.get(first))} there and "
        f"{show(ours.get(first))} in the base model"
    )
    return detail, "vocabulary_differs"
