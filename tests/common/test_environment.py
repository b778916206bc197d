"""What a report says of the machine and of what is installed."""

import platform
from importlib.metadata import version

import psutil
import pytest

import medals_rt
from medals_rt.common.distribution import requirements
from medals_rt.common.environment import library_versions, machine_facts, peak_memory_mib


def test_versions_of_what_is_required_and_installed() -> None:
    found = library_versions()
    assert list(found)[:2] == ["python", "medals-rt"]
    assert found.pop("python") == platform.python_version()
    assert found.pop("medals-rt") == medals_rt.__version__
    assert set(found) <= {each.package for each in requirements()}
    assert {"numpy", "scipy"} <= set(found)
    assert all(version(name) == number for name, number in found.items())
    assert "pytest" not in found  # what only contributors install says nothing of a result


def test_versions_can_be_changed_without_harm() -> None:
    library_versions().clear()
    assert library_versions()


def test_the_machine_without_its_owner() -> None:
    facts = machine_facts()
    assert set(facts) == {"system", "architecture", "processor", "cores"}
    assert facts["cores"] >= 1
    assert platform.node() not in facts.values()


def test_peak_memory_is_at_least_what_is_taken_now() -> None:
    taken_mib = psutil.Process().memory_info().rss / 2**20
    peak = peak_memory_mib()
    if peak is None:
        pytest.skip("this system doesn't say how much memory a process took")
    assert taken_mib - 1 <= peak < taken_mib + 2**20
