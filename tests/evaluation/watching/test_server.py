from __future__ import annotations

import http.client
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest

from afm_scale.core.errors import UserError
from afm_scale.evaluation.watching.server import Server
from afm_scale.evaluation.watching.view import Watched
from tests.evaluation.watching.runs import written

PICTURE = b"\x89PNG the bytes of a sheet"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = written(tmp_path / "runs" / "a", rows=[{"step": 1, "generator/total": 1.0}])
    (folder.samples / "step_00000001.png").write_bytes(PICTURE)
    (folder.samples / "notes.txt").write_text("not a sheet")
    (tmp_path / "secret.png").write_text("secret")
    return folder.path


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    with Server([Watched(folder, dict)], "127.0.0.1", 0) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join(timeout=30)


def ask(server: Server, path: str, method: str = "GET", **headers: str) -> tuple[int, bytes, dict[str, str]]:
    """With the path as it is: a browser would take the dots out."""
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=60)
    try:
        connection.putrequest(method, path, skip_host="Host" in headers)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, answer.read(), dict(answer.getheaders())
    finally:
        connection.close()


def test_the_page_is_served_with_a_policy_that_lets_in_nothing_from_elsewhere(server: Server) -> None:
    for path, kind in (("/", "text/html"), ("/page.js", "text/javascript"), ("/page.css", "text/css")):
        status, content, headers = ask(server, path)
        assert status == 200 and headers["Content-Type"].startswith(kind)
        policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
        assert policy["default-src"] == "'none'" and {policy[f"{kind}-src"] for kind in ("script", "style", "img")} == {
            "'self'"
        }
        assert headers["X-Content-Type-Options"] == "nosniff"
        text = content.decode().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|@import|(inner|outer)HTML|insertAdjacent|document\.write|eval\(| on\w+=", text)


def test_the_runs_are_as_they_are_seen_and_a_sheet_of_samples_is_its_bytes(server: Server, folder: Path) -> None:
    status, content, headers = ask(server, "/runs")
    assert status == 200 and json.loads(content) == [json.loads(json.dumps(Watched(folder, dict).view()))]
    assert ask(server, "/runs/0/step_00000001.png")[:2] == (200, PICTURE)
    status, content, headers = ask(server, "/runs", method="HEAD")
    assert (status, content) == (200, b"") and int(headers["Content-Length"]) > 0


@pytest.mark.parametrize("path", [
    "/runs/0/notes.txt", "/runs/0/../config.yaml", "/runs/0/..%2f..%2fsecret.png", "/runs/0/../../secret.png",
    "/../../../../etc/passwd", "//etc/passwd", "/runs/1/step_00000001.png", "/runs/-1/step_00000001.png",
    "/runs/0/step_00000002.png", "/page.py", "/page/", "/runs/0/", "/runs/99999999999/x.png", "/runs/0/.png",
    "/..%00/page.js",
])
def test_nothing_else_is_there(server: Server, path: str) -> None:
    status, content, headers = ask(server, path)
    assert (status, content) == (404, b"there is nothing here\n") and "Content-Security-Policy" in headers


def test_it_only_reads(server: Server, folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        assert ask(server, "/runs", method=method)[0] == 501
    ask(server, "/runs")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(("host", "status"), [
    ("localhost", 200), ("127.0.0.1:8600", 200), ("[::1]:8600", 200), ("elsewhere.example", 403), ("", 403),
])
def test_a_page_elsewhere_that_points_its_name_at_this_machine_sees_nothing(
    server: Server, host: str, status: int
) -> None:
    assert ask(server, "/runs", Host=host)[0] == status


def test_an_address_that_cannot_be_had_is_one_message(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"--host 127.0.0.1 --port {port}: .*choose another port"):
            Server([Watched(folder, dict)], "127.0.0.1", port)
    with pytest.raises(UserError, match="--host nowhere.invalid --port 0: "):
        Server([Watched(folder, dict)], "nowhere.invalid", 0)
