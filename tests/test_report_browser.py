"""The report in a real browser: everything loads, nothing is logged, every link resolves, a phone shows it whole."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from html import unescape
from pathlib import Path
from urllib.parse import unquote

import matplotlib
import pytest

from amif_lib.core import paths
from amif_lib.reporting import report
from tests import fabricated

matplotlib.use("Agg")

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium found (Debian: apt install chromium)")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--allow-file-access-from-files", "--virtual-time-budget=10000", "--hide-scrollbars"]
# The page has no script, so a frame of a given width around it is measured from outside; its details are opened first.
FRAME = """<!DOCTYPE html><html><body style="margin:0"><iframe id="f" src="{page}" style="border:0;width:{width}px;height:900px">
</iframe><pre id="out"></pre><script>
window.onload = () => {{
  const inside = document.getElementById("f").contentDocument, root = inside.documentElement;
  const closed = root.scrollWidth;
  inside.querySelectorAll("details").forEach(part => part.open = true);
  const images = [...inside.images];
  document.getElementById("out").textContent = JSON.stringify({{
    width: root.clientWidth, closed: closed, open: root.scrollWidth, title: inside.title,
    images: images.map(image => [image.complete, image.naturalWidth, image.getBoundingClientRect().width]),
    letters: getComputedStyle(inside.body).fontSize,
    wide: [...inside.querySelectorAll(".scroll")].filter(box => box.scrollWidth > box.clientWidth).length,
    links: [...inside.links].map(link => link.getAttribute("href")),
    ids: [...inside.querySelectorAll("[id]")].map(one => one.id),
  }});
}};
</script></body></html>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    """A report over two question sets and two tables, in a folder whose name has spaces."""
    with pytest.MonkeyPatch.context() as patch:
        sets = ("phantom_vqa_rad", "phantom_slake")
        fabricated.install(patch, tmp_path_factory.mktemp("a folder with spaces"), sets)
        fabricated.write_table("table1", "demo", {"demo": (7,), "published3064": (1,)})
        fabricated.write_table("table4", "demo", {"1": (5, 6), "3": (5,), "4": (4, 5), "5": (6,), "6": (7,)})
        jobs = [{"rule": "table", "name": name} for name in ("table1", "table4")]
        paths.plan("demo").parent.mkdir(parents=True)
        paths.plan("demo").write_text(json.dumps({"selection": {}, "jobs": jobs}), encoding="utf-8")
        yield report.write("demo")


def browse(url: str, folder: Path, *more: str) -> tuple[str, str]:
    """The page as the browser has it in the end, and what it logged."""
    command = [str(BROWSER), *FLAGS, f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr", *more, url]
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8", start_new_session=True
    )
    try:
        out, log = child.communicate(timeout=90)
    finally:  # with the processes that it started
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    assert child.returncode == 0, log[-2000:]
    return out, log


@pytest.fixture(scope="module")
def seen(page, tmp_path_factory) -> dict[int, tuple[dict, str]]:
    """What the browser says of the page at desktop and at phone width, and its console."""
    out = {}
    for width in (1280, 360):
        folder = tmp_path_factory.mktemp(f"browser{width}")
        frame = folder / "frame.html"
        frame.write_text(FRAME.format(page=page.as_uri(), width=width), encoding="utf-8")
        dom, log = browse(frame.as_uri(), folder, "--dump-dom", f"--window-size={max(width, 500)},900")
        found = re.search(r'<pre id="out">(.*?)</pre>', dom, re.DOTALL)
        assert found and found.group(1), "the page did not load"
        out[width] = json.loads(unescape(found.group(1))), log
    return out


@pytest.mark.parametrize("width", [1280, 360])
def test_page_in_the_browser(page, seen, width):
    measured, log = seen[width]
    assert measured["title"] == "AMiF Kit, demo: reproduction report" and measured["width"] == width
    assert not re.findall(r".*CONSOLE.*", log), log
    assert len(measured["images"]) >= 3
    assert all(complete and natural > 0 and shown > 0 for complete, natural, shown in measured["images"])
    for link in measured["links"]:
        if link.startswith("#"):
            assert link[1:] in measured["ids"], link
        else:
            assert (page.parent / unquote(link)).exists(), link


def test_a_phone_scrolls_wide_tables_in_their_boxes_and_never_the_page(seen):
    measured, _ = seen[360]
    assert measured["closed"] <= 360 and measured["open"] <= 360
    assert measured["wide"] > 0  # there is something to scroll, inside its box
    assert float(measured["letters"].removesuffix("px")) >= 14


def test_a_console_error_would_be_seen(tmp_path):
    """The check above can fail: a page that logs an error is caught by the same means."""
    bad = tmp_path / "bad.html"
    bad.write_text("<script>console.error('broken')</script><img src='nothing.png'>", encoding="utf-8")
    _, log = browse(bad.as_uri(), tmp_path, "--dump-dom")
    assert re.search(r"CONSOLE.*broken", log)
