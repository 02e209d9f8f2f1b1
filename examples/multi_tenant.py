"""Many tenants of one service: `python examples/multi_tenant.py`.

Each tenant's scripts run in sandboxes that no other tenant's have been in. Paying tenants go first, and a form that is sent twice
runs once.
"""

from collections import Counter

import continuum

REPORT = """
import json
import statistics

sales = json.loads(payload)
print("looking at", len(sales), "sales")
result = {"mean": round(statistics.mean(sales), 2), "best": max(sales)}
"""

TENANTS = {"acme": "paying", "globex": "free", "initech": "free"}
PRIORITIES = {"paying": 1, "free": 10}  # lower runs first

with continuum.local_blocking(slots=2) as c:
    # Everybody clicks on "report" at once, and the impatient twice.
    clicks = [("globex", 1), ("initech", 1), ("globex", 2), ("acme", 1), ("acme", 1), ("initech", 2), ("globex", 1)]
    ids = [
        c.submit(
            REPORT + "print(json.dumps(result))\n",
            payload=[len(tenant) * month * day for day in range(1, 29)],
            name=f"report of month {month}",
            tenant=tenant,
            priority=PRIORITIES[TENANTS[tenant]],
            idempotency_key=f"report/{month}",
        )
        for tenant, month in clicks
    ]
    print(f"{len(clicks)} clicks made {len(set(ids))} tasks")

    records = c.wait_many(sorted(set(ids)), seconds=60)
    for record in sorted(records, key=lambda record: (record.tenant or "", record.id)):
        print(f"{record.tenant:8} {record.name}: {c.result(record.id)}")
    print("tasks by tenant:", dict(Counter(record.tenant for record in records)))
