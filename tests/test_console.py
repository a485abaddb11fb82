"""What is printed: bars only on a terminal, plain lines elsewhere, one line an error."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from dataclasses import fields

import pytest

from fedot.console import Console

QUALITY = {"loss": 2.914, "loss_se": 0.011, "perplexity": 18.43, "tokens": 40_000, "records": 400}
SUMMARY = {
    "name": "demo",
    "quality": {
        "full_zero_shot": QUALITY,
        "full_tuned": QUALITY | {"loss": 2.642, "perplexity": 14.04},
        "emulator_zero_shot": QUALITY | {"loss": 3.257, "perplexity": 25.97},
        "emulator_tuned": QUALITY | {"loss": 2.811, "perplexity": 16.63},
        "plug_in": QUALITY | {"loss": 2.691, "perplexity": 14.75},
    },
    "recovery": 0.82,
    "plug_in_advantage": 0.12,
    "leak_margin": -0.103,
    "general_gap": 0.31,
    "notes": {"simulation": "all clients ran in one process"},
    "privacy": {
        "unit": "example",
        "delta": 1e-5,
        "target_epsilon": 8.0,
        "epsilon": {"email": 7.98, "a-client-with-a-rather-long-name": 7.5},
        "neighbouring": "add or remove one record",
    },
    "wire": {"float32_bytes": 1_000_000, "sent_bytes": 210_000},
    "rounds": 6,
    "clients": 2,
    "emulator": {"kept": [0, 5], "num_blocks": 6},
    "seconds": {"emulator": 20.1, "rounds": 50.0, "evaluation": 61.0},
}
ROUND = {
    "round": 3,
    "cohort": ["email", "xml"],
    "failed": {},
    "loss": {"proxy": 3.02, "emulator": 2.907, "plug_in": 2.739},
    "sent_bytes": 43_900,
    "epsilon": {"email": 6.031, "xml": 5.0},
    "seconds": 8.1,
}


class Printed:
    """A console that writes into strings."""

    def __init__(self, *, terminal=False, width=80):
        self.out, self.err = io.StringIO(), io.StringIO()
        self.console = Console(
            file=self.out, error_file=self.err, force_terminal=terminal, width=width
        )

    @property
    def text(self):
        return self.out.getvalue()

    @property
    def lines(self):
        return self.text.splitlines()

    @property
    def plain(self):
        """What is left when colours and cursor moves are taken out."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.text)


def show(summary, **options):
    printed = Printed(**options)
    printed.console.summary_table(summary)
    return printed


def test_off_a_terminal_a_stage_has_one_line_at_its_start_and_one_at_its_end():
    printed = Printed()
    for done in range(101):
        printed.console.progress("distilling", done, 100)
    assert printed.lines[0] == "distilling ..."
    assert re.fullmatch(r"distilling: \d+\.\d s", printed.lines[1])
    assert len(printed.lines) == 2
    assert "\x1b" not in printed.text


def test_off_a_terminal_a_stage_that_comes_again_is_told_again():
    printed = Printed()
    for _ in range(2):
        printed.console.progress("tuning", 0, 1)
        printed.console.progress("tuning", 1, 1)
    assert len(printed.lines) == 4


def test_a_stage_of_unknown_length_starts_and_does_not_end():
    printed = Printed()
    printed.console.progress("loading", 0, 0)
    printed.console.progress("loading", 5, 0)
    assert printed.lines == ["loading ..."]


def test_on_a_terminal_a_bar_moves_and_leaves_one_line():
    printed = Printed(terminal=True)
    with printed.console as console:
        for done in range(4):
            console.progress("distilling", done, 3)
    assert "\x1b[?25l" in printed.text
    assert printed.text.count("\x1b[?25l") == printed.text.count("\x1b[?25h")
    assert re.search(r"distilling: \d+\.\d s\s*$", printed.plain)


def test_on_a_terminal_a_stage_inside_another_leaves_no_line():
    printed = Printed(terminal=True)
    with printed.console as console:
        console.progress("rounds", 0, 1)
        for done in range(3):
            console.progress("email", done, 2)
        console.progress("rounds", 1, 1)
    assert "email:" not in printed.plain
    assert "rounds:" in printed.plain


def test_a_bar_is_taken_down_when_the_run_breaks_off():
    printed = Printed(terminal=True)

    def run():
        with printed.console as console:
            console.progress("rounds", 1, 6)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    assert printed.text.count("\x1b[?25l") == printed.text.count("\x1b[?25h") == 1


def test_a_round_is_one_line_that_fits():
    printed = Printed()
    printed.console.round_line(ROUND)
    assert printed.lines == [
        "round   3  plug-in 2.739  emulator 2.907  43.9 kB sent  epsilon 6.04  8.1 s"
    ]
    assert len(printed.lines[0]) <= 80


