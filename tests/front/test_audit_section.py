"""The report says what an audit of its rewards has found."""

from __future__ import annotations

import json

from front import Front
from front.report import write_report
from run.audit_page import audit_file


def test_the_report_lists_what_an_audit_of_the_same_rewards_and_model_found(run_copy):
    front = Front.load(run_copy)
    found = {
        "model": front.settings["pretrained"]["model"],
        "rewards": list(front.names),
        "findings": [{"reward": "colorfulness", "kind": "garbage", "text": "noise: <b>100 %</b>"}],
    }
    page = audit_file(run_copy.parent, front.names)
    title, text = "Can the rewards be trusted?", "noise: &lt;b&gt;100 %&lt;/b&gt;."
    assert title not in write_report(run_copy).read_text()
    page.with_suffix(".json").write_text(json.dumps(found))
    shown = write_report(run_copy).read_text()
    assert title in shown
    assert text in shown
    assert f'href="../{page.name}"' in shown
    page.with_suffix(".json").write_text(json.dumps({**found, "model": "another"}))
    assert title not in write_report(run_copy).read_text()
