"""Whose file it is, and a model put together from files of several families."""

import dataclasses
import json
import re
from types import SimpleNamespace

import flax.linen as nn
import jax
import numpy as np
import pytest
import safetensors.numpy

from internvideo_jax import models
from internvideo_jax.convert.engine import conversion, family, recognition, rules, upstream
from internvideo_jax.convert.engine.export import export
from internvideo_jax.convert.engine.family import Family, Part
from internvideo_jax.convert.engine.plan import plan
from internvideo_jax.convert.engine.recognition import canonical_names, find_prefix, recognize
from internvideo_jax.convert.engine.state_dict import to_tree
from internvideo_jax.convert.families import internvideo2, video_vit, videomae
from internvideo_jax.preprocessing import Preprocessing

PREFIXES = ["", "module.", "backbone.", "encoder.", "vision_encoder.", "module.vision_encoder."]
PREFIXES += ["model.", "module.module.", "_orig_mod.", "model._orig_mod.", "module._orig_mod."]
PREFIXES += ["_forward_module.module.", "model._fsdp_wrapped_module.vision_encoder."]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_known_prefixes_are_stripped(prefix, configs, shapes_of, plan_of):
    config = configs["encoder"]
    shapes = shapes_of(config, prefix)
    made = plan_of(shapes, config)
    assert made.prefix == prefix
    assert sorted(made.loaded_names) == sorted(shapes)


@pytest.mark.parametrize(
    ("pattern", "replacement"),
    [
        (r"^blocks\.(\d)\.", r"blocks.\1._orig_mod."),
        (r"^blocks\.(\d)\.", r"_orig_mod.module.blocks.\1._checkpoint_wrapped_module."),
        (r"^(blocks\.\d)\.(\w+)\.", r"\1._fsdp_wrapped_module.\2._fpw_module."),
        (r"\.(\w+)$", r"._orig_mod._orig_mod.module.\1"),
    ],
)
def test_wrappers_inside_of_keys_come_and_go(
    pattern, replacement, configs, make_state, options, tmp_path
):
    state = make_state(configs["linear"])
    wrapped = {re.sub(pattern, replacement, key): array for key, array in state.items()}
    assert wrapped.keys() != state.keys()
    safetensors.numpy.save_file(wrapped, tmp_path / "wrapped.safetensors")
    request = conversion.Request(options=options)
    done = conversion.convert([tmp_path / "wrapped.safetensors"], tmp_path / "model", request)
    assert done.plan.config == configs["linear"]
    export(tmp_path / "model", tmp_path / "back.safetensors")
    back = safetensors.numpy.load_file(tmp_path / "back.safetensors")
    assert back.keys() == wrapped.keys()
    for key, array in wrapped.items():
        np.testing.assert_array_equal(back[key], array, err_msg=key)


def test_keys_that_differ_in_wrappers_alone_are_an_error(configs, shapes_of):
    shapes = shapes_of(configs["encoder"])
    shapes["_orig_mod.cls_token"] = shapes["cls_token"]
    with pytest.raises(ValueError, match=r"'_orig_mod\.cls_token' and 'cls_token'"):
        recognize(shapes)


def test_counters_of_averaging_and_profilers_are_left_out(configs, shapes_of, plan_of):
    shapes = shapes_of(configs["encoder"], "module.")
    for key in ("n_averaged", "module.total_ops", "module.blocks.0.attn.total_params"):
        shapes[key] = ()
    made = plan_of(shapes, configs["encoder"])
    assert sorted(made.ignored) == ["blocks.0.attn.total_params", "n_averaged", "total_ops"]
    assert set(made.ignored.values()) == {"counters, no weights"}


@pytest.mark.parametrize(
    "key", ["_flat_param", "_fsdp_wrapped_module.blocks.0._fsdp_wrapped_module._flat_param"]
)
def test_flattened_parameters_say_how_to_gather_them(key):
    with pytest.raises(ValueError, match="FSDP.*full_state_dict"):
        recognize({key: (1000,)})


