/* What macOS's C library has by other names than Linux's, for code whose calls are the same on both. */
#define _GNU_SOURCE
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

int *__error(void) { return &errno; }
void __bzero(void *start, size_t size) { memset(start, 0, size); }
int __tolower(int c) { return tolower(c); }
int __toupper(int c) { return toupper(c); }

FILE *__stdinp, *__stdoutp, *__stderrp;

/* The classes of characters: <_ctype.h> and <runetype.h> of macOS. */
struct {
    char magic[8], encoding[32];
    void *functions[2];
    int invalid;
    unsigned classes[256];
} _DefaultRuneLocale;

_Static_assert(__builtin_offsetof(__typeof__(_DefaultRuneLocale), classes) == 60, "as in <runetype.h>");

int __maskrune(int c, unsigned long mask) {
    return c >= 0 && c < 256 ? (int)(_DefaultRuneLocale.classes[c] & mask) : 0;
}

__attribute__((constructor(101))) static void begin(void) {
    __stdinp = stdin, __stdoutp = stdout, __stderrp = stderr;
    for (int c = 0; c < 128; c++)
        _DefaultRuneLocale.classes[c] = (isalpha(c) ? 0x100 : 0) | (iscntrl(c) ? 0x200 : 0) | (isdigit(c) ? 0x400 : 0) |
                                        (isgraph(c) ? 0x800 : 0) | (islower(c) ? 0x1000 : 0) | (ispunct(c) ? 0x2000 : 0) |
                                        (isspace(c) ? 0x4000 : 0) | (isupper(c) ? 0x8000 : 0) | (isxdigit(c) ? 0x10000 : 0) |
                                        (isblank(c) ? 0x20000 : 0) | (isprint(c) ? 0x40000 : 0);
}
