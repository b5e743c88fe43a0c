"The appendix in a real browser: pages open, links lead somewhere, figures load, a phone suffices."

import functools
import html
import http.server
import json
import re
import shutil
import subprocess
import threading

import pytest
from conftest import command

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
# loads every page into a frame as wide as a phone and tells what it found there
HARNESS = """<!doctype html><body><iframe id=f width=390 height=800></iframe><script>
const open = p => new Promise(done => { f.onload = () => done(f.contentDocument); f.src = p; });
(async () => {
  const found = {}, todo = ["index.html"];
  while (todo.length) {
    const p = todo.pop(); if (found[p]) continue;
    const d = await open(p);
    const hrefs = [...d.querySelectorAll("a[href]")].map(a => a.getAttribute("href"));
    const links = hrefs.filter(h => !/^([a-z]+:|#)/.test(h));
    const broken = [...d.images].filter(i => !i.complete || !i.naturalWidth);
    const anchors = links.filter(h => h.includes("#") && !h.startsWith("files/"));
    const here = anchors.map(h => h.split("#")).filter(([page]) => page === p);
    const loaded = performance.getEntriesByType("resource").map(r => r.name);
    found[p] = {
      title: d.title, wide: d.scrollingElement.scrollWidth, images: d.images.length,
      broken: broken.map(i => i.getAttribute("src").slice(0, 80)),
      lost: here.filter(([, id]) => !d.getElementById(decodeURIComponent(id))),
      links: [...new Set(links.map(h => h.split("#")[0]))],
      outside: loaded.filter(name => !name.startsWith(location.origin)),
    };
    todo.push(...found[p].links.filter(h => h.endsWith(".html")));
  }
  document.body.innerHTML = "<pre id=out></pre>";
  document.getElementById("out").textContent = JSON.stringify(found);
})();
</script></body>"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("appendix") / "site"
    done = command("junkdna", "appendix", "--site", folder)
    assert done.returncode == 0 and "pages" in done.stdout, done.stderr
    return folder


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium is installed")
def test_every_page_in_a_browser(site, tmp_path):
    (site / "harness.html").write_text(HARNESS)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=site)
    asked = []
    handler.func.log_message = lambda self, form, *args: asked.append(args)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        quiet = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
        ]
        done = subprocess.run(
            [
                CHROMIUM,
                *quiet,
                f"--user-data-dir={tmp_path / 'profile'}",
                "--virtual-time-budget=120000",
                "--dump-dom",
                f"http://127.0.0.1:{server.server_port}/harness.html",
            ],
            capture_output=True,
            text=True,
            timeout=240,
        )
        server.shutdown()
    told = re.search(r'<pre id="out">(.*)</pre>', done.stdout, re.S)
    assert told, done.stdout[-500:] + done.stderr[-2000:]
    found = json.loads(html.unescape(told[1]))
    pages = {p.name for p in site.glob("*.html")} - {"harness.html"}
    assert set(found) == pages and len(pages) > 25
    for name, page in found.items():
        assert (
            page["title"]
            and not page["title"].startswith("untitled")
            and not page["broken"]
            and not page["lost"]
            and not page["outside"]
        ), (name, page)
        assert page["wide"] <= 390, (name, page["wide"])
        for link in page["links"]:
            assert (site / link).is_file(), (name, link)
    assert sum(page["images"] for page in found.values()) >= 8


def test_links_lead_to_pages(site):
    text = (site / "index.html").read_text()
    assert "Results" in text
    for page in site.glob("*.html"):
        for link in re.findall(r'<a\b[^>]*?\bhref="([^"#]+)', page.read_text()):
            assert re.match("[a-z]+:", link) or (site / link).is_file(), (page.name, link)
