"""The processes of one run on many hosts: which of them this is, and how they meet.

Every host runs the same command. What it is one of says its environment: that of TPU slices, GKE,
SLURM, or three variables that anybody can set. Without any of these a process is alone.
"""

import dataclasses
import os
import re
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

# Set by hand, all three or none. JAX itself reads the first.
COORDINATOR, PROCESSES, PROCESS_ID = EXPLICIT = (
    "JAX_COORDINATOR_ADDRESS",
    "JAX_NUM_PROCESSES",
    "JAX_PROCESS_ID",
)
# Of process 0 where the environment names a host alone.
_TPU_PORT = 8476
# SLURM's jobs on one host take different ones of these.
_SLURM_PORTS = range(61440, 65536)
_SLURM = (
    *("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_STEP_NUM_TASKS"),
    *("SLURM_PROCID", "SLURM_LOCALID"),
)
_METADATA_HOST = "metadata.google.internal"
_METADATA_SECONDS = 5.0
_SHUTDOWN_SECONDS = 60
# Seconds between two attempts to reach process 0.
_RETRY = 1.0


class HostsError(ConnectionError):
    """The processes of a run did not find each other, or are others than announced."""


@dataclasses.dataclass(frozen=True)
class Hosts:
    """The processes of a run, as one of them sees them.

    Attributes:
      source: where this is known from, for messages.
      coordinator: "HOST:PORT" where process 0 listens for the others.
      count: how many there are.
      process_id: which of them this is, from 0.
      local_devices: numbers of the GPUs that are this process's; None takes all of its machine.
    """

    source: str
    coordinator: str
    count: int
    process_id: int
    local_devices: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        host, _, port = self.coordinator.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ValueError(
                f"{self.source}: expected the coordinator as HOST:PORT, the address of process 0"
                f" and a free port on it, found {self.coordinator!r}"
            )
        if self.count < 1:
            raise ValueError(f"{self.source}: expected 1 or more processes, found {self.count}")
        if not 0 <= self.process_id < self.count:
            raise ValueError(
                f"{self.source}: expected a process from 0 to {self.count - 1}, as there are"
                f" {self.count}, found {self.process_id}"
            )


def detect(
    environ: Mapping[str, str] = os.environ, has_tpu: "Callable[[], bool] | None" = None
) -> Hosts | None:
    """What the environment says of other processes of the run.

    In this order: the variables of `EXPLICIT`; a step of SLURM, with one task for each host or for
    each GPU; a pod of GKE with a part of a TPU slice; a TPU VM, which asks its metadata server.
    Slices of a multi-slice run count as one system, in the order of their numbers.

    Args:
      environ: the environment of the process.
      has_tpu: whether TPU chips are attached to this machine; looks for them by default.

    Returns:
      None if the process is alone.

    Raises:
      ValueError: variables are missing, no numbers, or contradict each other; they are named.
    """
    found = _explicit(environ) or _slurm(environ) or _gke(environ)
    if found is None and _may_use_tpu(environ) and (has_tpu or _has_tpu)():
        found = _tpu_vm(environ)
    return found if found is not None and found.count > 1 else None


def join(hosts: Hosts, timeout: float = 300.0) -> None:
    """Connects this process with the others; before the first use of a device.

    Afterwards JAX's own handler takes SIGTERM, as the notice of a preemption.

    Args:
      hosts: of `detect`.
      timeout: seconds after which the others must be there.

    Raises:
      HostsError: they are not, or their number is another one.
    """
    import jax

    deadline = time.monotonic() + timeout
    if hosts.process_id:
        _await_coordinator(hosts, deadline, timeout)
    outcome: list[RuntimeError | None] = []
    connecting = threading.Thread(
        target=_connect, args=(hosts, timeout, outcome), name="connecting", daemon=True
    )
    connecting.start()
    connecting.join(max(deadline - time.monotonic(), 0.0))
    if outcome != [None]:
        (error,) = outcome or [None]
        found = _reason(error) if error else "that some are missing"
        raise HostsError(
            f"expected {hosts.count} processes to meet at {hosts.coordinator} within {timeout:g} s"
            f" ({hosts.source}), found {found}; start the same command on every host"
        ) from error
    if jax.process_count() != hosts.count:
        raise HostsError(
            f"expected {hosts.count} processes ({hosts.source}), found {jax.process_count()} by"
            " their devices; start one for each host of the slices, or correct the number"
        )


def leave() -> None:
    """Waits until all processes of the run are done with it, and disconnects this one."""
    import jax

    jax.distributed.shutdown()


def _connect(hosts: Hosts, timeout: float, outcome: list[RuntimeError | None]) -> None:
    """Connects by JAX, which aborts the process when its own patience ends: not before ours."""
    import jax

    try:
        jax.distributed.initialize(
            hosts.coordinator,
            hosts.count,
            hosts.process_id,
            local_device_ids=hosts.local_devices,
            # What it would find is known, and its way with SLURM takes one GPU of each host.
            cluster_detection_method="deactivate",
            initialization_timeout=int(timeout) + _SHUTDOWN_SECONDS,
            # Of a process that ends by an error while the others work on.
            shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
        )
    except RuntimeError as error:
        outcome.append(error)
    else:
        outcome.append(None)


def _explicit(environ: Mapping[str, str]) -> Hosts | None:
    given = [name for name in EXPLICIT if environ.get(name)]
    if not given:
        return None
    if len(given) < len(EXPLICIT):
        missing = [name for name in EXPLICIT if name not in given]
        raise ValueError(
            f"expected all of {', '.join(EXPLICIT)} or none, found {', '.join(given)} alone; set"
            f" {' and '.join(missing)}: the address HOST:PORT of process 0, the number of"
            " processes, and that of this one, from 0"
        )
    count, process_id = (_number(environ, name) for name in (PROCESSES, PROCESS_ID))
    return Hosts(", ".join(EXPLICIT), environ[COORDINATOR], count, process_id)


