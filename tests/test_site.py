"The site in a real browser: pages, links, search, records, curves; on a phone, without a network."

import functools
import http.server
import re
import shlex
import shutil
import threading
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest
from conftest import command

from junkdna_nb.base.config import StudyError
from junkdna_nb.base.experiments import get_experiment
from junkdna_nb.base.records import load_record
from junkdna_nb.machinery.browse import command_of
from junkdna_nb.machinery.cli import parse_params
from junkdna_nb.machinery.site import build

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
QUIET = "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update"
QUIET += " --disable-sync --no-first-run"
PHONE = dict(width=390, height=844)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("appendix") / "site"
    done = command("junkdna", "appendix", "--site", folder)
    assert done.returncode == 0 and "pages" in done.stdout, done.stderr
    return folder


class Read(HTMLParser):
    "Links, what a page loads, and the names of its places"

    def __init__(self, path):
        super().__init__()
        self.links, self.loads, self.places = [], [], set()
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.places.add(attrs.get("id"))
        if tag == "a" and attrs.get("href"):
            self.links.append(attrs["href"])
        loaded = attrs.get("rel") in ("stylesheet", "preload", "icon")
        if "src" in attrs or loaded:
            self.loads.append(attrs.get("src") or attrs["href"])


@pytest.fixture(scope="module")
def pages(site):
    "name -> what was read of a page"
    return {p.name: Read(p) for p in sorted(site.glob("*.html"))}


def inside(address):
    return not re.match(r"[a-z]+:|//", address)


def test_links_and_files_are_there(site, pages):
    assert len(pages) > 50
    for name, page in pages.items():
        for link in filter(inside, page.links):
            file, _, place = link.partition("#")
            target = pages.get(file or name)
            assert target or (site / unquote(file)).is_file(), (name, link)
            assert not (place and target) or unquote(place) in target.places, (name, link)
        for file in page.loads:
            local = inside(file) and (site / unquote(file.partition("?")[0])).is_file()
            assert local or file.startswith("data:"), (name, file)
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", sheet.read_text()), sheet


def test_reading_order_and_what_is_shown(site, pages):
    name, order = "index.html", []
    while name:
        order.append(name)
        after = re.search(r'<link rel="next"[^>]* href="([^"]+)"', (site / name).read_text())
        name = after and after[1]
    chapters = ["01_", "02_", "09_", "records", "explorer", "10_", "reference_base", "20_"]
    places = [next(i for i, p in enumerate(order) if p.startswith(c)) for c in chapters]
    assert places == sorted(places) and order[-1] == "changelog.html"
    # code is folded in the paper and shown in the package
    paper, library = ((site / n).read_text() for n in ("09_difficulty.html", "23_pruning.html"))
    assert (
        paper.count('class="admonition hide above-input"')
        > 10
        > library.count('class="admonition hide above-input"')
    )
    for text in (paper, library):
        assert "#| " not in text and "nbdev_export" not in text
    # an executed run is listed under its experiment, with the links it was stored with
    run = next(p for p in order if p.startswith("movie-minilm-sparse"))
    assert order.index(run) == order.index("02_glue.html") + 1
    assert "30_modes.html" in pages[run].links


def test_what_goes_wrong_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(StudyError, match="not installed: run make appendix"):
        build(tmp_path / "site")
    assert not list(tmp_path.iterdir())


def test_a_command_asks_for_its_record(committed):
    paths = sorted(committed.glob("*/*.json"))
    assert len(paths) > 500
    for path in paths:
        record = load_record(path)
        cls = get_experiment(record["experiment"])
        name, words = shlex.split(command_of(record))[2:3], shlex.split(command_of(record))[3:]
        asked, meant = parse_params(cls, words)[0], cls.make(**record["config"])
        assert name == [cls.experiment] and asked.canonical() == meant.canonical(), path.name


