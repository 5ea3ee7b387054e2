from libc.stdint cimport uint8_t, uint32_t, uint64_t

from xenpm._ext.c_xentoollog cimport xentoollog_logger

cdef extern from "<stdbool.h>" nogil:
    ctypedef bint c_bool "bool"

cdef extern from "compat.h" nogil:
    ctypedef struct xc_interface:
        pass
    ctypedef unsigned long xen_pfn_t
    ctypedef int xc_evtchn_port_or_error_t

    ctypedef struct xc_error:
        int code
        char *message

    ctypedef struct xc_domaininfo_t:
        uint32_t domain
        uint32_t flags
        uint64_t tot_pages
        uint64_t max_pages
        uint64_t cpu_time
        uint32_t nr_online_vcpus
        uint32_t max_vcpu_id
        uint8_t *handle
        uint32_t cpupool

    ctypedef struct xc_vcpuinfo_t:
        uint8_t online
        uint8_t blocked
        uint64_t cpu_time

    enum:
        XEN_DOMINF_dying
        XEN_DOMINF_hvm_guest
        XEN_DOMINF_shutdown
        XEN_DOMINF_paused
        XEN_DOMINF_blocked
        XEN_DOMINF_running
        XEN_DOMINF_xs_domain
        XEN_DOMINF_shutdownmask
        XEN_DOMINF_shutdownshift
        XENVER_version
        XC_PAGE_SIZE
        XC_MAX_ERROR_MSG_LEN
        XENPM_XEN_MAJOR
        XENPM_XEN_MINOR

    # NULL and errno
    xc_interface *xc_interface_open(xentoollog_logger *logger, xentoollog_logger *dombuild,
                                    unsigned open_flags)
    int xc_interface_close(xc_interface *xch)

    const xc_error *xc_get_last_error(xc_interface *xch)
    void xc_clear_last_error(xc_interface *xch)

    # version number, or -1 and errno
    int xc_version(xc_interface *xch, int cmd, void *arg)
    # number of domains, or -1 and errno
    int xc_domain_getinfolist(xc_interface *xch, uint32_t first_domain, unsigned int max_domains,
                              xc_domaininfo_t *info)
    # 0, or -1 and errno
    int xc_vcpu_getinfo(xc_interface *xch, uint32_t domid, uint32_t vcpu, xc_vcpuinfo_t *info)
    # port, or -1 and errno
    xc_evtchn_port_or_error_t xc_evtchn_alloc_unbound(xc_interface *xch, uint32_t dom,
                                                      uint32_t remote_dom)

    # 1 when bound to a port of another domain, 0 when not, or -1 and errno
    int xenpm_evtchn_remote(xc_interface *xch, uint32_t domid, uint32_t port,
                            uint32_t *remote_domid)

    # number of bytes, or -1 and errno
    int xenpm_store_ring_discard(uint32_t domid, xen_pfn_t gfn)

    # 0, or -1 and errno
    int xc_domain_pause(xc_interface *xch, uint32_t domid)
    int xc_domain_unpause(xc_interface *xch, uint32_t domid)
    int xc_domain_send_trigger(xc_interface *xch, uint32_t domid, uint32_t trigger, uint32_t vcpu)
    int xc_domain_shutdown(xc_interface *xch, uint32_t domid, int reason)
    int xc_domain_resume(xc_interface *xch, uint32_t domid, int fast)
    int xc_domain_soft_reset(xc_interface *xch, uint32_t domid)
    int xc_evtchn_reset(xc_interface *xch, uint32_t dom)
    int xc_hvm_param_get(xc_interface *xch, uint32_t dom, uint32_t param, uint64_t *value)
    int xc_hvm_param_set(xc_interface *xch, uint32_t dom, uint32_t param, uint64_t value)
    int xc_dom_gnttab_seed(xc_interface *xch, uint32_t guest_domid, c_bool is_hvm,
                           xen_pfn_t console_gfn, xen_pfn_t xenstore_gfn,
                           uint32_t console_domid, uint32_t xenstore_domid)

    int xenpm_suspend_evtchn_notify(xc_interface *xch, uint32_t domid, uint32_t port)

    int xenpm_is_pvh(const xc_domaininfo_t *info)
