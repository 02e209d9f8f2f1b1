"""Customers' own pricing rules in an ERP: `python examples/erp_scripting.py`.

A rule is Python that a key user wrote in a form of the ERP. It gets an order and says its price. It can break nothing but itself,
and when it does, who wrote it sees the line.
"""

from dataclasses import dataclass
from typing import Any

import trio

import continuum

RULES = {
    "list price": """
import json

order = json.loads(payload)
total = sum(line["quantity"] * line["price"] for line in order["lines"])
result = {"total": total, "reason": "list price"}
""",
    "volume discount": """
import json

order = json.loads(payload)
pieces = sum(line["quantity"] for line in order["lines"])
percent = 15 if pieces >= 100 else 5 if pieces >= 10 else 0
total = sum(line["quantity"] * line["price"] for line in order["lines"])
result = {"total": round(total * (100 - percent) / 100, 2), "reason": f"{percent} % off for {pieces} pieces"}
""",
    "loyal customers": """
import json

order = json.loads(payload)
years = 2026 - order["customer"]["since"]
result = {"total": 10 * years, "reason": f"{years} years"}
""",
}

ORDERS: list[dict[str, Any]] = [
    {"customer": {"name": "Ada"}, "lines": [{"item": "lamp", "quantity": 2, "price": 24.5}]},
    {"customer": {"name": "Bob", "since": 2019}, "lines": [{"item": "pencil", "quantity": 144, "price": 0.75}]},
]


@dataclass
class Price:
    total: float
    reason: str


async def main() -> None:
    async with continuum.local() as c:
        for name, rule in RULES.items():
            prices = await c.map(
                rule, ORDERS, returns=Price, return_failures=True, name=name, tenant="acme", timeout=5, max_attempts=1
            )
            for order, price in zip(ORDERS, prices, strict=True):
                if isinstance(price, Price):
                    print(f"{name:16} {order['customer']['name']}: {price.total:8.2f}  ({price.reason})")
                else:
                    print(f"{name:16} {order['customer']['name']}: {price}")
                    print("                 ", price.traceback.replace("\n", "\n                  "))


trio.run(main)
