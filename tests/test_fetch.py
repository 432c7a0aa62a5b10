"""`make data` against a web server on this machine: cuts, stalls, changes, refusals, bad archives, full disks."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from PIL import Image

from amif_lib.app import cli, doctor
from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.data import archives, download, fetch, manifests
from amif_lib.data.manifests import Download
from tests.web import Web, serve

CLONE = Path(__file__).parents[1]
BODY = random.Random(0).randbytes(700_001)
OTHER = random.Random(1).randbytes(700_001)


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "TIMEOUT", (5.0, 0.4))
    monkeypatch.setattr(download, "WAIT", 0.01)
    with serve() as web:
        yield web


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "a set" / "file.bin"


def source(url: str, **more) -> Download:
    return Download(kind="http", url=url, target="file.bin", **more)


def leftovers(target: Path) -> list[str]:
    return sorted(path.name for path in target.parent.iterdir() if path != target)


# --- one file ------------------------------------------------------------------------------------------------------


def test_a_file_comes_whole_and_alone(web: Web, target: Path) -> None:
    got = download.fetch(source(web.add("/f", BODY), bytes=len(BODY), sha256=sha(BODY)), target)
    assert target.read_bytes() == BODY and leftovers(target) == []
    assert (got["bytes"], got["sha256"]) == (len(BODY), sha(BODY))
    (headers,) = web.asked("/f")
    assert "Range" not in headers and headers["Accept-Encoding"] == "identity"


@pytest.mark.parametrize("wrong", [{"after": 300_000}, {"after": 300_000, "stall": True}], ids=["cut", "stalled"])
@pytest.mark.parametrize("known", [True, False], ids=["checksum", "no checksum"])
def test_a_broken_connection_goes_on_where_it_was(web: Web, target: Path, wrong: dict, known: bool) -> None:
    url = web.add("/f", BODY, plan=[wrong, {**wrong, "after": 100_000}])
    download.fetch(source(url, sha256=sha(BODY) if known else ""), target)
    assert target.read_bytes() == BODY and leftovers(target) == []
    first, second, third = web.asked("/f")
    starts = [int(re.fullmatch(r"bytes=(\d+)-", headers["Range"])[1]) for headers in (second, third)]
    assert "Range" not in first and 0 < starts[0] <= 300_000 and starts[0] < starts[1] <= 400_000
    assert second["If-Range"] == third["If-Range"] == web.pages["/f"].tag()


def test_the_next_call_goes_on_where_the_last_gave_up(web: Web, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = web.add("/f", BODY, plan=[{"after": 300_000}] + [{"after": 0}] * 3)
    monkeypatch.setattr(download, "ATTEMPTS", 3)
    with pytest.raises(InputError, match=r"file\.bin: http.*3 times in a row.*what has arrived is kept"):
        download.fetch(source(url), target)
    part = download.part_of(target)
    arrived = part.stat().st_size
    assert not target.exists() and part.read_bytes() == BODY[:arrived] and arrived > 200_000
    download.fetch(source(url), target)
    assert target.read_bytes() == BODY and web.asked("/f")[-1]["Range"] == f"bytes={arrived}-"


def test_without_ranges_it_starts_from_zero(web: Web, target: Path) -> None:
    url = web.add("/f", BODY, ranges=False, plan=[{"after": 300_000}, {"after": 200_000}])
    download.fetch(source(url), target)
    assert target.read_bytes() == BODY and len(web.asked("/f")) == 3


def test_a_server_that_always_cuts_is_given_up(web: Web, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "ATTEMPTS", 4)
    url = web.add("/f", BODY, ranges=False, plan=[{"after": 200_000 + 70_000 * (i % 2)} for i in range(40)])
    with pytest.raises(InputError, match="4 times in a row"):
        download.fetch(source(url), target)
    assert len(web.asked("/f")) < 10


@pytest.mark.parametrize("if_range", [True, False], ids=["sent whole", "rest of the new one"])
def test_a_file_that_changed_in_between_is_not_mixed(web: Web, target: Path, monkeypatch, if_range: bool) -> None:
    url = web.add("/f", BODY, if_range=if_range, plan=[{"after": 300_000}])
    monkeypatch.setattr(download.time, "sleep", lambda _: setattr(web.pages["/f"], "body", OTHER))
    download.fetch(source(url), target)
    assert target.read_bytes() == OTHER and leftovers(target) == []


def test_what_cannot_be_told_apart_is_not_continued(web: Web, target: Path, monkeypatch) -> None:
    """No ETag, no date, no checksum: the beginning may be another version's. With a date, the date decides."""
    url = web.add("/f", BODY, etag=None, plan=[{"after": 300_000}])
    download.fetch(source(url), target)
    assert target.read_bytes() == BODY and all("Range" not in headers for headers in web.asked("/f"))
    target.unlink()
    dated = {"Last-Modified": "Tue, 01 Jul 2025 10:00:00 GMT"}
    url = web.add("/g", BODY, etag=None, if_range=False, headers=dated, plan=[{"after": 300_000}])

    def change(_: float) -> None:
        web.pages["/g"].body = OTHER
        web.pages["/g"].headers = {"Last-Modified": "Wed, 02 Jul 2025 10:00:00 GMT"}

    monkeypatch.setattr(download.time, "sleep", change)
    download.fetch(source(url), target)
    assert target.read_bytes() == OTHER and web.asked("/g")[1]["If-Range"] == dated["Last-Modified"]


