"""The objects of deploy/kubernetes by folder, and accessors for their parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kubernetes_validate

from tests.infrastructure.kustomization import Object, build

REPO = Path(__file__).resolve().parents[2]
KUBERNETES = REPO / "deploy" / "kubernetes"
FOLDERS = [KUBERNETES / "base", *sorted((KUBERNETES / "overlays").iterdir())]
BUILT = {folder.name: build(folder) for folder in FOLDERS}
VERSIONS = ["1.32", kubernetes_validate.latest_version()]


def validate(found: Object, version: str = VERSIONS[-1]) -> None:
    """Raise kubernetes_validate.ValidationError if this version of Kubernetes would not accept the object."""
    kubernetes_validate.validate(found, version, strict=True)


def one(kind: str, name: str = "base") -> Object:
    (found,) = [found for found in BUILT[name] if found["kind"] == kind]
    return found


def pod(name: str = "base") -> Any:
    return one("Deployment", name)["spec"]["template"]["spec"]


def container(name: str = "base") -> Any:
    (found,) = pod(name)["containers"]
    return found


def settings() -> dict[str, str]:
    return dict(one("ConfigMap")["data"])
