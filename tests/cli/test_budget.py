"""`fedot budget`: what was spent, what a run costs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fedot.cli.app import main
from fedot.config import config_from_dict, to_yaml
from fedot.privacy.accounting import SampledGaussian, epsilon_of
from fedot.privacy.ledger import Ledger
from fedot.privacy.policy import ledger_beside

EVENT = SampledGaussian(0.1, 1.0, 10)
PLAN = "--records 1000 --batch-size 50 --steps 20 --rounds 6"


@pytest.fixture
def fedot(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    def call(*args: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fedot", "budget", *map(str, args)])
        with pytest.raises(SystemExit) as stopped:
            main()
        shown = capsys.readouterr()
        return int(stopped.value.code or 0), shown.out, shown.err

    return call


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    path = tmp_path / "ledger.jsonl"
    for number in range(3):
        Ledger(path).reserve(f"run/{number}", "notes", EVENT, 8.0, 1e-5)
    Ledger(path).charge("run/0", "a" * 64)
    return path


def test_show_counts_charged_and_reserved_and_writes_nothing(fedot, ledger: Path) -> None:
    before = ledger.read_bytes()
    code, shown, _ = fedot("show", ledger)
    assert code == 0
    row = next(line for line in shown.splitlines() if line.startswith("notes"))
    assert row.split()[1:4] == ["1", "+", "2"]
    # 3.59 is rounded up.
    assert row.split()[4] == f"{epsilon_of([EVENT] * 3, 1e-5) + 0.005:.2f}"
    assert "no limit known" in row
    assert ledger.read_bytes() == before


def test_show_of_a_policy_reads_the_ledger_beside_it(fedot, tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("{dataset_id: notes, max_epsilon: 8, delta: 1.0e-5}")
    code, _, error = fedot("show", policy)
    assert code == 2
    assert "nothing is reserved" in error
    Ledger(ledger_beside(policy)).reserve("run/1", "notes", EVENT, 8.0, 1e-5)
    code, shown, _ = fedot("show", policy)
    assert code == 0
    row = next(line for line in shown.splitlines() if line.startswith("notes"))
    assert "policy 8" in row


def test_show_of_a_run_has_the_servers_account_too(fedot, tmp_path: Path) -> None:
    raw = {
        "model": {"path": "m"},
        "data": {"clients": {"one": "one.jsonl", "two": "two.jsonl"}},
        "privacy": {
            "unit": "both",
            "target_epsilon": 8.0,
            "client_level": {"target_epsilon": 6.0, "delta": 1e-3},
        },
    }
    (tmp_path / "config.yaml").write_text(to_yaml(config_from_dict(raw)))
    of_server = SampledGaussian(1.0, 2.0, 1)
    server, site = tmp_path / "server" / "ledger.jsonl", tmp_path / "sites/one/ledger.jsonl"
    for path, name, event in ((server, "federation", of_server), (site, "one", EVENT)):
        path.parent.mkdir(parents=True)
        Ledger(path).reserve("run/1", name, event, 8.0, 1e-5)
    code, shown, _ = fedot("show", tmp_path)
    assert code == 0
    rows = {line.split()[0]: line for line in shown.splitlines() if "target" in line}
    assert list(rows) == ["one", "federation"]
    assert "target 8" in rows["one"]
    assert "target 6" in rows["federation"]
    assert "0.001" in rows["federation"]
    fitting = max(n for n in range(200) if epsilon_of([of_server] * (1 + n), 1e-3) <= 6)
    assert f"{fitting} rounds" in rows["federation"]
    assert "add or remove one client" in shown


def test_show_says_what_a_policy_leaves(fedot, ledger: Path, tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("dataset_id: notes\nmax_epsilon: 6\ndelta: 1.0e-5\n")
    _, shown, _ = fedot("show", ledger, "--policy", policy)
    fitting = max(n for n in range(50) if epsilon_of([EVENT] * (3 + n), 1e-5) <= 6)
    assert fitting > 0
    assert f"{fitting} rounds (policy 6)" in shown


def test_show_of_what_is_no_ledger_is_one_line(fedot, tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        code, _, error = fedot("show", path)
        assert code == 2
        assert error.count("\n") == 1
        assert "neither a policy, nor a ledger" in error
    (tmp_path / "empty").touch()
    assert "nothing is reserved" in fedot("show", tmp_path / "empty")[2]


@pytest.fixture
def fetched(tmp_path: Path) -> Path:
    """What `fedot job fetch` leaves of a run with DP."""
    folder = tmp_path / "got"
    folder.mkdir()
    raw = {"model": {"path": "m"}, "data": {}, "network": {"sites": ["a", "b"]}}
    (folder / "config.yaml").write_text(to_yaml(config_from_dict(raw)))
    privacy = {"unit": "example", "epsilon": {"a": 3.951, "b": 2.0}, "reported_by_sites": True}
    (folder / "summary.json").write_text(json.dumps({"privacy": privacy}))
    return folder


def test_show_of_a_network_run_has_what_its_sites_reported(fedot, fetched: Path) -> None:
    code, shown, _ = fedot("show", fetched)
    assert code == 0
    rows = {line.split()[0]: line.split()[1] for line in shown.splitlines() if "reported" in line}
    assert (rows["a"], rows["b"]) == ("3.96", "2.00")
    assert "stay at its sites" in shown
    assert "fedot budget show policy.ledger.jsonl" in shown


def test_show_of_a_network_run_without_reports_says_where_ledgers_are(fedot, fetched: Path) -> None:
    (fetched / "summary.json").unlink()
    code, _, error = fedot("show", fetched)
    assert code == 2
    assert "ledgers stay at its sites" in error
    assert "no round with DP has begun" not in error


def test_show_of_a_broken_summary_is_one_line(fedot, fetched: Path) -> None:
    for broken in ("{", "[]", '{"privacy": 1}'):
        (fetched / "summary.json").write_text(broken)
        code, _, error = fedot("show", fetched)
        assert (code, error.count("\n")) == (2, 1)
        assert "not as a run wrote it" in error


@pytest.mark.parametrize(("records", "whole"), [(10, True), (50, True), (51, False)])
def test_plan_says_when_every_record_is_in_each_step(fedot, records: int, whole: bool) -> None:
    plan = f"--records {records} --batch-size 50 --steps 2 --rounds 1 --noise 4"
    _, shown, _ = fedot("plan", *plan.split())
    assert ("every record is in each step" in shown) == whole


def test_plan_and_its_answer_agree_both_ways(fedot) -> None:
    _, shown, _ = fedot("plan", *PLAN.split(), "--epsilon", "8")
    noise = shown.split("noise multiplier ")[1].split(",")[0]
    planned = next(line for line in shown.splitlines() if "as planned" in line)
    assert planned.split()[:2] == ["6", "8.00"]
    _, again, _ = fedot("plan", *PLAN.split(), "--noise", noise)
    assert "8.0" in next(line for line in again.splitlines() if "as planned" in line)


def test_plan_with_a_cap_has_no_rdp(fedot) -> None:
    _, shown, _ = fedot("plan", *PLAN.split(), "--noise", "1", "--max-batch-size", "80")
    assert "at most 80 records" in shown
    assert "none" in next(line for line in shown.splitlines() if "as planned" in line)


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ("", "give one of them"),
        ("--epsilon 8 --noise 1", "give one of them"),
        ("--noise 1 --max-batch-size 10", "at least --batch-size"),
        ("--epsilon 0", "0"),
    ],
)
def test_plan_that_cannot_be_made_is_one_line(fedot, more: str, word: str) -> None:
    code, _, error = fedot("plan", *PLAN.split(), *more.split())
    assert code == 2
    assert word in error
    assert error.count("\n") == 1


def test_budgets_need_no_torch(ledger: Path) -> None:
    code = f"""
import sys
sys.argv = ["fedot", "budget", "show", {str(ledger)!r}]
from fedot.cli.app import main
try:
    main()
finally:
    print("TORCH", "torch" in sys.modules)
"""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert "TORCH False" in done.stdout
