"""The module that Lambda imports. The models are loaded here, during init, so that a snapshot contains them.

They are opened in a thread while this one imports the AWS libraries: both take about a third of the init.
"""

from handler.models import begin_opening
from handler.settings import Settings

_settings = Settings.read()
_opening = begin_opening(_settings)

from handler.app import build  # noqa: E402 - imports the AWS libraries, after the thread has started

lambda_handler = build(_settings, opening=_opening)
