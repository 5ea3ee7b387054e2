"""The compiled layer: one extension module per C library, so that each works or fails by itself."""
