"""Files into records, and records into parts."""

from __future__ import annotations

import csv
import json

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedot.data.records import Record, read_records, read_text, split_records
from fedot.errors import ConfigError

ROWS = [{"text": "one, two"}, {"text": 'a "quoted"\nsecond line'}, {"text": "é 漢 🙂"}]
RECORDS = tuple(Record("", row["text"]) for row in ROWS)


def write(path, rows):
    """The same rows in any format."""
    match path.suffix.lower():
        case ".jsonl":
            text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
            path.write_text(text + "\n\n", encoding="utf-8")
        case ".json":
            path.write_text(json.dumps(rows), encoding="utf-8")
        case ".csv":
            with path.open("w", encoding="utf-8", newline="") as file:
                table = csv.DictWriter(file, fieldnames=list(rows[0]))
                table.writeheader()
                table.writerows(rows)
        case ".parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


FORMATS = [".jsonl", ".json", ".csv", ".parquet"]


@pytest.mark.parametrize("suffix", [*FORMATS, ".JSONL"])
def test_every_format_gives_the_same_records(tmp_path, suffix):
    assert read_records(write(tmp_path / f"r{suffix}", ROWS)) == RECORDS


@pytest.mark.parametrize("suffix", FORMATS)
def test_text_may_stand_in_another_field(tmp_path, suffix):
    rows = [{"text": "not this", "body": row["text"]} for row in ROWS]
    assert read_records(write(tmp_path / f"r{suffix}", rows), "body") == RECORDS


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(
    ("context", "response"), [("context", "response"), ("input", "output"), ("context", "output")]
)
def test_instruction_fields_have_shepherds_alpacas_and_dollys_names(
    tmp_path, suffix, context, response
):
    rows = [
        {"instruction": " Add. ", context: " 1 and 2 ", response: "3"},
        {"instruction": "Say hello.", context: "", response: " hello "},
    ]
    assert read_records(write(tmp_path / f"r{suffix}", rows)) == (
        Record("### Instruction\nAdd.\n\n### Context\n1 and 2\n\n### Response\n", "3"),
        Record("### Instruction\nSay hello.\n\n### Response\n", " hello "),
    )


def test_instruction_comes_before_a_text_field(tmp_path):
    row = {"instruction": "I", "response": "R", "text": "T"}
    (record,) = read_records(write(tmp_path / "r.jsonl", [row]))
    assert record.answer == "R"


def test_instruction_without_answer_falls_back_to_its_text(tmp_path):
    row = {"instruction": "I", "response": "", "text": "T"}
    assert read_records(write(tmp_path / "r.jsonl", [row])) == (Record("", "T"),)


def test_plain_text_is_divided_by_blank_lines(tmp_path):
    path = tmp_path / "r.txt"
    path.write_text("\n\none\nstill one\n\n\n\n two \n\n", encoding="utf-8")
    assert read_records(path) == (Record("", "one\nstill one"), Record("", "two"))


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_mark_that_spreadsheets_put_in_front_is_no_part_of_the_data(tmp_path, suffix):
    path = write(tmp_path / f"r{suffix}", ROWS)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_records(path) == RECORDS


def test_long_document_fits_into_one_csv_field(tmp_path):
    rows = [{"text": "word " * 100_000}]
    assert read_records(write(tmp_path / "r.csv", rows)) == (Record("", rows[0]["text"]),)


def test_json_list_may_hold_plain_texts(tmp_path):
    assert read_records(write(tmp_path / "r.json", ["one", "two"])) == (
        Record("", "one"),
        Record("", "two"),
    )


def test_read_text_joins_prompt_and_answer(tmp_path):
    rows = [{"instruction": "I", "response": "R"}, {"text": "T"}]
    assert read_text(write(tmp_path / "r.jsonl", rows)) == (
        "### Instruction\nI\n\n### Response\nR",
        "T",
    )


def refusal(path, text_field="text") -> str:
    with pytest.raises(ConfigError) as caught:
        read_records(path, text_field)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


@pytest.mark.parametrize("name", ["r.docx", "r", "r.jsonl.gz"])
def test_unknown_ending_is_refused_with_the_known_ones(tmp_path, name):
    (tmp_path / name).write_text("x")
    assert ".jsonl, .json, .csv, .parquet, .txt" in refusal(tmp_path / name)


