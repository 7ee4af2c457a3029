"""The command line: what it prints, how it ends; most in this process, some as a user runs it."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
import typing
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from clusters import client_of
from distributed import Security
from typer.testing import CliRunner, Result

import rntk_dist as rd
from rntk_dist.cli import app
from rntk_dist.cli.exits import ExitCode, exit_code
from rntk_dist.cli.options import KERNEL_HELP
from rntk_dist.cli.output import shown_bytes, shown_hours, shown_seconds
from rntk_dist.creation import ensure_store
from rntk_dist.failures import TileError
from rntk_dist.job_file import JobFile
from rntk_dist.kernel.rntk import RNTK
from rntk_dist.plan import TileMemoryError
from rntk_dist.store import CorruptTileError, GramStore, IdentityError, MissingTileError
from rntk_dist.tile_task import compute_tile

COMMAND = Path(sys.executable).parent / "rntk-dist"
COMMANDS = [
    *("plan", "run", "resume", "append", "sweep", "neighbors"),
    *("submit", "status", "jobs", "cancel"),
    *("info", "verify", "repair", "export", "demo", "experiment"),
]
KERNEL = RNTK(sigma_w=1.3, readout="per_step")
FLAGS = ("--sigma-w", "1.3", "--readout", "per_step", "--tile", "8")
N = 20  # 3 x 3 tiles of 8: six of the upper triangle


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, *arguments], cwd=cwd, capture_output=True, text=True, timeout=240, check=False
    )


def call(*arguments: object) -> Result:
    """Run a command in this process."""
    return CliRunner(env={"COLUMNS": "80"}).invoke(app, [str(argument) for argument in arguments])


def help_page(*command: str) -> str:
    """What a command's --help prints, without styles, which some CI services get."""
    done = call(*command, "--help")
    assert done.exit_code == 0, command
    return plain(done.stdout)


def plain(shown: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)


def facts(*arguments: object, code: int = 0) -> Any:
    """The one JSON object that a command prints."""
    done = call(*arguments, "--json")
    assert done.exit_code == code, done.output
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    """Workers that are threads of this process."""
    with client_of(2, processes=False, protocol="tcp") as client:
        yield client.scheduler_info()["address"]


