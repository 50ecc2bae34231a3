"""A released model by its name alone: from the files of the hub to a search, then offline."""

import dataclasses
import io
import sys

import numpy as np
import pytest

import internvideo_jax as ivj
from internvideo_jax.convert.engine import registry
from internvideo_jax.convert.engine.upstream import to_upstream
from internvideo_jax.data.synthetic import scenes
from tests.convert.clip_files import as_mobileclip, split
from tests.small_models import INTERNVIDEO2_CLIP, MERGES, write_merges

NAME = "InternVideo2-CLIP-B14"
SMALL = INTERNVIDEO2_CLIP["mobileclip"]
# Byte pairs of texts about rendered clips: two words for every byte, and those that begin and end.
CONFIG = dataclasses.replace(
    SMALL, text=dataclasses.replace(SMALL.text, vocab_size=2 * 256 + len(MERGES) + 2)
)
SIZES = {
    "vision.width": CONFIG.vision.width,
    "vision.num_frames": CONFIG.vision.num_frames,
    "align_dim": CONFIG.align_dim,
    "text.vocab_size": CONFIG.text.vocab_size,
}


@pytest.fixture
def whole(make_state):
    """All tensors of the model."""
    return {as_mobileclip(key): x for key, x in make_state(CONFIG).items()}


@pytest.fixture
def release(hub, whole, torch_file, monkeypatch, tmp_path):
    """The release, but for the sizes of its towers, with the files that it names on the hub."""
    monkeypatch.setenv("INTERNVIDEO_HOME", str(tmp_path / "home"))
    released = registry.find(NAME)
    assert released.sizes.keys() == SIZES.keys()
    made = dataclasses.replace(released, sizes=SIZES)
    monkeypatch.setattr(registry, "releases", lambda: (made,))
    (vocabulary,) = made.tokenizer
    hub.files[vocabulary.file] = write_merges(tmp_path).read_bytes()
    hub.repos = {file.repo for file in (made, *made.adds_to, *made.tokenizer)}
    names = [*(file.file for file in made.adds_to), made.file]
    for name, state in zip(names, split(whole, is_small=True), strict=True):
        file = type(torch_file)()
        tensors = {key: file.tensor(x) for key, x in state.items()}
        path = file.save(tmp_path / "file", {"module": tensors, "config": to_upstream(CONFIG)})
        hub.files[name] = path.read_bytes()
    return made


def test_a_name_becomes_a_search_and_needs_the_network_once(
    hub, release, whole, monkeypatch, tmp_path
):
    said, said_by = io.StringIO(), {}
    monkeypatch.setattr(sys, "stderr", said)
    hub.on_request = lambda name: said_by.setdefault(name, said.getvalue())
    model = ivj.load(NAME)
    # Files of one kind and nothing else, each once, and none before its size was told.
    assert sorted(hub.requested) == sorted(hub.files)
    first = said_by[hub.requested[0]]
    for file in (*release.adds_to, release):
        assert f"hf://{file.repo}/{file.file}" in first
    assert "GB" in first
    assert "disk" in first
    assert "memory" in first
    # Two of its files have the same name, in different folders.
    sources = model.metadata["conversion"]["sources"]
    assert list(sources) == [
        "B14_dist_1B_stage2/pytorch_model.bin", "mobileclip_blt.pt", "B14/pytorch_model.bin",
    ]  # fmt: skip
    *_, addon = split(whole, is_small=True)
    assert set(sources["B14/pytorch_model.bin"]) == addon.keys()
    licences = model.metadata["source"]["release"]["licences"]
    assert licences[release.adds_to[1].place] == release.adds_to[1].licence
    # The add-on's numbers count, of all that it has.
    assert model.variables["params"]["temperature"] == whole["temp"] + 1

    colors, clips = ("red", "green", "blue"), []
    for color in colors:
        frames = scenes.render(scenes.Scene("ring", color, "left"), 9, size=48)
        scenes.write_video(tmp_path / f"{color}.mp4", frames)
        clips.append(tmp_path / f"{color}.mp4")
    texts = ["A red ring!", "the blue thing"]

    def search(model):
        video, text = model.encode_video([*clips, frames]), model.encode_text(texts)
        assert (video.shape, text.shape) == ((4, CONFIG.align_dim), (2, CONFIG.align_dim))
        for rows in (video, text):
            np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
        scores = model.similarity(video, text)
        assert scores.shape == (4, 2)
        # Texts and clips that differ are told apart.
        assert np.ptp(scores, axis=1).min() > 1e-6
        assert np.ptp(scores[:3], axis=0).min() > 1e-6
        return scores

    scores = search(model)
    named = model.predict(clips[0], classes=["red", "blue"], prompts="a {} ring")
    assert sum(probability for _, probability in named) == pytest.approx(1)

    hub.stop()
    said.truncate(0)
    np.testing.assert_array_equal(search(ivj.load(NAME)), scores)
    assert said.getvalue() == ""
