"""Test modules, each on a fresh host of its scene: started, run in dom0, looked after, counted."""

from __future__ import annotations

import ast
import re
import shlex
import time
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field, replace
from pathlib import Path

from . import carry, scenes
from .cache import LabError, say
from .image import image, release_named
from .machine import Machine, QemuError

RESULTS = carry.ROOT / "build" / "lab"
MODULE_SECONDS = 900
LOST_GUEST = "the emulator lost a PVH guest"  # why tests/xen/conftest.py has skipped a test
ROUNDS = 4  # that often a test may lose its guest, one less

# What dom0's kernel or Xen say when something broke that no test may have noticed.
TROUBLE = re.compile(
    r"BUG:|Oops|general protection|Kernel panic|soft lockup|hard lockup|rcu_\w+ self-detected stall"
    r"|blocked for more than|Xen BUG|Panic on CPU|FATAL TRAP|Xen WARN|Assertion .* failed"
)

# What is kept of a failed module, by the command in dom0 that tells it.
EVIDENCE = {
    "dom0-dmesg.log": "dmesg",
    "journal.log": "journalctl --no-pager -q",
    "xl-dmesg.log": "xl dmesg",
    "xl-list.txt": "xl list -l; xl list -v",
    "vcpus.txt": "for domid in $(xl list | awk 'NR > 2 { print $2 }'); do echo domain $domid;"
    " /usr/lib/xen-*/bin/xenctx -a $domid; done",
    "xenstore.txt": "xenstore-ls -fp",
    "xl-logs.txt": "tail -n 200 /var/log/xen/*.log",
    "processes.txt": "ps axfo pid,stat,wchan:20,time,args",
}


@dataclass
class Tally:
    """What came out of some tests."""

    passed: int = 0
    skipped: int = 0
    failures: list[str] = field(default_factory=list)
    """the failed tests, each with its reason"""
    complaints: list[str] = field(default_factory=list)
    """what else was not as it should be"""
    lost: list[str] = field(default_factory=list)
    """those that are to be repeated, for the emulator has lost their guests"""

    def add(self, other: Tally) -> None:
        """Count the other's tests among ours."""
        self.passed += other.passed
        self.skipped += other.skipped
        self.failures += other.failures
        self.complaints += other.complaints
        self.lost += other.lost

    @property
    def good(self) -> bool:
        """Whether something was tested and nothing failed."""
        return not self.failures and not self.complaints and self.passed > 0


def modules(paths: list[str], mark: str = "") -> list[Path]:
    """The test modules that are named, relative to the repository; without names, tests/xen.

    Those without a test that has the mark (or, without one, is no soak) are left out, for a host is
    started for each.
    """
    found: list[Path] = []
    for name in paths or ["tests/xen"]:
        path = Path(name.partition("::")[0]).resolve()
        if not path.exists():
            raise LabError(f"no such test file: {name}")
        if not path.is_relative_to(carry.ROOT / "tests"):
            raise LabError(f"not below tests/ of this repository: {name}")
        inside = sorted(path.rglob("test_*.py")) if path.is_dir() else [path]
        found += [module.relative_to(carry.ROOT) for module in inside]
    wanted = [module for module in dict.fromkeys(found) if _wanted(module, mark)]
    if not wanted:
        raise LabError(f"no test modules in {' '.join(paths) or 'tests/xen'}")
    return wanted


def _wanted(module: Path, mark: str) -> bool:
    text = (carry.ROOT / module).read_text()
    return f"pytest.mark.{mark}" in text if mark else "pytestmark = pytest.mark.soak" not in text


def scene_of(module: Path) -> str:
    """The scene that a test module asks for in its constant SCENE."""
    for node in ast.parse((carry.ROOT / module).read_text()).body:
        if isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == "SCENE" for target in node.targets
        ):
            return scenes.scene_named(str(ast.literal_eval(node.value))).name
    raise LabError(f'{module} does not say which guests it needs; write SCENE = "trio" or another')


@dataclass(frozen=True)
class Module:
    """A test module, the guests that it is played on, and what of it is wanted."""

    path: Path
    scene: str
    targets: list[str]


def play(
    release: str, paths: list[str], pytest_options: list[str], seconds: float, mark: str = ""
) -> Tally:
    """Run test modules, or those of them that have the mark; what came out, also printed."""
    total = Tally()
    # All questions before the first machine: a module without a scene is found out at once.
    plan = [Module(path, scene_of(path), _targets(path, paths)) for path in modules(paths, mark)]
    carry.build(image(release_named(release)))
    for module in plan:
        total.add(_module(release, module, pytest_options, seconds))
    # Said last too: the end of a log is what is read first.
    for line in total.failures + total.complaints:
        print(f"[{release}] {line}", flush=True)
    return total


