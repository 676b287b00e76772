import pytest
from hypothesis import given
from hypothesis import strategies as st

from merge_cli.text import format_bytes, format_count, format_seconds, parse_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1), ("1000000", 1_000_000), ("12B", 12), ("5k", 5000), ("5kB", 5000), ("5KB", 5000), ("5M", 5_000_000),
        ("5GB", 5_000_000_000), ("5G", 5_000_000_000), ("2T", 2_000_000_000_000), ("1KiB", 1024), ("1kib", 1024),
        ("1Ki", 1024), ("512MiB", 536_870_912), ("1GiB", 1_073_741_824), ("1TiB", 1_099_511_627_776),
        ("1.5GiB", 1_610_612_736), ("0.5k", 500), (" 5 GB ", 5_000_000_000),
    ],
)  # fmt: skip
def test_a_size_is_read_in_decimal_and_binary_units(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text", ["", " ", "GB", "B", "-5GB", "+5GB", "0", "0GB", "0.0", "5GBB", "5 G B", "5iB", "5PB", "1e3", "5,0GB", "5.",
             ".5GB", "0x10", "nan", "inf", "auto", "5GB 5GB"],
)  # fmt: skip
def test_what_is_no_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="such as 512MiB or 5GB") as caught:
        parse_bytes(text)
    assert str(caught.value) == f"'{text}' is not a size; expected a number with a unit, such as 512MiB or 5GB"


@given(st.integers(1, 2**53))
def test_a_plain_number_is_that_many_bytes(size: int) -> None:
    assert parse_bytes(str(size)) == parse_bytes(f"{size}B") == size


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"), (1, "1 B"), (999, "999 B"), (1000, "1.0 kB"), (1536, "1.5 kB"), (999_900, "999.9 kB"),
        (1_000_000, "1.0 MB"), (988_097_824, "988.1 MB"), (5_000_000_000, "5.0 GB"), (10**12, "1.00 TB"),
        (1_234_000_000_000, "1.23 TB"), (10**16, "10000.00 TB"), (12.0, "12 B"), (-2500, "-2.5 kB"),
    ],
)  # fmt: skip
def test_a_size_is_written_in_the_unit_that_keeps_it_short(size: float, text: str) -> None:
    assert format_bytes(size) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"), (999, "999"), (1000, "1.0K"), (12_345, "12.3K"), (494_032_768, "494.0M"), (7_615_616_512, "7.6B"),
        (405_853_388_800, "405.9B"), (10**12, "1.0T"), (10**15, "1000.0T"),
    ],
)  # fmt: skip
def test_a_count_is_written_the_way_people_say_it(count: int, text: str) -> None:
    assert format_count(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.00 s"), (0.004, "0.00 s"), (0.84, "0.84 s"), (9.99, "9.99 s"), (10, "10.0 s"), (12.34, "12.3 s"),
        (59.9, "59.9 s"), (60, "1 min 0 s"), (245, "4 min 5 s"), (3599, "59 min 59 s"), (3599.6, "1 h 0 min"),
        (3600, "1 h 0 min"), (7380, "2 h 3 min"), (100_000, "27 h 46 min"),
    ],
)  # fmt: skip
def test_a_duration_is_written_in_the_units_that_matter(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"), [(999.6, "1.0 kB"), (999_950, "1.0 MB"), (999_999_999, "1.0 GB"), (999_999_999_999, "1.00 TB")]
)
def test_a_size_that_is_rounded_up_to_the_next_unit_is_written_in_it(size: float, text: str) -> None:
    assert format_bytes(size) == text


@pytest.mark.parametrize(("count", "text"), [(999_950, "1.0M"), (999_999_999, "1.0B"), (999_999_999_999, "1.0T")])
def test_a_count_that_is_rounded_up_to_the_next_unit_is_written_in_it(count: int, text: str) -> None:
    assert format_count(count) == text


@pytest.mark.parametrize(("seconds", "text"), [(9.996, "10.0 s"), (59.96, "1 min 0 s")])
def test_a_duration_that_is_rounded_up_to_the_next_unit_is_written_in_it(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.parametrize("text", ["0.1", "0.9B", "0.0001k"])
def test_less_than_a_byte_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_bytes(text)


def test_a_size_is_read_exactly() -> None:
    assert parse_bytes("9007199254740993") == 9_007_199_254_740_993
