/* What a process does to files under some folders: recorded, or made to fail. Loaded with LD_PRELOAD.
 *
 * FAULTS_UNDER   folders, separated by colons; everything else is left alone
 * FAULTS_LOG     file that records are appended to (see disk.py)
 * FAULTS_FAIL    KIND,N,ERRNO: the N-th operation of a kind and all after it fail; kinds: space, sync, rename, read
 * FAULTS_COUNT   file of shared counters, so that processes count together
 * FAULTS_CLOCK   MILLISECONDS,SECONDS: so long after the start the wall clock is set back by so much
 *
 * The variables are read when a process starts, and when faults_reload() is called.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum kind { SPACE, SYNC, RENAME, READ, KINDS };
static const char *const names[KINDS] = {"space", "sync", "rename", "read"};

static char under[4096];
static int log_fd = -1, fail_kind = -1, fail_errno;
static long fail_at;
static long clock_after, clock_back, began;
static long own_counts[KINDS], *counts = own_counts;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

void faults_mark(int number);

static long now(void) {
    struct timespec time;
    syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000 + time.tv_nsec / 1000000;
}

__attribute__((constructor)) void faults_reload(void) {
    const char *value = getenv("FAULTS_UNDER");
    snprintf(under, sizeof under, "%s", value ? value : "");
    if (log_fd >= 0) syscall(SYS_close, log_fd);
    value = getenv("FAULTS_LOG");
    log_fd = value ? (int)syscall(SYS_openat, AT_FDCWD, value, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644) : -1;
    if (log_fd >= 0) {  /* out of the way of programs that count on low numbers */
        int high = fcntl(log_fd, F_DUPFD_CLOEXEC, 900);
        if (high >= 0) { syscall(SYS_close, log_fd); log_fd = high; }
    }
    fail_kind = -1;
    value = getenv("FAULTS_FAIL");
    char kind[16];
    if (value && sscanf(value, "%15[a-z],%ld,%d", kind, &fail_at, &fail_errno) == 3)
        for (int each = 0; each < KINDS; each++)
            if (!strcmp(kind, names[each])) fail_kind = each;
    clock_back = 0;
    value = getenv("FAULTS_CLOCK");
    if (value) sscanf(value, "%ld,%ld", &clock_after, &clock_back);
    began = now();
    value = getenv("FAULTS_COUNT");
    counts = own_counts;
    memset(own_counts, 0, sizeof own_counts);
    int fd = value ? (int)syscall(SYS_openat, AT_FDCWD, value, O_RDWR | O_CREAT | O_CLOEXEC, 0644) : -1;
    if (fd >= 0) {
        syscall(SYS_ftruncate, fd, sizeof own_counts);
        void *shared = mmap(NULL, sizeof own_counts, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (shared != MAP_FAILED) counts = shared;
        syscall(SYS_close, fd);
    }
}

static int is_under(const char *path) {
    for (const char *at = under; *at;) {
        size_t length = strcspn(at, ":");
        if (!strncmp(path, at, length) && (path[length] == '/' || path[length] == 0)) return 1;
        at += length + (at[length] == ':');
    }
    return 0;
}

/* The absolute path of a name, not of what it may point to; whether it is ours. */
static int at_path(int folder, const char *name, char *path) {
    char base[PATH_MAX];
    if (!*under || !name) return 0;
    if (name[0] == '/') {
        snprintf(path, PATH_MAX, "%s", name);
        return is_under(path);
    }
    if (folder == AT_FDCWD) {
        if (!getcwd(base, sizeof base)) return 0;
    } else {
        char link[64];
        snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
        ssize_t length = readlink(link, base, sizeof base - 1);
        if (length < 0) return 0;
        base[length] = 0;
    }
    if (snprintf(path, PATH_MAX, "%s/%s", base, name) >= PATH_MAX) return 0;
    return is_under(path);
}

static int fd_path(int fd, char *path) {
    char link[64];
    if (!*under) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return is_under(path);
}

/* Counts an operation of ours; -1 with errno where it is to fail. */
static int count(enum kind kind) {
    long number = __atomic_add_fetch(&counts[kind], 1, __ATOMIC_SEQ_CST);
    if ((int)kind == fail_kind && number >= fail_at) {
        errno = fail_errno;
        return -1;
    }
    return 0;
}

