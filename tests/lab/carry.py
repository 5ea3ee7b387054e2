"""The working tree's package, built for a release and carried into its dom0."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from . import cache, chroot
from .cache import LabError, say
from .image import Image, image, release_named
from .machine import Machine

ROOT = Path(__file__).resolve().parents[2]
SOURCE = "/root/xenpm-src"
# Directories of the repository that have no part in the wheel.
NOT_BUILT = ("tests", "docs", ".ci")
CARRIED = ("tests/", "docs/examples/", "pyproject.toml")


@contextlib.contextmanager
def host(release: str, scene: str) -> Iterator[Machine]:
    """A fresh host with the package and the tests in it."""
    # Built first, while another process may still have its turn with the machine.
    package = build(image(release_named(release)))
    with Machine.start(release, scene) as machine:
        install(machine, package)
        yield machine


def install(machine: Machine, package: Path) -> None:
    """Put the package into dom0's virtual environment, tests and examples into /root/xenpm-src."""
    site = machine.release.site_packages
    machine.ssh(
        f"rm -rf {site}/xenpm {site}/xenpm-*.dist-info {SOURCE} && mkdir -p {SOURCE}"
        f" && tar -xf - -C {site}",
        input_=package.read_bytes(),
        timeout=300,
    )
    tests = [name for name in _tracked(ROOT) if str(name).startswith(CARRIED)]
    machine.ssh(f"tar -xf - -C {SOURCE}", input_=_tar(ROOT, tests), timeout=300)


def build(image_: Image) -> Path:
    """A tar of the installed package for a release; built again only when its sources changed."""
    names = [name for name in _tracked(ROOT) if name.parts[0] not in NOT_BUILT]
    version = _version()
    key = cache.digest(
        image_.key, version, [(str(n), (ROOT / n).read_bytes()) for n in names], "recipe 1"
    )
    return (
        cache.entry(
            f"package-{image_.release.name}", key, lambda work: _build(image_, work, names, version)
        )
        / "site.tar"
    )


def _build(image_: Image, work: Path, names: list[Path], version: str) -> None:
    say(f"{image_.release.name}: building the package")
    tree = cache.home() / f"tree-{image_.release.name}"
    _sync(tree, names, image_.key)
    chroot.run(
        image_.root,
        "cd /mnt/tree && /opt/xenpm/bin/python -m pip wheel --quiet --no-build-isolation --no-deps"
        " --disable-pip-version-check -w /tmp/wheel . && mkdir /tmp/site && cd /tmp/site"
        # Unpacked by hand and compiled here, for that is what takes pip so long in emulation.
        " && /opt/xenpm/bin/python -m zipfile -e /tmp/wheel/*.whl ."
        " && /opt/xenpm/bin/python -m compileall -q . && tar -cf /mnt/work/site.tar .",
        binds={tree: "/mnt/tree", work: "/mnt/work"},
        env={"SETUPTOOLS_SCM_PRETEND_VERSION_FOR_XENPM": version},
    )
    say(f"{image_.release.name}: package {version} built")


def check_install(image_: Image) -> str:
    """Install a clean copy of the tree as a user would, on the release itself; what it says."""
    binds, env = chroot.network()
    with cache.scratch("install") as work:
        names = [name for name in _tracked(ROOT) if name.parts[0] != "tests"]
        _copy(ROOT, work, names)
        env["SETUPTOOLS_SCM_PRETEND_VERSION_FOR_XENPM"] = _version()
        return chroot.run(
            image_.root,
            "python3 -m venv /tmp/venv && cd /mnt/tree && /tmp/venv/bin/pip install . && cd /tmp"
            " && /tmp/venv/bin/python -c 'import xenpm;"
            " from xenpm._ext import xenctrl, xenstore, xenlight;"
            ' print("imported from", xenpm.__file__, xenpm.versions())\''
            # no hypervisor is here, which it must say with its own exit code
            "; code=0; /tmp/venv/bin/python -m xenpm list || code=$?; test $code -eq 3",
            binds={**binds, work: "/mnt/tree"},
            env=env,
            timeout=900,
        )


def _sync(tree: Path, names: list[Path], image_key: str) -> None:
    """Make the build tree the same as the sources, touching only what differs.

    What the build left there stays, so that unchanged extensions are not compiled again.
    """
    stamp = tree / ".lab-image"
    if not stamp.exists() or stamp.read_text() != image_key:
        if tree.exists():
            cache.remove(tree)
        tree.mkdir()
        stamp.write_text(image_key)
    listing = tree / ".lab-names"
    before = set(listing.read_text().splitlines()) if listing.exists() else set()
    for gone in before - {str(name) for name in names}:
        (tree / gone).unlink(missing_ok=True)
        # The build copies Python files here, and would ship the removed ones for ever.
        for built in tree.glob(f"build/lib*/{gone}"):
            built.unlink()
    _copy(ROOT, tree, names)
    listing.write_text("".join(f"{name}\n" for name in names))


def _copy(source: Path, target: Path, names: list[Path]) -> None:
    for name in names:
        wanted = (source / name).read_bytes()
        path = target / name
        if not path.exists() or path.read_bytes() != wanted:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(wanted)
            shutil.copymode(source / name, path)


def _tracked(root: Path) -> list[Path]:
    """The files of the working tree that are tracked, or would be."""
    listed = cache.run(
        "git", "-C", root, "ls-files", "-z", "--cached", "--others", "--exclude-standard"
    )
    names = sorted({Path(name) for name in listed.split("\0") if name})
    return [name for name in names if (root / name).is_file()]


def _version() -> str:
    """A version for the wheel: what the last tag says, or a fallback."""
    described = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--tags", "--long", "--match", "v[0-9]*"],
        capture_output=True,
        text=True,
        check=False,
    )
    match = re.match(r"v([0-9.]+)-([0-9]+)-g([0-9a-f]+)", described.stdout)
    if described.returncode or not match:
        return "0.0.0"
    base, distance, commit = match.groups()
    return base if distance == "0" else f"{base}.post{distance}+g{commit}"


def _tar(root: Path, names: list[Path]) -> bytes:
    listing = "\0".join(str(name) for name in names)
    done = subprocess.run(
        ["tar", "-C", str(root), "--null", "--files-from=-", "-cf", "-"],
        input=listing.encode(),
        capture_output=True,
        check=False,
    )
    if done.returncode:
        raise LabError(f"packing the tests: {done.stderr.decode(errors='replace')}")
    return done.stdout
