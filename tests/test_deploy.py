"""The files of deploy/ are valid by their own schemas and linters, and say what they ought to."""

import re
import shutil
import ssl
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from deployments import (
    COMPOSE,
    DEPLOY,
    ROOT,
    commands_in,
    compose,
    directives,
    kubernetes_job,
    read_compose,
    read_kubernetes,
)
from operator_schemas import errors_in, errors_in_claim

KUBERNETES = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
SCRIPTS = sorted([*DEPLOY.glob("slurm/*.s*"), *DEPLOY.glob("tls/*")])
DOCKERFILES = sorted(DEPLOY.glob("Dockerfile*"))
YAML_STYLE = """
extends: default
rules:
  line-length: {max: 140}
  document-start: disable
  braces: {max-spaces-inside: 0}
  truthy: {check-keys: false}
"""
SBATCH = {  # of its options those that may stand in a script of ours
    *("account", "array", "cpus-per-task", "gpus", "job-name", "mem", "mem-per-cpu", "ntasks"),
    *("open-mode", "output", "partition", "requeue", "signal", "time"),
}


def run(*command: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    """Run a program, one beside this interpreter if it is there."""
    program = shutil.which(str(command[0]), path=Path(sys.executable).parent) or command[0]
    return subprocess.run(
        [program, *command[1:]], capture_output=True, text=True, check=False, timeout=60
    )


def assert_content(*command: str | Path) -> None:
    """The checker finds nothing."""
    done = run(*command)
    assert done.returncode == 0, done.stdout + done.stderr


# -- schemas and linters ---------------------------------------------------------------------------


def test_every_file_is_checked_here() -> None:
    files = {path for path in DEPLOY.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    others = {DEPLOY / "README.md", DEPLOY / "slurm/jobqueue.py"}  # ruff, and the tests below
    assert files == {*KUBERNETES, *SCRIPTS, *DOCKERFILES, COMPOSE[1], *others}


def test_compose_files_follow_their_schema() -> None:
    assert_content("check-jsonschema", "--builtin-schema", "vendor.compose-spec", *COMPOSE)


def test_yaml_is_tidy() -> None:
    assert_content("yamllint", "--strict", "--config-data", YAML_STYLE, *COMPOSE, *KUBERNETES)


def test_scripts_are_sound() -> None:
    assert_content("shellcheck", "--external-sources", "--source-path=SCRIPTDIR", *SCRIPTS)


def test_dockerfiles_are_sound() -> None:
    assert_content("hadolint", *DOCKERFILES)


@pytest.mark.parametrize("path", KUBERNETES, ids=lambda path: path.name)
def test_kubernetes_objects_follow_their_schema(path: Path) -> None:
    found = read_kubernetes(path.name)
    is_claim = found["kind"] == "PersistentVolumeClaim"
    assert (errors_in_claim(found) if is_claim else errors_in(found)) == []


def test_a_wrong_kubernetes_object_is_found() -> None:
    """The schemas are strict: a name that is misspelt, a number in place of a text."""
    cluster = read_kubernetes("cluster.yaml")
    worker = cluster["spec"]["worker"]
    worker["replica"] = worker.pop("replicas")
    worker["spec"]["containers"][0]["args"][-1] = 5
    found = errors_in(cluster)
    assert [error for error in found if "'replica' was unexpected" in error]
    assert [error for error in found if "5 is not of type 'string'" in error]


@pytest.mark.parametrize("name", ["scheduler.sbatch", "workers.sbatch"])
def test_batch_scripts_have_options_that_sbatch_knows(name: str) -> None:
    script = DEPLOY / "slurm" / name
    found = directives(script)
    assert found.keys() <= SBATCH
    assert len(found) == script.read_text().count("\n#SBATCH --")  # none after the first command
    assert found["signal"].startswith("B:TERM@")


# -- what they say ---------------------------------------------------------------------------------


def test_ports_are_published_on_loopback_alone() -> None:
    services = read_compose(COMPOSE[0], {})["services"]
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_compose_with_tls_wants_certificates() -> None:
    with pytest.raises(KeyError, match="make-certificates"):
        compose({}, *COMPOSE)


def test_compose_starts_workers_again() -> None:
    services = compose({"RNTK_TLS": "/tls"}, *COMPOSE)
    assert services.keys() == {"scheduler", "worker", "notebook"}
    assert {node.restarts for node in services.values()} == {"always"}
    assert {node.cwd for node in services.values()} == {"/srv/rntk"}


def test_nobody_is_root() -> None:
    for service in read_compose(COMPOSE[0], {})["services"].values():
        assert service["user"] == "1000:1000"
        assert service["cap_drop"] == ["ALL"]
    for dockerfile in DOCKERFILES:
        users = re.findall(r"^USER (\S+)", dockerfile.read_text(), re.M)
        assert users[-1] == "1000:1000"
    text = "".join(path.read_text() for path in KUBERNETES)
    for spec in pods():
        assert spec["securityContext"]["runAsNonRoot"] is True
        (container,) = spec["containers"]
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert "hostPath" not in text


def pods() -> list[dict]:
    job, cluster = read_kubernetes("job.yaml")["spec"], read_kubernetes("cluster.yaml")["spec"]
    both = [cluster[part]["spec"] for part in ("scheduler", "worker")]
    gpu = read_kubernetes("gpu-workers.yaml")["spec"]["worker"]["spec"]
    return [*both, *(job["cluster"]["spec"][part]["spec"] for part in ("scheduler", "worker")), gpu]


def test_job_has_the_cluster_of_cluster_yaml() -> None:
    cluster = yaml.safe_dump(read_kubernetes("cluster.yaml")["spec"])
    job = yaml.safe_dump(read_kubernetes("job.yaml")["spec"]["cluster"]["spec"])
    assert job.replace("rntk-job", "rntk") == cluster


def test_gpu_workers_say_that_they_have_a_gpu() -> None:
    group = read_kubernetes("gpu-workers.yaml")["spec"]
    (container,) = group["worker"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "--resources GPU=1" in " ".join(container["args"])
    assert group["cluster"] == read_kubernetes("cluster.yaml")["metadata"]["name"]


def test_all_connections_of_pods_have_tls() -> None:
    for node in kubernetes_job().values():
        flags = {"--tls-ca-file", "--tls-cert", "--tls-key"}
        assert flags <= set(node.command)
        assert "tls" in node.command or any(word.startswith("tls://") for word in node.command)


def test_images_have_what_they_copy_and_install() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    included = re.findall(r"^!(\S+)", (ROOT / ".dockerignore").read_text(), re.M)
    for dockerfile in DOCKERFILES:
        text = dockerfile.read_text()
        copied = [word for line in re.findall(r"^COPY (.*) ", text, re.M) for word in line.split()]
        assert sorted(copied) == sorted(included)
        assert all((ROOT / name).exists() for name in copied)
        extras = {name for found in re.findall(r"\$1\[(.*?)\]", text) for name in found.split(",")}
        assert extras <= project["optional-dependencies"].keys()
        minor = re.findall(r"^ARG PYTHON=(\S+)", text, re.M)
        assert f"Programming Language :: Python :: {minor[0]}" in project["classifiers"]


# -- the document ----------------------------------------------------------------------------------


def test_readme_fits_a_screen_and_its_links_lead_somewhere() -> None:
    readme = DEPLOY / "README.md"
    text = readme.read_text()
    assert len(text.splitlines()) <= 60
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (readme.parent / link).exists(), link


def test_readme_names_files_that_are_there() -> None:
    for program in ("kubectl", "docker"):
        for words in commands_in(DEPLOY / "README.md", program):
            for name in (word for word in words if word.endswith((".yaml", ".yml"))):
                assert (ROOT / name).exists(), name


# -- certificates ----------------------------------------------------------------------------------

MAKE = DEPLOY / "tls" / "make-certificates"


def test_certificates_are_for_each_name_and_private(tmp_path: Path) -> None:
    folder = tmp_path / "tls"
    assert_content(MAKE, folder)
    assert_content(MAKE, folder, "ada")
    names = ["ada", "client", "scheduler", "worker"]
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == names
    for name in names:
        context = ssl.create_default_context(cafile=folder / name / "ca.crt")
        context.load_cert_chain(folder / name / "tls.crt", folder / name / "tls.key")
        checked = run("openssl", "verify", "-CAfile", folder / "ca.crt", folder / name / "tls.crt")
        assert checked.returncode == 0, checked.stderr
        assert (folder / name / "tls.key").stat().st_mode & 0o077 == 0
    assert (folder / "ca.key").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "usage: make-certificates FOLDER"),
        (["--help"], "usage: make-certificates FOLDER"),
        (["{folder}", "../client"], "../client cannot be a name"),
        (["{folder}", "client"], "client is there already"),
    ],
)
def test_certificates_are_refused(tmp_path: Path, arguments: Sequence[str], why: str) -> None:
    (tmp_path / "client").mkdir()
    done = run(MAKE, *(word.format(folder=tmp_path) for word in arguments))
    assert done.returncode == 2
    assert why in done.stderr
    assert not (tmp_path / "ca.key").exists()
