"""The report: whole, true to the run's records, and nothing in it that the run did not write."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from front import report
from front.front import Front
from front.labels import measured
from front.member import Guard, GuardValue
from front.report import ReportError, RunFiles, report_data, write_report
from front.verdict import losses
from mo_front import main
from morl.indicators import hypervolume
from morl.objectives import to_z
from morl.types import Objective
from run.records import RecordError
from run.samples import read_samples


class Page(HTMLParser):
    """Elements with their attributes, and the texts of scripts."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.scripts, self._in_script = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._in_script = tag == "script"
        if self._in_script:
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._in_script &= tag != "script"

    def handle_data(self, data):
        if self._in_script:
            self.scripts[-1] += data

    @property
    def payload(self):
        return json.loads(self.scripts[0])


def build(run):
    return Page(write_report(run).read_text())


def edit(path, change):
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def test_a_finished_run_has_its_report(finished_run):
    page = Page((finished_run / "report.html").read_text())
    front = Front.load(finished_run)
    assert [member["id"] for member in page.payload["members"]] == [m.id for m in front.members]
    for member in page.payload["members"]:
        assert member["returns"] == front.policy(member["id"]).report_returns.tolist()
        assert member["std_error"] == front.policy(member["id"]).report_std_error.tolist()
    assert page.payload["set"] == "report"


def test_gains_and_their_errors_are_those_of_the_front(finished_run):
    published = json.loads((finished_run / "front.json").read_text())["policies"]
    members = {m["id"]: m for m in report_data(RunFiles.read(finished_run))["members"]}
    for policy in published:
        assert members[policy["id"]]["gain"] == pytest.approx(policy["gain_over_base"], abs=1e-12)
        error = policy["gain_std_error_by_prompt"]
        assert members[policy["id"]]["gain_std_error"] == error
        clear = [gain > 2 * e for gain, e in zip(policy["gain_over_base"], error, strict=True)]
        assert members[policy["id"]]["improves_everything"] == all(clear)


def test_nothing_is_asked_of_a_network(finished_run):
    text = (finished_run / "report.html").read_text()
    page = Page(text)
    for _, attributes in page.elements:
        for name in ("src", "href", "action", "srcset", "data", "poster"):
            assert (attributes.get(name) or "data:").startswith(("data:", "#"))
    assert "@import" not in text
    assert not re.search(r"url\(\s*['\"]?http", text)
    policy = next(a["content"] for t, a in page.elements if t == "meta" and "http-equiv" in a)
    assert "default-src 'none'" in policy
    for script in page.scripts[1:]:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert policy.count("sha256-") == len(page.scripts) - 1 == 7


def test_the_archive_of_every_generation_has_the_hypervolume_the_run_logged(finished_run):
    data = report_data(RunFiles.read(finished_run))
    objectives = Front.load(finished_run).objectives
    assert len(data["generations"]) == 1 + 3
    for generation in data["generations"]:
        returns = [data["policies"][name]["returns"] for name in generation["archive"]]
        assert hypervolume(to_z(returns, objectives)) == pytest.approx(generation["hypervolume"])


def test_predictions_are_shown_for_the_evolutionary_generations_alone(finished_run):
    policies = report_data(RunFiles.read(finished_run))["policies"].values()
    assert {policy["stage"] for policy in policies if policy["predicted"]} == {"evolutionary"}
    logged = [
        json.loads(line) for line in (finished_run / "metrics.jsonl").read_text().split("\n")[:-1]
    ]
    errors = [line for line in logged if "morl/prediction_error/colorfulness" in line]
    objectives = Front.load(finished_run).objectives
    last = [p for p in policies if p["predicted"] and p["generation"] == 2]
    gaps = np.abs(
        to_z([p["predicted"] for p in last], objectives)
        - to_z([p["returns"] for p in last], objectives)
    )
    assert gaps.mean(axis=0)[0] == pytest.approx(errors[-1]["morl/prediction_error/colorfulness"])


def test_pictures_in_the_page_are_those_the_run_drew(finished_run):
    data = report_data(RunFiles.read(finished_run))
    member = data["members"][-1]["id"]
    drawn = read_samples(finished_run, "report", member, 8)
    uris = data["pictures"]["report"][member]
    assert len(uris) == len(data["prompts"]["report"]) == 8
    for uri, original in zip(uris, drawn, strict=True):
        image = Image.open(
            io.BytesIO(base64.b64decode(uri.removeprefix("data:image/webp;base64,")))
        )
        assert np.array_equal(np.asarray(image.convert("RGB")), np.asarray(original))
    found = {name for name in data["policies"] if name in data["pictures"]["selection"]}
    assert found == set(data["policies"])


