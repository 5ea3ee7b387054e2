"""The extension modules; everything else is in pyproject.toml.

Switches, all read from the environment:

``XENPM_PURE=1``
    build without the extensions, for machines that only read documentation, check types or test
    against a fake host; ``xenpm.Host()`` then says that they are missing.
``XENPM_SANITIZE=1``
    build them with AddressSanitizer and UndefinedBehaviorSanitizer.
"""

import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup

PYTHON_FLOOR = "0x03090000"  # the limited API that one build per Xen release serves every Python by


def pkg_config(*args):
    """What pkg-config answers, split into words; leaves with advice when it cannot answer."""
    try:
        done = subprocess.run(["pkg-config", *args], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        sys.exit("xenpm: pkg-config is not installed; on Debian: apt install pkg-config libxen-dev")
    if done.returncode:
        sys.exit(
            "xenpm: the headers of Xen's libraries are not installed; on Debian: "
            "apt install libxen-dev\n"
            "       (to build without them, for documentation, type checking or tests on a fake "
            "host, set XENPM_PURE=1)\n"
            f"       pkg-config said: {done.stderr.strip()}"
        )
    return done.stdout.split()


def stamp(*settings):
    """A file that is new when the settings are: objects of another release are built anew."""
    path = Path("build/settings")
    text = " ".join(settings)
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return path


def extension(name, packages, release):
    """One extension module over the C libraries that `packages` name for pkg-config."""
    flags = ["-fsanitize=address,undefined"] if os.environ.get("XENPM_SANITIZE") == "1" else []
    major, minor = release.split(".")[:2]
    return Extension(
        f"xenpm._ext.{name}",
        [f"xenpm/_ext/{name}.pyx"],
        depends=[
            "xenpm/_ext/checks.pxd",
            "xenpm/_ext/compat.h",
            "xenpm/_ext/compat_xl.h",
            "xenpm/_ext/logbuf.h",
            "xenpm/_ext/logs.pxd",
            "xenpm/_ext/own_pid.h",
            str(stamp(release, *flags)),
        ],
        include_dirs=["xenpm/_ext"],
        define_macros=[
            ("Py_LIMITED_API", PYTHON_FLOOR),
            ("CYTHON_LIMITED_API", "1"),
            ("XENPM_XEN_MAJOR", major),
            ("XENPM_XEN_MINOR", minor),
        ],
        py_limited_api=True,
        extra_compile_args=[*pkg_config("--cflags", *packages), "-O2", "-g1", "-Wall", *flags],
        extra_link_args=["-pthread", *pkg_config("--libs", *packages), *flags],
    )


def extensions():
    """All extension modules, with Cython's settings."""
    from Cython.Build import cythonize  # noqa: PLC0415  (a pure build needs no Cython)

    release = pkg_config("--modversion", "xencontrol")[0]
    return cythonize(
        [
            extension(
                "xenctrl",
                ["xencontrol", "xenguest", "xenevtchn", "xenforeignmemory", "xentoollog"],
                release,
            ),
            extension("xenstore", ["xenstore"], release),
            extension("xenlight", ["xenlight", "xlutil", "xentoollog"], release),
        ],
        compiler_directives={
            "language_level": 3,
            "binding": True,
            "embedsignature": True,
            "embedsignature.format": "python",
            "auto_pickle": False,
        },
    )


if os.environ.get("XENPM_PURE") == "1":
    setup()
else:
    setup(ext_modules=extensions(), options={"bdist_wheel": {"py_limited_api": "cp39"}})
