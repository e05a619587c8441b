"""Each benchmark runs, says what was promised beside what it measured, and marks a promise that is missed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
SCRIPTS = sorted(path.stem for path in BENCHMARKS.glob("*.py") if path.stem != "common")


@pytest.fixture
def common(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import common

    return common


@pytest.mark.parametrize("name", SCRIPTS)
def test_benchmark_runs_and_sets_budgets_beside_measurements(name, tmp_path):
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), "--tiny", "--rounds", "1", "--threads", "1"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    *shown, line = run.stdout.strip().splitlines()
    result = json.loads(line)
    assert result["benchmark"] == name and "torch" in result["machine"]
    for budget in result["budgets"]:
        met = (
            budget["measured"] <= budget["limit"]
            if budget["at_most"]
            else budget["measured"] >= budget["limit"]
        )
        assert budget["met"] == met
        row = next(text for text in shown if budget["what"] in text)
        assert f"{budget['limit']:,g}" in row and ("MISSED" in row) == (not met)


def test_a_missed_budget_is_marked_and_reaches_the_readme(common, capsys, tmp_path, monkeypatch):
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- benchmark x -->\nold\n<!-- end x -->\nafter\n")
    monkeypatch.setattr(common, "README", readme)
    budgets = [
        common.budget("time", 0.5, 0.45),
        common.budget("speed", 2.6, 2.5, at_most=False),
        common.budget("nothing", float("nan"), 1.0),
    ]
    table = common.table([["a", 1.5]], ["name", "value"])
    common.publish("x", common.Options(readme=True), {"A table:": table}, budgets, {"more": 1})
    text = readme.read_text()
    assert text.startswith("before\n<!-- benchmark x -->\n\n") and text.endswith(
        "\n\n<!-- end x -->\nafter\n"
    )
    assert "old" not in text and common.machine() in text and table in text
    verdicts = [line.split("|")[-2].strip() for line in text.splitlines() if "≤" in line or "≥" in line]
    assert verdicts == ["**MISSED**", "met", "**MISSED**"]
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["more"] == 1
    with pytest.raises(ValueError, match="<!-- benchmark y -->"):
        common.update_readme("y", "text", readme)


def test_sides_take_turns_and_ratios_are_taken_round_by_round(common):
    order = []
    runs = {name: (lambda name=name: order.append(name) or len(order)) for name in ("ours", "theirs")}
    results = common.interleave(runs, 3)
    assert order == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert results == {"ours": [1, 4, 5], "theirs": [2, 3, 6]}
    assert common.ratios([1.0, 4.0], [2.0, 2.0]) == {"median": 1.25, "low": 0.5, "high": 2.0}


def test_a_side_is_a_process_of_its_own_and_its_failures_are_told(common):
    assert common.alone(os.getpid) != os.getpid()
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        common.alone(divmod, 1, 0)
    with pytest.raises(RuntimeError, match="exit code 7"):
        common.alone(os._exit, 7)


def test_peak_memory_counts_what_was_freed_again(common):
    before = common.peak_memory()
    block = bytearray(b"x") * 200_000_000
    del block
    assert common.peak_memory() - before > 150_000_000
