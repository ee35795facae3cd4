"""Opens the models of MODEL_BUNDLE, and of SHADOW_BUNDLE if there is one."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from enrichment import Bundle, BundleError, BundleInvalid
from handler.aws.bundle_source import install_bundle
from handler.settings import Settings

if TYPE_CHECKING:
    from enrichment import Enricher

__all__ = ["OpenedModels", "begin_opening", "open_models"]


@dataclass(frozen=True, slots=True)
class OpenedModels:
    """The models, why their shadow is missing if it could not be opened, and the seconds that it took."""

    models: Enricher
    shadow_error: BundleError | None
    seconds: float


def begin_opening(settings: Settings) -> Future[OpenedModels] | None:
    """Opens the models in a thread; None if that needs an AWS client, which takes as long to import as this saves.

    Reading the graphs needs neither Python nor the network, so the caller can import what talks to AWS meanwhile.
    """
    if any(uri is not None and not uri.startswith("file:") for uri in (settings.model_bundle, settings.shadow_bundle)):
        return None
    thread = ThreadPoolExecutor(1, thread_name_prefix="models")
    opening = thread.submit(open_models, settings, _no_client)
    thread.shutdown(wait=False)
    return opening


def open_models(settings: Settings, s3: Callable[[], Any]) -> OpenedModels:
    """Opens the models; `s3()` returns a client, and is called only for a bundle in S3. Raises BundleError."""
    begin, threads = time.perf_counter(), settings.intra_op_threads
    folder = install_bundle(settings.model_bundle, settings.bundle_cache_dir, s3, settings.model_bundle_digest)
    # Imported now: copying does not need them, and the encoder, which takes longest to open, needs few of them.
    from enrichment.encoder import Encoder

    encoder = Encoder.open(Bundle.open(folder), threads=threads)
    from enrichment.enricher import Enricher

    enricher, failure = Enricher.open(folder, encoder=encoder, threads=threads), None
    if settings.shadow_bundle is not None:
        try:
            shadow = install_bundle(settings.shadow_bundle, settings.bundle_cache_dir, s3, setting="SHADOW_BUNDLE")
            enricher.open_shadow(shadow, threads=threads)
        except BundleError as error:
            failure = error
        except Exception as error:  # an isolation boundary: a bundle on trial must not stop the tickets
            failure = BundleInvalid(f"opening raised {type(error).__name__}")
            failure.__cause__ = error
    # A failure is not silent either: it is logged, and each ticket counts as one that the shadow failed to label.
    return OpenedModels(enricher, failure, time.perf_counter() - begin)


def _no_client() -> Any:
    raise AssertionError("a bundle in a directory needs no client")