def test_missing_file_and_folder_are_refused(tmp_path):
    (tmp_path / "folder.jsonl").mkdir()
    assert "there is no data file" in refusal(tmp_path / "folder.jsonl")
    assert "there is no data file" in refusal(tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("r.jsonl", b'{"text": "a"}\n{"text": \n'),
        ("r.jsonl", b"\xff\xfe\x00\x01"),
        ("r.json", b'[{"text": "a"}'),
        ("r.json", b""),
        ("r.csv", b"text\n\xff\xfe\n"),
        ("r.parquet", b"no parquet"),
        ("r.parquet", b""),
        ("r.parquet", b"PAR1" + bytes(40) + b"PAR1"),
        ("r.txt", b"\xff\xfe\n\n\xff"),
    ],
)
def test_file_that_is_not_what_it_is_called_is_refused(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    assert f"cannot read {path} as {path.suffix}" in refusal(path)


def test_json_that_is_no_list_is_refused(tmp_path):
    path = tmp_path / "r.json"
    path.write_text('{"text": "a"}')
    assert "must hold a JSON list" in refusal(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [("r.jsonl", ""), ("r.jsonl", "\n \n"), ("r.json", "[]"), ("r.csv", "text\n"), ("r.txt", "\n")],
)
def test_file_without_records_is_refused(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    assert "holds no records" in refusal(tmp_path / name)


SECRET = "4711-secret"


@pytest.mark.parametrize(
    "row",
    [
        {"body": SECRET},
        {"text": ""},
        {"text": 5, "other": SECRET},
        {"text": None},
        {"instruction": SECRET},
        {"instruction": SECRET, "response": ["a"]},
        {"instruction": 5, "response": SECRET},
        [SECRET],
        "",
        5,
        None,
        {"text": SECRET + "\ud83d"},
        {"instruction": SECRET + "\ud83d", "response": "R"},
    ],
)
def test_record_without_text_is_refused_by_its_number_without_its_data(tmp_path, row):
    path = tmp_path / "r.json"
    path.write_text(json.dumps([{"text": "fine"}, row]))
    message = refusal(path)
    assert "record 2 of" in message
    assert SECRET not in message


def test_wrong_text_field_is_named(tmp_path):
    assert "'body'" in refusal(write(tmp_path / "r.csv", ROWS), "body")


def some_records(num: int) -> tuple[Record, ...]:
    return tuple(Record("", f"text {n}") for n in range(num))


@given(st.integers(30, 60), st.floats(0.01, 0.5), st.integers(0, 2**32 - 1))
def test_parts_are_disjoint_and_together_everything(num, ratio, seed):
    records = some_records(num)
    split = split_records(records, ratio, seed, "a")
    together = [*split.train, *split.choose, *split.report]
    assert sorted(together, key=records.index) == list(records)
    assert split.train


def test_parts_have_the_sizes_that_the_ratio_asks_for():
    split = split_records(some_records(4000), 0.2, 0, "a")
    # Binomial with n = 4000: five standard deviations are 126 for train and 95 for the others.
    assert abs(len(split.train) - 3200) < 126
    assert abs(len(split.choose) - 400) < 95
    assert abs(len(split.report) - 400) < 95


@given(num=st.integers(20, 60), seed=st.integers(0, 99))
def test_one_record_more_changes_no_other_records_part(num, seed):
    """Neighbouring files have neighbouring training sets: what an example-level claim rests on."""
    records = some_records(num)
    small, large = (split_records(part, 0.3, seed, "a") for part in (records[1:], records))
    for name in ("train", "choose", "report"):
        before, after = set(getattr(small, name)), set(getattr(large, name))
        assert before <= after
        assert after - before <= {records[0]}


def test_equal_records_are_one_so_that_none_is_trained_on_and_held_out():
    split = split_records(some_records(10) * 3, 0.4, 0, "a")
    together = [*split.train, *split.choose, *split.report]
    assert len(together) == len(set(together)) == 10


def test_same_answer_to_another_prompt_is_another_record():
    records = tuple(Record(f"prompt {n}", "yes") for n in range(8))
    split = split_records(records, 0.25, 0, "a")
    assert len([*split.train, *split.choose, *split.report]) == 8


def test_seed_alone_decides_who_is_held_out():
    records = some_records(40)
    assert split_records(records, 0.2, 3, "a") == split_records(records, 0.2, 3, "b")
    assert split_records(records, 0.2, 3, "a") != split_records(records, 0.2, 4, "a")


@pytest.mark.parametrize(
    ("records", "ratio"),
    [((), 0.2), (some_records(7), 0.2), (some_records(7) * 5, 0.2), (some_records(8), 0.999999)],
)
def test_too_few_different_records_are_refused_with_the_clients_name(records, ratio):
    with pytest.raises(ConfigError, match=r"client email has .* different records; it must have"):
        split_records(records, ratio, 0, "email")
