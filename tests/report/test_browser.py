"""The page in a browser: no error, no request, cards can be found and opened, the map follows its choices."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report_tools import NASTY, fitted, write_items

from mfdmc_fast.report import write_report

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (BROWSER and DRIVER), reason="no Chromium with chromedriver is installed")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A browser on the page of a model with metadata."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    folder = tmp_path_factory.mktemp("browser")
    model, test = fitted()
    out = folder / "report.html"
    write_report(model, out, items=write_items(folder / "items.csv", model), test=test)
    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for flag in (
        *("headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync"),
        *("disable-background-networking", "disable-component-update", "disable-dev-shm-usage"),
        "force-prefers-reduced-motion",  # no click while the page still scrolls
        f"user-data-dir={folder / 'profile'}",
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    try:
        driver.get("about:blank")
        driver.get_log("performance")  # of the browser's own first page
        driver.get(Path(out).as_uri())
        yield driver
    finally:
        driver.quit()


def visible_cards(browser: Any) -> list[Any]:
    return [card for card in browser.find_elements("css selector", ".card") if card.is_displayed()]


def fill(browser: Any, name: str, value: str) -> None:
    """Set a field as a person would leave it, and tell the page."""
    script = (
        "const e = document.getElementById(arguments[0]); e.value = arguments[1]; e.dispatchEvent(new Event('input'))"
    )
    browser.execute_script(script, name, value)


def test_no_console_message_and_no_request(browser: Any) -> None:
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert asked
    # the page itself, its empty icon, and pages of the browser's own
    assert [url for url in asked if not url.startswith(("file://", "data:", "chrome://", "about:"))] == []
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0


def test_cards_are_filtered_and_opened(browser: Any) -> None:
    every = len(browser.find_elements("css selector", ".card"))
    assert browser.find_element("id", "shown").text == f"{every} clusters"
    fill(browser, "side", "item")
    fill(browser, "view", "1")
    shown = visible_cards(browser)
    assert 0 < len(shown) < every
    assert {card.get_attribute("data-side") for card in shown} == {"item"}
    assert {card.get_attribute("data-view") for card in shown} == {"1"}
    assert browser.find_element("id", "shown").text == f"{len(shown)} cluster{'s' if len(shown) > 1 else ''}"
    members = shown[0].find_element("css selector", ".members")
    assert not members.is_displayed()
    shown[0].find_element("css selector", "summary").click()
    assert members.is_displayed()
    fill(browser, "view", "")
    browser.find_element("id", "search").send_keys("zürich")
    found = visible_cards(browser)
    assert found
    assert all(NASTY in card.get_attribute("textContent") for card in found)
    browser.find_element("id", "search").send_keys(" no such word")
    assert visible_cards(browser) == []
    assert browser.find_element("id", "none").is_displayed()
    for field in ("search", "side"):
        fill(browser, field, "")
    fill(browser, "order", "usage")
    usage = [float(card.get_attribute("data-usage")) for card in visible_cards(browser)]
    assert usage == sorted(usage, reverse=True)
    browser.find_element("id", "more").click()
    assert len(visible_cards(browser)) == every
    assert browser.get_log("browser") == []


def test_a_card_opens_by_keyboard(browser: Any) -> None:
    card = visible_cards(browser)[-1]
    browser.execute_script("arguments[0].focus()", card.find_element("css selector", "summary"))
    browser.switch_to.active_element.send_keys("\ue007")
    assert card.get_attribute("open") is not None


def test_the_map_follows_its_choices(browser: Any) -> None:
    before = len(browser.find_elements("css selector", "#map-svg circle"))
    assert before == 90
    fill(browser, "map-side", "user")
    fill(browser, "map-view", "2")
    assert len(browser.find_elements("css selector", "#map-svg circle")) == 120
    assert "view 2" in browser.find_element("id", "map-svg").get_attribute("aria-label")
    legend = browser.find_elements("css selector", "#map-legend li")
    assert len(legend) == len(browser.find_elements("css selector", "#map-svg rect"))
    show = "arguments[0].dispatchEvent(new PointerEvent('pointerover', {bubbles: true}))"
    browser.execute_script(show, browser.find_element("css selector", "#map-svg rect"))
    assert browser.find_element("id", "map-tip").text.startswith("cluster ")
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_window(browser: Any, width: int) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
