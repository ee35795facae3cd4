"""What Lambda imports: everything slow happens here, during init, so that a snapshot holds the loaded models."""

from handler.app import build
from handler.settings import Settings

lambda_handler = build(Settings())
