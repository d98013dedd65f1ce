/* The driver that manual-map carries and maps by hand. It is linked as any
 * driver is (imports, base relocations, a data section) but no loader ever
 * sees it. Built by ../build.rs with mingw-w64. */
#include <ntddk.h>

static volatile LONG64 rounds;
/* A pointer in the image: wrong until its relocation is applied. */
static volatile LONG64 *volatile where = &rounds;

/* The entry point: first in .text, so at the beginning of a page. */
LONG64 NTAPI Run(ULONG times)
{
    while (times-- != 0)
        InterlockedIncrement64(where);
    DbgPrint("manual-map payload: %I64d rounds\n", *where);
    return rounds;
}
