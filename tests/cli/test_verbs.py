"""Every verb, used as its user would: config, dry run, run, report, plug-in, a taste."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM

from fedot.cli.app import main
from fedot.config import load_config
from fedot.models.adapters import load_adapter
from fedot.models.plug_in import plug_in


@dataclass
class Fedot:
    """The command, run in this process."""

    capsys: pytest.CaptureFixture[str]
    monkeypatch: pytest.MonkeyPatch

    def __call__(self, *args: str | Path) -> str:
        self.monkeypatch.setattr(sys, "argv", ["fedot", *map(str, args)])
        with pytest.raises(SystemExit) as stopped:
            main()
        shown = self.capsys.readouterr()
        assert not stopped.value.code, shown.err
        return shown.out


@pytest.fixture
def fedot(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Fedot:
    return Fedot(capsys, monkeypatch)


@pytest.fixture
def run(fedot: Fedot, tiny_config: dict[str, Any], tmp_path: Path) -> Path:
    """A finished run, made by the command."""
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tiny_config))
    fedot("simulate", tmp_path / "config.yaml", "--out", tmp_path / "run")
    return tmp_path / "run"


IDS = torch.arange(4, 24).reshape(1, -1)


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(IDS).logits


def test_init_writes_a_config_that_runs(
    fedot: Fedot, checkpoint: Path, tiny_config: dict[str, Any], tmp_path: Path
) -> None:
    files = tiny_config["data"]["clients"].values()
    owner, out = tiny_config["data"]["owner_text"], tmp_path / "mine.yaml"
    data = [part for path in files for part in ("--data", path)]
    own = ("--owner-text", owner, "--proxy", tiny_config["data"]["proxy"])
    shown = fedot("init", "--model", checkpoint, *data, *own, "--out", out)
    assert "--dry-run" in shown
    config = load_config(out, ["data.max_tokens=32"])
    assert config.data.proxy == tiny_config["data"]["proxy"]
    assert set(config.data.clients) == set(tiny_config["data"]["clients"])
    less = ["federation.rounds=1", "training.steps_per_round=1", "emulator.distill_steps=1"]
    settings = [part for one in ["data.max_tokens=32", *less] for part in ("--set", one)]
    assert "recovery" in fedot("simulate", out, "--out", tmp_path / "run", *settings)


def test_dry_run_says_what_it_costs_and_writes_nothing(
    fedot: Fedot, tiny_config: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tiny_config))
    before = sorted(tmp_path.rglob("*"))
    shown = fedot(
        *("simulate", tmp_path / "config.yaml", "--dry-run", "--out", tmp_path / "run"),
        *("--set", "privacy.unit=example", "--set", "privacy.target_epsilon=3"),
    )
    assert sorted(tmp_path.rglob("*")) == before
    for word in ("memory, client", "time", "bytes sent", "epsilon client-0", "Noise multiplier"):
        assert word in shown


def test_dry_run_bytes_are_close_to_what_is_sent(
    tiny_config: dict[str, Any], tmp_path: Path
) -> None:
    from fedot.config import config_from_dict
    from fedot.federation.estimate import estimate
    from fedot.federation.run import simulate

    config = config_from_dict({**tiny_config, "privacy": {"unit": "example"}})
    said, was = estimate(config), simulate(config, tmp_path / "run")
    # One random update stands for all; a real one is not quite as random.
    assert said.sent_bytes == pytest.approx(was["wire"]["sent_bytes"], rel=0.1)
    assert said.float32_bytes == was["wire"]["float32_bytes"]
    assert said.received_bytes == pytest.approx(was["wire"]["received_bytes"], rel=0.1)
    assert said.epsilon == pytest.approx(was["privacy"]["epsilon"], abs=1e-3)


def test_every_stage_is_announced_before_it_is_timed_and_resume_says_where_it_is(
    fedot: Fedot, tiny_config: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tiny_config))
    verb = ("simulate", tmp_path / "config.yaml", "--out", tmp_path / "run")
    lines = fedot(*verb).splitlines()
    timed = [line.rpartition(":")[0] for line in lines if re.search(r"^[a-z].*: [\d.]+ s$", line)]
    assert {"full fine-tuning (the ceiling)", "measure full zero shot"} <= set(timed)
    for stage in timed:
        assert f"{stage} ..." in lines[: lines.index(next(t for t in lines if f"{stage}: " in t))]
    again = fedot(*verb, "--resume")
    assert "is finished already; nothing is run again" in again
    assert "round   1" not in again
    (tmp_path / "run" / "summary.json").unlink()
    assert "goes on after round 2" in fedot(*verb, "--resume")


def test_run_prints_the_numbers_and_the_report(fedot: Fedot, run: Path) -> None:
    report = (run / "report.html").read_bytes()
    (run / "report.html").unlink()
    assert "report.html" in fedot("report", run)
    assert (run / "report.html").read_bytes() == report


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft's own
def test_plugged_in_checkpoint_and_peft_directory_agree(
    fedot: Fedot, run: Path, checkpoint: Path, tmp_path: Path
) -> None:
    adapter = run / "adapter-best"
    common = ("plug-in", "--model", checkpoint, "--adapter", adapter)
    fedot(*common, "--out", tmp_path / "merged")
    fedot(*common, "--out", tmp_path / "peft", "--form", "peft")
    base = AutoModelForCausalLM.from_pretrained(checkpoint)
    untuned = logits(base)
    as_peft = logits(PeftModel.from_pretrained(base, tmp_path / "peft"))
    merged = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"))
    spec, state = load_adapter(adapter)
    plugged = logits(plug_in(AutoModelForCausalLM.from_pretrained(checkpoint), spec, state).model)
    torch.testing.assert_close(as_peft, plugged, rtol=0, atol=0)
    torch.testing.assert_close(merged, plugged, rtol=1e-4, atol=1e-5)  # W + BA in float32
    assert (plugged - untuned).abs().max() > 1e-3


def test_generate_shows_three_models_side_by_side(fedot: Fedot, run: Path) -> None:
    shown = fedot("generate", run, "--prompt", "the server keeps", "--tokens", "5")
    for title in ("prompt", "full model, untuned", "emulator, tuned", "plugged-in model"):
        assert title in shown
    assert fedot("generate", run, "--prompt", "the server keeps", "--tokens", "5") == shown
