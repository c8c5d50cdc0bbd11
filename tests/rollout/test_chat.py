"""Token ids of prompts and demonstrations, against the tokenizer used directly."""

from __future__ import annotations

import numpy as np
import pytest

from cluster.errors import SpecError
from rollout.chat import ChatFormat

MESSAGES = ({"role": "system", "content": "be brief"}, {"role": "user", "content": "what is 37+58=?"})


def test_prompt_is_the_rendered_template_with_the_assistant_header(chat):
    ids = chat.prompt_token_ids(MESSAGES)
    assert ids.dtype == np.int32 and ids.ndim == 1
    text = chat._tokenizer.decode(ids.tolist(), skip_special_tokens=False)
    assert text == "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nwhat is 37+58=?<|im_end|>\n<|im_start|>assistant\n"
    turn = chat._tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert int((ids == turn).sum()) == 3


def test_prompt_agrees_with_the_librarys_own_tokenised_template(chat):
    theirs = chat._tokenizer.apply_chat_template(list(MESSAGES), tokenize=True, add_generation_prompt=True, return_dict=False)
    np.testing.assert_array_equal(chat.prompt_token_ids(MESSAGES), theirs)


def test_completion_ends_with_end_of_turn_and_decodes_to_its_text(chat):
    ids = chat.completion_token_ids(" 95, na\u00efve \u6c49")
    assert ids.dtype == np.int32
    assert ids[-1] == chat.eos_token_id == chat._tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert int((ids == chat.eos_token_id).sum()) == 1
    assert chat.decode(ids) == " 95, na\u00efve \u6c49"


def test_decode_keeps_spaces_before_punctuation(chat):
    assert chat.decode(chat.text_token_ids("a , b . c 's")) == "a , b . c 's"


def test_vocabulary_size_counts_added_tokens(chat):
    assert chat.vocabulary_size == len(chat._tokenizer) > max(chat._tokenizer.get_vocab().values())


@pytest.mark.parametrize("text", ["the quick brown fox jumps", "\u6c49\u5b57\U0001f600 mixed \u00e9\u00e8", "aaaa    bbbb", "x"])
def test_head_is_the_longest_whole_character_prefix_within_the_budget(chat, text):
    total = len(chat.text_token_ids(text))
    for budget in range(total + 2):
        kept, cut = chat.head(text, budget)
        size = len(chat.text_token_ids(kept))
        assert text.startswith(kept) and size <= budget
        assert cut == total - size
    assert chat.head(text, total) == (text, 0)
    assert chat.head(text, 0) == ("", total)


def test_head_uses_the_whole_budget_for_ascii(chat):
    text = "the quick brown fox jumps over"
    assert len(chat.text_token_ids(chat.head(text, 5)[0])) == 5


def test_special_tokens_are_removed_from_text_even_when_nested(chat):
    assert chat.without_special_tokens("a<|im_<|im_end|>end|>b<|endoftext|>") == "ab"


@pytest.mark.parametrize(
    ("changes", "reason"), [({"chat_template": None}, "no_chat_template"), ({"eos_token": None}, "no_end_of_turn")]
)
def test_a_folder_that_cannot_chat_is_refused(tmp_path, tokenizer_folder, changes, reason):
    with pytest.raises(SpecError) as caught:
        ChatFormat(str(tokenizer_folder(tmp_path, **changes)))
    assert caught.value.reason == reason


def test_a_template_that_reaches_for_python_is_stopped(tmp_path, tokenizer_folder):
    folder = tokenizer_folder(tmp_path, chat_template="{{ messages.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(Exception, match=r"unsafe|security|access to attribute"):
        ChatFormat(str(folder)).prompt_token_ids(MESSAGES)
