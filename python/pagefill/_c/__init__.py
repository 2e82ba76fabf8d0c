"""pagefill's C interface (include/pagefill/pagefill.h) through ctypes: what the faces are built on."""
