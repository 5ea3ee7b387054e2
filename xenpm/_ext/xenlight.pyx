# cython: freethreading_compatible=False
"""libxenlight and libxlutil: what a domain is made of, running or still a file for xl.

:class:`Xenlight` is a context of libxenlight.  Its methods make their C calls without the GIL and
under the context's own lock; a C error becomes a :class:`xenpm.XenlightError` with libxl's last
error message, and libxl's log goes to the logger ``xenpm.xenlight``.  libxl's structures come as
the JSON text that libxl itself makes of them.

The functions are libxlutil's and need neither Xen nor root.  They only compute, so they keep the
GIL.  What libxlutil refuses becomes a :class:`xenpm.ConfigError` without a place, but for the line
of a syntax error.
"""

import errno as _errno
import logging
import re

cimport cython
from cpython.pythread cimport (
    PyThread_acquire_lock,
    PyThread_allocate_lock,
    PyThread_free_lock,
    PyThread_release_lock,
    PyThread_type_lock,
    WAIT_LOCK,
)
from libc cimport errno as c_errno
from libc.stdio cimport FILE, fclose
from libc.stdlib cimport free
from libc.string cimport memcpy

from xenpm._ext.c_xenlight cimport *
from xenpm._ext.c_xentoollog cimport *
from xenpm._ext.checks cimport *
from xenpm._ext.logs cimport drain_log

from xenpm.errors import ConfigError, XenlightError

__all__ = [
    "P9_PAIRS",
    "P9_TYPES",
    "VIF_MTU",
    "VIRTIO",
    "Xenlight",
    "check_rate",
    "parse_disk",
    "parse_pci",
    "parse_rdm",
    "read_settings",
]

# What the xl of this release does with keys that libxlutil leaves to it:
# mtu= is known; p9= and channel= split pairs at the first "="; p9= has types; virtio= is known.
VIF_MTU = bool(XENPM_XL_VIF_MTU)
P9_PAIRS = bool(XENPM_XL_P9_PAIRS)
P9_TYPES = bool(XENPM_XL_P9_TYPES)
VIRTIO = bool(XENPM_XL_VIRTIO)

_log = logging.getLogger("xenpm.xenlight")

cdef dict _ERRORS = {
    <int>ERROR_NOMEM: _errno.ENOMEM,
    <int>ERROR_INVAL: _errno.EINVAL,
    <int>ERROR_TIMEDOUT: _errno.ETIMEDOUT,
    <int>ERROR_GUEST_TIMEDOUT: _errno.ETIMEDOUT,
    <int>ERROR_LOCK_FAIL: _errno.EBUSY,
    <int>ERROR_ABORTED: _errno.ECANCELED,
    <int>ERROR_DOMAIN_NOTFOUND: _errno.ESRCH,
    <int>ERROR_DOMAIN_DESTROYED: _errno.ESRCH,
}

cdef enum:
    CLOSED = 1  # instead of an error number, which is below 0
    MAX_TEXT = 64 * 1024
    MAX_CONFIG = 16 * 1024 * 1024
    MAX_SPEC = 8 * 1024  # a token of 16386 bytes overruns libxlutil's scanner of disks
    MAX_DEPTH = 2

ctypedef int (*domain_call)(
    libxl_ctx *ctx, uint32_t domid, const libxl_asyncop_how *how
) noexcept nogil

cdef struct leavings:
    # What a call has left in the context, copied while nobody else can use that.
    int error
    unsigned dropped
    size_t used
    char log[XENPM_LOGBUF_BYTES]


cdef str _text(char *text):
    """A string that C has allocated, which is freed."""
    if text == NULL:
        raise MemoryError
    try:
        return (<bytes>text).decode("utf-8", "surrogateescape")
    finally:
        free(text)


cdef int _done(str call, const leavings *left) except -1:
    """Log what a call has said, and raise its error with the last message of an error."""
    if left.error == CLOSED:
        raise ValueError("this Xenlight context is closed")
    detail = drain_log(_log, "libxl", left.log, left.used, left.dropped)
    if left.error < 0:
        raise XenlightError(call, _ERRORS.get(left.error, _errno.EIO), detail)
    return 0


