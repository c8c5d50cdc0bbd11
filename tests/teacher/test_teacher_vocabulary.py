"""Two tokenizers are compared by the bytes of each id, whatever way they write them down."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from tiny_teacher import save_tokenizer

from services.teacher.vocabulary import _byte_of_character, compare_vocabularies, read_vocabulary

BYTE_LEVEL = {"type": "ByteLevel"}
SENTENCE_PIECE = {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"}]}


def _write(folder, vocabulary, *, added=(), decoder=None, model="BPE", configured=None, **options):
    """A folder with the parts of a tokenizer that count; ``added`` are (id, text, special)."""
    folder.mkdir(parents=True, exist_ok=True)
    tokens = [{"id": token, "content": text, "special": special} for token, text, special in added]
    content = {"added_tokens": tokens, "decoder": decoder, "pre_tokenizer": None, "model": {"type": model, "vocab": vocabulary, **options}}
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    if configured is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": configured}))
    return folder


WORDS = {"a": 0, "b": 1, "c": 2}


def test_equal_vocabularies_mask_nothing(tmp_path):
    one = _write(tmp_path / "one", WORDS, added=[(3, "<end>", True)])
    assert compare_vocabularies(one, _write(tmp_path / "two", WORDS, added=[(3, "<end>", True)])) == frozenset()
    real = save_tokenizer(tmp_path / "real")
    assert compare_vocabularies(real, save_tokenizer(tmp_path / "again")) == frozenset()


@pytest.mark.parametrize(
    ("added", "masked"),
    [
        ([(3, "<|endoftext|>", True)], {3}),
        ([(3, "<end>", True), (4, "<tool>", True)], {4}),
        ([(3, "<end>", True), (4, "<think>", False)], {4}),
        ([(4, "<end>", True)], {3, 4}),
        ([], {3}),
    ],
)
def test_special_ids_that_differ_are_masked(tmp_path, added, masked):
    policy = _write(tmp_path / "policy", WORDS, added=[(3, "<end>", True)])
    assert compare_vocabularies(policy, _write(tmp_path / "teacher", WORDS, added=added)) == masked


@pytest.mark.parametrize(
    "vocabulary",
    [{"a": 0, "b": 1, "d": 2}, {"a": 1, "b": 0, "c": 2}, {"a": 0, "b": 1}, {"a": 0, "b": 1, "c": 2, "d": 4}],
    ids=["another word", "another order", "one fewer", "one more"],
)
def test_ordinary_ids_that_differ_are_refused_by_name(tmp_path, vocabulary):
    policy = _write(tmp_path / "policy", WORDS, added=[(3, "<end>", True)])
    answer = compare_vocabularies(policy, _write(tmp_path / "teacher", vocabulary, added=[(3, "<end>", True)]))
    assert isinstance(answer, str) and "another vocabulary" in answer and str(tmp_path / "teacher") in answer
    differing = min(v for _, v in set(vocabulary.items()) ^ set(WORDS.items()))
    assert f"id {differing} is" in answer


def test_a_special_id_against_an_ordinary_word_is_refused(tmp_path):
    policy = _write(tmp_path / "policy", {**WORDS, "d": 3})
    assert "id 3 is b'd' to the policy, b'<end>' to the teacher" in compare_vocabularies(
        policy, _write(tmp_path / "teacher", WORDS, added=[(3, "<end>", True)])
    )


def test_ways_of_writing_bytes_are_seen_through(tmp_path):
    """' a', a newline, an umlaut's two bytes and half of one: as byte-level characters, as pieces with byte fallback."""
    byte_level = _write(tmp_path / "bytes", {"\u0120a": 0, "\u010a": 1, "\u00c3\u00bc": 2, "\u00c3": 3}, decoder=BYTE_LEVEL)
    pieces = _write(
        tmp_path / "pieces",
        [["\u2581a", 0.0], ["<0x0A>", 0.0], ["\u00fc", 0.0], ["<0xC3>", 0.0]],
        decoder=SENTENCE_PIECE,
        model="Unigram",
        byte_fallback=True,
    )
    assert read_vocabulary(byte_level).spelling == {0: b" a", 1: b"\n", 2: "\u00fc".encode(), 3: b"\xc3"}
    assert compare_vocabularies(byte_level, pieces) == frozenset()
    plain = _write(tmp_path / "plain", {"\u0120a": 0, "\u010a": 1, "\u00c3\u00bc": 2, "\u00c3": 3})  # the same text, decoded as it stands
    assert isinstance(compare_vocabularies(byte_level, plain), str)


def test_the_byte_table_is_the_tokenizers_librarys():
    from tokenizers.pre_tokenizers import ByteLevel

    table = _byte_of_character()
    assert set(table) == set(ByteLevel.alphabet()) and sorted(table.values()) == list(range(256))
    assert [table[c] for c in "A \u0120\u010a".replace(" ", "")] == [65, 32, 10]


def test_added_tokens_that_only_the_configuration_names_count(tmp_path):
    policy = _write(tmp_path / "policy", WORDS, configured={"3": {"content": "<end>", "special": True}})
    teacher = _write(tmp_path / "teacher", WORDS, added=[(3, "<end>", True)])
    assert compare_vocabularies(policy, teacher) == frozenset()


def test_a_tokenizer_that_cannot_be_read_is_a_refusal(tmp_path):
    policy = _write(tmp_path / "policy", WORDS)
    for content in (None, "{", "{}", '{"model": {}}', "[]", '{"model": {"vocab": {"a": []}}}'):
        teacher = tmp_path / "broken"
        teacher.mkdir(exist_ok=True)
        if content is not None:
            (teacher / "tokenizer.json").write_text(content)
        assert "cannot be compared" in compare_vocabularies(policy, teacher)


def test_it_loads_no_torch():
    code = "import services.teacher.vocabulary, services.teacher.payload, sys; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"
