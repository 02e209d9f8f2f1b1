"""The worker's end of an installation: what it tells a builder, and what it makes of the answers, honest or not."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from continuum.config import PackageIndex, Settings
from continuum.requirements import BadRequirements, parse_requirements
from continuum.sandbox.docker_builder import builder_settings
from continuum.sandbox.network import PolicyError
from continuum.sandbox.protocol import RequirementsFailed
from continuum.sandbox.requirements_build import LARGEST_ANSWER, LONGEST_QUOTE, Installation

PASSWORD = "hunter2-and-more"
INDEX = PackageIndex(f"https://user:{PASSWORD}@packages.example/simple", ())


async def verdict_on(answer: bytes, text: str = "a==1") -> int:
    """What an installation makes of an answer."""
    ours, theirs = trio.testing.memory_stream_pair()
    await theirs.send_all(answer)
    await theirs.send_eof()
    return await Installation(parse_requirements(text), INDEX, uid=65532, max_mb=16).run(ours)


def failed(step: str, code: int | None, said: str) -> bytes:
    return json.dumps({"step": step, "code": code, "said": said}).encode()


async def test_the_size_of_a_layer_is_what_the_builder_says() -> None:
    assert await verdict_on(b'{"bytes": 8192, "files": 2}\n') == 8192


@pytest.mark.parametrize(
    "said",
    [
        "error: No solution found when resolving dependencies\n  cause: Because a was not found in the package registry",
        "error: Failed to download `a==1`\n  cause: Hash mismatch for `a==1`",
        "error: Hash-checking is required, but no trusted hash was provided for: `b`",
    ],
)
async def test_a_list_that_no_attempt_can_install_is_bad_in_uvs_own_words(said: str) -> None:
    with pytest.raises(BadRequirements) as refused:
        await verdict_on(failed("install", 1, f"Using CPython 3.11.2\nResolved 1 package in 13ms\n{said}\n"))
    assert str(refused.value) == said


@pytest.mark.parametrize(
    ("step", "code", "said"),
    [
        ("install", 2, "error: Request failed after 3 retries\n  cause: tcp connect error"),
        (
            "install",
            1,
            "error: No solution found when resolving dependencies\n hint: the index answered 401 Unauthorized",
        ),
        ("install", -9, ""),
        ("host", None, "No space left on device"),
        ("start", None, "Exec format error"),
        ("anything", None, "No solution found when resolving dependencies"),
    ],
)
async def test_all_else_may_pass(step: str, code: int | None, said: str) -> None:
    with pytest.raises(RequirementsFailed):
        await verdict_on(failed(step, code, said))


@pytest.mark.parametrize("before", [True, False])
async def test_a_verdict_is_made_of_all_that_uv_said_and_a_quote_has_both_ends(before: bool) -> None:
    reason, hints = "error: No solution found when resolving dependencies", "  because a depends on b\n" * 400
    said = f"{reason}\n{hints}the end" if before else f"the beginning\n{hints}{reason}"
    with pytest.raises(BadRequirements) as refused:
        await verdict_on(failed("install", 1, said))
    quote = str(refused.value)
    assert quote.startswith(said[:100])
    assert quote.endswith(said[-100:])
    assert len(quote) <= LONGEST_QUOTE
    with pytest.raises(RequirementsFailed):
        await verdict_on(failed("install", 1, f"{said}\n{hints}an index answered 403 Forbidden\n{hints}"))
    with pytest.raises(BadRequirements, match="REQUIREMENTS_MAX_MB"):
        await verdict_on(failed("install", 1, f"{hints}No space left on device (os error 28)\n{hints}"))


async def test_a_full_tmpfs_is_a_list_that_is_too_large() -> None:
    with pytest.raises(BadRequirements, match="more than the 16 MB of REQUIREMENTS_MAX_MB"):
        await verdict_on(failed("install", 2, "error: Failed to write\n  cause: No space left on device (os error 28)"))


async def test_neither_the_password_of_an_index_nor_control_characters_are_quoted() -> None:
    with pytest.raises(RequirementsFailed) as failure:
        await verdict_on(failed("install", 2, f"Failed to fetch {INDEX.url}a/ \x00\x1b[31m" + "x" * 100_000))
    assert PASSWORD not in str(failure.value)
    assert "https://user:****@packages.example" in str(failure.value)
    assert "\x00" not in str(failure.value)
    assert "\x1b" not in str(failure.value)
    assert len(str(failure.value)) <= LONGEST_QUOTE


def _encoded(value: object) -> bytes:
    return json.dumps(value).encode()


@given(answer=st.binary(max_size=200) | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(_encoded))
def test_an_answer_that_makes_no_sense_is_a_failure_and_nothing_worse(answer: bytes) -> None:
    with pytest.raises(RequirementsFailed):
        trio.run(verdict_on, answer)


async def test_an_answer_without_end_is_not_read_to_its_end() -> None:
    class Endless(trio.abc.Stream):
        sent = 0

        async def send_all(self, data: Any) -> None:
            pass

        async def wait_send_all_might_not_block(self) -> None:
            pass

        async def receive_some(self, max_bytes: int | None = None) -> bytes:
            await trio.lowlevel.checkpoint()
            self.sent += 65536
            return b" " * 65536

        async def aclose(self) -> None:
            pass

    stream = Endless()
    with pytest.raises(RequirementsFailed):
        await Installation(parse_requirements("a==1"), INDEX, uid=1, max_mb=1).run(stream)
    assert stream.sent <= LARGEST_ANSWER + 2 * 65536


def test_an_index_may_have_other_places_and_private_networks() -> None:
    index = Settings(
        requirements_index=SecretStr("https://u:p@a.example/simple, http://b.example:81, 10.1.0.0/16:443")
    ).package_index
    assert index is not None
    assert index.url == "https://u:p@a.example/simple"
    assert [str(entry) for entry in index.reached] == ["a.example:443", "b.example:81", "10.1.0.0/16:443"]
    assert "u:p" not in repr(index)
    assert Settings(requirements_index=SecretStr("none")).package_index is None


@pytest.mark.parametrize(
    ("wanted", "runtimes", "chosen"),
    [
        ("", {"runc": {}}, ""),
        ("crun", {"runc": {}, "crun": {"path": "/usr/bin/crun"}}, "crun"),
        ("runsc", {"runc": {}, "runsc": {"path": "/usr/bin/runsc"}}, ""),
    ],
)
def test_a_builder_has_the_sandboxes_runtime_where_its_network_can_be_restricted(
    wanted: str, runtimes: dict[str, dict[str, str]], chosen: str
) -> None:
    assert _chosen({"DefaultRuntime": "runc", "Runtimes": runtimes}, wanted) == chosen


def test_a_daemon_whose_default_is_gvisor_builds_on_runc_where_it_has_it() -> None:
    info = {"DefaultRuntime": "runsc", "Runtimes": {"runsc": {"path": "runsc"}, "runc": {"path": "runc"}}}
    assert _chosen(info, "") == "runc"
    del info["Runtimes"]["runc"]  # type: ignore[attr-defined]
    with pytest.raises(PolicyError):
        _chosen(info, "")


def _chosen(info: dict[str, Any], wanted: str) -> str:
    return builder_settings(Settings(container_runtime=wanted), info).container_runtime