@cython.final
cdef class Xenlight:
    """A context of libxenlight: ``libxl_ctx_alloc``.

    libxl is told that SIGCHLD belongs to the process, and never to fork: so Python's subprocess,
    asyncio and handlers of SIGCHLD work as without it.

    With `forks` it may fork, and has SIGCHLD for itself while it has children: only for a process
    that is there for nothing else.  Then there can be one operation at a time, which a method
    begins and `wait` goes on with, to its end.

    Args:
        forks: whether libxl may fork.

    Raises:
        XenlightError: there is no hypervisor or no xenstore here, or the caller is not root.
    """

    cdef libxl_ctx *_ctx
    cdef bint _forks
    cdef str _call  # of the operation under way; None when there is none
    cdef str _complaint  # its first message of an error: those that follow tell less
    cdef xenpm_operation _operation
    cdef libxl_domain_config _config  # of the domain that is being made
    cdef uint32_t _created
    cdef xenpm_logbuf *_logbuf
    cdef PyThread_type_lock _lock
    cdef int _pid

    def __cinit__(self):
        self._ctx = NULL
        self._logbuf = NULL
        self._lock = NULL
        self._pid = 0
        self._forks = False
        self._call = None
        self._complaint = ""
        self._created = INVALID_DOMID

    def __init__(self, *, bint forks=False):
        cdef leavings left
        cdef libxl_ctx *ctx = NULL
        cdef int result
        if self._pid != 0:
            raise RuntimeError("Xenlight.__init__ called twice")
        self._lock = PyThread_allocate_lock()
        if self._lock == NULL:
            raise MemoryError
        with nogil:
            self._logbuf = xenpm_logbuf_new(XTL_INFO)
        if self._logbuf == NULL:
            raise MemoryError
        self._pid = xenpm_own_pid
        self._forks = forks
        with nogil:
            PyThread_acquire_lock(self._lock, WAIT_LOCK)
            result = libxl_ctx_alloc(&ctx, LIBXL_VERSION, 0, <xentoollog_logger *>self._logbuf)
            if result == 0 and not forks:
                libxl_childproc_setmode(ctx, &xenpm_childproc_hooks, NULL)
            self._end(result, &left)
        _done("libxl_ctx_alloc", &left)
        self._ctx = ctx
        libxl_domain_config_init(&self._config)

    def __dealloc__(self):
        # A forked child leaks its copy: the connections in it are the parent's.
        # So does who leaves an operation under way: libxl still uses what belongs to that.
        if self._pid != xenpm_own_pid or self._call is not None:
            return
        with nogil:
            libxl_ctx_free(self._ctx)
            xtl_logger_destroy(<xentoollog_logger *>self._logbuf)
        PyThread_free_lock(self._lock)

    cdef int _check(self) except -1:
        """Refuse a context that was never opened, or that belongs to the parent process."""
        if self._pid == 0:
            raise ValueError("this context was never opened")
        if self._pid != xenpm_own_pid:
            raise RuntimeError(
                f"this Xenlight context was opened by process {self._pid}; "
                "a forked child must open its own"
            )
        return 0

    cdef bint _begin(self, leavings *left) noexcept nogil:
        """Take the context; whether it is open.  If so, a call may be made, and `_end` follows."""
        PyThread_acquire_lock(self._lock, WAIT_LOCK)
        if self._ctx == NULL:
            PyThread_release_lock(self._lock)
            left.error = CLOSED
            left.used = left.dropped = 0
            return False
        return True

    cdef void _end(self, int result, leavings *left) noexcept nogil:
        """Copy what the call has left, and let go of the context."""
        left.error = result
        left.used = self._logbuf.used
        left.dropped = self._logbuf.dropped
        memcpy(left.log, self._logbuf.text, left.used)
        self._logbuf.used = 0
        self._logbuf.dropped = 0
        PyThread_release_lock(self._lock)

    def close(self):
        """Close the context; closing it again does nothing: ``libxl_ctx_free``."""
        cdef libxl_ctx *ctx
        if self._pid != xenpm_own_pid:
            return
        if self._call is not None:
            raise RuntimeError(f"{self._call} is under way: wait for its end first")
        with nogil:
            PyThread_acquire_lock(self._lock, WAIT_LOCK)
            ctx = self._ctx
            self._ctx = NULL
            if ctx != NULL:
                libxl_domain_config_dispose(&self._config)
            libxl_ctx_free(ctx)
            PyThread_release_lock(self._lock)

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()

    @property
    def closed(self):
        """Whether the context has been closed."""
        return self._ctx == NULL

    def domain_configuration(self, domid):
        """What a running domain is made of now, as JSON: ``libxl_retrieve_domain_configuration``.

        What libxl has kept of it, less what it has lost since and with what was plugged in.  Of a
        domain that somebody else is changing (EBUSY) it is not waited for.
        """
        cdef uint32_t c_domid = to_domid(domid)
        cdef libxl_domain_config config
        cdef char *text = NULL
        cdef int result
        cdef leavings left
        self._check()
        with nogil:
            if self._begin(&left):
                libxl_domain_config_init(&config)
                result = libxl_retrieve_domain_configuration(self._ctx, c_domid, &config, NULL)
                if result == 0:
                    text = libxl_domain_config_to_json(self._ctx, &config)
                libxl_domain_config_dispose(&config)
                self._end(result, &left)
        _done("libxl_retrieve_domain_configuration", &left)
        return _text(text)

    def assignable_pci(self):
        """The PCI devices that can be given to a domain, each as JSON.

        ``libxl_device_pci_assignable_list``: bound to pciback, and not a domain's already.
        """
        cdef libxl_device_pci *devices = NULL
        cdef int count = 0, i
        cdef leavings left
        self._check()
        found = []
        with nogil:
            if self._begin(&left):
                devices = libxl_device_pci_assignable_list(self._ctx, &count)
                self._end(0, &left)
        try:
            _done("libxl_device_pci_assignable_list", &left)
            for i in range(count):
                found.append(_text(libxl_device_pci_to_json(NULL, &devices[i])))
            return found
        finally:
            xenpm_pci_list_free(devices, count if devices != NULL else 0)

    # -- operations, of which there is one at a time

    cdef int _check_operation(self) except -1:
        """Refuse to begin an operation beside another, or where libxl could not do it."""
        self._check()
        if not self._forks:
            raise ValueError("this takes a Xenlight context that may fork")
        if self._call is not None:
            raise RuntimeError(f"{self._call} is under way: wait for its end first")
        self._operation.done = False
        return 0

    cdef int _domain_call(self, str call, domain_call function, object domid) except -1:
        """Begin an operation that takes nothing but a domain."""
        cdef uint32_t c_domid = to_domid(domid)
        cdef libxl_asyncop_how how = xenpm_how(&self._operation)
        cdef leavings left
        self._check_operation()
        with nogil:
            if self._begin(&left):
                self._end(function(self._ctx, c_domid, &how), &left)
        return self._begun(call, &left)

    cdef int _begun(self, str call, const leavings *left) except -1:
        """An operation has begun, or has failed at once."""
        _done(call, left)
        self._call = call
        self._complaint = ""
        return 0

    def save(self, domid, int fd):
        """Begin to suspend a domain and to write it to a file: ``libxl_domain_suspend``.

        When that has failed the domain may be suspended.

        Args:
            domid: which.
            fd: where to; what `xenpm.savefile.header` gives is in it already.
        """
        cdef uint32_t c_domid = to_domid(domid)
        cdef libxl_asyncop_how how = xenpm_how(&self._operation)
        cdef leavings left
        self._check_operation()
        with nogil:
            if self._begin(&left):
                self._end(libxl_domain_suspend(self._ctx, c_domid, fd, 0, &how), &left)
        self._begun("libxl_domain_suspend", &left)

    def restore(self, config, int fd):
        """Begin to make a domain of a file: ``libxl_domain_create_restore``.

        It is paused at the end, and `created` then says which it is.  When that has failed, it may
        be there half.

        Args:
            config: libxl's JSON of the domain.
            fd: the file, read up to libxl's stream.
        """
        cdef bytes c_config = _bytes(config, "the configuration", MAX_CONFIG)
        cdef const char *text = c_config
        cdef libxl_asyncop_how how = xenpm_how(&self._operation)
        cdef int result
        cdef leavings left
        self._check_operation()
        self._created = INVALID_DOMID
        with nogil:
            if self._begin(&left):
                libxl_domain_config_dispose(&self._config)
                libxl_domain_config_init(&self._config)
                result = libxl_domain_config_from_json(self._ctx, &self._config, text)
                if result == 0:
                    result = xenpm_restore(self._ctx, &self._config, &self._created, fd, &how)
                self._end(result, &left)
        self._begun("libxl_domain_create_restore", &left)

    @property
    def created(self):
        """The domid of what the last `restore` has made; None when it has made nothing."""
        return None if self._created == <uint32_t>INVALID_DOMID else self._created

    def soft_reset(self, domid, config):
        """Start an HVM domain over: ``libxl_domain_soft_reset``.

        Its device model and its devices are made anew around its memory, and at the end it waits
        for `unpause`.  When that has failed libxl has destroyed the domain, most likely.

        This returns at the end, for libxl keeps the place of a result on its caller's stack.

        Args:
            domid: which; it is suspended.
            config: what `domain_configuration` says of it.
        """
        cdef uint32_t c_domid = to_domid(domid)
        cdef bytes c_config = _bytes(config, "the configuration", MAX_CONFIG)
        cdef const char *text = c_config
        cdef int result
        cdef leavings left
        self._check_operation()
        with nogil:
            if self._begin(&left):
                libxl_domain_config_dispose(&self._config)
                libxl_domain_config_init(&self._config)
                result = libxl_domain_config_from_json(self._ctx, &self._config, text)
                if result == 0:
                    result = libxl_domain_soft_reset(self._ctx, &self._config, c_domid, NULL, NULL)
                self._end(result, &left)
        _done("libxl_domain_soft_reset", &left)

    def resume(self, domid):
        """Begin to resume a suspended domain cooperatively, with its device model.

        ``libxl_domain_resume``.
        """
        self._domain_call("libxl_domain_resume", xenpm_resume, domid)

    def unpause(self, domid):
        """Begin to let a domain run that was just made: ``libxl_domain_unpause``."""
        self._domain_call("libxl_domain_unpause", libxl_domain_unpause, domid)

    def destroy(self, domid):
        """Begin to destroy a domain, with its devices: ``libxl_domain_destroy``."""
        self._domain_call("libxl_domain_destroy", libxl_domain_destroy, domid)

    def wait(self, timeout_ms):
        """Go on with the operation, once something happens; returns early on a signal.

        Args:
            timeout_ms: how long to wait for that, in milliseconds.

        Returns:
            Whether the operation has ended.

        Raises:
            XenlightError: it has failed; ECANCELED: by `abort`.
        """
        cdef int c_timeout = to_uint32(timeout_ms, "timeout_ms") & 0x7fffffff
        cdef int result = 0
        cdef leavings left
        self._check()
        if self._call is None:
            raise ValueError("no operation is under way")
        with nogil:
            if self._begin(&left):
                if not self._operation.done:
                    result = xenpm_wait(self._ctx, c_timeout)
                self._end(self._operation.rc if self._operation.done else result, &left)
        if left.error == CLOSED:
            raise ValueError("this Xenlight context is closed")
        said = drain_log(_log, "libxl", left.log, left.used, left.dropped, True)
        self._complaint = self._complaint or said
        if self._operation.done:
            call, self._call = self._call, None
        elif left.error == 0:
            return False
        else:
            call = "libxl_osevent_beforepoll"
        if left.error < 0:
            raise XenlightError(call, _ERRORS.get(left.error, _errno.EIO), self._complaint)
        return True

    def abort(self):
        """Ask that the operation end soon; `wait` tells when it has: ``libxl_ao_abort``."""
        cdef libxl_asyncop_how how = xenpm_how(&self._operation)
        cdef leavings left
        self._check()
        if self._call is None:
            raise ValueError("no operation is under way")
        with nogil:
            if self._begin(&left):
                libxl_ao_abort(self._ctx, &how)  # fails when it has ended or is ending already
                self._end(0, &left)
        _done("libxl_ao_abort", &left)


