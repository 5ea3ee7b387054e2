"""The handles of the extension modules, on C libraries of our own: the GIL, the lock, the log."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .test_xenctrl import METHODS as HYPERCALLS
from .test_xenlight import METHODS as LIBXL_CALLS
from .test_xenstore import METHODS as REQUESTS

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no C compiler")

#: what each program below begins with
PREAMBLE = """
import ctypes, logging, os, threading
import xenpm
from xenpm._ext.xenctrl import Xenctrl
from xenpm._ext.xenlight import Xenlight
from xenpm._ext.xenstore import Xenstore
from tests.unit.test_xenctrl import METHODS as HYPERCALLS
from tests.unit.test_xenlight import METHODS as LIBXL_CALLS
from tests.unit.test_xenstore import METHODS as REQUESTS

stub = ctypes.CDLL(os.environ["LD_PRELOAD"])

def variable(name):
    return ctypes.c_int.in_dll(stub, "stub_" + name)

class Log(logging.Handler):
    def __init__(self):
        super().__init__()
        self.messages = []
    def emit(self, record):
        self.messages.append(record.getMessage())

logging.getLogger("xenpm").propagate = False
log = Log()
logging.getLogger("xenpm").addHandler(log)
"""


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("stub") / "stub_xen.so"
    source = Path(__file__).with_name("stub_xen.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
    return library


def run(stub: Path, program: str) -> list[str]:
    """What a program prints that runs on our libraries; it fails where it hangs."""
    done = subprocess.run(
        [sys.executable, "-c", PREAMBLE + program],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
        env={
            **os.environ,
            "LD_PRELOAD": str(stub),
            "PYTHONPATH": os.pathsep.join(sys.path),
        },
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr + done.stdout
    return done.stdout.splitlines()


GIL = """
from_call, reached = os.pipe()
gate, to_call = os.pipe()
variable("reached").value = reached
variable("gate").value = gate
handles = {}

def call(kind, name, arguments):
    try:
        if name == "open":
            handles[kind] = kind()
        elif name == "collect":
            del handles[kind]
        else:
            getattr(handles[kind], name)(*arguments)
    except xenpm.XenError:
        pass
    finally:
        os.write(reached, b"e")

for kind, methods in (
    (Xenctrl, HYPERCALLS), (Xenstore, REQUESTS), (Xenlight, LIBXL_CALLS)
):
    calls = {"open": (), **methods, "close": (), "open again": (), "collect": ()}
    for name, arguments in calls.items():
        thread = threading.Thread(target=call, args=(kind, name.partition(" ")[0], arguments))
        thread.start()
        stops = 0
        while os.read(from_call, 1) != b"e":  # it waits in C, and this thread runs on
            stops += 1
            os.write(to_call, b"x")
        thread.join()
        if stops:
            print(kind.__name__, name, flush=True)
"""


def test_no_call_holds_the_gil(stub: Path) -> None:
    """Each is stopped in C, until another thread of Python's lets it go on."""
    around = ["close", "open again", "collect"]
    assert run(stub, GIL) == [
        *(f"Xenctrl {name}" for name in ("open", *HYPERCALLS, *around)),
        *(f"Xenstore {name}" for name in ("open", *REQUESTS, *around)),
        *(f"Xenlight {name}" for name in ("open", *LIBXL_CALLS, *around)),
    ]


REENTRANCE = """
control = Xenctrl()

class Reenter(logging.Handler):
    inside = False
    def emit(self, record):
        if not self.inside:
            self.inside = True
            control.domain_list()
            control.close()
            self.inside = False

logging.getLogger("xenpm").addHandler(Reenter())
control.pause(1)
print(control.closed)
"""


def test_log_handler_may_use_the_handle(stub: Path) -> None:
    """None of it runs below the handle's lock."""
    assert run(stub, REENTRANCE) == ["True"]


LOG = """
control = Xenctrl()
control.pause(1)
variable("error").value = 3
try:
    control.unpause(1)
except xenpm.HypercallError as error:
    print(error)
    print(error.call, error.errno, error.detail)
variable("error").value = 0
control.version()
print(*log.messages, sep="; ")
"""


def test_log_and_last_error(stub: Path) -> None:
    text, attributes, logged = run(stub, LOG)
    assert text == "xc_domain_unpause: No such process (xc_domain_unpause was made to fail)"
    assert attributes == "xc_domain_unpause 3 xc_domain_unpause was made to fail"
    calls = ("xc_interface_open", "xc_domain_pause", "xc_domain_unpause", "xc_version")
    assert logged == "; ".join(f"{call} was called" for call in calls)


