from libc.stdint cimport uint32_t
from libc.stdio cimport FILE

from xenpm._ext.c_xentoollog cimport xentoollog_logger

cdef extern from "<stdbool.h>" nogil:
    ctypedef bint c_bool "bool"

cdef extern from "<stdio.h>" nogil:
    # NULL and errno
    FILE *open_memstream(char **text, size_t *size)

cdef extern from "compat_xl.h" nogil:
    ctypedef struct libxl_ctx:
        pass
    ctypedef struct libxl_asyncop_how:
        pass
    ctypedef struct xenpm_operation "struct xenpm_operation":
        c_bool done
        int rc
    ctypedef struct libxl_childproc_hooks:
        pass
    ctypedef struct libxl_domain_config:
        pass
    ctypedef struct libxl_device_disk:
        pass
    ctypedef struct libxl_device_nic:
        pass
    ctypedef int libxl_rdm_reserve_policy

    ctypedef struct libxl_device_pci:
        c_bool msitranslate
        c_bool power_mgmt
        c_bool permissive
        c_bool seize
        libxl_rdm_reserve_policy rdm_policy
    ctypedef struct libxl_rdm_reserve:
        libxl_rdm_reserve_policy policy

    enum:
        LIBXL_VERSION
        ERROR_NOMEM
        ERROR_INVAL
        ERROR_TIMEDOUT
        ERROR_GUEST_TIMEDOUT
        ERROR_LOCK_FAIL
        ERROR_ABORTED
        ERROR_DOMAIN_NOTFOUND
        ERROR_DOMAIN_DESTROYED
        INVALID_DOMID
        XENPM_XL_VIF_MTU
        XENPM_XL_P9_PAIRS
        XENPM_XL_P9_TYPES
        XENPM_XL_VIRTIO

    const libxl_childproc_hooks xenpm_childproc_hooks

    # 0, or an error number of libxl
    int libxl_ctx_alloc(libxl_ctx **ctx, int version, unsigned flags, xentoollog_logger *logger)
    int libxl_ctx_free(libxl_ctx *ctx)
    int libxl_retrieve_domain_configuration(libxl_ctx *ctx, uint32_t domid,
                                            libxl_domain_config *config,
                                            const libxl_asyncop_how *how)
    int libxl_domain_config_from_json(libxl_ctx *ctx, libxl_domain_config *config,
                                      const char *text)
    int libxl_domain_soft_reset(libxl_ctx *ctx, libxl_domain_config *config, uint32_t domid,
                                const libxl_asyncop_how *how, const void *console_how)
    int libxl_ao_abort(libxl_ctx *ctx, const libxl_asyncop_how *how)
    int xenpm_wait(libxl_ctx *ctx, int timeout_ms)

    # the same; 0: begun, and its end is told to `how`
    int libxl_domain_suspend(libxl_ctx *ctx, uint32_t domid, int fd, int flags,
                             const libxl_asyncop_how *how)
    int xenpm_resume(libxl_ctx *ctx, uint32_t domid, const libxl_asyncop_how *how)
    int libxl_domain_unpause(libxl_ctx *ctx, uint32_t domid, const libxl_asyncop_how *how)
    int libxl_domain_destroy(libxl_ctx *ctx, uint32_t domid, const libxl_asyncop_how *how)
    int xenpm_restore(libxl_ctx *ctx, libxl_domain_config *config, uint32_t *domid, int fd,
                      const libxl_asyncop_how *how)

    # 0, or an error number of libxl
    int xenpm_pci_parse(XLU_Config *cfg, libxl_device_pci *pci, const char *spec)
    int xlu_rdm_parse(XLU_Config *cfg, libxl_rdm_reserve *rdm, const char *spec)

    # NULL, and the log says why; an empty list may be NULL, too
    libxl_device_pci *libxl_device_pci_assignable_list(libxl_ctx *ctx, int *count)

    # NULL when there is no memory; the caller frees
    char *libxl_domain_config_to_json(libxl_ctx *ctx, libxl_domain_config *config)
    char *libxl_device_pci_to_json(libxl_ctx *ctx, libxl_device_pci *pci)
    char *libxl_device_disk_to_json(libxl_ctx *ctx, libxl_device_disk *disk)

    # NULL when there is no memory
    XLU_Config *xlu_cfg_init(FILE *report, const char *source)

    # 0, or an error number of C, and the report says more
    int xlu_cfg_readdata(XLU_Config *cfg, const char *data, int length)
    int xlu_cfg_get_string(const XLU_Config *cfg, const char *name, const char **value,
                           int dont_warn)
    int xlu_cfg_get_long(const XLU_Config *cfg, const char *name, long *value, int dont_warn)
    int xlu_cfg_get_list(const XLU_Config *cfg, const char *name, XLU_ConfigList **items,
                         int *count, int dont_warn)
    int xlu_cfg_value_get_string(const XLU_Config *cfg, XLU_ConfigValue *value, char **text,
                                 int dont_warn)
    int xlu_cfg_value_get_list(const XLU_Config *cfg, XLU_ConfigValue *value,
                               XLU_ConfigList **items, int dont_warn)
    int xlu_disk_parse(XLU_Config *cfg, int count, const char *const *specs,
                       libxl_device_disk *disk)
    int xlu_vif_parse_rate(XLU_Config *cfg, const char *rate, libxl_device_nic *nic)

    # NULL behind the last
    XLU_ConfigValue *xlu_cfg_get_listitem2(const XLU_ConfigList *items, int entry)

    # cannot fail
    libxl_asyncop_how xenpm_how(xenpm_operation *operation)
    void libxl_childproc_setmode(libxl_ctx *ctx, const libxl_childproc_hooks *hooks, void *user)
    void libxl_domain_config_init(libxl_domain_config *config)
    void libxl_domain_config_dispose(libxl_domain_config *config)
    void libxl_device_pci_init(libxl_device_pci *pci)
    void libxl_device_pci_dispose(libxl_device_pci *pci)
    void libxl_device_disk_init(libxl_device_disk *disk)
    void libxl_device_disk_dispose(libxl_device_disk *disk)
    void libxl_device_nic_init(libxl_device_nic *nic)
    void libxl_device_nic_dispose(libxl_device_nic *nic)
    void libxl_rdm_reserve_init(libxl_rdm_reserve *rdm)
    void xenpm_pci_list_free(libxl_device_pci *items, int count)
    void xlu_cfg_destroy(XLU_Config *cfg)

    ctypedef struct XLU_Config:
        pass
    ctypedef struct XLU_ConfigList:
        pass
    ctypedef struct XLU_ConfigValue:
        pass
