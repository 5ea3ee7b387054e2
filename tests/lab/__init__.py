"""A real Xen host, booted in QEMU's plain emulation, for tests that need one."""
