"""Names to files, against a Hub on this machine and without any network."""

import hashlib
import logging
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from natten_zoo.configs.record import Record
from natten_zoo.pretrained import source as module
from natten_zoo.pretrained.download import DownloadError
from natten_zoo.pretrained.readers.errors import CheckpointError
from natten_zoo.pretrained.readers.reader import read_checkpoint
from natten_zoo.pretrained.source import Hub, locate

REPO = "someone/nat-tiny"


class FakeHub:
    """As much of the Hub as a download asks for: `files` by `repo@revision`."""

    def __init__(self):
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self):
                hub.answer(self, body=False)

            def do_GET(self):
                hub.answer(self, body=True)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        # A client that hangs up early is no failure of the test.
        self.http.handle_error = lambda *_: None
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self.files: dict[str, dict[str, bytes]] = {}
        self.served: list[str] = []
        self.requests = 0
        self.tokens: set[str | None] = set()
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, request, body):
        self.requests += 1
        self.tokens.add(request.headers.get("Authorization"))
        parts = request.path.split("?")[0].strip("/").split("/")
        if len(parts) < 5 or parts[2] != "resolve":
            return request.send_error(404)
        repo, revision, name = "/".join(parts[:2]), parts[3].replace("%2F", "/"), parts[4]
        commits = {self.commit(key): key for key in self.files}
        key = commits.get(revision, f"{repo}@{revision}")
        if key not in self.files or name not in self.files[key]:
            request.send_response(404)
            code = "EntryNotFound" if key in self.files else "RepoNotFound"
            request.send_header("X-Error-Code", code)
            request.send_header("X-Repo-Commit", self.commit(key))
            request.send_header("Content-Length", "0")
            return request.end_headers()
        content = self.files[key][name]
        digest = hashlib.sha256(content).hexdigest()
        request.send_response(200)
        request.send_header("ETag", f'"{digest}"')
        request.send_header("X-Repo-Commit", self.commit(key))
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        if body:
            self.served.append(name)
            request.wfile.write(self.corrupted(content))

    corrupted = staticmethod(lambda content: content)

    @staticmethod
    def commit(key: str) -> str:
        return hashlib.sha1(key.encode()).hexdigest()


@pytest.fixture
def fake_hub(monkeypatch, tmp_path):
    hub = FakeHub()
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    yield hub
    hub.http.shutdown()
    hub.http.server_close()


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    template = "http://127.0.0.1:1/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def published(fake_hub, data):
    fake_hub.files[f"{REPO}@main"] = files_of(data / "nat-tiny-random")
    return fake_hub


def register(monkeypatch, **facts):
    record = Record(name="nat_test", architecture="NAT", model={}, **facts)
    monkeypatch.setattr(module, "records", lambda: {"nat_test": record})
    monkeypatch.setattr(module, "get_record", lambda name: record)
    return record


def test_repository(published, data):
    source = locate(REPO)
    assert source.record is None
    assert files_of(source.path) == files_of(data / "nat-tiny-random")
    assert read_checkpoint(source.path).config["model_type"] == "nat"


def test_cached_repository_needs_no_network(published, monkeypatch):
    first = locate(REPO).path
    before = published.requests
    assert locate(REPO, Hub(local_files_only=True)).path == first
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert locate(REPO).path == first
    assert published.requests == before
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    published.http.shutdown()
    published.http.server_close()
    assert locate(REPO).path == first


def test_only_the_weights_that_will_be_read_are_fetched(published, data):
    both = published.files[f"{REPO}@main"]
    both["model.safetensors"] = (data / "dinat-ls-tiny-random" / "model.safetensors").read_bytes()
    path = locate(REPO).path
    assert not (path / "pytorch_model.bin").exists()
    assert read_checkpoint(path).format == "torch"
    assert published.served.count("model.safetensors") == 1


def test_shards_are_fetched(published, data):
    repository = published.files[f"{REPO}@main"]
    repository["one.bin"] = repository.pop("pytorch_model.bin")
    repository["pytorch_model.bin.index.json"] = b'{"weight_map": {"classifier.bias": "one.bin"}}'
    assert set(read_checkpoint(locate(REPO).path).weights) == {"classifier.bias"}


def test_revision(published, data):
    published.files[f"{REPO}@refs/pr/1"] = files_of(data / "dinat-ls-tiny-random")
    path = locate(REPO, Hub(revision="refs/pr/1")).path
    assert read_checkpoint(path).config["model_type"] == "dinat"
    with pytest.raises(DownloadError, match="NotFoundError"):
        locate(REPO, Hub(revision="gone"))


def test_repository_without_weights(published):
    del published.files[f"{REPO}@main"]["pytorch_model.bin"]
    with pytest.raises(DownloadError, match=r"has none of model\.safetensors"):
        locate(REPO)


def test_damaged_on_the_way(published):
    published.corrupted = lambda content: content[:-1] + bytes([content[-1] ^ 1])
    with pytest.raises(DownloadError, match="its SHA-256 is not"):
        locate(REPO)
    published.corrupted = lambda content: content
    assert read_checkpoint(locate(REPO).path).weights