# -- libxlutil

@cython.final
@cython.internal
cdef class _Parser:
    """A libxlutil configuration that nothing was read into, and what libxlutil says about it."""

    cdef XLU_Config *cfg
    cdef FILE *_stream
    cdef char *_report
    cdef size_t _size

    def __cinit__(self):
        self.cfg = NULL
        self._stream = NULL
        self._report = NULL
        self._size = 0

    def __init__(self):
        self._stream = open_memstream(&self._report, &self._size)
        if self._stream == NULL:
            raise MemoryError
        self.cfg = xlu_cfg_init(self._stream, b"xl")
        if self.cfg == NULL:
            raise MemoryError

    def __dealloc__(self):
        xlu_cfg_destroy(self.cfg)
        if self._stream != NULL:
            fclose(self._stream)
        free(self._report)

    cdef list report(self):
        """The lines that libxlutil has written, in which this configuration is called xl."""
        fclose(self._stream)
        self._stream = NULL
        text = (<bytes>self._report).decode("utf-8", "replace")
        # Each begins anew at the name, for what is quoted in one may have line ends.
        lines = re.split(r"^xl:", text, flags=re.M)
        return [line.strip() for line in lines if line.strip()]


cdef object _refusal(_Parser parser):
    """The error for a string that libxlutil has refused, mostly with a reason."""
    lines = [re.sub(r"^config parsing error in [a-z ]+: ", "", line) for line in parser.report()]
    return ConfigError("; ".join(lines))


