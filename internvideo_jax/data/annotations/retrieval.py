"""Lists of videos with captions, as the benchmarks of retrieval publish them.

What a file is shows in its content (docs/retrieval.md); `_FORMS` below has the forms. Which files
the names of videos stand for says `retrieval_clips`. A video that is listed several times, under
whatever names, is one video with all of its captions.
"""

import dataclasses
import itertools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from internvideo_jax.data.annotations.entries import FRAME_PATTERN, Entry, EntryError, quote
from internvideo_jax.data.annotations.formats import read_entries, splitter
from internvideo_jax.data.annotations.layouts import tell_layout
from internvideo_jax.data.annotations.lines import read_lines
from internvideo_jax.data.annotations.records import (
    MAX_SHOWN_PROBLEMS,
    AnnotationError,
    ClipRecord,
    Context,
    Problem,
    check_entry,
    clip_record,
)
from internvideo_jax.data.annotations.retrieval_clips import (
    MAX_JSON_BYTES,
    choose,
    clip_key,
    find_files,
    merged,
    same_clips,
)
from internvideo_jax.data.decode.paths import join_inside
from internvideo_jax.files import check_regular, read_json

_PICKLES = (".pkl", ".pickle")
# Columns of LSMDC's lists; the last is the sentence.
_LSMDC_COLUMNS = 6
# Clips that an error names.
_MAX_LISTED = 5
# Those that are read of MSR-VTT's.
_MSRVTT_COLUMNS = {"video_id", "sentence"}
_EXPECTED_LINE = (
    f'"video caption" (MSVD), or {_LSMDC_COLUMNS} columns between tabs (LSMDC), or a first line'
    " that names columns between commas, video_id and sentence among them (MSR-VTT)"
)


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
    caption: str | None = None,
    max_seconds: float | None = None,
) -> RetrievalClips:
    """Reads a list of videos with captions.

    Args:
      path: the list.
      root: folder of the videos; by default the list's own.
      videos: a list of the videos to take, of which each must be in `path`: one a line, or JSON;
        None takes all.
      caption: name of the captions to take, of jsonl; "" are those without a name, None takes all.
      max_seconds: how much of each video is shown, from its beginning; None is all.

    Raises:
      AnnotationError: no such form, entries without a video or with empty captions (all are
        listed), or ids that stand for several files.
      ValueError: JSON that cannot be read, `videos` or `max_seconds` of jsonl, or `caption` of
        another list.
      OSError: no such file.
    """
    path = os.fspath(path)
    folder = os.path.abspath(os.path.dirname(path) if root is None else root)
    check_regular(path)
    if path.lower().endswith((".jsonl", ".ndjson")):
        for name, value in (("videos", videos), ("max_seconds", max_seconds)):
            if value is not None:
                raise ValueError(
                    f"{path}: expected no {name} with jsonl, whose lines say which clips there are,"
                    f" from where to where, found {value}; leave --config.eval_data.{name} out"
                    " (configs/eval/retrieval.py:custom sets none), or write another list"
                )
        return _own_clips(path, folder, caption)
    if caption is not None:
        raise ValueError(
            f"{path}: expected no caption with such a list, whose captions have no names, found"
            f" {caption!r}; leave --config.eval_data.caption out, or write jsonl"
        )
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
    _refuse(path, problems, len(captions))
    files = find_files(captions, folder)
    paths = {
        video: found[0] if found else join_inside(folder, video) or ""
        for video, found in files.items()
    }
    clips = same_clips(
        ClipRecord(video, paths[video], end=max_seconds, captions=tuple(texts))
        for video, texts in captions.items()
    )
    if videos is not None:
        clips = choose(clips, os.fspath(videos), path, folder)
    several = [
        Problem(None, f"one file for the video {clip.id}", " and ".join(files[clip.id]))
        for clip in itertools.chain.from_iterable(clips)
        if len(files[clip.id]) > 1
    ]
    if several:
        raise AnnotationError(path, several, len(several), len(captions))
    repeated = tuple(same[0].id for same in clips if sum(counts[clip.id] for clip in same) > 1)
    missing = tuple(same[0].id for same in clips if not files[same[0].id])
    return RetrievalClips(tuple(map(merged, clips)), missing, repeated)


