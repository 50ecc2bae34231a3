"""Runs readers on damaged and hostile inputs, and counts what they did not answer by a refusal.

A module of `tests/fuzz/targets` states

  TARGETS = (Target("shard_index", seeds, run), ...)

and is found there. `seeds` makes a few small valid inputs (a few KB at most, by code); `run(data,
folder)` reads one, where needed from a file that it writes into `folder`, which is empty. A reader
may return, or refuse: by an OSError, or by a ValueError that a `raise` of this project's own code
raised. Anything else is a fault:

  foreign    another exception, or a ValueError from the depths of a library
  memory     more than `MEMORY_BYTES` beyond what the process had before
  hang       more than `HANG_SECONDS` for one input
  crash      the process died
  execution  code compiled or run, a process started, a library loaded, a connection made, a file
             written outside of `folder`, or one read outside of it that is none of Python's or the
             system's (an audit hook sees the attempt, whatever becomes of it, and stops it)

An input is made of the target's name and a number alone, so that it can be made again:

  python -m tests.fuzz --inputs=1000000                    shared out among all targets
  python -m tests.fuzz --target=shard_index --first=4711 --inputs=1 --output=DIR

Processes are forked and take thousands of inputs each; one that hangs or dies is replaced behind
the input at which it did. `tests/fuzz/test_fuzz.py` runs some hundred inputs of every target.
"""

import contextlib
import ctypes
import dataclasses
import dis
import importlib
import itertools
import math
import multiprocessing
import os
import pkgutil
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.fuzz.mutation import mutate

HANG_SECONDS = 10.0
MEMORY_BYTES = 1 << 30
KINDS = ("foreign", "memory", "hang", "crash", "execution")

_PROJECT = Path(__file__).resolve().parents[2]
_CODE = tuple(f"{_PROJECT / name}/" for name in ("internvideo_jax", "launch", "kernels"))
_READABLE = (
    *(f"{_PROJECT}/", f"{sys.prefix}/", f"{sys.base_prefix}/"),
    *("/usr/", "/lib", "/proc/", "/sys/", "/dev/null", "/dev/urandom"),
)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_FORBIDDEN = frozenset(
    {
        *("os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.kill"),
        *("subprocess.Popen", "pty.spawn", "socket.connect", "socket.bind", "urllib.Request"),
        *("pickle.find_class", "ctypes.dlopen"),
    }
)
_CHANGING = frozenset(
    {
        *("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.chmod"),
        *("os.chown", "os.truncate"),
    }
)
_LOOKED_AT = _FORBIDDEN | _CHANGING | {"open", "import", "compile", "exec"}
# What extension modules compile for the lines of their tracebacks; PyAV's files are "av/...".
_CYTHON_TRACEBACK = b"_getframe()"
# Inputs of one fault that are listed.
_MAX_LISTED = 3


@dataclasses.dataclass(frozen=True)
class Target:
    """A reader to run.

    Attributes:
      name: unique over all targets.
      seeds: makes valid inputs, none of which may be refused.
      run: reads one input.
      tokens: words of the format, for mutations.
      finish: what is done to an input, seeds included, after its mutation: such as putting it into
        a container that is whole, so that the reader gets to see it.
      generate: makes an input, for every other one, in place of a mutation.
      weight: its part of the inputs of a run over several targets; slow readers have less.
    """

    name: str
    seeds: Callable[[], Sequence[bytes]]
    run: Callable[[bytes, Path], object]
    tokens: Sequence[bytes] = ()
    finish: Callable[[bytes], bytes] = bytes
    generate: Callable[[random.Random], bytes] | None = None
    weight: float = 2.0

    def input(self, seeds: Sequence[bytes], number: int) -> bytes:
        """The input of a number."""
        source = random.Random(f"{self.name} {number}")
        if self.generate is not None and number % 2:
            return self.finish(self.generate(source))
        return self.finish(mutate(source, source.choice(seeds), seeds, self.tokens))