cdef bytes _bytes(object text, str what, Py_ssize_t most):
    """Text as C takes it."""
    if not isinstance(text, str):
        raise TypeError(f"{what} must be a str, not {type(text).__name__}")
    if "\0" in text:
        raise ConfigError(f"{what} has a NUL character")
    encoded = text.encode("utf-8", "surrogateescape")
    if len(encoded) > most:
        raise ConfigError(f"{what} is longer than {most} bytes")
    return encoded


cdef object _value(const XLU_Config *cfg, XLU_ConfigValue *value, int depth):
    """A str, a list of values, or None for a list that is nested deeper than xl looks."""
    cdef char *text = NULL
    cdef XLU_ConfigList *items = NULL
    if xlu_cfg_value_get_string(cfg, value, &text, 1) == 0:
        return (<bytes>text).decode("utf-8", "surrogateescape")
    if depth > MAX_DEPTH or xlu_cfg_value_get_list(cfg, value, &items, 1) != 0:
        return None
    return _list(cfg, items, depth)


cdef list _list(const XLU_Config *cfg, XLU_ConfigList *items, int depth):
    cdef XLU_ConfigValue *item
    cdef int entry = 0
    values = []
    while True:
        item = xlu_cfg_get_listitem2(items, entry)
        if item == NULL:
            return values
        values.append(_value(cfg, item, depth + 1))
        entry += 1


