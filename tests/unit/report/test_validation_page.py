"""The page of published rows: what passed, what missed, what each row assumes."""

from fourlane.report.validation_page import budget_table, check_tables, markdown_page
from fourlane.twin.error_budget import INPUTS, ErrorBudget
from fourlane.twin.validation_values import Check


def check(name: str, **fields: object) -> Check:
    """Return a row of serving that was published as 1,000 and came out as 1,050."""
    usual: dict[str, object] = {
        "group": "serving",
        "name": name,
        "unit": "tokens/s/GPU",
        "published": "1,000",
        "figure": 1050.0,
        "error": 0.05,
        "bar": "within 10%",
        "within": True,
        "source": "a paper",
    }
    return Check(**(usual | fields))  # type: ignore[arg-type]


CHECKS = [
    check("one", fitted=("sustained",)),
    check("two", figure=1200.0, error=0.2, within=False, assumed="much"),
    check("three", held=False, within=False, figure=1300.0, error=0.3),
    check("gain", unit="gain", published="20.0%", figure=0.22, error=0.02, bar="within 5 points"),
    check("port", group="network", unit="%", published="above 40 %", figure=48.0, error=None),
]


def test_rows_say_their_kind_and_verdict() -> None:
    serving, network = check_tables(CHECKS)
    assert [row[-2:] for row in serving.rows] == [
        ("fitted: sustained", "pass"),
        ("predicted", "miss"),
        ("predicted", "beyond"),
        ("predicted", "pass"),
    ]
    assert serving.rows[0][1:4] == ("1,000 tokens/s/GPU", "1,050 tokens/s/GPU", "+5.0%")
    assert serving.rows[3][1:4] == ("20.0%", "22.0%", "+2.0 points")
    assert network.rows[0][1:4] == ("above 40 %", "48 %", "")


def test_only_rows_that_were_to_be_held_count_as_failed() -> None:
    assert [each.name for each in CHECKS if each.failed] == ["two"]


def test_the_page_counts_rows_and_names_assumptions_sources_and_uncertainties() -> None:
    budget = ErrorBudget("one", {each.name: 0.03 for each in INPUTS})
    page = markdown_page(CHECKS, [budget], INPUTS)
    assert "**3 of 4 rows keep their bars.**" in page
    assert "- two: a paper. Assumed: much." in page
    assert "- one, three, gain: a paper." in page
    for each in INPUTS:
        assert f"- {each.name}: {each.by:.0%}; {each.why}." in page


def test_contributions_come_together_as_the_root_of_their_squares() -> None:
    budget = ErrorBudget("one", {"a": 0.03, "b": 0.04})
    assert budget_table([budget], {"one": -0.02}).rows == (("one", "3.0%", "4.0%", "5.0%", "-2.0%"),)