def test_a_round_without_held_out_losses_shows_the_proxy_loss():
    printed = Printed()
    printed.console.round_line(ROUND | {"loss": {"proxy": 3.02, "plug_in": None}, "epsilon": {}})
    assert printed.lines == ["round   3  proxy loss 3.020  43.9 kB sent  8.1 s"]


def test_a_round_names_who_failed_and_stays_one_line():
    printed = Printed()
    printed.console.round_line(ROUND | {"failed": {"xml": "reason", "a" * 90: "reason"}})
    assert len(printed.lines) == 1
    assert "no update from xml, a" in printed.text


def test_a_round_line_lies_above_a_moving_bar():
    printed = Printed(terminal=True)
    with printed.console as console:
        console.progress("rounds", 1, 6)
        console.round_line(ROUND)
    assert "plug-in 2.739" in printed.plain


@pytest.mark.parametrize("terminal", [False, True])
def test_the_table_of_results_fits_in_80_columns(terminal):
    printed = show(SUMMARY, terminal=terminal)
    assert max(map(len, printed.plain.splitlines())) <= 80


def test_the_table_has_every_number_and_its_meaning():
    text = re.sub(r"\s+", " ", show(SUMMARY).text)
    for words in (
        "2.691 ± 0.011 14.75 the closed model, tuned by fedot",
        "recovery 82 %",
        "plug-in advantage +0.120 nats",
        "leak margin -0.103 nats",
        "general gap +0.310 nats",
        "epsilon email 7.98 of 8",
        "210 kB of 1.00 MB",
        "21 % of the same updates",
        "time 2 min 11 s",
        "simulation: all clients ran in one process",
    ):
        assert words in text


def test_the_table_says_why_a_number_is_not_known():
    quality = SUMMARY["quality"] | {"full_tuned": None}
    notes = {"recovery": "needs the ceiling.", "full_tuned": "left out by config."}
    printed = show(SUMMARY | {"quality": quality, "recovery": None, "notes": notes})
    text = re.sub(r"\s+", " ", printed.text)
    assert "recovery not known Needs the ceiling." in text
    assert "(not known: left out by config)" in text


def test_the_table_says_when_dp_is_off():
    text = show(SUMMARY | {"privacy": {"unit": "none", "epsilon": None}}).text
    assert "no DP" in text
    assert "! Differential privacy was off" in text


def test_many_clients_are_summed_up():
    epsilon = {f"site-{i:02}": 1 + i / 10 for i in range(30)}
    text = show(SUMMARY | {"privacy": SUMMARY["privacy"] | {"epsilon": epsilon}}).text
    assert "epsilon site-29" in text
    assert "epsilon, 22 others" in text
    assert "at most 3.10" in text


def test_nothing_that_others_wrote_is_markup_or_moves_the_cursor():
    name = "[red]x\x1b[2J"
    privacy = SUMMARY["privacy"] | {"epsilon": {name: 1.0}}
    printed = show(SUMMARY | {"privacy": privacy, "notes": {"privacy": "[bold]a\x1b[H"}})
    printed.console.round_line(ROUND | {"failed": {name: ""}})
    printed.console.info(name)
    assert "\x1b" not in printed.text
    assert printed.text.count("[red]x") == 3
    assert "[bold]a" in printed.text


def test_an_error_is_one_line_on_standard_error():
    printed = Printed()
    printed.console.error("no config at x;\nmake one")
    assert printed.err.getvalue() == "error: no config at x; make one\n"
    assert printed.text == ""


def test_an_error_takes_the_bar_down_first():
    printed = Printed(terminal=True)
    printed.console.progress("rounds", 1, 6)
    printed.console.error("broke off")
    assert "\x1b[?25h" in printed.text
    assert printed.err.getvalue() == "error: broke off\n"


def test_info_keeps_its_lines():
    printed = Printed()
    printed.console.info("first\nsecond " + "long " * 40)
    assert len(printed.lines) == 2


def test_an_old_encoding_does_not_break_the_table():
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    console = Console(file=file, force_terminal=False, width=80)
    console.summary_table(SUMMARY)
    file.flush()
    assert b"2.691 ? 0.011" in file.buffer.getvalue()


