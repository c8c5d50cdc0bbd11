"""Pebble's tokenizer and chat template: what is a token, and that text survives the round trip."""

from __future__ import annotations

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout.chat import ChatFormat
from services.pebble.tokenizer import CHARACTERS, JSON_MARKS, VOCABULARY_SIZE, save_tokenizer

CALL = '{"tool":"light","args":{"room":"study","pct":80}}'


@pytest.fixture(scope="module")
def chat(tmp_path_factory) -> ChatFormat:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return ChatFormat(str(folder))


def test_every_printable_character_is_a_token_of_its_own(chat):
    assert set(CHARACTERS) == set(string.printable) - set("\t\r\x0b\x0c")
    ids = [chat.text_token_ids(character) for character in CHARACTERS]
    assert all(len(one) == 1 for one in ids)
    assert len({int(one[0]) for one in ids}) == len(CHARACTERS)


@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet=CHARACTERS, max_size=80))
def test_text_survives_the_round_trip(chat, text):
    assert chat.decode(chat.text_token_ids(text)) == text


@pytest.mark.parametrize("mark", JSON_MARKS)
def test_marks_of_json_are_single_tokens(chat, mark):
    assert len(chat.text_token_ids(mark)) == 1


def test_a_tool_call_is_short_and_can_be_spelled_in_another_way(chat):
    ids = chat.completion_token_ids(CALL)
    assert (len(ids), ids[-1], chat.decode(ids)) == (26, chat.eos_token_id, CALL)
    spelled = [int(chat.text_token_ids(character)[0]) for character in CALL]
    assert chat.decode(spelled) == CALL
    assert len(spelled) == len(CALL) > len(chat.text_token_ids(chat.decode(spelled)))


def test_the_chat_template_is_qwens(chat):
    ids = chat.prompt_token_ids([{"role": "system", "content": "be short"}, {"role": "user", "content": "1+1=?"}])
    rendered = "<|im_start|>system\nbe short<|im_end|>\n<|im_start|>user\n1+1=?<|im_end|>\n<|im_start|>assistant\n"
    assert list(ids) == list(chat.text_token_ids(rendered))
    assert chat.decode(ids) == "be short\n1+1=?\n"
    assert len(ids) == len("be short") + len("1+1=?") + 7, "a turn costs its header, the end of turn and a newline"


def test_the_vocabulary_fits_the_model(chat):
    assert chat.vocabulary_size <= VOCABULARY_SIZE


def test_what_is_not_ascii_is_one_unknown_token(chat):
    assert len(set(map(int, chat.text_token_ids("\u00e9\u4e2d")))) == 1
