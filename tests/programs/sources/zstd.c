/* Compresses and restores buffers of several kinds at several levels. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "zstd.h"

int main(void) {
    enum { SIZE = 300000 };
    size_t room = ZSTD_compressBound(SIZE);
    unsigned char *plain = malloc(SIZE), *back = malloc(SIZE), *packed = malloc(room);
    unsigned state = 1;
    for (int kind = 0; kind < 3; kind++) {
        for (int i = 0; i < SIZE; i++) {
            state = state * 1103515245 + 12345;
            plain[i] = kind == 0 ? 'a' : kind == 1 ? "the quick brown fox "[i % 20] ^ (state >> 30) : state >> 16;
        }
        for (int level = 1; level <= 19; level += 6) {
            size_t size = ZSTD_compress(packed, room, plain, SIZE, level);
            if (ZSTD_isError(size)) return 1;
            unsigned sum = 0;
            for (size_t i = 0; i < size; i++) sum = sum * 31 + packed[i];
            if (ZSTD_decompress(back, SIZE, packed, size) != SIZE || memcmp(plain, back, SIZE)) return 2;
            printf("kind %d level %d: %zu bytes, sum %08x\n", kind, level, size, sum);
        }
    }
    printf("zstd %s\n", ZSTD_versionString());
    return 0;
}
