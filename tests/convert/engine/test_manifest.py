"""Conversions proved from keys and shapes."""

import json
import os
from pathlib import Path

import pytest

from internvideo_jax.convert.engine.manifest import (
    Manifest,
    describe,
    plan_manifest,
    read_manifest,
    read_manifests,
)
from internvideo_jax.convert.engine.misfit import CheckpointMisfit
from internvideo_jax.convert.engine.plan import plan
from internvideo_jax.convert.engine.recognition import recognize
from internvideo_jax.convert.engine.upstream import infer_config

TINY = {
    "embed_dim": 48,
    "depth": 3,
    "num_heads": 3,
    "mlp_ratio": "5/3",
    "patch_size": 2,
    "img_size": 8,
    "num_frames": 4,
    "clip_embed_dim": 20,
    "attn_pool_num_heads": 4,
    "num_classes": 7,
}


@pytest.fixture
def manifest(configs, shapes_of):
    config = configs["linear"]
    return Manifest("tiny", shapes_of(config), TINY)


def test_a_total_manifest_is_one_line(manifest, tmp_path):
    content = {"checkpoint": "tiny", "config": manifest.options, "tensors": manifest.shapes}
    (tmp_path / "m.json").write_text(json.dumps(content))
    assert read_manifest(tmp_path / "m.json") == manifest
    line = describe(manifest, plan_manifest(manifest))
    assert line == (
        "tiny: total as video_classifier: 61 of 61 keys consumed, 0 ignored, 35 parameters filled"
        " (64,383 numbers)"
    )


def test_ignored_keys_are_named_by_their_rule(manifest):
    manifest.shapes["clip_pos_embed"] = (1, 65, 48)
    line = describe(manifest, plan_manifest(manifest))
    assert "1 ignored (1 by 'position tables of the stage-1 decoders, unused downstream')" in line


def test_the_config_is_the_truth(manifest):
    with pytest.raises(CheckpointMisfit) as caught:
        plan_manifest(Manifest("tiny", manifest.shapes, TINY | {"depth": 2, "num_classes": 6}))
    assert "blocks.2.mlp.fc1.weight" in caught.value.extra
    assert caught.value.misshapen["head.weight"] == ((6, 20), (7, 20))


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"tensors": {}}',
        '{"tensors": ["a"], "config": {}}',
        '{"tensors": {"a": "b"}, "config": {}}',
        '{"tensors": {"a": [1]}, "config": []}',
    ],
)
def test_other_files_are_named(content, tmp_path):
    (tmp_path / "m.json").write_text(content)
    with pytest.raises(ValueError, match=r"m\.json"):
        read_manifest(tmp_path / "m.json")


def _shared(pattern):
    folder = os.environ.get("INTERNVIDEO_SHARED")
    return sorted((Path(folder) / "manifests").glob(pattern)) if folder else []


STAGE1 = [
    *_shared("internvideo2_stage1_*.json"),
    *_shared("internvl_c_13b_224px_vision_teacher.json"),
    *_shared("videomaev2_g14_hybrid_1200e_encoder_teacher.json"),
]
TOWERS = (
    "xbert-large-fusion19-enc1408",
    "BEATs_iter3_plus_AS2M",
    "InternVideo2-Stage2-6B-Audio_audio_6b",
    "internvl_c_13b_224px.text",
    "mobileclip_blt.text",
    "ViCLIP-B-16",
    "ViCLIP-L-14",
)
STAGE2 = (
    "InternVideo2-stage2_1b-224p-f4",
    "internvideo2-s2_6b-224p-f4_with_audio_encoder",
    "internvideo2-s2_1b-audiovisual-unreleased",
    "internvideo2-s2_6b-224p-f4",
)
CLIP_WHOLE = tuple(
    f"InternVideo2-CLIP-{size}.full-model"
    for size in ("1B-224p-f8", "6B-224p-f8", "S14", "B14", "L14")
)
CLIP_FILES = (
    ("InternVideo2-stage2_1b-224p-f4", "internvl_c_13b_224px.text", "InternVideo2-CLIP-1B-224p-f8"),
    ("internvideo2-s2_6b-224p-f4", "internvl_c_13b_224px.text", "InternVideo2-CLIP-6B-224p-f8"),
    *(
        (
            f"internvideo2_stage1_{size}_distill",
            "mobileclip_blt.text",
            f"InternVideo2_distillation_models__clip__{size}",
        )
        for size in ("S14", "B14", "L14")
    ),
)
needs_shared = pytest.mark.skipif(
    not STAGE1, reason="the reference data is found through INTERNVIDEO_SHARED, which is not set"
)


def _check_total(path):
    content = json.loads(path.read_text())
    made = plan_manifest(read_manifest(path))
    ignored = [made.names[key] for key in made.ignored]
    assert sorted({*made.loaded_names, *ignored}) == sorted(content["tensors"])
    assert f"({content['n_params']:,} numbers)" in describe(read_manifest(path), made)
    return ignored


