"""SQL of a reading, and names in SQL."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tocsin_check.rows.hashing import Column
from tocsin_check.rows.names import literal, quoted, slot_name
from tocsin_check.rows.reading import KeyPart, Reading

COMPOSITE = Reading(
    'ONLY "s"."t"',
    (KeyPart("a", 't."a"', "integer", kind="int"), KeyPart("b", 't."b"', "uuid")),
    (Column("a", 't."a"'), Column("b", 't."b"')),
    "a > 0 OR b IS NULL",
)


def test_ranges_are_half_open_compare_whole_keys_and_keep_the_filter_apart() -> None:
    sql, arguments = COMPOSITE.digest_sql(("1", "x"), ("2", "y"), 7)
    assert (
        """WHERE (t."a", t."b") >= ($1::text::integer, $2::text::uuid) AND (t."a", t."b") < ($3::text::integer, $4::text::uuid) AND (a > 0 OR b IS NULL)"""
        in sql
    )
    assert arguments == ["1", "x", "2", "y"]
    assert "WHERE (a > 0 OR b IS NULL)" in COMPOSITE.digest_sql(None, None, 7)[0]


def test_a_table_without_a_key_is_summed_because_equal_rows_cancel_in_xor() -> None:
    keyless = Reading("t", COMPOSITE.key, COMPOSITE.columns, unique=False)
    assert "bit_xor" in COMPOSITE.digest_sql(None, None, 7)[0]
    assert "bit_xor" not in keyless.digest_sql(None, None, 7)[0]
    assert "sum(" in keyless.digest_sql(None, None, 7)[0]


def test_lookups_pass_one_array_for_each_part_of_the_key() -> None:
    sql, arguments = COMPOSITE.lookup_sql([("1", "x"), ("2", "y")])
    assert arguments == [["1", "2"], ["x", "y"]]
    assert 'ON t."a" = w."tocsin k1"::integer AND t."b" = w."tocsin k2"::uuid AND (a > 0 OR b IS NULL)' in sql


@given(st.text(alphabet=st.characters(exclude_characters="\0", codec="utf-8"), max_size=80))
def test_a_slot_name_is_always_allowed_and_quoting_doubles_what_it_must(text: str) -> None:
    name = slot_name(text, "0123456789abcdef")
    assert len(name) <= 63
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_")
    assert quoted(text)[1:-1].replace('""', "").count('"') == 0
    assert literal(text).strip().lstrip("E")[1:-1].replace("''", "").count("'") == 0
