# cython: freethreading_compatible=False
"""libxenctrl and libxenguest: what the hypervisor does to and says of domains.

Every method makes its C call without the GIL and under the handle's own lock, so a handle may be
shared between threads.  That lock is held without the GIL only: no Python code, a logging handler's
for instance, ever runs below it.  A C error becomes a :class:`xenpm.HypercallError` (or
:class:`xenpm.NotPermitted`) that carries the function's name, the error number and libxc's last
message; libxc's log goes to the logger ``xenpm.xenctrl``.
"""

import logging

cimport cython
from cpython.pythread cimport (
    PyThread_acquire_lock,
    PyThread_allocate_lock,
    PyThread_free_lock,
    PyThread_release_lock,
    PyThread_type_lock,
    WAIT_LOCK,
)
from libc.errno cimport errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy

from xenpm._ext.checks cimport *
from xenpm._ext.c_xenctrl cimport *
from xenpm._ext.c_xentoollog cimport *
from xenpm._ext.logs cimport drain_log

from xenpm.errors import hypercall_error
from xenpm.types import DomainInfo, DomainType, VcpuInfo

__all__ = ["BUILT_FOR", "Xenctrl"]

#: the Xen release whose headers this module was built with, as "4.17"
BUILT_FOR = f"{XENPM_XEN_MAJOR}.{XENPM_XEN_MINOR}"

_log = logging.getLogger("xenpm.xenctrl")

cdef object _PV = DomainType.PV
cdef object _PVH = DomainType.PVH
cdef object _HVM = DomainType.HVM
cdef object _new_tuple = tuple.__new__
cdef object _domain_info = DomainInfo

cdef enum:
    LIST_CHUNK = 256
    CLOSED = -1  # instead of an error number

cdef struct leavings:
    # What a call has left in the handle, copied while nobody else can use that.
    int error  # errno, or CLOSED when there was no call
    char detail[XC_MAX_ERROR_MSG_LEN]
    unsigned dropped
    size_t used
    char log[XENPM_LOGBUF_BYTES]

ctypedef int (*domain_call)(xc_interface *xch, uint32_t domid) noexcept nogil
ctypedef int (*domain_int_call)(xc_interface *xch, uint32_t domid, int arg) noexcept nogil