@needs_shared
@pytest.mark.parametrize("part", ["1B_pretrain", "6B_lp_cat", "S14_distill", "videomaev2"])
def test_full_size_manifests_are_total(part):
    (path,) = [path for path in STAGE1 if part in path.name]
    assert not _check_total(path)


@needs_shared
@pytest.mark.parametrize("name", TOWERS)
def test_manifests_of_text_and_audio_and_viclip_are_total(name):
    (path,) = _shared(f"{name}.json")
    _check_total(path)


@needs_shared
@pytest.mark.parametrize("name", STAGE2[:3])
def test_manifests_of_stage_2_are_total(name):
    (path,) = _shared(f"{name}.json")
    assert _check_total(path) == ["text_encoder.bert.embeddings.position_ids"]


@needs_shared
def test_without_its_audio_tower_a_stage_2_file_loses_what_joins_it():
    (path,) = _shared(f"{STAGE2[3]}.json")
    made = plan_manifest(read_manifest(path))
    assert made.config.audio is None
    assert made.config.match_heads == ("video",)
    lost = {key.partition(".")[0] for key in made.ignored} - {"text_encoder"}
    assert lost == {"audio_proj", "av_concat_audio_proj", "av_fusion", "avtm_head"}


@needs_shared
@pytest.mark.parametrize("name", CLIP_WHOLE)
def test_manifests_of_whole_models_of_clips_and_texts_are_total(name):
    (path,) = _shared(f"{name}.json")
    assert _check_total(path) == []


@needs_shared
@pytest.mark.parametrize("names", CLIP_FILES)
def test_manifests_of_three_files_make_the_whole_model(names):
    paths = [path for name in names for path in _shared(f"{name}.json")]
    manifests = read_manifests("+".join(map(str, paths)))
    made = plan_manifest(*manifests)
    size = names[-1].removeprefix("InternVideo2-CLIP-").rpartition("__")[2]
    (whole,) = _shared(f"InternVideo2-CLIP-{size}.full-model.json")
    expected = plan_manifest(read_manifest(whole))
    assert made.config == expected.config
    assert made.targets == expected.targets
    assert set(made.loaded_keys) == set(expected.loaded_keys)
    # All of the add-on is used, but for what older files repeat.
    numbers = [number for number, _ in (made.sources[key] for key in made.loaded_keys)]
    left = [key for key in manifests[-1].shapes if not key.endswith("inv_freq")]
    assert numbers.count(2) == len(left)
    is_resized = {key: "positions resized" in text for key, text in made.changes.items()}
    assert is_resized == ({"vision_encoder.pos_embed": True} if "B-" in size else {})
    assert f"{' + '.join(m.name for m in manifests)}: total as" in describe(manifests, made)


@needs_shared
def test_files_of_other_sizes_do_not_make_a_model():
    paths = [str(path) for name in CLIP_FILES[0] for path in _shared(f"{name}.json")]
    other = str(_shared("internvideo2-s2_6b-224p-f4.json")[0])
    with pytest.raises(ValueError, match="expected files of the model that .*width 1408"):
        plan_manifest(*read_manifests("+".join([other, *paths[1:]])))


@needs_shared
@pytest.mark.slow
def test_every_stage_1_manifest_is_total():
    assert len(STAGE1) == 22
    for path in STAGE1:
        assert not _check_total(path)


@needs_shared
def test_the_internvl_file_may_hold_what_the_manifest_leaves_out():
    manifest = read_manifest(STAGE1[-2])
    extras = "target_pos_embed mask_token grad_norm_square_momentum_clip norm3.bn.weight"
    extras += " norm3.bn.num_batches_tracked text_projection logit_scale transformer.layers.0.q"
    manifest.shapes.update(dict.fromkeys(extras.split(), (1,)))
    made = plan_manifest(manifest)
    assert set(made.ignored.values()) == {"InternVL text tower", "InternVL training leftovers"}


@needs_shared
@pytest.mark.parametrize(
    "name", ["InternVideo2-stage2_1b-224p-f4", "internvideo2-s2_6b-224p-f4_with_audio_encoder"]
)
def test_a_stage_2_file_holds_a_teacher_of_distillation(name):
    (path,) = _shared(f"{name}.json")
    found = recognize(read_manifest(path).shapes, architecture="teacher")
    source = infer_config(found)
    assert source.encoder.grid == (4, 16, 16)
    target = found.family.retarget(source, {"num_frames": 8})
    made = plan(found, source, target=target)
    assert made.changes == {"pos_embed": "positions resized 4x16x16 -> 8x16x16"}
    assert made.targets["params/encoder/pos_embed"] == (1, 2049, target.encoder.width)


@needs_shared
def test_manifests_of_other_models_are_refused():
    known = (*TOWERS, *STAGE2, *CLIP_WHOLE)
    others = {path for path in _shared("*.json") if path.stem not in known}
    others -= set(STAGE1)
    assert len(others) > 60
    for path in sorted(others):
        with pytest.raises(ValueError, match="expected|unknown|does not fit"):
            pytest.fail(f"{path.name} is total: {plan_manifest(read_manifest(path)).summary()}")