@dataclasses.dataclass
class Fault:
    """What several inputs of a target have led to.

    Attributes:
      kind: one of `KINDS`.
      place: type of the exception and line, or what was attempted.
      example: the first one's message.
      count: of how many inputs.
      numbers: of the first of them.
    """

    kind: str
    place: str
    example: str
    count: int = 0
    numbers: list[int] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Result:
    """What a target did with its inputs.

    Attributes:
      target: its name.
      inputs: how many it got.
      accepted: how many it read.
      refused: how many it refused.
      faults: what was neither.
      seconds: of all processes together.
      slowest: seconds of the slowest input.
      peak_bytes: by how much the resident memory of a process has grown at most.
    """

    target: str
    inputs: int
    accepted: int = 0
    refused: int = 0
    faults: list[Fault] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    slowest: float = 0.0
    peak_bytes: int = 0

    def count(self, kind: str) -> int:
        """Number of inputs with a kind of fault."""
        return sum(fault.count for fault in self.faults if fault.kind == kind)

    def add(self, number: int, kind: str, place: str, example: str) -> None:
        """Counts an input among the faults."""
        fault = next((f for f in self.faults if (f.kind, f.place) == (kind, place)), None)
        if fault is None:
            fault = Fault(kind, place, example)
            self.faults.append(fault)
        fault.count += 1
        if len(fault.numbers) < _MAX_LISTED:
            fault.numbers.append(number)


def all_targets() -> dict[str, Target]:
    """The targets of all modules of `tests.fuzz.targets`, by name."""
    from tests.fuzz import targets

    modules = sorted(info.name for info in pkgutil.iter_modules(targets.__path__))
    found: dict[str, Target] = {}
    for name in modules:
        for target in importlib.import_module(f"{targets.__name__}.{name}").TARGETS:
            if target.name in found:
                raise ValueError(f"expected one target named {target.name!r}, found two")
            found[target.name] = target
    return found


def fuzz(target: Target, inputs: int, first: int = 0, jobs: int = 1) -> Result:
    """Runs a target on the inputs `first` to `first + inputs - 1` in forked processes."""
    result = Result(target.name, inputs)
    bounds = [first + inputs * job // jobs for job in range(jobs + 1)]
    with contextlib.ExitStack() as stack:
        shares = [
            stack.enter_context(_Share(target, start, end, result))
            for start, end in itertools.pairwise(bounds)
        ]
        while running := [share for share in shares if share.process is not None]:
            wait([share.connection for share in running], timeout=0.2)
            for share in running:
                share.look()
    return result


class _Progress(ctypes.Structure):
    """What a process tells of its work, in memory that it shares with its parent."""

    _fields_ = [
        ("number", ctypes.c_longlong),
        ("since", ctypes.c_double),
        ("accepted", ctypes.c_longlong),
        ("refused", ctypes.c_longlong),
        ("slowest", ctypes.c_double),
        ("seconds", ctypes.c_double),
        ("peak_bytes", ctypes.c_longlong),
    ]


class _Share:
    """A range of a target's inputs, and the process that works on them."""

    def __init__(self, target: Target, start: int, end: int, result: Result) -> None:
        self.target, self.end, self.result = target, end, result
        self.process: Any = None
        self.progress: Any = multiprocessing.RawValue(_Progress)
        self.folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
        self.start(start)

    def __enter__(self) -> "_Share":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)
        progress, result = self.progress, self.result
        result.accepted += progress.accepted
        result.refused += progress.refused
        result.seconds += progress.seconds
        result.slowest = max(result.slowest, progress.slowest)
        result.peak_bytes = max(result.peak_bytes, progress.peak_bytes)

    def start(self, number: int) -> None:
        """Begins with an input, if it is not behind the last one."""
        if number >= self.end:
            return
        context = multiprocessing.get_context("fork")
        self.connection, theirs = context.Pipe(duplex=False)
        # Until the process is ready.
        self.progress.number, self.progress.since = number, math.inf
        inputs = range(number, self.end)
        arguments = (self.target, inputs, self.progress, self.folder, theirs)
        self.process = context.Process(target=_work, args=arguments)
        self.process.start()
        theirs.close()

    def stop(self) -> None:
        """Ends the process, if there is one."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None

    def look(self) -> None:
        """Takes what the process has found; replaces it if it hangs or died."""
        try:
            while self.connection.poll():
                self.result.add(*self.connection.recv())
        except EOFError:
            self.process.join()
            code = self.process.exitcode
            self.process = None
            if code != 0:
                self._replace("crash", f"exit code {code}")
            return
        seconds = time.monotonic() - self.progress.since
        if seconds > HANG_SECONDS:
            self.stop()
            self.progress.slowest = max(self.progress.slowest, seconds)
            self._replace("hang", f"over {HANG_SECONDS:g} s")

    def _replace(self, kind: str, place: str) -> None:
        self.result.add(self.progress.number, kind, place, "")
        self.start(self.progress.number + 1)


def _work(
    target: Target,
    inputs: range,
    progress: _Progress,
    folder: Path,
    results: Connection,
) -> None:
    """Reads inputs one after another: the whole life of a process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    tempfile.tempdir = str(folder)
    os.chdir(folder)
    # Here, because what makes them may start threads, which a fork would not copy.
    seeds = tuple(target.seeds())
    # What is imported or compiled at the first use is so before the watch begins.
    for number, seed in enumerate(seeds):
        _empty(folder)
        outcome, *found = _read(target, target.finish(seed), folder)
        if outcome != "accepted":
            results.send((inputs[0], "foreign", f"seed {number} is not accepted", str(found)))
    base = _resident_bytes()
    limit = _address_space() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    attempts = _watch(folder)
    progress.since = time.monotonic()
    for number in inputs:
        data = target.input(seeds, number)
        _empty(folder)
        started = time.monotonic()
        progress.number, progress.since = number, started
        outcome, *found = _read(target, data, folder)
        seconds = time.monotonic() - started
        if attempts:
            outcome, found = "execution", [attempts[0], ""]
            attempts.clear()
        match outcome:
            case "accepted":
                progress.accepted += 1
            case "refused":
                progress.refused += 1
            case kind:
                results.send((number, kind, *found))
        progress.seconds += seconds
        progress.slowest = max(progress.slowest, seconds)
        progress.peak_bytes = max(progress.peak_bytes, _resident_bytes() - base)


