"""Versions are compared as pip compares them, for every requirement of pyproject.toml."""

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from common.requirements import PYPROJECT, allowed, fits

_PROJECT = tomllib.loads(PYPROJECT.read_text())["project"]
REQUIREMENTS = [
    Requirement(line)
    for lines in (_PROJECT["dependencies"], *_PROJECT["optional-dependencies"].values())
    for line in lines
]
NUMBER = st.lists(st.integers(0, 12), min_size=1, max_size=4).map(lambda parts: ".".join(map(str, parts)))
CLAUSE = st.one_of(
    st.builds(">={}".format, NUMBER), st.builds("<{}".format, NUMBER), st.builds("=={}.*".format, NUMBER)
)


@given(version=NUMBER, clauses=st.lists(CLAUSE, max_size=3))
def test_as_packaging_has_it(version: str, clauses: list[str]) -> None:
    versions = ",".join(clauses)
    assert fits(version, versions) == SpecifierSet(versions).contains(version)


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=str)
def test_every_requirement_is_found_and_read(requirement: Requirement) -> None:
    versions = allowed(requirement.name)
    assert SpecifierSet(versions) == requirement.specifier
    for version in ("0.1", "1.2.3", "2.12.1", "5.0.0", "13.0.88", "2026.1"):
        assert fits(version, versions) == requirement.specifier.contains(version)


@pytest.mark.parametrize(
    ("version", "fitting"), [("2.12.1+cu130", True), ("2.11.0rc1", True), ("2.13", False), ("2", False)]
)
def test_words_at_a_versions_end_do_not_count(version: str, fitting: bool) -> None:
    assert fits(version, ">=2.11,<2.13") is fitting


def test_an_unknown_package() -> None:
    with pytest.raises(LookupError, match=r"expected surprise in .*pyproject\.toml, found none"):
        allowed("surprise")
