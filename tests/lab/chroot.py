"""Commands in the root directory of an image, at the speed of this machine."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path

from . import cache

_SCRIPT = r"""
set -e
root=$1 where=$2 upper=$3 command=$4
if [ -n "$upper" ]; then
    mount -t overlay lab -o "lowerdir=$root,upperdir=$upper/upper,workdir=$upper/work" "$where"
else
    mount --bind "$root" "$where"
fi
mount -t proc proc "$where/proc"
mount --rbind /dev "$where/dev"
mount -t tmpfs tmp "$where/tmp"
shift 4
while [ $# -gt 0 ]; do
    if [ -d "$1" ]; then
        mkdir -p "$where$2"
    else
        mkdir -p "$(dirname "$where$2")"
        : >"$where$2"
    fi
    mount --bind "$1" "$where$2"
    shift 2
done
exec chroot "$where" /bin/sh -ec "$command"
"""


def run(
    root: Path,
    command: str,
    *,
    writable: bool = False,
    binds: Mapping[Path, str] | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 600,
) -> str:
    """Run a shell command in `root`; its changes are thrown away unless `writable`.

    Everything is mounted in a namespace of its own, which ends with the command.
    """
    variables = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C.UTF-8"}
    variables.update(env or {})
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())
    pairs = [word for source, target in (binds or {}).items() for word in (str(source), target)]
    with cache.scratch("chroot") as work:
        for name in ("where", "upper", "work"):
            (work / name).mkdir()
        upper = "" if writable else str(work)
        return cache.run(
            "unshare",
            "--mount",
            "--propagation",
            "private",
            "--pid",
            "--fork",
            "--kill-child",
            "sh",
            "-c",
            _SCRIPT,
            "sh",
            root,
            work / "where",
            upper,
            exports + command,
            *pairs,
            # Nothing of the outside's variables, but what finds the commands above.
            env={"PATH": os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin"},
            what="a command in the image's root",
            timeout=timeout,
        )


def network() -> tuple[dict[Path, str], dict[str, str]]:
    """The files and variables with which pip in a chroot installs from where it does out here."""
    binds = {Path("/etc/resolv.conf"): "/etc/resolv.conf", Path("/etc/hosts"): "/etc/hosts"}
    env: dict[str, str] = {}
    listed = cache.run("python3", "-m", "pip", "config", "list")
    for line in listed.splitlines():
        name, _, quoted = line.partition("=")
        section, _, key = name.rpartition(".")
        value = quoted.strip("'\"")
        if section in ("global", "install", ":env:"):
            env["PIP_" + key.lstrip(".").replace("-", "_").upper()] = value
    env.update(
        {k: v for k, v in os.environ.items() if k in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")}
    )
    env.update({k: v for k, v in os.environ.items() if k.lower().endswith("_proxy")})
    for value in env.values():
        for word in value.split():
            path = Path(word.removeprefix("file://"))
            if word.startswith("file://"):
                # The pages of an index in a directory link to files beside it.
                path = path.parent
            if path.is_absolute() and path.exists() and path != Path("/"):
                binds[path] = str(path)
    return binds, env