static void note(char what, uint64_t inode, uint64_t offset, const char *one, const char *two, const void *data,
                 uint64_t size) {
    if (log_fd < 0) return;
    int before = errno;
    struct __attribute__((packed)) {
        char what;
        uint64_t inode, offset;
        uint32_t one, two;
        uint64_t size;
    } head = {what, inode, offset, one ? (uint32_t)strlen(one) : 0, two ? (uint32_t)strlen(two) : 0, size};
    struct iovec parts[] = {{&head, sizeof head}, {(void *)one, head.one}, {(void *)two, head.two}, {(void *)data, size}};
    if (syscall(SYS_writev, log_fd, parts, 4) < 0) abort();
    errno = before;
}

void faults_mark(int number) { note('M', number, 0, NULL, NULL, NULL, 0); }

static uint64_t inode_of(int fd) {
    struct stat found;
    return fstat(fd, &found) ? 0 : found.st_ino;
}

static int opened(int folder, const char *name, int flags, mode_t mode) {
    char path[PATH_MAX];
    int ours = at_path(folder, name, path), there = 0;
    if (ours && (flags & (O_CREAT | O_TRUNC)) && (flags & O_TMPFILE) != O_TMPFILE) {
        there = !syscall(SYS_faccessat, AT_FDCWD, path, F_OK);
        if (!there && (flags & O_CREAT) && count(SPACE)) return -1;
    }
    if (ours && (flags & O_ACCMODE) != O_RDONLY && fail_kind == SPACE && fail_errno == EROFS && count(SPACE)) return -1;
    int fd = (int)syscall(SYS_openat, folder, name, flags, mode);
    if (fd >= 0 && ours) {
        if ((flags & O_CREAT) && !there) note('C', inode_of(fd), 0, path, NULL, NULL, 0);
        else if ((flags & O_TRUNC) && there) note('T', inode_of(fd), 0, NULL, NULL, NULL, 0);
    }
    return fd;
}

#define MODE mode_t mode = 0; if (flags & (O_CREAT | O_TMPFILE)) { va_list rest; va_start(rest, flags); mode = va_arg(rest, mode_t); va_end(rest); }
int open(const char *name, int flags, ...) { MODE return opened(AT_FDCWD, name, flags, mode); }
int open64(const char *name, int flags, ...) { MODE return opened(AT_FDCWD, name, flags, mode); }
int openat(int folder, const char *name, int flags, ...) { MODE return opened(folder, name, flags, mode); }
int openat64(int folder, const char *name, int flags, ...) { MODE return opened(folder, name, flags, mode); }
int creat(const char *name, mode_t mode) { return opened(AT_FDCWD, name, O_CREAT | O_WRONLY | O_TRUNC, mode); }

FILE *fopen(const char *name, const char *mode) {
    char path[PATH_MAX];
    int ours = at_path(AT_FDCWD, name, path), there = ours && !access(path, F_OK);
    if (ours && strpbrk(mode, "wa+") && count(SPACE)) return NULL;
    FILE *file = REAL(fopen)(name, mode);
    if (file && ours && strpbrk(mode, "wa")) {
        if (!there) note('C', inode_of(fileno(file)), 0, path, NULL, NULL, 0);
        else if (strchr(mode, 'w')) note('T', inode_of(fileno(file)), 0, NULL, NULL, NULL, 0);
    }
    return file;
}
FILE *fopen64(const char *name, const char *mode) { return fopen(name, mode); }

/* Where the next write of a descriptor goes. */
static off_t place(int fd) {
    int flags = fcntl(fd, F_GETFL);
    struct stat found;
    if (flags >= 0 && (flags & O_APPEND) && !fstat(fd, &found)) return found.st_size;
    return lseek(fd, 0, SEEK_CUR);
}

static void wrote(int fd, off_t offset, const void *data, ssize_t size) {
    if (size > 0) note('W', inode_of(fd), offset, NULL, NULL, data, size);
}