def test_many_large_pictures_are_made_smaller_until_they_fit(run_copy, monkeypatch):
    ramp = np.add.outer(np.arange(600), np.arange(600)) % 256
    large = Image.fromarray(np.stack([ramp, ramp.T, 255 - ramp], axis=-1).astype(np.uint8))
    for path in (run_copy / "samples").glob("*/*.webp"):
        large.save(path)
    text = [write_report(run_copy).read_text()]
    monkeypatch.setattr(report, "PICTURE_BYTES", 20_000)
    text.append(write_report(run_copy).read_text())
    assert len(text[1]) < len(text[0])
    for page, sides in zip(text, (200, 64), strict=True):
        uri = next(iter(Page(page).payload["pictures"]["report"]["base"]))
        image = Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))
        assert image.size == (sides, sides)


def test_an_unfinished_run_shows_the_selection_set_and_says_so(run_copy):
    (run_copy / "front.json").unlink()
    page = build(run_copy)
    assert page.payload["set"] == "selection"
    assert "Not finished" in (run_copy / "report.html").read_text()
    search = json.loads((run_copy / "search.json").read_text())
    returns = {c["policy"]: c["returns"] for g in search["generations"] for c in g["offspring"]}
    returns["base"] = search["base"]["returns"]
    for member in page.payload["members"]:
        assert member["returns"] == returns[member["id"]]
    assert {m["id"] for m in page.payload["members"]} == set(
        page.payload["generations"][-1]["archive"]
    )


def test_a_front_published_before_the_run_went_on_is_not_taken_for_its_end(run_copy):
    edit(run_copy / "search.json", lambda search: search["costs"].update(train=10**6))
    assert build(run_copy).payload["set"] == "selection"


def test_the_base_model_alone_is_a_report(run_copy):
    (run_copy / "front.json").unlink()

    def forget(search):
        search["generations"] = []
        search["curve"], search["archives"] = search["curve"][:1], search["archives"][:1]

    edit(run_copy / "search.json", forget)
    assert [member["id"] for member in build(run_copy).payload["members"]] == ["base"]
    assert "Nothing is better than the base model yet." in (run_copy / "report.html").read_text()


EVIL = '</script><img src="http://evil.example/x" onerror="alert(1)"><b>'


def test_prompts_and_settings_with_markup_do_not_become_markup(run_copy):
    elements = len(build(run_copy).elements)
    for name in ("front.json", "search.json"):
        edit(run_copy / name, lambda record: record["samples"].update(prompts=[EVIL] * 4))
    edit(run_copy / "config.json", lambda record: record["settings"].update(run_name=EVIL))
    edit(run_copy / "config.json", lambda record: record.update(device=EVIL))
    page = build(run_copy)
    assert len(page.elements) == elements
    assert page.payload["prompts"]["report"] == [EVIL] * 4


def test_guards_are_shown_where_they_were_measured(run_copy):
    def measure(front):
        front["guards"] = [{"name": "diversity", "unit": "cosine", "max_drop": 0.2}]
        for policy in front["policies"]:
            policy["guards"] = {"diversity": {"value": 0.5, "std_error": 0.01, "drop": 0.25}}
        front["base"]["guards"] = {"diversity": {"value": 0.75, "std_error": 0.02, "drop": 0.0}}

    edit(run_copy / "front.json", measure)
    page = build(run_copy)
    assert page.payload["members"][0]["guards"]["diversity"]["value"] == 0.5
    assert page.payload["members"][0]["losses"] == ["“variety” is below its limit"]
    assert "guard-0" in {attributes.get("id") for _, attributes in page.elements}
    text = (run_copy / "report.html").read_text()
    assert "0.500 ± 0.010" in text
    assert "0.750 ± 0.020" in text


def test_blends_are_members_with_their_parts(run_copy):
    first, second = (policy.id for policy in Front.load(run_copy).policies[:2])

    def blend(front):
        returns = [policy["report_returns"] for policy in front["policies"]]
        front["blends"] = [
            {
                "id": "blend-1",
                "parts": [
                    {"policy": first, "coefficient": 0.25},
                    {"policy": second, "coefficient": 0.75},
                ],
                "weights": [0.5, 0.5],
                "report_returns": np.mean(returns, axis=0).tolist(),
                "report_std_error": [0.1, 0.1],
            }
        ]

    edit(run_copy / "front.json", blend)
    members = {member["id"]: member for member in build(run_copy).payload["members"]}
    assert members["blend-1"]["kind"] == "blend"
    assert members["blend-1"]["parts"] == [[first, 0.25], [second, 0.75]]
    expected = np.hypot(0.1, Front.load(run_copy).base.report_std_error)  # nobody paired it
    assert members["blend-1"]["gain_std_error"] == pytest.approx(expected.tolist())
    assert "gain_over_base" not in json.loads((run_copy / "front.json").read_text())["blends"][0]


