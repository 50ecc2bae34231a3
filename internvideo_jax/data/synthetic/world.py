"""The demo's world: small video files with sound, captions, labels, and combinations held out.

A clip's content is one of 6 colours x 4 shapes x 2 sizes x 8 motions x 3 backgrounds = 1,152, and
one of 3 voices that only the sound and the caption know. Each shape lacks one colour and one motion
in training: 840 contents are seen, 312 are held out. Where in the frame, how large exactly and from
which angle is drawn anew for each clip. In the middle of a clip the object's place and size do not
depend on its motion, so that one frame says nothing about it.

Two further splits are for retrieval: crossed clips, where each look comes with every motion, so
that looks alone do not find the right one; and clips that show the very same with every voice.
"""

import concurrent.futures
import dataclasses
import json
import multiprocessing
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec
import numpy as np

from internvideo_jax.data.synthetic.scenes import (
    COLORS,
    Background,
    Motion,
    Scene,
    Shape,
    Voice,
    render,
    soundtrack,
    write_video,
)
from internvideo_jax.files import parse_json, write_json, write_text
from internvideo_jax.processes import end_with_parent

Size = Literal["small", "large"]
Split = Literal["train", "probe", "test", "crossed", "voices"]
# Lists of clips with captions that retrieval is measured on.
RetrievalList = Literal["test_1", "test_2", "sounds", "crossed", "voices"]

SHAPES: tuple[Shape, ...] = get_args(Shape)
MOTIONS: tuple[Motion, ...] = get_args(Motion)
BACKGROUNDS: tuple[Background, ...] = get_args(Background)
VOICES: tuple[Voice, ...] = get_args(Voice)
SIZES: tuple[Size, ...] = get_args(Size)
SPLITS: tuple[Split, ...] = get_args(Split)
FPS = 25

# What a shape is never seen with in training, in the order of `SHAPES`.
_MISSING_COLORS = dict(zip(SHAPES, COLORS, strict=False))
_MISSING_MOTIONS = dict(zip(SHAPES, MOTIONS[::2], strict=True))

_RADII = {"small": (0.13, 0.15), "large": (0.23, 0.27)}
_CENTER = (0.36, 0.64)
_REACH = 0.25
# Of circular paths, which lie to one side of the middle of the clip.
_CIRCLE_REACH = 0.17

# Part of the description, so that files of an older renderer are not taken for those of this one.
_RENDERER = 1
_DESCRIPTION = "world.json"
# Clips of one task of a process.
_CHUNK = 16
# Fewer clips are not worth the start of processes.
_WORTH_PROCESSES = 100

VERBS: dict[Motion, str] = {
    "left": "moves left",
    "right": "moves right",
    "up": "moves up",
    "down": "moves down",
    "clockwise": "circles clockwise",
    "anticlockwise": "circles anticlockwise",
    "growing": "grows",
    "shrinking": "shrinks",
}
TEMPLATES = (
    "a {size} {color} {shape} {verb} over a {background} background with a {voice}",
    "over a {background} background a {size} {color} {shape} {verb} with a {voice}",
    "with a {voice} a {size} {color} {shape} {verb} over a {background} background",
    "a {color} {shape} that is {size} {verb} over a {background} background with a {voice}",
)


@dataclasses.dataclass(frozen=True)
class Content:
    """What a caption says of a clip."""

    color: str
    shape: Shape
    size: Size
    motion: Motion
    background: Background
    voice: Voice

    @property
    def is_held_out(self) -> bool:
        """Whether training clips never show this shape in this colour or with this motion."""
        return (
            self.color == _MISSING_COLORS[self.shape] or self.motion == _MISSING_MOTIONS[self.shape]
        )

    @property
    def audible(self) -> tuple[str, ...]:
        """What the sound says of it."""
        return self.size, self.motion, self.voice

    @property
    def look(self) -> int:
        """Number of what any single frame shows: colour, shape and size, of `NUM_LOOKS`."""
        numbers = (
            list(COLORS).index(self.color),
            SHAPES.index(self.shape),
            SIZES.index(self.size),
        )
        return int(np.ravel_multi_index(numbers, (len(COLORS), len(SHAPES), len(SIZES))))

    def caption(self, rng: np.random.Generator) -> str:
        """One of the sentences that say it."""
        template = TEMPLATES[rng.integers(len(TEMPLATES))]
        return template.format(**dataclasses.asdict(self), verb=VERBS[self.motion])

    def scene(self, rng: np.random.Generator) -> Scene:
        """A clip with this content."""
        x, y = rng.uniform(*_CENTER, size=2)
        angle = rng.uniform(0, 2 * np.pi)
        reach = _REACH
        if self.motion in ("clockwise", "anticlockwise"):
            reach = _CIRCLE_REACH
            # Half a turn after the start, the object is at the place that was drawn.
            turn = 1 if self.motion == "clockwise" else -1
            x += reach * np.cos(angle)
            y += turn * reach * np.sin(angle)
        return Scene(
            self.shape,
            self.color,
            self.motion,
            self.background,
            radius=rng.uniform(*_RADII[self.size]),
            center=(x, y),
            reach=reach,
            angle=angle,
            voice=self.voice,
        )


