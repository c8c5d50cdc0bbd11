"""The committed model folder: that it loads, is tied, is what its card says, and has a teacher."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rollout.chat import ChatFormat
from services.pebble.build import build
from services.pebble.measure import measure
from services.pebble.mixtures import DEMO, RIVAL, RIVALS

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "models" / "pebble"
RIVALS_FOLDER = FOLDER.with_name("pebble-rivals")


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(FOLDER)


def test_it_is_a_small_tied_qwen3_in_float32(model):
    assert type(model).__name__ == "Qwen3ForCausalLM"
    assert model.dtype == torch.float32
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert 700_000 < sum(parameter.numel() for parameter in model.parameters()) < 1_300_000
    assert model.config.max_position_embeddings == 2048


def test_folder_holds_safetensors_and_no_pickle():
    names = {path.name for path in FOLDER.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "README.md"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl"))]
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 5_000_000


def test_turns_end_with_the_end_of_turn_everywhere(model):
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert tokenizer.eos_token_id == model.config.eos_token_id == model.generation_config.eos_token_id == end
    assert ChatFormat(str(FOLDER)).eos_token_id == end


def test_prompts_with_context_fit_the_model():
    from rollout.context.solution import solution_prompt

    chat = ChatFormat(str(FOLDER))
    for domain in DEMO.domains(3).values():
        for index in range(100):
            problem = domain.problem("evaluation", index)
            assert len(chat.completion_token_ids(problem.solution)) <= 32
            assert len(solution_prompt(problem, chat)) + 32 <= 128


@pytest.mark.parametrize(
    ("folder", "mixture", "names"),
    [(FOLDER, DEMO, ("arithmetic", "strings", "tool_call")), (RIVALS_FOLDER, RIVAL, RIVALS)],
    ids=["pebble", "pebble-rivals"],
)
def test_it_is_a_fair_miniature(folder, mixture, names):
    """What the study's plan asks of its domains: room to learn, and a teacher."""
    rows = measure(folder, {name: mixture.domains(21)[name] for name in names}, problems=128, wrong=mixture.wrong)
    assert [row.domain for row in rows] == list(names)
    for row in rows:
        assert 0.25 <= row.plain <= 0.75, row
        assert row.with_solution - row.plain >= 0.15, row
        assert row.truncated < 0.05, row


def test_the_card_states_scores_of_every_domain_within_the_bounds():
    card = (FOLDER / "README.md").read_text()
    for domain in ("arithmetic", "strings", "tool_call"):
        cells = re.search(rf"^\| {domain} \|(.*)\|$", card, re.MULTILINE).group(1).split("|")
        plain, with_solution = float(cells[0]), float(cells[1])
        assert 0.30 <= plain <= 0.70
        assert with_solution >= plain + 0.15


def test_a_short_build_writes_a_loadable_folder(tmp_path):
    said: list[str] = []
    build(tmp_path / "pebble", steps=3, problems=4, report=said.append)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "pebble")
    assert loaded.config.tie_word_embeddings
    assert "loss" in said[0]
    assert "| arithmetic |" in (tmp_path / "pebble" / "README.md").read_text()
