"""What people get wrong: one clear line, exit code 2, nothing left half written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedot.cli.app import main


@dataclass(frozen=True)
class Done:
    returncode: int
    stderr: str


class Fedot:
    """Runs the command in this process: the same entry point, without importing torch again."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
        self._capsys, self._monkeypatch = capsys, monkeypatch

    def __call__(self, *args: str | Path, cwd: Path) -> Done:
        self._monkeypatch.setattr(sys, "argv", ["fedot", *map(str, args)])
        self._monkeypatch.chdir(cwd)
        with pytest.raises(SystemExit) as stopped:
            main()
        return Done(int(stopped.value.code or 0), self._capsys.readouterr().err)


@pytest.fixture
def fedot(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Fedot:
    return Fedot(capsys, monkeypatch)


@pytest.fixture
def config(tiny_config: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tiny_config))
    return path


def check_refused(done: Done, *words: str, nothing_at: Path | None = None) -> None:
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in errors[0]
    if nothing_at is not None:
        assert not nothing_at.exists()


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("trainig.batch_size=3", ("trainig", "training")),
        ("training.bach_size=3", ("training.bach_size", "training.batch_size")),
        ("data.owner_text=nowhere.jsonl", ("nowhere.jsonl", "no data file")),
        ("emulator.keep_ratio=0.1", ("leaves none", "at least 0.50")),
        ("adapter.num_end_blocks=2", ("no middle",)),
        ("privacy.target_epsilon=0", ("privacy.target_epsilon", "unit=none")),
        ("federation.num_trimmed=2", ("trimmed_mean",)),
        ("model.path=no/such/model", ("no checkpoint", "no such directory", "config.json")),
        ("model.path=nomodel", ("no checkpoint", "no such directory", "owner/name")),
        ("model.path=nobody/nothing", ("no directory nobody/nothing", "the hub was asked")),
        ("data.max_tokens=4096", ("reads at most",)),
    ],
)
def test_settings_that_cannot_work(
    fedot: Fedot, config: Path, tmp_path: Path, setting: str, words: tuple[str, ...]
) -> None:
    out = tmp_path / "run"
    done = fedot("simulate", config, "--out", out, "--set", setting, cwd=tmp_path)
    check_refused(done, *words, nothing_at=out)


@pytest.mark.parametrize("option", ["--data", "--owner-text", "--proxy"])
def test_init_refuses_a_file_that_is_not_there(
    fedot: Fedot, tmp_path: Path, checkpoint: Path, option: str
) -> None:
    (tmp_path / "a.jsonl").touch()
    files = {"--data": "a.jsonl"} | {option: "zz.jsonl"}
    named = [part for pair in files.items() for part in pair]
    done = fedot("init", "--model", checkpoint, *named, cwd=tmp_path)
    check_refused(done, option, "zz.jsonl", nothing_at=tmp_path / "config.yaml")


@pytest.mark.parametrize("model", ["nomodel", "./tiny", "models/of/mine", "a.jsonl"])
def test_init_refuses_what_is_neither_a_checkpoint_nor_a_hub_id(
    fedot: Fedot, tmp_path: Path, model: str
) -> None:
    (tmp_path / "a.jsonl").touch()
    done = fedot("init", "--model", model, "--data", "a.jsonl", cwd=tmp_path)
    check_refused(done, model, "owner/name", nothing_at=tmp_path / "config.yaml")


@pytest.mark.parametrize("model", ["gpt2", "openai-community/gpt2", "meta-llama/Llama-3.2-1B"])
def test_init_takes_hub_ids(fedot: Fedot, tmp_path: Path, model: str) -> None:
    (tmp_path / "a.jsonl").touch()
    done = fedot("init", "--model", model, "--data", "a.jsonl", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_missing_config(fedot: Fedot, tmp_path: Path) -> None:
    check_refused(fedot("simulate", "none.yaml", cwd=tmp_path), "none.yaml", "fedot init")


def test_missing_and_empty_client_files(
    fedot: Fedot, config: Path, tmp_path: Path, tiny_config: dict[str, Any]
) -> None:
    victim = Path(tiny_config["data"]["clients"]["client-1"])
    victim.write_text("")
    done = fedot("simulate", config, "--out", tmp_path / "run", cwd=tmp_path)
    check_refused(done, victim.name, "no records", nothing_at=tmp_path / "run")
    victim.unlink()
    done = fedot("simulate", config, "--out", tmp_path / "run", cwd=tmp_path)
    check_refused(done, victim.name, "no data file", nothing_at=tmp_path / "run")


def test_checkpoint_that_is_no_causal_lm_or_broken(
    fedot: Fedot, config: Path, tmp_path: Path, checkpoint: Path
) -> None:
    for name, damage in (("bert", _make_bert), ("cut", _cut_weights), ("garbled", _garble_config)):
        model = tmp_path / name
        model.mkdir()
        for path in checkpoint.iterdir():
            (model / path.name).write_bytes(path.read_bytes())
        damage(model)
        done = fedot(
            *("simulate", config, "--out", tmp_path / "run", "--set", f"model.path={model}"),
            cwd=tmp_path,
        )
        check_refused(done, name, nothing_at=tmp_path / "run")


def _make_bert(model: Path) -> None:
    (model / "config.json").write_text(json.dumps({"model_type": "vit"}))


def _cut_weights(model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])


