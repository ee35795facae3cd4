"""The module that Lambda imports. The models are loaded here, during init, so that a snapshot contains them."""

from handler.app import build
from handler.settings import Settings

lambda_handler = build(Settings())
