"""A run's files are checked once; what is broken is named with what to do."""

from __future__ import annotations

import json

import pytest

from fedot.errors import ConfigError
from fedot.report.run_files import read_run, summary_from


def test_reads_what_a_run_writes(make_run):
    files = read_run(make_run())
    assert files.summary.recovery == 0.82
    assert [r.round for r in files.rounds] == list(range(7))
    assert files.rounds[-1].highest_epsilon == pytest.approx(7.981)


@pytest.mark.parametrize("name", ["summary.json", "metrics.jsonl", "config.yaml"])
def test_a_missing_file_is_named_with_what_to_do(make_run, name):
    run = make_run()
    (run / name).unlink()
    with pytest.raises(ConfigError, match=rf"has no {name}.*--resume"):
        read_run(run)


@pytest.mark.parametrize("name", ["summary.json", "metrics.jsonl", "config.yaml"])
@pytest.mark.parametrize("content", [b"[1", b"\xff\xfe", b"[1, 2]", b"[" * 10_000])
def test_a_broken_file_is_a_config_error_that_names_it(make_run, name, content):
    run = make_run()
    (run / name).write_bytes(content)
    with pytest.raises(ConfigError, match=name) as caught:
        read_run(run)
    assert "\n" not in str(caught.value)


def test_a_directory_that_is_none_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="--out"):
        read_run(tmp_path / "nowhere")


def test_a_broken_line_of_metrics_is_named_by_its_number(make_run):
    run = make_run()
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"round": "seven"}\n')
    with pytest.raises(ConfigError, match=r"line 8 does not fit at round"):
        read_run(run)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("privacy", None),
        ("privacy", {"unit": "person"}),
        ("wire", {"float32_bytes": -1, "sent_bytes": 0}),
        ("quality", {"plug_in": {"loss": "low"}}),
        ("quality", {"plug_in": {"loss": float("nan")}}),
        ("rounds", "four"),
    ],
)
def test_a_part_of_the_wrong_kind_is_refused_by_name(make_summary, key, value):
    with pytest.raises(ConfigError, match=f"does not fit at {key}"):
        summary_from(make_summary(**{key: value}))


def test_an_error_shows_no_value_of_the_file(make_summary):
    with pytest.raises(ConfigError) as caught:
        summary_from(make_summary(rounds="a secret"))
    assert "secret" not in str(caught.value)


def test_nan_and_infinity_count_as_not_known(make_summary):
    summary = make_summary(recovery=float("nan"), leak_margin=float("-inf"))
    summary["privacy"]["epsilon"] = {"email": float("inf")}
    checked = summary_from(json.loads(json.dumps(summary)))
    assert checked.recovery is None
    assert checked.leak_margin is None
    assert checked.privacy.spent == {}


def test_a_later_fedot_may_write_more(make_summary):
    assert summary_from(make_summary(novelty={"x": 1})).clients == 4