def _targets(path: Path, wanted: list[str]) -> list[str]:
    """What to tell pytest: the file, or those of its tests that were named one by one."""
    named = [
        f"{path}::{tests}"
        for file, _, tests in (name.partition("::") for name in wanted)
        if tests and Path(file).resolve() == carry.ROOT / path
    ]
    return named or [str(path)]


def _module(release: str, module: Module, options: list[str], seconds: float) -> Tally:
    """Play a module, and what has lost its guest again, each time on a fresh host."""
    tally = _once(release, module, options, seconds)
    for _ in range(ROUNDS - 1):
        if not tally.lost:
            break
        again = [f"{module.path}::{name}" for name in tally.lost]
        tally.lost = []
        say(f"{release}: {LOST_GUEST}; once more: {' '.join(again)}")
        tally.add(_once(release, replace(module, targets=again), options, seconds))
    tally.complaints += [f"{module.path}::{name}: {LOST_GUEST} each time" for name in tally.lost]
    return tally


def _once(release: str, module: Module, options: list[str], seconds: float) -> Tally:
    began = time.monotonic()
    tally = Tally()
    say(f"{release}: {module.path} on {module.scene}")
    try:
        with carry.host(release, module.scene) as machine:
            tally.add(_in_dom0(machine, module, options, seconds))
            if tally.failures or tally.complaints:
                results = RESULTS / release / module.path.stem
                keep_evidence(machine, results)
                say(f"{release}: what it left behind is in {results.relative_to(carry.ROOT)}/")
    except LabError as problem:
        tally.complaints.append(f"{module.path}: {problem}")
    say(f"{release}: {module.path} took {time.monotonic() - began:.0f} s")
    return tally


def _in_dom0(machine: Machine, module: Module, options: list[str], seconds: float) -> Tally:
    prefix = f"[{machine.release.name}/{module.scene}] "
    command = (
        f"cd {carry.SOURCE} && PYTHONUNBUFFERED=1 /opt/xenpm/bin/python -m pytest "
        f"-v -p no:cacheprovider -o faulthandler_timeout=150 --junitxml=/tmp/results.xml "
        f"{shlex.join([*options, *module.targets])}"
    )
    tally = Tally()
    try:
        status = machine.stream(
            command, lambda line: print(prefix + line, flush=True), timeout=seconds
        )
        tally = _counts(machine.read("/tmp/results.xml"))
        # 5: no test was selected, which is for the sum of all modules to judge.
        if status not in (0, 1, 5):
            tally.complaints.append(f"{module.path}: pytest ended with status {status}")
        elif status == 1 and not tally.failures:
            tally.complaints.append(f"{module.path}: pytest failed, but counts no failure")
        tally.complaints += [f"{module.path}: {line}" for line in _trouble(machine)]
    except (LabError, ET.ParseError) as problem:
        tally.complaints.append(f"{module.path}: {problem}")
    return tally


def _counts(junit: bytes) -> Tally:
    tally = Tally()
    for case in ET.fromstring(junit).iter("testcase"):
        bad = [part for part in case if part.tag in ("failure", "error")]
        skipped = case.find("skipped")
        if bad:
            why = (bad[0].get("message") or "").partition("\n")[0]
            tally.failures.append(f"{case.get('classname')}::{case.get('name')} failed: {why}")
        elif skipped is not None and LOST_GUEST in (skipped.get("message") or ""):
            tally.lost.append(str(case.get("name")))
        elif skipped is not None:
            tally.skipped += 1
        else:
            tally.passed += 1
    return tally


def _trouble(machine: Machine) -> list[str]:
    """What Xen or dom0's kernel complained about during the test."""
    # The serial log is both: dom0's kernel writes its console to Xen, and Xen to the wire.
    said = machine.serial_log() + machine.ssh("dmesg; xl dmesg", check=False).stdout
    found = [line.strip() for line in said.splitlines() if TROUBLE.search(line)]
    return [f"trouble in the host's log: {line}" for line in dict.fromkeys(found)][:10]


def keep_evidence(machine: Machine, results: Path) -> None:
    """Write to a directory what helps to find out why a test has failed."""
    results.mkdir(parents=True, exist_ok=True)
    for old in results.iterdir():
        old.unlink()
    (results / "serial.log").write_text(machine.serial_log())
    for name, command in EVIDENCE.items():
        try:
            done = machine.ssh(command, timeout=20, check=False)
            (results / name).write_text(done.stdout + done.stderr)
        except LabError as problem:
            (results / name).write_text(f"not to be had: {problem}\n")
            if isinstance(problem, QemuError):
                return
    try:
        listed = machine.ssh("ls /var/log/xen/console", timeout=20).stdout.split()
        for log in listed:
            machine.get(f"/var/log/xen/console/{log}", results / log, timeout=20)
    except LabError as problem:
        (results / "consoles.txt").write_text(f"not to be had: {problem}\n")
