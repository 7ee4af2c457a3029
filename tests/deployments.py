"""What the files of deploy/ say is to run, read from them: commands, environment, folders."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
COMPOSE = (ROOT / "docker-compose.yml", DEPLOY / "compose.tls.yml")
TLS = "/run/secrets/rntk-tls"


@dataclass(frozen=True)
class Node:
    """One process of a cluster.

    `mounts` maps a folder that the process sees to what it stands for; `restarts` says when it is
    started again: "always", "on failure" or "never". `check` is the command that asks how it is.
    """

    command: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    mounts: Mapping[str, str] = field(default_factory=dict)
    cwd: str = "/"
    restarts: str = "never"
    check: tuple[str, ...] = ()

    def running(self, *command: str) -> Node:
        """The same node, with another command."""
        return replace(self, command=command)


# -- Compose ---------------------------------------------------------------------------------------


def compose(values: Mapping[str, str], *files: Path) -> dict[str, Node]:
    """The services of Compose files, later ones laid over earlier ones."""
    services: dict[str, dict[str, Any]] = {}
    for file in files:
        for name, service in read_compose(file, values)["services"].items():
            services[name] = _laid_over(services[name], service) if name in services else service
    return {name: _service(service) for name, service in services.items()}


def read_compose(file: Path, values: Mapping[str, str]) -> dict[str, Any]:
    """One Compose file with its variables filled in: ${NAME:-default}, ${NAME:?complaint}."""

    def value(match: re.Match[str]) -> str:
        name, default, complaint = match.groups()
        if not values.get(name) and complaint is not None:
            raise KeyError(f"{name}: {complaint}")
        return values.get(name) or default or ""

    pattern = r"\$\{(\w+)(?::-([^}]*)|:\?([^}]*))?\}"
    lines = file.read_text().splitlines()
    code = [line for line in lines if not line.lstrip().startswith("#")]
    found: dict[str, Any] = yaml.safe_load(re.sub(pattern, value, "\n".join(code)))
    return found


def _laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """As Compose does it: tables are merged, lists joined, and all else is replaced."""
    assert above.keys() <= {"volumes", "environment"}, "teach this function to merge the rest"
    volumes = [*below.get("volumes", []), *above.get("volumes", [])]
    environment = {**below.get("environment", {}), **above.get("environment", {})}
    return {**below, "volumes": volumes, "environment": environment}


def _service(service: Mapping[str, Any]) -> Node:
    mounts = [volume.split(":") for volume in service["volumes"]]
    environment = service.get("environment", {}).items()
    check = service["healthcheck"]["test"]
    assert check[0] == "CMD"
    return Node(
        command=tuple(service["command"]),
        env={name: value for name, value in environment if value is not None},
        mounts={where: source for source, where, *_ in mounts},
        cwd=workdir(service["build"]["dockerfile"], service["build"]["target"]),
        restarts={"unless-stopped": "always"}[service["restart"]],
        check=tuple(check[1:]),
    )


def workdir(dockerfile: str, target: str) -> str:
    """The folder in which a stage of a Dockerfile, or the one that it is built from, starts."""
    folder, stages = "/", {}
    for line in (ROOT / dockerfile).read_text().splitlines():
        if stage := re.fullmatch(r"FROM (\S+) AS (\S+)", line):
            folder = stages.get(stage[1], "/")
        elif line.startswith("WORKDIR "):
            folder = line.split()[1]
        if stage:
            current = stage[2]
        if line.startswith(("FROM ", "WORKDIR ")):
            stages[current] = folder
    return stages[target]


# -- Kubernetes ------------------------------------------------------------------------------------


def read_kubernetes(name: str) -> dict[str, Any]:
    """A file of deploy/kubernetes, which holds one object."""
    found: dict[str, Any] = yaml.safe_load((DEPLOY / "kubernetes" / name).read_text())
    return found


def kubernetes_job() -> dict[str, Node]:
    """The pods of job.yaml: scheduler, worker and runner."""
    spec = read_kubernetes("job.yaml")["spec"]
    cluster = spec["cluster"]["spec"]
    pods = {
        "scheduler": cluster["scheduler"]["spec"],
        "worker": cluster["worker"]["spec"],
        "runner": spec["job"]["spec"],
    }
    return {name: pod(found) for name, found in pods.items()}


def pod(spec: Mapping[str, Any]) -> Node:
    """The one container of a pod; what the operator puts into $(DASK_WORKER_NAME) is "%w" here."""
    (container,) = spec["containers"]
    kinds = {volume.pop("name"): "".join(volume) for volume in map(dict, spec["volumes"])}
    stands_for = {"persistentVolumeClaim": "data", "secret": "tls"}
    policies = {"Always": "always", "OnFailure": "on failure", "Never": "never"}
    return Node(
        command=tuple(part.replace("$(DASK_WORKER_NAME)", "%w") for part in container["args"]),
        mounts={at["mountPath"]: stands_for[kinds[at["name"]]] for at in container["volumeMounts"]},
        cwd=container.get("workingDir", workdir("deploy/Dockerfile", "node")),
        restarts=policies[spec.get("restartPolicy", "Always")],
    )


# -- SLURM -----------------------------------------------------------------------------------------


def slurm(script: str, **env: str) -> Node:
    """A batch script, with the environment of a job in the folder of the scripts."""
    place = DEPLOY / "slurm" / script
    given = directives(place)
    memory = given.get("mem-per-cpu", "")
    slurms = {
        "SLURM_SUBMIT_DIR": str(place.parent),
        "SLURM_CPUS_PER_TASK": given["cpus-per-task"],
        "SLURM_MEM_PER_CPU": f"{1024 * int(memory[:-1])}" if memory.endswith("G") else "",
    }
    return Node(("bash", str(place)), {**slurms, **env})


def directives(script: Path) -> dict[str, str]:
    """The options of sbatch that stand at the head of a script, before its first command."""
    found: dict[str, str] = {}
    for line in script.read_text().splitlines():
        if line.startswith("#SBATCH "):
            name, _, value = line.removeprefix("#SBATCH --").partition("=")
            found[name] = value
        elif line and not line.startswith("#"):
            break
    return found


# -- documents -------------------------------------------------------------------------------------


def commands_in(document: Path, program: str) -> list[list[str]]:
    """Each command of a document's bash blocks, or a file's comments, that has this word in it."""
    text = document.read_text()
    if document.suffix == ".md":
        text = "\n".join(re.findall(r"^```bash\n(.*?)^```", text, re.M | re.S))
    else:
        text = "\n".join(re.findall(r"^# ?(.*)$", text, re.M))
    lines = text.replace("\\\n", " ").splitlines()
    split = [shlex.split(line, comments=True) for line in lines if program in line.split()]
    return [words for words in split if program in words]


def inside(words: Sequence[str], program: str) -> list[str]:
    """Of `docker compose exec notebook rntk-dist ...` what runs in there: `rntk-dist ...`."""
    return list(words[list(words).index(program) :])
