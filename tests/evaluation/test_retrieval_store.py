"""What is left of a measurement: damaged files, and those of another measurement."""

import logging

import numpy as np
import pytest

from internvideo_jax.evaluation.retrieval.store import RetrievalStore

MADE_WITH = {"model": "abc", "retrieval": {"rerank": 128, "medium": "video"}}
TOKENS = np.arange(24, dtype=np.float32).reshape(4, 6)
TEXTS = np.array([0, 2])


@pytest.fixture
def store(tmp_path):
    store = RetrievalStore(tmp_path, MADE_WITH, np.float32)
    store.put_clip(3, TOKENS, TOKENS[0])
    store.put_scores(3, TEXTS, np.array([0.5, 2.5], np.float32))
    return store


def flipped(content):
    place = content.index(TOKENS.tobytes())
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


DAMAGES = {
    "empty": lambda content: b"",
    "one byte": lambda content: content[:1],
    "half": lambda content: content[: len(content) // 2],
    "all but the end": lambda content: content[:-1],
    "another format": lambda content: b"no arrays" * 100,
}


@pytest.mark.parametrize("damage", [*DAMAGES.values(), flipped], ids=[*DAMAGES, "flipped bit"])
def test_a_damaged_clip_is_removed_and_wanted_again(damage, store, tmp_path, caplog):
    path = tmp_path / "clip-0000003.npz"
    assert store.has_clip(3)
    path.write_bytes(damage(path.read_bytes()))
    for reader in (store.error, store.embedding, store.tokens):
        if damage is flipped and reader != store.tokens:
            continue
        with pytest.raises(ValueError, match=r"clip-0000003\.npz.*remove it and start"):
            reader(3)
    with caplog.at_level(logging.WARNING, "internvideo_jax"):
        assert not store.has_clip(3)
    assert str(path) in caplog.text
    assert not path.exists()
    store.put_clip(3, TOKENS, TOKENS[0])
    np.testing.assert_array_equal(store.tokens(3), TOKENS)


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_scores_are_removed_and_wanted_again(damage, store, tmp_path, caplog):
    path = tmp_path / "scores-0000003.npz"
    assert store.scores(3, TEXTS).tolist() == [0.5, 2.5]
    path.write_bytes(damage(path.read_bytes()))
    with caplog.at_level(logging.WARNING, "internvideo_jax"):
        assert store.scores(3, TEXTS) is None
    assert str(path) in caplog.text
    assert not path.exists()


@pytest.mark.parametrize("content", [b"", b"{\n", b"[]", None])
def test_clips_of_which_nobody_knows_how_they_were_made_are_not_taken(content, store, tmp_path):
    description = tmp_path / "made_with.json"
    description.unlink()
    if content is not None:
        description.write_bytes(content)
    with pytest.raises(ValueError, match=f"name another output, or remove {tmp_path}"):
        RetrievalStore(tmp_path, MADE_WITH, np.float32)
    assert store.has_clip(3)


def test_another_measurement_is_told_option_by_option(store, tmp_path):
    wanted = {"model": "abc", "retrieval": {"rerank": 8, "medium": "video"}, "views": {"size": 2}}
    with pytest.raises(ValueError, match="same measurement") as caught:
        RetrievalStore(tmp_path, wanted, np.float32)
    message = str(caught.value)
    assert "retrieval.rerank: expected 8, found 128" in message
    assert "views.size: expected 2, found null" in message
    assert "medium" not in message
    assert "model" not in message