@pytest.fixture(scope="module")
def address(site):
    "Where the site is served"
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=site)
    handler.func.log_message = lambda *args: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM:
        pytest.skip("no Chromium is installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET.split())
        yield chromium
        chromium.close()


class Tab:
    "A tab that reaches the site and nothing else, and notes what goes wrong"

    def __init__(self, browser, address, **how):
        self.address, self.faults = address, []
        self.page = browser.new_page(**how)
        self.page.set_default_timeout(30_000)
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda e: self.faults.append(str(e)))
        self.page.route(lambda url: not url.startswith((address, "data:", "blob:")), self._refuse)

    def _said(self, message):
        if message.type in ("error", "warning"):
            self.faults.append(message.text)

    def _refuse(self, route):
        self.faults.append(f"asked for {route.request.url}")
        route.abort()

    def open(self, name):
        self.page.goto(self.address + name)
        return self.page


@pytest.fixture
def tab(browser, address):
    tab = Tab(browser, address, viewport=dict(width=1280, height=900))
    yield tab
    tab.page.close()
    assert not tab.faults, tab.faults


FOUND = """() => ({
  title: document.title,
  wide: document.documentElement.scrollWidth,
  lost: [...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.src),
  images: document.images.length,
  formulas: [...document.querySelectorAll("math")].map(m => m.getBoundingClientRect().width),
})"""


def test_every_page_on_a_phone(browser, address, pages):
    tab = Tab(browser, address, viewport=PHONE)
    images, formulas = 0, 0
    for name in pages:
        found = tab.open(name).evaluate(FOUND)
        assert found["title"] and not found["lost"] and not tab.faults, (name, found, tab.faults)
        assert found["wide"] <= PHONE["width"], (name, found["wide"])
        assert all(width > 0 for width in found["formulas"]), name
        images, formulas = images + found["images"], formulas + len(found["formulas"])
    tab.page.close()
    assert images > 50 and formulas > 100


def test_search_finds_wanda(tab):
    page = tab.open("search.html?q=Wanda")
    page.wait_for_selector("#search-results a[href^='23_pruning.html']")


def test_records_are_filtered_and_sorted(tab):
    page = tab.open("records.html")
    info = page.locator(".dt-info")
    info.wait_for()
    total = int(re.search(r"of ([\d,]+) entries", info.inner_text())[1].replace(",", ""))
    assert total > 500
    page.get_by_placeholder("condition").first.press_sequentially("wanda")
    page.wait_for_function("document.querySelector('.dt-info').innerText.includes('filtered')")
    rows = page.locator("#records tbody tr").all_inner_texts()
    assert rows and all("wanda" in row for row in rows)
    page.locator(".dt-scroll-head th:has([placeholder=score]) .dt-column-order").click()
    at = page.locator(".dt-scroll-head input").evaluate_all("x => x.map(i => i.placeholder)")
    column = f"#records tbody td:nth-child({at.index('score') + 1})"
    scores = [float(score) for score in page.locator(column).all_inner_texts()]
    assert scores == sorted(scores) and scores[0] < scores[-1]
    assert all(re.search(r"junkdna run \w+ .*method=wanda.*\t[0-9a-f]{12}$", r) for r in rows)


SHOWN = "document.querySelector('#curves svg.marks').innerHTML"


def test_explorer_is_drawn_again(tab):
    page = tab.open("explorer.html")
    drawn = page.locator("#curves svg.marks")
    drawn.wait_for()
    before = drawn.inner_html()
    assert "sparse, magnitude" in before
    page.locator("select[name=mode]").select_option("quantized")
    page.locator("select[name=method]").select_option("wanda")  # which rounds nothing
    page.wait_for_function(f"{SHOWN}.includes('no such runs')")
    page.locator("select[name=method]").select_option("all")
    page.locator("select[name=task]").select_option("sst2, minilm")
    page.wait_for_function(f"{SHOWN}.includes('quantized, rtn') && !{SHOWN}.includes('no such')")
    page.locator("select[name=unit]").select_option("drop (share of dense)")
    page.locator("select[name=method]").select_option("rtn")
    assert drawn.inner_html() != before


def test_dark_and_light(browser, address):
    for scheme in ("dark", "light"):
        tab = Tab(browser, address, color_scheme=scheme)
        page = tab.open("index.html")
        assert page.locator("html").get_attribute("data-theme") == scheme
        page.close()