def _own_clips(path: str, folder: str, caption: str | None) -> RetrievalClips:
    """The clips of a list in our own format, which states times and names of captions by itself."""
    first: dict[str, tuple[int, ClipRecord]] = {}
    records: list[ClipRecord] = []
    problems: list[Problem] = []
    for line, entry in _own_entries(path, folder):
        try:
            if isinstance(entry, EntryError):
                raise entry
            if not entry.captions:
                raise EntryError("a caption of every clip", f"none of {quote(entry.path)}")
            _check_words(entry.captions)
            record = clip_record(entry, folder)
            known, other = first.setdefault(record.id, (line, record))
            if other is not record and clip_key(other) != clip_key(record):
                found = f"{quote(record.id)} again, first of another clip on line {known}"
                raise EntryError('an "id" of this clip alone', found)
        except EntryError as error:
            likely = error.suggestion() if len(problems) < MAX_SHOWN_PROBLEMS else ""
            problems.append(Problem(line, error.expected, error.found + likely))
        else:
            records.append(record)
    _refuse(path, problems, len(records))
    clips = same_clips(records)
    repeated = tuple(same[0].id for same in clips if len(same) > 1)
    missing = tuple(same[0].id for same in clips if not os.path.exists(same[0].path))
    taken = [merged(same) for same in clips]
    if caption is not None:
        taken = _with_caption(path, taken, caption)
    return RetrievalClips(tuple(taken), missing, repeated)


def _with_caption(path: str, clips: Sequence[ClipRecord], name: str) -> list[ClipRecord]:
    """The clips with those of their captions alone that have a name.

    Raises:
      AnnotationError: some have none.
    """
    taken = [
        dataclasses.replace(clip, captions=clip.captions_named(name), caption_names=())
        for clip in clips
    ]
    lacking = [clip.id for clip in taken if not clip.captions]
    if lacking:
        known = sorted({own for clip in clips for own in clip.caption_names if own})
        found = (
            f"none of {len(lacking)} clips ({', '.join(map(quote, lacking[:_MAX_LISTED]))}), in a"
            f" list whose captions are called {', '.join(map(quote, known)) or 'nothing'}"
        )
        problem = Problem(None, f"a caption called {quote(name)} of every clip", found)
        raise AnnotationError(path, [problem], len(lacking), len(clips))
    return taken


def _own_entries(path: str, folder: str) -> Iterator[tuple[int, Entry | EntryError]]:
    """The entries of a list in our own format, with their lines."""
    context = Context(folder)
    try:
        layout = tell_layout(path, "jsonl", None, FRAME_PATTERN)
    except EntryError as error:
        raise AnnotationError(path, [Problem(None, error.expected, error.found)], 1, 0) from None
    for line, entry in itertools.chain.from_iterable(read_entries(path, layout)):
        try:
            if isinstance(entry, Entry):
                check_entry(entry, context, layout.has_names)
        except EntryError as error:
            yield line, error
        else:
            yield line, entry


def _refuse(path: str, problems: Sequence[Problem], num_good: int) -> None:
    """Raises what is wrong with a list, if anything is."""
    if not problems and not num_good:
        problems = [Problem(None, "at least one video with a caption", "none")]
    if problems:
        raise AnnotationError(path, problems, len(problems), len(problems) + num_good)


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
    _check_words(texts)
    return texts


def _check_words(captions: Sequence[str]) -> None:
    blank = next((text for text in captions if not text.strip()), None)
    if blank is not None:
        raise EntryError("captions with words", quote(blank))


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
        value = read_json(path, MAX_JSON_BYTES)
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
    for number, line in read_lines(path):
        if isinstance(line, EntryError):
            yield Stated(number, line, None)
            continue
        if header is None:
            header = [name.strip(' "').lower() for name in line.split(",")]
            if not _MSRVTT_COLUMNS.issubset(header):
                header = []
                if _MSRVTT_COLUMNS.issubset(re.findall(r"\w+", line.lower())):
                    expected = "columns between commas, video_id and sentence among them"
                    raise AnnotationError(path, [Problem(number, expected, quote(line))], 1, 1)
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
            video, *columns = line.split("\t")
            is_known = len(columns) == _LSMDC_COLUMNS - 1
            caption = columns[-1]
        else:
            video, _, caption = line.partition(" ")
            is_known = bool(caption.strip())
        if is_known:
            yield Stated(number, video, caption.strip())
        else:
            yield Stated(number, EntryError(_EXPECTED_LINE, quote(line)), None)


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
