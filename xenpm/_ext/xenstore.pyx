# cython: freethreading_compatible=False
"""libxenstore: a connection to xenstored.

Every method makes its C call without the GIL and under the handle's own lock, which is held without
the GIL only: no Python code ever runs below it.  A failed request becomes a
:class:`xenpm.StoreError` (:class:`xenpm.NoSuchNode`, :class:`xenpm.TransactionConflict`,
:class:`xenpm.QuotaExceeded`) or :class:`xenpm.NotPermitted` with the function's name and the error
number.  Values are bytes; paths are str, limited as in Xen's docs/misc/xenstore.txt.

libxenstore has no deadline for a request: a xenstored that hangs, hangs its callers.  From the
first watch on, libxenstore keeps a thread of its own per connection that reads from the socket.
"""

import errno as _errno

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
from libc.stdint cimport uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport strlen

from xenpm._ext.checks cimport *
from xenpm._ext.c_xenstore cimport *

from xenpm.errors import NotPermitted, StoreError, store_error
from xenpm.types import Permission

__all__ = ["Xenstore"]

cdef enum:
    MOST_PERMISSIONS = 512  # more would not fit into one request anyway
    CLOSED = -1  # instead of an error number

ctypedef c_bool (*path_call)(xs_handle *h, xs_transaction_t t, const char *path) noexcept nogil
ctypedef c_bool (*watch_call)(xs_handle *h, const char *path, const char *token) noexcept nogil
ctypedef c_bool (*domain_call)(xs_handle *h, unsigned int domid) noexcept nogil


cdef bytes _encode(object text, str what):
    """A path or token as C takes it."""
    if not isinstance(text, str):
        raise TypeError(f"a xenstore {what} must be a str, not {type(text).__name__}")
    cdef bytes encoded = (<str>text).encode("utf-8", "surrogateescape")
    cdef Py_ssize_t length = len(encoded)
    cdef const char *c_text = encoded
    if length == 0 or strlen(c_text) != <size_t>length:
        raise ValueError(f"a xenstore {what} must not be empty or contain NUL: {text!r}")
    if length > XENSTORE_ABS_PATH_MAX:
        raise ValueError(
            f"a xenstore {what} has at most {XENSTORE_ABS_PATH_MAX} bytes, not {length}"
        )
    return encoded


cdef str _decode(const char *text):
    return (<bytes>text).decode("utf-8", "surrogateescape")


cdef object _failure(str call, int error, object detail=""):
    """The exception for a call that failed, or that was not made for the handle is closed."""
    if error == CLOSED:
        return ValueError("this Xenstore handle is closed")
    return store_error(call, error, detail)


