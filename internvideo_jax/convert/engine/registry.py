"""The checkpoints that upstream names: where they are, what they are, what they reported.

They are listed in a JSON file for each family, beside its module.

Source for InternVideo2: `InternVideo2/single_modality/MODEL_ZOO.md` and `INSTALL.md` of
OpenGVLab/InternVideo at commit 3965eef.
"""

import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping
from importlib import resources
from typing import Any, Literal

from internvideo_jax.config import nearest_name
from internvideo_jax.convert import families
from internvideo_jax.convert.engine.family import all_families
from internvideo_jax.models import ARCHITECTURES

Status = Literal["released", "elsewhere", "broken link", "gated", "never released"]

LICENCE = "code Apache-2.0, weights: see the model card"


@dataclasses.dataclass(frozen=True)
class Released:
    """A checkpoint that upstream's documents name.

    Attributes:
      name: what `--model` takes.
      architecture: what it converts to, a name in `models.ARCHITECTURES`.
      sizes: what its config must hold, by field ("encoder.width").
      repo: Hugging Face repository, or "" where there is none.
      file: file in it, or "" where upstream links the repository alone.
      status: whether everyone can fetch it, and from the hub.
      result: as published, of classifiers top-1 in per cent over 3 crops x 4 clips.
      note: what to know before using it.
    """

    name: str
    architecture: str
    sizes: Mapping[str, int]
    repo: str = ""
    file: str = ""
    status: Status = "released"
    result: str = ""
    note: str = ""

    @property
    def source(self) -> str | None:
        """Where `convert` fetches it; None where it cannot."""
        if self.status != "released":
            return None
        return f"hf://{self.repo}/{self.file}" if self.file else self.repo

    def mismatches(self, config: Any) -> list[str]:
        """How a checkpoint's config differs from what this release should be."""
        wanted, found = ARCHITECTURES[self.architecture].config_cls, type(config)
        if found is not wanted:
            return [f"config {wanted.__name__}, found {found.__name__}"]
        sizes = {field: functools.reduce(getattr, field.split("."), config) for field in self.sizes}
        return [f"{f} {n}, found {sizes[f]}" for f, n in self.sizes.items() if n != sizes[f]]


def releases() -> tuple[Released, ...]:
    """All of them, family by family."""
    files = (resources.files(families) / f"{family.name}.json" for family in all_families())
    listed = (json.loads(file.read_text()) for file in files if file.is_file())
    return tuple(Released(**fields) for family in listed for fields in family)


def find(name: str) -> Released:
    """The release of that name.

    Raises:
      ValueError: there is none; suggests the nearest name.
    """
    known = {release.name: release for release in releases()}
    if name not in known:
        raise ValueError(
            f"expected the name of a release, found {name!r}{nearest_name(name, known)}"
            " (`internvideo-jax convert --list` shows all)"
        )
    return known[name]


def table(listed: Iterable[Released]) -> str:
    """Releases as lines of text."""
    rows = [("name", "status", "frames", "classes", "top-1", "where")]
    notes = {}
    for r in listed:
        sizes = {field.rpartition(".")[2]: str(n) for field, n in r.sizes.items()}
        where = "/".join(part for part in (r.repo, r.file) if part)
        rows.append(
            (
                r.name,
                r.status,
                sizes.get("num_frames", "-"),
                sizes.get("num_classes", "-"),
                r.result or "-",
                where or "-",
            )
        )
        notes[r.name] = r.note
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        lines.append(line.rstrip())
        if notes.get(row[0]):
            lines.append(f"    {notes[row[0]]}")
    return "\n".join([*lines, "", f"Licence: {LICENCE}."])