cdef object _info(const xc_domaininfo_t *c):
    """A DomainInfo of the C structure."""
    cdef uint32_t flags = c.flags
    cdef object kind = _PV
    if flags & XEN_DOMINF_hvm_guest:
        kind = _PVH if xenpm_is_pvh(c) else _HVM
    return _new_tuple(_domain_info, (
        c.domain,
        <bytes>(<const char *>c.handle)[:16],
        kind,
        (flags & XEN_DOMINF_dying) != 0,
        (flags & XEN_DOMINF_shutdown) != 0,
        (flags >> XEN_DOMINF_shutdownshift) & XEN_DOMINF_shutdownmask,
        (flags & XEN_DOMINF_paused) != 0,
        (flags & XEN_DOMINF_blocked) != 0,
        (flags & XEN_DOMINF_running) != 0,
        (flags & XEN_DOMINF_xs_domain) != 0,
        c.nr_online_vcpus,
        c.max_vcpu_id,
        c.tot_pages * (XC_PAGE_SIZE // 1024),
        c.max_pages * (XC_PAGE_SIZE // 1024),
        c.cpu_time,
        c.cpupool,
    ))


cdef str _drain_log(const leavings *left):
    """Hand libxc's log over to Python; returns the last error in it."""
    return drain_log(_log, "libxc", left.log, left.used, left.dropped)


cdef int64_t _done(str call, int64_t result, const leavings *left) except -1:
    """Give a call's result, or raise its error with libxc's last message."""
    if left.error == CLOSED:
        raise ValueError("this Xenctrl handle is closed")
    _drain_log(left)
    if result < 0:
        detail = (<bytes>left.detail).decode("utf-8", "replace")
        raise hypercall_error(call, left.error, detail)
    return result


@cython.final
cdef class Xenctrl:
    """A handle of libxenctrl: ``xc_interface_open``.

    Raises:
        HypercallError: there is no hypervisor here.
        NotPermitted: the caller is not root.
    """

    cdef xc_interface *_xch
    cdef xenpm_logbuf *_logbuf
    cdef PyThread_type_lock _lock
    cdef int _pid

    def __cinit__(self):
        self._xch = NULL
        self._logbuf = NULL
        self._lock = NULL
        self._pid = 0

    def __init__(self):
        cdef leavings left
        cdef xc_interface *xch
        if self._pid != 0:
            raise RuntimeError("Xenctrl.__init__ called twice")
        self._lock = PyThread_allocate_lock()
        if self._lock == NULL:
            raise MemoryError
        with nogil:
            self._logbuf = xenpm_logbuf_new(XTL_INFO)
        if self._logbuf == NULL:
            raise MemoryError
        self._pid = xenpm_own_pid
        with nogil:
            PyThread_acquire_lock(self._lock, WAIT_LOCK)
            xch = xc_interface_open(<xentoollog_logger *>self._logbuf, NULL, 0)
            self._end(&left)
        detail = _drain_log(&left)
        if xch == NULL:
            raise hypercall_error("xc_interface_open", left.error, detail)
        self._xch = xch

    def __dealloc__(self):
        # A forked child leaks its copy: unmapping the parent's buffers could hit memory of its own.
        if self._pid != xenpm_own_pid:
            return
        with nogil:
            if self._xch != NULL:
                xc_interface_close(self._xch)
            xtl_logger_destroy(<xentoollog_logger *>self._logbuf)
        PyThread_free_lock(self._lock)

    cdef int _check(self) except -1:
        """Refuse a handle that was never opened, or that belongs to the parent process."""
        if self._pid == 0:
            raise ValueError("this handle was never opened")
        if self._pid != xenpm_own_pid:
            raise RuntimeError(
                f"this Xenctrl handle was opened by process {self._pid}; "
                "a forked child must open its own"
            )
        return 0

    cdef bint _begin(self, leavings *left) noexcept nogil:
        """Take the handle; whether it is open.  If so, a call may be made, and `_end` follows."""
        PyThread_acquire_lock(self._lock, WAIT_LOCK)
        if self._xch == NULL:
            PyThread_release_lock(self._lock)
            left.error = CLOSED
            return False
        xc_clear_last_error(self._xch)
        return True

    cdef void _end(self, leavings *left) noexcept nogil:
        """Copy what the call has left, and let go of the handle."""
        cdef const xc_error *last = NULL
        left.error = errno  # first: nothing else may change it
        left.detail[0] = 0
        if self._xch != NULL:
            last = xc_get_last_error(self._xch)
        if last != NULL and last.code != 0:
            memcpy(left.detail, last.message, XC_MAX_ERROR_MSG_LEN)
        left.used = self._logbuf.used
        left.dropped = self._logbuf.dropped
        memcpy(left.log, self._logbuf.text, left.used)
        self._logbuf.used = 0
        self._logbuf.dropped = 0
        PyThread_release_lock(self._lock)

    cdef object _call(self, str name, domain_call function, object domid):
        """Make a call that takes nothing but the domain."""
        cdef uint32_t c_domid = to_domid(domid)
        cdef int result = 0
        cdef leavings left
        self._check()
        with nogil:
            if self._begin(&left):
                result = function(self._xch, c_domid)
                self._end(&left)
        _done(name, result, &left)

    cdef object _call_int(self, str name, domain_int_call function, object domid, int arg):
        """Make a call that takes the domain and one number."""
        cdef uint32_t c_domid = to_domid(domid)
        cdef int result = 0
        cdef leavings left
        self._check()
        with nogil:
            if self._begin(&left):
                result = function(self._xch, c_domid, arg)
                self._end(&left)
        _done(name, result, &left)

    def close(self):
        """Close the handle; closing it again does nothing: ``xc_interface_close``."""
        cdef xc_interface *xch
        if self._pid != xenpm_own_pid:
            return
        with nogil:
            PyThread_acquire_lock(self._lock, WAIT_LOCK)
            xch = self._xch
            self._xch = NULL
            if xch != NULL:
                xc_interface_close(xch)
            PyThread_release_lock(self._lock)

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()

    @property
    def closed(self):
        """Whether the handle has been closed."""
        return self._xch == NULL

    def version(self):
        """The running hypervisor's release as (major, minor): ``xc_version(XENVER_version)``."""
        cdef int result = 0
        cdef leavings left
        self._check()
        with nogil:
            if self._begin(&left):
                result = xc_version(self._xch, XENVER_version, NULL)
                self._end(&left)
        _done("xc_version", result, &left)
        return result >> 16, result & 0xffff

    def domain_info(self, domid):
        """What the hypervisor says of one domain; None when there is no such domain.

        ``xc_domain_getinfolist``, whose answer may be the next domain and is compared.
        """
        cdef uint32_t c_domid = to_domid(domid)
        cdef xc_domaininfo_t info
        cdef int count = 0
        cdef leavings left
        self._check()
        with nogil:
            if self._begin(&left):
                count = xc_domain_getinfolist(self._xch, c_domid, 1, &info)
                self._end(&left)
        _done("xc_domain_getinfolist", count, &left)
        if count == 0 or info.domain != c_domid:
            return None
        return _info(&info)

    def domain_list(self):
        """All domains, by rising domid: ``xc_domain_getinfolist``."""
        cdef xc_domaininfo_t *infos = NULL
        cdef xc_domaininfo_t *grown = NULL
        cdef int count = 0, total = 0, i
        cdef uint32_t first = 0
        cdef leavings left
        self._check()
        try:
            with nogil:
                if self._begin(&left):
                    while True:
                        grown = <xc_domaininfo_t *>realloc(
                            infos, (total + LIST_CHUNK) * sizeof(xc_domaininfo_t))
                        if grown == NULL:
                            break
                        infos = grown
                        count = xc_domain_getinfolist(self._xch, first, LIST_CHUNK, infos + total)
                        if count > 0:
                            total += count
                            first = infos[total - 1].domain + 1
                        if count < LIST_CHUNK:
                            break
                    self._end(&left)
            _done("xc_domain_getinfolist", count, &left)
            if grown == NULL:
                raise MemoryError
            return [_info(&infos[i]) for i in range(total)]
        finally:
            free(infos)

    def vcpu_info(self, domid, vcpu):
        """What the hypervisor says of one vCPU: ``xc_vcpu_getinfo``."""
        cdef uint32_t c_domid = to_domid(domid)
        cdef uint32_t c_vcpu = to_uint32(vcpu, "vcpu")
        cdef xc_vcpuinfo_t info
        cdef int result = 0
        cdef leavings left
        self._check()
        with nogil:
            if self._begin(&left):
                result = xc_vcpu_getinfo(self._xch, c_domid, c_vcpu, &info)
                self._end(&left)
        _done("xc_vcpu_getinfo", result, &left)
        return VcpuInfo(bool(info.online), bool(info.blocked), info.cpu_time)

    def pause(self, domid):
        """Take the domain off the CPUs without its knowledge; counts: ``xc_domain_pause``."""
        self._call("xc_domain_pause", xc_domain_pause, domid)

    def unpause(self, domid):
        """Undo one `pause`: ``xc_domain_unpause``."""
        self._call("xc_domain_unpause", xc_domain_unpause, domid)

    def send_trigger(self, domid, trigger, vcpu):
        """Press one of the domain's buttons: ``xc_domain_send_trigger``.

        Args:
            domid: which domain.
            trigger: ``XEN_DOMCTL_SENDTRIGGER_*`` of public/domctl.h.
            vcpu: which of its vCPUs gets an NMI.
        """
        cdef uint32_t c_domid = to_domid(domid)
        cdef uint32_t c_trigger = to_uint32(trigger, "trigger")
        cdef uint32_t c_vcpu = to_uint32(vcpu, "vcpu")
        cdef int result = 0
        cdef leavings left
        self._check()
        with nogil:
            if self._begin(&left):
                result = xc_domain_send_trigger(self._xch, c_domid, c_trigger, c_vcpu)
                self._end(&left)
        _done("xc_domain_send_trigger", result, &left)

    def shutdown(self, domid, reason):
        """Shut the domain down with a ``SHUTDOWN_*`` reason: ``xc_domain_shutdown``.

        The guest is not asked: its vCPUs stop where they are.
        """
        cdef int c_reason = <int>to_uint(reason, "a shutdown reason", 255)
        self._call_int("xc_domain_shutdown", xc_domain_shutdown, domid, c_reason)

    def resume(self, domid, bint cooperative):
        """Let a suspended domain run on: ``xc_domain_resume``.

        The caller must have seen that the domain is suspended: with `cooperative` False nobody else
        looks, and a domain that was not suspended is damaged.

        Args:
            domid: which domain.
            cooperative: True makes the guest's suspend hypercall return 1 ("cancelled"), False 0.
        """
        self._call_int("xc_domain_resume", xc_domain_resume, domid, cooperative)

    def hvm_param_get(self, domid, param):
        """The value of an ``HVM_PARAM_*`` of a PVH or HVM domain: ``xc_hvm_param_get``."""
        cdef uint32_t c_domid = to_domid(domid)
        cdef uint32_t c_param = to_uint32(param, "param")
        cdef uint64_t value = 0
        cdef int result = 0
        cdef leavings left
        self._check()
        with nogil:
            if self._begin(&left):
                result = xc_hvm_param_get(self._xch, c_domid, c_param, &value)
                self._end(&left)
        _done("xc_hvm_param_get", result, &left)
        return value

    def hvm_param_set(self, domid, param, value):
        """Set an ``HVM_PARAM_*`` of a PVH or HVM domain: ``xc_hvm_param_set``."""
        cdef uint32_t c_domid = to_domid(domid)
        cdef uint32_t c_param = to_uint32(param, "param")
        cdef uint64_t c_value = to_uint(value, "value", 0xffffffffffffffff)
        cdef int result = 0
        cdef leavings left
        self._check()
        with nogil:
            if self._begin(&left):
                result = xc_hvm_param_set(self._xch, c_domid, c_param, c_value)
                self._end(&left)
        _done("xc_hvm_param_set", result, &left)

    def evtchn_alloc_unbound(self, domid, remote_domid):
        """Allocate an event channel in `domid` for `remote_domid` to bind; returns the port.

        ``xc_evtchn_alloc_unbound``.
        """
        cdef uint32_t c_domid = to_domid(domid), c_remote = to_domid(remote_domid)
        cdef int result = 0
        cdef leavings left
        self._check()
        with nogil:
            if self._begin(&left):
                result = xc_evtchn_alloc_unbound(self._xch, c_domid, c_remote)
                self._end(&left)
        _done("xc_evtchn_alloc_unbound", result, &left)
        return result

    def evtchn_remote(self, domid, port):
        """The domain at the other end of a domain's event channel: ``xc_evtchn_status``.

        None when `port` is bound to no port of another domain.
        """
        cdef uint32_t c_domid = to_domid(domid)
        cdef uint32_t c_port = to_uint32(port, "port")
        cdef uint32_t remote_domid = 0
        cdef int result = 0
        cdef leavings left
        self._check()
        with nogil:
            if self._begin(&left):
                result = xenpm_evtchn_remote(self._xch, c_domid, c_port, &remote_domid)
                self._end(&left)
        _done("xc_evtchn_status", result, &left)
        return remote_domid if result else None

    def suspend_evtchn_notify(self, domid, port):
        """Ask a guest to suspend over the event channel that it offers for that.

        ``xc_suspend_evtchn_init_exclusive``, which takes a lock that a save or migration of libxl
        takes as well; then ``xenevtchn_notify`` and ``xc_suspend_evtchn_release``.
        """
        cdef uint32_t c_domid = to_domid(domid)
        cdef uint32_t c_port = to_uint32(port, "port")
        cdef int result = 0
        cdef leavings left
        self._check()
        with nogil:
            if self._begin(&left):
                result = xenpm_suspend_evtchn_notify(self._xch, c_domid, c_port)
                self._end(&left)
        _done("xc_suspend_evtchn_init_exclusive", result, &left)

    def store_ring_discard(self, domid, gfn):
        """Take what xenstored has written into the store ring of a domain that does not run.

        Returns the number of bytes.  ``xenforeignmemory_map``; a running domain would be confused.
        """
        cdef uint32_t c_domid = to_domid(domid)
        cdef xen_pfn_t c_gfn = to_uint(gfn, "gfn", 0xffffffffffff)
        cdef int result = 0
        cdef leavings left
        self._check()
        with nogil:
            if self._begin(&left):
                result = xenpm_store_ring_discard(c_domid, c_gfn)
                self._end(&left)
        _done("xenforeignmemory_map", result, &left)
        return result

    def evtchn_reset(self, domid):
        """Close all event channels of a domain that is paused: ``xc_evtchn_reset``."""
        self._call("xc_evtchn_reset", xc_evtchn_reset, domid)

    def soft_reset(self, domid):
        """Give a suspended PVH or HVM domain fresh ground: ``xc_domain_soft_reset``.

        Event channels and vCPU info areas go, memory stays.  Xen *crashes* a PV domain on this.
        """
        self._call("xc_domain_soft_reset", xc_domain_soft_reset, domid)

    def gnttab_seed(self, domid, bint is_hvm, console_gfn, xenstore_gfn, console_domid,
                    xenstore_domid):
        """Grant the console and xenstore pages to their backends: ``xc_dom_gnttab_seed``."""
        cdef uint32_t c_domid = to_domid(domid)
        cdef uint32_t c_console = to_domid(console_domid), c_xenstore = to_domid(xenstore_domid)
        cdef xen_pfn_t c_console_gfn = to_uint(console_gfn, "console_gfn", 0xffffffffffff)
        cdef xen_pfn_t c_xenstore_gfn = to_uint(xenstore_gfn, "xenstore_gfn", 0xffffffffffff)
        cdef int result = 0
        cdef leavings left
        self._check()
        with nogil:
            if self._begin(&left):
                result = xc_dom_gnttab_seed(self._xch, c_domid, is_hvm, c_console_gfn,
                                            c_xenstore_gfn, c_console, c_xenstore)
                self._end(&left)
        _done("xc_dom_gnttab_seed", result, &left)
