"""The stage-1 checkpoints that upstream names: where they are, what they are, what they reported.

Source: `InternVideo2/single_modality/MODEL_ZOO.md` and `INSTALL.md` of OpenGVLab/InternVideo at
commit 3965eef. Results are upstream's: top-1 in per cent over 3 crops x 4 clips at 224 pixels.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any, Literal

from internvideo_jax.config import nearest_name
from internvideo_jax.convert.engine.fitting import encoder_config
from internvideo_jax.models import ARCHITECTURES

Status = Literal["released", "broken link", "gated", "never released"]

_LICENCE = "code Apache-2.0, weights: see the model card"
_DISTILLED = "OpenGVLab/InternVideo2_distillation_models"
_WIDTHS = {"s14": 384, "b14": 768, "l14": 1024, "1b": 1408, "6b": 3200}
_CLASSES = {"k710": 710, "k400": 400, "k600": 600, "k700": 700, "mit": 339, "ssv1": 174}
_CLASSES |= {"ssv2": 174, "anet": 200, "hacs": 200}


@dataclasses.dataclass(frozen=True)
class Released:
    """A checkpoint that upstream's documents name.

    Attributes:
      name: what `--model` takes.
      architecture: what it converts to, a name in `models.ARCHITECTURES`.
      width: token width, which tells the model's size.
      num_frames: frames per clip.
      image_size: side of a frame in pixels.
      num_classes: size of the head; 0 for models without one.
      repo: Hugging Face repository, or "" where there is none.
      file: file in it, or "" where upstream links the repository alone.
      status: whether everyone can fetch it.
      result: as published.
      note: what to know before using it.
      licence: as far as it is known.
    """

    name: str
    architecture: str
    width: int
    num_frames: int = 8
    image_size: int = 224
    num_classes: int = 0
    repo: str = ""
    file: str = ""
    status: Status = "released"
    result: str = ""
    note: str = ""
    licence: str = _LICENCE

    @property
    def source(self) -> str | None:
        """Where `convert` fetches it; None where it cannot."""
        if self.status != "released":
            return None
        return f"hf://{self.repo}/{self.file}" if self.file else self.repo

    def mismatches(self, config: Any) -> list[str]:
        """How a checkpoint's config differs from what this release should be."""
        encoder = encoder_config(config)
        expected = {
            "config": (ARCHITECTURES[self.architecture].config_cls.__name__, type(config).__name__),
            "width": (self.width, encoder.width),
            "frames": (self.num_frames, encoder.num_frames),
            "pixels": (self.image_size, encoder.image_size),
            "classes": (self.num_classes, getattr(config, "num_classes", 0)),
        }
        return [f"{n} {want}, found {got}" for n, (want, got) in expected.items() if want != got]


def find(name: str) -> Released:
    """The release of that name.

    Raises:
      ValueError: there is none; suggests the nearest name.
    """
    for release in RELEASES:
        if release.name == name:
            return release
    names = [release.name for release in RELEASES]
    raise ValueError(
        f"expected the name of a release, found {name!r}{nearest_name(name, names)}"
        " (`internvideo-jax convert --list` shows all)"
    )


def table(releases: Iterable[Released]) -> str:
    """The releases as lines of text."""
    rows = [("name", "status", "frames", "classes", "top-1", "where")]
    rows += [
        (
            r.name,
            r.status,
            str(r.num_frames),
            str(r.num_classes or "-"),
            r.result or "-",
            "/".join(part for part in (r.repo, r.file) if part) or "-",
        )
        for r in releases
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    notes = {r.name: r.note for r in releases}
    for row in rows:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        lines.append(line.rstrip())
        if notes.get(row[0]):
            lines.append(f"    {notes[row[0]]}")
    return "\n".join([*lines, "", f"Licence: {_LICENCE}."])


def _classifier(size: str, data: str, result: str, frames: int = 8, **options: Any) -> Released:
    # Only the 1B and 6B models come with two clip lengths of one data set.
    suffix = f"-f{frames}" if size in ("1b", "6b") and data in ("k400", "k600", "k700") else ""
    return Released(
        f"internvideo2-{size}-{data}{suffix}",
        "video_classifier",
        _WIDTHS[size],
        num_frames=frames,
        num_classes=_CLASSES[data],
        result=result,
        **options,
    )


def _one_billion() -> Iterator[Released]:
    stem = "OpenGVLab/InternVideo2-Stage1-1B-224p"
    yield Released(
        "internvideo2-1b-pretrain", "stage1_student", 1408, repo=f"{stem}-f8", file="pretrain.pth"
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
            _WIDTHS[size],
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
    yield Released("internvideo2-6b-pretrain", "stage1_student", 3200, **missing)
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


def _teachers() -> Iterator[Released]:
    yield Released(
        "internvl-6b-teacher",
        "teacher",
        3200,
        num_frames=1,
        repo="OpenGVLab/InternVL",
        file="internvl_c_13b_224px.pth",
        note="holds a text tower as well, which is not converted",
    )
    yield Released(
        "videomaev2-g-teacher",
        "videomae_teacher",
        1408,
        num_frames=16,
        status="gated",
        note="vit_g_hybrid_1200e_pre.pth, on request from github.com/OpenGVLab/VideoMAEv2; pass"
        " the file as SOURCE",
    )


RELEASES: tuple[Released, ...] = (*_one_billion(), *_distilled(), *_six_billion(), *_teachers())
