"""`make data` against a web server on this machine: whole, cut and refused files, archives, credentials."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from amif_lib.app import cli
from amif_lib.core import paths
from amif_lib.data import check, fetch, manifests
from tests.tiny_set import ANNOTATIONS, IMAGES, TinySet, sha
from tests.web import Web, serve


def zipped(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return out.getvalue()


def tarred(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return out.getvalue()


class Tiny(TinySet):
    """The small set on the server: its annotations as a file, its images in an archive."""

    web: Web

    def serve(self, web: Web) -> None:
        self.web = web
        annotations = {"kind": "http", "url": web.add("/annotations", self.annotations), "target": ANNOTATIONS}
        archive = {"kind": "http", "url": web.add("/images.zip", zipped(self.images)), "target": "images.zip"}
        self.write(downloads=[annotations | self.recorded, archive | {"unpack": "."}])

    def change(self, number: int, **changes: object) -> None:
        """Change one of the two downloads."""
        downloads = list(self.manifest["downloads"])
        downloads[number] = {**downloads[number], **changes}
        self.write(downloads=downloads)

    def files(self) -> list[str]:
        return sorted(path.relative_to(self.home).as_posix() for path in self.home.rglob("*") if path.is_file())


WHOLE = [ANNOTATIONS, *(f"{IMAGES}/{name}" for name in ("Z.jpg", "a.jpg", "b.jpg"))]


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tiny]:
    made = Tiny(tmp_path, monkeypatch)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(fetch, "RETRIES", 1)
    with serve() as web:
        made.serve(web)
        yield made
    manifests.load.cache_clear()


def make_data(*options: str) -> int:
    return cli.main(["data", "--datasets", "tiny", *options])


def test_make_data_fetches_unpacks_and_checks_once(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    assert make_data("--dry-run") == 0
    said = capsys.readouterr().out
    assert f"{ANNOTATIONS} from http" in said and "/annotations, images.zip from" in said
    assert tiny.web.seen == [] and not tiny.home.exists()

    assert make_data() == 0
    said = capsys.readouterr().out
    assert "data check: 11 of 11 ok" in said
    assert tiny.files() == WHOLE and [path.name for path in tiny.home.glob(".*")] == []  # no archive, nothing half-done

    asked, own = len(tiny.web.seen), tiny.home / ANNOTATIONS
    assert make_data() == 0 and len(tiny.web.seen) == asked
    assert "nothing: already there" in capsys.readouterr().out
    shutil.rmtree(tiny.home / IMAGES)
    own.write_bytes(b"[]")  # what is there is not overwritten
    assert make_data() == 1 and tiny.web.seen[asked:] == ["/images.zip"] and tiny.files() == WHOLE
    assert own.read_bytes() == b"[]" and f"{ANNOTATIONS} is changed: 2 bytes" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["images.zip", "images.tar.gz"])
def test_what_leads_out_of_an_archive_and_what_a_mac_adds_stays_out(tiny: Tiny, name: str) -> None:
    body = tarred(tiny.images)
    if name == "images.zip":
        junk = ("../../up", "/tmp/amif-up", "__MACOSX/._a.jpg", f"{IMAGES}/.DS_Store")
        body = zipped({**tiny.images, **dict.fromkeys(junk, b"x")})
    tiny.change(1, url=tiny.web.add(f"/{name}", body), target=name)
    assert make_data() == 0 and tiny.files() == WHOLE
    assert not list(tiny.home.parents[1].rglob("up")) and not Path("/tmp/amif-up").exists()


@pytest.mark.parametrize(("name", "why"), [("cut.zip", "not a zip file"), ("above.tar.gz", "outside the destination")])
def test_a_bad_archive_leaves_nothing_and_the_rest_of_the_set_stays(tiny: Tiny, capsys, name: str, why: str) -> None:
    body = zipped(tiny.images)[:-60] if name == "cut.zip" else tarred({"../up": b"x", **tiny.images})
    tiny.change(1, url=tiny.web.add(f"/{name}", body), target=name)
    assert make_data() == 1
    said = capsys.readouterr().err
    assert re.search(f"{name}: http.*{why}.*; check the network, or put the file", said) and "failed: tiny" in said
    assert tiny.files() == [ANNOTATIONS] and not list(tiny.home.parent.rglob("up"))


def test_a_cut_connection_is_tried_again_and_then_given_up(tiny: Tiny, capsys) -> None:
    tiny.web.cuts["/annotations"] = 1
    assert make_data() == 0 and tiny.web.seen.count("/annotations") == 2 and tiny.files() == WHOLE
    shutil.rmtree(tiny.home)
    tiny.web.cuts["/annotations"] = 9
    assert make_data() == 1
    assert "check the network, or put the file into the set's folder by hand" in capsys.readouterr().err
    assert tiny.files() == []


def test_a_file_of_other_content_is_not_kept(tiny: Tiny, capsys) -> None:
    tiny.web.add("/annotations", b"[1, 2]")
    assert make_data() == 1 and "does not match the known hash" in capsys.readouterr().err and tiny.files() == []


def test_credentials_in_an_address_are_never_printed(tiny: Tiny, capsys, caplog) -> None:
    secret = tiny.web.root.replace("://", "://me:pa@ss%2Fword@") + "/gone?token=topsecret&X-Amz-Signature=abc"
    tiny.change(0, url=secret)
    with caplog.at_level("INFO"):
        for option in ("--dry-run", "--scale=demo"):
            make_data(option)
    said = "".join(capsys.readouterr()) + caplog.text
    assert "/gone" in said and "404" in said
    assert not re.search(r"me:|pa@|ss%2F|word@|topsecret|abc", said)


@pytest.mark.parametrize("level", ["credentialed", "per-article"])
def test_what_is_not_open_is_explained_and_left_alone(tiny: Tiny, capsys, level: str) -> None:
    tiny.write(access={"level": level, "steps": ["Make an account.", "Sign the agreement."]})
    if level == "per-article":  # the lists come, the images do not
        tiny.write(downloads=tiny.manifest["downloads"][:1])
    assert make_data() == 0
    said = capsys.readouterr().out
    head, one, two = re.search(r"(\[tiny .*)\n(  1\. .*)\n(  2\. .*)\n", said).groups()
    assert "SKIPPED" in head and fetch.WHY[level] in head and one.endswith("account.") and two.endswith("agreement.")
    assert "make data-check DATASETS=tiny" in said
    assert tiny.files() == ([ANNOTATIONS] if level == "per-article" else []) and "data check:" not in said
    if level != "per-article":
        table = check.check(["tiny"])
        assert table["status"].tolist() == ["needs credential" if level == "credentialed" else "missing"]


def test_a_file_of_the_hub_at_its_commit(tiny: Tiny) -> None:
    """The hub's own client, against the answers that the hub gives (its resolve address with commit and ETag)."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    tiny.web.headers = {"X-Repo-Commit": commit, "ETag": f'"{sha(tiny.annotations)}"', "Accept-Ranges": "bytes"}
    tiny.web.add(f"/datasets/someone/set/resolve/{commit}/data/all.json", tiny.annotations)
    tiny.change(0, kind="huggingface", url="someone/set", file="data/all.json", revision=commit)
    code = (
        "import sys; from pathlib import Path; from amif_lib.core import paths; from amif_lib.data import fetch\n"
        "paths.MANIFESTS = Path(sys.argv[1]); fetch.fetch('tiny')"
    )
    settings = {"HF_ENDPOINT": tiny.web.root, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tiny.home.parent / "home")}
    done = subprocess.run(
        [sys.executable, "-c", code, str(paths.MANIFESTS)],
        cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=100,
        env={**os.environ, **settings, "HF_TOKEN": "", "PYTHONPATH": "."},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert tiny.files() == WHOLE and (tiny.home / ANNOTATIONS).read_bytes() == tiny.annotations
