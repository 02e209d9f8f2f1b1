"""A business row and its task in one transaction, and what comes of it exactly once: `python examples/outbox.py`.

Continuum runs a task at least once and records its end exactly once. Your own tables make the rest exactly once, where they
are in the same database: an order and its task are inserted together or not at all, and what a task found out is booked under
its id, together with whatever follows from it.
"""

import json
from pathlib import Path

import psycopg
import trio

import continuum
from continuum.db.embedded import open_embedded

SCRIPT = """
import json

order = json.loads(payload)
print(json.dumps({"cents": order["quantity"] * order["cents"]}))
"""

TABLES = """
CREATE SCHEMA IF NOT EXISTS shop;
CREATE TABLE IF NOT EXISTS shop.orders (id BIGSERIAL PRIMARY KEY, customer TEXT, quantity INT, cents INT);
CREATE TABLE IF NOT EXISTS shop.accounts (customer TEXT PRIMARY KEY, owes BIGINT NOT NULL DEFAULT 0);
-- What has been booked: one row for each task, ever.
CREATE TABLE IF NOT EXISTS shop.bookings (task_id BIGINT PRIMARY KEY, cents BIGINT NOT NULL);
"""


def order(shop: psycopg.Connection, code_id: str, customer: str, quantity: int, cents: int) -> int:
    """The producer's side: the order and its task are there together, or neither is. No message can be lost between them."""
    with shop.transaction():
        row = shop.execute(
            "INSERT INTO shop.orders (customer, quantity, cents) VALUES (%s, %s, %s) RETURNING id",
            (customer, quantity, cents),
        ).fetchone()
        assert row is not None
        task = {"order": row[0], "quantity": quantity, "cents": cents}
        made = shop.execute(
            "INSERT INTO tasks (name, code, tenant, payload, idempotency_key) VALUES ('invoice', %s, %s, %s, %s) RETURNING id",
            (code_id, customer, json.dumps(task), f"shop/order/{row[0]}"),
        ).fetchone()
        assert made is not None
        if quantity > 1000:
            raise ValueError("nobody has that many")
    return int(made[0])


def book(shop: psycopg.Connection, task_id: int, *, crash: bool = False) -> bool:
    """The consumer's side: whoever is first with a task's id books it; the account changes in the same transaction. It may be
    called as often as anybody likes, by as many as like, and after a crash. False where it was booked before."""
    with shop.transaction():
        row = shop.execute(
            "INSERT INTO shop.bookings (task_id, cents) SELECT id, (output::json->>'cents')::int8 FROM tasks "
            "WHERE id = %s AND status = 'completed' ON CONFLICT DO NOTHING RETURNING cents",
            (task_id,),
        ).fetchone()
        if row is None:
            return False
        shop.execute(
            "INSERT INTO shop.accounts (customer, owes) SELECT tenant, %s FROM tasks WHERE id = %s "
            "ON CONFLICT (customer) DO UPDATE SET owes = accounts.owes + excluded.owes",
            (row[0], task_id),
        )
        if crash:
            raise RuntimeError("the power failed")
    return True


async def main() -> None:
    async with open_embedded(Path(".continuum/postgres")) as url, continuum.local() as c:
        code_id = await c.database.store_code(SCRIPT)
        with psycopg.connect(url, autocommit=True) as shop:
            shop.execute(TABLES)
            before: dict[str, int] = dict(shop.execute("SELECT customer, owes FROM shop.accounts").fetchall())
            tasks = [order(shop, code_id, *each) for each in (("Ada", 2, 2450), ("Bob", 144, 75), ("Ada", 1, 900))]
            try:
                order(shop, code_id, "Eve", 5000, 1)
            except ValueError as error:
                print(f"refused: {error}")
            orphans = shop.execute("SELECT count(*) FROM tasks WHERE tenant = 'Eve'").fetchone()
            print(
                f"{len(tasks)} orders, {len(tasks)} tasks; of the refused one {orphans and orphans[0]} tasks are left"
            )

            await c.wait_many(tasks, seconds=60)
            try:
                book(shop, tasks[0], crash=True)
            except RuntimeError as error:
                print(f"while it was booked: {error}")
            for attempt in ("first", "second"):
                print(f"{attempt} time: {sum(book(shop, task_id) for task_id in tasks)} booked")
            for customer, owes in shop.execute("SELECT customer, owes FROM shop.accounts ORDER BY customer"):
                print(f"{customer} owes {(owes - before.get(customer, 0)) / 100:.2f} more")


trio.run(main)
