"""Which versions of packages pyproject.toml allows, for a machine that may lack the package that reads such things."""

from __future__ import annotations  # see common/probing.py

import re
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def allowed(distribution: str) -> str:
    """The versions of what PyPI calls `distribution`, such as ">=1.2,<2"; "" means any. LookupError where unknown."""
    import tomllib  # since Python 3.11

    project = tomllib.loads(PYPROJECT.read_text())["project"]
    for lines in (project["dependencies"], *project["optional-dependencies"].values()):
        for line in lines:
            if found := re.fullmatch(rf"{re.escape(distribution)}(\[.*\])?([<>=].*)?", line):
                return found[2] or ""
    raise LookupError(f"expected {distribution} in {PYPROJECT}, found none")


def fits(version: str, versions: str) -> bool:
    """Whether `versions`, of clauses ">=1.2", "<2" and "==13.0.*", hold it. 2.0rc1 and 2.0+cu130 count as 2.0."""
    return all(_holds(version, clause) for clause in versions.split(",") if clause)


def _holds(version: str, clause: str) -> bool:
    operator = clause.rstrip("0123456789.*")
    found, limit = _numbers(version), _numbers(clause.removeprefix(operator))
    size = len(limit) if operator == "==" else max(len(found), len(limit))
    left, right = ((*numbers, *[0] * size)[:size] for numbers in (found, limit))
    return {">=": left >= right, "<": left < right, "==": left == right}[operator]


def _numbers(version: str) -> tuple[int, ...]:
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()
