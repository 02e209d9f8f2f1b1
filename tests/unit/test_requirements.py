"""The pinned list of what a script imports: what is taken, how it is normalised, and what is refused by line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from continuum.requirements import LARGEST_LIST, LONGEST_LINE, MOST_REQUIREMENTS, BadRequirements, parse_requirements

ONE, OTHER = "a" * 64, "b" * 64


def lines(text: str) -> list[str]:
    return list(parse_requirements(text).lines)


def test_a_list_is_brought_into_its_normal_form() -> None:
    text = "# what we use\n\nRequests==2.32.0   # http\nfoo_Bar[B,a] ==1.0; python_version<'3.9'\n\n"
    assert lines(text) == ['foo-bar[a,b]==1.0 ; python_version < "3.9"', "requests==2.32.0"]


def test_lists_that_mean_the_same_have_the_same_digest() -> None:
    one = parse_requirements(f"B==2 --hash=sha256:{ONE}\na_a==1.0 --hash=sha256:{OTHER} --hash=sha256:{ONE}")
    other = parse_requirements(
        f"a.a==1.0 \\\n    --hash=sha256:{ONE.upper()} \\\n    --hash=sha256:{OTHER}\n    # via b\nb==2 --hash sha256:{ONE}\n"
    )
    assert one == other
    assert one.digest == other.digest
    assert one.digest != parse_requirements("a-a==1.0\nb==2").digest


def test_the_normal_form_is_read_back_as_itself() -> None:
    once = parse_requirements(f"x[b,a]==1!2.0+Local.1;(os_name=='a-b') \\\n --hash=sha512:{ONE}{OTHER}")
    assert once.lines == (f'x[a,b]==1!2.0+local.1 ; os_name == "a-b" --hash=sha512:{ONE}{OTHER}',)
    assert parse_requirements(once.text) == once


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing\n", "\\\n"])
def test_an_empty_list_requires_nothing(text: str) -> None:
    assert parse_requirements(text).text == ""


def test_one_of_several_versions_may_be_meant_by_markers() -> None:
    text = "a==1; python_version < '3.9'\na==2; python_version >= '3.9'"
    assert len(lines(text)) == 2


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("ok==1\nrequests", "line 2: 'requests' is not pinned; use requests==VERSION"),
        ("requests>=2", "line 1: 'requests>=2' is not pinned"),
        ("requests==2.*", "is not pinned"),
        ("requests===2", "is not pinned"),
        ("requests==2,!=3", "is not pinned"),
        ("-r other.txt", "line 1: the option -r is not allowed"),
        ("--index-url https://user:secret@index.example/", "the option --index-url is not allowed"),
        ("-e .", "the option -e is not allowed"),
        ("ok==1 --global-option=x", "the option --global-option is not allowed"),
        ("ok==1 --hash=md5:aa", "'md5:aa' is no hash"),
        ("ok==1 --hash=sha256:abc", "'sha256:abc' is no hash"),
        (f"ok==1\n--hash=sha256:{ONE}", "line 2: a hash without a requirement"),
        ("thing @ https://user:secret@files.example/thing.whl", "line 1: a URL or a path is not allowed"),
        ("git+https://git.example/thing", "a URL or a path is not allowed"),
        ("./thing", "a URL or a path is not allowed"),
        ("..\\thing", "a URL or a path is not allowed"),
        ("thing-1.0-py3-none-any.whl", "a URL or a path is not allowed"),
        ("thing==one.two", "is no requirement"),
        ("one==1 two==2", "is no requirement"),
        ("one==1\n\nOne==2", "line 3: one is required in line 1 already"),
        ("one==1\none==2; os_name == 'x'", "line 2: one is required in line 1 already"),
        (f"one==1 --hash=sha256:{ONE}\ntwo==2", "line 2: two has no hash, but others have"),
        ("one==1; " + "(" * 490, "is no requirement"),
        ("one==1; extra == '" + "x" * 500 + "'", "at most 500 are allowed"),
        ("one==1; extra == ' --index-url=https://index.example'", "its marker holds a character that is not allowed"),
        ("one==1; extra == '${HOME}'", "its marker holds a character that is not allowed"),
        ("\n".join(f"p{number}==1" for number in range(MOST_REQUIREMENTS + 1)), "at most 500 requirements are allowed"),
        ("a==1\n" * 52_000, "line 501: at most 500 requirements are allowed"),
        ("a==1 \\\n" + f" --hash=sha256:{ONE} \\\n" * 900, f"at most {LONGEST_LINE} are allowed"),
        ("#" * (LARGEST_LIST + 1), "characters; at most"),
    ],
)
def test_a_bad_line_is_named_with_what_is_allowed(text: str, complaint: str) -> None:
    with pytest.raises(BadRequirements) as caught:
        parse_requirements(text)
    assert complaint in str(caught.value)
    assert "secret" not in str(caught.value)


@given(st.text(alphabet="ab=1.;'\"-#\\ \n[],()@/<>!~$sha256:") | st.text())
def test_whatever_is_given_is_read_or_refused_and_never_becomes_an_option(text: str) -> None:
    try:
        read = parse_requirements(text)
    except BadRequirements:
        return
    assert parse_requirements(read.text) == read
    for line in read.lines:
        requirement, _, _ = line.partition(" --hash=")
        assert not any(word.startswith("-") for word in requirement.split(" "))
        assert not set(line) & set("\n\r#$@\\")