def _garble_config(model: Path) -> None:
    (model / "config.json").write_text("{")


def test_out_that_exists_and_resume_of_nothing(fedot: Fedot, config: Path, tmp_path: Path) -> None:
    out = tmp_path / "there"
    out.mkdir()
    check_refused(fedot("simulate", config, "--out", out, cwd=tmp_path), "exists", "--resume")
    assert list(out.iterdir()) == []
    done = fedot("simulate", config, "--out", tmp_path / "new", "--resume", cwd=tmp_path)
    check_refused(done, "drop --resume", nothing_at=tmp_path / "new")


def test_resume_with_another_setting_names_the_old_value(
    fedot: Fedot, config: Path, tmp_path: Path
) -> None:
    from fedot.config import load_config, to_yaml

    out = tmp_path / "run"
    out.mkdir()
    (out / "config.yaml").write_text(to_yaml(load_config(config)))
    again = ("simulate", config, "--out", out, "--resume", "--set")
    done = fedot(*again, "federation.rounds=3", cwd=tmp_path)
    check_refused(done, "started with federation.rounds 2, not 3")
    done = fedot(*again, "emulator=none", cwd=tmp_path)
    check_refused(done, 'started with emulator a section of its own, not "none"')


def test_run_in_place_of_an_adapter_is_told_which_adapters_it_has(
    fedot: Fedot, tmp_path: Path, checkpoint: Path
) -> None:
    (tmp_path / "got" / "adapter-best").mkdir(parents=True)
    done = fedot(
        *("plug-in", "--model", checkpoint, "--adapter", "got", "--out", tmp_path / "out"),
        cwd=tmp_path,
    )
    check_refused(done, "--adapter got/adapter-best", nothing_at=tmp_path / "out")


def test_generate_from_fetched_results_names_plug_in(
    fedot: Fedot, config: Path, tmp_path: Path
) -> None:
    got = tmp_path / "got"
    (got / "adapter-best").mkdir(parents=True)
    (got / "config.yaml").write_text(config.read_text())
    done = fedot("generate", "got", "--prompt", "a", cwd=tmp_path)
    check_refused(done, "no bundle", "fedot plug-in --model", "--adapter got/adapter-best --out")


def test_plug_in_of_something_that_is_no_adapter(
    fedot: Fedot, tmp_path: Path, checkpoint: Path
) -> None:
    done = fedot(
        *("plug-in", "--model", checkpoint, "--adapter", tmp_path, "--out", tmp_path / "out"),
        cwd=tmp_path,
    )
    check_refused(done, "cannot read an adapter", nothing_at=tmp_path / "out")


@pytest.mark.slow
def test_ctrl_c_in_a_round_keeps_what_was_done_and_resumes(
    fedot: Fedot, config: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "fedot.cli", "simulate", str(config), "--out", str(out)]
    slow = ["--set", "federation.rounds=40", "--set", "training.steps_per_round=20"]
    process = subprocess.Popen(
        [*command, *slow],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    deadline = time.monotonic() + 120
    while not (out / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2, errors
    assert errors.splitlines()[-1].startswith("error: interrupted")
    assert "--resume" in errors
    assert "Traceback" not in errors
    done_before = len((out / "metrics.jsonl").read_text().splitlines())
    assert done_before < 40
    resumed = fedot("simulate", config, "--out", out, "--resume", *slow, cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 41


def test_learned_positions_under_dp_are_refused_before_anything_is_built(
    fedot: Fedot, config: Path, tmp_path: Path, tiny_tokenizer: Any, tiny_gpt2: Any
) -> None:
    tiny_gpt2.save_pretrained(tmp_path / "gpt2")
    tiny_tokenizer.save_pretrained(tmp_path / "gpt2")
    changes = ("emulator=none", "adapter.kind=full", "privacy.unit=example")
    settings = [part for one in changes for part in ("--set", one)]
    model = ("--set", f"model.path={tmp_path / 'gpt2'}")
    done = fedot("simulate", config, "--out", tmp_path / "run", *model, *settings, cwd=tmp_path)
    check_refused(done, "wpe", "unit=none", nothing_at=tmp_path / "run")
