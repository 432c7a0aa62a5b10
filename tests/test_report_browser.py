"""The report in a real browser: everything loads, nothing is logged, every link resolves, a phone shows it whole."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from urllib.parse import unquote

import pytest

from amif_lib.core import paths
from amif_lib.reporting import report
from tests import fabricated

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium found (Debian: apt install chromium)")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--allow-file-access-from-files"]
FLAGS += ["--virtual-time-budget=10000", "--hide-scrollbars", "--enable-logging=stderr", "--dump-dom"]
# The page has no script, so a frame of a given width around it is measured from outside; its details are opened first.
FRAME = """<!DOCTYPE html><html><body style="margin:0">
<iframe id="f" src="{page}" style="border:0;width:{width}px;height:900px"></iframe><pre id="out"></pre><script>
window.onload = () => {{
  const inside = document.getElementById("f").contentDocument, root = inside.documentElement;
  inside.querySelectorAll("details").forEach(part => part.open = true);
  document.getElementById("out").textContent = JSON.stringify({{
    width: root.clientWidth, needed: root.scrollWidth, letters: parseFloat(getComputedStyle(inside.body).fontSize),
    images: [...inside.images].map(image => image.complete && image.naturalWidth > 0),
    wide: [...inside.querySelectorAll(".scroll")].filter(box => box.scrollWidth > box.clientWidth).length,
    links: [...inside.links].map(link => link.getAttribute("href")),
    ids: [...inside.querySelectorAll("[id]")].map(one => one.id),
  }});
}};
</script></body></html>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
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


@pytest.mark.parametrize("width", [1280, 360])
def test_page_in_the_browser(page, tmp_path, width):
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME.format(page=page.as_uri(), width=width), encoding="utf-8")
    command = [BROWSER, *FLAGS, f"--user-data-dir={tmp_path}", f"--window-size={max(width, 500)},900", frame.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=90, check=True)
    seen = json.loads(unescape(re.search(r'<pre id="out">(.+?)</pre>', done.stdout, re.DOTALL).group(1)))
    assert "CONSOLE" not in done.stderr
    assert seen["width"] == width >= seen["needed"] and seen["letters"] >= 14  # wide tables scroll in their boxes
    assert seen["wide"] > 0 or width > 1000
    assert len(seen["images"]) >= 3 and all(seen["images"])
    for link in seen["links"]:
        assert link[1:] in seen["ids"] if link.startswith("#") else (page.parent / unquote(link)).exists(), link