def test_token_and_cache_dir_are_used(published, tmp_path):
    path = locate(REPO, Hub(token="hf_secret", cache_dir=tmp_path / "elsewhere")).path
    assert (tmp_path / "elsewhere") in path.parents
    assert published.tokens == {"Bearer hf_secret"}


def test_short_name_tries_the_places_in_order(published, monkeypatch, data, caplog):
    urls = {"url": "up.pth", "mirror": "mirror.pth"}
    facts = {key: f"{published.url}/a/b/resolve/main/{name}" for key, name in urls.items()}
    record = register(monkeypatch, hub=REPO, **facts)
    content = (data / "detectron2.pth").read_bytes()
    published.files["a/b@main"] = {"mirror.pth": content}
    assert locate("nat_test").path.name == published.commit(f"{REPO}@main")
    del published.files[f"{REPO}@main"]
    shutil.rmtree(constants.HF_HUB_CACHE)
    with caplog.at_level(logging.WARNING, "natten_zoo"):
        source = locate("nat_test")
    assert source.path.name == "mirror.pth" and source.path.read_bytes() == content
    assert source.record is record
    assert [message.split(":")[0] for message in caplog.messages] == [
        f"no weights from {REPO}",
        "no weights from http",
    ]
    assert locate("nat_test", Hub(local_files_only=True)).path == source.path
    published.files["a/b@main"] = {}
    shutil.rmtree(constants.HF_HOME)
    with pytest.raises(DownloadError) as caught:
        locate("nat_test")
    for name in (REPO, "up.pth", "mirror.pth", "HTTP 404"):
        assert name in str(caught.value)


def test_digest_of_the_record_is_compared(published, monkeypatch):
    published.files["a/b@main"] = {"up.pth": b"what it is"}
    url = f"{published.url}/a/b/resolve/main/up.pth"
    register(monkeypatch, url=url, sha256="0" * 64)
    with pytest.raises(DownloadError, match="its SHA-256 is"):
        locate("nat_test")
    register(monkeypatch, url=url, sha256=hashlib.sha256(b"what it is").hexdigest())
    assert locate("nat_test").path.read_bytes() == b"what it is"


def test_a_revision_is_of_the_repository_only(published, monkeypatch):
    published.files["a/b@main"] = {"up.pth": b"what it is"}
    register(monkeypatch, hub=REPO, url=f"{published.url}/a/b/resolve/main/up.pth")
    with pytest.raises(DownloadError) as caught:
        locate("nat_test", Hub(revision="gone"))
    assert "up.pth" not in str(caught.value)


def test_address(published):
    published.files["a/b@main"] = {"up.pth": b"what it is"}
    source = locate(f"{published.url}/a/b/resolve/main/up.pth")
    assert source.path.read_bytes() == b"what it is" and source.record is None


@pytest.mark.parametrize("name", [REPO, "nat_mini"])
def test_no_network_says_what_to_do(no_network, name):
    with pytest.raises(OSError) as caught:
        locate(name, Hub(local_files_only=True))
    message = str(caught.value)
    assert "could not be downloaded" in message and "give the path of a file" in message
    assert "not downloaded before" in message


def test_no_network_is_noticed_soon(no_network):
    with pytest.raises(DownloadError, match="not reachable"):
        locate(REPO)


def test_registered_repository_has_its_record(no_network, data, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "_from_hub", lambda repo, options: tmp_path)
    assert (
        locate("shi-labs/dinat-large-11x11-in22k-in1k-384").record.name == "dinat_large_384_11x11"
    )
    assert locate("shi-labs/nat-mini-in1k-224").record.name == "nat_mini"


def test_local_paths(data, tmp_path, monkeypatch):
    for path in (data / "timm.pth", data / "nat-tiny-random"):
        assert locate(path).path == path
        assert locate(str(path)).record is None
    monkeypatch.chdir(data)
    assert locate("nat-tiny-random").path == Path("nat-tiny-random")
    monkeypatch.setenv("HOME", str(data))
    assert locate("~/timm.pth").path == data / "timm.pth"


@pytest.mark.parametrize("name", ["gone.pth", "./gone", "/gone", "~/gone", Path("gone"), "a/b/c"])
def test_nothing_there(name):
    with pytest.raises((FileNotFoundError, ValueError), match=r"no such file|known model"):
        locate(name)


def test_unknown_name_gets_the_nearest():
    with pytest.raises(ValueError, match=r"nat_minni.*nearest names are nat_mini"):
        locate("nat_minni")


def test_unpublished_model(monkeypatch):
    register(monkeypatch)
    with pytest.raises(ValueError, match="no weights of 'nat_test' are published"):
        locate("nat_test")


def test_an_error_in_the_file_is_no_reason_to_look_elsewhere(published, monkeypatch):
    published.files[f"{REPO}@main"]["pytorch_model.bin"] = b"\x80\x02}."
    register(monkeypatch, hub=REPO, url=f"{published.url}/a/b/resolve/main/up.pth")
    with pytest.raises(CheckpointError, match="bare pickle"):
        read_checkpoint(locate("nat_test").path)