def read_settings(text, strings=(), numbers=(), lists=()):
    """Read an xl configuration, and of it the keys that are named: ``xlu_cfg_readdata``.

    Args:
        text: the whole configuration, at most 64 KiB.
        strings: keys to look up with ``xlu_cfg_get_string``.
        numbers: keys to look up with ``xlu_cfg_get_long``.
        lists: keys to look up with ``xlu_cfg_get_list``, with the lists in them to a depth of 2.

    Returns:
        A dict of the keys that are there and of the kind that was asked for, and a list of what
        libxlutil says of those that are of another: ``LINE: warning: …``.

    Raises:
        ConfigError: a syntax error, with its line and ``near`` which text.
    """
    cdef bytes c_text = _bytes(text, "the configuration", MAX_TEXT)
    cdef _Parser parser = _Parser()
    cdef const char *string = NULL
    cdef long number = 0
    cdef XLU_ConfigList *items = NULL
    if xlu_cfg_readdata(parser.cfg, c_text, <int>len(c_text)) != 0:
        raise ConfigError("\n".join(parser.report()) or "out of memory")
    found = {}
    for name in strings:
        if xlu_cfg_get_string(parser.cfg, name.encode(), &string, 0) == 0:
            found[name] = (<bytes>string).decode("utf-8", "surrogateescape")
    for name in numbers:
        if xlu_cfg_get_long(parser.cfg, name.encode(), &number, 0) == 0:
            found[name] = number
    for name in lists:
        if xlu_cfg_get_list(parser.cfg, name.encode(), &items, NULL, 0) == 0:
            found[name] = _list(parser.cfg, items, 0)
    return found, parser.report()


