"""HEALTH_PORT serves Kubernetes' probes and Prometheus' scraper."""

from __future__ import annotations

import http.client
import socket
import threading
import time

import pytest

from handler.worker.health import PortTaken, serve_health


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def get(port: int, path: str, host: str = "127.0.0.1") -> tuple[int, str, str]:
    connection = http.client.HTTPConnection(host, port, timeout=60)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.getheader("Content-Type", ""), response.read().decode()
    finally:
        connection.close()


def test_probes_and_metrics(port: int) -> None:
    reasons = ["1 of 2 processes have loaded the bundle", None]
    with serve_health(port, lambda: reasons.pop(0), lambda: b"up 1\n"):
        plain = "text/plain; charset=utf-8"
        assert get(port, "/livez") == (200, plain, "alive\n")
        assert get(port, "/readyz") == (503, plain, "1 of 2 processes have loaded the bundle\n")
        assert get(port, "/readyz?verbose") == (200, plain, "ready\n")
        assert get(port, "/metrics") == (200, "text/plain; version=0.0.4; charset=utf-8", "up 1\n")
        assert get(port, "/")[0] == 404
    with pytest.raises(ConnectionRefusedError):
        get(port, "/livez")


def test_startup_has_its_own_probe(port: int) -> None:
    with serve_health(port, lambda: "stopped receiving", lambda: b"", lambda: None):
        assert [get(port, path)[0] for path in ("/startupz", "/readyz")] == [200, 503]
    with serve_health(port, lambda: "loading", lambda: b""):
        assert get(port, "/startupz")[::2] == (503, "loading\n")


def test_head_is_answered_like_get_without_the_body(port: int) -> None:
    with serve_health(port, lambda: "starting", lambda: b"up 1\n"):
        for path, status, length in (("/livez", 200, 6), ("/readyz", 503, 9), ("/metrics", 200, 5), ("/no", 404, 49)):
            with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
                client.sendall(f"HEAD {path} HTTP/1.0\r\n\r\n".encode())
                head, _, body = client.makefile("rb").read().partition(b"\r\n\r\n")
            assert f" {status} ".encode() in head
            assert f"Content-Length: {length}".encode() in head
            assert body == b""


def test_connections_are_bounded_and_slots_are_given_back(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handler.worker.health._MAX_CONNECTIONS", 2)
    with serve_health(port, lambda: None, lambda: b""):
        silent = [socket.create_connection(("127.0.0.1", port), timeout=60) for _ in range(2)]
        with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
            assert client.makefile("rb").read().startswith(b"HTTP/1.0 503 ")
        for client in silent:
            client.close()
        deadline = time.monotonic() + 60
        while get(port, "/livez")[0] != 200:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_disconnecting_client_is_not_logged(port: int, capfd: pytest.CaptureFixture[str]) -> None:
    def hang_up() -> bytes:
        peer.close()
        return b"x" * 10_000_000

    with serve_health(port, lambda: None, hang_up):
        peer = socket.create_connection(("127.0.0.1", port))
        others = set(threading.enumerate())  # servers of other tests have threads that wait for requests
        peer.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert get(port, "/livez")[0] == 200
        for thread in set(threading.enumerate()) - others:
            if "process_request" in thread.name:
                thread.join(60)
    assert capfd.readouterr() == ("", "")


def test_unexpected_error_is_printed(port: int, capfd: pytest.CaptureFixture[str]) -> None:
    def broken() -> bytes:
        raise ZeroDivisionError

    with serve_health(port, lambda: None, broken), pytest.raises(http.client.RemoteDisconnected):
        get(port, "/metrics")
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_port_in_use_error_names_the_remedy(port: int) -> None:
    message = rf"^HEALTH_PORT {port}: Address already in use; stop what listens there, or choose another port$"
    with (
        socket.create_server(("0.0.0.0", port)),
        pytest.raises(PortTaken, match=message),
        serve_health(port, lambda: None, lambda: b""),
    ):
        pytest.fail("it must not listen")


def test_port_0_starts_no_server() -> None:
    with serve_health(0, lambda: "never", lambda: b""):
        pass


def test_machine_without_ipv6_is_served(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handler.worker.health._DualStack.address_family", -1)
    with serve_health(port, lambda: None, lambda: b""):
        assert get(port, "/livez")[0] == 200
