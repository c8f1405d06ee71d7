"""`fourlane twin validate`: rows, error budget, JSON, the page."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from fourlane.cli import main
from fourlane.report.validation_page import check_tables
from fourlane.twin.error_budget import INPUTS, error_budget
from fourlane.twin.published_serving import published_serving
from fourlane.twin.validation import rows_of, validate

REMAKE = "the page is out of date; run: fourlane twin validate -o docs/validation.md"
PAGE = Path(__file__).parents[2] / "docs" / "validation.md"


def test_serving_and_kernels_pass_and_say_so() -> None:
    result = CliRunner().invoke(main, ["twin", "validate", "serving", "kernels"])
    assert result.exit_code == 0, result.output
    assert "prefill: DeepSeek profile" in result.output
    assert "Error budget" in result.output
    assert "rows keep their bars." in result.output


def test_json_holds_every_row_with_its_sources_and_the_budget() -> None:
    result = CliRunner().invoke(main, ["twin", "validate", "serving", "--json"])
    shown = json.loads(result.output)
    assert len(shown["checks"]) == rows_of(["serving"])
    assert all(check["source"] for check in shown["checks"])
    assert {budget["row"] for budget in shown["budgets"]} == {row.name for row in published_serving().rows}
    assert set(shown["budgets"][0]["shares"]) == {each.name for each in INPUTS}


def test_a_page_is_written_and_must_be_markdown(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    assert CliRunner().invoke(main, ["twin", "validate", "kernels", "-o", str(page)]).exit_code == 0
    assert "grouped GEMM, EP64" in page.read_text()
    wrong = CliRunner().invoke(main, ["twin", "validate", "kernels", "-o", str(tmp_path / "page.html")])
    assert wrong.exit_code == 2


def test_the_page_in_the_docs_shows_what_comes_out_now() -> None:
    """Within half a point: simulated tables may be filled anew, a row's verdict may not change unseen."""
    rows = [[cell.strip("| ") for cell in line.split(" | ")] for line in PAGE.read_text().splitlines()]
    shown = {cells[0]: cells for cells in rows if len(cells) == 7}
    for table in check_tables(list(validate(["serving", "kernels"]))):
        for name, _, _, error, _, kind, verdict in table.rows:
            error_then, kind_then, verdict_then = shown[name][3], *shown[name][5:]
            assert (kind, verdict) == (kind_then, verdict_then), REMAKE
            assert _points(error) == pytest.approx(_points(error_then), abs=0.5), REMAKE


def _points(error: str) -> float:
    return float(error.removesuffix(" points").removesuffix("%"))


def test_every_input_costs_some_row_something_and_none_gains() -> None:
    budgets = [error_budget(row) for row in published_serving().rows if row.held]
    for each in INPUTS:
        shares = [budget.shares[each.name] for budget in budgets]
        assert min(shares) > -1e-9
        assert max(shares) > 0.001


def test_an_error_budget_explains_the_errors_of_rows_that_are_held() -> None:
    for row in published_serving().rows:
        if row.held:
            assert 0.03 < error_budget(row).together < 0.15


@pytest.mark.soak
def test_exchange_and_networks_are_rows_too() -> None:
    checks = list(validate(["exchange", "network", "flow level"]))
    assert len(checks) == rows_of(["exchange", "network", "flow level"])
    assert not [check.name for check in checks if check.failed]