def parse_pci(spec, *, bint msitranslate=False, bint power_mgmt=False, bint permissive=False,
              bint seize=False, int rdm_policy=-1):
    """Parse an item of ``pci=`` into the JSON of a ``libxl_device_pci``.

    ``xlu_pci_parse_spec_string``, or before 4.15 ``xlu_pci_parse_bdf``.

    Args:
        spec: the item.
        msitranslate, power_mgmt, permissive, seize, rdm_policy: what holds where it says nothing.

    Raises:
        ConfigError: it is none.
    """
    cdef bytes c_spec = _bytes(spec, "a PCI device", MAX_SPEC)
    cdef _Parser parser = _Parser()
    cdef libxl_device_pci pci
    libxl_device_pci_init(&pci)
    try:
        pci.msitranslate = msitranslate
        pci.power_mgmt = power_mgmt
        pci.permissive = permissive
        pci.seize = seize
        pci.rdm_policy = rdm_policy
        if xenpm_pci_parse(parser.cfg, &pci, c_spec) != 0:
            raise _refusal(parser)
        return _text(libxl_device_pci_to_json(NULL, &pci))
    finally:
        libxl_device_pci_dispose(&pci)


def parse_disk(spec):
    """Parse an item of ``disk=`` into the JSON of a ``libxl_device_disk``: ``xlu_disk_parse``.

    Raises:
        ConfigError: it is none.
    """
    cdef bytes c_spec = _bytes(spec, "a disk", MAX_SPEC)
    cdef const char *specs = c_spec
    cdef _Parser parser = _Parser()
    cdef libxl_device_disk disk
    if b"=\n" in c_spec:  # libxlutil's scanner may find no way on from there, and call exit()
        raise ConfigError("a line end behind a '='")
    libxl_device_disk_init(&disk)
    try:
        if xlu_disk_parse(parser.cfg, 1, &specs, &disk) != 0:
            raise _refusal(parser)
        return _text(libxl_device_disk_to_json(NULL, &disk))
    finally:
        libxl_device_disk_dispose(&disk)


def parse_rdm(spec):
    """The ``rdm_policy`` that ``rdm=`` makes the default of PCI devices: ``xlu_rdm_parse``.

    Returns:
        Its number, or None for what libxlutil refuses, which xl ignores.
    """
    cdef bytes c_spec = _bytes(spec, "rdm", MAX_SPEC)
    cdef _Parser parser = _Parser()
    cdef libxl_rdm_reserve rdm
    libxl_rdm_reserve_init(&rdm)
    if xlu_rdm_parse(parser.cfg, &rdm, c_spec) != 0:
        return None
    return rdm.policy


def check_rate(rate):
    """Check the ``rate=`` of a vif: ``xlu_vif_parse_rate``.

    Raises:
        ConfigError: it is none.
    """
    cdef bytes c_rate = _bytes(rate, "a rate", MAX_SPEC)
    cdef _Parser parser = _Parser()
    cdef libxl_device_nic nic
    libxl_device_nic_init(&nic)
    try:
        c_errno.errno = 0  # or libxlutil takes an old one for its own
        if xlu_vif_parse_rate(parser.cfg, c_rate, &nic) != 0:
            raise _refusal(parser)
    finally:
        libxl_device_nic_dispose(&nic)