def test_keys_without_the_prefix_are_kept_as_they_are():
    keys = ["backbone.patch_embed.proj.weight", "head.weight"]
    assert find_prefix(internvideo2.FAMILY, keys) == "backbone."
    assert canonical_names(internvideo2.FAMILY, keys, "backbone.") == {
        "patch_embed.proj.weight": "backbone.patch_embed.proj.weight",
        "head.weight": "head.weight",
    }


def test_keys_that_become_one_are_an_error():
    keys = ["encoder.patch_embed.proj.weight", "encoder.norm.weight", "norm.weight"]
    with pytest.raises(ValueError, match=r"'norm\.weight' and 'encoder\.norm\.weight'"):
        canonical_names(internvideo2.FAMILY, keys, "encoder.")


@pytest.mark.parametrize(
    "keys",
    [
        ["embeddings.weight"],
        ["net.patch_embed.proj.weight"],
        ["patch_embed.proj.weight", "encoder.patch_embed.proj.weight"],
    ],
)
def test_other_kinds_of_models_are_refused_with_what_was_looked_for(keys):
    with pytest.raises(ValueError, match=r"(?s)another kind.*internvideo2: patch_embed\.proj"):
        recognize(dict.fromkeys(keys, (1,)))


@dataclasses.dataclass(frozen=True)
class PairConfig:
    """A model of two towers."""

    clips: models.VideoViTConfig
    frames: models.VideoMAEConfig


class Pair(nn.Module):
    """Two towers and a temperature."""

    config: PairConfig

    @nn.compact
    def __call__(self, video, frames):
        self.param("temperature", nn.initializers.ones, ())
        clips = models.VideoViT(self.config.clips, name="clips")(video)
        return clips, models.VideoMAE(self.config.frames, name="frames")(frames)

    def example_inputs(self):
        clips = models.VideoViT(self.config.clips, parent=None)
        towers = clips, models.VideoMAE(self.config.frames, parent=None)
        return tuple(x for tower in towers for x in tower.example_inputs())


def _infer(kind, shapes, given, stored):
    def tower(prefix, infer, kind, **heads):
        own = {k.removeprefix(prefix): s for k, s in shapes.items() if k.startswith(prefix)}
        shown, assumed = infer(kind, own, heads, stored)
        return upstream.config_from_upstream(kind, shown | heads, assumed | stored)

    clips = tower("vision.", internvideo2.infer, "encoder")
    frames = tower("teacher.", videomae.FAMILY.infer, "videomae", num_heads=2)
    return {"clips": clips, "frames": frames}, {}


def _table(config):
    clips = rules.under(internvideo2.TABLES["video_vit"], "vision.", "clips")
    frames = rules.under(videomae.FAMILY.tables["videomae"], "teacher.", "frames")
    return rules.Table(
        (*clips.rules, *frames.rules, rules.rule("temperature", "temp")),
        (*clips.ignored, *frames.ignored),
    )


PAIR = Family(
    name="pair",
    anchors=("temp",),
    recognize=lambda shapes, architecture: "pair",
    kinds={"pair": lambda options: PairConfig(options.take("clips"), options.take("frames"))},
    tables={"pair": _table},
    infer=_infer,
    to_options=lambda config: {},
    preprocessing=lambda config: Preprocessing(),
    describe=lambda config: "two towers",
    parts=(
        Part("vision.", "internvideo2", "video_vit", "the stage-2 file"),
        Part("teacher.", "videomae", "videomae", "VideoMAE's file"),
    ),
)


@pytest.fixture
def pair(configs, make_state, monkeypatch, options):
    """A family of two towers, and the files of its parts and of an add-on."""
    known = (*family.all_families(), PAIR)
    monkeypatch.setattr(recognition, "all_families", lambda: known)
    monkeypatch.setattr(upstream, "all_families", lambda: known)
    monkeypatch.setitem(models.ARCHITECTURES, "pair", models.Architecture(PairConfig, Pair))
    clips = make_state(configs["encoder"], prefix="vision_encoder.")
    clips["text_encoder.word"] = np.zeros((2, 2), np.float32)
    frames = make_state(configs["videomae"], prefix="encoder.")
    frames["mask_token"] = np.zeros(2, np.float32)
    pooler = {
        k.replace("vision_encoder.", "vision."): v + 1
        for k, v in clips.items()
        if "clip_projector" in k
    }
    addon = pooler | {"temp": np.ones((), np.float32)}
    options = options | {"all_frames": 4, "img_size": 8}
    return SimpleNamespace(clips=clips, frames=frames, addon=addon, options=options)


