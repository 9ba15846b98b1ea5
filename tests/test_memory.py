"""How much memory a process may use, from copies of Linux's files."""

from tltools.memory import UNKNOWN, available_memory

MIB = 2**20
UNLIMITED = 9223372036854771712


def system(root, *, available_kib=1024 * 1024, membership=""):
    (root / "proc/self").mkdir(parents=True)
    info = f"MemTotal: 99999999 kB\nMemAvailable: {available_kib} kB\nHugePages: 0\n"
    (root / "proc/meminfo").write_text(info)
    (root / "proc/self/cgroup").write_text(membership)


def version_2(folder, *, limit, usage, inactive=0):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{usage}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {inactive}\n")


def version_1(folder, *, limit, usage, inactive=0):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.limit_in_bytes").write_text(f"{limit}\n")
    (folder / "memory.usage_in_bytes").write_text(f"{usage}\n")
    (folder / "memory.stat").write_text(f"inactive_file 1\ntotal_inactive_file {inactive}\n")


def test_without_a_limit_all_of_the_systems_memory_is_available(tmp_path):
    system(tmp_path, membership="0::/\n")
    assert available_memory(tmp_path) == 1024 * MIB


def test_cgroups_version_2_counts_every_level_and_the_cache(tmp_path):
    system(tmp_path, membership="0::/pod/job\n")
    mount = tmp_path / "sys/fs/cgroup"
    version_2(mount / "pod/job", limit="max", usage=50 * MIB)
    version_2(mount / "pod", limit=512 * MIB, usage=200 * MIB, inactive=30 * MIB)
    assert available_memory(tmp_path) == (512 - 200 + 30) * MIB
    version_2(mount / "pod/job", limit=100 * MIB, usage=50 * MIB)
    assert available_memory(tmp_path) == 50 * MIB


def test_cgroups_version_1_works_in_a_container_with_the_hosts_path(tmp_path):
    system(tmp_path, membership="9:cpu,cpuacct:/\n4:memory:/docker/abc\n0::/\n")
    mount = tmp_path / "sys/fs/cgroup/memory"
    version_1(mount, limit=300 * MIB, usage=100 * MIB, inactive=10 * MIB)
    assert available_memory(tmp_path) == 210 * MIB


def test_cgroups_version_1_works_without_a_limit(tmp_path):
    system(tmp_path, membership="4:memory:/\n")
    version_1(tmp_path / "sys/fs/cgroup/memory", limit=UNLIMITED, usage=100 * MIB)
    assert available_memory(tmp_path) == 1024 * MIB


def test_an_exceeded_limit_leaves_no_memory(tmp_path):
    system(tmp_path, membership="0::/\n")
    version_2(tmp_path / "sys/fs/cgroup", limit=100 * MIB, usage=120 * MIB)
    assert available_memory(tmp_path) == 0


def test_this_machine_has_available_memory():
    assert available_memory() > 100 * MIB
    assert UNKNOWN > 0