def test_importing_the_console_is_light():
    code = (
        "import sys, time\nstart = time.perf_counter()\nimport fedot.console\n"
        "spent = time.perf_counter() - start\n"
        "heavy = {'torch', 'rich', 'matplotlib', 'pydantic', 'jinja2'} & sys.modules.keys()\n"
        "assert not heavy, heavy\nassert spent < 0.5, spent"
    )
    # Wall time on a shared machine: far above the 15 ms that it takes, far below any heavy import.
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_round_is_one_line(tmp_path):
    path = tmp_path / "out.txt"
    with path.open("w") as file, Console(file=file, force_terminal=False) as console:
        for done in (1, 2):
            console.progress("round 3", done, 2)
        console.round_line({"round": 3, "cohort": [], "loss": {"plug_in": 2.5}})
    assert len(path.read_text().splitlines()) == 1


def test_an_estimate_says_which_chain_auto_took_and_why():
    from fedot.federation.estimate import Estimate

    numbers = dict.fromkeys(
        ("full_parameters", "emulator_parameters", "adapter_parameters", "client_bytes"), 1000
    )
    bytes_ = dict.fromkeys(("server_bytes", "sent_bytes", "float32_bytes", "received_bytes"), 1000)
    told = {"chain": "int8+deflate", "chain_reason": "auto took int8+deflate: it is soonest."}
    printed = Printed()
    none = {"epsilon": {}, "noise_multiplier": {}, "noise_length": {}, "client_epsilon": None}
    cost = Estimate(**numbers, **bytes_, **told, **none, seconds=1.0)
    printed.console.estimate_table(cost)
    assert "by int8+deflate" in " ".join(printed.text.split())
    assert "it is soonest" in " ".join(printed.text.split())


@pytest.mark.parametrize(("length", "warned"), [(0.4, False), (3.0, True)])
def test_an_estimate_says_when_noise_would_drown_the_gradient(length: float, warned: bool) -> None:
    from fedot.federation.estimate import Estimate

    numbers = {field.name: 1000 for field in fields(Estimate)}
    spent = {"epsilon": {"a": 1.0}, "noise_multiplier": {"a": 4.0}, "noise_length": {"a": length}}
    cost = Estimate(**numbers | spent | {"chain": "int8", "chain_reason": None})
    printed = Printed()
    printed.console.estimate_table(cost)
    assert ("Little will be learned" in " ".join(printed.text.split())) == warned


def test_what_auto_took_stands_among_the_notes_of_a_run():
    reason = "auto took int8+deflate: a GB of float32 over 1 MB/s takes: int8+deflate 221 s."
    printed = show(SUMMARY | {"notes": {"chain": reason}})
    assert "auto took int8+deflate" in " ".join(printed.text.split())


def test_transfer_on_a_terminal_shows_bytes_and_leaves_no_bar():
    printed = Printed(terminal=True, width=120)
    with printed.console as console:
        console.transfer("get bundle", 0, 10**9)
        console.transfer("get bundle", 5 * 10**8, 10**9)
        console._bars.refresh()
        assert "500 MB of 1.00 GB" in printed.plain
        console.transfer("get bundle", 10**9, 10**9)
    assert printed.text.count("\x1b[?25l") == printed.text.count("\x1b[?25h")
    assert re.search(r"get bundle: 1\.00 GB in \d+\.\d s\s*$", printed.plain)


def test_transfer_off_a_terminal_has_one_line_if_it_is_large_and_none_if_it_is_small():
    printed = Printed()
    for name, size in (("state of round 1", 10**4), ("get bundle", 10**9)):
        for done in (0, size // 2, size):
            printed.console.transfer(name, done, size)
    assert len(printed.lines) == 1
    assert printed.lines[0].startswith("get bundle: 1.00 GB in ")


@pytest.mark.parametrize("width", [80, 100])
def test_a_name_is_shortened_only_where_there_is_no_room_for_it(width):
    printed = Printed(width=width)
    columns = (("site", 8), ("phase", 10), ("what", None))
    names = ["a" * 24, "b" * 60]
    printed.console.table(columns, [(name, "idle", "") for name in names])
    assert names[0] in printed.text
    assert names[1] not in printed.text
    assert "..." in printed.text
    assert max(map(len, printed.lines)) <= width
    assert len(printed.lines) == 4


def test_results_keep_the_names_of_clients_whole():
    epsilon = {"asyncio+concurrent": 7.9}
    text = show(SUMMARY | {"privacy": SUMMARY["privacy"] | {"epsilon": epsilon}}).text
    assert "epsilon asyncio+concurrent" in text


def test_jobs_fit_in_80_columns_a_line_each():
    from fedot.report.jobs import JOB_COLUMNS

    printed = Printed()
    row = ("job-0123456789ab", "t", "running", "3/100", "owner, 2026-11-21 10:47 UTC")
    printed.console.table(JOB_COLUMNS, [row])
    assert len(printed.lines) == 3
    assert all(cell in printed.lines[2] for cell in row)
