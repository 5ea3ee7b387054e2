"""A unit of systemd, so that ``systemctl suspend`` and a closed lid suspend the guests too.

systemd starts ``sleep.target`` before and stops it after every sleep.  The unit is required by it
and ordered before it: when the guests cannot be suspended, the target fails, and with it
``systemd-suspend.service``, which requires the target: the machine stays awake.  See
systemd.special(7) and systemd-suspend.service(8).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from .errors import XenError

__all__ = ["UNIT", "install", "remove", "unit"]

UNIT = "xenpm-sleep.service"

_DIRECTORY = Path("etc/systemd/system")
_ENABLED = _DIRECTORY / "sleep.target.requires" / UNIT

# ExecStopPost=, not ExecStop=: it is also run when the start has failed or was killed at its
# timeout, and then brings back whatever guests are still suspended.
_TEXT = """\
# Written by 'python -m xenpm host install-systemd'; removed by the same with --remove.
[Unit]
Description=Suspend Xen guests while the host sleeps
Documentation=man:systemd.special(7)
Before=sleep.target
StopWhenUnneeded=yes

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={python} -m xenpm host suspend-domains
ExecStopPost={python} -m xenpm host resume-domains
# xenpm has deadlines of its own, from /etc/xen/xenpm.conf; this is for an xenpm that hangs.
TimeoutStartSec=15min
TimeoutStopSec=15min

[Install]
RequiredBy=sleep.target
"""


def unit(python: str = sys.executable) -> str:
    """The unit's text.

    Args:
        python: the absolute path of the Python that has xenpm.

    Raises:
        ValueError: that path is not absolute, or no unit can name it.
    """
    if not os.path.isabs(python) or not python.isprintable():
        raise ValueError(f"a unit needs the absolute path of a Python, not {python!r}")
    escaped = python.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return _TEXT.format(python=f'"{escaped}"')


def install(root: Path = Path("/"), python: str = sys.executable) -> Path:
    """Write and enable the unit; returns where.  Doing so again renews it.

    Args:
        root: the file system to write into; below another than ``/`` nothing is told to the systemd
            that runs.
        python: as for `unit`.

    Raises:
        XenError: it cannot be written, or the running systemd does not read it.
        ValueError: as for `unit`; nothing was written.
    """
    text = unit(python)
    path, link = root / _DIRECTORY / UNIT, root / _ENABLED
    try:
        link.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(path.name + ".new")
        new.write_text(text)
        new.chmod(0o644)
        new.replace(path)
        link.unlink(missing_ok=True)
        link.symlink_to(Path("..") / UNIT)
    except OSError as error:
        raise XenError(f"the unit cannot be written: {error}") from error
    _reload(root)
    return path


def remove(root: Path = Path("/")) -> bool:
    """Disable and remove the unit; whether there was one.  Guests that it has suspended stay so.

    Raises:
        XenError: it cannot be removed, or the running systemd does not notice.
    """
    paths = [root / _ENABLED, root / _DIRECTORY / UNIT]
    there = [path for path in paths if path.is_symlink() or path.exists()]
    try:
        for path in there:
            path.unlink()
    except OSError as error:
        raise XenError(f"the unit cannot be removed: {error}") from error
    if there:
        _reload(root)
    return bool(there)


def _reload(root: Path) -> None:
    """Have the running systemd, if one runs here, read its units again."""
    if root.resolve() != Path("/") or not Path("/run/systemd/system").is_dir():
        return
    try:
        subprocess.run(
            ["systemctl", "daemon-reload"], check=True, capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip()
        raise XenError(
            f"the unit is in place, but systemd has not read it ({said}): "
            "run 'systemctl daemon-reload'"
        ) from error
