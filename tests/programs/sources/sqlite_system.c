/* A system without files, for SQLite that is compiled for none (SQLITE_OS_OTHER). */
#include <string.h>
#include "sqlite3.h"

static int open_nothing(sqlite3_vfs *vfs, const char *name, sqlite3_file *file, int flags, int *out) {
    file->pMethods = NULL;
    return SQLITE_CANTOPEN;
}
static int delete_nothing(sqlite3_vfs *vfs, const char *name, int sync) { return SQLITE_IOERR_DELETE; }
static int access_nothing(sqlite3_vfs *vfs, const char *name, int flags, int *out) { return *out = 0; }
static int full_name(sqlite3_vfs *vfs, const char *name, int size, char *out) {
    if ((int)strlen(name) >= size) return SQLITE_CANTOPEN;
    strcpy(out, name);
    return SQLITE_OK;
}
static int randomness(sqlite3_vfs *vfs, int size, char *out) { memset(out, 7, size); return size; }
static int sleep_not(sqlite3_vfs *vfs, int microseconds) { return microseconds; }
static int now(sqlite3_vfs *vfs, double *days) { *days = 2460000.5; return SQLITE_OK; }
static int last_error(sqlite3_vfs *vfs, int size, char *out) { return 0; }

static sqlite3_vfs vfs = {
    .iVersion = 1, .szOsFile = sizeof(sqlite3_file), .mxPathname = 64, .zName = "none", .xOpen = open_nothing,
    .xDelete = delete_nothing, .xAccess = access_nothing, .xFullPathname = full_name, .xRandomness = randomness,
    .xSleep = sleep_not, .xCurrentTime = now, .xGetLastError = last_error,
};

int sqlite3_os_init(void) { return sqlite3_vfs_register(&vfs, 1); }
int sqlite3_os_end(void) { return SQLITE_OK; }
