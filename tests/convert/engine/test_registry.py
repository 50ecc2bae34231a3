"""The list of released checkpoints."""

import dataclasses

from internvideo_jax import models
from internvideo_jax.convert.engine import registry
from internvideo_jax.models.stage1 import stage1_student
from internvideo_jax.models.video_vit import internvideo2_1b, internvideo2_b14


def test_names_are_unique_and_found():
    names = [release.name for release in registry.releases()]
    assert len(names) == len(set(names))
    assert all(registry.find(name).name == name for name in names)


def test_architectures_exist_and_sources_are_complete():
    for release in registry.releases():
        assert release.architecture in models.ARCHITECTURES
        assert (release.source is not None) == (release.status == "released")
        assert ("num_classes" in release.sizes) == (release.architecture == "video_classifier")
        if release.status not in ("released", "never released"):
            assert release.note


def test_where_files_are():
    file = "OpenGVLab/InternVideo2-Stage1-1B-224p-f8-K400/1B_ft_k710_ft_k400_f16.pth"
    assert registry.find("internvideo2-1b-k400-f16").source == f"hf://{file}"
    repository = "OpenGVLab/InternVideo2-Stage1-1B-224p-f8-MiT"
    assert registry.find("internvideo2-1b-mit").source == repository


def test_what_a_release_adds_to_is_fetched_with_it_and_listed_with_its_licence():
    release = registry.find("InternVideo2-CLIP-B14")
    assert release.sources == (
        "hf://OpenGVLab/InternVideo2_distillation_models/stage1/B14/B14_dist_1B_stage2/"
        "pytorch_model.bin",
        "hf://apple/MobileCLIP-B-LT/mobileclip_blt.pt",
        "hf://OpenGVLab/InternVideo2_distillation_models/clip/B14/pytorch_model.bin",
    )
    assert registry.find("InternVideo2-CLIP-1B-224p-f8").sources == ()
    listed = registry.table([release])
    for place, licence in release.licences.items():
        assert place in listed
        assert licence in listed
    # Where the file itself shows other clips, the release says which.
    assert registry.find("InternVideo2-CLIP-6B-224p-f8").changes == {"num_frames": 8}


def test_configs_are_compared_with_the_release():
    release = registry.find("internvideo2-b14-k400")
    right = models.VideoClassifierConfig(internvideo2_b14(), 400)
    assert release.mismatches(right) == []
    wrong = models.VideoClassifierConfig(dataclasses.replace(internvideo2_1b(), num_frames=16), 600)
    assert release.mismatches(wrong) == [
        "encoder.width 768, found 1408",
        "encoder.num_frames 8, found 16",
        "num_classes 400, found 600",
    ]
    assert "config VideoClassifierConfig, found Stage1StudentConfig" in release.mismatches(
        stage1_student(internvideo2_b14())
    )
