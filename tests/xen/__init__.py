"""Tests that run in dom0 of a lab host, against the real hypervisor and its guests."""
