/* Apple's arm64 passes variadic arguments on the stack, Linux in registers as well. These functions take them from
   there: a list whose registers are used up (AAPCS64, "The va_list type"). */
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>

typedef struct {
    void *stack, *general_top, *vector_top;
    int general_offset, vector_offset;
} list;

static va_list on_stack(void *arguments) {
    union {
        list list;
        va_list arguments;
    } all = {.list = {.stack = arguments}};
    return all.arguments;
}

/* A function that its name's own code leads to, with the stack as the argument behind the named ones. */
#define FROM_STACK(name, register)                                                                                     \
    __asm__(".globl " #name "\n.type " #name ", %function\n" #name ": mov " #register ", sp\n b from_stack_" #name)

FROM_STACK(printf, x1);
FROM_STACK(fprintf, x2);
FROM_STACK(sprintf, x2);
FROM_STACK(snprintf, x3);
FROM_STACK(open, x2);

int from_stack_printf(const char *format, void *arguments) { return vprintf(format, on_stack(arguments)); }
int from_stack_fprintf(FILE *file, const char *format, void *arguments) {
    return vfprintf(file, format, on_stack(arguments));
}
int from_stack_sprintf(char *text, const char *format, void *arguments) {
    return vsprintf(text, format, on_stack(arguments));
}
int from_stack_snprintf(char *text, size_t size, const char *format, void *arguments) {
    return vsnprintf(text, size, format, on_stack(arguments));
}
int from_stack_open(const char *path, int flags, int *mode) { return openat(AT_FDCWD, path, flags, *mode); }
