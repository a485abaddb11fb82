"""Pictures are well-formed SVG with the words and shapes that a reader needs."""

from __future__ import annotations

import re
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from fedot.report import plots

SVG = "{http://www.w3.org/2000/svg}"
FIVE = {
    "emulator_zero_shot": (3.257, 0.013),
    "full_zero_shot": (2.914, 0.011),
    "emulator_tuned": (2.811, 0.011),
    "plug_in": (2.691, 0.011),
    "full_tuned": (2.642, 0.010),
}
BYTES = {"float32": 1_000_000, "int8": 266_000, "deflate": 210_000}


def texts(svg):
    """Every text that is shown; fails if the picture is not well-formed XML."""
    root = ElementTree.fromstring(svg)
    assert root.tag == f"{SVG}svg"
    assert root.get("viewBox")
    return [element.text for element in root.iter(f"{SVG}text")]


def height(svg):
    return float(ElementTree.fromstring(svg).get("viewBox").split()[3])


def paths(svg, colour):
    return len(re.findall(rf"<path [^>]*{colour}", svg))


def test_loss_by_round_names_lines_levels_units_and_the_best_round():
    points = [(0, 2.9), (1, 2.8), (2, 2.75)]
    shown = texts(
        plots.loss_by_round(
            {"plug_in": points, "emulator": points, "proxy": points},
            zero_shot=2.9,
            full_tuned=2.6,
            best_round=2,
        )
    )
    for label in ("plug-in", "emulator tuned", "full zero-shot", "full tuned", "best round (2)"):
        assert label in shown
    assert {"round", "loss, nats per token"} <= set(shown)


def test_loss_by_round_leaves_out_what_is_not_known():
    shown = texts(plots.loss_by_round({"proxy": [(1, 3.0)], "plug_in": []}, best_round=7))
    assert "plug-in" not in shown
    assert "full tuned" not in shown
    assert not any("best round" in text for text in shown)


def test_rounds_are_counted_in_whole_numbers():
    shown = texts(plots.loss_by_round({"plug_in": [(0, 2.9), (1, 2.8)]}))
    assert {"0", "1"} <= set(shown)
    assert "0.5" not in shown


def test_five_numbers_stand_in_readable_order_with_the_recovery_span():
    shown = texts(plots.five_numbers(FIVE, 0.82))
    labels = [text for text in shown if re.fullmatch("[a-z- ]+", text)]
    assert labels == [
        "emulator zero-shot",
        "full zero-shot",
        "emulator tuned",
        "plug-in",
        "full tuned",
        "recovery",
    ]
    assert {"2.691", "82 %"} <= set(shown)


def test_an_unknown_number_is_said_to_be_unknown_and_stops_the_span():
    shown = texts(plots.five_numbers(FIVE | {"full_tuned": None}, 0.82))
    assert shown.count("not known") == 1
    assert "recovery" not in shown


def test_bytes_carry_their_ratio_to_float32():
    shown = texts(plots.bytes_per_operator(BYTES))
    assert {"1.00 MB", "266 kB (27 %)", "210 kB (21 %)", "int8", "deflate"} <= set(shown)


def test_epsilon_bars_carry_value_and_target():
    shown = texts(plots.epsilon_per_client({"email": 7.981, "xml": 3.0}, target=8.0))
    assert {"email", "xml", "7.99", "3.00", "target 8"} <= set(shown)


def test_epsilon_bars_are_cut_where_rounds_ended():
    def cuts(svg):
        return paths(svg, "--plot-paper")

    spent = {"email": 4.0}
    whole = plots.epsilon_per_client(spent, by_round={"email": [4.0]})
    four = plots.epsilon_per_client(spent, by_round={"email": [1.0, 2.0, 3.0, 4.0]})
    hundred = [0.04 * number for number in range(1, 101)]
    many = plots.epsilon_per_client(spent, by_round={"email": hundred})
    assert cuts(four) - cuts(whole) == 3
    assert cuts(many) - cuts(whole) == 99 // plots.epsilon_step(100)


def test_nothing_to_draw_is_none_and_no_empty_frame():
    assert plots.loss_by_round({"proxy": []}) is None
    assert plots.five_numbers({"plug_in": None}) is None
    assert plots.bytes_per_operator({}) is None
    assert plots.bytes_per_operator({"float32": 0}) is None
    assert plots.epsilon_per_client({}) is None


def test_many_clients_and_rounds_are_drawn_and_hosts_of_them_are_cut_off():
    thirty = plots.epsilon_per_client({f"site-{i}": 1 + i / 10 for i in range(30)}, target=8.0)
    assert sum(text.startswith("site-") for text in texts(thirty)) == 30
    hosts = plots.epsilon_per_client({f"site-{i}": 1 + i for i in range(500)})
    names = [text for text in texts(hosts) if text.startswith("site-")]
    assert len(names) == plots.MOST_CLIENTS
    assert "site-499" in names
    assert height(hosts) < 1000
    assert texts(plots.loss_by_round({"plug_in": [(i, 3 - i / 100) for i in range(101)]}))


@pytest.mark.parametrize(
    "name",
    ["<script>alert(1)</script>", "$x_1^$", "</svg>", "a & b", '"quoted"', "東京", "x" * 300],
)
def test_a_clients_name_is_only_ever_text(name):
    shown = texts(plots.epsilon_per_client({name: 2.0}, target=8.0))
    assert any(text.startswith(name[:8]) for text in shown)
    assert max(map(len, shown)) < 60


def test_zero_epsilon_and_zero_target_are_drawn():
    assert "0.00" in texts(plots.epsilon_per_client({"email": 0.0}))


def test_the_same_data_give_the_same_bytes_whatever_was_drawn_before():
    first = plots.five_numbers(FIVE, 0.82)
    plots.bytes_per_operator(BYTES)
    assert plots.five_numbers(FIVE, 0.82) == first


def test_a_users_own_matplotlib_settings_change_nothing():
    import matplotlib

    first = plots.bytes_per_operator(BYTES)
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "path", "axes.grid": False}):
        assert plots.bytes_per_operator(BYTES) == first
        assert matplotlib.rcParams["font.size"] == 30


def test_a_picture_names_no_date_no_tool_and_no_address():
    svg = plots.bytes_per_operator(BYTES)
    assert "matplotlib.org" not in svg
    assert "<metadata" not in svg
    addresses = set(re.findall(r"https?://[^\"' <]+", svg))
    assert addresses == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_ids_of_two_pictures_do_not_meet():
    pair = plots.bytes_per_operator(BYTES), plots.epsilon_per_client({"email": 1.0})
    first, second = (set(re.findall(r'\bid="([^"]+)"', svg)) for svg in pair)
    assert first
    assert not first & second


def test_every_colour_can_turn_dark():
    svg = plots.loss_by_round({"plug_in": [(1, 2.0)]}, zero_shot=2.1) + plots.five_numbers(
        FIVE, 0.5
    )
    fixed = set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", svg))
    assert fixed == set()


def test_drawing_needs_no_display_and_no_torch():
    code = (
        "import sys\nfrom fedot.report import page, plots\n"
        "assert plots.bytes_per_operator({'float32': 10})\n"
        "assert not {'matplotlib.pyplot', 'torch'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
