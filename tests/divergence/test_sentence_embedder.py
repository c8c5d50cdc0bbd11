"""The sentence-embedding model by path: masked means by hand, padding, over-long and empty texts, folders of other kinds.

All folders are tiny and random; words are the letters a to p."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModel,
    BartConfig,
    BartModel,
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2Model,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5EncoderModel,
    T5Model,
)

from tests.tiny_models import write_tiny_model
from trainer.divergence.embeddings import SentenceEmbedder, cosines
from trainer.divergence.response_drift import ResponseDrift

WORDS = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[UNK]": 3} | {letter: number for number, letter in enumerate("abcdefghijklmnop", start=4)}
HIDDEN, POSITIONS = 16, 40
TEXTS = ["a b c", "d", "e f g h i j k l m n o p", "b a"]
SMALL = {"vocab_size": len(WORDS), "hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
OF_T5 = {"vocab_size": len(WORDS), "d_model": HIDDEN, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0}
OF_BART = {"vocab_size": len(WORDS), "d_model": HIDDEN, "max_position_embeddings": POSITIONS, "pad_token_id": 0}
OF_BART |= {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 32))}


def bert(**changes) -> BertModel:
    return BertModel(BertConfig(**{**SMALL, "max_position_embeddings": POSITIONS, "initializer_range": 0.5} | changes))


def write_folder(folder: Path, model: torch.nn.Module, *, marks: bool = True, padding: bool = False, **of_tokenizer) -> Path:
    """``marks``: [CLS] text [SEP]; ``padding``: tokenizer.json pads and cuts by itself, as those of sentence-transformers do."""
    tokenizer = Tokenizer(models.WordLevel(WORDS, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if marks:
        tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    if padding:
        tokenizer.enable_padding(length=30, pad_id=0, pad_token="[PAD]")
        tokenizer.enable_truncation(5)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{"pad_token": "[PAD]", "unk_token": "[UNK]"} | of_tokenizer).save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def seeded():
    torch.manual_seed(0)


def by_hand(folder: Path, text: str, *, marks: bool = True) -> np.ndarray:
    """One text alone: the mean of its states, without a tokenizer and without a mask."""
    ids = [WORDS[word] for word in text.split()]
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        encoder = model.encoder if hasattr(model, "decoder") else model
        return encoder(torch.tensor([[1, *ids, 2] if marks else ids])).last_hidden_state[0].double().mean(0).numpy()


def test_an_embedding_is_the_mean_over_a_texts_own_tokens_whatever_stands_beside_it(tmp_path):
    folder = write_folder(tmp_path, bert())
    found = SentenceEmbedder(folder).embed(TEXTS)
    assert found.shape == (4, HIDDEN) and found.dtype == np.float64
    for row, text in zip(found, TEXTS, strict=True):
        np.testing.assert_allclose(row, by_hand(folder, text), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(row, SentenceEmbedder(folder).embed([text])[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found, SentenceEmbedder(folder, batch=3).embed(TEXTS), rtol=1e-4, atol=1e-5)
    assert np.abs(found[0] - found[3]).max() > 0.1, "of different texts"


def test_what_a_tokenizer_pads_and_cuts_by_itself_is_not_padded_and_cut_here(tmp_path):
    folder = write_folder(tmp_path, bert(), padding=True)
    for row, text in zip(SentenceEmbedder(folder).embed(TEXTS), TEXTS, strict=True):
        np.testing.assert_allclose(row, by_hand(folder, text), rtol=1e-4, atol=1e-5)


def test_a_text_that_is_too_long_is_cut(tmp_path):
    folder = write_folder(tmp_path, bert())
    found = SentenceEmbedder(folder, max_tokens=6).embed(["a b c d e f g h", "a b"])
    np.testing.assert_allclose(found[0], by_hand(folder, "a b c d"), rtol=1e-4, atol=1e-5)  # [CLS] and [SEP] count
    np.testing.assert_allclose(found[1], by_hand(folder, "a b"), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "most"), [("bert", POSITIONS), ("roberta", POSITIONS - 1), ("gpt2", POSITIONS), ("bart", POSITIONS)])
def test_a_text_is_cut_where_the_model_has_no_more_positions(tmp_path, kind, most):
    made = {
        "bert": bert,
        "roberta": lambda: RobertaModel(RobertaConfig(**SMALL, max_position_embeddings=POSITIONS, pad_token_id=0)),  # row 0 is for padding
        "gpt2": lambda: GPT2Model(GPT2Config(vocab_size=len(WORDS), n_embd=HIDDEN, n_layer=1, n_head=2, n_positions=POSITIONS)),
        "bart": lambda: BartModel(BartConfig(**OF_BART)),
    }
    folder = write_folder(tmp_path, made[kind]())
    long = "a b c d e f g h " * 20
    found = SentenceEmbedder(folder).embed([long, "a"])
    np.testing.assert_allclose(found[0], by_hand(folder, " ".join(long.split()[: most - 2])), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[1], by_hand(folder, "a"), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_tokenizer_without_a_pad_token_or_one_that_pads_on_the_left_gives_the_same(tmp_path, side):
    model = GPT2Model(GPT2Config(vocab_size=len(WORDS), n_embd=HIDDEN, n_layer=2, n_head=2, n_positions=POSITIONS, initializer_range=0.5))
    folder = write_folder(tmp_path, model, marks=False, pad_token=None if side == "right" else "[PAD]", padding_side=side)
    for row, text in zip(SentenceEmbedder(folder).embed(TEXTS), TEXTS, strict=True):
        np.testing.assert_allclose(row, by_hand(folder, text, marks=False), rtol=1e-4, atol=1e-5)


def test_a_pad_token_that_the_model_has_no_row_for_is_never_read(tmp_path):
    folder = write_folder(tmp_path, bert(), pad_token="<made up>")
    for row, text in zip(SentenceEmbedder(folder).embed(TEXTS), TEXTS, strict=True):
        np.testing.assert_allclose(row, by_hand(folder, text), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "made", [lambda: T5Model(T5Config(**OF_T5)), lambda: T5EncoderModel(T5Config(**OF_T5)), lambda: BartModel(BartConfig(**OF_BART))], ids=["t5", "t5_encoder", "bart"]
)
def test_of_an_encoder_decoder_the_encoder_reads(tmp_path, made):
    folder = write_folder(tmp_path, made())
    for row, text in zip(SentenceEmbedder(folder).embed(TEXTS), TEXTS, strict=True):
        np.testing.assert_allclose(row, by_hand(folder, text), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 32])
def test_a_text_of_no_tokens_is_like_no_other(tmp_path, batch):
    found = SentenceEmbedder(write_folder(tmp_path, bert(), marks=False), batch=batch).embed(["", "a b", ""])
    assert not found[0].any() and not found[2].any() and np.isfinite(found).all()
    assert cosines(found[[0, 0]], found[[1, 2]]).tolist() == [0.0, 1.0]


def test_weights_in_half_precision_are_read_in_float32(tmp_path):
    folder = write_folder(tmp_path, bert().bfloat16())
    np.testing.assert_allclose(SentenceEmbedder(folder).embed(TEXTS)[0], by_hand(folder, TEXTS[0]), rtol=1e-4, atol=1e-5)


def test_response_drift_embeds_the_base_tokenizers_texts_with_it(tmp_path):
    base = write_tiny_model(tmp_path / "base", tied=True)
    folder = write_folder(tmp_path / "encoder", bert())
    drift = ResponseDrift(base, embedding_folder=folder)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    ids = [np.array(tokenizer(text)["input_ids"], dtype=np.int32) for text in TEXTS]
    ended = [np.append(row, np.int32(1)) for row in ids]  # the end of a completion is no part of its text
    found = drift.embed(ended)
    for row, text in zip(found, TEXTS, strict=True):
        np.testing.assert_allclose(row, by_hand(folder, text), rtol=1e-4, atol=1e-5)
    assert drift.similarity(ids, ended)["q25"] == pytest.approx(1.0)
