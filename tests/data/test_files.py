import functools
import hashlib
import http.server
import threading

import pytest

from jaxrl_align.data.files import DATA_VARIABLE, DataFile, find_file

pytest.importorskip("pooch")


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Serve a folder over HTTP; the cache and the user's own folder start empty."""
    served = tmp_path / "served"
    served.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=served))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path / "own"))
    yield served, f"http://127.0.0.1:{server.server_port}/file", tmp_path
    server.shutdown()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_the_users_own_folder_comes_first_and_is_trusted(world):
    _, url, tmp_path = world
    own = tmp_path / "own" / "images" / "a"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"mine")
    assert find_file(DataFile("images/a", url, sha256(b"theirs"))) == own


def test_a_download_is_checked_kept_and_not_repeated(world):
    served, url, tmp_path = world
    (served / "file").write_bytes(b"content")
    file = DataFile("images/a", url, sha256(b"content"))
    path = find_file(file)
    assert path == tmp_path / "cache" / "jaxrl_align" / "images" / "a"
    (served / "file").unlink()
    assert find_file(file).read_bytes() == b"content"


def test_a_download_with_another_checksum_is_refused_and_leaves_nothing(world):
    served, url, tmp_path = world
    (served / "file").write_bytes(b"changed")
    with pytest.raises(FileNotFoundError, match=DATA_VARIABLE):
        find_file(DataFile("images/a", url, sha256(b"content")))
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_a_broken_cached_file_is_fetched_again(world):
    served, url, tmp_path = world
    (served / "file").write_bytes(b"content")
    file = DataFile("a", url, sha256(b"content"))
    find_file(file).write_bytes(b"broken")
    assert find_file(file).read_bytes() == b"content"


def test_without_a_network_the_message_says_where_to_put_the_file(world):
    _, url, _ = world
    with pytest.raises(FileNotFoundError, match="put the file in a folder and name it"):
        find_file(DataFile("a", url, sha256(b"content")))
