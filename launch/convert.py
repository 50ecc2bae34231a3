"""`internvideo-jax convert`: PyTorch checkpoints to saved models and back."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from internvideo_jax.environment import printable
from internvideo_jax.launch import arguments

if TYPE_CHECKING:
    from internvideo_jax.convert.engine.conversion import Progress

SUMMARY = "convert PyTorch checkpoints to models of this project, and back"

EPILOG = """\
examples:
  internvideo-jax convert 1B_ft_k710_ft_k400_f8.pth --output=models/1b-k400
  internvideo-jax convert OpenGVLab/InternVideo2-Stage1-1B-224p-f8-k710 --output=models/1b-k710
  internvideo-jax convert --model=internvideo2-b14-k400 --output=models/b14-k400
  internvideo-jax convert 1B_ft_k710_f8.pth --num_classes=600 --frames=16 --output=models/1b-k600
  internvideo-jax convert pretrain.pth --architecture=video_vit --output=models/1b-encoder
  internvideo-jax convert b14_k400.pth --classes=kinetics_400.txt --output=models/b14-k400
  internvideo-jax convert models/b14-k400 --to_pytorch --output=b14-k400.safetensors
  internvideo-jax convert --check_manifest=manifest.json
  internvideo-jax convert --list

Conversion is total: it fails, listing every key, unless all of the checkpoint is used or left out
by a named rule and all of the model is filled. SOURCE is a .safetensors, .pt, .pth or .bin file, a
folder of shards, or a Hugging Face repository (owner/name, hf://owner/name/file). Of several
sources, later ones replace tensors of earlier ones; the parts of a composite are put together:

  internvideo-jax convert InternVideo2-stage2_1b-224p-f4.pt internvl_c_13b_224px.pth 1B_clip.pth \\
    --model=InternVideo2-CLIP-1B-224p-f8 --output=models/clip-1b
"""

# What to do instead of converting, and the other arguments that it uses.
_USED = {
    "list": frozenset[str](),
    "check_manifest": frozenset({"source"}),
    "to_pytorch": frozenset({"source", "output"}),
}


def _parser() -> argparse.ArgumentParser:
    parser = arguments.make_parser("convert", SUMMARY, EPILOG)
    parser.add_argument("source", nargs="*", metavar="SOURCE", help="checkpoint to convert")
    parser.add_argument("--output", type=Path, help="folder (with --to_pytorch: file) to make")
    parser.add_argument(
        "--model", metavar="NAME", help="a released checkpoint by name: fetch it, or check SOURCE"
    )
    parser.add_argument(
        "--to_pytorch", action="store_true", help="SOURCE is a model; write PyTorch's keys"
    )
    parser.add_argument(
        "--check_manifest",
        metavar="FILE[,FILE...]",
        help="prove conversions from keys and shapes, of every SOURCE, too; A+B are files of one"
        " model, which the last one describes",
    )
    parser.add_argument("--list", action="store_true", help="list the released checkpoints")

    target = parser.add_argument_group("what to make of it (default: all that it holds)")
    target.add_argument("--architecture", metavar="NAME", help="e.g. video_vit: the encoder alone")
    target.add_argument(
        "--frames",
        type=arguments.positive_int,
        metavar="N",
        help="frames per clip (positions are resized)",
    )
    target.add_argument(
        "--image_size", type=arguments.positive_int, metavar="PIXELS", help="likewise"
    )
    target.add_argument(
        "--tubelet_size", type=arguments.positive_int, metavar="N", help="frames per token"
    )
    target.add_argument(
        "--inflation",
        choices=("center", "mean"),
        help="how a patch kernel spreads over a longer tubelet (default: center for image kernels,"
        " mean for video kernels)",
    )
    target.add_argument(
        "--num_classes",
        type=arguments.positive_int,
        metavar="N",
        help="400, 600 or 700: a K710 head's rows for them",
    )
    target.add_argument(
        "--max_text_length",
        type=arguments.positive_int,
        metavar="N",
        help="tokens of a text, of CLIP models (their positions are cut or interpolated)",
    )
    target.add_argument(
        "--new_head", action="store_true", help="start an untrained head of --num_classes"
    )

    target.add_argument(
        "--int8",
        action="store_true",
        help="keep kernels of linear layers as int8 values with a scale per output",
    )

    target.add_argument(
        "--classes",
        type=Path,
        metavar="FILE",
        help="names of the classes: one per line, or JSON (a list, {name: number}, a config with"
        " id2label); by default those of a label file in the folder or repository that is given",
    )

    reading = parser.add_argument_group("how to read it")
    reading.add_argument("--key", metavar="NAME", help="weights to take, e.g. model_ema")
    reading.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="constructor option of the PyTorch model that tensors do not show, e.g. num_heads=12",
    )
    reading.add_argument(
        "--tokenizer",
        type=Path,
        metavar="FOLDER",
        help="where a model of texts finds its tokenizer's files (default: beside SOURCE)",
    )
    reading.add_argument(
        "--allow_nonfinite",
        action="store_true",
        help="convert weights that are NaN or infinite, too",
    )
    reading.add_argument(
        "--sha256",
        action="store_true",
        help="record the sha256 of the source's files in the model (reads them once more)",
    )
    return parser


@arguments.command
def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    parser = _parser()
    args = parser.parse_args(argv)
    _refuse_unused(parser, args)
    if args.list:
        from internvideo_jax.convert.engine import registry

        print(registry.table(registry.releases()))
        return 0
    if args.check_manifest is not None:
        return _check_manifests([*args.check_manifest.split(","), *args.source])
    if args.output is None:
        raise arguments.UsageError("expected --output, the folder or file to make")
    # Before a download, rather than after it.
    if args.output.is_file() or (args.output.is_dir() and any(args.output.iterdir())):
        raise arguments.UsageError(f"{args.output} exists; name another output or remove it first")
    return _export(args) if args.to_pytorch else _convert(args)


def _refuse_unused(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuses options that what is asked for would pass over."""
    for mode, used in _USED.items():
        if getattr(args, mode) == parser.get_default(mode):
            continue
        # An absent SOURCE is [], whose default is None.
        given = {n for n, value in vars(args).items() if value and value != parser.get_default(n)}
        unused = sorted(given - {mode} - used)
        if unused:
            names = ", ".join("SOURCE" if n == "source" else f"--{n}" for n in unused)
            raise arguments.UsageError(f"--{mode} has no use for {names}: leave that out")


def _check_manifests(paths: Sequence[str]) -> int:
    """Prints one line for each manifest, and what misfits; returns 1 if anything does."""
    from internvideo_jax.convert.engine import manifest

    if "" in paths:
        raise arguments.UsageError("expected --check_manifest=FILE[,FILE...], found an empty name")
    failed = 0
    for path in paths:
        try:
            read = manifest.read_manifests(path)
            print(printable(manifest.describe(read, manifest.plan_manifest(*read))), flush=True)
        except (ValueError, OSError) as error:
            failed += 1
            print(printable(f"{Path(path).stem}: NOT total: {error}"), flush=True)
    return 1 if failed else 0


def _convert(args: argparse.Namespace) -> int:
    from internvideo_jax.convert.files.checksums import Checksums

    with Checksums() as checksums:
        # Sums of local files begin before JAX is imported: they take as long as all the rest.
        for path in map(Path, args.source if args.sha256 else ()):
            if path.is_file():
                checksums.start(path)

        from internvideo_jax.convert.engine.conversion import Request, prepare, write

        changes = {
            "num_frames": args.frames,
            "image_size": args.image_size,
            "tubelet_size": args.tubelet_size,
            "num_classes": args.num_classes,
            "max_text_length": args.max_text_length,
        }
        request = Request(
            release=args.model,
            architecture=args.architecture,
            options=dict(_parse_option(text) for text in args.option),
            changes={name: value for name, value in changes.items() if value is not None},
            inflation=args.inflation,
            new_head=args.new_head,
            to_int8=args.int8,
            key=args.key,
            tokenizer=args.tokenizer,
            classes=args.classes,
            allow_nonfinite=args.allow_nonfinite,
        )
        _say_download(args)
        prepared = prepare(args.source, request)
        print(printable("\n".join(prepared.summary())), flush=True)
        with _progress("converting", prepared.nbytes) as progress:
            sums = checksums if args.sha256 else None
            metadata = write(prepared, args.output, progress, sums)
    report = metadata["conversion"]
    for name, text in report["not_finite"].items():
        print(printable(f"warning: not finite, {name}: {text}"), file=sys.stderr)
    print(f"wrote {args.output} in {report['seconds_writing']:.1f} s")
    if args.sha256:
        for file in metadata["source"]["files"]:
            print(printable(f"sha256 {file['sha256']}  {file['name']}"))
    return 0


def _say_download(args: argparse.Namespace) -> None:
    """Says what is to be downloaded, and what the model will take."""
    from internvideo_jax.convert.engine import registry
    from internvideo_jax.convert.library import say_download

    sources: Sequence[str] = args.source
    if not sources and args.model:
        sources = registry.find(args.model).sources
    say_download(args.model or args.output.name, sources, args.output)


def _export(args: argparse.Namespace) -> int:
    from internvideo_jax.convert.engine.export import export, stored_bytes

    if len(args.source) != 1:
        raise arguments.UsageError(f"expected one model to export, found {len(args.source)}")
    if args.output.suffix != ".safetensors":
        raise arguments.UsageError(
            f"--output={args.output}: --to_pytorch writes a .safetensors file; name it so (torch"
            " reads it by safetensors.torch.load_file)"
        )
    with _progress("exporting", stored_bytes(args.source[0])) as progress:
        report = export(args.source[0], args.output, progress)
    print(f"wrote {args.output}: {report['tensors']} tensors")
    lines = [f"not restored, {reason}: {', '.join(k)}" for reason, k in report["ignored"].items()]
    lines += [f"not as it was, {key}: {change}" for key, change in report["adapted"].items()]
    lines += [f"not in the original, {n}: {text}" for n, text in report["initial_values"].items()]
    print(printable("\n".join(lines)))
    return 0


def _parse_option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise arguments.UsageError(f"--option={text}: expected --option=NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


@contextmanager
def _progress(title: str, nbytes: int) -> "Iterator[Progress]":
    from internvideo_jax.launch.common import progress

    with progress.Progress(nbytes, "B", title) as bar:
        yield bar.update