def test_a_wrong_checksum_sets_the_file_aside(web: Web, target: Path) -> None:
    url = web.add("/f", OTHER)
    wanted = source(url, sha256=sha(BODY))
    with pytest.raises(InputError) as caught:
        download.fetch(wanted, target)
    message = str(caught.value)
    assert "file.bin" in message and sha(BODY) in message and sha(OTHER) in message and "\n" not in message
    assert not target.exists() and leftovers(target) == ["file.bin.rejected"]
    web.pages["/f"].body = BODY
    download.fetch(wanted, target)
    assert target.read_bytes() == BODY and leftovers(target) == []


def test_another_size_is_said_before_it_is_sent(web: Web, target: Path) -> None:
    with pytest.raises(InputError, match=r"has 700001 bytes, the manifest expects 5"):
        download.fetch(source(web.add("/f", BODY), bytes=5), target)
    assert leftovers(target) == []
    with pytest.raises(InputError, match=r"more arrived than was announced"):
        download.fetch(source(web.add("/g", BODY, length=False), bytes=500_000), target)
    assert not target.exists()


def test_no_length_and_no_size_still_gives_the_file(web: Web, target: Path) -> None:
    download.fetch(source(web.add("/f", BODY, length=False), sha256=sha(BODY)), target)
    assert target.read_bytes() == BODY


def test_refusals_are_said_at_once(web: Web, target: Path) -> None:
    for status, words in ((404, "no such file any more"), (403, "does not give it to everyone"), (418, "HTTP 418")):
        url = web.add(f"/{status}", b"", plan=[{"status": status}] * 3)
        with pytest.raises(InputError, match=rf"file\.bin: {url}.*{words}.*by hand"):
            download.fetch(source(url), target)
        assert len(web.asked(f"/{status}")) == 1
    with pytest.raises(InputError, match="web page instead of the file"):
        download.fetch(
            source(web.add("/form", b"<html>", headers={"Content-Type": "text/html; charset=utf-8"})), target
        )
    for address in ("ftp://127.0.0.1/f", "osf.io/f"):
        with pytest.raises(InputError, match=r"is no http address; mend the manifest"):
            download.fetch(source(address), target)
    assert leftovers(target) == []