MANY = """
control = Xenctrl()
for count in (1, 255, 256, 257, 600):
    variable("domains").value = count
    infos = control.domain_list()
    assert [info.domid for info in infos] == [2 * i for i in range(count)]
    assert all(info.handle == bytes([info.domid & 255]) * 16 for info in infos)
    assert [info.runs_xenstore for info in infos] == [i % 2 == 1 for i in range(count)]
    assert [info.running for info in infos] == [i % 2 == 0 for i in range(count)]
assert control.domain_info(4).domid == 4
assert control.domain_info(5) is None, "the next domain's"
assert control.domain_info(2000) is None
variable("error").value = 12
try:
    control.domain_list()
except xenpm.HypercallError as error:
    print(error.errno)
"""


def test_any_number_of_domains(stub: Path) -> None:
    assert run(stub, MANY) == ["12"]


LIBXL = """
context = Xenlight()
print(stub.stub_sigchld_owner(), os.strerror(stub.stub_fork()))
print(context.domain_configuration(1))
print(len(context.assignable_pci()), '"dev": 16' in context.assignable_pci()[1])
for number in (-3, -5, -6, -15, -21):
    variable("error").value = number
    try:
        context.domain_configuration(1)
    except xenpm.XenlightError as error:
        print(error)
variable("error").value = 0
context.domain_configuration(1)
context.close()
context.close()
print(context.closed)
print(len(log.messages), log.messages[0])
"""


def test_libxl(stub: Path) -> None:
    """It is told to leave SIGCHLD alone and not to fork, and its errors have its own words."""
    call = "libxl_retrieve_domain_configuration"
    assert run(stub, LIBXL) == [
        "1 Resource temporarily unavailable",  # libxl_sigchld_owner_mainloop
        "{}",
        "2 True",
        f"{call}: Input/output error (it was made to fail)",
        f"{call}: Cannot allocate memory (it was made to fail)",
        f"{call}: Invalid argument (it was made to fail)",
        f"{call}: Device or resource busy (it was made to fail)",
        f"{call}: No such process (it was made to fail)",
        "True",
        "10 libxl_ctx_alloc was called",
    ]


def test_libxl_may_be_used_below_its_own_log(stub: Path) -> None:
    """No Python code ever runs below the context's lock."""
    program = REENTRANCE.replace("Xenctrl", "Xenlight").replace("domain_list", "assignable_pci")
    program = program.replace("pause(1)", "domain_configuration(1)")
    assert run(stub, program) == ["True"]


LIBXL_OPERATIONS = """
from tests.unit.test_xenlight import OPERATIONS
context = Xenlight(forks=True)
print(stub.stub_sigchld_owner())

def attempt(verb, *arguments):
    try:
        return verb(*arguments)
    except (xenpm.XenlightError, RuntimeError, ValueError) as error:
        return error

print(attempt(context.soft_reset, *OPERATIONS["soft_reset"]), attempt(context.soft_reset, 1, "{"))
variable("error").value = -8
print(attempt(context.soft_reset, *OPERATIONS.pop("soft_reset")))
variable("error").value = 0
for name, arguments in OPERATIONS.items():
    variable("outcome").value = 1
    getattr(context, name)(*arguments)
    print(name, context.wait(0), attempt(context.destroy, 2), attempt(context.close), sep=" | ")
    variable("outcome").value = 0
    print(context.wait(0), context.created)
    getattr(context, name)(*arguments)
    variable("outcome").value = -3
    print(attempt(context.wait, 0))
    getattr(context, name)(*arguments)
    context.abort()
    error = attempt(context.wait, 0)
    print(error.call, os.strerror(error.errno), attempt(context.wait, 0), sep=" | ")
    variable("error").value = -8
    print(attempt(getattr(context, name), *arguments))
    variable("error").value = 0
print(attempt(context.restore, "{", 0))
context.close()
print(attempt(context.save, 1, 0))
"""

C_NAMES = {
    "save": "libxl_domain_suspend",
    "restore": "libxl_domain_create_restore",
    "resume": "libxl_domain_resume",
    "unpause": "libxl_domain_unpause",
    "destroy": "libxl_domain_destroy",
}


def test_operations_of_libxl(stub: Path) -> None:
    """One at a time, waited for in steps; the first message of an error is the one to tell."""
    lines = iter(run(stub, LIBXL_OPERATIONS))
    assert next(lines) == "-1"  # it may fork
    # the one that returns at its end
    assert next(lines) == "None libxl_domain_soft_reset: Input/output error"
    assert next(lines) == "libxl_domain_soft_reset: Connection timed out (it was made to fail)"
    for name, call in C_NAMES.items():
        busy = f"{call} is under way: wait for its end first"
        created = 7 if name in ("restore", "resume", "unpause", "destroy") else None
        assert next(lines) == f"{name} | False | {busy} | {busy}"
        assert next(lines) == f"True {created}"
        assert next(lines) == f"{call}: Input/output error (no space left)"
        assert next(lines) == f"{call} | Operation canceled | no operation is under way"
        assert next(lines) == f"{call}: Connection timed out (it was made to fail)"
    assert next(lines) == "libxl_domain_create_restore: Input/output error"
    assert next(lines) == "this Xenlight context is closed"
