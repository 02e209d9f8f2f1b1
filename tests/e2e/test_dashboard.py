"""The dashboard in a real browser: what it shows, what it lets do, who can use it, and what it withstands."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
import trio

from continuum.model import AttemptRecord, Lease, NewTask, Status, Stream, WorkerReport
from continuum.schedules import NewSchedule
from tests.e2e.browser import TOKEN, Site, Watch, keep, open_browser, open_site, require_browser

ATTACK = (
    "</code></pre></title><script>window.owned=1;alert(1)</script>"
    "<img src=//evil.example/x onerror=alert(2)>'\"><svg onload=alert(3)>"
)
TRACEBACK = """Traceback (most recent call last):
  File "/sandbox/task/script.py", line 3, in <module>
    raise ValueError("the invoice 4711 has no lines")
ValueError: the invoice 4711 has no lines
"""
CODE = 'import json\n\nraise ValueError("the invoice 4711 has no lines")\n'
WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 740}
LARGEST_TRANSFER = 100_000


@dataclasses.dataclass
class Tasks:
    """The tasks that there are, by what became of them."""

    completed: int
    failed: int
    attack: int
    running: int
    scheduled: int

    def paths(self) -> dict[str, str]:
        return {
            "overview": "/",
            "tasks": "/ui/tasks",
            "nothing-found": "/ui/tasks?q=nothing+of+this+name",
            "failures": "/ui/failures",
            "workers": "/ui/workers",
            "schedules": "/ui/schedules",
            "limits": "/ui/limits",
            "sign-in": "/ui/sign-in",
            "absent": "/ui/tasks/999999",
            "completed": f"/ui/tasks/{self.completed}",
            "failed": f"/ui/tasks/{self.failed}",
            "attack": f"/ui/tasks/{self.attack}",
            "running": f"/ui/tasks/{self.running}",
            "scheduled": f"/ui/tasks/{self.scheduled}",
        }


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    require_browser()
    with open_site() as opened:
        yield opened


@pytest.fixture(scope="module")
def tasks(site: Site) -> Tasks:
    return site.run(fill, site)


@pytest.fixture(scope="module")
def chromium(site: Site) -> Iterator[Any]:
    with open_browser() as browser:
        yield browser


@pytest.fixture
def watch(site: Site) -> Iterator[Watch]:
    """Whatever a test does, no page complains, asks anything of another site, or opens a dialog."""
    watching = Watch()
    yield watching
    for status in watching.refused:
        watching.complaints.remove(f"error: Failed to load resource: the server responded with a status of {status} ()")
    assert watching.complaints == []
    assert watching.dialogs == []
    assert {urlsplit(url)[:2] for url in watching.requests} <= {urlsplit(site.address)[:2]}


@pytest.fixture
def page(chromium: Any, site: Site, tasks: Tasks, watch: Watch) -> Iterator[Any]:
    context = chromium.new_context(viewport=WIDE, base_url=site.address)
    context.set_default_timeout(10_000)
    opened = context.new_page()
    watch.attach(opened)
    yield opened
    context.close()


async def fill(site: Site) -> Tasks:
    """Some tasks in each state, some of them hostile from head to foot."""
    database = site.database
    now = dt.datetime.now(dt.UTC)
    (completed,) = await site.running.submit("hello", name="nightly ledger", tenant="acme", payload='{"rows": 12}')
    await site.running.submit(*["hello"] * 70, name="bulk", priority=5)
    (failed, attack) = await database.submit(
        [
            NewTask(name="monthly invoices", code="exit 1", tenant="acme", payload='{"number": 4711}', max_attempts=1),
            NewTask(
                name=ATTACK,
                description=ATTACK,
                code="exit 1",
                tenant=ATTACK,
                payload=json.dumps(ATTACK),
                max_attempts=1,
            ),
        ]
    )
    await site.running.wait_for(completed, failed, attack, seconds=30)
    (scheduled,) = await database.submit([NewTask(name="yearly", code="hello", run_at=now + dt.timedelta(hours=5))])
    (running,) = await site.running.submit("sleep 3600", name="customer export", tenant="globex")
    await site.running.wait_for(running, status=Status.PROCESSING, seconds=30)
    for number, paused in enumerate((False, True, False)):
        new = NewSchedule(f"nightly-{number}", "30 2 * * *", NewTask(code="hello"), "Europe/Berlin", paused=paused)
        await database.put_schedule(new)
    row = database.schedule_rows["nightly-2"]
    database.schedule_rows["nightly-2"] = dataclasses.replace(
        row, cron=ATTACK, time_zone=ATTACK, tenant=ATTACK, fired=7
    )
    await database.report(WorkerReport(ATTACK, ATTACK, 1, ATTACK, 4, 0, ATTACK))
    for task_id, code, error, output in ((failed, CODE, TRACEBACK, "invoice 4711\n"), (attack, ATTACK, ATTACK, ATTACK)):
        code_id = await database.store_code(code)
        first = AttemptRecord(1, "worker-0", now, now, "failed", 1, error.strip().splitlines()[-1])
        database.tasks[task_id] = dataclasses.replace(
            database.tasks[task_id],
            code_id=code_id,
            last_error=error.strip().splitlines()[-1] + "\nexit code 1",
            error_output=error,
            output=output,
            history=(first,),
        )
    lease = Lease(running, 1)
    with trio.fail_after(30):
        while lease not in site.state.running:  # the record knows of it first
            await trio.sleep(0.01)
    site.state.running[lease].transcript.write(Stream.OUTPUT, "12 of 600 customers\n" + ATTACK)
    return Tasks(completed, failed, attack, running, scheduled)


def until(page: Any, condition: str, *arguments: object) -> None:
    """Wait for a condition in the page."""
    page.wait_for_function(condition, arg=list(arguments), timeout=10_000)


def sign_in(page: Any, onward: str = "/") -> None:
    page.goto(f"/ui/sign-in?next={onward}")
    page.fill("#token", TOKEN)
    page.keyboard.press("Enter")
    page.wait_for_url(lambda url: urlsplit(url).path == onward)


def test_the_overview_shows_everything_and_keeps_it_true(site: Site, tasks: Tasks, page: Any) -> None:
    page.goto("/")
    assert page.title() == f"Overview · Continuum on {site.state.host}"
    assert page.inner_text("#running-count") == "1"
    until(page, "() => document.getElementById('live').dataset.state === 'live'")
    assert "customer export" in page.inner_text("#running")
    until(page, "([attack]) => document.querySelector('#running .tail')?.textContent === attack", ATTACK)
    assert "ValueError: the invoice # has no lines" in page.inner_text("#failures")
    assert "customer export" in page.inner_text("#sandboxes")
    assert page.locator("#charts svg[role=img]").count() == 2
    completed = int(page.inner_text("#completed-count"))
    chart = page.get_attribute("#charts path.line.good", "d")
    site.run(site.running.submit, *["hello"] * 5)
    until(page, "([more]) => Number(document.getElementById('completed-count').textContent) === more", completed + 5)
    until(
        page,
        "([old]) => document.querySelector('#charts path.line.good').getAttribute('d') !== old",
        chart,
    )


def test_parts_that_change_leave_focus_and_selection_where_they_are(site: Site, tasks: Tasks, page: Any) -> None:
    page.goto("/")
    until(page, "() => document.getElementById('live').dataset.state === 'live'")
    page.focus(f"#running-{tasks.running} a")
    page.evaluate(
        "document.activeElement.dataset.marked = 'yes'; document.activeElement.removeAttribute('data-marked')"
    )
    page.evaluate("window.before = document.activeElement")
    count = int(page.inner_text("#completed-count"))
    site.run(site.running.submit, "sleep 1", "hello")
    until(page, "([more]) => Number(document.getElementById('completed-count').textContent) === more", count + 2)
    assert page.evaluate("document.activeElement === window.before && window.before.isConnected")


def test_elapsed_times_tick(site: Site, tasks: Tasks, page: Any) -> None:
    page.goto(f"/ui/tasks/{tasks.running}")
    shown = page.inner_text(".state time")
    until(page, "([old]) => document.querySelector('.state time').textContent !== old", shown)


def test_from_the_dashboard_to_the_cause_of_a_failure_is_one_click(site: Site, tasks: Tasks, page: Any) -> None:
    page.goto("/")
    page.click("text=ValueError: the invoice # has no lines")
    assert urlsplit(page.url).path == f"/ui/tasks/{tasks.failed}"
    assert page.inner_text(".cause .first") == "ValueError: the invoice 4711 has no lines"
    assert page.inner_text("li.culprit") == 'raise ValueError("the invoice 4711 has no lines")'
    page.click("text=Line 3 of the code")
    assert page.evaluate("document.querySelector(':target').matches('li.culprit')")


def test_a_task_s_page_shows_its_attempts_output_payload_and_code(site: Site, tasks: Tasks, page: Any) -> None:
    page.goto(f"/ui/tasks/{tasks.failed}")
    assert page.inner_text("h1") == f"monthly invoices #{tasks.failed}"
    assert "worker-0" in page.inner_text("#task_attempts")
    assert "exit code 1" in page.inner_text("#task_attempts")
    assert page.inner_text("#output-title ~ pre") == "invoice 4711\n"
    assert json.loads(page.inner_text("#payload-title ~ pre")) == {"number": 4711}
    assert "File" in page.inner_text("#stderr-title ~ pre")
    page.goto(f"/ui/tasks/{tasks.completed}")
    assert "completed" in page.inner_text(".state")
    assert page.locator(".cause").count() == 0


def test_a_running_task_s_page_follows_it_to_its_end(site: Site, tasks: Tasks, page: Any) -> None:
    (task,) = site.run(site.running.submit, "say counting the customers")
    page.goto(f"/ui/tasks/{task}")
    until(page, "() => document.querySelector('.pill').textContent === 'running'")
    until(page, "() => document.getElementById('task_output').textContent.includes('counting the customers')")
    until(page, "() => document.getElementById('live').dataset.state === 'live'")
    sign_in(page, f"/ui/tasks/{task}")
    page.click("text=Cancel")
    assert page.inner_text(".said") == "The worker was asked to stop the task."
    until(page, "() => document.querySelector('.pill').textContent === 'cancelled'")


def test_search_finds_by_name_id_status_and_tenant_and_goes_on_page_by_page(
    site: Site, tasks: Tasks, page: Any
) -> None:
    page.goto("/ui/tasks")
    assert page.locator(".tasks > li").count() == 50
    page.click("text=Older")
    assert page.locator(".tasks > li").count() > 10
    page.click("text=Newest")
    page.fill("#q", "INVOICES")
    page.click("button:has-text('Search')")
    assert page.locator(".tasks > li").count() == 1
    assert "ValueError: the invoice 4711" in page.inner_text(".tasks")
    page.fill("#q", str(tasks.scheduled))
    page.click("button:has-text('Search')")
    assert "yearly" in page.inner_text(".tasks")
    page.fill("#q", "")
    page.select_option("#status", "failed")
    page.fill("#tenant", "acme")
    page.click("button:has-text('Search')")
    assert [one.inner_text() for one in page.locator(".tasks .pill").all()] == ["failed"]
    page.fill("#tenant", "of nobody")
    page.click("button:has-text('Search')")
    assert "No task fits" in page.inner_text("main")


def test_retrying_and_cancelling_take_a_session_and_tell_what_they_did(
    site: Site, tasks: Tasks, page: Any, watch: Watch
) -> None:
    page.goto(f"/ui/tasks/{tasks.completed}")
    page.click("text=Sign in to try it again")
    page.fill("#token", "a guess")
    page.click("button")
    assert page.inner_text("#token-problem") == "That is not the API_TOKEN of this worker."
    watch.refused.append(403)
    page.fill("#token", TOKEN)
    page.click("button:has-text('Sign in')")
    assert urlsplit(page.url).path == f"/ui/tasks/{tasks.completed}"
    page.click("text=Try again")
    copy = int(urlsplit(page.url).path.rpartition("/")[2])
    assert copy not in (tasks.completed, tasks.failed)
    assert page.inner_text(".said").startswith("This is a new copy")
    page.click(f"text=#{tasks.completed}")
    assert page.inner_text(".actions") == f"Tried again as #{copy}"
    page.goto(f"/ui/tasks/{tasks.scheduled}")
    page.click("text=Cancel")
    assert page.inner_text(".said") == "The task is cancelled."
    assert page.inner_text(".pill") == "cancelled"
    page.click("text=Sign out")
    page.goto(f"/ui/tasks/{tasks.failed}")
    assert page.locator("text=Sign in to try it again").count() == 1


def test_no_text_of_a_task_or_a_worker_becomes_anything_but_text(
    site: Site, tasks: Tasks, page: Any, watch: Watch
) -> None:
    watch.refused.append(404)
    for path in tasks.paths().values():
        page.goto(path)
        if page.locator("#live").count():
            until(page, "() => document.getElementById('live').dataset.state === 'live'")
        assert page.evaluate("window.owned") is None
        assert page.locator("script:not([src])").count() == 0
        assert page.locator("script").count() == 1
        assert page.locator("img").count() == 0
        assert page.locator("[onload], [onerror]").count() == 0
    page.goto(f"/ui/tasks/{tasks.attack}")
    shown = page.inner_text("main")
    assert shown.count("<script>window.owned=1") >= 7


@pytest.mark.parametrize("screen", ["wide", "phone"])
def test_every_page_is_accessible_in_light_and_dark(
    site: Site, tasks: Tasks, page: Any, watch: Watch, screen: str
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page.set_viewport_size(WIDE if screen == "wide" else PHONE)
    found = {}
    page.emulate_media(reduced_motion="reduce")
    watch.refused.append(404)
    for name, path in tasks.paths().items():
        page.goto(path)
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            results = Axe().run(page)
            if results.violations_count:
                found[name, scheme] = [
                    (one["id"], [node["html"] for node in one["nodes"]]) for one in results.response["violations"]
                ]
            keep(page, f"{name}-{screen}-{scheme}")
        assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"], name
    assert found == {}


def test_every_page_can_be_walked_with_the_keyboard(site: Site, tasks: Tasks, page: Any) -> None:
    for path in (tasks.paths()[name] for name in ("overview", "tasks", "failed", "workers")):
        page.goto(path)
        walked: list[str] = []
        while True:
            page.keyboard.press("Tab")
            focused = page.evaluate(
                """() => {
                    const it = document.activeElement, box = it.getBoundingClientRect(), style = getComputedStyle(it);
                    if (it === document.body) return null;
                    const seen = box.width > 0 && box.height > 0 && style.outlineStyle !== 'none';
                    return [it.outerHTML.slice(0, 300), seen];
                }"""
            )
            if focused is None:
                break
            assert focused[1], f"the focus is not visible on {focused[0]}"
            walked.append(focused[0])
            assert len(walked) < 500, "the keyboard is trapped"
        wanted = page.locator("a[href], button, input:not([type=hidden]), select, [tabindex='0']").count()
        assert len(walked) == wanted
        assert walked[0].startswith('<a class="skip"')
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


def test_without_javascript_the_pages_are_whole(site: Site, tasks: Tasks, chromium: Any, watch: Watch) -> None:
    context = chromium.new_context(base_url=site.address, java_script_enabled=False)
    page = context.new_page()
    watch.attach(page)
    page.goto("/")
    assert page.inner_text("#live") == "Snapshot"
    assert "customer export" in page.inner_text("#running")
    assert re.search(r"\d s|\d min", page.inner_text("#running .figure"))
    sign_in(page, f"/ui/tasks/{tasks.failed}")
    assert page.locator("button:has-text('Try again')").count() == 1
    context.close()


def test_the_first_page_is_small(site: Site, tasks: Tasks, chromium: Any, watch: Watch, record_property: Any) -> None:
    paints = []
    for _ in range(3):
        context = chromium.new_context(base_url=site.address, viewport=WIDE)
        page = context.new_page()
        watch.attach(page)
        session = context.new_cdp_session(page)
        session.send("Network.enable")
        sizes: list[int] = []
        session.on("Network.loadingFinished", lambda event, sizes=sizes: sizes.append(event["encodedDataLength"]))
        page.goto("/")
        until(page, "() => document.getElementById('live').dataset.state === 'live'")
        until(page, "() => performance.getEntriesByName('first-contentful-paint').length > 0")
        paints.append(
            page.evaluate("performance.getEntriesByName('first-contentful-paint').map(entry => entry.startTime)[0]")
        )
        assert 5_000 < sum(sizes) < LARGEST_TRANSFER
        record_property("bytes", int(sum(sizes)))
        context.close()
    record_property("first_contentful_paint_ms", round(min(paints)))
    print(f"first contentful paint {[round(paint) for paint in paints]} ms, {int(sum(sizes)):,} bytes")
