import importlib
import json

import pytest

from internvideo_jax.launch import doctor
from internvideo_jax.launch.diagnosis import probes
from internvideo_jax.launch.diagnosis.probes import Check


@pytest.fixture
def fake_package(tmp_path, monkeypatch):
    """Installs a package `victim` 1.0 with the given code, for this process and its children."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(code):
        (tmp_path / "victim.py").write_text(code)
        info = tmp_path / "victim-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: victim\nVersion: 1.0\n")

    return install


def only(checks):
    checks = list(checks)
    assert len(checks) == 1
    return checks[0]


def test_the_report_of_this_machine(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("INTERNVIDEO_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("INTERNVIDEO_ATTENTION", raising=False)
    code = doctor.main([f"--json={tmp_path}/report.json"])
    out = capsys.readouterr().out
    report = json.loads((tmp_path / "report.json").read_text())
    assert code == 0, out
    assert out.endswith("Everything required works.\n")
    assert report["ok"] is True
    rows = {(row["section"], row["name"]): row for row in report["checks"]}
    required = {line.partition(">=")[0] for line in doctor.requirements()}
    assert {name for section, name in rows if section == "packages"} == required
    assert rows["devices", "backend"]["value"] == "cpu (JAX_PLATFORMS=cpu)"
    assert "float32, matmul error" in rows["devices", "cpu"]["value"]
    assert rows["attention", "reference"]["status"] == "ok"
    assert rows["video", "h264"]["value"] == "decoded by h264"
    assert rows["files", "INTERNVIDEO_HOME"]["value"].startswith(str(tmp_path / "home"))
    assert not (tmp_path / "home").exists()
    for section, name in rows:
        assert section in out
        assert name in out


def test_a_missing_package_fails_the_report(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "requirements", lambda: [])
    bad = Check("packages", "nosuch", "bad", "not installed", "pip install 'nosuch>=1'")
    monkeypatch.setattr(probes, "run", lambda _requirements: iter([bad]))
    assert doctor.main([]) == 1
    out = capsys.readouterr().out
    assert "-> pip install 'nosuch>=1'" in out
    assert out.endswith("Needs attention: nosuch\n")


def test_packages_missing_old_or_broken(fake_package):
    # Installed metadata writes the bounds in another order than requirements.txt.
    for line in ("numpy>=2.0", "numpy<99,>=2.0"):
        present = only(probes.package_checks(line))
        assert (present.name, present.status) == ("numpy", "ok")
    missing = only(probes.package_checks("no-such-package>=1.0"))
    assert (missing.status, missing.value) == ("bad", "not installed")
    old = only(probes.package_checks("numpy>=99"))
    assert old.status == "bad"
    assert old.value.endswith(", expected >=99")
    fake_package("raise OSError('libGL.so.1: cannot open shared object file')")
    broken = only(probes.package_checks("victim>=1"))
    assert broken.status == "bad"
    assert "`import victim` fails: OSError: libGL.so.1" in broken.value
    assert broken.advice == "pip install --force-reinstall 'victim>=1'"


def test_a_package_that_crashes_its_process_is_named(fake_package):
    fake_package(
        "import os, signal, sys\n"
        "print('undefined symbol: foo', file=sys.stderr, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGSEGV)\n"
    )
    first, last = probes.run(["packaging>=20", "victim>=1"])
    assert (first.name, first.status) == ("packaging", "ok")
    assert (last.name, last.status) == ("victim>=1", "bad")
    assert "ended its process with SIGSEGV" in last.value
    assert last.advice == "undefined symbol: foo"


def test_a_package_that_hangs_is_named(fake_package):
    fake_package("import time\nprint('waiting for the chip', flush=True)\ntime.sleep(600)\n")
    last = list(probes.run(["victim>=1"], silence_limit_s=6.0))[-1]
    assert (last.name, last.status) == ("victim>=1", "bad")
    assert last.value == "no answer for 6 s"
    assert last.advice == "waiting for the chip"


@pytest.mark.parametrize("error", [0.5, float("nan")])
def test_wrong_products_are_bad(monkeypatch, error):
    monkeypatch.setattr(probes, "matmul_error", lambda *_: error)
    statuses = {check.name: check.status for check in probes.device_checks()}
    assert statuses["cpu"] == "bad"


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_products_of_this_cpu_are_right(dtype):
    import jax

    assert probes.matmul_error(jax.devices("cpu")[0], dtype) < 1e-5


@pytest.mark.parametrize(
    ("preferred", "status", "value"),
    [
        ("reference", "ok", "reference: used where it can serve"),
        ("refrence", "bad", "refrence: unknown; did you mean 'reference'?"),
        ("pallas_tpu", "note", "pallas_tpu: cannot serve here, calls fall back to another"),
    ],
)
def test_the_attention_preference(monkeypatch, preferred, status, value):
    attention = importlib.import_module("internvideo_jax.kernels.attention")
    known = {"reference": None, "pallas_tpu": "needs a TPU"}
    monkeypatch.setattr(attention, "available_implementations", lambda: known)
    monkeypatch.setenv("INTERNVIDEO_ATTENTION", preferred)
    checks = {check.name: check for check in probes.attention_checks()}
    assert checks["reference"].status == "ok"
    assert (checks["pallas_tpu"].status, checks["pallas_tpu"].value) == ("note", "needs a TPU")
    assert checks["INTERNVIDEO_ATTENTION"].status == status
    assert checks["INTERNVIDEO_ATTENTION"].value == value


def test_a_missing_decoder(monkeypatch):
    missing = {"h264": ("no_such_decoder",), "av1": ("no_such_decoder",)}
    monkeypatch.setattr(probes, "DECODERS", missing)
    statuses = {check.name: check.status for check in probes.codec_checks()}
    assert statuses == {"libavcodec": "ok", "h264": "bad", "av1": "note"}


def test_optional_parts_say_how_to_get_them(monkeypatch):
    monkeypatch.setattr(doctor, "OPTIONAL", {"nosuch": ("tf", "nothing"), "numpy": ("tf", "all")})
    missing, present = doctor.optional_checks()
    assert missing.status == "note"
    assert missing.advice == "for nothing: pip install 'internvideo-jax[tf]'"
    assert present.status == "ok"
    assert present.value[0].isdigit()


def test_a_home_that_is_a_file(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("INTERNVIDEO_HOME", str(tmp_path / "file"))
    check = only(doctor.file_checks())
    assert check.status == "bad"
    assert "cannot be written" in check.value
