/* Compresses and restores buffers of several kinds at several levels. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "zlib.h"

int main(void) {
    enum { SIZE = 200000 };
    unsigned char *plain = malloc(SIZE), *back = malloc(SIZE), *packed = malloc(compressBound(SIZE));
    unsigned state = 1;
    for (int kind = 0; kind < 3; kind++) {
        for (int i = 0; i < SIZE; i++) {
            state = state * 1103515245 + 12345;
            plain[i] = kind == 0 ? 'a' : kind == 1 ? "the quick brown fox "[i % 20] ^ (state >> 30) : state >> 16;
        }
        for (int level = 0; level <= 9; level += 3) {
            uLongf packed_size = compressBound(SIZE), back_size = SIZE;
            if (compress2(packed, &packed_size, plain, SIZE, level) != Z_OK) return 1;
            if (uncompress(back, &back_size, packed, packed_size) != Z_OK) return 2;
            if (back_size != SIZE || memcmp(plain, back, SIZE)) return 3;
            printf("kind %d level %d: %lu bytes, crc %08lx, adler %08lx\n", kind, level, packed_size,
                   crc32(0, packed, packed_size), adler32(1, plain, SIZE));
        }
    }
    printf("zlib %s\n", zlibVersion());
    return 0;
}
