"""The config: what is refused, in which words, and what overrides and paths do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from fedot.config import Config, config_from_dict, load_config, to_yaml, with_overrides
from fedot.errors import ConfigError

SMALLEST: dict[str, Any] = {
    "model": {"path": "m"},
    "data": {"clients": {"a": "a.jsonl", "b": "b.jsonl", "c": "c.jsonl"}},
}


def all_keys(section: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    keys = []
    for name, field in section.model_fields.items():
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
        inner = [k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)]
        keys += all_keys(inner[0], f"{prefix}{name}.") if inner else [prefix + name]
    return keys


def refusal(*overrides: str) -> str:
    """The one line that a user sees."""
    with pytest.raises(ConfigError) as caught:
        config_from_dict(with_overrides(SMALLEST, overrides))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_smallest_config_needs_model_and_clients_only():
    config = config_from_dict(SMALLEST)
    assert config.privacy.unit == "example"
    assert config.privacy.target_epsilon == 8.0


def test_config_cannot_be_changed_after_it_was_checked():
    config = config_from_dict(SMALLEST)
    with pytest.raises(ValidationError):
        config.privacy.target_epsilon = 100.0


@pytest.mark.parametrize("key", all_keys())
def test_every_key_is_hinted_at_when_its_last_letter_is_missing(key):
    wrong = key[:-1]
    assert refusal(f"{wrong}=1") == f"config has no key {wrong}. Did you mean {key}?"


def test_key_in_no_section_is_hinted_at_where_it_belongs():
    assert refusal("rounds=3").endswith("Did you mean federation.rounds?")


def test_key_like_nothing_known_gets_no_hint():
    assert refusal("zzzzz=1") == "config has no key zzzzz."


def test_unknown_key_is_named_before_any_wrong_value():
    message = refusal("privacy.target_epsilon=0", "privacy.epslon=1")
    assert message.startswith("config has no key privacy.epslon.")


def test_epsilon_zero_is_refused_with_the_way_to_train_without_privacy():
    assert refusal("privacy.target_epsilon=0") == (
        "privacy.target_epsilon is 0; input should be greater than 0. "
        "Use privacy.unit=none to train without DP."
    )


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("privacy.delta=0", "privacy.delta"),
        ("privacy.delta=1", "privacy.delta"),
        ("privacy.l2_clip_norm=0", "privacy.l2_clip_norm"),
        ("privacy.target_epsilon=.inf", "privacy.target_epsilon"),
        ("privacy.target_epsilon=.nan", "privacy.target_epsilon"),
        ("privacy.unit=no", "privacy.unit"),
        ("emulator.keep_ratio=0", "emulator.keep_ratio"),
        ("emulator.keep_ratio=1.01", "emulator.keep_ratio"),
        ("emulator=off", "emulator"),
        ("emulator=null", "emulator"),
        ("emulator=nonee", "emulator"),
        ("adapter.blocks=end", "adapter.blocks"),
        ("adapter.blocks=[a]", "adapter.blocks"),
        ("adapter.rank=0", "adapter.rank"),
        ("data.held_out_ratio=0", "data.held_out_ratio"),
        ("data.held_out_ratio=1", "data.held_out_ratio"),
        ("data.max_tokens=7", "data.max_tokens"),
        ("data.clients=[a.jsonl]", "data.clients"),
        ("training.batch_size=2.5", "training.batch_size"),
        ("training.learning_rate=0", "training.learning_rate"),
        ("training.learning_rate=-.inf", "training.learning_rate"),
        ("evaluation.ceiling_learning_rates=[0.001, -1]", "evaluation.ceiling_learning_rates.1"),
        ("evaluation.ceiling_learning_rates=[.nan]", "evaluation.ceiling_learning_rates.0"),
        ("federation.rounds=0", "federation.rounds"),
        ("federation.cohort_size=0", "federation.cohort_size"),
        ("federation.quorum=0", "federation.quorum"),
        ("federation.deadline_s=0", "federation.deadline_s"),
        ("network.wait_for=0", "network.wait_for"),
        ("network.sites=a", "network.sites"),
        ("payload.chain=1", "payload.chain"),
        ("payload.bandwidth_mb_per_s=0", "payload.bandwidth_mb_per_s"),
        ("payload.error_feedback=maybe", "payload.error_feedback"),
        ("seed=-1", "seed"),
        ("seed=4294967296", "seed"),
        ("model.dtype=fp16", "model.dtype"),
        ("model=m", "model"),
        ("privacy=null", "privacy"),
    ],
)
def test_value_out_of_bounds_is_refused_under_its_own_name(override, key):
    assert refusal(override).startswith(f"{key} is ")


def test_missing_key_without_default_is_named():
    with pytest.raises(ConfigError, match=r"^config lacks model, which has no default\.$"):
        config_from_dict({"data": SMALLEST["data"]})


@pytest.mark.parametrize("name", ["''", "'..'", "../x", "a/b", "'a\\b'", ".hidden", '"a\\nb"'])
def test_client_name_that_would_leave_the_run_folder_is_refused(name):
    assert "data.clients has a client called" in refusal(f"data.clients={{{name}: a.jsonl}}")


@pytest.mark.parametrize("name", ["email+http", "client-0", "Müller & Söhne", "a.b", "7 of 9"])
def test_ordinary_client_name_is_taken(name):
    clients = {"clients": {name: "a.jsonl"}}
    assert config_from_dict(SMALLEST | {"data": clients}).data.clients == clients["clients"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("federation.quorum=4",), "federation.quorum is 4; a cohort has 3 clients"),
        (
            ("federation.quorum=3", "federation.cohort_size=2"),
            "federation.quorum is 3; a cohort has 2 clients",
        ),
        (("federation.deadline_s=5",), "federation.quorum is not set"),
        (
            (
                "federation.quorum=2",
                "federation.aggregation=trimmed_mean",
                "federation.num_trimmed=1",
            ),
            "It must be below half of federation.quorum",
        ),
        (("network.sites=[]",), "must name every site once"),
        (("network.sites=[a, b, a]",), "must name every site once"),
        (("network.sites=[../a]",), "network.sites has a site called '../a'"),
        (("network.sites=[a, b]", "network.wait_for=3"), "network.wait_for is 3"),
        (
            ("data.clients={}", "network.sites=[a, b]", "federation.cohort_size=3"),
            "federation.cohort_size is 3; there are 2 clients",
        ),
        (("data.clients={}", "data.policies={a: a.yaml}"), "data.policies has a"),
    ],
)
def test_numbers_of_a_network_run_must_go_together(overrides, words):
    if "data.clients={}" in overrides:
        raw = SMALLEST | {"data": {}}
        with pytest.raises(ConfigError) as caught:
            config_from_dict(with_overrides(raw, overrides[1:]))
        assert words in str(caught.value)
    else:
        assert words in refusal(*overrides)


def test_without_clients_their_number_is_not_known_and_nothing_is_compared_with_it():
    raw = with_overrides(
        SMALLEST | {"data": {}},
        ["federation.cohort_size=50", "federation.quorum=40", "federation.deadline_s=60"],
    )
    config = config_from_dict(raw)
    assert config.client_names == ()
    named = config_from_dict(with_overrides(SMALLEST | {"data": {}}, ["network.sites=[b, a]"]))
    assert named.client_names == ("a", "b")
    assert config_from_dict(SMALLEST).client_names == ("a", "b", "c")


def test_cohort_larger_than_the_federation_is_refused():
    message = refusal("federation.cohort_size=4")
    assert message.startswith("federation.cohort_size is 4; there are 3 clients.")
    config_from_dict(with_overrides(SMALLEST, ["federation.cohort_size=3"]))


def test_trimming_everything_away_is_refused_at_the_exact_bound():
    trimmed = "federation.aggregation=trimmed_mean"
    config_from_dict(with_overrides(SMALLEST, [trimmed, "federation.num_trimmed=1"]))
    assert "dropping 4 of 3 values" in refusal(trimmed, "federation.num_trimmed=2")
    # Of a cohort of two, one at each end is everything.
    assert "dropping 2 of 2 values" in refusal(
        trimmed, "federation.num_trimmed=1", "federation.cohort_size=2"
    )


def test_trimming_with_a_plain_mean_is_refused():
    assert "aggregation is mean" in refusal("federation.num_trimmed=1")


@pytest.mark.parametrize(
    "override", ["adapter.kind=full", "adapter.blocks=all", "adapter.blocks=[1]"]
)
def test_training_inside_an_emulators_middle_is_refused(override):
    assert "only the end blocks can train" in refusal(override)
    config_from_dict(with_overrides(SMALLEST, [override, "emulator=none"]))


def test_overrides_are_read_as_yaml():
    raw = with_overrides(
        SMALLEST,
        [
            "training.learning_rate=1e-3",
            "adapter.blocks=[0, 2]",
            "emulator=none",
            "data.owner_text=a=b.txt",
            "federation.cohort_size=null",
        ],
    )
    config = config_from_dict(raw)
    assert config.training.learning_rate == 1e-3
    assert config.adapter.blocks == [0, 2]
    assert config.emulator == "none"
    assert config.data.owner_text == "a=b.txt"


def test_override_wins_over_the_file_and_leaves_its_neighbours():
    raw = SMALLEST | {"privacy": {"target_epsilon": 3.0, "delta": 1e-6}}
    config = config_from_dict(with_overrides(raw, ["privacy.target_epsilon=2"]))
    assert config.privacy.target_epsilon == 2.0
    assert config.privacy.delta == 1e-6


def test_later_override_wins():
    assert with_overrides({}, ["seed=1", "seed=2"]) == {"seed": 2}


def test_override_of_one_client_leaves_the_others_and_the_original():
    raw = with_overrides(SMALLEST, ["data.clients.a=other.csv"])
    assert raw["data"]["clients"] == {"a": "other.csv", "b": "b.jsonl", "c": "c.jsonl"}
    assert SMALLEST["data"]["clients"]["a"] == "a.jsonl"


@pytest.mark.parametrize("override", ["seed", "=1", "a..b=1", ".a=1", "a.b.c.d=1"])
def test_override_that_is_no_key_and_value_is_refused(override):
    with pytest.raises(ConfigError, match=r"must read section\.key=value"):
        with_overrides(SMALLEST, [override])


def test_override_with_broken_yaml_is_refused():
    with pytest.raises(ConfigError, match="the value is not valid YAML"):
        with_overrides(SMALLEST, ["adapter.blocks=[1"])


def write(path: Path, raw: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(raw if isinstance(raw, str) else yaml.safe_dump(raw), encoding="utf-8")
    return path


def test_relative_paths_are_meant_from_the_configs_folder(tmp_path, monkeypatch):
    home, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    for folder in (home, elsewhere):
        write(folder / "data" / "a.jsonl", "{}")
        write(folder / "owner.txt", "text")
        (folder / "model").mkdir()
    path = write(
        home / "run.yaml",
        {
            "model": {"path": "model"},
            "data": {"clients": {"a": "data/a.jsonl"}, "owner_text": "owner.txt"},
        },
    )
    monkeypatch.chdir(elsewhere)
    config = load_config(path)
    assert Path(config.data.clients["a"]) == home / "data" / "a.jsonl"
    assert Path(config.data.owner_text or "") == home / "owner.txt"
    assert Path(config.model.path) == home / "model"


def test_hub_id_and_absolute_paths_stay_as_they_are(tmp_path):
    raw = {"model": {"path": "org/model"}, "data": {"clients": {"a": "/data/a.jsonl"}}}
    config = load_config(write(tmp_path / "run.yaml", raw))
    assert config.model.path == "org/model"
    assert config.data.clients["a"] == "/data/a.jsonl"


def test_missing_config_says_how_to_make_one(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read config .*none\.yaml.*fedot init"):
        load_config(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: [", "is not valid YAML: line 1, column 9: "),
        ("seed: 1\na: b: c", "is not valid YAML: line 2, column 5: "),
        ("", "holds no sections"),
        ("- model", "holds no sections"),
        ("just words", "holds no sections"),
        ("model: !!python/object/apply:os.getcwd []", "is not valid YAML"),
    ],
)
def test_file_that_is_no_yaml_mapping_is_refused_in_one_line(tmp_path, text, words):
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path / "run.yaml", text))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "run.yaml").write_bytes(b"\xff\xfe\x00model")
    with pytest.raises(ConfigError, match="is not valid YAML"):
        load_config(tmp_path / "run.yaml")


@pytest.mark.parametrize("emulator", ["none", {"keep_ratio": 0.25, "distill_steps": 0}])
def test_saved_config_loads_back_equal(tmp_path, emulator):
    raw = SMALLEST | {"emulator": emulator, "privacy": {"delta": 1e-7}, "seed": 3}
    config = config_from_dict(raw)
    assert load_config(write(tmp_path / "config.yaml", to_yaml(config))) == config


def test_saved_config_states_every_key():
    saved = yaml.safe_load(to_yaml(config_from_dict(SMALLEST)))
    for key in all_keys():
        *sections, last = key.split(".")
        holder = saved
        for section in sections:
            holder = holder[section]
        assert last in holder, key


def test_cap_below_the_expected_batch_is_refused():
    words = refusal("training.batch_size=32", "training.max_batch_size=31")
    assert "at least batch_size, 32" in words
