"""The commented config that `fedot init` writes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from fedot.config import config_from_dict, load_config
from fedot.config_text import commented_config
from fedot.errors import ConfigError

CLIENTS = [Path("/data/email.jsonl"), Path("/data/asyncio.csv")]
OWNER = Path("/data/owner.txt")


def test_it_loads_back_to_the_defaults(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(commented_config("/models/m", CLIENTS, OWNER), encoding="utf-8")
    defaults = config_from_dict(
        {
            "model": {"path": "/models/m"},
            "data": {
                "clients": {"email": "/data/email.jsonl", "asyncio": "/data/asyncio.csv"},
                "owner_text": "/data/owner.txt",
            },
        }
    )
    assert load_config(path) == defaults


def test_without_owner_text_nothing_is_distilled(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(commented_config("/models/m", CLIENTS), encoding="utf-8")
    config = load_config(path)
    assert config.data.owner_text is None
    assert config.emulator != "none"
    assert config.emulator.distill_steps == 0


def test_every_key_stands_in_it_once_with_a_comment():
    found: dict[str, str] = {}
    above: list[str] = []
    for line in commented_config("/models/m", CLIENTS, OWNER).splitlines():
        key = re.match(r"( *)(\w+):", line)
        if key is None or (above[:2] == ["data", "clients"] and len(key[1]) == 4):
            continue
        above = [*above[: len(key[1]) // 2], key[2]]
        name = ".".join(above)
        assert name not in found, f"{name} stands twice"
        found[name] = line
    config = config_from_dict({"model": {"path": "m"}, "data": {"clients": {"a": "a.jsonl"}}})

    def check(section: BaseModel, prefix: str) -> None:
        for name, value in section:
            line = found.pop(prefix + name)
            headed = isinstance(value, BaseModel) and not prefix
            assert headed or re.search(r"  # \w", line), f"{prefix}{name}: no comment"
            assert "# None" not in line
            if isinstance(value, BaseModel):
                check(value, f"{prefix}{name}.")

    check(config, "")
    assert not found


def test_every_section_is_headed_by_what_it_is():
    lines = commented_config("/models/m", CLIENTS, OWNER).splitlines()
    sections = [n for n, line in enumerate(lines) if re.fullmatch(r"\w+:", line)]
    assert len(sections) >= 8
    assert all(lines[n - 1].startswith("# ") for n in sections)


def test_unusual_names_are_quoted_right():
    odd = [Path("/d/yes.jsonl"), Path("/d/a: b #1.jsonl"), Path("/d/007.csv")]
    raw = yaml.safe_load(commented_config("org/m: x", odd, OWNER))
    assert raw["model"]["path"] == "org/m: x"
    assert raw["data"]["clients"] == {
        "yes": "/d/yes.jsonl",
        "a: b #1": "/d/a: b #1.jsonl",
        "007": "/d/007.csv",
    }


def test_two_files_of_one_name_are_refused():
    with pytest.raises(ConfigError, match="same name"):
        commented_config("m", [Path("/one/a.jsonl"), Path("/two/a.jsonl")])


def test_no_file_at_all_is_refused():
    with pytest.raises(ConfigError, match=r"data\.clients"):
        commented_config("m", [])
