"""Lists of videos with captions, as the benchmarks of retrieval publish them.

What a file is shows in its content (docs/retrieval.md); `_FORMS` below has the forms. A video is
named by its path below a root, or by an id, which stands for the file of that name anywhere below
the root. A video that is listed several times is one video with all of its captions.
"""

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from internvideo_jax.data.annotations.folders import find_videos
from internvideo_jax.data.annotations.formats import splitter
from internvideo_jax.data.annotations.lines import EntryError, quote, read_blocks, split_lines
from internvideo_jax.data.annotations.lists import read_annotations
from internvideo_jax.data.annotations.records import AnnotationError, ClipRecord, Problem
from internvideo_jax.data.decode.paths import AUDIO_EXTENSIONS, VIDEO_EXTENSIONS, join_inside
from internvideo_jax.files import check_regular, read_json

# MSR-VTT's 200,000 sentences take a tenth of it.
_MAX_JSON_BYTES = 2**28
_MEDIA = (*VIDEO_EXTENSIONS, *AUDIO_EXTENSIONS)
_PICKLES = (".pkl", ".pickle")
# Columns of LSMDC's lists; the last is the sentence.
_LSMDC_COLUMNS = 6


class Stated(NamedTuple):
    """What a list states once about a video.

    Attributes:
      place: line or item, from 1, or key.
      video: its path or id.
      captions: its texts.
    """

    place: int | str
    video: Any
    captions: Any


@dataclasses.dataclass(frozen=True)
class RetrievalClips:
    """The videos of a list, each once.

    Attributes:
      records: in the order of the list, with their captions.
      missing: ids of those that are not on disk.
      repeated: ids of those that the list names several times, with captions each time.
    """

    records: tuple[ClipRecord, ...]
    missing: tuple[str, ...]
    repeated: tuple[str, ...]


def read_retrieval(
    path: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str] | None = None,
    videos: str | os.PathLike[str] | None = None,
    max_seconds: float | None = None,
) -> RetrievalClips:
    """Reads a list of videos with captions.

    Args:
      path: the list.
      root: folder of the videos; by default the list's own.
      videos: a list of the videos to take, of which each must be in `path`: one a line, or JSON;
        None takes all.
      max_seconds: how much of each video is shown, from its beginning; None is all.

    Raises:
      AnnotationError: no such form, entries without a video or with empty captions (all are
        listed), or ids that stand for several files.
      ValueError: JSON that cannot be read.
      OSError: no such file.
    """
    path = os.fspath(path)
    folder = os.path.abspath(os.path.dirname(path) if root is None else root)
    check_regular(path)
    if path.lower().endswith((".jsonl", ".ndjson")):
        return _own_records(path, folder, videos, max_seconds)
    captions: dict[str, list[str]] = {}
    counts: dict[str, int] = {}
    problems = []
    for stated in _read(path):
        try:
            texts = _checked(stated, folder)
        except EntryError as error:
            line = stated.place if isinstance(stated.place, int) else None
            where = "" if line else f" ({stated.place})"
            problems.append(Problem(line, error.expected, f"{error.found}{where}"))
        else:
            captions.setdefault(stated.video, []).extend(texts)
            counts[stated.video] = counts.get(stated.video, 0) + 1
    if not captions and not problems:
        problems = [Problem(None, "at least one video with a caption", "none")]
    if problems:
        raise AnnotationError(path, problems, len(problems), len(problems) + len(captions))
    if videos is not None:
        captions = _chosen(captions, os.fspath(videos), path)
    paths, missing = _find(path, captions, folder)
    records = tuple(
        ClipRecord(video, paths[video], end=max_seconds, captions=tuple(texts))
        for video, texts in captions.items()
    )
    repeated = tuple(video for video in captions if counts[video] > 1)
    return RetrievalClips(records, missing, repeated)


def _own_records(
    path: str, folder: str, videos: str | os.PathLike[str] | None, max_seconds: float | None
) -> RetrievalClips:
    """The clips of a list in our own format, which states times by itself."""
    if videos is not None or max_seconds is not None:
        raise ValueError(
            f"{path}: expected neither videos nor max_seconds with jsonl, whose lines say which"
            " clips there are, from where to where; write another list"
        )
    records = tuple(read_annotations(path, root=folder))
    silent = [record.id for record in records if not any(map(str.strip, record.captions))]
    if silent:
        problem = Problem(None, "a caption of every clip", f"{len(silent)} without: {silent[0]}")
        raise AnnotationError(path, [problem], len(silent), len(records))
    missing = tuple(record.id for record in records if not os.path.exists(record.path))
    return RetrievalClips(records, missing, ())


