"""`internvideo-jax compile_report`: compiles for a TPU slice on a machine without one."""

from collections.abc import Sequence

from internvideo_jax.files import write_json
from internvideo_jax.launch import arguments
from internvideo_jax.launch.compilation.text import render
from internvideo_jax.parallel import aot

SUMMARY = "compile a model or training step for a TPU slice without one: memory, time, collectives"

EPILOG = """\
Compiles for a TPU slice: of the config of a run the training step, frozen teachers included; of the
config of a model its forward pass and its loss with gradients. Needs no TPU, only its compiler
(libtpu, on Linux). Prints memory per device, collectives, analytic FLOPs and how long the compiler
expects its operations to take, by loops: a static estimate (docs/step_time.md), nothing has run.
For our own attention kernels, of which it says nothing, profiles of their instructions are made.
Exit code 3: it does not fit.

examples:
  internvideo-jax compile_report --config=configs/encoder.py:1b --topology=v5e:4x4
  internvideo-jax compile_report --config=configs/encoder.py:6b,student --topology=v5e:16x16 \\
      --config.mesh.fsdp=16 --config.batch_per_device=4 --json=6b.json
  internvideo-jax compile_report --config=configs/stage1/pretrain.py:1b --topology=v5e:16x16
"""

EXIT_DOES_NOT_FIT = 3


@arguments.command
def main(argv: Sequence[str]) -> int:
    """Prints the report; returns 0, or 3 if a program does not fit into the chips' memory."""
    parser = arguments.make_parser("compile_report", SUMMARY, EPILOG)
    arguments.add_config_argument(parser)
    parser.add_argument(
        "--topology",
        required=True,
        metavar="CHIP:AxB[xC]",
        help="chips along each axis of the slice, as the compiler names it: "
        + ", ".join(aot.EXAMPLE_TOPOLOGIES),
    )
    parser.add_argument("--json", metavar="FILE", help="also write the report to this file")
    args, leftover = parser.parse_known_args(argv)
    code = arguments.use_tpu_compiler("compile_report", argv)
    if code is not None:
        return code
    arguments.new_output_file(args.json, "--json")

    # Imports JAX.
    from internvideo_jax.launch.compilation.reports import compile_report

    report = compile_report(arguments.parse_config(args, leftover), args.topology)
    if args.json:
        write_json(args.json, report)
    print(render(report))
    return 0 if all(p["fits"] for p in report["programs"].values()) else EXIT_DOES_NOT_FIT