def _slurm(environ: Mapping[str, str]) -> Hosts | None:
    # In a script of sbatch outside srun there are only some of them.
    if not all(environ.get(name) for name in _SLURM):
        return None
    job, count, process_id, local = (
        _number(environ, name) for name in _SLURM if name != "SLURM_STEP_NODELIST"
    )
    # "node7", "node[003-010,12],other": the first one.
    nodes = environ["SLURM_STEP_NODELIST"]
    first = re.match(r"([^,\[]+)(?:\[(\d+))?", nodes)
    if first is None:
        raise ValueError(f"SLURM_STEP_NODELIST: expected names of hosts, found {nodes!r}")
    host = first[1] + (first[2] or "")
    port = _SLURM_PORTS[job % len(_SLURM_PORTS)]
    # "8(x2)" or "4,3"; a task that has a host to itself takes all of its GPUs.
    each = re.findall(r"(\d+)(?:\(x\d+\))?", environ.get("SLURM_STEP_TASKS_PER_NODE", "1"))
    is_alone = all(int(tasks) == 1 for tasks in each)
    # SLURM may have given each task its own GPU already.
    is_bound = len(environ.get("CUDA_VISIBLE_DEVICES", ",").split(",")) == 1
    devices = None if is_alone or is_bound else (local,)
    return Hosts("a step of SLURM", f"{host}:{port}", count, process_id, devices)


def _gke(environ: Mapping[str, str]) -> Hosts | None:
    listed = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES")
    if not listed or not environ.get("TPU_WORKER_ID"):
        return None
    workers = [worker.strip().partition(":")[0] for worker in listed.split(",")]
    number = _number(environ, "TPU_WORKER_ID")
    return _of_slices("TPU_WORKER_HOSTNAMES", workers, number, environ)


def _tpu_vm(environ: Mapping[str, str]) -> Hosts | None:
    server = environ.get("GCE_METADATA_HOST", _METADATA_HOST)
    endpoints = _metadata(server, "worker-network-endpoints")
    number = _metadata(server, "agent-worker-number")
    if not endpoints or number is None:
        return None
    # "ADDRESS", or "NAME:ID:ADDRESS".
    workers = [endpoint.strip().rpartition(":")[2] for endpoint in endpoints.split(",")]
    # Lines such as MEGASCALE_NUM_SLICES: '2'.
    listed = re.findall(r"^\s*(\w+):\s*'?([^'\n]*)", _metadata(server, "tpu-env") or "", re.M)
    variables = {"agent-worker-number": number, **dict(listed), **environ}
    return _of_slices(
        "the TPU's metadata", workers, _number(variables, "agent-worker-number"), variables
    )


def _of_slices(
    source: str, workers: Sequence[str], worker: int, variables: Mapping[str, str]
) -> Hosts:
    """The processes of one slice, or of several that `MEGASCALE_*` variables tell of."""
    if not 0 <= worker < len(workers):
        raise ValueError(
            f"{source}: expected a worker from 0 to {len(workers) - 1}, found {worker}"
        )
    slices = _number(variables, "MEGASCALE_NUM_SLICES", "1")
    number = _number(variables, "MEGASCALE_SLICE_ID", "0")
    first = variables.get("MEGASCALE_COORDINATOR_ADDRESS") or workers[0]
    if slices > 1 and not variables.get("MEGASCALE_COORDINATOR_ADDRESS"):
        raise ValueError(
            f"expected MEGASCALE_COORDINATOR_ADDRESS, the first host of {slices} slices, found none"
        )
    return Hosts(
        source,
        f"{first.partition(':')[0]}:{_TPU_PORT}",
        slices * len(workers),
        number * len(workers) + worker,
    )


def _number(variables: Mapping[str, str], name: str, default: str = "") -> int:
    text = variables.get(name) or default
    if not text.isdecimal():
        raise ValueError(f"{name}: expected a whole number, found {text!r}")
    return int(text)


def _may_use_tpu(environ: Mapping[str, str]) -> bool:
    # Who sets the second one has no metadata server, or wants a part of the machine.
    return "tpu" in environ.get("JAX_PLATFORMS", "tpu") and "TPU_SKIP_MDS_QUERY" not in environ


def _has_tpu() -> bool:
    return any(any(Path("/dev").glob(name)) for name in ("accel[0-9]*", "vfio/[0-9]*"))


def _metadata(server: str, key: str) -> str | None:
    """An attribute of a Google Cloud machine; None where there is none."""
    request = urllib.request.Request(
        f"http://{server}/computeMetadata/v1/instance/attributes/{key}",
        headers={"Metadata-Flavor": "Google"},
    )
    # It is on this machine: no proxy has it.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=_METADATA_SECONDS) as answer:
            return str(answer.read().decode())
    except (urllib.error.URLError, OSError):
        return None


def _await_coordinator(hosts: Hosts, deadline: float, timeout: float) -> None:
    """Returns when process 0 listens; JAX itself would end this process without a word of why.

    Raises:
      HostsError: it does not in time.
    """
    host, _, port = hosts.coordinator.rpartition(":")
    while True:
        try:
            left = max(deadline - time.monotonic(), 0.1)
            socket.create_connection((host.strip("[]"), int(port)), timeout=left).close()
            return
        except OSError as error:
            if time.monotonic() + _RETRY > deadline:
                raise HostsError(
                    f"expected process 0 of {hosts.count} at {hosts.coordinator} within"
                    f" {timeout:g} s ({hosts.source}), found {error}; start the same command on"
                    " every host, and let them reach each other"
                ) from None
        time.sleep(_RETRY)


def _reason(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
