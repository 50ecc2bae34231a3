"""`internvideo-jax verify`: a saved model against its checksums and activations of the original."""

import argparse
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from internvideo_jax.files import write_json
from internvideo_jax.launch import arguments
from internvideo_jax.launch.common import inference

if TYPE_CHECKING:
    from internvideo_jax.saved_model import Checked

SUMMARY = "check a saved model: its files, and a converted one against the original"

EPILOG = """\
examples:
  internvideo-jax verify models/b14-k400
  internvideo-jax verify models/b14-k400 --reference=b14-k400-activations.safetensors
  internvideo-jax verify models/stage2-1b --known_answer=example1.mp4

--known_answer ranks the ten texts of the published demos of stage 2 and ViCLIP for their clip,
which lies in the original's repository (InternVideo2/multi_modality/demo/example1.mp4 of
OpenGVLab/InternVideo).

The first reads all of the model and compares it with the checksums that were written with it: of
model.json, of every array, and of every file of at most 1 MiB. The second compares them, too, and
then runs the model in float32 at the highest matmul precision. The reference is a .safetensors file
with inputs in/* and the original model's outputs out/*, which `internvideo-jax reference` makes
(docs/verifying.md):
  video models   in/video [B, 3, T, H, W], normalised; students also in/mask [B, N], true where
                 dropped; out/logits, out/hidden/blocks.0, ...
  BERT           in/input_ids [B, N], in/attention_mask, in/encoder_hidden_states;
                 out/text_last, ...
  LLaMA towers   in/input_ids [B, N], padded on the right; out/text_embed, ...
  CLIP towers    in/input_ids [B, N]; out/text_embed, ...; of videos in/video; out/embed
  CLIP models    in/video, in/input_ids; out/vision_embed, out/text_embed, ...
  BEATs          in/fbank [B, T, M], normalised; out/features, ...
Exit code 1: an output differs by more than the tolerance, or is not finite; or there are no
checksums of the arrays to compare with. 2: the model is damaged or cannot be used.
"""


@arguments.command
def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    parser = arguments.make_parser("verify", SUMMARY, EPILOG)
    inference.add_model_argument(parser, "model")
    judges = parser.add_mutually_exclusive_group()
    judges.add_argument(
        "--reference",
        type=Path,
        metavar="FILE.safetensors",
        help="activations of the original (default: the checksums alone are compared)",
    )
    judges.add_argument(
        "--known_answer",
        type=Path,
        metavar="CLIP.mp4",
        help="the clip of the published demos, whose probabilities InternVideo2-Stage2 1B and"
        " ViCLIP-B/16 must reproduce",
    )
    parser.add_argument(
        "--tolerance",
        type=_tolerance,
        default=1e-5,
        help="largest error, relative to an output's largest value (default: %(default)g)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table here, too")
    args = parser.parse_args(argv)
    arguments.new_output_file(args.json, "--json")

    from internvideo_jax import saved_model
    from internvideo_jax.convert.library import model_directory

    directory = model_directory(args.model)
    if args.reference is not None:
        return _compare(args, directory)
    if args.known_answer is not None:
        return _known_answer(args, directory)
    checked = saved_model.check(directory)
    if args.json:
        write_json(args.json, {"model": args.model, **checked._asdict()})
    print(f"{directory}: {_compared(checked)}")
    return 0 if checked.arrays else 1


def _compared(checked: "Checked") -> str:
    """What was compared with checksums, and what could not be."""
    size = f"{checked.array_bytes:,} bytes"
    parts = [
        "model.json" if checked.description else "",
        f"{checked.arrays} arrays ({size})" if checked.arrays else "",
        f"{checked.files} files of at most 1 MiB" if checked.files else "",
    ]
    missing = [
        "" if checked.description else "model.json",
        "" if checked.arrays else f"the arrays ({size})",
    ]
    compared = ", ".join(filter(None, parts)) or "nothing"
    text = f"{compared}: as they were written" if any(parts) else "nothing to compare with"
    if any(missing):
        text += (
            f"; read, but without checksums: {', '.join(filter(None, missing))} (an older version"
            " wrote the model)"
        )
    return text


def _compare(args: argparse.Namespace, directory: str) -> int:
    """Runs a reference through the model; returns the exit code."""
    from internvideo_jax.convert.engine import verify
    from internvideo_jax.saved_model import load

    reference = verify.load_reference(args.reference)
    values = verify.run_reference(load(directory, dtype="float32"), reference)
    rows = verify.compare(values, reference, args.tolerance)
    unchecked = sorted(reference.outputs.keys() - values.keys())
    failed = [row.name for row in rows if not row.ok]
    if args.json:
        table = [dataclasses.asdict(row) | {"ok": row.ok} for row in rows]
        for row in table:
            # JSON has neither infinity, which stands for what cannot be compared, nor NaN.
            for name in ("max_error", "scale", "allowed"):
                row[name] = row[name] if math.isfinite(row[name]) else None
        write_json(args.json, {"model": args.model, "outputs": table, "not_checked": unchecked})
    print(verify.format_table(rows, unchecked))
    if not rows:
        raise arguments.UsageError(
            f"{args.reference} holds no output that can be checked; it has"
            f" {', '.join(sorted(reference.outputs))}"
        )
    worst = max(rows, key=lambda row: row.relative_error)
    verdict = f"{len(failed)} FAILED" if failed else "all agree"
    print(
        f"{len(rows)} outputs, {verdict}; largest relative error {worst.relative_error:.2g}"
        f" ({worst.name})"
    )
    return 1 if failed else 0


def _known_answer(args: argparse.Namespace, directory: str) -> int:
    """Runs the published demo of a model; returns the exit code."""
    from internvideo_jax.evaluation.known_answer import TOLERANCE, check_known_answer
    from internvideo_jax.saved_model import load

    answers = check_known_answer(load(directory, dtype="float32"), args.known_answer)
    if args.json:
        write_json(
            args.json,
            {"model": args.model, "texts": [dataclasses.asdict(a) | {"ok": a.ok} for a in answers]},
        )
    print("published   found")
    for answer in sorted(answers, key=lambda answer: -answer.expected):
        verdict = "ok" if answer.ok else "FAILED"
        print(f"{answer.expected:9.4f}  {answer.found:6.4f}  {verdict:6}  {answer.text}")
    failed = sum(not answer.ok for answer in answers)
    verdict = f"{failed} FAILED" if failed else "all agree"
    print(f"{len(answers)} probabilities, {verdict} within {TOLERANCE:g}")
    return 1 if failed else 0


def _tolerance(text: str) -> float:
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number of at least 0, found {text}")
    return value
