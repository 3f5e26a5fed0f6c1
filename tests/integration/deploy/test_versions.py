"""What a version of PostgreSQL lacks, and that doctor knows it; the matrix runs this on others."""

from __future__ import annotations

import asyncpg

from tocsin.cli.examine.source import merge_loses_rows

COUNTED = """
CREATE TABLE t (id int PRIMARY KEY, n int, up int REFERENCES t ON DELETE CASCADE);
INSERT INTO t VALUES (1, 0), (2, 0);
CREATE TABLE counted (op text, rows bigint);
CREATE FUNCTION count_rows() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO counted SELECT TG_OP, count(*) FROM r; RETURN NULL; END $$;
CREATE TRIGGER deleted AFTER DELETE ON t REFERENCING OLD TABLE AS r FOR EACH STATEMENT EXECUTE FUNCTION count_rows();
"""


async def test_doctor_knows_whether_this_server_gives_triggers_all_rows_of_a_merge(source: asyncpg.Connection) -> None:
    number = await source.fetchval("SELECT current_setting('server_version_num')::int")
    if number < 150000:
        assert not merge_loses_rows(number), "it has no MERGE"
        return
    await source.execute(COUNTED)
    await source.execute("MERGE INTO t USING generate_series(1, 2) AS s (g) ON t.id = s.g WHEN MATCHED THEN DELETE")
    assert await source.fetchval("SELECT count(*) FROM t") == 0
    assert (await source.fetchval("SELECT sum(rows) FROM counted") != 2) == merge_loses_rows(number)


def test_the_minor_versions_from_which_a_merge_is_whole() -> None:
    """The last one that fails and the first that does not, of each major one: tried on all eight."""
    assert [merge_loses_rows(number) for number in (150015, 160011, 170007, 180001)] == [True] * 4
    assert [merge_loses_rows(number) for number in (150016, 160012, 170008, 180002, 140000, 190000)] == [False] * 6
