"""The report in a real browser: Chromium, headless, without a network."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from front.front import Front
from front.report import write_report
from front.tables import with_error
from tests.support.browser import open_page

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module", name="page")
def _page(browser, finished_run):
    with open_page(browser, (finished_run / "report.html").resolve().as_uri()) as page:
        yield page


def chosen(page):
    return page.inner_text("#chosen .chosen-head b")


def pictures(page):
    return page.eval_on_selector_all("#pictures img", "images => images.map(i => i.src)")


def test_moving_the_slider_chooses_as_python_does_and_changes_pictures_and_numbers(
    page, finished_run
):
    front = Front.load(finished_run)
    seen = {}
    for step in (0, 150, 300, 500, 700, 850, 1000):
        page.fill("#preference", str(step))
        expected = front.pick(weights=(1 - step / 1000, step / 1000)).id
        assert chosen(page) == ("base model" if expected == "base" else expected)
        assert page.inner_text("#share-1") == f"{step / 10:.0f} %"
        seen[expected] = (tuple(pictures(page)), page.inner_text("#chosen .measures"))
    assert len(seen) > 1
    assert len({shown for shown, _ in seen.values()}) == len(seen)
    assert len({numbers for _, numbers in seen.values()}) == len(seen)
    base_rows = {shown[::2] for shown, _ in seen.values()}
    assert len(base_rows) == 1  # the base model's pictures stay


def test_the_numbers_shown_are_the_published_ones(page, finished_run):
    policy = Front.load(finished_run).policies[0]
    page.click(f'tr[data-policy="{policy.id}"] th')
    text = page.inner_text("#chosen .measures").replace("−", "-")
    for value, error in zip(policy.report_returns, policy.report_std_error, strict=True):
        assert with_error(value, error) in text


def test_a_click_on_a_point_chooses_it_everywhere(page, finished_run):
    for policy in Front.load(finished_run).policies:
        page.click(f'#front-chart [data-id="{policy.id}"]', force=True)
        shown = chosen(page).replace("base model", "base")
        assert shown == page.get_attribute("tr.is-selected", "data-policy")
        assert page.inner_text("#pictures-of").replace("base model", "base") == shown


def test_hovering_shows_pictures_returns_and_weights(page):
    page.hover("#front-chart [data-id] >> nth=0", force=True)
    assert page.is_visible("#tip")
    assert page.locator("#tip img").count() == 4
    assert page.locator("#tip dd").count() == 2
    assert "%" in page.get_attribute("#tip .weights", "aria-label")
    page.mouse.move(1, 1)
    assert not page.is_visible("#tip")


def test_arrow_keys_walk_along_the_front(page, finished_run):
    policies = [policy.id for policy in Front.load(finished_run).policies]
    page.focus('#front-chart [tabindex="0"]')
    page.keyboard.press("Home")
    walked = []
    for _ in policies:
        walked.append(chosen(page).replace("base model", "base"))
        page.keyboard.press("ArrowRight")
    assert walked == policies
    page.keyboard.press("Home")
    assert page.evaluate("document.activeElement.dataset.id") == policies[0]


def test_scrubbing_shows_the_policies_found_up_to_a_generation(page, finished_run):
    search = json.loads((finished_run / "search.json").read_text())
    for step in (0, 1, 2, 3):
        page.fill("#generation", str(step))
        dots = page.locator("#search-chart [data-id]").count()
        assert dots == 1 + 3 * step
    assert "generation 2, evolutionary" in page.inner_text("#generation-label")
    last = search["generations"][-1]["offspring"][0]
    page.click(f'#search-chart [data-id="{last["policy"]}"]', force=True)
    names = page.locator("#ancestry b").all_inner_texts()
    assert names[0] == "base model"
    assert len(names) == page.locator("#ancestry li").count() >= 2


def test_playing_runs_through_the_generations(page):
    page.click("#play")
    assert page.get_attribute("#play", "aria-label") == "Pause"
    page.click("#play")
    assert page.get_attribute("#play", "aria-label") == "Play the generations"


def test_the_theme_follows_the_system_and_can_be_switched(page):
    background = "getComputedStyle(document.body).backgroundColor"
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate(background)
    page.emulate_media(color_scheme="light")
    light = page.evaluate(background)
    assert dark != light
    page.click("#theme")
    assert page.evaluate(background) == dark
    page.click("#theme")
    assert page.evaluate(background) == light


def test_nothing_sticks_out_on_a_phone(page):
    page.set_viewport_size({"width": 360, "height": 740})
    page.wait_for_timeout(200)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    slider, below = (page.locator(name).bounding_box() for name in ("#preference", "#pictures"))
    assert slider["width"] > 250
    assert slider["y"] < below["y"]
    page.set_viewport_size({"width": 1280, "height": 900})


def test_charts_have_named_axes_with_units_and_error_bars(page):
    text = page.inner_text("#front-chart")
    assert "colorfulness [Hasler-Suesstrunk M]" in text
    assert "jpeg_compressibility [-kB]" in text
    assert page.locator("#front-chart g[aria-label='rule'] line").count() >= 4
    assert page.locator("#predictions figure svg").count() == 2


def test_markup_in_prompts_is_text_in_the_browser(browser, run_copy):
    evil = "</script><img src=x onerror=\"document.title='owned'\">"
    for name in ("front.json", "search.json"):
        record = json.loads((run_copy / name).read_text())
        record["samples"]["prompts"] = [evil] * 8
        (run_copy / name).write_text(json.dumps(record))
    with open_page(browser, write_report(run_copy).resolve().as_uri()) as page:
        assert page.locator("#pictures figcaption >> nth=0").inner_text() == evil
        assert page.locator("img[src='x']").count() == 0
        assert page.title() != "owned"


def test_blends_that_were_measured_are_on_the_slider(browser, run_copy):
    first, second = Front.load(run_copy).policies[:2]
    blend = {
        "id": "blend-1",
        "parts": [
            {"policy": first.id, "coefficient": 0.25},
            {"policy": second.id, "coefficient": 0.75},
        ],
        "weights": [0.5, 0.5],
        "report_returns": np.maximum(first.report_returns, second.report_returns).tolist(),
        "report_std_error": [0.1, 0.1],
    }
    record = json.loads((run_copy / "front.json").read_text())
    (run_copy / "front.json").write_text(json.dumps({**record, "blends": [blend]}))
    samples = run_copy / "samples" / "report"
    shutil.copy(samples / f"{second.id}.webp", samples / "blend-1.webp")
    front = Front.load(run_copy)
    with open_page(browser, write_report(run_copy).resolve().as_uri()) as page:
        seen = set()
        for step in range(0, 1001, 20):
            page.fill("#preference", str(step))
            expected = front.pick((1 - step / 1000, step / 1000), with_blends=True).id
            assert chosen(page).replace("base model", "base") == expected
            seen.add(expected)
        assert "blend-1" in seen
        page.click('tr[data-policy="blend-1"] button')
        assert page.inner_text("#chosen .tag") == f"blend of {first.id} 25 % and {second.id} 75 %"
        assert len(pictures(page)) == 16
        assert page.inner_text("#ancestry-of") == "blend-1 (of its largest part)"
        assert page.locator("#ancestry b").last.inner_text() == second.id


def test_three_objectives_have_a_slider_each_and_axes_to_choose(browser, make_run):
    run = make_run(
        "three",
        "rewards.names=colorfulness,jpeg_compressibility,jpeg_incompressibility",
        "evolution.evolutionary_generations=1",
    )
    front = Front.load(run)
    with open_page(browser, (run / "report.html").resolve().as_uri()) as page:
        page.fill("#preference-0", "800")
        page.fill("#preference-1", "100")
        shares = page.eval_on_selector_all(
            "#sliders input", "sliders => sliders.map(s => Number(s.value) / 1000)"
        )
        assert sum(shares) == pytest.approx(1, abs=2e-3)
        assert shares[1] == 0.1
        assert shares[0] / shares[2] == pytest.approx(0.8 / 0.1, rel=0.02)
        for k in range(3):
            page.fill(f"#preference-{k}", "1000")
            expected = front.pick(weights=np.eye(3)[k]).id
            assert chosen(page).replace("base model", "base") == expected
        page.select_option("#axis-y", "2")
        assert "jpeg_incompressibility [kB]" in page.inner_text("#front-chart")
