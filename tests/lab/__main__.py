"""The lab's command line: python3 -m tests.lab."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

from . import cache, carry, image, initramfs, machine, runner, scenes, seen, snapshots
from .cache import LabError, say

IN_DOM0 = f"cd {carry.SOURCE} && export PATH=/opt/xenpm/bin:$PATH PYTHONUNBUFFERED=1"


def main() -> int:
    """Parse the command line and do what it says."""
    parser = argparse.ArgumentParser(
        prog="python3 -m tests.lab",
        description="A real Xen host in QEMU's plain emulation.",
        epilog="Everything that takes long to make is kept below $XENPM_LAB_CACHE "
        "(default: ~/.cache/xenpm-lab).",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    build = commands.add_parser("build", help="make images, boot them, and play scenes")
    build.add_argument("releases", nargs="*", metavar="RELEASE", help="default: all")
    build.add_argument("--scene", action="append", default=[], choices=[*scenes.SCENES, "all"])
    build.add_argument("--image-only", action="store_true", help="no emulation at all")

    test = commands.add_parser(
        "test", aliases=["try"], help="run tests in dom0, each module on a fresh host"
    )
    test.add_argument("release", metavar="RELEASE")
    test.add_argument("paths", nargs="*", metavar="PATH", help="default: tests/xen")
    test.add_argument("-k", metavar="EXPR", help="as pytest's")
    test.add_argument("-m", metavar="MARK", help='as pytest\'s; default: "not soak"')
    test.add_argument("--core", action="store_true", help='the same as -m "core and not soak"')
    test.add_argument(
        "--soak", action="store_true", help="the same as -m soak, without a deadline of minutes"
    )
    test.add_argument("--deadline", type=float, metavar="SECONDS", help="for one module")

    run = commands.add_parser("run", help="one command in a fresh dom0 that has the package")
    run.add_argument("release", metavar="RELEASE")
    run.add_argument("--scene", default="trio", choices=scenes.SCENES)
    run.add_argument("--deadline", type=float, default=900, metavar="SECONDS")
    run.usage = f"{parser.prog} run RELEASE [--scene SCENE] [--deadline SECONDS] -- COMMAND…"

    shell = commands.add_parser("shell", help="a shell in a fresh dom0 that has the package")
    shell.add_argument("release", metavar="RELEASE")
    shell.add_argument("--scene", default="trio", choices=scenes.SCENES)

    demo = commands.add_parser("demo", help="the package's main job, shown on real guests")
    demo.add_argument("release", metavar="RELEASE")

    check = commands.add_parser(
        "check-install", help="pip install . on the releases themselves, no emulation"
    )
    check.add_argument("releases", nargs="*", metavar="RELEASE", help="default: all")

    seeing = commands.add_parser(
        "seen", help="write the manual's table of what passed where, from logs of test runs"
    )
    seeing.add_argument("logs", nargs="+", type=Path, metavar="LOG", help="what `test` has printed")

    commands.add_parser("doctor", help="what this machine lacks, and which packages bring it")
    commands.add_parser("clean", help="remove all that the lab keeps")

    # argparse would take options that follow RELEASE for a part of the command.
    arguments, words = sys.argv[1:], []
    if "--" in arguments:
        at = arguments.index("--")
        arguments, words = arguments[:at], arguments[at + 1 :]
    options = parser.parse_args(arguments)
    options.words = words
    signal.signal(signal.SIGTERM, _terminated)
    signal.signal(signal.SIGHUP, _terminated)
    actions = {
        "build": _build, "test": _test, "try": _test, "run": _run, "shell": _shell, "demo": _demo,
        "check-install": _check_install, "seen": _seen, "doctor": _doctor, "clean": _clean,
    }  # fmt: skip
    try:
        return actions[options.command](options)
    except LabError as problem:
        print(f"lab: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _terminated(number: int, _frame: FrameType | None) -> None:
    """End through the exits of all contexts, so that nothing is left behind."""
    raise SystemExit(128 + number)


def _releases(names: list[str]) -> list[image.Release]:
    return [image.release_named(name) for name in names or list(image.RELEASES)]


def _build(options: argparse.Namespace) -> int:
    wanted = list(scenes.SCENES) if "all" in options.scene else options.scene or ["empty"]
    for release in _releases(options.releases):
        made = image.image(release)
        initramfs.initramfs(made)
        for name in [] if options.image_only else wanted:
            snapshots.snapshot(release.name, name)
    return 0


def _test(options: argparse.Namespace) -> int:
    release = image.release_named(options.release)
    marks = options.m or (
        "soak" if options.soak else "core and not soak" if options.core else "not soak"
    )
    words = ["-m", marks]
    if options.k:
        words += ["-k", options.k]
    seconds = options.deadline or (6 * 3600 if options.soak else runner.MODULE_SECONDS)
    mark = "soak" if options.soak else "core" if options.core else ""
    tally = runner.play(release.name, options.paths, words, seconds, mark)
    failed = len(tally.failures) + len(tally.complaints)
    print(f"{tally.passed} passed, {failed} failed, {tally.skipped} skipped", flush=True)
    return 0 if tally.good else 1


def _seen(options: argparse.Namespace) -> int:
    seen.write_table(options.logs)
    return 0


def _run(options: argparse.Namespace) -> int:
    words = options.words
    if not words:
        raise LabError("run what? write: run RELEASE -- COMMAND…")
    command = words[0] if len(words) == 1 else shlex.join(words)
    with carry.host(options.release, options.scene) as host:
        return host.stream(
            f"{IN_DOM0} && {command}",
            lambda line: print(line, flush=True),
            timeout=options.deadline,
        )


def _demo(options: argparse.Namespace) -> int:
    from . import demo  # with matplotlib, which nothing else here needs

    return demo.show(options.release, IN_DOM0)


def _shell(options: argparse.Namespace) -> int:
    with carry.host(options.release, options.scene) as host:
        say(f"python is {host.release.python} with xenpm; guests: xl list; leave with exit")
        start = f"{IN_DOM0} && exec bash"
        terminal = os.isatty(0)
        command = host.ssh_command(start + (" -i" if terminal else " -s"), tty=terminal)
        return subprocess.run(command, cwd=host.directory, check=False).returncode


def _check_install(options: argparse.Namespace) -> int:
    for release in _releases(options.releases):
        say(f"{release.name}: pip install . with Python {release.python} and Xen {release.xen}")
        print(carry.check_install(image.image(release)).rstrip(), flush=True)
        say(f"{release.name}: installs")
    return 0


def _doctor(_options: argparse.Namespace) -> int:
    missing = {
        command: package
        for command, package in {**image.TOOLS, **machine.TOOLS}.items()
        if not cache.find(command)
    }
    for command, package in missing.items():
        print(f"missing: {command} (apt install {package})")
    lacks = [f"missing: {name} ({hint})" for name, present, hint in (
        ("root", os.geteuid() == 0, "images and packages are built in chroots"),
        ("overlayfs", "overlay" in Path("/proc/filesystems").read_text(), "modprobe overlay"),
    ) if not present]  # fmt: skip
    for line in lacks:
        print(line)
    if missing:
        print("apt install " + " ".join(sorted(set(missing.values()))))
    if not missing and not lacks:
        print("nothing is missing")
    return 1 if missing or lacks else 0


def _clean(_options: argparse.Namespace) -> int:
    # Not under the feet of a running machine.
    with cache.turn():
        for path in cache.home().iterdir():
            cache.remove(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