@pytest.fixture(scope="module")
def X() -> rd.Sequences:
    rng = np.random.default_rng(2)
    lengths = rng.integers(2, 9, N)
    labels = [*"ab"] * (N // 2)
    return rd.Sequences.from_arrays([rng.normal(size=t) for t in lengths], labels=labels)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, X: rd.Sequences) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    X.write(folder / "x.npz")
    store = ensure_store(KERNEL, X, None, store=folder / "g.zarr", tile=8)
    for tile in store.plan.tiles():
        compute_tile(store.location, tile)
    store.finish()
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The present folder: sequences `x.npz`, and their whole matrix in `g.zarr`."""
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lose(store: Path, *keys: str) -> None:
    for key in keys:
        (store / "gram" / "c" / key).unlink()


# -- help -----------------------------------------------------------------------------------------


def test_every_command_has_a_page_of_80_columns() -> None:
    page = help_page()
    for command in COMMANDS:
        assert re.search(rf"^│ {command} ", page, re.M)
        assert max(map(len, help_page(command).splitlines())) <= 80
    assert "3 the store holds another matrix" in page


def test_a_kernel_has_a_flag_for_each_of_its_fields() -> None:
    assert list(KERNEL_HELP) == [field.name for field in fields(RNTK)]
    for command in ("plan", "run", "submit"):
        page = help_page(command)
        for field in fields(RNTK):
            assert f"--{field.name.replace('_', '-')} " in page
    hints = typing.get_type_hints(RNTK)
    words = re.sub(r"[│\s]+", " ", help_page("run"))
    assert f"What the output is: {', '.join(typing.get_args(hints['readout']))}" in words


def test_flags_take_values_of_their_fields(folder: Path) -> None:
    flags = ("--no-normalize", "--bidirectional", "--depth", "2", "--initial-state", "independent")
    found = facts("plan", "x.npz", "--store", "new.zarr", "--backend", "numpy", *flags)
    assert found["pair_steps"] == 4 * facts("plan", "x.npz", "--store", "g", *FLAGS)["pair_steps"]


# -- commands -------------------------------------------------------------------------------------


def test_plan_says_what_a_run_would_take_and_writes_nothing(folder: Path) -> None:
    found = facts("plan", "x.npz", "--store", "new.zarr", *FLAGS, "--backend", "numpy")
    assert found["shape"] == [N, N]
    assert found["tiles"] == {"missing": 6, "total": 6}
    assert found["bytes_stored"] == 6 * (8 * 8 * 8 + 4)
    assert found["pair_steps_per_second"] > 0
    assert not (folder / "new.zarr").exists()
    lose(folder / "g.zarr", "0/1", "2/2")
    lines = call("plan", "x.npz", "--store", "g.zarr", *FLAGS).stdout.splitlines()
    assert "tiles to compute\t2 of 6, of edge 8" in lines


def test_run_computes_the_matrix_and_again_nothing(folder: Path, scheduler: str) -> None:
    command = ("run", "x.npz", "--store", "new.zarr", *FLAGS, "--scheduler", scheduler, "--quiet")
    done = facts(*command)
    assert (done["tiles"], done["tiles_computed"]) == ({"stored": 6, "total": 6}, 6)
    assert done["store"] == str(folder / "new.zarr")
    assert facts(*command)["tiles_computed"] == 0
    assert np.array_equal(np.asarray(rd.open_gram("new.zarr")), np.asarray(rd.open_gram("g.zarr")))


def test_run_takes_a_job_file_whose_entries_options_replace(
    folder: Path, scheduler: str, X: rd.Sequences
) -> None:
    sub = folder / "sub"
    sub.mkdir()
    job = JobFile(KERNEL, "../x.npz", "../x.npz", "new.zarr", "nngp", "float32", 8, "numpy")
    (sub / "job.toml").write_text(job.to_toml())
    (sub / "job.yml").write_text(yaml.safe_dump(job.to_dict()))
    facts("run", "sub/job.toml", "--scheduler", scheduler)
    gram = rd.open_gram(sub / "new.zarr")
    assert (gram.kernel, gram.kind, gram.dtype.name) == (KERNEL, "nngp", "float32")
    assert np.array_equal(gram, KERNEL(X, X, kind="nngp", dtype="float32", backend="numpy"))
    options = ("--store", "other.zarr", "--depth", "2", "--kind", "ntk", "--scheduler", scheduler)
    facts("run", "sub/job.yml", *options)
    other = rd.open_gram("other.zarr")
    assert other.kernel == RNTK(depth=2, sigma_w=1.3, readout="per_step")
    assert (other.kind, other.dtype.name) == ("ntk", "float32")


def test_against_makes_a_rectangular_matrix(folder: Path, scheduler: str) -> None:
    np.save("y.npy", np.ones((3, 4)))
    command = ("run", "x.npz", "--against", "y.npy", "--store", "xy.zarr", *FLAGS)
    assert facts(*command, "--scheduler", scheduler)["shape"] == [N, 3]


def test_resume_needs_the_store_alone(folder: Path, scheduler: str) -> None:
    before = np.asarray(rd.open_gram("g.zarr"))
    lose(folder / "g.zarr", "0/1", "2/2")
    os.remove("x.npz")
    done = facts("resume", "g.zarr", "--scheduler", scheduler)
    assert (done["tiles"], done["tiles_computed"]) == ({"stored": 6, "total": 6}, 2)
    assert np.array_equal(np.asarray(rd.open_gram("g.zarr")), before)


def test_append_extends_the_matrix(folder: Path, scheduler: str, X: rd.Sequences) -> None:
    more = rd.Sequences.from_arrays(np.ones((5, 3)), labels=[*"ababa"])
    more.write("more.npz")
    done = facts("append", "g.zarr", "more.npz", "--scheduler", scheduler)
    assert (done["shape"], done["sequences_appended"]) == ([N + 5, N + 5], 5)
    both = rd.Sequences.concatenate([X, more])
    assert np.allclose(np.asarray(rd.open_gram("g.zarr")), KERNEL(both, backend="numpy"))
    assert call("append", "g.zarr").exit_code == ExitCode.USAGE  # nothing was interrupted


def test_info_tells_a_job_file_that_computes_the_same(folder: Path, scheduler: str) -> None:
    found = facts("info", "g.zarr")
    assert found["kernel"] == KERNEL.to_dict()
    assert found["tiles"] == {"stored": 6, "total": 6}
    assert JobFile.from_dict(found["job_file"]).store == str(folder / "g.zarr")
    printed = call("info", "g.zarr", "--job-file")
    (folder / "job.toml").write_text(printed.stdout)
    assert facts("info", "g.zarr", "--job-file") == found["job_file"]
    assert facts("run", "job.toml")["tiles_computed"] == 0
    facts("run", "job.toml", "--store", "again.zarr", "--scheduler", scheduler)
    again = facts("info", "again.zarr")
    assert again["identity_sha256"] == found["identity_sha256"]


def test_verify_and_repair(folder: Path, scheduler: str) -> None:
    assert facts("verify", "g.zarr")["ok"]
    lose(folder / "g.zarr", "1/2")
    broken = facts("verify", "g.zarr", code=1)
    assert [problem["tile"] for problem in broken["problems"]] == [[1, 2]]
    lines = call("verify", "g.zarr").stdout.splitlines()
    assert lines[0].startswith("(1, 2)\tmissing\t")
    assert facts("repair", "g.zarr", "--scheduler", scheduler)["ok"]


def test_export(folder: Path) -> None:
    found = facts("export", "g.zarr", "g.npy", "--labels")
    assert found["files"] == ["g.npy", "g.labels.npy"]
    assert found["bytes"] == Path("g.npy").stat().st_size
    assert np.array_equal(np.load("g.npy"), np.asarray(rd.open_gram("g.zarr")))
    assert "20 x 20 float64: g.csv" in call("export", "g.zarr", "g.csv").stdout
    again = call("export", "g.zarr", "g.npy")
    assert again.exit_code == ExitCode.USAGE
    assert again.stderr.startswith("rntk-dist export: g.npy exists already")


def test_a_job_from_submit_to_done(folder: Path, scheduler: str) -> None:
    command = ("submit", "x.npz", "--store", "job.zarr", *FLAGS, "--scheduler", scheduler)
    submitted = facts(*command)
    assert submitted["state"] in ("queued", "running", "done")
    done = facts("status", "job.zarr", "--wait")
    assert (done["id"], done["state"], done["tiles_done"]) == (submitted["id"], "done", 6)
    assert "state\tdone" in call("status", "job.zarr").stdout.splitlines()
    assert facts("cancel", "job.zarr")["state"] == "done"
    assert facts("jobs", "--scheduler", scheduler) == {"jobs": []}
    assert call("jobs", "--scheduler", scheduler).stdout == ""
    lose(folder / "job.zarr", "0/1")
    again = facts("resume", "job.zarr", "--detach", "--scheduler", scheduler)
    assert again["id"] != submitted["id"]
    assert facts("status", "job.zarr", "--wait")["tiles_done"] == 6


def test_a_scheduler_by_its_file(folder: Path, scheduler: str) -> None:
    (folder / "cluster.json").write_text(json.dumps({"address": scheduler}))
    assert facts("jobs", "--scheduler", "cluster.json") is not None
    (folder / "cluster.json").write_text("{")
    for file, why in (("cluster.json", "is no file that a sch"), ("none.json", "no such sch")):
        refused = call("jobs", "--scheduler", file)
        assert refused.exit_code == ExitCode.USAGE
        assert why in refused.stderr


def test_a_cluster_with_tls(folder: Path) -> None:
    pytest.importorskip("cryptography", reason="makes the certificates")
    security = Security.temporary()
    (folder / "ca.pem").write_text(security.tls_ca_file)
    (folder / "cert.pem").write_text(security.tls_client_cert)
    (folder / "key.pem").write_text(security.tls_client_key)
    files = ("--tls-ca-file", "ca.pem", "--tls-cert", "cert.pem", "--tls-key", "key.pem")
    with client_of(1, processes=False, protocol="tls", security=security) as client:
        address = client.scheduler_info()["address"]
        assert address.startswith("tls://")
        lose(folder / "g.zarr", "0/1")
        assert facts("resume", "g.zarr", "--scheduler", address, *files)["tiles_computed"] == 1
        refused = call("jobs", "--scheduler", address)
        lacking = call("jobs", "--scheduler", address, "--tls-ca-file", "ca.pem")
    assert lacking.exit_code == ExitCode.USAGE
    assert "give all three" in lacking.stderr
    assert refused.exit_code == ExitCode.USAGE
    assert len(refused.stderr.splitlines()) == 1


# -- errors ---------------------------------------------------------------------------------------


def test_another_matrix_has_an_exit_code_of_its_own(folder: Path) -> None:
    for command in ("plan", "run"):
        done = call(command, "x.npz", "--store", "g.zarr", *FLAGS, "--depth", "2")
        assert done.exit_code == 3
        assert done.stderr.splitlines() == [
            f"rntk-dist {command}: {folder / 'g.zarr'} holds another Gram matrix: choose another "
            "store; these differ:",
            "  kernel.depth: stored 1, given 2",
        ]


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("run none.npy --store a", "run: none.npy: no such file"),
        ("run none.toml", "run: [Errno 2] No such file or directory: 'none.toml'"),
        ("run x.npz", "run: no store is given: add --store STORE"),
        ("plan x.npz", "plan: no store is given: add --store STORE"),
        ("run x.npz --store x.npz", "run: "),
        ("run x.npz --store a --depth 0", "run: depth must be at least 1, found 0"),
        ("run x.npz --store a --tile 0", "run: tile must be an integer of at least 1, found 0"),
        ("run x.npz --store a --workers 2 --scheduler tcp://127.0.0.1:9", "run: --workers are of"),
        ("resume none.zarr", "resume: there is no Gram store at"),
        ("append none.zarr", "append: there is no Gram store at"),
        ("submit x.npz --store a", "submit: a scheduler is needed: add --scheduler ADDRESS"),
        ("jobs", "jobs: a scheduler is needed"),
        ("jobs --tls-key key.pem", "jobs: --tls-... are for a cluster"),
        ("jobs --scheduler tls://127.0.0.1:9 --tls-ca-file ca.pem", "jobs: ca.pem: no such file"),
        ("status none.zarr", "status: there is no Gram store at"),
        ("status g.zarr", "status: g.zarr has had no job: `rntk-dist info g.zarr` says"),
        ("cancel g.zarr", "cancel: g.zarr has had no job"),
        ("export none.zarr a.npy", "export: there is no Gram store at"),
        ("export g.zarr a.txt", "export: a.txt: suffix '.txt' is neither .npy nor .csv"),
        ("verify x.npz", "verify: "),
        ("info none.zarr", "info: there is no Gram store at"),
    ],
)
def test_a_wrong_question_is_refused_in_a_sentence(
    folder: Path, command: str, sentence: str
) -> None:
    done = call(*command.split())
    assert done.exit_code == ExitCode.USAGE, done.output
    assert done.stdout == ""
    assert done.stderr.startswith(f"rntk-dist {sentence}")
    assert len(done.stderr.splitlines()) == 1
    assert not (folder / "a").exists()


@pytest.mark.parametrize(
    "command",
    ["run", "run x.npz --detph 2", "run x.npz --kind k", "nothing", "verify g --recompute x"],
)
def test_wrong_usage_is_refused_by_the_parser(command: str) -> None:
    done = call(*command.split())
    assert done.exit_code == ExitCode.USAGE
    assert "Usage: " in plain(done.stderr)


def test_what_is_not_whole_is_a_failure(folder: Path) -> None:
    lose(folder / "g.zarr", "0/0")
    done = call("export", "g.zarr", "a.npy")
    assert done.exit_code == ExitCode.FAILED
    assert "rntk-dist resume" in done.stderr


@pytest.mark.parametrize("debug", [False, True])
def test_tiles_that_fail_are_a_failure(tmp_path: Path, scheduler: str, debug: bool) -> None:
    np.save(tmp_path / "x.npy", np.ones((3, 400)))
    command = ("run", tmp_path / "x.npy", "--store", tmp_path / "g", "--dtype", "float32")
    options = ("--sigma-w", "3", "--scheduler", scheduler, "--quiet")
    done = call(*(["--debug"] if debug else []), *command, *options)
    assert done.exit_code == ExitCode.FAILED
    sentence = done.stderr.splitlines()[-1]
    assert sentence.startswith("rntk-dist run: 1 of 1 tiles failed, (0, 0), the first with Overf")
    assert ("Traceback" in done.stderr) == debug


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (IdentityError("another"), 3),
        (TileError("failed"), 1),
        (rd.StoreBusyError("busy"), 1),
        (rd.SchedulerLostError("lost"), 1),
        (CorruptTileError("damaged"), 1),
        (MissingTileError("missing"), 1),
        (OverflowError("large"), 1),
        (TileMemoryError("a tile"), 2),
        (FileNotFoundError("none"), 2),
        (TypeError("depth"), 2),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(error: BaseException, code: int) -> None:
    assert exit_code(error) == code


def test_an_interruption_says_what_is_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    lose(folder / "g.zarr", "0/0", "0/1")
    # `rntk_dist.gram` is the function; the module goes by this name alone.
    monkeypatch.setattr(sys.modules["rntk_dist.gram"], "gram", interrupted)
    done = call("resume", "g.zarr")
    assert done.exit_code == 130
    where = folder / "g.zarr"
    assert done.stderr == (
        f"rntk-dist resume: interrupted: 4 of 6 tiles are kept in {where}, and the same call "
        "resumes\n"
    )
    done = call("run", "x.npz", "--store", "new.zarr")
    assert done.stderr == "rntk-dist run: interrupted: nothing was computed\n"


# -- words ----------------------------------------------------------------------------------------


def test_sizes_and_times_in_words() -> None:
    sizes = [shown_bytes(n) for n in (0, 1023, 1536, 3 * 2**20, 2**40)]
    assert sizes == ["0 bytes", "1023 bytes", "1.5 KiB", "3.0 MiB", "1.0 TiB"]
    times = [shown_seconds(s) for s in (0.123, 12.3, 75, 90_000)]
    assert times == ["0.12 s", "12 s", "0:01:15", "1 day, 1:00:00"]
    hours = [shown_hours(h) for h in (0.0412, 3.14, 6751.2)]
    assert hours == ["0.041", "3.1", "6,751"]


# -- real processes and terminals -----------------------------------------------------------------


def on_a_terminal(*arguments: str, cwd: Path, until: Callable[[str], bool] | None = None) -> str:
    """What a command shows on a terminal of 80 columns; Ctrl-C is typed once `until` says so."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(cwd)
        os.environ |= {"COLUMNS": "80", "LINES": "30", "TERM": "xterm-256color"}
        os.execv(COMMAND, [str(COMMAND), *arguments])
    shown, deadline, typed = "", time.monotonic() + 120, False
    while time.monotonic() < deadline:
        if select.select([terminal], [], [], 0.2)[0]:
            try:
                shown += os.read(terminal, 65536).decode(errors="replace")
            except OSError:  # how Linux says that nobody has the terminal any more
                break
        if until is not None and not typed and until(shown):
            os.write(terminal, b"\x03")
            typed = True
    else:
        os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(terminal)
    return plain(shown).replace("\r\n", "\n") + f"code {code}"


