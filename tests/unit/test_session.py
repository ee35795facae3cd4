"""ONNX Runtime, as the library starts it."""

import itertools
from pathlib import Path
from threading import Barrier, get_ident

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enrichment.session import ParallelSession


@pytest.fixture(scope="module", params=[1, 2, 5])
def shared(request: pytest.FixtureRequest, bundle: Path) -> ParallelSession:
    """The encoder's session, with one thread and with several."""
    return ParallelSession(bundle / "encoder.onnx", threads=request.param)


@given(lengths=st.lists(st.integers(1, 300), max_size=40))
def test_each_text_runs_once_and_in_order(shared: ParallelSession, lengths: list[int]) -> None:
    found = shared.each(lengths, lambda part, _: part)
    assert [i for part in found for i in range(part.start, part.stop)] == list(range(len(lengths)))
    for part in found:
        own = lengths[part]
        assert len(own) == 1 or len(own) * max(own) <= 128
    for part, following in itertools.pairwise(found):
        both = lengths[part.start : following.start + 1]
        assert len(both) * max(both) > 128, "short texts share a run"


def test_parts_run_concurrently(bundle: Path) -> None:
    session = ParallelSession(bundle / "encoder.onnx", threads=2)
    meeting = Barrier(2, timeout=20)
    session.each([100] * 4, lambda _part, _: meeting.wait())  # would break if one waited for the other


def test_single_thread_runs_in_the_caller(bundle: Path) -> None:
    session = ParallelSession(bundle / "encoder.onnx", threads=1)
    assert set(session.each([100] * 4, lambda _part, _: get_ident())) == {get_ident()}


def test_error_in_a_part_is_raised(shared: ParallelSession) -> None:
    def fail(part: slice, _: object) -> None:
        if part.start == 2:
            raise ValueError("the third")

    with pytest.raises(ValueError, match="the third"):
        shared.each([100] * 4, fail)
    assert len(shared.each([100] * 4, lambda part, _: part)) == 4, "and the next call works"


@pytest.mark.parametrize(("longest", "given_back"), [(256, False), (257, True)])
def test_only_long_texts_release_session_memory(shared: ParallelSession, longest: int, given_back: bool) -> None:
    # Short texts that run beside a long one as well: who ends last gives back.
    assert shared.each([longest, 200, 9], lambda _part, options: options is not None) == [given_back] * 3
