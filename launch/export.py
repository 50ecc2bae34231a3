"""`internvideo-jax export`: a saved model as a StableHLO program that needs only JAX."""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from internvideo_jax.launch import arguments
from internvideo_jax.launch.common import inference

if TYPE_CHECKING:
    from internvideo_jax.stablehlo import Program

SUMMARY = "write a model as a StableHLO program that runs without this package"

EPILOG = """\
examples:
  internvideo-jax export models/b14-k400 --output=b14.stablehlo
  internvideo-jax export models/1b --output=1b.stablehlo --output_kind=features --weights=beside

Writes FILE (what jax.export reads), FILE.json (inputs, preprocessing, names of the classes) and,
for weights beside it, FILE.npz. Then a loader needs jax and flatbuffers:
  program = jax.export.deserialize(bytearray(open("b14.stablehlo", "rb").read()))
  logits = program.call({}, frames)    # uint8 [B, T, S, S, 3]; weights by name in place of {}
The model's checksums are compared first, and the program, which is read back, with the model before
it takes its name. docs/export.md has more.
"""


@arguments.command
def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    parser = arguments.make_parser("export", SUMMARY, EPILOG)
    inference.add_model_argument(parser, "model")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    parser.add_argument(
        "--output_kind",
        choices=("logits", "features"),
        help="what the program returns (default: logits of a classifier, else features)",
    )
    parser.add_argument(
        "--input",
        choices=("pixels", "normalized"),
        default="pixels",
        help="clips as uint8, normalised in the program, or as float32 that is (default: pixels)",
    )
    parser.add_argument(
        "--batch", type=_batch, metavar="N", help="clips per call (default: symbolic, any number)"
    )
    parser.add_argument(
        "--weights",
        choices=("inside", "beside"),
        help="in the program or in FILE.npz (default: inside up to 256 MiB)",
    )
    parser.add_argument(
        "--platforms",
        type=lambda text: text.split(","),
        default=["cpu", "cuda", "tpu"],
        help="what it can run on, of cpu, cuda, rocm and tpu (default: cpu,cuda,tpu)",
    )
    inference.add_dtype_argument(parser, default="float32")
    args = parser.parse_args(argv)
    for suffix in ("", ".json", ".npz"):
        arguments.new_output_file(f"{args.output}{suffix}", "--output")

    from internvideo_jax import saved_model, stablehlo
    from internvideo_jax.convert.library import model_directory

    model = saved_model.load(model_directory(args.model), dtype=args.dtype)
    program = stablehlo.make_program(
        model,
        output=args.output_kind,
        pixels=args.input,
        batch=args.batch,
        weights=args.weights,
        platforms=args.platforms,
    )
    error = stablehlo.write_program(program, model, args.output)
    print(_summary(program, args.output))
    print(f"equal to the model within {error:.2g} of its largest output")
    return 0


def _summary(program: "Program", path: Path) -> str:
    inputs = [
        f"{name} {dtype} {_shape('batch' if size is None else size for size in sizes)}"
        for name, (sizes, dtype) in program.inputs.items()
    ]
    files = [path, *([Path(f"{path}.npz")] if program.weights else [])]
    sizes = " and ".join(f"{file} ({file.stat().st_size / 2**20:,.1f} MiB)" for file in files)
    (output,) = program.exported.out_avals
    return (
        f"{sizes}: {', '.join(inputs)} -> {program.output} float32 {_shape(output.shape)},"
        f" for {', '.join(program.exported.platforms)}"
    )


def _shape(sizes: Iterable[object]) -> str:
    return f"[{', '.join(map(str, sizes))}]"


def _batch(text: str) -> int | None:
    if text == "symbolic":
        return None
    try:
        return arguments.positive_int(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error} or symbolic") from None
