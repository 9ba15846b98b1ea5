"""The number of cores that this process may use."""

import os

import pytest

from tltools import parallel


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with 64 cores, whose cgroups are files in `tmp_path`."""

    def make(own: str, files: dict[str, str]) -> None:
        (tmp_path / "cgroup").write_text(own)
        for name, content in files.items():
            path = tmp_path / "fs" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)

    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(64)), raising=False)
    monkeypatch.setattr(parallel, "OWN_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(parallel, "CGROUPS", tmp_path / "fs")
    return make


V1 = "4:memory:/docker/abc\n2:cpu,cpuacct:/docker/abc\n0::/\n"


def v1(folder, quota, period=100_000):
    return {
        f"{folder}/cpu.cfs_quota_us": f"{quota}\n",
        f"{folder}/cpu.cfs_period_us": f"{period}\n",
    }


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        pytest.param("0::/\n", {}, 64, id="no limit"),
        pytest.param("0::/\n", {"cpu.max": "max 100000\n"}, 64, id="v2, none"),
        pytest.param("0::/\n", {"cpu.max": "100000 100000\n"}, 1, id="v2, one core"),
        pytest.param("0::/\n", {"cpu.max": "50000 100000\n"}, 1, id="v2, half a core"),
        pytest.param("0::/\n", {"cpu.max": "250000 100000\n"}, 3, id="v2, two and a half"),
        pytest.param("0::/\n", {"cpu.max": "9900000 100000\n"}, 64, id="v2, more than there are"),
        pytest.param(
            "0::/a/b\n",
            {"a/b/cpu.max": "max 100000", "a/cpu.max": "200000 100000", "cpu.max": "max 100000"},
            2,
            id="v2, of a group above",
        ),
        pytest.param(V1, v1("cpu,cpuacct/docker/abc", 150_000), 2, id="v1"),
        pytest.param(V1, v1("cpu,cpuacct", 50_000), 1, id="v1, mounted in a container"),
        pytest.param(V1, v1("cpu", 400_000), 4, id="v1, under one of its names"),
        pytest.param(V1, v1("cpu", -1), 64, id="v1, none"),
        pytest.param(V1, v1("memory", 50_000), 64, id="v1, of another controller"),
        pytest.param("0::/\n", {"cpu.max": "garbage"}, 64, id="garbage"),
    ],
)
def test_the_number_of_cores_follows_the_cpu_quota(machine, own, files, expected):
    machine(own, files)
    assert parallel.num_cores() == expected


def test_a_smaller_affinity_takes_precedence(machine, monkeypatch):
    machine("0::/\n", {"cpu.max": "800000 100000"})
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {3, 5}, raising=False)
    assert parallel.num_cores() == 2


def test_without_cgroups_there_is_no_limit(machine, tmp_path):
    machine("", {})
    (tmp_path / "cgroup").unlink()
    assert parallel.num_cores() == 64