NUM_LOOKS = len(COLORS) * len(SHAPES) * len(SIZES)


@dataclasses.dataclass(frozen=True)
class WorldConfig:
    """Size of a world.

    Attributes:
      train: clips to learn from, of the contents that are not held out.
      probe: more of the same kind, for probes: nothing else has seen their labels.
      test: clips to be judged on, half of them of held-out contents, no content twice.
      image_size: side of a frame in pixels, even.
      num_frames: frames of a clip.
      seed: of everything that is drawn.
      crossed: looks, of all that there are, that each come with every motion.
      voices: contents, held out or not, that each come with every voice.
    """

    train: int = 2400
    probe: int = 600
    test: int = 600
    image_size: int = 96
    num_frames: int = 32
    seed: int = 0
    crossed: int = 25
    voices: int = 66

    def __post_init__(self) -> None:
        seen, held_out = (len(_visible(held_out=h)) for h in (False, True))
        most = 2 * min(seen, held_out)
        if not 2 <= self.test <= most or self.test % 2 or min(self.train, self.probe) < 1:
            raise ValueError(
                f"expected an even number of test clips up to {most} and at least one clip of the"
                f" other kinds, found train={self.train}, probe={self.probe}, test={self.test}"
            )
        if not (1 <= self.crossed <= NUM_LOOKS and 1 <= self.voices <= seen + held_out):
            raise ValueError(
                f"expected 1 to {NUM_LOOKS} crossed looks and 1 to {seen + held_out} contents with"
                f" all voices, found crossed={self.crossed}, voices={self.voices}"
            )

    def num_clips(self, split: Split) -> int:
        """Clips of a split."""
        each = {"crossed": len(MOTIONS), "voices": len(VOICES)}
        count: int = getattr(self, split)
        return count * each.get(split, 1)


@dataclasses.dataclass(frozen=True)
class World:
    """A world on disk.

    Attributes:
      directory: holds the clips `SPLIT/NUMBER.mp4`, and for each split `SPLIT.jsonl` (the motion as
        label, captions), `SPLIT_looks.jsonl` (the look as label) and `SPLIT_contents.jsonl`
        (a `Content` per line); beside them the lists of `retrieval_list`.
    """

    directory: Path

    def annotations(self, split: Split) -> Path:
        """Annotations with the index in `MOTIONS` as label."""
        return self.directory / f"{split}.jsonl"

    def look_annotations(self, split: Split) -> Path:
        """Annotations with `Content.look` as label."""
        return self.directory / f"{split}_looks.jsonl"

    def retrieval_list(self, name: RetrievalList) -> Path:
        """A list that `data.annotations.retrieval.read_retrieval` reads.

        "test_1" and "test_2" are halves of the test clips, each with as many held-out contents as
        the other. "sounds" has the clips of "test_1", each with the captions of all that sound
        alike.
        """
        return self.directory / f"{name}.{'json' if name == 'sounds' else 'jsonl'}"

    def contents(self, split: Split) -> list[Content]:
        """What the clips show, in the order of the annotations."""
        path = self.directory / f"{split}_contents.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines()
        return [msgspec.convert(parse_json(line, str(path)), Content) for line in lines]


