"""Quantities: what is read, what is written, what is refused and how."""

from __future__ import annotations

import json

import pytest

from fourlane.units import Duration, Rate, Size


@pytest.mark.parametrize(
    ("text", "bits_per_second"),
    [("400Gbps", 400 * 10**9), ("50GB/s", 400 * 10**9), ("1KiB/s", 8192), ("2.5Mbit/s", 2_500_000), ("0bps", 0)],
)
def test_rates_are_read_in_bits_per_second(text: str, bits_per_second: int) -> None:
    assert Rate.parse(text) == bits_per_second


@pytest.mark.parametrize(
    ("text", "picoseconds"), [("4us", 4_000_000), ("1.5ns", 1500), ("30s", 30 * 10**12), ("2min", 120 * 10**12)]
)
def test_durations_are_read_in_picoseconds(text: str, picoseconds: int) -> None:
    assert Duration.parse(text) == picoseconds


@pytest.mark.parametrize(
    ("text", "size"), [("64KiB", 65536), ("256MiB", 256 << 20), ("2GB", 2 * 10**9), ("17B", 17), ("1_000 B", 1000)]
)
def test_sizes_are_read_in_bytes(text: str, size: int) -> None:
    assert Size.parse(text) == size


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Rate(400 * 10**9), "400Gbps"),
        (Duration(30 * 10**12), "30s"),
        (Duration(1500), "1500ps"),
        (Size(8 << 20), "8MiB"),
        (Size(2 * 10**9), "2GB"),
        (Size(17), "17B"),
    ],
)
def test_the_shortest_exact_text_is_written(value: Rate | Duration | Size, text: str) -> None:
    assert str(value) == text
    assert f"{value}" == text
    assert repr(value) == f"{type(value).__name__}({text!r})"


def test_an_amount_is_still_an_int() -> None:
    assert Size.parse("64KiB") // 2 == 32768
    assert f"{Size(4096):d} {Size(4096):>6}|" == "4096   4KiB|"
    assert json.dumps({"bytes": Size(4096)}) == '{"bytes": 4096}'


def test_conversions_to_floats_name_their_unit() -> None:
    assert Duration.parse("20ms").seconds == 0.02
    assert Duration.from_seconds(0.02) == Duration.parse("20ms")
    assert Rate.parse("50GB/s").bytes_per_second == 50e9


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (
            Rate,
            "400GB",
            'expected a rate such as "400Gbps", got "400GB" (did you mean "400Gbps" or "400GB/s"?)',
        ),
        (Rate, "400gbps", 'expected a rate such as "400Gbps", got "400gbps" (did you mean "400Gbps"?)'),
        (Size, "64KB", 'expected a size such as "64KiB", got "64KB" (did you mean "64kB"?)'),
        (
            Duration,
            "4",
            'expected a duration such as "4us", got "4" (a bare number has no unit; write "4us", "4ms" or "4s")',
        ),
        (
            Duration,
            30,
            'expected a duration such as "4us", got 30 (a bare number has no unit; write "30us", "30ms" or "30s")',
        ),
        (
            Duration,
            "4 weeks",
            'expected a duration such as "4us", got "4 weeks" (units: ps, ns, us, ms, s, min, h)',
        ),
        (
            Duration,
            "0.3ps",
            'expected a duration such as "4us", got "0.3ps" (finer than 1 ps; round it to whole ps)',
        ),
        (Duration, "-3s", 'expected a duration such as "4us", got "-3s"'),
        (Size, None, 'expected a size such as "64KiB", got None'),
        (Size, True, 'expected a size such as "64KiB", got True'),
        (Size, "", 'expected a size such as "64KiB", got ""'),
        (Size, "many KiB", 'expected a size such as "64KiB", got "many KiB"'),
    ],
)
def test_what_is_wrong_is_said_with_what_to_write(
    kind: type[Rate | Duration | Size], text: object, message: str
) -> None:
    with pytest.raises(ValueError, match="expected") as caught:
        kind.parse(text)
    assert str(caught.value) == message
