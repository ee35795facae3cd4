"""ONNX Runtime, as the library starts it."""

import itertools
import json
import subprocess
import sys
from pathlib import Path
from threading import Barrier, get_ident

import onnx
import onnx.parser
import pytest
from hypothesis import given
from hypothesis import strategies as st

from enrichment.session import ParallelSession

ROOT = Path(__file__).parents[2]
ENRICH = """
import sys
from enrichment import Enricher, RawTicket
ticket = RawTicket(ticket_id="T", customer_id="C", created_at=1, subject="Login", body="My password is refused.")
[result] = Enricher.open(sys.argv[1]).enrich([ticket])
assert result.intent == "login_issue"
"""
BARE = """
import onnxruntime as ort, sys
ort.InferenceSession(sys.argv[1] + "/encoder.onnx", providers=["CPUExecutionProvider"])
"""


def _left_behind(program: str, bundle: Path, home: Path) -> list[str]:
    # Nothing of this environment: on CI machines ONNX Runtime is quiet by itself.
    environment = {"HOME": str(home), "TMPDIR": str(home), "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", program, str(bundle)]
    subprocess.run(command, cwd=home, env=environment, capture_output=True, check=True)
    return sorted(path.name for path in home.rglob("*"))


def test_the_models_leave_no_trace_and_report_to_nobody(bundle: Path, tmp_path: Path) -> None:
    assert _left_behind(ENRICH, bundle, tmp_path) == []


def test_a_bare_session_does_leave_traces(bundle: Path, tmp_path: Path) -> None:
    assert "onnxruntime.db" in _left_behind(BARE, bundle, tmp_path)


# -- texts shared out among threads ------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[1, 2, 5])
def shared(request: pytest.FixtureRequest, bundle: Path) -> ParallelSession:
    """The encoder's session, with one thread and with several."""
    return ParallelSession(bundle / "encoder.onnx", threads=request.param)


@given(lengths=st.lists(st.integers(1, 300), max_size=40))
def test_every_text_is_read_once_and_in_order(shared: ParallelSession, lengths: list[int]) -> None:
    found = shared.each(lengths, lambda part, _: part)
    assert [i for part in found for i in range(part.start, part.stop)] == list(range(len(lengths)))
    for part in found:
        own = lengths[part]
        assert len(own) == 1 or len(own) * max(own) <= 128
    for part, following in itertools.pairwise(found):
        both = lengths[part.start : following.start + 1]
        assert len(both) * max(both) > 128, "short texts share a run"


def test_texts_are_read_side_by_side(bundle: Path) -> None:
    session = ParallelSession(bundle / "encoder.onnx", threads=2)
    meeting = Barrier(2, timeout=20)
    session.each([100] * 4, lambda _part, _: meeting.wait())  # would break if one waited for the other


def test_one_thread_means_the_callers(bundle: Path) -> None:
    session = ParallelSession(bundle / "encoder.onnx", threads=1)
    assert set(session.each([100] * 4, lambda _part, _: get_ident())) == {get_ident()}


def test_what_fails_is_raised(shared: ParallelSession) -> None:
    def fail(part: slice, _: object) -> None:
        if part.start == 2:
            raise ValueError("the third")

    with pytest.raises(ValueError, match="the third"):
        shared.each([100] * 4, fail)
    assert len(shared.each([100] * 4, lambda part, _: part)) == 4, "and the next call works"


@pytest.mark.parametrize(("longest", "given_back"), [(256, False), (257, True)])
def test_only_a_long_text_makes_a_session_give_back_its_memory(
    shared: ParallelSession, longest: int, given_back: bool
) -> None:
    # Short texts that run beside a long one as well: who ends last gives back.
    assert shared.each([longest, 200, 9], lambda _part, options: options is not None) == [given_back] * 3


# -- memory ------------------------------------------------------------------------------------------------------------

EXPONENTIALS = """
<ir_version: 8, opset_import: ["" : 17]>
exponentials (float[n] x) => (float[one] sum) {
    powers = Exp (x)
    sum = ReduceSum <keepdims = 1> (powers)
}
"""
HELD = """
import json, sys
from pathlib import Path
import numpy as np, psutil
from enrichment.session import make_session, tidy_run
one, other = (make_session(Path(sys.argv[1]), threads=1) for _ in range(2))
megabytes = []
for session, options, size in ((one, None, 1), (one, None, 64), (other, None, 64), (other, tidy_run(), 1)):
    session.run(None, {"x": np.ones(size << 18, np.float32)}, options)
    megabytes.append(psutil.Process().memory_info().rss / 1e6)
print(json.dumps(megabytes))
"""


def test_a_session_uses_the_memory_that_another_has_left(tmp_path: Path) -> None:
    graph = tmp_path / "exponentials.onnx"
    onnx.save(onnx.parser.parse_model(EXPONENTIALS), graph)
    done = subprocess.run([sys.executable, "-c", HELD, graph], cwd=ROOT, capture_output=True, check=True)
    before, one, both, tidied = json.loads(done.stdout)
    assert one - before > 50, "64 MB of exponentials are kept"
    assert both - one < 10, "and used again by the other session"
    assert tidied - before < 10, "which gives them back"