def draw_contents(config: WorldConfig, split: Split) -> list[Content]:
    """Contents of a split's clips: as evenly as their number admits, then in random order.

    Those with all voices stay side by side.
    """
    rng = _generator(config, split)
    if split == "voices":
        visible = _visible(held_out=False) + _visible(held_out=True)
        return [
            dataclasses.replace(visible[i], voice=voice)
            for i in rng.permutation(len(visible))[: config.voices]
            for voice in VOICES
        ]
    if split == "crossed":
        looks = list(product(COLORS, SHAPES, SIZES))
        contents = [
            Content(
                looks[i][0],
                looks[i][1],
                looks[i][2],
                motion,
                BACKGROUNDS[rng.integers(len(BACKGROUNDS))],
                VOICES[rng.integers(len(VOICES))],
            )
            for i in rng.permutation(len(looks))[: config.crossed]
            for motion in MOTIONS
        ]
    elif split == "test":
        halves = (_drawn(rng, _visible(held_out=h), config.test // 2) for h in (False, True))
        contents = [content for half in halves for content in half]
    else:
        contents = _drawn(rng, _visible(held_out=False), getattr(config, split))
    return [contents[i] for i in rng.permutation(len(contents))]


def find_world(config: WorldConfig, directory: str | os.PathLike[str]) -> World:
    """Where `make_world` writes a world, which need not be there."""
    name = "world-" + "-".join(str(value) for value in _description(config).values())
    return World(Path(directory).absolute() / name)


def make_world(
    config: WorldConfig,
    directory: str | os.PathLike[str],
    *,
    processes: int = 2,
    report: Callable[[int], object] = lambda clips: None,
) -> World:
    """Writes the files of a world, those that are not there yet.

    Args:
      config: size of the world.
      directory: folder for worlds of any size, each in a folder of its own.
      processes: how many write clips.
      report: called with the number of clips written since the last call.

    Raises:
      OSError: files cannot be written.
    """
    world, description = find_world(config, directory), _description(config)
    if (world.directory / _DESCRIPTION).exists():
        return world
    tasks: list[tuple[WorldConfig, Path, Split, list[tuple[int, Content]]]] = []
    for split in SPLITS:
        contents = draw_contents(config, split)
        folder = world.directory / split
        folder.mkdir(parents=True, exist_ok=True)
        missing = [
            (number, content)
            for number, content in enumerate(contents)
            if not (folder / _clip_name(number)).exists()
        ]
        report(len(contents) - len(missing))
        tasks += [
            (config, folder, split, missing[start : start + _CHUNK])
            for start in range(0, len(missing), _CHUNK)
        ]
        _write_lists(config, world, split, contents)
    if sum(len(clips) for *_, clips in tasks) < _WORTH_PROCESSES:
        processes = 1
    for written in _map(_write_clips, tasks, processes):
        report(written)
    # Written last: a folder without it is not complete.
    write_json(world.directory / _DESCRIPTION, description)
    return world


def _description(config: WorldConfig) -> dict[str, int]:
    return {"renderer": _RENDERER, **dataclasses.asdict(config)}


def _visible(held_out: bool) -> list[Content]:
    """Contents that differ in what is seen, with the first voice."""
    parts = product(COLORS, SHAPES, SIZES, MOTIONS, BACKGROUNDS, VOICES[:1])
    return [c for c in (Content(*p) for p in parts) if c.is_held_out == held_out]


def _drawn(rng: np.random.Generator, contents: Sequence[Content], count: int) -> list[Content]:
    """`count` contents, all of them before any comes again, with voices."""
    rounds = -(-count // len(contents))
    order = np.concatenate([rng.permutation(len(contents)) for _ in range(rounds)])[:count]
    voices = rng.integers(len(VOICES), size=count)
    return [
        dataclasses.replace(contents[i], voice=VOICES[v])
        for i, v in zip(order, voices, strict=True)
    ]


def _generator(config: WorldConfig, split: Split, *more: int) -> np.random.Generator:
    return np.random.default_rng((config.seed, SPLITS.index(split), *more))


def _clip_name(number: int) -> str:
    return f"{number:05d}.mp4"


def _write_clips(task: tuple[WorldConfig, Path, Split, list[tuple[int, Content]]]) -> int:
    """Writes some clips, each of draws of its own; returns how many."""
    config, folder, split, clips = task
    for number, content in clips:
        # 0 draws the scene, 1 the caption.
        scene = content.scene(_generator(config, split, _drawn_number(split, number), 0))
        write_video(
            folder / _clip_name(number),
            render(scene, config.num_frames, config.image_size),
            FPS,
            soundtrack(scene, config.num_frames / FPS),
        )
    return len(clips)


def _drawn_number(split: Split, number: int) -> int:
    """What the draws of a clip go by: clips that differ in the voice alone have the same."""
    return number // len(VOICES) if split == "voices" else number


def _write_lists(
    config: WorldConfig, world: World, split: Split, contents: Sequence[Content]
) -> None:
    clips = []
    for number, content in enumerate(contents):
        caption = content.caption(_generator(config, split, _drawn_number(split, number), 1))
        clips.append({"video": f"{split}/{_clip_name(number)}", "caption": caption})
    pairs = list(zip(clips, contents, strict=True))
    motions = [clip | {"label": MOTIONS.index(content.motion)} for clip, content in pairs]
    looks = [clip | {"label": content.look} for clip, content in pairs]
    attributes = [dataclasses.asdict(content) for content in contents]
    for path, rows in (
        (world.annotations(split), motions),
        (world.look_annotations(split), looks),
        (world.directory / f"{split}_contents.jsonl", attributes),
    ):
        write_text(path, _lines(rows))
    if split == "test":
        _write_retrieval_lists(world, clips, contents)


def _write_retrieval_lists(
    world: World, clips: Sequence[dict[str, str]], contents: Sequence[Content]
) -> None:
    """The test clips in halves, and the first again with the captions of all that sounds alike."""
    by_kind = sorted(range(len(clips)), key=lambda number: contents[number].is_held_out)
    first, second = (sorted(by_kind[start::2]) for start in (0, 1))
    write_text(world.retrieval_list("test_1"), _lines([clips[n] for n in first]))
    write_text(world.retrieval_list("test_2"), _lines([clips[n] for n in second]))
    captions: dict[tuple[str, ...], list[str]] = {}
    for n in first:
        captions.setdefault(contents[n].audible, []).append(clips[n]["caption"])
    sounds = [clips[n] | {"caption": captions[contents[n].audible]} for n in first]
    write_json(world.retrieval_list("sounds"), sounds)


def _lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def _map(function: Callable[[Any], int], tasks: Sequence[Any], processes: int) -> Iterable[int]:
    if processes == 1:
        yield from map(function, tasks)
        return
    # Forked children of a process with JAX's threads may hang.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(processes, context, end_with_parent) as pool:
        yield from pool.map(function, tasks)
