/* What a program compiled with `kaleidoscope --emit obj` is linked with.

   It prints exactly what `kaleidoscope` does when it runs the program itself. The functions are weak:
   those that a program defines for itself take their place.

   runtime.ll, which `--emit llvm-ir` appends, is this file as clang compiles it:
   clang -O1 -fno-builtin -U__OPTIMIZE__ -fno-pic -S -emit-llvm, less attributes,
   metadata and the blank lines inside functions. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Prints a number and a newline; gives zero. */
__attribute__((weak)) double printd(double value) {
    if (value != value)
        puts("nan");
    else
        printf("%f\n", value);
    return 0.0;
}

/* Prints the character of a code, of which the lowest eight bits count; gives zero. */
__attribute__((weak)) double putchard(double value) {
    long long code = 0;
    if (value >= 9223372036854775808.0)
        code = 0x7fffffffffffffff;
    else if (value >= -9223372036854775808.0)
        code = (long long)value;
    putchar((unsigned char)code);
    return 0.0;
}

/* Adds one to the last digit of "d.ddd", with the carry; returns zero if that needs a digit more. */
static int next_up(char *mantissa) {
    for (size_t i = strlen(mantissa); i-- > 0;) {
        if (mantissa[i] == '.')
            continue;
        if (mantissa[i] != '9') {
            mantissa[i]++;
            return 1;
        }
        mantissa[i] = '0';
    }
    return 0;
}

/* The fewest digits of `value`, a positive finite number, that read back to it. */
static int shortest_digits(double value, char digits[20]) {
    int exponent = 0;
    for (int precision = 0; precision < 17; precision++) {
        char text[40];
        snprintf(text, sizeof text, "%.*e", precision, value);
        char *e = strchr(text, 'e');
        exponent = atoi(e + 1);
        if (strtod(text, NULL) != value) {
            /* Above a power of two the doubles are sparser: the next number up may be nearer than half a step. */
            char up[40];
            *e = '\0';
            if (!next_up(text))
                continue;
            snprintf(up, sizeof up, "%se%d", text, exponent);
            if (strtod(up, NULL) != value)
                continue;
        }
        char *digit = digits;
        for (const char *p = text; *p != '\0' && *p != 'e'; p++)
            if (*p != '.')
                *digit++ = *p;
        while (digit > digits + 1 && digit[-1] == '0')
            digit--;
        *digit = '\0';
        break;
    }
    return exponent;
}

/* Prints the value of a top-level expression: the shortest form that reads back to the same double. */
__attribute__((weak)) void kaleidoscope_print(double value) {
    unsigned long long bits;
    memcpy(&bits, &value, sizeof bits);
    if (value != value) {
        puts("nan");
        return;
    }
    if (bits >> 63) {
        putchar('-');
        value = -value;
    }
    if (value == 0.0 || value > 1.7976931348623157e308) {
        puts(value == 0.0 ? "0" : "inf");
        return;
    }
    char digits[20] = "";
    int exponent = shortest_digits(value, digits);
    int count = (int)strlen(digits);
    if (value >= 1e16 || value < 1e-4) {
        printf("%c%s%se%d\n", digits[0], count > 1 ? "." : "", digits + 1, exponent);
    } else if (exponent < 0) {
        printf("0.%.*s%s\n", -exponent - 1, "000", digits);
    } else if (count <= exponent + 1) {
        printf("%s%.*s\n", digits, exponent + 1 - count, "0000000000000000");
    } else {
        printf("%.*s.%s\n", exponent + 1, digits, digits + exponent + 1);
    }
}