def test_a_busy_server_is_asked_again(web: Web, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(download.time, "sleep", waits.append)
    url = web.add("/f", BODY, plan=[{"status": 503}, {"status": 429, "headers": {"Retry-After": "7"}}])
    download.fetch(source(url), target)
    assert target.read_bytes() == BODY and waits == [0.01, 7.0]


def test_a_folder_that_cannot_be_written(web: Web, tmp_path: Path) -> None:
    (tmp_path / "a file").touch()
    url = web.add("/f", BODY)
    with pytest.raises(InputError, match=r"a file/file\.bin: cannot be written .*set DATA_ROOT"):
        download.fetch(source(url), tmp_path / "a file" / "file.bin")
    assert web.seen == []
    if os.geteuid() == 0:
        return  # to root, no folder is forbidden
    (tmp_path / "closed").mkdir(mode=0o555)
    with pytest.raises(InputError, match=r"cannot be written \(Permission denied\).*set DATA_ROOT"):
        download.fetch(source(url), tmp_path / "closed" / "set" / "file.bin")


def test_a_full_disk_keeps_what_has_arrived(web: Web, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = web.add("/f", BODY)
    real, room = Path.open, [200_000]

    def small_disk(path: Path, mode: str = "r", *args, **kwargs):
        file = real(path, mode, *args, **kwargs)
        if path.suffix != ".part" or "b" not in mode:
            return file

        class Full:
            def __enter__(self):
                return self

            def __exit__(self, *_: object) -> None:
                file.close()

            def write(self, block: bytes) -> None:
                room[0] -= len(block)
                if room[0] < 0:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                file.write(block)

        return Full() if mode in ("ab", "wb") else file

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", small_disk)
        with pytest.raises(InputError, match=r"file\.bin: the disk is full; free some space.*is kept"):
            download.fetch(source(url), target)
    arrived = download.part_of(target).stat().st_size
    assert 100_000 < arrived <= 200_000 and not target.exists()
    download.fetch(source(url), target)
    assert target.read_bytes() == BODY and web.asked("/f")[-1]["Range"] == f"bytes={arrived}-"
    target.unlink()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 1000))
    with pytest.raises(InputError, match=r"GB to come.*larger disk"):
        download.fetch(source(url), target)


