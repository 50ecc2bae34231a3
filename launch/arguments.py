"""What all commands share: how errors end, how configs are read, where files go."""

import contextlib
import functools
import gc
import inspect
import logging
import os
import runpy
import signal
import subprocess
import sys
import threading
from argparse import (
    ArgumentParser,
    ArgumentTypeError,
    Namespace,
    RawDescriptionHelpFormatter,
)
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from internvideo_jax.config import nearest_fields, nearest_name
from internvideo_jax.environment import is_debugging, missing_devices, printable
from internvideo_jax.parallel import aot

if TYPE_CHECKING:
    from ml_collections import ConfigDict

Main = Callable[[Sequence[str]], int]

# Of a run that SIGTERM or SIGHUP stopped: a launcher starts the same command again on it.
EXIT_PREEMPTED = 42

# Windows has no SIGHUP, which comes when the terminal is closed.
_ENDINGS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


class UsageError(Exception):
    """What the user asked for cannot be done; the message says why and what to do."""


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP, which is cleaned up after like Ctrl-C.

    Attributes:
      signal: which of them.
    """

    def __init__(self, number: int = signal.SIGTERM):
        super().__init__()
        self.signal = number


def command(main: Main) -> Main:
    """Decorates a command's `main(argv)`: expected errors become one line and exit code 2.

    Expected are UsageError, ValueError, OSError and what JAX raises where the devices are not there
    that JAX_PLATFORMS names; everything else is a bug of ours and keeps its traceback.
    `INTERNVIDEO_DEBUG=1` keeps all of them, and shows more of what is logged. Ctrl-C, SIGTERM
    and SIGHUP unwind the command and become the exit codes 130, 143 and 129.
    """
    name = Path(main.__code__.co_filename).stem

    @functools.wraps(main)
    def run(argv: Sequence[str]) -> int:
        try:
            with _terminable(), _logging():
                code = main(argv)
                sys.stdout.flush()
                return code
        except KeyboardInterrupt as error:
            number = error.signal if isinstance(error, Terminated) else signal.SIGINT
            how = "interrupted" if number == signal.SIGINT else "terminated"
            print(f"internvideo-jax {name}: {how}", file=sys.stderr)
            return 128 + number
        except (UsageError, ValueError, OSError) as error:
            if is_debugging():
                raise
            return _fail(name, _message(error))
        except (AssertionError, RuntimeError) as error:
            if is_debugging() or (lack := missing_devices(error)) is None:
                raise
            return _fail(name, "; ".join(lack) + ". `internvideo-jax doctor` shows what there is")

    return run


def _fail(name: str, message: str) -> int:
    print(f"internvideo-jax {name}: {printable(message)}", file=sys.stderr)
    return 2


def end_process(code: int) -> int:
    """Ends a process that a signal stopped; returns every other exit code.

    All of ours is unwound by then. Threads of native libraries may be at work still, and crash
    where the interpreter is taken down around them, hence not by `sys.exit`.
    """
    # Else all that was imported is searched for garbage once more, for a quarter of a second.
    gc.freeze()
    if code in (EXIT_PREEMPTED, *(128 + number for number in (signal.SIGINT, *_ENDINGS))):
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)
    return code


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Turns SIGTERM and SIGHUP into `Terminated`, unless somebody handles or ignores them."""
    # Python allows handlers in the main thread only.
    is_main = threading.current_thread() is threading.main_thread()
    ours = [number for number in _ENDINGS if signal.getsignal(number) is signal.SIG_DFL]
    if not is_main:
        yield
        return

    def handle(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
        for number in ours:
            signal.signal(number, handler)

    def terminate(number: int, frame: FrameType | None) -> None:
        # A second signal must not interrupt the cleaning up.
        handle(signal.SIG_IGN)
        raise Terminated(number)

    handle(terminate)
    try:
        yield
    finally:
        handle(signal.SIG_DFL)


class _LineHandler(logging.Handler):
    """Prints log records as plain lines that progress bars do not overwrite."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        tqdm.write(f"{prefix}{printable(record.getMessage())}", file=sys.stderr)


@contextlib.contextmanager
def _logging() -> Iterator[None]:
    """Shows what our modules log; where a command calls another, once."""
    logger = logging.getLogger("internvideo_jax")
    if any(isinstance(handler, _LineHandler) for handler in logger.handlers):
        yield
        return
    handler, level, propagate = _LineHandler(), logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG if is_debugging() else logging.INFO)
    # Libraries that we import print what reaches the root in formats of their own.
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


def _message(error: Exception) -> str:
    """An error's text; of a bare one of the system, the file and what is the matter with it."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


class _Parser(ArgumentParser):
    """Suggests the nearest option where one is not known."""

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message:
            option = unknown.split()[0].partition("=")[0]
            message += nearest_name(option, self._option_string_actions)
        super().error(message)


def make_parser(name: str, description: str, epilog: str) -> ArgumentParser:
    """The parser of the command `name`; its help shows the epilog as it is."""
    return _Parser(
        prog=f"internvideo-jax {name}",
        description=description,
        epilog=epilog,
        formatter_class=RawDescriptionHelpFormatter,
    )


def use_tpu_compiler(name: str, argv: Sequence[str]) -> int | None:
    """Prepares this process for compiling without a TPU, or runs a command in one that is.

    Args:
      name: of the command.
      argv: its arguments.

    Returns:
      The exit code where JAX, which reads the environment when it is imported, was there already
      and the command has run in a new process; else None.

    Raises:
      UsageError: the compiler is not installed.
    """
    require_tpu_compiler()
    if "jax" in sys.modules:
        command = [sys.executable, "-m", "internvideo_jax.launch.main", name, *argv]
        return subprocess.run(command, env=os.environ | aot.ENVIRONMENT).returncode
    os.environ.update(aot.ENVIRONMENT)
    return None


def require_tpu_compiler() -> None:
    """Refuses a machine without the TPU compiler.

    Raises:
      UsageError: it is not installed.
    """
    if aot.compiler_version() is None:
        raise UsageError(
            "expected the TPU compiler, found no package libtpu; install it with"
            " `pip install libtpu` (Linux on x86-64; the extras `dev` and `tpu` contain it)"
        )


def positive_int(text: str) -> int:
    """A whole number above zero: the `type` of options that count something."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise ArgumentTypeError(f"expected a whole number of at least 1, found {text!r}")
    return number


def add_annotation_arguments(parser: ArgumentParser) -> None:
    """Adds what `data.annotations.lists.read_annotations` takes to read annotation files:
    `--root`, `--format`, `--separator` and `--frame_pattern`."""
    from internvideo_jax.data.annotations.entries import FORMATS, FRAME_PATTERN

    group = parser.add_argument_group("annotations")
    group.add_argument(
        "--root",
        metavar="DIR",
        help="where the paths start (default: the annotation file's folder)",
    )
    group.add_argument(
        "--format",
        choices=("auto", *FORMATS),
        default="auto",
        help="of the annotation files (default: by their first lines)",
    )
    group.add_argument(
        "--separator", metavar="C", help="between columns (default: by the first lines)"
    )
    group.add_argument(
        "--frame_pattern",
        default=FRAME_PATTERN,
        help='names of images in the folders of "frames" (default: %(default)s)',
    )


def annotation_options(args: Namespace) -> dict[str, Any]:
    """What the arguments of `add_annotation_arguments` say, as options of `read_annotations`."""
    return {name: getattr(args, name) for name in ("root", "format", "separator", "frame_pattern")}


def add_config_argument(parser: ArgumentParser) -> None:
    """Adds `--config=FILE.py[:ARGS]`; use `parser.parse_known_args` and `parse_config`."""
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE.py[:ARGS]",
        help="Python file with get_config([ARGS]) returning a ConfigDict; change a field with"
        " --config.FIELD=VALUE. A path under configs/ that is not here is taken from the package.",
    )


def parse_config(args: Namespace, leftover: Sequence[str]) -> "ConfigDict":
    """Reads `--config` and applies the overrides.

    Args:
      args: parsed arguments of a parser with `add_config_argument`.
      leftover: the arguments that this parser did not know; all must be `--config.FIELD=VALUE`.

    Returns:
      The ConfigDict of the file's `get_config`, locked, with overrides parsed to the type of the
      field that they replace (a field that is None by default must be a `config_dict.placeholder`).
      What has fields of its own inside another part may become None, what is None may stay so.

    Raises:
      UsageError: no such file, function or field, a value of another type, any other argument.
    """
    from absl import flags
    from ml_collections import ConfigDict, config_flags
    from ml_collections.config_flags import config_path

    path, colon, config_argument = args.config.partition(":")
    get_config = _load_config_file(path)
    arguments = [config_argument] if colon else []
    try:
        inspect.signature(get_config).bind(*arguments)
    except TypeError:
        expected = "no argument" if arguments else f"an argument, {path}:ARGS"
        raise UsageError(f"--config={args.config}: get_config takes {expected}") from None
    config = get_config(*arguments)
    if not isinstance(config, ConfigDict):
        raise UsageError(
            f"--config={args.config}: expected get_config to return an ml_collections.ConfigDict,"
            f" found {type(config).__name__}"
        )
    for argument in leftover:
        fields = _fields(config)
        name, equals, value = argument.partition("=")
        field = name.removeprefix("--config.")
        if field == name:
            raise UsageError(f"unknown argument {argument!r}; --help lists the known ones")
        if field not in fields:
            likely = " or ".join(f"--config.{other}" for other in nearest_fields(field, fields))
            suggestion = f"; did you mean {likely}?" if likely else ""
            raise UsageError(f"{name}: {path} has no such field{suggestion}")
        if not equals:
            raise UsageError(f"{name}: expected {name}=VALUE")
        is_part = "." in field and isinstance(fields[field], ConfigDict)
        if value == "None" and (is_part or fields[field] is None):
            # Whether a part may be missing is known where the config is checked.
            with config.ignore_type():
                config_path.set_value(field, config, None)
            continue
        values, argv = flags.FlagValues(), ["internvideo-jax", argument]
        # absl and ml_collections report a value of the wrong type in these ways.
        try:
            config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
            values(argv)
        except (flags.Error, TypeError) as error:
            kind = config_path.get_type(field, config)
            if kind in (bool, int, float):
                raise UsageError(f"{name}: expected {kind.__name__}, found {value!r}") from None
            raise UsageError(str(error)) from None
    return config.lock()


def new_output_dir(path: str | os.PathLike[str]) -> Path:
    """Makes an output folder, or takes an empty one.

    Raises:
      UsageError: something is there already, or it cannot be made.
    """
    directory = Path(path)
    if directory.is_dir() and any(directory.iterdir()):
        raise UsageError(f"{directory} exists and is not empty; name a new folder or remove it")
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"{directory}: cannot make this folder ({error.strerror}); name another"
        ) from error
    return directory


@contextlib.contextmanager
def removed_if_empty(directory: Path) -> Iterator[None]:
    """Removes an output folder and its parents, as far as the block makes them and leaves them
    empty, as where it is interrupted."""
    made = [folder for folder in (directory, *directory.parents) if not folder.exists()]
    try:
        yield
    finally:
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()


def new_output_file(path: str | os.PathLike[str] | None, option: str) -> None:
    """Finds out before long work that its output cannot be written after it.

    Args:
      path: a file that is to be made, with its folder; None if there is to be none.
      option: that names it, as "--json".

    Raises:
      UsageError: something is there already, or no file can be made there; names the option.
    """
    if path is None:
        return
    path = Path(path)
    if path.is_dir():
        raise UsageError(f"{option}={path} is a folder; name a file")
    if path.exists():
        raise UsageError(f"{option}={path} exists; name another output or remove it first")
    existing = next(folder for folder in path.absolute().parents if folder.exists())
    if not existing.is_dir():
        raise UsageError(f"{option}={path}: {existing} is not a folder; name another file")
    if not os.access(existing, os.W_OK):
        raise UsageError(f"{option}={path}: {existing} cannot be written; name another file")


def new_output_files(outputs: Mapping[str, str | os.PathLike[str] | None]) -> None:
    """Finds out before long work which of its outputs cannot be written after it.

    Args:
      outputs: as `new_output_file` takes them, by option.

    Raises:
      UsageError: as of `new_output_file`, or one would take another's place; names the options.
    """
    places: dict[Path, str] = {}
    for option, path in outputs.items():
        if path is None:
            continue
        new_output_file(path, option)
        place = Path(path).resolve()
        for other, taken in places.items():
            if place == other or place in other.parents or other in place.parents:
                raise UsageError(
                    f"{option}={path}: expected another file than {taken} makes, found the same or"
                    " one inside it; name another"
                )
        places[place] = option


def _load_config_file(path: str) -> "Callable[..., ConfigDict]":
    """The `get_config` of a file; one under `configs/` may be here or in the package."""
    from internvideo_jax import configs

    packaged = Path(str(configs.__file__)).parent
    file = Path(path)
    if not file.is_file() and file.parts[:1] == ("configs",):
        file = packaged.joinpath(*file.parts[1:])
    if not file.is_file() or file.suffix != ".py":
        known = sorted(
            f"configs/{f.relative_to(packaged).as_posix()}"
            for f in packaged.rglob("*.py")
            if f.name != "__init__.py"
        )
        raise UsageError(
            f"--config={path}: no such Python file{_likely_config(path, known)}"
            f" (with the package come: {', '.join(known)})"
        )
    get_config = runpy.run_path(str(file)).get("get_config")
    if not callable(get_config):
        raise UsageError(f"--config={path}: the file defines no function get_config")
    return get_config


def _likely_config(path: str, known: Sequence[str]) -> str:
    """The ending of an error message that suggests files of the same name, or else the nearest."""
    same = [name for name in known if Path(name).name == Path(path).name]
    return f"; did you mean {' or '.join(same)}?" if same else nearest_name(path, known)


def _fields(config: "ConfigDict", prefix: str = "") -> dict[str, Any]:
    """All fields by their dotted names, inner ConfigDicts and their fields included."""
    fields: dict[str, Any] = {}
    for key in config:
        # An unset placeholder reads as None.
        fields[prefix + key] = value = config[key]
        if hasattr(value, "keys"):
            fields |= _fields(value, f"{prefix}{key}.")
    return fields
