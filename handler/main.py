"""The module that Lambda imports. The models are loaded here, during init, so that a snapshot contains them.

A thread copies and opens the bundle, which mostly runs without the interpreter's lock; meanwhile this one imports what
the thread needs next, then the AWS libraries, and creates the clients.
"""

import gc
import os

# Most objects that are created here live as long as the process, so collections would find next to nothing.
gc.disable()
# The products in NumPy are small: threads for them only cost time to start. ONNX Runtime has its own.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# pydantic reads the metadata of every installed package to find its plugins, and there are none.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")

# Before pydantic: Powertools then does not import its models of events, which use pydantic and are not needed here.
import aws_lambda_powertools.utilities.batch  # noqa: E402, F401

from handler.models import begin_opening  # noqa: E402
from handler.settings import Settings  # noqa: E402

_settings = Settings.read()
_opening = begin_opening(_settings)

# First what the thread waits for.
import enrichment.encoder  # noqa: E402
import enrichment.enricher  # noqa: E402, F401
from handler.app import build  # noqa: E402

lambda_handler = build(_settings, opening=_opening)

gc.freeze()
gc.enable()
