"""README stays true: its commands exist, and its code runs."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    return [text for name, text in BLOCKS if name == language]


def test_make_targets_in_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = re.findall(r"^make ([\w-]+)", "\n".join(blocks("sh")), flags=re.MULTILINE)
    assert {"demo", "test"} <= set(named)
    for target in named:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_verbs_in_readme_exist_and_take_their_options() -> None:
    lines = [line for line in "\n".join(blocks("sh")).splitlines() if line.startswith("fedot ")]
    assert len(lines) >= 5
    for line in lines:
        _, *words = shlex.split(line, comments=True)
        num = 2 if words[0] in ("budget", "pki", "job") else 1  # a group of verbs
        verb, rest = words[:num], words[num:]
        shown = subprocess.run(
            [sys.executable, "-m", "fedot.cli", *verb, "--help"],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
        ).stdout
        for word in rest:
            if word.startswith("--"):
                assert word in shown, f"{verb} {word}"


@pytest.mark.slow
def test_python_in_readme_prints_what_it_says(
    tmp_path: Path, tiny_config: dict[str, object]
) -> None:
    """The ten-line use, run on a tiny model and records of the same file names."""
    import yaml

    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tiny_config))
    (code,) = blocks("python")
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
        env={name: value for name, value in os.environ.items() if name != "TQDM_DISABLE"},
    )
    assert done.returncode == 0, done.stderr
    assert "Loading weights" not in done.stderr
    assert "gemm_4bit" not in done.stderr
    assert re.search(r"recovery|None|epsilon", done.stdout)