def test_a_file_of_the_hub_at_its_commit(web: Web, tmp_path: Path) -> None:
    """The hub's own client, against the answers that the hub gives (its resolve address with commit and ETag)."""
    pytest.importorskip("huggingface_hub")
    commit = "0123456789abcdef0123456789abcdef01234567"
    answer = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
    web.add(f"/datasets/someone/set/resolve/{commit}/data/imgs.bin", BODY, headers=answer)
    code = (
        "import sys; from pathlib import Path; from amif_lib.data import download; from amif_lib.data.manifests import Download\n"
        "made = Download(kind='huggingface', url='someone/set', file=sys.argv[1], revision=sys.argv[2], target='x')\n"
        "print(download.fetch(made, Path(sys.argv[3]))['revision'])"
    )

    def call(file: str, name: str) -> subprocess.CompletedProcess[str]:
        settings = {"HF_ENDPOINT": web.root, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": ""}
        return subprocess.run(
            [sys.executable, "-c", code, file, commit, str(tmp_path / "set" / name)],
            cwd=CLONE, capture_output=True, text=True, timeout=100, env={**os.environ, **settings, "PYTHONPATH": "."},
        )  # fmt: skip

    done = call("data/imgs.bin", "imgs.bin")
    assert done.returncode == 0 and done.stdout.split()[-1] == commit, done.stderr
    assert (tmp_path / "set" / "imgs.bin").read_bytes() == BODY
    assert [path.name for path in (tmp_path / "set").iterdir()] == ["imgs.bin"]
    done = call("data/other.bin", "other.bin")
    assert "InputError" in done.stderr and "someone/set, file data/other.bin, on the hub" in done.stderr


# --- archives ------------------------------------------------------------------------------------------------------


def zipped(members: dict[str, bytes], **attributes: int) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = attributes.get(name, 0o100644) << 16
            file.writestr(info, content)
    return out.getvalue()


def tarred(*members: tarfile.TarInfo, content: bytes = b"text", mode: str = "w:gz") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as file:
        for member in members:
            member.size = len(content) if member.isreg() else 0
            file.addfile(member, io.BytesIO(content) if member.isreg() else None)
    return out.getvalue()


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def put(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def unpack(archive: Path, limit: int = 10**9) -> list[tuple[str, int]]:
    return archives.unpack(archive, archive.parent / "out", limit)


def test_archives_give_their_files(tmp_path: Path) -> None:
    members = {"imgs/a/x.bin": BODY, "imgs/b.txt": b"b", "__MACOSX/imgs/._b.txt": b"junk", "imgs/.DS_Store": b"junk"}
    found = unpack(put(tmp_path, "a.zip", zipped(members)))
    assert found == [("imgs/a/x.bin", len(BODY)), ("imgs/b.txt", 1)]
    assert (tmp_path / "out" / "imgs/a/x.bin").read_bytes() == BODY
    assert sorted(manifests.tree_files(tmp_path / "out", recursive=True)) == ["imgs/a/x.bin", "imgs/b.txt"]
    for name, mode in (("a.tar.gz", "w:gz"), ("a.tgz", "w:gz"), ("a.tar", "w")):
        shutil.rmtree(tmp_path / "out")
        packed = tarred(entry("./", tarfile.DIRTYPE), entry("d", tarfile.DIRTYPE), entry("./d/x"), mode=mode)
        assert unpack(put(tmp_path, name, packed)) == [("d/x", 4)]
        assert (tmp_path / "out" / "d" / "x").read_bytes() == b"text"


@pytest.mark.parametrize("inside", ["images/", ""], ids=["with its folder", "files alone"])
@pytest.mark.parametrize("where", ["test/", ""])
def test_an_archive_in_an_archive_where_its_folder_is_wanted(tmp_path: Path, inside: str, where: str) -> None:
    images = zipped({f"{inside}a.jpg": b"a", f"{inside}b.jpg": b"bb"})
    packed = zipped({f"{where}images.zip": images, f"{where}more.zip": images, f"{where}questions.txt": b"?"})
    members = unpack(put(tmp_path, "a.zip", packed))
    found = archives.unpack_nested(tmp_path / "out", members, {f"{where}images"}, 10**6)
    names = [f"{where}{name}" for name in ("images/a.jpg", "images/b.jpg", "more.zip", "questions.txt")]
    assert sorted(name for name, _ in found) == sorted(manifests.tree_files(tmp_path / "out", recursive=True)) == names
    assert all((tmp_path / "out" / name).stat().st_size == size for name, size in found)


LINK = 0o120777
BAD = {
    "up.zip": zipped({"ok": b"1", "a/../../up": b"x"}),
    "absolute.zip": zipped({"ok": b"1", "/tmp/up": b"x"}),
    "drive.zip": zipped({"ok": b"1", "C:/up": b"x"}),
    "backslash.zip": zipped({"ok": b"1", "..\\up": b"x"}),
    "link.zip": zipped({"ok": b"1", "link": b"/etc/passwd"}, link=LINK),
    "twice.zip": zipped({"ok": b"1", "a": b"x", "a/b": b"x"}),
    "up.tar.gz": tarred(entry("ok"), entry("../up")),
    "absolute.tar.gz": tarred(entry("ok"), entry("/tmp/up")),
    "symlink.tar.gz": tarred(entry("ok"), entry("l", tarfile.SYMTYPE, "/etc"), entry("l/up")),
    "hardlink.tar.gz": tarred(entry("ok"), entry("l", tarfile.LNKTYPE, "../up")),
    "device.tar": tarred(entry("ok"), entry("d", tarfile.CHRTYPE), mode="w"),
    "pipe.tar": tarred(entry("ok"), entry("p", tarfile.FIFOTYPE), mode="w"),
    "twice.tgz": tarred(entry("ok"), entry("ok")),
}


@pytest.mark.parametrize("name", BAD)
def test_unsafe_archives_are_refused_whole(tmp_path: Path, name: str) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(InputError, match=rf"{name}: member '.*nothing was unpacked"):
        unpack(put(tmp_path / "in", name, BAD[name]))
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [name] and not (
        tmp_path / "in/out"
    ).exists()


@pytest.mark.parametrize("share", [0.02, 0.5, 0.999])
@pytest.mark.parametrize("kind", ["zip", "tar.gz", "tar"])
def test_cut_archives_are_refused_whole(tmp_path: Path, kind: str, share: float) -> None:
    mode = "w" if kind == "tar" else "w:gz"
    whole = zipped({"a": BODY, "b": BODY}) if kind == "zip" else tarred(entry("a"), entry("b"), content=BODY, mode=mode)
    if kind == "tar":
        whole = whole[: 2 * (512 + len(BODY))]  # without the empty blocks at its end, which may be missing
    with pytest.raises(InputError, match=r"cut or damaged.*fetch it again"):
        unpack(put(tmp_path, f"a.{kind}", whole[: int(share * len(whole))]))
    assert not (tmp_path / "out").exists()


def test_damaged_members_bombs_and_other_files_are_refused(tmp_path: Path) -> None:
    whole = bytearray(zipped({"a": BODY}))
    whole[5000] ^= 1
    with pytest.raises(InputError, match="cut or damaged"):
        unpack(put(tmp_path, "a.zip", bytes(whole)))
    for name, bomb in (
        ("b.zip", zipped({"a": bytes(3 * 10**6)})),
        ("b.tgz", tarred(entry("a"), content=bytes(3 * 10**6))),
    ):
        assert len(bomb) < 10_000
        with pytest.raises(InputError, match=r"takes it past 1000000 bytes"):
            unpack(put(tmp_path, name, bomb), limit=10**6)
    with pytest.raises(InputError, match=r"c\.rar: not an archive that can be unpacked"):
        unpack(put(tmp_path, "c.rar", b"x"))
    assert not (tmp_path / "out").exists()


# --- a set ---------------------------------------------------------------------------------------------------------


class Tiny:
    """A question set in VQA-RAD's layout on the server: its annotations as a file, its images in an archive."""

    def __init__(self, web: Web, folder: Path) -> None:
        self.web, self.home = web, folder / "data root" / "tiny"
        images = {}
        for i, name in enumerate(("b.jpg", "a.jpg")):
            out = io.BytesIO()
            Image.new("L", (9, 9), 40 * i).save(out, "JPEG")
            images[name] = out.getvalue()
        record = {"phrase_type": "freeform", "question": "Is it?", "answer_type": "CLOSED", "answer": "Yes"}
        records = [
            {**record, "qid": 1, "image_name": "a.jpg"},
            {**record, "qid": 2, "image_name": "b.jpg", "phrase_type": "test_para"},
        ]
        self.annotations = json.dumps(records).encode()
        self.archive = zipped({f"VQA_RAD Image Folder/{name}": content for name, content in images.items()})
        lines = "".join(f"{sha(images[name])}  {name}\n" for name in sorted(images))
        self.manifest = yaml.safe_load((CLONE / "data_manifests" / "vqa_rad.yaml").read_text(encoding="utf-8"))
        name = "VQA_RAD Dataset Public.json"
        self.manifest.update(
            name="tiny", folder="tiny", variants=[],
            files=[{"path": name, "bytes": len(self.annotations), "sha256": sha(self.annotations)}],
            trees=[{"path": "VQA_RAD Image Folder", "count": 2, "bytes": sum(map(len, images.values())),
                    "sha256": sha(lines.encode())}],
            splits=[{"name": "train", "questions": 1, "images": 1}, {"name": "test", "questions": 1, "images": 1}],
            downloads=[
                {"kind": "osf", "url": web.add("/annotations", self.annotations), "target": name,
                 "bytes": len(self.annotations), "sha256": sha(self.annotations)},
                {"kind": "zenodo", "url": web.add("/images.zip", self.archive), "target": "images.zip", "unpack": ".",
                 "bytes": len(self.archive), "exercised": True},
            ],
        )  # fmt: skip
        self.write()

    def write(self, **changes) -> None:
        self.manifest |= changes
        path = paths.MANIFESTS / f"{self.manifest['name']}.yaml"
        path.write_text(yaml.safe_dump(self.manifest), encoding="utf-8")
        manifests.load.cache_clear()


@pytest.fixture
def tiny(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tiny]:
    (tmp_path / "manifests").mkdir()
    monkeypatch.setattr(paths, "MANIFESTS", tmp_path / "manifests")
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "data root"))
    manifests.load.cache_clear()
    yield Tiny(web, tmp_path)
    manifests.load.cache_clear()


