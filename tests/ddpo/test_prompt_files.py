"""Files of prompts as people have them: each is read exactly, or refused in one line."""

from __future__ import annotations

import json

import pytest

from config.base import PromptSettings
from ddpo.prompts import load_prompts, split_prompts

CAT = ("a cat", {})
GENEVAL = {"tag": "counting", "include": [{"class": "bench", "count": 2}], "prompt": "two benches"}
BENCHES = ("two benches", {"tag": "counting", "include": [{"class": "bench", "count": 2}]})
READ = {
    # a text file: one prompt per line, and nothing but a line feed ends one
    "lines.txt": ("a cat\r\n\r\n a\u2028dog \x0c x\n", [CAT, ("a\u2028dog \x0c x", {})]),
    "no_suffix": ("a cat\n[cat], (dog:1.2)\n", [CAT, ("[cat], (dog:1.2)", {})]),
    "dynamic.txt": ("{red|blue} car\n[[cat]]", [("{red|blue} car", {}), ("[[cat]]", {})]),
    "quoted.txt": ('"Hi" on a sign\n', [('"Hi" on a sign', {})]),
    # JSON: lists of texts (HPS v2's benchmark) and of objects (ImageReward's, TIFA's)
    "hps.json": ('["a cat", "a dog"]', [CAT, ("a dog", {})]),
    "imagereward.json": (
        '[\n    {\n        "id": "005937-0170",\n        "prompt": "a cat"\n    }\n]',
        [("a cat", {"id": "005937-0170"})],
    ),
    "tifa.json": ('[{"caption": "a cat", "source": "coco"}]', [("a cat", {"source": "coco"})]),
    "imagereward.txt": ('[\n  {\n    "prompt": "a cat"\n  }\n]', [CAT]),
    "mjhq.json": (
        '{"8f2": {"category": "animals", "prompt": "a cat"}}',
        [("a cat", {"id": "8f2", "category": "animals"})],
    ),
    "listed.json": ('{"prompts": ["a cat"], "version": 2}', [CAT]),
    "only_list.json": ('{"version": 2, "data": [{"prompt": "a cat"}]}', [CAT]),
    # JSON lines, whatever their suffix; keys beside the prompt are metadata (GenEval)
    **{
        f"geneval{suffix}": (json.dumps(GENEVAL) + '\n{"prompt": "a cat"}\n', [BENCHES, CAT])
        for suffix in (".jsonl", ".JSONL", ".ndjson", ".jsonlines", ".json", ".txt", "")
    },
    "one.jsonl": (json.dumps(GENEVAL), [BENCHES]),
    "metadata.jsonl": (
        '{"file_name": "1.png", "text": "a cat", "metadata": {"n": 1}}',
        [("a cat", {"file_name": "1.png", "n": 1})],
    ),
    "texts.jsonl": ('"a cat"\n"a dog"\n', [CAT, ("a dog", {})]),
    "separator.jsonl": ('{"prompt": "a\u2028dog"}\n', [("a\u2028dog", {})]),
    # tables: PartiPrompts, which quotes nothing; DrawBench; pandas; a spreadsheet in Europe
    "parti.tsv": (
        'Prompt\tCategory\tNote\na cat\tAnimals\t\n"G I" painted on a wall, red\tArts\t\n',
        [
            ("a cat", {"Category": "Animals", "Note": ""}),
            ('"G I" painted on a wall, red', {"Category": "Arts", "Note": ""}),
        ],
    ),
    "parti.txt": ("Prompt\tCategory\na cat\tAnimals\n", [("a cat", {"Category": "Animals"})]),
    "quoted.tsv": ('prompt\tn\n"a ""red"" cat"\t1\n', [('a "red" cat', {"n": "1"})]),
    "drawbench.csv": (
        'Prompts,Category\r\nA red car.,Colors\r\n"A ""Hi"", twice.",Text\r\n',
        [("A red car.", {"Category": "Colors"}), ('A "Hi", twice.', {"Category": "Text"})],
    ),
    "pandas.csv": (",caption,n\n0,a cat,1\n1,a dog\n", [("a cat", {"n": "1"}), ("a dog", {})]),
    "europe.csv": ("\ufeffNr;Prompt\n1;a cat, sitting\n", [("a cat, sitting", {"Nr": "1"})]),
    "spaces.csv": ('id, "prompt"\n1, "a cat, sitting"\n', [("a cat, sitting", {"id": "1"})]),
    "folded.csv": ('prompt,n\n"a cat\non a mat",1\n', [("a cat\non a mat", {"n": "1"})]),
    "both.csv": ("text,prompt\nlong,a cat\n", [("a cat", {"text": "long"})]),
}