def _checked(stated: Stated, folder: str) -> list[str]:
    """The captions of an entry, if it is right."""
    video, captions = stated.video, stated.captions
    if isinstance(video, EntryError):
        raise video
    if not isinstance(video, str) or not video.strip() or "\0" in video or "://" in video:
        raise EntryError("the path or the id of a video", quote(video))
    if join_inside(folder, video) is None:
        raise EntryError(
            f"a video inside the root {folder} (--root or root= names another)", quote(video)
        )
    texts = [captions] if isinstance(captions, str) else captions
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
        raise EntryError("a caption, or a list of captions", quote(captions))
    try:
        "".join((video, *texts)).encode()
    except UnicodeEncodeError as error:
        # Escapes may name half a character.
        raise EntryError("strings of Unicode text", quote(error.object)) from None
    if blank := [text for text in texts if not text.strip()]:
        raise EntryError("captions with words", quote(blank[0]))
    return texts


def _read(path: str) -> Iterator[Stated]:
    name = path.lower()
    if name.endswith(_PICKLES):
        problem = Problem(
            None,
            'JSON, {"video": ["caption", ...]}, or text, lines of "video caption"',
            "a pickle, which runs whatever code its maker likes; where you trust it, convert it:"
            " json.dump({v: [' '.join(c) for c in cs] for v, cs in"
            " pickle.load(open(PKL, 'rb')).items()}, open(JSON, 'w'))",
        )
        raise AnnotationError(path, [problem], 1, 0)
    if name.endswith(".json"):
        value = read_json(path, _MAX_JSON_BYTES)
        form = next((read for fits, read in _FORMS if fits(value)), None)
        if form is None:
            raise AnnotationError(path, [Problem(None, _EXPECTED, quote(value))], 1, 0)
        yield from form(value)
    else:
        yield from _read_text(path)


def _read_text(path: str) -> Iterator[Stated]:
    """Lines: MSR-VTT's CSV with a header, LSMDC's columns between tabs, or "video caption"."""
    header: list[str] | None = None
    split = splitter(",")
    for number, line in _lines(path):
        if isinstance(line, EntryError):
            yield Stated(number, line, None)
            continue
        if header is None:
            header = [name.strip().lower() for name in line.split(",")]
            if not {"video_id", "sentence"} <= set(header):
                header = []
        elif header:
            try:
                row = dict(zip(header, split(line), strict=True))
            except (EntryError, ValueError):
                expected = f"{len(header)} columns ({', '.join(header)})"
                yield Stated(number, EntryError(expected, quote(line)), None)
            else:
                yield Stated(number, row["video_id"], row["sentence"])
        if header:
            continue
        if "\t" in line:
            columns = line.split("\t")
            known = len(columns) == _LSMDC_COLUMNS
            yield Stated(number, columns[0] if known else None, columns[-1])
        else:
            video, _, caption = line.partition(" ")
            yield Stated(number, video, caption.strip())


def _lines(path: str) -> Iterator[tuple[int, str | EntryError]]:
    for first, block in read_blocks(path):
        yield from split_lines(first, block)


def _listed(value: Any, *keys: str) -> bool:
    """Whether a value is a list of objects, of which the first has these keys."""
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, dict) and first.keys() >= set(keys)


def _from_items(video: Sequence[str], captions: Sequence[str]) -> Callable[[Any], Iterator[Stated]]:
    """Reads a list of objects, which name the video and the captions by the first key they have."""

    def read(items: list[Any]) -> Iterator[Stated]:
        for number, item in enumerate(items, start=1):
            found = item if isinstance(item, dict) else {}
            named, texts = (
                next((found[key] for key in keys if found.get(key) is not None), None)
                for keys in (video, captions)
            )
            # Of several videos, the captions are of each.
            for one in named if isinstance(named, list) and named else [named]:
                yield Stated(f"item {number}", one, texts)

    return read


def _from_sentences(value: dict[str, Any]) -> Iterator[Stated]:
    """MSR-VTT's own file: sentences, each with its video."""
    return _from_items(["video_id"], ["caption"])(value["sentences"])