def test_make_data_fetches_unpacks_and_checks_once(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "--datasets", "tiny", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "VQA_RAD Dataset Public.json, images.zip" in said and "/annotations" in said and "never fetched" in said
    assert tiny.web.seen == [] and not tiny.home.parent.exists()

    assert cli.main(["data", "--datasets", "tiny"]) == 0
    said = capsys.readouterr().out
    untried = said.split("never fetched from themselves:")[1]
    assert "data check: 8 of 8 ok" in said and "/annotations" in untried and "images.zip" not in untried
    found = sorted(path.relative_to(tiny.home).as_posix() for path in tiny.home.rglob("*") if path.is_file())
    images = ["VQA_RAD Image Folder/a.jpg", "VQA_RAD Image Folder/b.jpg"]
    assert found == ["VQA_RAD Dataset Public.json", *images]  # no archive, nothing half-done

    asked = len(tiny.web.seen)
    assert cli.main(["data", "--datasets", "tiny"]) == 0 and len(tiny.web.seen) == asked
    assert "nothing: it is there" in capsys.readouterr().out
    (tiny.home / images[0]).unlink()
    assert doctor.data("tiny")[1].startswith("partly there: 2 of 3 files")
    assert cli.main(["data", "--datasets", "tiny"]) == 0 and len(tiny.web.seen) == asked + 1
    assert (tiny.home / images[0]).is_file()


def test_what_is_there_is_neither_fetched_nor_overwritten(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.home.mkdir(parents=True)
    with zipfile.ZipFile(io.BytesIO(tiny.archive)) as file:
        file.extractall(tiny.home)  # by hand, so that nothing remembers it
    own = tiny.home / "VQA_RAD Dataset Public.json"
    own.write_bytes(tiny.annotations.replace(b"Yes", b"yes"))  # as long, and mine
    assert cli.main(["data", "--datasets", "tiny"]) == 1
    said = capsys.readouterr().err
    assert "is there but is not the recorded file" in said and sha(tiny.annotations) in said and "move it away" in said
    assert own.read_bytes() != tiny.annotations and tiny.web.seen == []
    own.write_bytes(tiny.annotations)
    assert cli.main(["data", "--datasets", "tiny"]) == 0 and tiny.web.seen == []
    shutil.rmtree(tiny.home / "VQA_RAD Image Folder")
    (tiny.home / "VQA_RAD Image Folder").mkdir()
    (tiny.home / "VQA_RAD Image Folder" / "a.jpg").write_bytes(b"another")
    assert cli.main(["data", "--datasets", "tiny"]) == 1
    assert "7 bytes, expected" in capsys.readouterr().err
    assert sorted(path.name for path in tiny.home.iterdir()) == sorted(["images.zip", "VQA_RAD Image Folder", own.name])
    shutil.rmtree(tiny.home / "VQA_RAD Image Folder")
    asked = len(tiny.web.seen)
    assert cli.main(["data", "--datasets", "tiny"]) == 0 and len(tiny.web.seen) == asked  # the archive was kept
    assert sorted(path.name for path in tiny.home.iterdir()) == ["VQA_RAD Dataset Public.json", "VQA_RAD Image Folder"]


def test_a_bad_archive_is_set_aside_and_the_rest_of_the_set_stays(tiny: Tiny, capsys) -> None:
    tiny.web.pages["/images.zip"].body = cut = tiny.archive[:-60]
    tiny.manifest["downloads"][1]["bytes"] = len(cut)
    tiny.write()
    assert cli.main(["data", "--datasets", "tiny"]) == 1
    said = capsys.readouterr().err
    assert "images.zip: cut or damaged" in said and "images.zip.rejected" in said and "not fetched: tiny" in said
    assert sorted(path.name for path in tiny.home.iterdir()) == ["VQA_RAD Dataset Public.json", "images.zip.rejected"]


@pytest.mark.parametrize("damage", ["unsafe", "cut"])
def test_a_bad_archive_inside_leaves_nothing(tiny: Tiny, capsys, damage: str) -> None:
    inner = zipped({"a.jpg": BODY, "../up": b"x"} if damage == "unsafe" else {"a.jpg": BODY})
    outer = zipped({"VQA_RAD Image Folder.zip": inner[: len(inner) // 2] if damage == "cut" else inner})
    tiny.web.pages["/images.zip"].body = outer
    tiny.manifest["downloads"][1]["bytes"] = len(outer)
    tiny.write()
    assert cli.main(["data", "--datasets", "tiny"]) == 1
    said = capsys.readouterr().err
    assert f"{tiny.home / 'images.zip'}, VQA_RAD Image Folder.zip in it: " in said and ".unpacking" not in said
    assert ("member '../up' leads out" if damage == "unsafe" else "cut or damaged") in said
    assert sorted(path.name for path in tiny.home.iterdir()) == ["VQA_RAD Dataset Public.json", "images.zip.rejected"]


def test_a_disk_that_fills_up_while_unpacking_leaves_no_staging(tiny: Tiny, capsys, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(archives, "unpack_nested", full)
    assert cli.main(["data", "--datasets", "tiny"]) == 1
    assert "the disk is full" in capsys.readouterr().err
    assert sorted(path.name for path in tiny.home.iterdir()) == ["VQA_RAD Dataset Public.json", "images.zip"]


def test_a_mirror_stands_in_and_one_failure_stops_no_other_set(tiny: Tiny, capsys) -> None:
    gone = {**tiny.manifest, "name": "gone", "folder": "gone"}
    gone["downloads"] = [{**source, "url": tiny.web.root + "/gone"} for source in tiny.manifest["downloads"]]
    (paths.MANIFESTS / "gone.yaml").write_text(yaml.safe_dump(gone), encoding="utf-8")
    first, second = tiny.manifest["downloads"]
    away = {**first, "url": tiny.web.root + "/away"}
    tiny.write(downloads=[{**first, "official": False}, away, second])
    assert cli.main(["data", "--datasets", "gone,tiny"]) == 1
    said = capsys.readouterr()
    assert "HTTP 404" in said.err and "not fetched: gone" in said.err and "tiny" not in said.err.split("not fetched")[1]
    assert "trying another address" in said.out and "[tiny] data check: 8 of 8 ok" in said.out
    assert [path for _, path, _ in tiny.web.seen] == ["/gone", "/away", "/annotations", "/images.zip"]


def test_data_that_is_not_as_recorded_fails(tiny: Tiny, capsys) -> None:
    tiny.write(splits=[{"name": "train", "questions": 5}])
    assert cli.main(["data", "--datasets", "tiny"]) == 1
    said = capsys.readouterr()
    assert "train: questions: changed 1, expected 5" in said.out and "not as recorded: tiny" in said.err


@pytest.mark.parametrize(
    ("level", "why"), [("credentialed", "credentialed data"), ("form", "form"), ("per-article", "bulk")]
)
def test_what_is_not_open_is_explained_and_left_alone(tiny: Tiny, capsys, level: str, why: str) -> None:
    if level == "per-article":
        tiny.write(downloads=[])
    tiny.write(access={"level": level, "steps": ["Make an account.", "Sign the agreement."]})
    assert cli.main(["data", "--datasets", "tiny"]) == 0
    said = capsys.readouterr().out
    head, one, two = re.search(r"(\[tiny .*)\n(  1\. .*)\n(  2\. .*)\n", said).groups()
    assert "SKIPPED" in head and why in head and one == "  1. Make an account." and two == "  2. Sign the agreement."
    assert "make data-check DATASETS=tiny" in said and tiny.web.seen == [] and not tiny.home.parent.exists()
    checked = manifests.check("tiny")
    assert checked["status"].tolist() == ["needs credential" if level == "credentialed" else "missing"]
    assert (level == "credentialed") or "(2) Sign the agreement." in checked["detail"].iloc[0]


def test_of_a_set_by_article_the_lists_come_and_the_images_do_not(tiny: Tiny, capsys) -> None:
    tiny.write(
        access={"level": "per-article", "steps": ["Fetch the images."]}, downloads=tiny.manifest["downloads"][:1]
    )
    for times in (1, 2):  # the second time there is no list left to fetch; the steps are still said
        assert cli.main(["data", "--datasets", "tiny"]) == 0
        said = capsys.readouterr().out
        assert "SKIPPED" in said and "  1. Fetch the images." in said and "data check" not in said
        assert [path.name for path in tiny.home.iterdir()] == ["VQA_RAD Dataset Public.json"]
        assert len(tiny.web.seen) == 1, times


def test_too_small_a_disk_is_said_before_anything_is_fetched(tiny: Tiny, capsys, monkeypatch) -> None:
    del tiny.manifest["downloads"][1]["bytes"]
    tiny.manifest["downloads"][1]["about_bytes"] = 104 * 10**9
    tiny.write()
    other = {**tiny.manifest, "name": "mimic", "folder": "mimic", "downloads": []}
    other["access"] = {"level": "credentialed", "steps": ["Make an account."]}
    (paths.MANIFESTS / "mimic.yaml").write_text(yaml.safe_dump(other), encoding="utf-8")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 0, 50 * 10**9))
    assert cli.main(["data", "--datasets", "tiny"]) == 2
    said = capsys.readouterr()
    assert "104.00 GB" in said.out and "50 GB" in said.out  # the table comes first
    assert said.err.startswith("error: ") and "104.0 GB needed (tiny 104.0 GB), 50.0 GB free" in said.err
    assert tiny.web.seen == [] and not tiny.home.exists()
    assert cli.main(["data", "--datasets", "tiny,mimic"]) == 2
    assert "  1. Make an account." in capsys.readouterr().out  # what is got by hand is said all the same
    assert cli.main(["data", "--datasets", "tiny,mimic", "--dry-run"]) == 0
    said = capsys.readouterr()
    assert "  1. Make an account." in said.out and said.err.startswith("warning: ") and "104.0 GB needed" in said.err
    assert tiny.web.seen == [] and not tiny.home.exists()
    assert doctor.data_of(["tiny"]) == "missing: tiny; make data would fetch 104.0 GB and take 104.0 GB of disk"


def test_two_calls_at_once_fetch_once(tiny: Tiny) -> None:
    for page in ("/annotations", "/images.zip"):
        tiny.web.pages[page].plan = [{"after": 10, "stall": True}]  # long enough for the other to come
    errors: list[BaseException] = []

    def call() -> None:
        try:
            fetch.fetch("tiny")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert errors == [] and set(manifests.check("tiny")["status"]) == {"ok"}
    assert len(tiny.web.asked("/annotations")) == len(tiny.web.asked("/images.zip")) == 2  # one each, and its rest


def test_an_unwritable_root_is_one_line(tiny: Tiny, tmp_path: Path, capsys, monkeypatch) -> None:
    (tmp_path / "a file").touch()
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "a file" / "data"))
    assert cli.main(["data", "--datasets", "tiny"]) == 1
    said = capsys.readouterr().err
    assert "cannot be written" in said and "set DATA_ROOT" in said and "Traceback" not in said
