"""SQL of hashes: every column is in it once, in chains that PostgreSQL's parser can nest."""

from __future__ import annotations

import pytest

from tocsin_check.rows.hashing import LONGEST_CHAIN, as_text, hashed, row_hash


@pytest.mark.parametrize("number", [1, LONGEST_CHAIN, LONGEST_CHAIN + 1, 400])
@pytest.mark.parametrize("base", ["integer", "date", "numeric"])
@pytest.mark.parametrize("by_bytes", [True, False])
def test_each_column_is_hashed_once_and_no_chain_is_too_long(number: int, base: str, by_bytes: bool) -> None:
    columns = [column for i in range(number) if (column := hashed(f"c{i}", f"t.c{i}_", base, base, by_bytes=by_bytes)) is not None]
    sql = row_hash(columns, 7, native=True)
    assert [sql.count(f"t.c{i}_") for i in range(number)] == [1] * number
    depth = deepest = 0
    for character in sql:
        depth += (character == "(") - (character == ")")
        deepest = max(deepest, depth)
    assert depth == 0
    assert deepest < 5 * LONGEST_CHAIN


def test_two_columns_of_one_type_have_numbers_of_their_own() -> None:
    """Else a float of zero, whose hash is its seed, could change places with its neighbour unseen."""
    columns = [column for name in "ab" if (column := hashed(name, f"t.{name}", "real", "real", by_bytes=True)) is not None]
    numbers = [part.split(")")[0] for part in row_hash(columns, 7, native=True).split(" # ")[1:]]
    assert len(set(numbers)) == 2


def test_what_has_no_sound_hash_is_left_to_its_text() -> None:
    assert all(hashed("c", "t.c", base, base, by_bytes=True) is None for base in ("json", "integer[]", "numrange", "money", "xid8", "public.mood"))
    assert "t.c::text" in row_hash([as_text("c", "t.c::text", "json")], 7, native=True)
