cdef extern from "xentoollog.h" nogil:
    ctypedef enum xentoollog_level:
        XTL_DEBUG
        XTL_PROGRESS
        XTL_INFO
        XTL_NOTICE
        XTL_WARN
        XTL_ERROR
        XTL_CRITICAL
    ctypedef struct xentoollog_logger:
        pass
    void xtl_logger_destroy(xentoollog_logger *logger)

cdef extern from "logbuf.h" nogil:
    enum:
        XENPM_LOGBUF_BYTES
    cdef struct xenpm_logbuf:
        unsigned dropped
        size_t used
        char *text
    xenpm_logbuf *xenpm_logbuf_new(xentoollog_level min_level)
