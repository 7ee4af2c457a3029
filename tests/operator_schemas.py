"""The Dask operator's schemas, strict: what kubectl would refuse of its objects is found here.

tests/schemas/dask-operator.json is made from the custom resource definitions that dask-kubernetes
ships; to take those of another release:

    pip download --no-deps dask-kubernetes && unzip dask_kubernetes-*.whl '*/crds/*' -d unpacked
    python tests/operator_schemas.py unpacked/dask_kubernetes/operator/deployment/helm/*/crds
"""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema
import yaml

_FILE = Path(__file__).parent / "schemas" / "dask-operator.json"
_SHARED = 1500
"""Parts longer than this that occur again stand once, under $defs."""


def errors_in(document: dict[str, Any]) -> list[str]:
    """What is wrong with an object of the operator, each with where it is."""
    schemas = json.loads(_FILE.read_text())
    schema = {"$defs": schemas["$defs"], **schemas["kinds"][document["kind"]]}
    validator = jsonschema.Draft202012Validator(schema)
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]


def errors_in_claim(document: dict[str, Any]) -> list[str]:
    """What is wrong with a PersistentVolumeClaim, of which a pod's ephemeral volume has a copy."""
    spec = {"ephemeral": {"volumeClaimTemplate": {"spec": document["spec"]}}, "name": "claim"}
    pod = {"containers": [{"name": "container"}], "volumes": [spec]}
    group = {"cluster": "any", "worker": {"replicas": 1, "spec": pod}}
    return errors_in({"kind": "DaskWorkerGroup", "spec": group})


# -- making the file -------------------------------------------------------------------------------


def main(folder: Path) -> None:
    """Write the file anew, from a folder of custom resource definitions."""
    kinds = {}
    for path in sorted(folder.glob("dask*.yaml")):
        definition = yaml.safe_load(path.read_text())["spec"]
        kinds[definition["names"]["kind"]] = _closed(
            definition["versions"][0]["schema"]["openAPIV3Schema"]
        )
    counted: Counter[str] = Counter()
    _count(kinds, counted)
    defs: dict[str, Any] = {}
    shared = _shared(kinds, counted, defs, {})
    comment = "Made by tests/operator_schemas.py from dask-kubernetes; its licence is beside this."
    made = {"$comment": comment, "kinds": shared, "$defs": defs}
    _FILE.write_text(json.dumps(made, indent=None, separators=(",", ":")) + "\n")


def _closed(schema: Any, top: bool = True) -> Any:
    """The schema with no other properties than those it names; objects have some of their own."""
    if isinstance(schema, list):
        return [_closed(item, False) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: _closed(part, False) for name, part in schema.items()}
    if top:
        metadata = {"type": "object", "required": ["name"]}
        own = {"apiVersion": {"const": "kubernetes.dask.org/v1"}, "kind": {}, "metadata": metadata}
        closed["properties"] = {**own, **closed["properties"]}
    if isinstance(closed.get("properties"), dict) and "additionalProperties" not in closed:
        closed["additionalProperties"] = False
    return closed


def _count(part: Any, counted: Counter[str]) -> None:
    if isinstance(part, dict):
        counted[_text(part)] += 1
        for each in part.values():
            _count(each, counted)


def _shared(part: Any, counted: Counter[str], defs: dict[str, Any], names: dict[str, str]) -> Any:
    if not isinstance(part, dict):
        return part
    text = _text(part)
    if text in names:
        return {"$ref": f"#/$defs/{names[text]}"}
    inner = {name: _shared(each, counted, defs, names) for name, each in part.items()}
    if len(text) < _SHARED or counted[text] < 2 or "properties" not in part:
        return inner
    names[text] = f"part{len(names)}"
    defs[names[text]] = inner
    return {"$ref": f"#/$defs/{names[text]}"}


def _text(part: Any) -> str:
    return json.dumps(part, sort_keys=True, separators=(",", ":"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