static void wrote_unseen(int fd, off_t offset, ssize_t size) {
    if (size <= 0 || log_fd < 0) return;
    char link[64], *data = malloc(size);
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    int again = (int)syscall(SYS_openat, AT_FDCWD, link, O_RDONLY | O_CLOEXEC);
    if (!data || syscall(SYS_pread64, again, data, size, offset) != size) abort();
    syscall(SYS_close, again);
    wrote(fd, offset, data, size);
    free(data);
}

#define WRITING(fd) char path[PATH_MAX]; int ours = fd_path(fd, path); if (ours && count(SPACE)) return -1;
ssize_t write(int fd, const void *data, size_t size) {
    WRITING(fd)
    off_t at = ours ? place(fd) : 0;
    ssize_t done = syscall(SYS_write, fd, data, size);
    if (ours) wrote(fd, at, data, done);
    return done;
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
    WRITING(fd)
    ssize_t done = syscall(SYS_pwrite64, fd, data, size, at);
    if (ours) wrote(fd, at, data, done);
    return done;
}
ssize_t pwrite64(int fd, const void *data, size_t size, off_t at) { return pwrite(fd, data, size, at); }
ssize_t writev(int fd, const struct iovec *parts, int number) {
    WRITING(fd)
    off_t at = ours ? place(fd) : 0;
    ssize_t done = syscall(SYS_writev, fd, parts, number);
    if (ours) wrote_unseen(fd, at, done);
    return done;
}
ssize_t sendfile(int out, int in, off_t *offset, size_t size) {
    WRITING(out)
    off_t at = ours ? place(out) : 0;
    ssize_t done = syscall(SYS_sendfile, out, in, offset, size);
    if (ours) wrote_unseen(out, at, done);
    return done;
}
ssize_t sendfile64(int out, int in, off_t *offset, size_t size) { return sendfile(out, in, offset, size); }
ssize_t copy_file_range(int in, off_t *from, int out, off_t *to, size_t size, unsigned flags) {
    WRITING(out)
    off_t at = ours ? (to ? *to : place(out)) : 0;
    ssize_t done = syscall(SYS_copy_file_range, in, from, out, to, size, flags);
    if (ours) wrote_unseen(out, at, done);
    return done;
}
int ftruncate(int fd, off_t size) {
    WRITING(fd)
    int done = (int)syscall(SYS_ftruncate, fd, size);
    if (ours && !done) note('T', inode_of(fd), size, NULL, NULL, NULL, 0);
    return done;
}
int ftruncate64(int fd, off_t size) { return ftruncate(fd, size); }
int posix_fallocate(int fd, off_t offset, off_t size) {
    char path[PATH_MAX];
    if (fd_path(fd, path) && count(SPACE)) return errno;
    return REAL(posix_fallocate)(fd, offset, size);
}
int posix_fallocate64(int fd, off_t offset, off_t size) { return posix_fallocate(fd, offset, size); }

/* Pages of a mapped file that is written to are taken when it is mapped: where the disk is full, that is refused. */
void *mmap64(void *where, size_t size, int protection, int flags, int fd, off_t offset) {
    char path[PATH_MAX];
    if (fd >= 0 && (flags & MAP_SHARED) && (protection & PROT_WRITE) && fd_path(fd, path) && count(SPACE))
        return MAP_FAILED;
    if (fd >= 0 && !(flags & MAP_ANONYMOUS) && fd_path(fd, path) && count(READ)) return MAP_FAILED;
    return (void *)syscall(SYS_mmap, where, size, protection, flags, fd, offset);
}
void *mmap(void *where, size_t size, int protection, int flags, int fd, off_t offset) {
    return mmap64(where, size, protection, flags, fd, offset);
}

static int synced(int fd, long call) {
    char path[PATH_MAX];
    int ours = fd_path(fd, path);
    if (ours && count(SYNC)) return -1;
    int done = (int)syscall(call, fd);
    if (ours && !done) note('S', inode_of(fd), 0, NULL, NULL, NULL, 0);
    return done;
}
int fsync(int fd) { return synced(fd, SYS_fsync); }
int fdatasync(int fd) { return synced(fd, SYS_fdatasync); }