def test_a_table_on_a_terminal(folder: Path) -> None:
    shown = on_a_terminal("info", "g.zarr", cwd=folder)
    assert "│ symmetric       │ True" in shown
    assert 'readout = "per_step"' in shown
    assert {len(line) for line in shown.splitlines() if line.startswith("│")} == {80}
    assert shown.endswith("code 0")


@pytest.mark.slow
def test_ctrl_c_on_a_terminal_keeps_what_is_stored(tmp_path: Path) -> None:
    """A bar is drawn; Ctrl-C reaches the workers, too, and none of them has anything to say."""
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(3000, 100)))
    command = ("run", "x.npy", "--store", "g.zarr", "--tile", "64", "--readout", "mean")
    shown = on_a_terminal(
        *command,
        cwd=tmp_path,
        until=lambda text: re.search(r"[1-9]\d*/1128 tiles", text) is not None,
    )
    assert re.search(r"/1128 tiles .*%.* pair-steps/s, .* left", shown)
    assert "Traceback" not in shown
    kept = re.search(r"interrupted: (\d+) of 1128 tiles are kept in", shown.replace("\n", ""))
    assert kept is not None
    assert int(kept[1]) >= 1
    assert shown.endswith("code 130")
    assert len(GramStore.open(tmp_path / "g.zarr").stored_tiles()) >= int(kept[1])


