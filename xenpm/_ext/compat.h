/* The only place that knows how Xen's libraries differ between releases. */
#ifndef XENPM_COMPAT_H
#define XENPM_COMPAT_H

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include <xenctrl.h>
#include <xenevtchn.h>
#include <xenforeignmemory.h>
#include <xenguest.h>

#include <stdbool.h>

/* Up to 4.15 this is declared in xc_dom.h, which Debian's libxen-dev does not have. */
#if XENPM_XEN_MAJOR == 4 && XENPM_XEN_MINOR < 16
int xc_dom_gnttab_seed(xc_interface *xch, uint32_t guest_domid, bool is_hvm,
                       xen_pfn_t console_gfn, xen_pfn_t xenstore_gfn,
                       uint32_t console_domid, uint32_t xenstore_domid);
#endif

#include <sys/mman.h>
#include <xen/hvm/params.h>
#include <xen/io/xs_wire.h>

/* A guest with the HVM flag is PVH when Xen emulates no ACPI power management for it. */
static inline int xenpm_is_pvh(const xc_domaininfo_t *info)
{
    return (info->flags & XEN_DOMINF_hvm_guest)
        && !(info->arch_config.emulation_flags & XEN_X86_EMU_PM);
}

/* Whether a port of a domain is bound to one of another, and of which: xc_evtchn_status(). */
static inline int xenpm_evtchn_remote(xc_interface *xch, uint32_t domid, uint32_t port,
                                      uint32_t *remote_domid)
{
    xc_evtchn_status_t status = { .dom = domid, .port = port };

    if (xc_evtchn_status(xch, &status))
        return -1;
    *remote_domid = status.u.interdomain.dom;
    return status.status == EVTCHNSTAT_interdomain;
}

/* Whether another process has libxc's lock file for a domain's suspend event channel. */
static inline bool xenpm_suspend_evtchn_locked(uint32_t domid)
{
    struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_len = 1 };
    char path[64];
    int fd;
    bool locked;

    snprintf(path, sizeof path, "/var/run/xen/suspend-evtchn-%u.lock", domid);
    fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return false;
    locked = !fcntl(fd, F_GETLK, &lock) && lock.l_type != F_UNLCK;
    close(fd);
    return locked;
}

/*
 * Ask a guest to suspend over the event channel that it offers, under libxc's lock file for that
 * channel: as a save or migration does, so that the two exclude each other.
 */
static inline int xenpm_suspend_evtchn_notify(xc_interface *xch, uint32_t domid, uint32_t port)
{
    xenevtchn_handle *xce = xenevtchn_open(NULL, 0);
    int local, lock, result, error;

    if (!xce)
        return -1;
    local = xc_suspend_evtchn_init_exclusive(xch, xce, domid, port, &lock);
    /*
     * libxc has had Xen tell of the suspension over that channel instead of by VIRQ_DOM_EXC, and so
     * by @releaseDomain (XEN_DOMCTL_subscribe); that would hold for all that come after, too.
     */
    result = local < 0 ? -1 : xc_domain_subscribe_for_suspend(xch, domid, 0);
    if (!result)
        result = xenevtchn_notify(xce, local);
    error = errno;
    if (local < 0 && xenpm_suspend_evtchn_locked(domid))
        error = EBUSY; /* libxc says EINVAL, as for a number that is no event channel */
    if (local >= 0)
        xc_suspend_evtchn_release(xch, xce, domid, local, &lock);
    xenevtchn_close(xce);
    errno = error;
    return result;
}

/*
 * Take what xenstored has written to a guest that does not run, in its place; the number of bytes.
 * See struct xenstore_domain_interface of public/io/xs_wire.h.
 */
static inline int xenpm_store_ring_discard(uint32_t domid, xen_pfn_t gfn)
{
    xenforeignmemory_handle *memory = xenforeignmemory_open(NULL, 0);
    struct xenstore_domain_interface *ring;
    XENSTORE_RING_IDX produced;
    int bytes = -1, error;

    if (!memory)
        return -1;
    ring = xenforeignmemory_map(memory, domid, PROT_READ | PROT_WRITE, 1, &gfn, NULL);
    error = errno;
    if (ring) {
        produced = *(volatile XENSTORE_RING_IDX *)&ring->rsp_prod;
        bytes = (produced - ring->rsp_cons) & 0xffff; /* more than its size is a guest's nonsense */
        *(volatile XENSTORE_RING_IDX *)&ring->rsp_cons = produced;
        xenforeignmemory_unmap(memory, ring, 1);
    }
    xenforeignmemory_close(memory);
    errno = error;
    return bytes;
}

#endif