static int renamed(int from, const char *old, int to, const char *new, unsigned flags) {
    char one[PATH_MAX], two[PATH_MAX];
    int ours = at_path(to, new, two) | at_path(from, old, one);
    if (ours && count(RENAME)) return -1;
    if (ours && fail_kind == SPACE && fail_errno == EROFS && count(SPACE)) return -1;
    int done = (int)syscall(SYS_renameat2, from, old, to, new, flags);
    if (ours && !done) note(flags & RENAME_EXCHANGE ? 'X' : 'R', 0, 0, one, two, NULL, 0);
    return done;
}
int rename(const char *old, const char *new) { return renamed(AT_FDCWD, old, AT_FDCWD, new, 0); }
int renameat(int from, const char *old, int to, const char *new) { return renamed(from, old, to, new, 0); }
int renameat2(int from, const char *old, int to, const char *new, unsigned flags) {
    return renamed(from, old, to, new, flags);
}
int linkat(int from, const char *old, int to, const char *new, int flags) {
    char one[PATH_MAX], two[PATH_MAX];
    at_path(from, old, one);
    int ours = at_path(to, new, two);
    if (ours && count(SPACE)) return -1;
    int done = (int)syscall(SYS_linkat, from, old, to, new, flags);
    if (ours && !done) note('L', 0, 0, one, two, NULL, 0);
    return done;
}
int link(const char *old, const char *new) { return linkat(AT_FDCWD, old, AT_FDCWD, new, 0); }
int mkdirat(int folder, const char *name, mode_t mode) {
    char path[PATH_MAX];
    int ours = at_path(folder, name, path);
    if (ours && syscall(SYS_faccessat, AT_FDCWD, path, F_OK) && count(SPACE)) return -1;
    int done = (int)syscall(SYS_mkdirat, folder, name, mode);
    struct stat found;
    if (ours && !done && !lstat(path, &found)) note('D', found.st_ino, 0, path, NULL, NULL, 0);
    return done;
}
int mkdir(const char *name, mode_t mode) { return mkdirat(AT_FDCWD, name, mode); }
int unlinkat(int folder, const char *name, int flags) {
    char path[PATH_MAX];
    int ours = at_path(folder, name, path);
    if (ours && fail_kind == SPACE && fail_errno == EROFS && count(SPACE)) return -1;
    int done = (int)syscall(SYS_unlinkat, folder, name, flags);
    if (ours && !done) note('U', 0, 0, path, NULL, NULL, 0);
    return done;
}
int unlink(const char *name) { return unlinkat(AT_FDCWD, name, 0); }
int rmdir(const char *name) { return unlinkat(AT_FDCWD, name, AT_REMOVEDIR); }
int remove(const char *name) {
    struct stat found;
    return unlinkat(AT_FDCWD, name, !lstat(name, &found) && S_ISDIR(found.st_mode) ? AT_REMOVEDIR : 0);
}

#define READING(fd) char path[PATH_MAX]; if (fd_path(fd, path) && count(READ)) return -1;
ssize_t read(int fd, void *data, size_t size) { READING(fd) return syscall(SYS_read, fd, data, size); }
ssize_t pread(int fd, void *data, size_t size, off_t at) { READING(fd) return syscall(SYS_pread64, fd, data, size, at); }
ssize_t pread64(int fd, void *data, size_t size, off_t at) { return pread(fd, data, size, at); }
ssize_t readv(int fd, const struct iovec *parts, int number) {
    READING(fd)
    return syscall(SYS_readv, fd, parts, number);
}

static long set_back(void) { return clock_back && now() - began > clock_after ? clock_back : 0; }
int clock_gettime(clockid_t clock, struct timespec *time) {
    int done = (int)syscall(SYS_clock_gettime, clock, time);
    if (!done && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) time->tv_sec -= set_back();
    return done;
}
int gettimeofday(struct timeval *restrict time, void *restrict zone) {
    int done = (int)syscall(SYS_gettimeofday, time, zone);
    if (!done) time->tv_sec -= set_back();
    return done;
}
time_t time(time_t *where) {
    struct timespec found;
    clock_gettime(CLOCK_REALTIME, &found);
    if (where) *where = found.tv_sec;
    return found.tv_sec;
}
