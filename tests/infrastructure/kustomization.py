"""The result of `kubectl kustomize` for a folder, for the features that deploy/kubernetes uses; others are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]

# The lists of a pod that strategic merge patches merge by a key. Those of a custom resource, as the triggers of a
# ScaledObject, are replaced.
_MERGE_KEYS = {"containers": "name", "env": "name", "volumes": "name", "volumeMounts": "mountPath"}


def build(folder: Path) -> list[Object]:
    """Return the objects of the kustomization in that folder, patched."""
    text = yaml.safe_load((folder / "kustomization.yaml").read_text(encoding="utf-8"))
    fields = {"apiVersion", "kind", "resources", "patches", "configMapGenerator", "images"}
    assert text.keys() <= fields, f"{folder}: unsupported field"
    objects: list[Object] = []
    for name in text["resources"]:
        path = folder / name
        objects += build(path) if path.is_dir() else yaml.safe_load_all(path.read_text(encoding="utf-8"))
    objects += [_config_map(folder, entry) for entry in text.get("configMapGenerator", ())]
    identities = [_identity(found) for found in objects]
    assert len(set(identities)) == len(identities), f"{folder}: duplicate object: {identities}"
    for entry in text.get("patches", ()):
        assert len(entry) == 1, f"{folder}: a patch must be either inline or a file, without a target"
        inline = entry["patch"] if "patch" in entry else (folder / entry["path"]).read_text(encoding="utf-8")
        _apply(objects, yaml.safe_load(inline))
    for entry in text.get("images", ()):
        assert entry.keys() == {"name", "digest"}, f"{folder}: an image must have a digest and nothing else"
        _pin(objects, entry["name"], entry["digest"])
    return objects


def _pin(objects: list[Object], name: str, digest: str) -> None:
    containers = [
        found
        for each in objects
        if each["kind"] == "Deployment"
        for found in each["spec"]["template"]["spec"]["containers"]
        if found["image"].partition(":")[0] == name
    ]
    assert containers, f"no container has the image {name}"
    for found in containers:
        found["image"] = f"{name}@{digest}"


def _identity(found: Object) -> tuple[str, str, str]:
    return found["apiVersion"], found["kind"], found["metadata"]["name"]


def _config_map(folder: Path, entry: Object) -> Object:
    assert entry.keys() == {"name", "files", "options"}, f"{folder}: unsupported field of a generator"
    assert entry["options"].keys() == {"disableNameSuffixHash", "labels"}, f"{folder}: unsupported option"
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": entry["name"], "labels": entry["options"]["labels"]},
        "data": {name: (folder / name).read_text(encoding="utf-8") for name in entry["files"]},
    }


def _apply(objects: list[Object], patch: Object) -> None:
    (index,) = [i for i, found in enumerate(objects) if _identity(found) == _identity(patch)]
    if patch.get("$patch") == "delete":
        del objects[index]
    else:
        objects[index] = _merge(objects[index], patch)


def _merge(old: Object, patch: Object) -> Object:
    assert "$patch" not in patch, "only whole objects can be deleted"
    merged = dict(old)
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        elif isinstance(value, dict):
            merged[name] = _merge(merged.get(name, {}), value)
        elif isinstance(value, list) and any(isinstance(item, dict) for item in value) and name != "triggers":
            merged[name] = _merge_lists(merged.get(name, []), value, _MERGE_KEYS[name])
        else:
            merged[name] = value
    return merged


def _merge_lists(old: list[Object], patch: list[Object], key: str) -> list[Object]:
    merged = {item[key]: item for item in old}
    for item in patch:
        merged[item[key]] = _merge(merged.get(item[key], {}), item)
    return list(merged.values())
