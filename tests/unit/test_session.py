"""The library's ONNX Runtime session, which splits a batch over threads."""

import itertools
from pathlib import Path
from threading import Barrier, get_ident

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enrichment.session import ParallelSession


@pytest.fixture(scope="module", params=[1, 2, 5])
def shared(request: pytest.FixtureRequest, bundle: Path) -> ParallelSession:
    """The encoder's session, with one thread or several."""
    return ParallelSession(bundle / "encoder.onnx", threads=request.param)


# Some lengths often, so that texts share runs.
@given(lengths=st.lists(st.one_of(st.sampled_from([9, 20, 64, 65, 300]), st.integers(1, 300)), max_size=40))
def test_each_text_runs_once_and_in_order(shared: ParallelSession, lengths: list[int]) -> None:
    found = shared.each(lengths, lambda part, _: part)
    assert [i for part in found for i in range(part.start, part.stop)] == list(range(len(lengths)))
    for part in found:
        own = lengths[part]
        assert len(own) == 1 or (len(set(own)) == 1 and sum(own) <= 128)
    for part, following in itertools.pairwise(found):
        both = lengths[part.start : following.start + 1]
        assert len(set(both)) > 1 or sum(both) > 128, "short texts of the same length share a run"


def test_parts_run_concurrently(bundle: Path) -> None:
    session = ParallelSession(bundle / "encoder.onnx", threads=2)
    barrier = Barrier(2, timeout=20)
    session.each([100] * 4, lambda _part, _: barrier.wait())  # times out if the parts run one after the other


def test_single_thread_runs_in_the_caller(bundle: Path) -> None:
    session = ParallelSession(bundle / "encoder.onnx", threads=1)
    assert set(session.each([100] * 4, lambda _part, _: get_ident())) == {get_ident()}


def test_error_in_a_part_is_raised(shared: ParallelSession) -> None:
    def fail(part: slice, _: object) -> None:
        if part.start == 2:
            raise ValueError("the third")

    with pytest.raises(ValueError, match="the third"):
        shared.each([100] * 4, fail)
    assert len(shared.each([100] * 4, lambda part, _: part)) == 4, "the next call works"


@pytest.mark.parametrize(("longest", "is_released"), [(256, False), (257, True)])
def test_only_long_texts_release_session_memory(shared: ParallelSession, longest: int, is_released: bool) -> None:
    # Also short texts that run at the same time as a long one: whichever ends last releases the memory.
    assert shared.each([longest, 200, 9], lambda _part, options: options is not None) == [is_released] * 3
