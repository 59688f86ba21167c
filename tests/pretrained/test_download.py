"""Plain downloads against a server on this machine: resumed, checked, atomic."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from natten_zoo.pretrained import download as module
from natten_zoo.pretrained.download import DownloadError, download

CONTENT = bytes(range(256)) * 40_000  # 10 MB
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server:
    """Serves CONTENT and keeps a list of requests; told to, it misbehaves."""

    def __init__(self):
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                server.answer(self)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        # A client that hangs up early is no failure of the test.
        self.http.handle_error = lambda *_: None
        self.url = f"http://127.0.0.1:{self.http.server_port}/weights.pth"
        self.content, self.tag = CONTENT, '"one"'
        self.status = 200
        self.cuts: list[int] = []  # bytes after which the connection is dropped, per request
        self.kind = "application/octet-stream"
        self.ranges: list[str | None] = []
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, request):
        wanted = request.headers.get("Range")
        self.ranges.append(wanted)
        if self.status != 200:
            return request.send_error(self.status)
        start = 0
        if wanted and request.headers.get("If-Range") == self.tag:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(self.content):
                return request.send_error(416)
        body = self.content[start:]
        request.send_response(206 if start else 200)
        request.send_header("Content-Length", str(len(body)))
        request.send_header("Content-Type", self.kind)
        request.send_header("ETag", self.tag)
        request.end_headers()
        request.wfile.write(body[: self.cuts.pop(0)] if self.cuts else body)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(module, "PAUSE", 0)
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


def test_download(server, tmp_path):
    target = tmp_path / "cache" / "weights.pth"
    assert download(server.url, target, sha256=SHA256) == target
    assert target.read_bytes() == CONTENT
    assert target.with_name("weights.pth.sha256").read_text() == f"{SHA256}  weights.pth\n"
    assert sorted(path.name for path in target.parent.iterdir()) == [
        "weights.pth",
        "weights.pth.sha256",
    ]
    download(server.url, target)
    assert len(server.ranges) == 1  # it was there


def test_a_dropped_connection_is_resumed(server, tmp_path):
    server.cuts = [3_000_000, 2_000_000]
    target = tmp_path / "weights.pth"
    download(server.url, target)
    assert target.read_bytes() == CONTENT
    first, second, third = server.ranges
    assert first is None
    assert second == "bytes=3000000-"
    assert third == "bytes=5000000-"


def test_a_stopped_download_is_resumed_by_the_next_call(server, tmp_path):
    target = tmp_path / "weights.pth"
    server.cuts = [1_000_000] * module.ATTEMPTS
    with pytest.raises(DownloadError, match="the connection ended after 5000000 of 10240000 bytes"):
        download(server.url, target)
    assert not target.exists()
    download(server.url, target, sha256=SHA256)
    assert server.ranges[-1] == "bytes=5000000-"
    assert target.read_bytes() == CONTENT


def test_a_file_that_changed_is_not_joined_to_its_old_half(server, tmp_path):
    target = tmp_path / "weights.pth"
    server.cuts = [1_000_000] * module.ATTEMPTS
    with pytest.raises(DownloadError):
        download(server.url, target)
    server.content, server.tag = CONTENT[::-1], '"two"'
    download(server.url, target)
    assert target.read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("extra", [0, 5])
def test_a_part_that_is_all_of_the_file_or_more(server, tmp_path, extra):
    target = tmp_path / "weights.pth"
    (tmp_path / "weights.pth.part").write_bytes(CONTENT + bytes(extra))
    (tmp_path / "weights.pth.part.tag").write_text(server.tag)
    download(server.url, target, sha256=SHA256)
    assert target.read_bytes() == CONTENT


def test_wrong_digest(server, tmp_path):
    target = tmp_path / "weights.pth"
    with pytest.raises(DownloadError, match=f"SHA-256 is {SHA256} but should be 00"):
        download(server.url, target, sha256="0" * 64)
    assert not target.exists()
    download(server.url, target, sha256=SHA256)  # what was wrong is not resumed
    assert server.ranges == [None, None]


def test_a_web_page_is_no_file(server, tmp_path):
    server.kind = "text/html; charset=utf-8"
    with pytest.raises(DownloadError, match="a web page"):
        download(server.url, tmp_path / "weights.pth")
    assert not (tmp_path / "weights.pth").exists()


def test_refusals_are_not_repeated(server, tmp_path):
    server.status = 404
    with pytest.raises(DownloadError, match=rf"{server.url}: HTTP 404 Not Found"):
        download(server.url, tmp_path / "weights.pth")
    assert len(server.ranges) == 1


def test_errors_of_the_server_are_repeated(server, tmp_path):
    server.status = 503
    with pytest.raises(DownloadError, match="HTTP 503"):
        download(server.url, tmp_path / "weights.pth")
    assert len(server.ranges) == module.ATTEMPTS


def test_nobody_there(tmp_path):
    with pytest.raises(DownloadError, match="refused"):
        download("http://127.0.0.1:1/weights.pth", tmp_path / "weights.pth")


def test_two_at_once(server, tmp_path):
    target = tmp_path / "weights.pth"
    threads = [threading.Thread(target=download, args=(server.url, target)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert target.read_bytes() == CONTENT
    assert len(server.ranges) == 1
