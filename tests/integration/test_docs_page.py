"""The documentation page in a real browser: payloads are tried, and scored by the samples."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait

from tests.engine import ROOT, environment_for, facade_process, worker_process
from tests.kafka_server import MakeTopics, free_ports

KINDS = ("requests", "results", "replies", "dead_letters")
DIGIT = ROOT / "samples" / "keras_mnist" / "data" / "mnist_0_10.png"
QUALITIES = [5.370157819225251, 5.535714285714286, 5.760869565217392]
KEY = "the-key-of-the-page"
PATIENCE = 30.0


class Page:
    """``/api/docs`` of a facade, open in a browser."""

    def __init__(self, browser: webdriver.Chrome, port: int, key: str | None = None) -> None:
        self.browser = browser
        self.site = f"http://127.0.0.1:{port}/"
        # As whoever is asked for a name and a password gives them.
        self._address = self.site if key is None else f"http://anybody:{key}@127.0.0.1:{port}/"
        self.open()

    def open(self) -> None:
        """Load it, and show what there is about scoring."""
        self.browser.get(f"{self._address}api/docs")
        self.find("#operations-default-post_predict .opblock-summary-control").click()
        self.find(".opblock-description")

    def find(self, selector: str) -> WebElement:
        """The first element of this kind, once it is there."""
        found = WebDriverWait(self.browser, PATIENCE).until(
            lambda browser: browser.find_elements(By.CSS_SELECTOR, selector)
        )
        return found[0]

    @property
    def about(self) -> str:
        return self.find(".info .description").text

    @property
    def types(self) -> list[str]:
        """The media types that a payload may be sent as."""
        return [option.text for option in Select(self.find("select.content-type")).options]

    def try_out(self) -> None:
        self.find(".try-out__btn").click()

    def authorize(self, key: str) -> None:
        """Give the page the key to send with what is tried."""
        self.find(".btn.authorize").click()
        self.find(".auth-container input").send_keys(key)
        self.find(".modal-btn.authorize").click()
        self.find(".btn-done").click()

    def execute(self) -> tuple[int, Any]:
        """Send it, and read the status and the body that came back."""
        self.find(".execute").click()
        answer = self.find(".live-responses-table .response")
        status = answer.find_element(By.CSS_SELECTOR, ".response-col_status").text
        body = answer.find_element(By.CSS_SELECTOR, ".highlight-code pre").text
        return int(status), json.loads(body)

    def complaints(self) -> list[str]:
        """What the browser did not like, such as a breach of the policy."""
        return [entry["message"] for entry in self._log("browser")]

    def loaded(self) -> set[str]:
        """The addresses that were asked for, but for data that is in the page itself."""
        events = [json.loads(entry["message"]) for entry in self._log("performance")]
        asked = {
            event["message"]["params"]["request"]["url"]
            for event in events
            if event["message"]["method"] == "Network.requestWillBeSent"
        }
        return {address for address in asked if not address.startswith("data:")}

    def save_picture(self, path: Path) -> None:
        """The page from its top down to what came back; docs/api-docs.png is one."""
        answer = self.find(".live-responses-table").rect
        width = answer["x"] + answer["width"] + 40
        clip = {"x": 0, "y": 0, "width": width, "height": answer["y"] + answer["height"]}
        taken = self.browser.execute_cdp_cmd(
            "Page.captureScreenshot",
            {"captureBeyondViewport": True, "clip": {**clip, "scale": 1}},
        )
        path.write_bytes(base64.b64decode(taken["data"]))

    def _log(self, kind: str) -> list[dict[str, str]]:
        entries: list[dict[str, str]] = self.browser.get_log(kind)  # type: ignore[no-untyped-call]
        return entries


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("needs a browser: chromium and chromedriver (chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in (
        "--headless=new",
        "--no-sandbox",  # there is none for root, nor in most containers; it opens only our page
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--disable-component-update",
        # Whatever the page would load from elsewhere is not found.
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        "--window-size=1000,1600",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    chrome = webdriver.Chrome(options, webdriver.ChromeService(driver))
    try:
        yield chrome
    finally:
        chrome.quit()


@contextmanager
def deployed(sample: str, kafka: str, topics: MakeTopics, folder: Path) -> Iterator[int]:
    """A worker and a facade with a sample's conf; the facade's port."""
    names = dict(zip(KINDS, topics(4, *KINDS), strict=True))
    group = {"group": names["requests"]}
    environment = environment_for(kafka, names, worker=group) | {
        "SCORER_CONF": f"samples/{sample}/conf.yaml"
    }
    (port,) = free_ports(1)
    with (
        worker_process(folder, "worker", environment),
        facade_process(folder, "facade", environment, port),
    ):
        yield port


def test_the_wine_example_is_scored_from_the_button(
    browser: webdriver.Chrome, kafka: str, topics: MakeTopics, tmp_path: Path
) -> None:
    with deployed("sklearn_wine", kafka, topics, tmp_path) as port:
        page = Page(browser, port)
        assert "Model: not known yet" in page.about
        assert page.types == ["application/json", "application/octet-stream"]
        page.try_out()
        assert page.execute() == (200, QUALITIES)
        page.open()
        assert "Model: file:samples/sklearn_wine/model; version=" in page.about
        assert "Accepted types: application/json" in page.about
        assert page.types == ["application/json"]
        page.try_out()
        assert page.execute() == (200, QUALITIES)
        page.save_picture(tmp_path / "api-docs.png")
        assert page.complaints() == []
        assert {address for address in page.loaded() if not address.startswith(page.site)} == set()


def test_a_picture_of_a_digit_is_uploaded_and_told(
    browser: webdriver.Chrome, kafka: str, topics: MakeTopics, tmp_path: Path
) -> None:
    with deployed("keras_mnist", kafka, topics, tmp_path) as port:
        page = Page(browser, port)
        assert page.types == ["image/png", "application/octet-stream"]
        page.try_out()
        page.find("input[type=file]").send_keys(str(DIGIT))
        status, ((*probabilities,),) = page.execute()
        assert (status, len(probabilities)) == (200, 10)
        assert max(probabilities) == probabilities[0]
        assert "Content-Type: image/png" in page.find(".curl").text
        page.open()
        assert page.types == [
            *("image/png", "image/jpeg", "application/octet-stream", "application/json"),
        ]
        assert page.complaints() == []
        assert {address for address in page.loaded() if not address.startswith(page.site)} == set()


def test_where_there_are_keys_a_password_shows_the_page_and_the_button_takes_the_key(
    browser: webdriver.Chrome, kafka: str, topics: MakeTopics, tmp_path: Path
) -> None:
    names = dict(zip(KINDS, topics(4, *KINDS), strict=True))
    environment = environment_for(kafka, names) | {
        "SCORER_CONF": "samples/sklearn_wine/conf.yaml",
        "SCORER_FACADE_API_KEYS": f"[{KEY}]",
        "SCORER_FACADE_TIMEOUT": "2",
    }
    (port,) = free_ports(1)
    with facade_process(tmp_path, "facade", environment, port):
        browser.get(f"http://127.0.0.1:{port}/api/docs")
        assert not browser.find_elements(By.CSS_SELECTOR, ".info")
        page = Page(browser, port, KEY)
        page.authorize(KEY)
        page.try_out()
        # Nobody scores here.
        assert page.execute()[0] == 504