def test_the_page_says_how_many_members_improve_everything_and_which_is_best(run_copy):
    gains = {}

    def gain(front):
        for rank, policy in enumerate(front["policies"]):
            policy["gain_over_base"] = [1.0 + rank, 1.0]
            policy["gain_std_error"] = policy["gain_std_error_by_prompt"] = [0.4, 0.4]
            gains[policy["id"]] = 1.0 + rank
        front["policies"][0]["gain_std_error_by_prompt"] = [0.6, 0.4]  # not clear any more

    edit(run_copy / "front.json", gain)
    page = build(run_copy)
    best, total = max(gains, key=gains.get), len([name for name in gains if name != "base"])
    assert page.payload["best"] == best
    text = " ".join((run_copy / "report.html").read_text().split())
    assert f"{total - 1} of {total} members" in text or f"{total} of {total} members" in text
    assert f'the best is <a class="point" href="#{best}">' in text


def test_a_member_that_no_longer_shows_its_prompt_is_marked():
    alignment = Objective(name="clip_alignment", unit="cosine", reference=0.0, ideal=1.0)
    size = Objective(name="jpeg_compressibility", unit="-kB", reference=-2.0, ideal=-1.0)
    base = np.array([0.5, -1.0])

    def lost(*returns, guards=(), values=None):
        objectives = (alignment, size)
        return list(losses(np.array(returns), base, objectives, guards, values or {}))

    assert lost(0.41, -3.0) == []
    assert lost(0.39, -0.5) == ["“true to its prompt” is at 78 % of the base model's"]
    guard = Guard(name="sharpness", unit="grey value^2", max_drop=5.0)
    within, below = (GuardValue(value=9.0, std_error=1.0, drop=drop) for drop in (4.9, 5.1))
    assert lost(0.5, -1.0, guards=[guard], values={"sharpness": within}) == []
    assert lost(0.5, -1.0, guards=[guard], values={"sharpness": below}) == [
        "“sharpness” is below its limit"
    ]


def test_analysing_writes_the_report_again(run_copy, capsys):
    (run_copy / "report.html").unlink()
    assert main(["analyse", str(run_copy), "--points", "1", "--device", "cpu"]) == 0
    assert "report.html, with the blends" in capsys.readouterr().out
    shown = Page((run_copy / "report.html").read_text()).payload["members"]
    assert [member["id"] for member in shown] == [m.id for m in Front.load(run_copy).members]


def test_a_run_without_pictures_has_a_report(run_copy):
    for path in (run_copy / "samples").glob("*/*"):
        path.unlink()
    assert build(run_copy).payload["pictures"] == {"selection": {}, "report": {}}


def test_the_command_writes_it_and_explains_what_is_missing(run_copy, tmp_path, capsys):
    (run_copy / "report.html").unlink()
    assert main(["report", str(run_copy)]) == 0
    assert f"wrote {run_copy / 'report.html'}" in capsys.readouterr().out
    assert main(["report", str(tmp_path / "nowhere")]) == 1
    assert "is not a run directory" in capsys.readouterr().err
    (run_copy / "search.json").write_text("{")
    with pytest.raises(RecordError, match=r"search\.json is damaged"):
        write_report(run_copy)


def test_records_that_do_not_fit_together_are_an_error_not_a_trace(run_copy, capsys):
    edit(run_copy / "search.json", lambda search: search["curve"].pop())
    assert main(["report", str(run_copy)]) == 1
    assert "do not fit together" in capsys.readouterr().err
    edit(run_copy / "search.json", lambda search: search.pop("curve"))
    assert main(["report", str(run_copy)]) == 1
    assert "search.json is damaged: no entry 'curve'" in capsys.readouterr().err


def test_a_report_that_fails_does_not_fail_the_run(make_run, monkeypatch, capsys):
    def refuse(run, **_):
        raise ReportError("no paper")

    monkeypatch.setattr("front.publish.write_report", refuse)
    run = make_run("no_report", "evolution.evolutionary_generations=0")
    assert (run / "front.json").exists()
    assert not (run / "report.html").exists()
    assert "report.html could not be written: no paper" in capsys.readouterr().err


def test_a_number_shows_the_decimals_that_its_error_leaves():
    assert measured(-1.26941, 0.00231) == "−1.2694 ± 0.0023"
    assert measured(131.4, 12.0, "+") == "+131 ± 12"
    assert measured(0.0, 0.01, "+") == "0.000 ± 0.010"
