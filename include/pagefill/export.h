// What the shared library shows to the outside; everything else is hidden.
#ifndef PAGEFILL_EXPORT_H_
#define PAGEFILL_EXPORT_H_

#if defined(PAGEFILL_STATIC)
#define PAGEFILL_EXPORT
#else
#define PAGEFILL_EXPORT __attribute__((visibility("default")))
#endif

#endif  // PAGEFILL_EXPORT_H_