@pytest.mark.slow
def test_sigterm_ends_a_run_as_ctrl_c_does(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(3000, 100)))
    command = ("run", "x.npy", "--store", "g.zarr", "--tile", "64", "--readout", "mean")
    with subprocess.Popen(
        [COMMAND, *command], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("g.zarr/gram/c/*/*")) and time.monotonic() < deadline:
            time.sleep(0.1)
        process.terminate()
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert re.search(r"interrupted: \d+ of 1128 tiles are kept in", said)


def test_the_command_is_installed(tmp_path: Path) -> None:
    assert run("--version", cwd=tmp_path).stdout == f"rntk_dist {rd.__version__}\n"


@pytest.mark.slow
def test_run_on_this_machine(folder: Path) -> None:
    done = run("run", "x.npz", "--store", "new.zarr", *FLAGS, "--workers", "1", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "6/6 tiles" in done.stderr
    assert "6 tiles computed in" in done.stdout


@pytest.mark.slow
def test_demo_classifies_and_draws_and_resumes(tmp_path: Path) -> None:
    pytest.importorskip("sktime", reason="the demo's data sets come inside sktime")
    first = run("demo", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    folder = tmp_path / "rntk-demo"
    for name in ("GunPoint", "JapaneseVowels"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert f"{name}  train" in first.stdout
    accuracies = [line for line in first.stdout.splitlines() if "RNTK-SVM" in line]
    assert len(accuracies) == 2
    assert all(float(line.split("│")[2]) > 0.93 for line in accuracies)
    chunks = {path: path.stat().st_mtime_ns for path in folder.rglob("gram/c/*/*")}
    assert len(chunks) == 12
    second = run("demo", cwd=tmp_path)
    assert [line for line in second.stdout.splitlines() if "RNTK-SVM" in line] == accuracies
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("gram/c/*/*")} == chunks


def test_demo_says_in_one_line_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sktime", reason="the demo's data sets come inside sktime")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rntk-demo").write_text("a file is in the way")
    done = call("demo")
    assert done.exit_code == ExitCode.USAGE
    assert done.stderr == "rntk-dist demo: [Errno 17] File exists: 'rntk-demo'\n"


# -- docs/command-line.md -------------------------------------------------------------------------

PAGE = (Path(__file__).parent.parent / "docs" / "command-line.md").read_text()
BLOCKS = re.findall(r"^```bash\n(.*?)^```", PAGE, re.M | re.S)


def test_the_page_tells_of_every_command_and_exit_code() -> None:
    rows = re.findall(r"^\| (`.*?) \|", PAGE, re.M)
    assert list(dict.fromkeys(re.findall(r"`(\w+)", " ".join(rows)))) == COMMANDS
    codes = re.findall(r"^\| (\d+) \|", PAGE, re.M)
    assert list(map(int, codes)) == list(ExitCode)


def test_the_commands_of_the_page_exist() -> None:
    """The parser refuses an unknown option before it looks at --help."""
    for line in "".join(BLOCKS).splitlines():
        name, *arguments = line.partition(" > ")[0].split()
        assert name == "rntk-dist"
        help_page(*arguments)


def test_the_job_file_of_the_page_is_one(tmp_path: Path) -> None:
    (text,) = re.findall(r"^```toml\n(.*?)^```", PAGE, re.M | re.S)
    (tmp_path / "job.toml").write_text(text)
    assert JobFile.read(tmp_path / "job.toml").kernel == RNTK(depth=2, sigma_w=1.3)


@pytest.mark.slow
def test_the_first_matrix_and_the_cluster_of_the_page(tmp_path: Path, scheduler: str) -> None:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "train.npy", rng.normal(size=(30, 12)))
    np.save(tmp_path / "more.npy", rng.normal(size=(4, 9)))
    environment = os.environ | {"PATH": f"{COMMAND.parent}:{os.environ['PATH']}"}
    for block in BLOCKS:
        script = "set -ex\n" + block.replace("tcp://host:8786", scheduler)
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert rd.open_gram(tmp_path / "gram.zarr").shape == (34, 34)
    assert rd.open_gram(tmp_path / "deeper.zarr").kernel.depth == 2
    assert np.load(tmp_path / "gram.npy").shape == (30, 30)
    assert rd.open_gram(tmp_path / "big.zarr").kernel.depth == 1
