import io

import numpy as np
import pytest
import sentencepiece

from internvideo_jax.data.llama_tokenizer import LlamaTokenizer, read_pieces
from internvideo_jax.data.tokenizers import tokenizer_of
from internvideo_jax.preprocessing import TextPreprocessing
from tests.small_models import sentence_pieces


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(sentence_pieces())
    return path


def spelled(path, ids):
    """The pieces of ids, those of the padding left out."""
    pieces = read_pieces(path)
    return [pieces.id_to_piece(int(i)) for i in ids if i]


def test_texts_are_begun_ended_padded_and_cut(model):
    tokenizer = LlamaTokenizer(model, max_length=8)
    texts = ["the red ring", "", "the", "the red ring moves left and right"]
    ids, mask = tokenizer(texts)
    assert ids.dtype == mask.dtype == np.int32
    assert "".join(spelled(model, ids[0])) == "<s>▁the▁red▁ring</s>"
    assert ids[1].tolist() == [1, 2, 0, 0, 0, 0, 0, 0]
    np.testing.assert_array_equal(mask, ids != 0)
    assert ids[3, [0, -1]].tolist() == [1, 2]
    assert tokenizer.count_cut(texts) == 1
    assert tokenizer([])[0].shape == (0, 8)


def test_a_prompt_comes_first_and_spaces_stay(model):
    files = {"tokenizer.model": model}
    wanted = TextPreprocessing("sentencepiece", tuple(files), 40, "summarize:")
    tokenizer = tokenizer_of(wanted, files)
    texts = ["the red ring", " the red ring"]
    prompted, _ = tokenizer(texts)
    plain, _ = LlamaTokenizer(model, 40)([f"summarize:{text}" for text in texts])
    np.testing.assert_array_equal(prompted, plain)
    assert "".join(spelled(model, prompted[0])) == "<s>▁summarize:the▁red▁ring</s>"
    assert "".join(spelled(model, prompted[1])) == "<s>▁summarize:▁the▁red▁ring</s>"
    assert tokenizer_of(wanted, files, max_length=9)(texts)[0].shape == (2, 9)


def test_names_of_special_pieces_stand_for_them_and_add_no_space(model):
    tokenizer = LlamaTokenizer(model, 20)
    (ids, other), mask = tokenizer(["<s>the</s> red[PAD]", "the <unk> ring"])
    assert "".join(spelled(model, ids)) == "<s><s>the</s>▁red[PAD]</s>"
    unknown = other.tolist().index(0)
    assert unknown < other.tolist().index(2)
    # It is a token, although its id is the padding's.
    assert mask[1, unknown] == 1


def test_anything_may_be_in_a_text(model):
    tokenizer = LlamaTokenizer(model, 20)
    ids, mask = tokenizer(["ring\x00\n\ud800 😀", "▁the"])
    assert "<0x00>" in spelled(model, ids[0])
    assert spelled(model, ids[1])[1] == "▁"
    assert mask.any(1).all()


def trained(**options):
    content = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the ring", "the cross"]),
        model_writer=content,
        vocab_size=20,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (lambda: b"", "damaged file"),
        (lambda: b"\xff" * 100, "damaged file"),
        (lambda: sentence_pieces()[:-1000], "damaged file|found others"),
        (lambda: trained(bos_id=-1), "<s> -1"),
        (lambda: trained(unk_id=3, pad_id=0), "<unk> 3"),
    ],
)
def test_other_files_are_refused(tmp_path, content, found):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(content())
    with pytest.raises(ValueError, match=found) as caught:
        LlamaTokenizer(path, 8)
    assert str(path) in str(caught.value)


def test_a_text_has_room_for_its_ends(model):
    with pytest.raises(ValueError, match="at least 2"):
        LlamaTokenizer(model, 1)
