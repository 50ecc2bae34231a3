"""Processes of a run are found in environments of all kinds, and wait for each other in vain."""

import contextlib
import http.server
import socket
import threading
import time

import pytest

from internvideo_jax.parallel import aot, hosts
from internvideo_jax.parallel.hosts import Hosts, HostsError, detect

BY_HAND = {
    "JAX_COORDINATOR_ADDRESS": "10.0.0.1:8476",
    "JAX_NUM_PROCESSES": "4",
    "JAX_PROCESS_ID": "3",
}
SLURM = {
    "SLURM_JOB_ID": "4097",
    "SLURM_STEP_NODELIST": "gpu[003-004,7],other",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "1(x4)",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7",
}
GKE = {"TPU_WORKER_HOSTNAMES": "run-0-0.run,run-0-1.run", "TPU_WORKER_ID": "1"}
SLICES = {
    "MEGASCALE_NUM_SLICES": "2",
    "MEGASCALE_SLICE_ID": "1",
    "MEGASCALE_COORDINATOR_ADDRESS": "run-slice-0-0.run:8080",
}


def place(environ, **options):
    """Where the others are, how many there are, which one this is, and its GPUs."""
    found = detect(environ, **options)
    return found and (found.coordinator, found.count, found.process_id, found.local_devices)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        (BY_HAND, ("10.0.0.1:8476", 4, 3, None)),
        (BY_HAND | SLURM | GKE, ("10.0.0.1:8476", 4, 3, None)),
        # 4097 = 4096 + 1.
        (SLURM, ("gpu003:61441", 4, 2, None)),
        (SLURM | {"SLURM_STEP_NODELIST": "node7,node9"}, ("node7:61441", 4, 2, None)),
        # A task for each GPU takes that of its number, unless SLURM has bound it to one already.
        (
            SLURM | {"SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_LOCALID": "1"},
            ("gpu003:61441", 4, 2, (1,)),
        ),
        (
            SLURM | {"SLURM_STEP_TASKS_PER_NODE": "2(x2)", "CUDA_VISIBLE_DEVICES": "1"},
            ("gpu003:61441", 4, 2, None),
        ),
        (GKE, ("run-0-0.run:8476", 2, 1, None)),
        (GKE | SLICES, ("run-slice-0-0.run:8476", 4, 3, None)),
        (
            {"TPU_PROCESS_ADDRESSES": "10.1.0.1:8471,10.1.0.2:8471", "TPU_WORKER_ID": "0"},
            ("10.1.0.1:8476", 2, 0, None),
        ),
    ],
)
def test_the_environment_tells_who_is_there(environ, expected):
    assert place(environ) == expected


@pytest.mark.parametrize(
    "environ",
    [
        {},
        BY_HAND | {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"},
        # The script of sbatch itself; srun with one task.
        {k: v for k, v in SLURM.items() if k not in ("SLURM_STEP_NODELIST", "SLURM_LOCALID")},
        SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
        {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"},
        aot.ENVIRONMENT,
    ],
)
def test_a_process_without_others_is_alone(environ):
    assert detect(environ) is None


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        (
            {"JAX_NUM_PROCESSES": "2"},
            "found JAX_NUM_PROCESSES alone; set JAX_COORDINATOR_ADDRESS and JAX_PROCESS_ID",
        ),
        (BY_HAND | {"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES: expected a whole number"),
        (BY_HAND | {"JAX_PROCESS_ID": "4"}, "expected a process from 0 to 3, as there are 4"),
        (BY_HAND | {"JAX_NUM_PROCESSES": "0"}, "expected 1 or more processes, found 0"),
        (BY_HAND | {"JAX_COORDINATOR_ADDRESS": "10.0.0.1"}, "as HOST:PORT"),
        (BY_HAND | {"JAX_COORDINATOR_ADDRESS": "host:70000"}, "as HOST:PORT"),
        (SLURM | {"SLURM_PROCID": "4"}, "a step of SLURM: expected a process from 0 to 3"),
        (GKE | {"TPU_WORKER_ID": "2"}, "expected a worker from 0 to 1, found 2"),
        (GKE | {"MEGASCALE_NUM_SLICES": "2"}, "expected MEGASCALE_COORDINATOR_ADDRESS"),
    ],
)
def test_environments_that_contradict_themselves_are_named(environ, message):
    with pytest.raises(ValueError, match=message):
        detect(environ)


@contextlib.contextmanager
def metadata_server(attributes):
    """A server like that of Google's machines; its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            folder, _, name = self.path.rpartition("/")
            is_asked = self.headers["Metadata-Flavor"] == "Google"
            is_there = folder == "/computeMetadata/v1/instance/attributes" and name in attributes
            self.send_response(200 if is_asked and is_there else 404)
            self.end_headers()
            if is_there:
                self.wfile.write(attributes[name].encode())

        def log_message(self, *args):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def on_tpu_vm(environ=(), **attributes):
    attributes = {name.replace("_", "-"): text for name, text in attributes.items()}
    with metadata_server(attributes) as address:
        return place({"GCE_METADATA_HOST": address, **dict(environ)}, has_tpu=lambda: True)


def test_tpu_vms_ask_their_metadata_server():
    two = {"worker_network_endpoints": "unknown:1:10.0.0.2,unknown:2:10.0.0.3"}
    assert on_tpu_vm(**two, agent_worker_number="1") == ("10.0.0.2:8476", 2, 1, None)
    env = "ZONE: 'z'\nMEGASCALE_COORDINATOR_ADDRESS: '10.9.0.1:8080'\n"
    env += "MEGASCALE_NUM_SLICES: '3'\nMEGASCALE_SLICE_ID: '2'\n"
    found = on_tpu_vm(**two, agent_worker_number="1", tpu_env=env)
    assert found == ("10.9.0.1:8476", 6, 5, None)
    # One host has no others; other machines have no such attributes, or no server.
    assert on_tpu_vm(worker_network_endpoints="10.0.0.2", agent_worker_number="0") is None
    assert on_tpu_vm() is None
    nobody = {"GCE_METADATA_HOST": "127.0.0.1:9"}
    assert detect(nobody, has_tpu=lambda: True) is None
    # Nobody is asked where no TPU is, or none is wanted.
    with metadata_server({"worker-network-endpoints": "a,b", "agent-worker-number": "0"}) as server:
        environ = {"GCE_METADATA_HOST": server}
        assert detect(environ, has_tpu=lambda: False) is None
        assert detect(environ | {"JAX_PLATFORMS": "cpu"}, has_tpu=lambda: True) is None
        assert detect(environ | {"TPU_SKIP_MDS_QUERY": "1"}, has_tpu=lambda: True) is None
        assert detect(environ | {"JAX_PLATFORMS": "tpu,cpu"}, has_tpu=lambda: True).count == 2


def test_a_coordinator_that_is_not_there_is_named_in_time(monkeypatch):
    monkeypatch.setattr(hosts, "_RETRY", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    start = time.monotonic()
    message = f"process 0 of 2 at 127.0.0.1:{port} within 0.3 s .by hand.*start the same command"
    with pytest.raises(HostsError, match=message):
        hosts.join(Hosts("by hand", f"127.0.0.1:{port}", 2, 1), timeout=0.3)
    assert time.monotonic() - start < 5
