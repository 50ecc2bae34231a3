"""The InternVideo2 checkpoints of stage 1 that upstream names.

Source: `InternVideo2/single_modality/MODEL_ZOO.md` and `INSTALL.md` of OpenGVLab/InternVideo at
commit 3965eef. Results are upstream's: top-1 in per cent over 3 crops x 4 clips at 224 pixels.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

from internvideo_jax.convert.engine.registry import Released

_DISTILLED = "OpenGVLab/InternVideo2_distillation_models"
_WIDTHS = {"s14": 384, "b14": 768, "l14": 1024, "1b": 1408, "6b": 3200}
_CLASSES = {"k710": 710, "k400": 400, "k600": 600, "k700": 700, "mit": 339, "ssv1": 174}
_CLASSES |= {"ssv2": 174, "anet": 200, "hacs": 200}


def _sizes(size: str, num_frames: int = 8, image_size: int = 224) -> dict[str, int]:
    encoder = {"width": _WIDTHS[size], "num_frames": num_frames, "image_size": image_size}
    return {f"encoder.{field}": n for field, n in encoder.items()}


def _classifier(
    size: str, data: str, result: str, frames: int = 8, image_size: int = 224, **options: Any
) -> Released:
    # Only the 1B and 6B models come with two clip lengths of one data set.
    suffix = f"-f{frames}" if size in ("1b", "6b") and data in ("k400", "k600", "k700") else ""
    sizes = _sizes(size, num_frames=frames, image_size=image_size)
    return Released(
        f"internvideo2-{size}-{data}{suffix}",
        "video_classifier",
        sizes | {"num_classes": _CLASSES[data]},
        result=result,
        **options,
    )


def _one_billion() -> Iterator[Released]:
    stem = "OpenGVLab/InternVideo2-Stage1-1B-224p"
    yield Released(
        "internvideo2-1b-pretrain",
        "stage1_student",
        _sizes("1b"),
        repo=f"{stem}-f8",
        file="pretrain.pth",
    )
    yield _classifier("1b", "k710", "87.6", repo=f"{stem}-f8-k710", file="1B_ft_k710_f8.pth")
    for frames, result in ((8, "91.3"), (16, "91.6")):
        file = f"1B_ft_k710_ft_k400_f{frames}.pth"
        yield _classifier("1b", "k400", result, frames, repo=f"{stem}-f8-K400", file=file)
    yield _classifier(
        "1b",
        "k600",
        "91.4",
        status="broken link",
        note="upstream's link leads to the K400 file; look for an f8 file in"
        f" {stem}-f8-K600 and pass it as SOURCE",
    )
    file = "1B_ft_k710_ft_k600_f16.pth"
    yield _classifier("1b", "k600", "91.6", 16, repo=f"{stem}-f8-K600", file=file)
    for frames, result in ((8, "85.0"), (16, "85.4")):
        file = f"1B_ft_k710_ft_k700_f{frames}.pth"
        yield _classifier("1b", "k700", result, frames, repo=f"{stem}-K700", file=file)
    yield _classifier(
        "1b", "mit", "50.8", repo=f"{stem}-f8-MiT", note="upstream links the repository, no file"
    )
    for data, result in (("ssv1", "68.5"), ("ssv2", "77.1")):
        file = f"1B_ft_{data}_f8.pth"
        note = "upstream's table says 4 clips, its script tests 2"
        yield _classifier("1b", data, result, repo=f"{stem}-f8-SthSth", file=file, note=note)


def _distilled() -> Iterator[Released]:
    results = {
        "s14": ("79.6", "85.4", "86.0", "75.7", "71.6"),
        "b14": ("83.5", "88.4", "88.9", "80.5", "73.5"),
        "l14": ("86.2", "90.4", "90.6", "83.5", "76.4"),
    }
    broken = {("l14", "k710"): "the distillation", ("b14", "ssv2"): "the K700"}
    for size, published in results.items():
        folder = f"stage1/{size.upper()}/{size.upper()}"
        yield Released(
            f"internvideo2-{size}-distill",
            "distill_student",
            _sizes(size),
            repo=_DISTILLED,
            file=f"{folder}_dist_1B_stage2/pytorch_model.bin",
        )
        for data, result in zip(("k710", "k400", "k600", "k700", "ssv2"), published, strict=True):
            run = f"ft_{data}_f8" if data in ("k710", "ssv2") else f"ft_k710_ft_{data}_f8"
            file = f"{folder}_{run}/pytorch_model.bin"
            if wrong := broken.get((size, data)):
                yield _classifier(
                    size,
                    data,
                    result,
                    status="broken link",
                    note=f"upstream's link leads to {wrong} file; by the names of its siblings it"
                    f" would be hf://{_DISTILLED}/{file}, to be passed as SOURCE",
                )
            else:
                yield _classifier(size, data, result, repo=_DISTILLED, file=file)


def _six_billion() -> Iterator[Released]:
    missing: dict[str, Any] = {"status": "never released"}
    yield Released("internvideo2-6b-pretrain", "stage1_student", _sizes("6b"), **missing)
    yield _classifier("6b", "k710", "88.1", **missing)
    for data, results in (("k400", (91.9, 92.1)), ("k600", (91.7, 91.9)), ("k700", (85.7, 85.9))):
        for frames, result in zip((8, 16), results, strict=True):
            yield _classifier("6b", data, str(result), frames, **missing)
    yield _classifier("6b", "mit", "51.0", **missing)
    at_336 = _classifier("6b", "mit", "51.2", image_size=336, **missing)
    yield dataclasses.replace(at_336, name="internvideo2-6b-mit-336")
    yield _classifier("6b", "ssv1", "69.7", **missing)
    yield _classifier("6b", "ssv2", "77.5", **missing)
    yield _classifier("6b", "anet", "95.9", note="mAP 98.2", **missing)
    yield _classifier("6b", "hacs", "97.0", note="mAP 98.8", **missing)


RELEASES: tuple[Released, ...] = (*_one_billion(), *_distilled(), *_six_billion())