def _from_timed(value: dict[str, Any]) -> Iterator[Stated]:
    """ActivityNet Captions: sentences by video, which together are its paragraph."""
    for video, stated in value.items():
        texts = stated.get("sentences") if isinstance(stated, dict) else None
        yield Stated(f"key {quote(video)}", video, texts)


def _from_lists(value: dict[str, Any]) -> Iterator[Stated]:
    """Captions by video; each is a text or, as MSVD's raw ones are, a list of words."""
    for video, captions in value.items():
        texts = captions if isinstance(captions, list) else [captions]
        joined = [" ".join(map(str, text)) if isinstance(text, list) else text for text in texts]
        yield Stated(f"key {quote(video)}", video, joined)


def _first(value: Any) -> Any:
    return next(iter(value.values()), None) if isinstance(value, dict) else None


_EXPECTED = (
    "a list of objects with video and caption (InternVideo2), video and description (DiDeMo), or"
    " videoID and enCap (VATEX); or an object with sentences (MSR-VTT), or of captions by video"
    " (ActivityNet, MSVD)"
)
_FORMS: tuple[tuple[Callable[[Any], bool], Callable[[Any], Iterator[Stated]]], ...] = (
    (lambda v: _listed(v, "videoID", "enCap"), _from_items(["videoID"], ["enCap"])),
    (lambda v: _listed(v, "video", "description"), _from_items(["video"], ["description"])),
    (
        _listed,
        _from_items(["video", "image", "audio"], ["caption", "captions"]),
    ),
    (
        lambda v: isinstance(v, dict) and isinstance(v.get("sentences"), list),
        _from_sentences,
    ),
    (lambda v: isinstance(_first(v), dict), _from_timed),
    (lambda v: isinstance(_first(v), list | str), _from_lists),
)


def _chosen(captions: dict[str, list[str]], videos: str, path: str) -> dict[str, list[str]]:
    """The captions of the videos that another list names, in its order."""
    by_id = {_id(video): video for video in captions}
    names = _names(videos)
    unknown = [name for name in names if _id(name) not in by_id]
    if unknown:
        problem = Problem(
            None,
            f"videos of {path}",
            f"{len(unknown)} others: {', '.join(unknown[:5])}; name a list of the same benchmark",
        )
        raise AnnotationError(videos, [problem], 1, 0)
    chosen = (by_id[_id(name)] for name in names)
    return {video: captions[video] for video in chosen}


def _names(videos: str) -> list[str]:
    """Names of videos: one a line, or a JSON list, or the keys of a JSON object."""
    check_regular(videos)
    names: list[str] = []
    if videos.lower().endswith(".json"):
        names = [str(name) for name in read_json(videos, _MAX_JSON_BYTES)]
    else:
        for number, line in _lines(videos):
            if isinstance(line, EntryError):
                raise AnnotationError(videos, [Problem(number, line.expected, line.found)], 1, 1)
            names.append(line.strip())
    if not names:
        problem = Problem(None, "names of videos, one a line or as a JSON list", "none")
        raise AnnotationError(videos, [problem], 1, 0)
    return names


def _id(video: str) -> str:
    """A video's file name without endings that tell its kind ("x.avi.mp4" is "x")."""
    name = os.path.basename(video)
    while name.lower().endswith(_MEDIA):
        name = name[: name.rindex(".")]
    return name


def _is_id(video: str) -> bool:
    """Whether a name may stand for a file anywhere; with a folder, it stands for its path alone."""
    return not os.path.dirname(video)


def _by_id(paths: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for path in paths:
        found.setdefault(_id(path), []).append(path)
    return found


def _find(path: str, videos: Iterable[str], folder: str) -> tuple[dict[str, str], tuple[str, ...]]:
    """Where the videos lie, and which of them are missing."""
    paths = {video: join_inside(folder, video) or "" for video in videos}
    absent = [video for video, where in paths.items() if not os.path.isfile(where)]
    ids = {video: _id(video) for video in absent if _is_id(video)}
    if not ids or not os.path.isdir(folder):
        return paths, tuple(absent)
    found = _by_id(find_videos(folder))
    several = [
        Problem(None, f"one file for the video {video}", " and ".join(found[name]))
        for video, name in ids.items()
        if len(found.get(name, ())) > 1
    ]
    if several:
        raise AnnotationError(path, several, len(several), len(paths))
    paths |= {video: found[name][0] for video, name in ids.items() if name in found}
    return paths, tuple(video for video in absent if ids.get(video) not in found)
