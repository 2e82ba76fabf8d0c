"""pagefill's C interface (include/pagefill/pagefill.h) through ctypes, for all faces."""
