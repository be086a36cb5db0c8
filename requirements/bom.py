"""The bill of materials of the locks (CycloneDX, sbom.cdx.json) and the list of licences (licences.md).

`make lock` runs it. What is locked, with which hashes and for whose sake, is read off the locks; the licences are what
the packages' own metadata say, which pip reads without installing them. The order and the identity depend on the locks
alone: the same locks give the same file.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import tomllib
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentScope, ComponentType
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from packageurl import PackageURL
from packaging.markers import Marker
from packaging.utils import canonicalize_name
from tabulate import tabulate

HERE = Path(__file__).parent
SBOM, LICENCES = HERE / "sbom.cdx.json", HERE / "licences.md"
LOCKS = {  # first come, first named: a package of the runtime is not one of development
    "runtime.txt": ComponentScope.REQUIRED,
    "model.txt": ComponentScope.REQUIRED,
    "torch.txt": ComponentScope.REQUIRED,
    "torch-cuda.txt": ComponentScope.OPTIONAL,
    "remotes.txt": ComponentScope.OPTIONAL,
    "dev.txt": ComponentScope.EXCLUDED,
}
_PIN = re.compile(r"^(?P<name>[A-Za-z0-9][\w.-]*)==(?P<version>[^\s;]+)(?: ; (?P<marker>[^\\]+?))?(?: \\)?$")


@dataclass
class Locked:
    """One pinned package.

    lock: the first file that pins it. marker: where it is installed ("" everywhere). hashes: SHA-256 of its files.
    via: names of the packages that want it. asked: whether one of our own lists does.
    """

    name: str
    version: str
    lock: str
    marker: str = ""
    hashes: list[str] = field(default_factory=list)
    via: list[str] = field(default_factory=list)
    asked: bool = False


def read(lock: Path) -> list[Locked]:
    """The pins of one lock, in its order.

    Raises:
        ValueError: a line is neither a pin nor a hash nor a comment.
    """
    found: list[Locked] = []
    for number, line in enumerate(lock.read_text(encoding="utf-8").splitlines(), 1):
        if pin := _PIN.match(line):
            found.append(Locked(pin["name"], pin["version"], lock.name, pin["marker"] or ""))
        elif digest := re.fullmatch(r"\s+--hash=sha256:([0-9a-f]{64})(?: \\)?", line):
            found[-1].hashes.append(digest[1])
        elif re.fullmatch(r"\s+#\s+(?:via )?-r \S+", line):
            found[-1].asked = True
        elif via := re.fullmatch(r"\s+#\s+(?:via )?([A-Za-z0-9][\w.-]*(?:\[[^]]*\])?)", line):
            found[-1].via.append(via[1].split("[")[0])
        elif line.strip() and not line.strip().startswith("#"):
            raise ValueError(f"{lock.name}, line {number}: neither a pin nor a hash: {line.strip()[:80]}")
    return found


def locked(folder: Path = HERE) -> list[Locked]:
    """Every (name, version) of all locks once, under the first lock that has it."""
    found: dict[tuple[str, str], Locked] = {}
    for lock in LOCKS:
        for one in read(folder / lock):
            kept = found.setdefault((one.name, one.version), one)
            kept.hashes = kept.hashes or one.hashes
            kept.via = list(dict.fromkeys(kept.via + one.via))
            kept.asked = kept.asked or one.asked or not one.via
    return sorted(found.values(), key=lambda one: (one.name, one.version))


def licence(metadata: dict[str, object]) -> str:
    """What a package says of its licence: the SPDX expression, else the classifiers, else the first line of a text."""
    if metadata.get("license_expression"):
        return str(metadata["license_expression"])
    classifiers = metadata.get("classifier") or []
    named = [c.rpartition(" :: ")[2] for c in classifiers if c.startswith("License :: ")]  # type: ignore[attr-defined]
    first = (str(metadata.get("license") or "").strip().splitlines() or [""])[0][:80]
    return " or ".join(sorted(set(named) - {"OSI Approved"})) or first or "not stated"


_ELSEWHERE = ["--only-binary", ":all:", "--target", "nowhere"]  # pip asks this of whoever names another platform
_TARGETS: list[tuple[dict[str, str], list[str]]] = [  # the first on which a package is installed is asked for it
    ({}, []),
    ({"sys_platform": "win32"}, ["--platform", "win_amd64", *_ELSEWHERE]),
    ({"python_full_version": "3.13.0", "python_version": "3.13"}, ["--python-version", "3.13", *_ELSEWHERE]),
    ({"sys_platform": "emscripten", "python_full_version": "3.13.0"}, ["--python-version", "3.13", *_ELSEWHERE]),
]


def ask(packages: list[Locked]) -> dict[tuple[str, str], str]:
    """(name, version) -> licence; pip reads the metadata and installs nothing.

    Raises:
        SystemExit: pip cannot; its own words stand before.
    """
    found: dict[tuple[str, str], str] = {}
    for environment, options in _TARGETS:
        asked = {
            one.name: one.version
            for one in packages
            if (one.name, one.version) not in found and (not one.marker or Marker(one.marker).evaluate(environment))
        }
        if not asked:
            continue
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
            file.writelines(f"{name}=={version}\n" for name, version in asked.items())
            file.flush()
            quiet = ["--dry-run", "--no-deps", "--ignore-installed", "--quiet", "--quiet", "--report", "-"]
            done = subprocess.run(
                [sys.executable, "-m", "pip", "install", *quiet, *options, "-r", file.name],
                stdout=subprocess.PIPE, text=True, check=False,
            )  # fmt: skip
        if done.returncode:
            sys.exit(f"pip could not read the metadata of {len(asked)} packages (exit {done.returncode})")
        for one in json.loads(done.stdout)["install"]:
            name = canonicalize_name(one["metadata"]["name"])
            found[name, asked[name]] = licence(one["metadata"])
    return found


def bom(packages: list[Locked], licences: dict[tuple[str, str], str]) -> str:
    """The document, as JSON of CycloneDX 1.6."""
    factory, components = LicenseFactory(), {}
    for one in packages:
        components[one.name, one.version] = Component(
            name=one.name,
            version=one.version,
            type=ComponentType.LIBRARY,
            bom_ref=f"{one.name}@{one.version}",
            purl=PackageURL("pypi", name=one.name, version=one.version),
            scope=LOCKS[one.lock],
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=digest) for digest in one.hashes],
            licenses=[factory.make_from_string(licences[one.name, one.version])],
        )
    names = json.dumps([[one.name, one.version, one.lock, *one.hashes] for one in packages])
    document = Bom(components=components.values(), serial_number=uuid.uuid5(uuid.NAMESPACE_URL, names))
    document.metadata.timestamp = None  # type: ignore[assignment]  # the same locks, the same file
    document.metadata.component = Component(
        name="attn-bench", version=_our_version(), type=ComponentType.APPLICATION, bom_ref="attn-bench",
        licenses=[factory.make_from_string("Apache-2.0")],
    )  # fmt: skip
    for user, component in components.items():
        wants = [components[one.name, one.version] for one in packages if user[0] in one.via]
        document.register_dependency(component, wants)
    document.register_dependency(
        document.metadata.component, [components[one.name, one.version] for one in packages if one.asked]
    )
    return make_outputter(document, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string(indent=1) + "\n"


def table(document: str) -> str:
    """licences.md, from the bill of materials alone."""
    rows = []
    for one in json.loads(document)["components"]:
        stated = one["licenses"][0]
        text = stated.get("expression") or stated["license"].get("id") or stated["license"]["name"]
        used = {"required": "every run", "optional": "CUDA, S3, ssh", "excluded": "development"}[one["scope"]]
        rows.append([one["name"], one["version"], text, used])
    head = (
        "# Licences of what this project installs\n\nMade from sbom.cdx.json by `make lock`; as each package states "
        "it itself. None of it is part of this repository, which is under Apache-2.0.\n\n"
    )
    return head + tabulate(rows, headers=["package", "version", "licence", "for"], tablefmt="github") + "\n"


def _our_version() -> str:
    return str(tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"])


def main() -> None:
    """Write both files."""
    packages = locked()
    document = bom(packages, ask(packages))
    SBOM.write_text(document, encoding="utf-8")
    LICENCES.write_text(table(document), encoding="utf-8")
    print(f"{SBOM.name}, {LICENCES.name}: {len(packages)} packages")


if __name__ == "__main__":
    main()
