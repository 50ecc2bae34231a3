"""`internvideo-jax search`: an index and words in, moments of videos out."""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from internvideo_jax.environment import printable
from internvideo_jax.evaluation.figures.timeline import format_time
from internvideo_jax.files import write_json
from internvideo_jax.launch import arguments
from internvideo_jax.launch.common import inference
from internvideo_jax.launch.common.indexed_model import load_indexed_model

if TYPE_CHECKING:
    from internvideo_jax.loading import Model
    from internvideo_jax.search.index_file import Index
    from internvideo_jax.search.moments import Moment

SUMMARY = "find moments of videos by words, or by a clip, in what `index` made"

EPILOG = """\
Each TEXT, and each --clip, is a query of its own. The table has its best moments: the cosine of
their embedding and the query's, when they begin and end, and the video. Cosines of different
queries, and of different models, say nothing of each other. Of windows of one video that overlap
or follow each other directly, only the best is a moment.

The model is the one that the index was made with; another is refused. --model says where it is now.
From 250,000 windows on, a query is compared with those of the nearest clusters, 1 % of all;
--exact compares it with all.

--json=FILE holds
  index, windows, videos     the file, and what it has
  model, model_digest        as in the index
  is_exact                   whether all windows were compared
  queries                    for each query: kind ("text" or "clip"), query, and moments, the best
                             first: source (path), start and end (seconds after the file's start),
                             score
--sheet=FILE (png, pdf, svg, jpg) shows the middle frame of the best moments of each query.

examples:
  internvideo-jax search videos.index "a dog in the snow"
  internvideo-jax search videos.index "a dog runs" "a man cooks" --top=5 --sheet=found.png
  internvideo-jax search videos.index --clip=goal.mp4 --json=found.json

In Python: internvideo_jax.search.moments.find_moments.
"""

# Moments of a query in a picture.
_MAX_SHOWN = 8


class _Query(NamedTuple):
    """What is searched for, and what was found."""

    kind: str
    text: str
    moments: "list[Moment]"


@arguments.command
def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    args = _parser().parse_args(argv)
    from internvideo_jax.search.index_file import read_index
    from internvideo_jax.search.moments import find_moments

    if not (args.texts or args.clip):
        raise arguments.UsageError("expected a text to search for, or --clip=FILE, found none")
    if blank := [text for text in args.texts if not text.strip()]:
        raise arguments.UsageError(f"expected texts with words, found {blank[0]!r}")
    _check_outputs(args)
    index = read_index(args.index)
    model = load_indexed_model(args, index.settings).model
    vectors = _embedded(args, model, index.settings.num_frames)
    started = time.perf_counter()
    found = find_moments(index, vectors, args.top, is_exact=args.exact)
    seconds = time.perf_counter() - started
    kinds = ["text"] * len(args.texts) + ["clip"] * len(args.clip)
    queries = [
        _Query(kind, text, moments)
        for kind, text, moments in zip(kinds, [*args.texts, *args.clip], found, strict=True)
    ]
    for query in queries:
        print(printable("\n".join([query.text, *map(_line, query.moments)])))
    is_exact = args.exact or index.clusters is None
    if args.json:
        write_json(args.json, _entry(args, index, queries, is_exact))
    if args.sheet:
        _write_sheet(args.sheet, index, queries)
    print(
        f"{len(index)} windows of {len(index.files)} videos in {1000 * seconds:.0f} ms"
        f"{'' if is_exact else ', the nearest clusters alone'}",
        file=sys.stderr,
    )
    return 0


def _check_outputs(args: argparse.Namespace) -> None:
    """Finds out before the work what cannot be written after it."""
    from internvideo_jax.evaluation.figures.files import PICTURES

    arguments.new_output_files({"--json": args.json, "--sheet": args.sheet})
    if args.sheet and not args.sheet.name.lower().endswith(PICTURES):
        raise arguments.UsageError(
            f"--sheet={args.sheet}: expected a name that ends in one of {', '.join(PICTURES)}"
        )


def _embedded(args: argparse.Namespace, model: "Model", num_frames: int) -> Any:
    """The queries' vectors, texts first, float32 `[Q, D]`."""
    import numpy as np

    parts = [model.encode_text(args.texts)] if args.texts else []
    if args.clip:
        parts.append(model.encode_video(args.clip, num_frames=num_frames))
    return np.concatenate(parts)


def _line(moment: "Moment") -> str:
    """What a person reads of a moment."""
    return f"  {moment.score:6.3f}  {_times(moment):>17}  {_shown_path(moment.path)}"


def _times(moment: "Moment") -> str:
    return f"{format_time(moment.start)} - {format_time(moment.end)}"


def _shown_path(path: str) -> str:
    """A path as one would type it here."""
    relative = os.path.relpath(path)
    return path if relative.startswith(os.pardir) else relative


def _entry(
    args: argparse.Namespace, index: "Index", queries: Sequence[_Query], is_exact: bool
) -> dict[str, Any]:
    """Everything, as the JSON file has it."""
    return {
        "index": str(args.index),
        "windows": len(index),
        "videos": len(index.files),
        "model": index.settings.model,
        "model_digest": index.settings.model_digest,
        "is_exact": is_exact,
        "queries": [
            {
                "kind": query.kind,
                "query": query.text,
                "moments": [
                    {
                        "source": moment.path,
                        "start": moment.start,
                        "end": moment.end,
                        "score": round(moment.score, 6),
                    }
                    for moment in query.moments
                ],
            }
            for query in queries
        ],
    }


def _write_sheet(path: Path, index: "Index", queries: Sequence[_Query]) -> None:
    from internvideo_jax.data.annotations.records import ClipRecord
    from internvideo_jax.evaluation.figures.contact_sheet import (
        Found,
        Query,
        contact_sheet,
        thumbnail,
    )
    from internvideo_jax.evaluation.figures.files import save_figure

    def shown(moment: "Moment") -> Found:
        record = ClipRecord(moment.path, moment.path, start=moment.start, end=moment.end)
        note = f"{_times(moment)}  {moment.score:.3f}"
        return Found(printable(os.path.basename(moment.path)), thumbnail(record), note=note)

    rows = [
        Query(printable(query.text), None, [shown(m) for m in query.moments[:_MAX_SHOWN]])
        for query in queries
    ]
    title = f"The best moments of {len(index.files)} videos, and their cosines with the query"
    save_figure(contact_sheet(rows, title), path)
    print(f"contact sheet -> {path}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = arguments.make_parser("search", SUMMARY, EPILOG)
    parser.add_argument("index", type=Path, metavar="INDEX", help="a file that `index` wrote")
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="what to search for, in words")
    parser.add_argument(
        "--clip",
        action="append",
        default=[],
        metavar="FILE",
        help="a video to search for what is like it; may be given several times",
    )
    parser.add_argument(
        "--top",
        type=arguments.positive_int,
        default=10,
        help="moments of a query (default: %(default)s)",
    )
    parser.add_argument("--exact", action="store_true", help="compare with all windows")
    inference.add_model_argument(parser, default="as the index says")
    inference.add_dtype_argument(parser)
    outputs = parser.add_argument_group("outputs, beside the table")
    outputs.add_argument("--json", type=Path, metavar="FILE", help="everything")
    outputs.add_argument("--sheet", type=Path, metavar="FILE", help="a picture of the best moments")
    return parser
