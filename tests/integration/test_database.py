"""A connection is lent as it was the first time, though its session is not reset in between."""

from settings import DatabaseSettings
from tests import engines


async def test_a_transaction_that_was_left_open_ends_with_the_loan(database_settings: DatabaseSettings) -> None:
    async with engines.opened(database_settings.model_copy(update={"pool_size": 1})) as database:
        async with database.connection() as connection:
            session = await connection.fetchval("select pg_backend_pid()")
            limit = await connection.fetchval("show statement_timeout")
            await connection.execute("begin")
            await connection.execute("set local statement_timeout = '1h'")
        async with database.connection() as connection:
            assert await connection.fetchval("select pg_backend_pid()") == session
            assert not connection.is_in_transaction()
            assert await connection.fetchval("show statement_timeout") == limit


async def test_what_a_transaction_sets_ends_with_it(database_settings: DatabaseSettings) -> None:
    async with engines.opened(database_settings.model_copy(update={"pool_size": 1})) as database:
        async with database.transaction() as connection:
            await connection.execute("set local plan_cache_mode = force_generic_plan")
        async with database.connection() as connection:
            assert await connection.fetchval("show plan_cache_mode") == "force_custom_plan"


async def test_whoever_asks_about_many_rows_has_plans_of_their_own_by_index(
    database_settings: DatabaseSettings,
) -> None:
    async with engines.opened(database_settings) as database, database.connection() as connection:
        assert await connection.fetchval("show plan_cache_mode") == "force_custom_plan"
        assert await connection.fetchval("show random_page_cost") == "1.1"
