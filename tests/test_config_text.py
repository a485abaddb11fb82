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
    section = ""
    for line in commented_config("/models/m", CLIENTS, OWNER).splitlines():
        key = re.match(r"( {0,2})(\w+):", line)
        if key is None:
            continue
        name = f"{section}.{key[2]}" if key[1] else key[2]
        section = section if key[1] else key[2]
        assert name not in found, f"{name} stands twice"
        found[name] = line
    config = config_from_dict({"model": {"path": "m"}, "data": {"clients": {"a": "a.jsonl"}}})
    for name, value in config:
        for key in type(value).model_fields if isinstance(value, BaseModel) else ():
            assert re.search(r"  # \w", found.pop(f"{name}.{key}")), f"{name}.{key}: no comment"
        line = found.pop(name)
        assert isinstance(value, BaseModel) or re.search(r"  # \w", line), f"{name}: no comment"
        assert "# None" not in line
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
