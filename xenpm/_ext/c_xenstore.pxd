from libc.stdint cimport uint32_t

cdef extern from "<stdbool.h>" nogil:
    ctypedef bint c_bool "bool"

cdef extern from "xenstore.h" nogil:
    cdef struct xs_handle:
        pass
    cdef struct xs_permissions:
        unsigned int id
        unsigned int perms
    ctypedef uint32_t xs_transaction_t

    enum:
        XS_UNWATCH_FILTER
        XBT_NULL
        XS_PERM_READ
        XS_PERM_WRITE
        XS_WATCH_PATH
        XS_WATCH_TOKEN
        XENSTORE_PAYLOAD_MAX
        XENSTORE_ABS_PATH_MAX

    # NULL and errno
    xs_handle *xs_open(unsigned long flags)
    void xs_close(xs_handle *h)
    void xs_daemon_destroy_postfork(xs_handle *h)

    # NULL and errno; the caller frees
    void *xs_read(xs_handle *h, xs_transaction_t t, const char *path, unsigned int *len)
    char **xs_directory(xs_handle *h, xs_transaction_t t, const char *path, unsigned int *num)
    xs_permissions *xs_get_permissions(xs_handle *h, xs_transaction_t t, const char *path,
                                       unsigned int *num)
    char **xs_check_watch(xs_handle *h)

    # false and errno
    c_bool xs_write(xs_handle *h, xs_transaction_t t, const char *path, const void *data,
                    unsigned int len)
    c_bool xs_mkdir(xs_handle *h, xs_transaction_t t, const char *path)
    c_bool xs_rm(xs_handle *h, xs_transaction_t t, const char *path)
    c_bool xs_set_permissions(xs_handle *h, xs_transaction_t t, const char *path,
                              xs_permissions *perms, unsigned int num_perms)
    c_bool xs_watch(xs_handle *h, const char *path, const char *token)
    c_bool xs_unwatch(xs_handle *h, const char *path, const char *token)
    c_bool xs_transaction_end(xs_handle *h, xs_transaction_t t, c_bool abort)
    c_bool xs_introduce_domain(xs_handle *h, unsigned int domid, unsigned long mfn,
                               unsigned int eventchn)
    c_bool xs_resume_domain(xs_handle *h, unsigned int domid)
    c_bool xs_release_domain(xs_handle *h, unsigned int domid)

    # XBT_NULL and errno
    xs_transaction_t xs_transaction_start(xs_handle *h)

    # -1 and errno
    int xs_fileno(xs_handle *h)
