"""`make data` against a web server on this machine: whole, cut and refused files, archives, credentials."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from amif_lib.app import cli, doctor, weights
from amif_lib.core import paths
from amif_lib.data import check, fetch, manifests
from amif_lib.experiments.run_spec import RunSpec
from tests.conftest import python
from tests.test_pretrained import VIT, write_bert, write_open_clip
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


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def kit(web: Web, home: Path, code: str, *given: str, offline: int = 0, status: int = 0) -> subprocess.CompletedProcess:
    """Code in a process of its own, whose hub is the server: the client reads these settings once, when imported."""
    settings = {"HF_ENDPOINT": web.root, "HF_HUB_OFFLINE": str(offline), "HF_HOME": str(home / "home"), "HF_TOKEN": ""}
    return python("-c", code, *given, status=status, **settings)


def test_a_file_of_the_hub_at_its_commit(tiny: Tiny) -> None:
    """The hub's own client, against the answers that the hub gives (its resolve address with commit and ETag)."""
    tiny.web.headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{sha(tiny.annotations)}"', "Accept-Ranges": "bytes"}
    tiny.web.add(f"/datasets/someone/set/resolve/{COMMIT}/data/all.json", tiny.annotations)
    tiny.change(0, kind="huggingface", url="someone/set", file="data/all.json", revision=COMMIT)
    code = (
        "import sys; from pathlib import Path; from amif_lib.core import paths; from amif_lib.data import fetch\n"
        "paths.MANIFESTS = Path(sys.argv[1]); fetch.fetch('tiny')"
    )
    kit(tiny.web, tiny.home.parent, code, str(paths.MANIFESTS))
    assert tiny.files() == WHOLE and (tiny.home / ANNOTATIONS).read_bytes() == tiny.annotations


def add_repository(web: Web, name: str, files: list[Path]) -> None:
    """A model on the hub: its commit, the list of its files, and the files."""
    listed = [{"type": "file", "path": file.name, "size": file.stat().st_size, "oid": file.name} for file in files]
    web.add(f"/api/models/{name}/revision/main", json.dumps({"id": name, "sha": COMMIT}).encode())
    web.add(f"/api/models/{name}/tree/{COMMIT}", json.dumps(listed).encode())
    for file in files:
        for revision in ("main", COMMIT):
            web.add(f"/{name}/resolve/{revision}/{file.name}", file.read_bytes())


def test_weights_are_fetched_with_the_data_and_then_load_without_the_hub(tiny: Tiny, tmp_path: Path) -> None:
    """The open_clip model names another repository for its text tower's form and its tokenizer, as BiomedCLIP does."""
    clip, web = tmp_path / "clip", tiny.web
    write_open_clip(clip, VIT)
    write_bert(tmp_path / "bert")
    named, config = clip / "open_clip_model.safetensors", clip / "open_clip_config.json"
    config.write_text(config.read_text().replace(f'"{clip}"', '"org/tower"').replace('"here"', '"org/tower"'))
    web.headers = {"X-Repo-Commit": COMMIT}
    for name in ("org/bert", "org/tower"):
        add_repository(web, name, [*(tmp_path / "bert").iterdir()])
    add_repository(web, "org/clip", [named, config])
    names = ["file:no.parquet", str(clip), "open_clip:hf-hub:org/none", "org/bert", "open_clip:hf-hub:org/clip"]
    fetch_all = (
        "import sys; from amif_lib.app import cli, doctor, weights\n"
        "doctor.data_sets, weights.of_scale = lambda scale: [], lambda scale: sys.argv[2:]\n"
        "status = cli.main(['data', '--scale', 'base', *sys.argv[1].split()])\n"
        "assert sys.argv[1] != '--dry-run' or 'torch' not in sys.modules; sys.exit(status)"
    )
    done = kit(web, tmp_path, fetch_all, "--dry-run", *names)
    assert web.seen == [] and all(f"weights {name}" in done.stdout for name in names)
    done = kit(web, tmp_path, fetch_all, "", *names, status=1)
    assert "weights file:no.parquet: read from DATA_ROOT" in done.stdout, done.stderr
    assert re.search("error: open_clip 'hf-hub:org/none' cannot be loaded .*; fetch it where there is", done.stderr)
    assert all(f"weights {name}: here\n" in done.stdout for name in (names[1], *names[3:])), done.stderr
    web.seen.clear()
    load_all = (
        "from amif_lib.methods.amif import teacher_models; from amif_lib.networks import pretrained, tokenizers\n"
        "pretrained.read_state(pretrained.find('org/bert')); tokenizers.load('org/bert')\n"
        "print(teacher_models.load('hf-hub:org/clip').texts(['no effusion']).shape)"
    )
    done = kit(web, tmp_path, load_all, offline=1)
    assert "torch.Size([1, 16])" in done.stdout and web.seen == [], done.stderr


def test_the_weights_of_a_scale_are_those_that_its_runs_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run with a parent reads the decoder alone, and a fine-tuning the teacher only if it starts from it."""
    init = {"image": "org/vit", "text": "open_clip:ViT-B-32/openai", "decoder": "org/unread", "tokenizer": "trained"}
    first = RunSpec(stage="stage1", scale="base", init=init, teacher={"source": "ViT-B-16/openai"})
    unread = {"image": "org/unread", "text": "org/unread", "tokenizer": "org/unread", "decoder": "org/bert"}
    last = RunSpec(stage="finetune", scale="base", parent=first, init=unread, teacher={"source": "hf-clip:org/unread"})
    init = {"image": "teacher", "text": "random", "decoder": "random", "tokenizer": "/a/folder"}
    alone = RunSpec(stage="finetune", scale="base", init=init, teacher={"source": "hf-clip:org/clip"})
    monkeypatch.setattr(doctor, "runs_of", lambda scale: [first, last, alone])
    names = ["/a/folder", "open_clip:ViT-B-16/openai", "open_clip:ViT-B-32/openai", "org/bert", "org/clip", "org/vit"]
    assert weights.of_scale("base") == names