def _read(target: Target, data: bytes, folder: Path) -> tuple[str, ...]:
    """Runs a target on one input: "accepted", "refused", or a kind of fault, place and message."""
    try:
        target.run(data, folder)
    except MemoryError as error:
        return "memory", _place(error), str(error)
    except BaseException as error:
        if isinstance(error, OSError) or (isinstance(error, ValueError) and _is_ours(error)):
            return ("refused",)
        return "foreign", _place(error), str(error)[:300]
    return ("accepted",)


def _frames(error: BaseException) -> list[TracebackType]:
    frames = []
    frame = error.__traceback__
    while frame is not None:
        frames.append(frame)
        frame = frame.tb_next
    return frames


def _is_ours(error: BaseException) -> bool:
    """Whether a `raise` statement of the project raised it."""
    frame = _frames(error)[-1]
    code = frame.tb_frame.f_code
    is_raise = code.co_code[frame.tb_lasti] == dis.opmap["RAISE_VARARGS"]
    return is_raise and code.co_filename.startswith(_CODE)


def _place(error: BaseException) -> str:
    """Its type, and the innermost line of the project on the way to it."""
    frames = _frames(error)
    ours = [f for f in frames if f.tb_frame.f_code.co_filename.startswith(_CODE)] or frames
    file = os.path.relpath(ours[-1].tb_frame.f_code.co_filename, _PROJECT)
    return f"{type(error).__name__} at {file}:{ours[-1].tb_lineno}"


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _resident_bytes() -> int:
    """Most that the process has had in memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _address_space() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


def _watch(folder: Path) -> list[str]:
    """Forbids this process what no reader has to do; returns the list of attempts, which grows."""
    attempts: list[str] = []
    known = {name.partition(".")[0] for name in sys.modules}
    inside = f"{os.path.realpath(folder)}/"

    def is_inside(path: Any, *roots: str) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return True
        return f"{os.path.realpath(os.fsdecode(path))}/".startswith((inside, *roots))

    def is_allowed(event: str, args: tuple[Any, ...]) -> bool:
        match event:
            case "open":
                path, _, flags = args
                is_writing = bool(flags & _WRITING) and path != os.devnull
                return is_inside(path, *(() if is_writing else _READABLE))
            case "import":
                return args[0].partition(".")[0] in known
            # Of modules, whose files these are.
            case "compile":
                is_traceback = args[0] == _CYTHON_TRACEBACK
                return is_traceback or os.fsdecode(args[1] or "").startswith(_READABLE)
            case "exec":
                name = args[0].co_filename
                return name.startswith(("av/", *_READABLE))
            case _ if event in _CHANGING:
                return all(is_inside(path) for path in args)
        return event not in _FORBIDDEN

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in _LOOKED_AT and not is_allowed(event, args):
            attempts.append(f"{event} {str(args[:2])[:200]}")
            raise PermissionError(f"{event} is nothing that a reader does")

    sys.addaudithook(hook)
    return attempts