@pytest.mark.parametrize("name", READ)
def test_a_file_of_prompts_is_read_exactly(tmp_path, name):
    content, expected = READ[name]
    (tmp_path / name).write_text(content, encoding="utf-8", newline="")
    found = load_prompts(str(tmp_path / name))
    assert [(str(prompt), getattr(prompt, "metadata", {})) for prompt in found] == expected


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_mark_of_the_encoding_is_understood(tmp_path, encoding):
    (tmp_path / "a.tsv").write_text("Prompt\tn\nein Kätzchen\t1\n", encoding=encoding)
    assert load_prompts(str(tmp_path / "a.tsv")) == ("ein Kätzchen",)


REFUSED = {
    "half.json": ('[\n  "a cat",\n', "half.json is not JSON: "),
    "half.txt": ('[\n  {\n    "prompt": "a cat",\n', "half.txt is not JSON: "),
    "third.jsonl": ('{"prompt": "a"}\n\n{"prompt": \n', "line 3 is not JSON: "),
    "number.json": ('["a cat", 3]', "entry 2 must be a text or "),
    "no_prompt.json": ('[{"id": 1}]', "entry 1 must be a text or "),
    "blank.jsonl": ('{"prompt": "a"}\n{"prompt": " "}\n', "line 2 must be a text or "),
    "lists.jsonl": ('["a"]\n["b"]\n', "line 1 must be a text or "),
    "columns.csv": (
        "name,size\ncat,2\n",
        "no column prompt or caption or text, but 'name',",
    ),
    "headless.csv": ("a cat\na dog\n", "or write one prompt per line into a .txt file"),
    "commas.csv": ("prompt,n\na cat, sitting,1\n", "line 2 has 3 cells for 2 columns; put texts"),
    "quotes.csv": ('prompt\na cat\n"Hi" on a sign\n', "is not a table: line 3: "),
    "half_character.json": ('["a \\ud83d cat"]', "holds half a character"),
    "mac.txt": ("a cat\ra dog\r", "ends its lines in carriage returns alone"),
    "list.yaml": ("- a cat\n", "is of a kind that is not read; write one prompt per line"),
    "page.txt": ("\n<!DOCTYPE html><html>", "is a web page; download the file itself"),
    "pointer.txt": ("version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer"),
    "nul.txt": ("a\0 \0c\0", "is not UTF-8 text: it holds NUL"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_holds_something_else_is_refused_in_one_line(tmp_path, name):
    content, problem = REFUSED[name]
    (tmp_path / name).write_text(content, encoding="utf-8", newline="")
    with pytest.raises(ValueError, match=r"prompt file ") as refused:
        load_prompts(str(tmp_path / name))
    assert problem in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"PAR1\x15\x04", "is a Parquet file; write its prompts as .csv or .jsonl"),
        (b"\x1f\x8b\x08", "is compressed by gzip"),
        (b"PK\x03\x04\x14", "is a zip archive or an Excel sheet"),
        ("ein Kätzchen\n".encode("cp1252"), "is not UTF-8 text: .*; save it as UTF-8"),
    ],
)
def test_a_file_that_is_no_text_says_what_it_is(tmp_path, data, problem):
    (tmp_path / "prompts.txt").write_bytes(data)
    with pytest.raises(ValueError, match=problem):
        load_prompts(str(tmp_path / "prompts.txt"))


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".tsv", ".json", ".jsonl"])
@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_file_holds_no_prompt(tmp_path, suffix, content):
    (tmp_path / f"a{suffix}").write_text(content)
    with pytest.raises(ValueError, match=r"holds no prompt; write one per line"):
        load_prompts(str(tmp_path / f"a{suffix}"))


def test_a_misspelt_set_gets_a_suggestion():
    with pytest.raises(ValueError, match=r"did you mean emoji_animals\?"):
        load_prompts("emoji_animal")


def test_what_is_left_out_of_a_file_is_counted_and_the_first_prompts_are_shown(tmp_path):
    path = tmp_path / "some.csv"
    path.write_text(f"prompt,n\na cat,1\n,2\na dog,3\na cat,4\n{'x' * 61},5\n")
    split = split_prompts(PromptSettings(train=str(path), report="emoji_report"))
    assert f"{path}: left out of 5 prompts: 1 repeated, 1 empty" in split.notes
    shown = f"3, the first 'a cat', 'a dog', '{'x' * 60}...'"
    assert split.summary()[:2] == [f"train prompts: {shown}", f"selection prompts: {shown}"]
    assert split.summary()[2].startswith("report prompts: 16, the first 'elephant', ")