def _shapes(*states):
    return [{key: array.shape for key, array in state.items()} for state in states]


def test_a_composite_is_put_together_from_the_files_of_its_parts(pair, tmp_path):
    sources = []
    metadata = {"config": json.dumps(pair.options)}
    for name in ("clips", "frames", "addon"):
        sources.append(tmp_path / f"{name}.safetensors")
        safetensors.numpy.save_file(getattr(pair, name), sources[-1], metadata)
    prepared = conversion.prepare(sources, conversion.Request())
    made = prepared.plan
    assert (made.architecture, made.config.frames.num_frames) == ("pair", 4)
    state = {name: tensor.read() for name, tensor in prepared.tensors.items()}
    params = to_tree(state, made)["params"]
    own = pair.clips["vision_encoder.cls_token"]
    np.testing.assert_array_equal(params["clips"]["cls_token"], own)
    # The add-on, which comes last, replaces the pooler of the part.
    bias = pair.addon["vision.clip_projector.cross_attn.proj.bias"]
    np.testing.assert_array_equal(params["clips"]["pooler"]["proj"]["bias"], bias)
    norm = pair.frames["encoder.norm.weight"]
    np.testing.assert_array_equal(params["frames"]["norm"]["scale"], norm)
    assert jax.tree.leaves(params["temperature"])[0] == 1
    # Which tensor came from where is told.
    files = made.report(["clips", "frames", "addon"])["sources"]
    assert files["addon"] == list(dict.fromkeys(k for k in made.names if k in pair.addon))
    assert set(files["frames"]) == {
        k.replace("encoder.", "teacher.") for k in pair.frames if k != "mask_token"
    }
    assert sum(map(len, files.values())) == len(made.loaded_keys)
    assert prepared.summary()[2:] == [
        f"{source.name}: {len(files[source.stem])} tensors" for source in sources
    ]
    # What a part's file holds besides its tower is ignored as that part's.
    assert set(made.ignored) == {"vision.text_encoder.word", "teacher.mask_token"}


def test_parts_without_a_file_are_named(pair):
    with pytest.raises(ValueError, match=r"none for teacher\.\* \(VideoMAE's file\); pass"):
        recognize(*_shapes(pair.clips, pair.addon))
    with pytest.raises(ValueError, match=r"vision\.\* .* and teacher\.\*"):
        recognize(*_shapes(pair.addon))


def test_a_part_ignores_nothing_of_other_files(pair):
    pair.addon["mask_token"] = np.zeros(2, np.float32)
    found = recognize(*_shapes(pair.clips, pair.frames, pair.addon))
    with pytest.raises(ValueError, match=r"1 extra.*(?s:.*)extra     mask_token"):
        plan(found, upstream.infer_config(found, stored=pair.options))


def test_tensors_that_a_part_lacks_are_missing(pair):
    del pair.clips["vision_encoder.cls_token"]
    found = recognize(*_shapes(pair.clips, pair.frames, pair.addon))
    with pytest.raises(ValueError, match=r"missing   vision\.cls_token"):
        plan(found, upstream.infer_config(found, stored=pair.options))


def test_of_several_towers_one_must_be_asked_for(configs, shapes_of, monkeypatch):
    other = dataclasses.replace(PAIR, name="other", anchors=("other.word",), parts=())
    monkeypatch.setattr(recognition, "all_families", lambda: (*family.all_families(), other))
    shapes = shapes_of(configs["encoder"]) | {"other.word": (3,)}
    with pytest.raises(ValueError, match=r"found several: .*internvideo2 .*other \(pair\)"):
        recognize(shapes)
    assert recognize(shapes, architecture="video_vit").family.name == "internvideo2"
    assert video_vit.ANCHORS[0] in shapes
