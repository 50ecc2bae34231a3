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
from pathlib import PurePosixPath
from typing import Any, Literal

from internvideo_jax.config import nearest_name
from internvideo_jax.convert import families
from internvideo_jax.convert.engine.family import all_families
from internvideo_jax.models import ARCHITECTURES

Status = Literal["released", "elsewhere", "broken link", "gated", "never released"]

LICENCE = "code Apache-2.0, weights: see the model card"


@dataclasses.dataclass(frozen=True)
class HubFile:
    """A file that a release needs besides its own.

    Attributes:
      repo: Hugging Face repository.
      file: file in it.
      licence: as its owner states it.
      sha256: of the file, where it is known.
    """

    repo: str
    file: str
    licence: str
    sha256: str = ""

    @property
    def place(self) -> str:
        """The repository and the file in it."""
        return f"{self.repo}/{self.file}"


@dataclasses.dataclass(frozen=True)
class Released:
    """A checkpoint that upstream's documents name.

    Attributes:
      name: what `--model` takes.
      architecture: what it converts to, a name in `models.ARCHITECTURES`.
      sizes: what the config of its files must hold, by field ("encoder.width").
      repo: Hugging Face repository, or "" where there is none.
      file: file in it, or "" where upstream links the repository alone.
      status: whether everyone can fetch it, and from the hub.
      result: as published, of classifiers top-1 in per cent over 3 crops x 4 clips.
      note: what to know before using it.
      licence: of its weights.
      adds_to: files whose model the file completes, in the order in which `convert` takes them.
      tokenizer: files of its tokenizer.
      changes: clips that it is for, where its files are for others: num_frames, image_size.
    """

    name: str
    architecture: str
    sizes: Mapping[str, int]
    repo: str = ""
    file: str = ""
    status: Status = "released"
    result: str = ""
    note: str = ""
    licence: str = LICENCE
    adds_to: tuple[HubFile, ...] = ()
    tokenizer: tuple[HubFile, ...] = ()
    changes: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def place(self) -> str:
        """The repository, and the file in it if one is linked."""
        return "/".join(part for part in (self.repo, self.file) if part)

    @property
    def source(self) -> str | None:
        """Where `convert` fetches its own file; None where it cannot."""
        if self.status != "released":
            return None
        return f"hf://{self.repo}/{self.file}" if self.file else self.repo

    @property
    def sources(self) -> tuple[str, ...]:
        """Where `convert` fetches all of its weights; none where it cannot."""
        if self.source is None:
            return ()
        return (*(f"hf://{file.place}" for file in self.adds_to), self.source)

    @property
    def files(self) -> str:
        """Names of the files that `convert` takes, as on its command line."""
        own = self.file or "FILE"
        return " ".join(PurePosixPath(n).name for n in (*(f.file for f in self.adds_to), own))

    @property
    def licences(self) -> dict[str, str]:
        """Licences of what it is made of, by where that is."""
        others = {file.place: file.licence for file in (*self.adds_to, *self.tokenizer)}
        return {**others, self.place: self.licence}

    def mismatches(self, config: Any) -> list[str]:
        """How a checkpoint's config differs from what this release should be."""
        wanted, found = ARCHITECTURES[self.architecture].config_cls, type(config)
        if found is not wanted:
            return [f"config {wanted.__name__}, found {found.__name__}"]
        sizes = {field: _field(config, field) for field in self.sizes}
        return [f"{f} {n}, found {sizes[f]}" for f, n in self.sizes.items() if n != sizes[f]]


def _field(config: Any, path: str) -> Any:
    """A field of a config by its dotted name; None where there is none, as of another tower."""
    return functools.reduce(lambda part, name: getattr(part, name, None), path.split("."), config)


def releases() -> tuple[Released, ...]:
    """All of them, family by family."""
    files = (resources.files(families) / f"{family.name}.json" for family in all_families())
    listed = (json.loads(file.read_text()) for file in files if file.is_file())
    return tuple(_released(fields) for family in listed for fields in family)


def _released(fields: Mapping[str, Any]) -> Released:
    files = {n: tuple(HubFile(**f) for f in fields.get(n, ())) for n in ("adds_to", "tokenizer")}
    return Released(**{**fields, **files})


def named(name: str) -> Released | None:
    """The release of that name, in whatever capitals; None if there is none."""
    return next((each for each in releases() if each.name.lower() == name.lower()), None)


def find(name: str) -> Released:
    """The release of that name, in whatever capitals.

    Raises:
      ValueError: there is none; suggests the nearest name.
    """
    if (release := named(name)) is None:
        known = [each.name for each in releases()]
        raise ValueError(
            f"expected the name of a release, found {name!r}{nearest_name(name, known)}"
            " (`internvideo-jax convert --list` shows all)"
        )
    return release


def table(listed: Iterable[Released]) -> str:
    """Releases as lines of text."""
    rows = [("name", "status", "frames", "classes", "top-1", "where")]
    notes: dict[str, list[str]] = {}
    for r in listed:
        shown = {**r.sizes, **r.changes}
        sizes = {field.rpartition(".")[2]: str(n) for field, n in shown.items()}
        rows.append(
            (
                r.name,
                r.status,
                sizes.get("num_frames", "-"),
                sizes.get("num_classes", "-"),
                r.result or "-",
                r.place or "-",
            )
        )
        notes[r.name] = [r.note] * bool(r.note)
        notes[r.name] += [f"licence: {r.licence}"] * (r.licence != LICENCE)
        for what, files in (("with", r.adds_to), ("tokenizer", r.tokenizer)):
            notes[r.name] += [f"{what} {f.place} ({f.licence})" for f in files]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        lines.append(line.rstrip())
        lines += [f"    {note}" for note in notes.get(row[0], ())]
    return "\n".join([*lines, "", f"Licence, where none is named: {LICENCE}."])
