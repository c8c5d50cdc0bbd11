"""The text of every token: together always the decoded text."""

from __future__ import annotations

import json
import random

import pytest

from rollout.chat import ChatFormat
from rollout.token_pieces import byte_level_pieces, prefix_pieces, window_pieces


def pieces_of(chat, text):
    return chat.token_pieces(chat.text_token_ids(text))


def test_pieces_of_plain_text_are_the_tokens(chat):
    ids = chat.text_token_ids("what is 37+58=?")
    assert chat.token_pieces(ids) == [chat.decode([token]) for token in ids.tolist()]


def test_a_character_of_several_tokens_belongs_to_the_last_of_them(chat):
    assert pieces_of(chat, "a\u6c49b") == ["a", "", "", "\u6c49", "b"]
    assert pieces_of(chat, "\U0001f600") == ["", "", "", "\U0001f600"]


def test_special_tokens_spell_nothing(chat):
    ids = chat.completion_token_ids("95")
    assert chat.token_pieces(ids)[-1] == "" and "".join(chat.token_pieces(ids)) == "95"
    turn = chat._tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert chat.token_pieces([turn, *ids[:-1].tolist(), turn])[0] == ""


def test_any_ids_spell_their_decoded_text_whichever_way_they_are_read(chat):
    """Random ids: broken characters, special tokens between the bytes of one, ids beyond the vocabulary."""
    draw = random.Random(0)
    for _ in range(200):
        ids = [draw.randrange(chat.vocabulary_size) for _ in range(draw.randrange(1, 40))]
        text, pieces = chat.decode(ids), chat.token_pieces(ids)
        assert "".join(pieces) == text and len(pieces) == len(ids)
        fast = next(iter(chat._candidate_pieces(ids)))
        assert pieces == fast  # the linear way suffices for a byte-level vocabulary
        assert "".join(prefix_pieces(ids, chat.decode)) == text
    assert chat.token_pieces([]) == []
    assert chat.token_pieces([chat.vocabulary_size + 5]) == [""]


def test_the_three_ways_agree_on_whole_characters(chat):
    text = "na\u00efve \u6c49\u5b57 \U0001f600 the quick brown fox <think>"
    ids = chat.text_token_ids(text).tolist()
    fast = byte_level_pieces(chat._tokenizer.convert_ids_to_tokens(ids))
    assert fast == window_pieces(ids, chat.decode) == prefix_pieces(ids, chat.decode)
    assert "".join(fast) == text


def test_a_long_completion_is_read_in_time(chat):
    import time

    ids = chat.text_token_ids("the quick brown fox \u6c49 " * 800)
    start = time.perf_counter()
    assert len(chat.token_pieces(ids)) == len(ids) > 8000
    assert time.perf_counter() - start < 1.0


@pytest.fixture(scope="module")
def metaspace(tmp_path_factory):
    """A vocabulary as SentencePiece's, with spaces as underscores and bytes as tokens of their own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("metaspace")
    words = [
        "<unk>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "\u2581the",
        "\u2581",
        "fox",
        "x",
        "f",
        "o",
        "t",
        "h",
        "e",
    ]
    model = models.BPE(vocab={word: place for place, word in enumerate(words)}, merges=[], unk_token="<unk>", byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")
    fast.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    fast.save_pretrained(folder)
    return ChatFormat(str(folder))


def test_a_vocabulary_that_is_not_byte_level(metaspace):
    token = metaspace._tokenizer.convert_tokens_to_ids
    ids = [
        token("\u2581the"),
        token("\u2581"),
        token("fox"),
        *(token(f"<0x{byte:02X}>") for byte in "\u6c49".encode()),
        token("\u2581the"),
    ]
    assert metaspace.decode(ids) == "the fox\u6c49 the"
    assert metaspace.token_pieces(ids) == ["the", " ", "fox", "", "", "\u6c49", " the"]
    draw = random.Random(1)
    for _ in range(100):
        ids = [draw.randrange(2, metaspace.vocabulary_size) for _ in range(30)]
        assert "".join(metaspace.token_pieces(ids)) == metaspace.decode(ids)


# -- ids that are special --------------------------------------------------------------------------------------------


def test_special_and_end_ids(chat, tmp_path, tokenizer_folder):
    ids = {token: chat._tokenizer.convert_tokens_to_ids(token) for token in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")}
    assert chat.special_token_ids == frozenset(ids.values())
    assert chat.end_token_ids == frozenset([ids["<|im_end|>"]])
    folder = tokenizer_folder(tmp_path)
    for file, ends, wanted in (
        ("config.json", 320, {ids["<|im_end|>"], 320}),
        ("generation_config.json", [ids["<|endoftext|>"], ids["<|im_end|>"]], {ids["<|endoftext|>"], ids["<|im_end|>"]}),
        ("generation_config.json", None, {ids["<|im_end|>"]}),
    ):
        (folder / file).write_text(json.dumps({"eos_token_id": ends}))
        assert ChatFormat(str(folder)).end_token_ids == wanted
