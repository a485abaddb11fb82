"""Which chain goes with which rule and direction, and what `chain: auto` does to a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from fedot.compression.chain import OPERATORS, Stage, chain_of, plan, short_text
from fedot.compression.speed import UPDATE_CHAINS, Measured
from fedot.config import (
    AdapterConfig,
    FederationConfig,
    PayloadConfig,
    PrivacyConfig,
    config_from_dict,
    with_overrides,
)
from fedot.errors import ConfigError
from fedot.federation import payloads
from fedot.federation.estimate import estimate
from fedot.federation.payloads import check_payload, settled
from fedot.federation.run import simulate
from fedot.report.page import write_report

RULES = get_args(FederationConfig.model_fields["aggregation"].annotation)
UPDATES = (
    *("float32", "bfloat16+planes+deflate", "float16", "int8+deflate", "nf4+zstd"),
    *("top_k+float32", "top_k(keep_ratio=0.01)+int8+deflate", "auto"),
)
# Every rule has a row: what it takes, by whether the update is sparse.
LEGAL = {"mean": {"dense": True, "sparse": True}, "trimmed_mean": {"dense": True, "sparse": False}}


def check(what: PayloadConfig, rule: str, unit: str = "none", **adapter: Any) -> None:
    """`check_payload`, from what differs."""
    federation = FederationConfig.model_validate({"aggregation": rule})
    privacy = PrivacyConfig.model_validate({"unit": unit})
    check_payload(what, federation, AdapterConfig(**adapter), privacy)


def payload(**keys: Any) -> PayloadConfig:
    return PayloadConfig(bandwidth_mb_per_s=1.0, **keys)


def test_every_rule_has_a_row() -> None:
    assert set(LEGAL) == set(RULES)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("chain", UPDATES)
def test_legal_combinations_of_chain_and_rule(rule: str, chain: str) -> None:
    if LEGAL[rule]["sparse" if "top_k" in chain else "dense"]:
        check(payload(chain=chain), rule)
    else:
        with pytest.raises(ConfigError, match=r"top_k .* trimmed_mean, .* most values are zeros"):
            check(payload(chain=chain), rule)


@pytest.mark.parametrize("unit", ["client", "both"])
def test_top_k_with_noise_at_the_server_is_refused(unit: str) -> None:
    check(payload(chain="int8+deflate"), "mean", unit)
    check(payload(chain="top_k+int8"), "mean", "example")
    with pytest.raises(ConfigError, match=r"top_k.*clipped mean of whole updates"):
        check(payload(chain="top_k+int8"), "mean", unit)


@pytest.mark.parametrize(
    ("keys", "feeds_back"),
    [
        ({"chain": "int8+deflate"}, False),
        ({"chain": "int8+deflate", "error_feedback": True}, True),
        ({"chain": "top_k+int8"}, True),
        ({"chain": "top_k+int8", "error_feedback": False}, False),
        ({"chain": "auto"}, False),
        ({"chain": "auto", "error_feedback": True}, True),
    ],
)
def test_a_residual_is_not_fed_to_the_other_half(keys: dict[str, Any], feeds_back: bool) -> None:
    check(payload(**keys), "mean", freeze="A")
    if feeds_back:
        with pytest.raises(ConfigError, match=r"the other half of LoRA"):
            check(payload(**keys), "mean", alternate=True)
    else:
        check(payload(**keys), "mean", alternate=True)


STATE_VALUES = {"float32": True, "bfloat16": True, "float16": True, "int8": False, "nf4": False}


def test_every_way_to_send_values_has_an_entry() -> None:
    assert set(STATE_VALUES) == {n for n, o in OPERATORS.items() if o.stage == Stage.VALUES}


@pytest.mark.parametrize("values", STATE_VALUES)
@pytest.mark.parametrize("sparse", ["", "top_k+"])
def test_legal_chains_for_state(values: str, sparse: str) -> None:
    what = payload(state=f"{sparse}{values}+deflate")
    if STATE_VALUES[values] and not sparse:
        check(what, "mean")
    else:
        lossy = "top_k" if sparse else values
        with pytest.raises(ConfigError, match=f"{lossy} loses too much of a state"):
            check(what, "mean")


@pytest.mark.parametrize("key", ["chain", "state"])
def test_a_chain_that_cannot_be_planned_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match="int8 stands after deflate"):
        check(payload(**{key: "deflate+int8"}), "mean")


def test_refusals_come_before_anything_is_written(
    tiny_config: dict[str, Any], tmp_path: Path
) -> None:
    raw = with_overrides(
        tiny_config,
        ["payload.chain=top_k+int8", "federation.aggregation=trimmed_mean", "model.path=nowhere"],
    )
    with pytest.raises(ConfigError, match="most values are zeros"):
        simulate(config_from_dict(raw), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_auto_without_a_link_is_refused(tiny_config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"Set payload\.bandwidth_mb_per_s"):
        config_from_dict(with_overrides(tiny_config, ["payload.chain=auto"]))


@pytest.mark.parametrize("chain", UPDATE_CHAINS, ids=short_text)
def test_what_auto_may_choose_is_legal_with_every_rule(chain: Any) -> None:
    for rule in RULES:
        check(payload(chain=short_text(chain)), rule)


def test_a_slow_link_gets_the_smallest_chain_and_says_why() -> None:
    chosen, reason = settled(PayloadConfig(chain="auto", bandwidth_mb_per_s=0.1))
    assert chosen.chain == "int8+deflate"
    assert reason is not None
    assert reason.startswith("auto took int8+deflate: a GB of float32 over 0.1 MB/s takes: ")


def test_a_chain_with_a_name_is_left_alone_and_nothing_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(payloads, "measure")
    assert settled(PayloadConfig()) == (PayloadConfig(), None)


def measured_in_favour_of(text: str) -> list[Measured]:
    chains = [*UPDATE_CHAINS, chain_of(text)]
    return [Measured(chain, 1e9, 1e9, 0.1 if chain == chain_of(text) else 0.9) for chain in chains]


def test_a_resumed_run_keeps_what_auto_chose_and_says_so_everywhere(
    tiny_config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = with_overrides(tiny_config, ["payload.chain=auto", "payload.bandwidth_mb_per_s=1"])
    config, out = config_from_dict(raw), tmp_path / "run"

    class Stopped(BaseException):
        pass

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "round 1" and done == total:
            raise Stopped

    monkeypatch.setattr(payloads, "measure", lambda: measured_in_favour_of("bfloat16"))
    with pytest.raises(Stopped):
        simulate(config, out, progress=stop)
    monkeypatch.setattr(payloads, "measure", lambda: measured_in_favour_of("int8"))
    assert estimate(config).chain == "int8", "a new run would choose otherwise"
    summary = simulate(config, out, resume=True)
    assert summary["wire"]["chain"] == "bfloat16"
    assert set(summary["wire"]["bytes_after"]) == {"float32", "bfloat16", "payload"}
    assert summary["notes"]["chain"].startswith("auto took bfloat16: a GB of float32")
    assert "auto took bfloat16" in write_report(out).read_text()
    # What it chose can be written into a config as it stands, and makes the same bits.
    same = config_from_dict(with_overrides(tiny_config, ["payload.chain=bfloat16"]))
    again = simulate(same, tmp_path / "again")
    assert again["quality"] == summary["quality"]
    assert json.loads((out / "summary.json").read_text()) == summary


def test_a_summary_says_what_updates_and_state_went_through(
    tiny_config: dict[str, Any], tmp_path: Path
) -> None:
    raw = with_overrides(tiny_config, ["payload.chain=top_k(keep_ratio=0.2)+int8(block=64)"])
    summary = simulate(config_from_dict(raw), tmp_path / "run")
    wire = summary["wire"]
    assert wire["chain"] == "top_k(keep_ratio=0.2)+int8(block=64,min_step=0.032,rounding=nearest)"
    assert wire["state_chain"] == "float32+deflate(level=1)"
    assert wire["error_feedback"] is True
    assert wire["sent_bytes"] < 0.15 * wire["float32_bytes"]
    assert "error feedback" in write_report(tmp_path / "run").read_text()


def test_a_stopped_run_with_feedback_resumes_to_the_same_bits(
    tiny_config: dict[str, Any], tmp_path: Path
) -> None:
    """Residuals at three clients, a kill between two of them, in a whole federation."""
    config = config_from_dict(with_overrides(tiny_config, ["payload.chain=top_k+int8+deflate"]))
    whole = simulate(config, tmp_path / "whole")

    class Stopped(BaseException):
        pass

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "round 2" and done == 2:
            raise Stopped

    with pytest.raises(Stopped):
        simulate(config, tmp_path / "cut", progress=stop)
    resumed = simulate(config, tmp_path / "cut", resume=True)
    assert resumed["quality"] == whole["quality"]
    assert resumed["wire"] == whole["wire"]


def test_planned_text_of_the_defaults_is_what_the_codec_calls_default() -> None:
    default = chain_of(PayloadConfig().chain)
    assert default == plan(*default) == UPDATE_CHAINS[-1]