@cython.final
cdef class Xenstore:
    """A connection to xenstored: ``xs_open``.

    Raises:
        StoreError: xenstored is not running here.
        NotPermitted: the caller is not root.
    """

    cdef xs_handle *_xs
    cdef PyThread_type_lock _lock
    cdef int _pid

    def __cinit__(self):
        self._xs = NULL
        self._lock = NULL
        self._pid = 0

    def __init__(self):
        cdef int error = 0
        cdef xs_handle *xs
        if self._pid != 0:
            raise RuntimeError("Xenstore.__init__ called twice")
        self._lock = PyThread_allocate_lock()
        if self._lock == NULL:
            raise MemoryError
        self._pid = xenpm_own_pid
        with nogil:
            # Without the filter, events of a watch that is gone could reach its successor.
            xs = xs_open(XS_UNWATCH_FILTER)
            error = errno
        if xs == NULL:
            permission = error in (_errno.EPERM, _errno.EACCES)
            raise (NotPermitted if permission else StoreError)("xs_open", error)
        self._xs = xs

    def __dealloc__(self):
        cdef bint own = self._pid == xenpm_own_pid
        with nogil:
            if self._xs != NULL and own:
                xs_close(self._xs)
            elif self._xs != NULL:
                xs_daemon_destroy_postfork(self._xs)
        if own:  # a forked child's copy may be locked for ever
            PyThread_free_lock(self._lock)

    cdef int _check(self) except -1:
        """Refuse a handle that was never opened, or that belongs to the parent process."""
        if self._pid == 0:
            raise ValueError("this handle was never opened")
        if self._pid != xenpm_own_pid:
            raise RuntimeError(
                f"this Xenstore handle was opened by process {self._pid}; "
                "a forked child must open its own"
            )
        return 0

    cdef bint _begin(self) noexcept nogil:
        """Take the handle; whether it is open.  If so, a request may follow, and `_end` must."""
        PyThread_acquire_lock(self._lock, WAIT_LOCK)
        if self._xs == NULL:
            PyThread_release_lock(self._lock)
            return False
        return True

    cdef int _end(self) noexcept nogil:
        """Let go of the handle; returns the error number that the request has left."""
        cdef int error = errno
        PyThread_release_lock(self._lock)
        return error

    cdef object _path_call(self, str name, path_call function, object path, object transaction):
        """Make a request that takes nothing but a path."""
        cdef bytes encoded = _encode(path, "path")
        cdef const char *c_path = encoded
        cdef uint32_t c_transaction = to_uint32(transaction, "transaction")
        cdef int ok = 0, error = CLOSED
        self._check()
        with nogil:
            if self._begin():
                ok = function(self._xs, c_transaction, c_path)
                error = self._end()
        if not ok:
            raise _failure(name, error, path)

    cdef object _watch_call(self, str name, watch_call function, object path, object token):
        """Make a request that takes a path and a token."""
        cdef bytes encoded = _encode(path, "path"), encoded_token = _encode(token, "token")
        cdef const char *c_path = encoded
        cdef const char *c_token = encoded_token
        cdef int ok = 0, error = CLOSED
        self._check()
        with nogil:
            if self._begin():
                ok = function(self._xs, c_path, c_token)
                error = self._end()
        if not ok:
            raise _failure(name, error, path)

    cdef object _domain_call(self, str name, domain_call function, object domid):
        """Make a request that takes nothing but a domain."""
        cdef unsigned int c_domid = to_domid(domid)
        cdef int ok = 0, error = CLOSED
        self._check()
        with nogil:
            if self._begin():
                ok = function(self._xs, c_domid)
                error = self._end()
        if not ok:
            raise _failure(name, error, f"domain {domid}")

    def close(self):
        """Close the connection; closing it again does nothing: ``xs_close``.

        Open transactions are aborted and watches removed by xenstored.
        """
        cdef xs_handle *xs
        if self._pid != xenpm_own_pid:
            return
        with nogil:
            PyThread_acquire_lock(self._lock, WAIT_LOCK)
            xs = self._xs
            self._xs = NULL
            if xs != NULL:
                xs_close(xs)
            PyThread_release_lock(self._lock)

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()

    @property
    def closed(self):
        """Whether the connection has been closed."""
        return self._xs == NULL

    def fileno(self):
        """The descriptor that is readable while watch events wait: ``xs_fileno``."""
        cdef int fd = -1, error = CLOSED
        self._check()
        with nogil:
            if self._begin():
                fd = xs_fileno(self._xs)
                error = self._end()
        if fd < 0:
            raise _failure("xs_fileno", error)
        return fd

    def read(self, path, transaction=0):
        """The value of a node: ``xs_read``."""
        cdef bytes encoded = _encode(path, "path")
        cdef const char *c_path = encoded
        cdef unsigned int length = 0
        cdef void *value = NULL
        cdef uint32_t c_transaction = to_uint32(transaction, "transaction")
        cdef int error = CLOSED
        self._check()
        with nogil:
            if self._begin():
                value = xs_read(self._xs, c_transaction, c_path, &length)
                error = self._end()
        if value == NULL:
            raise _failure("xs_read", error, path)
        try:
            return <bytes>(<char *>value)[:length]
        finally:
            free(value)

    def write(self, path, bytes value not None, transaction=0):
        """Set the value of a node, made with its parents when not there: ``xs_write``."""
        cdef bytes encoded = _encode(path, "path")
        cdef const char *c_path = encoded
        cdef const char *c_value = value
        cdef unsigned int length
        cdef uint32_t c_transaction = to_uint32(transaction, "transaction")
        cdef int ok = 0, error = CLOSED
        if len(value) + len(encoded) + 1 > XENSTORE_PAYLOAD_MAX:
            raise ValueError(
                f"a xenstore path and its value have at most {XENSTORE_PAYLOAD_MAX} bytes "
                f"together, not {len(value) + len(encoded) + 1}"
            )
        length = <unsigned int>len(value)
        self._check()
        with nogil:
            if self._begin():
                ok = xs_write(self._xs, c_transaction, c_path, c_value, length)
                error = self._end()
        if not ok:
            raise _failure("xs_write", error, path)

    def mkdir(self, path, transaction=0):
        """Make an empty node, unless it is there: ``xs_mkdir``."""
        self._path_call("xs_mkdir", xs_mkdir, path, transaction)

    def remove(self, path, transaction=0):
        """Remove a node and everything below it: ``xs_rm``."""
        self._path_call("xs_rm", xs_rm, path, transaction)

    def list(self, path, transaction=0):
        """The names of a node's children: ``xs_directory``."""
        cdef bytes encoded = _encode(path, "path")
        cdef const char *c_path = encoded
        cdef unsigned int count = 0, i
        cdef char **names = NULL
        cdef uint32_t c_transaction = to_uint32(transaction, "transaction")
        cdef int error = CLOSED
        self._check()
        with nogil:
            if self._begin():
                names = xs_directory(self._xs, c_transaction, c_path, &count)
                error = self._end()
        if names == NULL:
            raise _failure("xs_directory", error, path)
        try:
            return [_decode(names[i]) for i in range(count)]
        finally:
            free(names)

    def get_permissions(self, path, transaction=0):
        """Who may read and write a node; the owner first: ``xs_get_permissions``."""
        cdef bytes encoded = _encode(path, "path")
        cdef const char *c_path = encoded
        cdef unsigned int count = 0, i
        cdef xs_permissions *perms = NULL
        cdef uint32_t c_transaction = to_uint32(transaction, "transaction")
        cdef int error = CLOSED
        self._check()
        with nogil:
            if self._begin():
                perms = xs_get_permissions(self._xs, c_transaction, c_path, &count)
                error = self._end()
        if perms == NULL:
            raise _failure("xs_get_permissions", error, path)
        try:
            return [
                Permission(
                    perms[i].id,
                    (perms[i].perms & XS_PERM_READ) != 0,
                    (perms[i].perms & XS_PERM_WRITE) != 0,
                )
                for i in range(count)
            ]
        finally:
            free(perms)

    def set_permissions(self, path, permissions, transaction=0):
        """Set who may read and write a node, the owner first: ``xs_set_permissions``."""
        cdef bytes encoded = _encode(path, "path")
        cdef const char *c_path = encoded
        cdef list entries = [Permission(*entry) for entry in permissions]
        cdef unsigned int count = <unsigned int>len(entries), i
        cdef xs_permissions *perms = NULL
        cdef uint32_t c_transaction = to_uint32(transaction, "transaction")
        cdef int ok = 0, error = CLOSED
        if count == 0:
            raise ValueError("a node's permissions begin with its owner: at least one is needed")
        if count > MOST_PERMISSIONS:  # libxenstore puts them all on the stack
            raise ValueError(f"a node has at most {MOST_PERMISSIONS} permissions, not {count}")
        perms = <xs_permissions *>malloc(count * sizeof(xs_permissions))
        if perms == NULL:
            raise MemoryError
        try:
            for i in range(count):
                entry = entries[i]
                perms[i].id = to_domid(entry.domid)
                perms[i].perms = ((XS_PERM_READ if entry.read else 0)
                                  | (XS_PERM_WRITE if entry.write else 0))
            self._check()
            with nogil:
                if self._begin():
                    ok = xs_set_permissions(self._xs, c_transaction, c_path, perms, count)
                    error = self._end()
        finally:
            free(perms)
        if not ok:
            raise _failure("xs_set_permissions", error, path)

    def transaction_start(self):
        """Begin a transaction; returns what the other methods take: ``xs_transaction_start``."""
        cdef uint32_t transaction = XBT_NULL
        cdef int error = CLOSED
        self._check()
        with nogil:
            if self._begin():
                transaction = xs_transaction_start(self._xs)
                error = self._end()
        if transaction == XBT_NULL:
            raise _failure("xs_transaction_start", error)
        return transaction

    def transaction_end(self, transaction, bint abort=False):
        """Commit or abort a transaction: ``xs_transaction_end``.

        Raises:
            TransactionConflict: somebody changed meanwhile what it had read; nothing was written.
        """
        cdef uint32_t c_transaction = to_uint32(transaction, "transaction")
        cdef int ok = 0, error = CLOSED
        self._check()
        with nogil:
            if self._begin():
                ok = xs_transaction_end(self._xs, c_transaction, abort)
                error = self._end()
        if not ok:
            raise _failure("xs_transaction_end", error)

    def watch(self, path, token):
        """Report changes at and below a node, beginning with one report at once: ``xs_watch``."""
        self._watch_call("xs_watch", xs_watch, path, token)

    def unwatch(self, path, token):
        """Undo a `watch`; its waiting events are dropped: ``xs_unwatch``."""
        self._watch_call("xs_unwatch", xs_unwatch, path, token)

    def check_watch(self):
        """The next waiting watch event as (path, token), or None; never waits.

        ``xs_check_watch``.
        """
        cdef char **event = NULL
        cdef int error = CLOSED
        self._check()
        with nogil:
            if self._begin():
                event = xs_check_watch(self._xs)
                error = self._end()
        if event == NULL:
            if error == _errno.EAGAIN:
                return None
            raise _failure("xs_check_watch", error)
        try:
            return _decode(event[<int>XS_WATCH_PATH]), _decode(event[<int>XS_WATCH_TOKEN])
        finally:
            free(event)

    def introduce_domain(self, domid, gfn, port):
        """Tell xenstored of a domain's ring and event channel: ``xs_introduce_domain``.

        For a domain that it knows, the C xenstored drops the guest's watches and transactions.
        """
        cdef unsigned int c_domid = to_domid(domid)
        cdef unsigned long c_gfn = to_uint(gfn, "gfn", 0xffffffffffff)
        cdef uint32_t c_port = to_uint32(port, "port")
        cdef int ok = 0, error = CLOSED
        self._check()
        with nogil:
            if self._begin():
                ok = xs_introduce_domain(self._xs, c_domid, c_gfn, c_port)
                error = self._end()
        if not ok:
            raise _failure("xs_introduce_domain", error, f"domain {domid}")

    def release_domain(self, domid):
        """Tell xenstored that a domain is gone: ``xs_release_domain``."""
        self._domain_call("xs_release_domain", xs_release_domain, domid)

    def resume_domain(self, domid):
        """Tell xenstored that a domain that had shut down runs again: ``xs_resume_domain``.

        Without it the domain's next shutdown fires no ``@releaseDomain``.
        """
        self._domain_call("xs_resume_domain", xs_resume_domain, domid)
