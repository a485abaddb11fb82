"""A rehearsal's folder: made once, taken up again, never mixed with another config's."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedot.config import Config, config_from_dict, with_overrides
from fedot.errors import ConfigError, TransportError
from fedot.studies.poc import prepare, rehearse
from fedot.transport.identity import read_kit


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Config]:
    def make(*overrides: str) -> Config:
        raw: dict[str, Any] = {
            "model": {"path": str(tmp_path / "model")},
            "data": {
                "clients": {name: str(tmp_path / f"{name}.jsonl") for name in ("a", "b", "c")},
                "owner_text": str(tmp_path / "owner.jsonl"),
            },
            "privacy": {"unit": "example", "target_epsilon": 3.0},
        }
        return config_from_dict(with_overrides(raw, overrides))

    return make


def test_every_site_has_keys_kit_and_policy_of_its_own(
    config: Callable[..., Config], tmp_path: Path
) -> None:
    made = prepare(config(), None, tmp_path / "poc")
    assert sorted(made.sites) == ["a", "b", "c"]
    for name in made.sites:
        home = tmp_path / "poc" / name
        assert read_kit(home / "kit.json").site == name
        assert (home / f"{name}.key").is_file()
        terms = yaml.safe_load((home / "policy.yaml").read_text())
        assert (terms["dataset_id"], terms["max_epsilon"]) == (name, 3.0)


def test_job_is_called_as_it_was_asked(config: Callable[..., Config], tmp_path: Path) -> None:
    made = prepare(config(), None, tmp_path / "poc", "t")
    assert made.server[made.server.index("--name") + 1] == "t"


def test_server_is_told_nothing_of_the_sites_files(
    config: Callable[..., Config], tmp_path: Path
) -> None:
    prepare(config(), 2, tmp_path / "poc")
    text = (tmp_path / "poc" / "config.yaml").read_text()
    assert yaml.safe_load(text)["network"]["sites"] == ["a", "b"]
    assert str(tmp_path / "a.jsonl") not in text


@pytest.mark.parametrize("lost", ["config.yaml", "b/kit.json"])
def test_folder_that_was_half_made_is_finished_with_the_same_keys(
    config: Callable[..., Config], tmp_path: Path, lost: str
) -> None:
    prepare(config(), None, tmp_path / "poc")
    owner = read_kit(tmp_path / "poc" / "a" / "kit.json").owner
    (tmp_path / "poc" / lost).unlink()
    (tmp_path / "poc" / "config.yaml").unlink(missing_ok=True)
    prepare(config(), None, tmp_path / "poc")
    assert {read_kit(tmp_path / "poc" / n / "kit.json").owner for n in "abc"} == {owner}


def test_folder_of_another_config_is_refused(config: Callable[..., Config], tmp_path: Path) -> None:
    prepare(config(), None, tmp_path / "poc")
    prepare(config(), None, tmp_path / "poc")
    with pytest.raises(ConfigError, match="another config"):
        prepare(config("federation.rounds=9"), None, tmp_path / "poc")
    # Under another name it would be another job, which spends the budgets again.
    with pytest.raises(ConfigError, match="another config"):
        prepare(config(), None, tmp_path / "poc", "other")


@pytest.mark.parametrize("num_sites", [0, 4])
def test_more_sites_than_clients_are_refused(
    config: Callable[..., Config], tmp_path: Path, num_sites: int
) -> None:
    with pytest.raises(ConfigError, match=f"--sites is {num_sites} and data.clients has 3"):
        prepare(config(), num_sites, tmp_path / "poc")
    assert not (tmp_path / "poc").exists()


@pytest.mark.slow
def test_site_that_gives_up_ends_the_rehearsal(
    config: Callable[..., Config], tmp_path: Path
) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.jsonl").write_text("{}\n")
    made = prepare(config(), 1, tmp_path / "poc")
    # The server would wait for it for ever.
    os.remove(tmp_path / "a.jsonl")
    server = ["serve", *made.server[2:]]
    server.remove("--until-done")
    said: list[str] = []
    waits = type(made)(made.folder, server, made.sites)
    with pytest.raises(TransportError, match="exit code 2"):
        rehearse(waits, lambda who, what: said.append(f"{who}: {what}"))
    assert any(line.startswith("a: error: there are no records") for line in said)
