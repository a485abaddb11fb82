"""The page stands alone, escapes everything and says plainly what is known."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fedot.errors import ConfigError
from fedot.report.page import write_report

HOSTILE = "<script>alert('x')</script>"
NUMBERS = ("full_zero_shot", "full_tuned", "emulator_zero_shot", "emulator_tuned", "plug_in")


class Reader(HTMLParser):
    """Collects tags, attributes and visible text; fails on tags that do not match."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.words, self.open = [], [], [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))


def read(run):
    return Reader(write_report(run).read_text(encoding="utf-8"))


def test_the_first_screen_tells_what_happened(make_run):
    text = read(make_run()).text
    assert "Four data owners tuned this model without showing their records" in text
    assert "got back 82 %" in text
    for label in ("recovery", "plug-in advantage", "leak margin", "general gap"):
        assert label in text
    assert "21 % of the same updates as plain float32" in text


def test_all_four_pictures_and_tables_are_there(make_run):
    reader = read(make_run())
    assert reader.tags.count("svg") == 4
    assert reader.tags.count("details") == 3
    for words in ("2.691 ± 0.011", "add or remove one record", "delta 1e-05", "noise multiplier"):
        assert words in reader.text
    assert "all clients ran in one process" in reader.text


def test_nothing_is_loaded_from_anywhere(make_run):
    page = write_report(make_run()).read_text(encoding="utf-8")
    reader = Reader(page)
    assert not {"script", "img", "iframe", "object", "base", "form"} & set(reader.tags)
    loads = [v for k, v in reader.attributes if k in ("src", "href", "xlink:href", "action")]
    assert all(value.startswith(("#", "data:,")) for value in loads)
    namespaces = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert set(re.findall(r"https?://[^\"' <]+", page)) == namespaces
    assert "@import" not in page
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))
    assert "default-src 'none'" in page


def test_ids_are_unique_over_all_pictures(make_run):
    ids = [value for key, value in read(make_run()).attributes if key == "id"]
    assert len(ids) == len(set(ids))


def test_hostile_names_notes_and_config_stay_text(make_run):
    metrics = [{"round": 1, "cohort": [HOSTILE], "failed": {HOSTILE: HOSTILE}, "loss": {},
                "epsilon": {HOSTILE: 1.0}}]  # fmt: skip
    run = make_run(
        clients=[HOSTILE],
        rounds=1,
        metrics=metrics,
        config=f'name: "</pre>{HOSTILE}"\n',
        name=HOSTILE,
        notes={"recovery": HOSTILE, HOSTILE: HOSTILE},
        versions={HOSTILE: HOSTILE},
        seconds={HOSTILE: 1.0},
        adapter={"kind": HOSTILE},
        recovery=None,
    )
    reader = read(run)
    assert "script" not in reader.tags
    assert reader.text.count(HOSTILE) >= 10


@pytest.mark.parametrize("rounds", [1, 100])
@pytest.mark.parametrize("clients", [["only"], [f"site-{i:02}" for i in range(30)]])
def test_survives_few_and_many(make_run, clients, rounds):
    reader = read(make_run(clients=clients, rounds=rounds))
    assert reader.tags.count("svg") == 4
    assert clients[-1] in reader.text


@pytest.mark.parametrize("missing", [*NUMBERS, "all"])
def test_survives_every_missing_quality_number(make_run, make_summary, missing):
    quality = make_summary()["quality"]
    for name in NUMBERS if missing == "all" else [missing]:
        quality[name] = None
    reader = read(make_run(quality=quality, recovery=None, notes={missing: "not here because"}))
    assert "not known" in reader.text
    assert "ot here because" in reader.text


@pytest.mark.parametrize(
    "key", ["recovery", "plug_in_advantage", "leak_margin", "general_gap", "emulator", "adapter",
            "best_round", "seed"]
)  # fmt: skip
def test_survives_every_null(make_run, key):
    reader = read(make_run(**{key: None}, notes={key: "could not be had, as a test"}))
    assert "could not be had, as a test" in reader.text.lower()


def test_without_dp_the_page_says_so_instead_of_a_picture(make_run):
    reader = read(make_run(unit="none"))
    assert reader.tags.count("svg") == 3
    assert "Differential privacy was off" in reader.text
    assert "epsilon spent" not in reader.text
    assert "no DP" in reader.text


def test_without_rounds_the_page_says_so(make_run):
    reader = read(make_run(metrics=[]))
    assert "No loss was measured during the rounds" in reader.text


def test_a_run_that_sent_nothing_divides_by_nothing(make_run):
    wire = {"float32_bytes": 0, "sent_bytes": 0, "bytes_after": {}}
    assert "No update was sent" in read(make_run(wire=wire)).text


def test_bytes_that_no_operator_explains_are_shown_apart(make_run, make_summary):
    wire = make_summary()["wire"] | {"sent_bytes": 230_000}
    assert "sent, all told" in read(make_run(wire=wire)).text


def test_a_tuned_emulator_that_beats_plug_in_is_told_plainly(make_run):
    assert "needs the closed model no more" in read(make_run(plug_in_advantage=-0.05)).text


def test_made_again_from_the_same_files_it_has_the_same_bytes(make_run):
    run = make_run()
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first


def test_it_replaces_an_older_page_whole_and_leaves_nothing_beside_it(make_run):
    run = make_run()
    (run / "report.html").write_text("old" * 1_000_000)
    before = {path.name for path in run.iterdir()}
    assert write_report(run) == run / "report.html"
    assert "oldold" not in (run / "report.html").read_text(encoding="utf-8")
    assert {path.name for path in run.iterdir()} == before


def test_a_broken_run_keeps_the_older_page(make_run):
    run = make_run()
    (run / "report.html").write_text("old")
    (run / "summary.json").write_text("{")
    with pytest.raises(ConfigError, match=r"summary\.json is not valid JSON"):
        write_report(run)
    assert (run / "report.html").read_text() == "old"


def test_a_failed_write_leaves_the_older_page_and_no_half_one(make_run, monkeypatch):
    run = make_run()
    (run / "report.html").write_text("old")
    names = {path.name for path in run.iterdir()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(ConfigError, match="No space left"):
        write_report(run)
    assert (run / "report.html").read_text() == "old"
    assert {path.name for path in run.iterdir()} == names


def test_a_network_run_without_proxy_says_once_more_why_nothing_was_measured(make_run):
    why = "data.proxy is not set, and the server has no records of the task to measure on."
    names = (*NUMBERS, "plug_in_advantage", "leak_margin")
    metrics = [{"round": number, "loss": {"proxy": None}} for number in range(3)]
    run = make_run(
        quality=dict.fromkeys(NUMBERS),
        measured_on="nothing",
        notes=dict.fromkeys(names, why) | {"recovery": "only a simulation has it."},
        metrics=metrics,
        recovery=None,
        plug_in_advantage=None,
        leak_margin=None,
    )
    text = read(run).text
    assert "recorded no reason" not in text
    assert "Nothing was measured: the model owner had no proxy set." in text
    assert "Loss on" not in text
    assert "Data.proxy" not in text
    assert text.count("data.proxy is not set, and") >= 4
    assert "held-out private records" not in text
