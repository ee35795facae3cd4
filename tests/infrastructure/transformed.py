"""The SAM transform, made here instead of by CloudFormation."""

from __future__ import annotations

from typing import Any

import pytest
from samtranslator.parser.parser import Parser
from samtranslator.translator.translator import Translator
from samtranslator.yaml_helper import yaml_parse


def transform(text: str, **parameters: Any) -> dict[str, Any]:
    """Return what CloudFormation creates: the template after the SAM transform, made without AWS."""
    template = yaml_parse(text)
    given = {name: str(each.get("Default", "image")) for name, each in template["Parameters"].items()} | parameters
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
        return dict(Translator({}, Parser()).translate(template, given))
