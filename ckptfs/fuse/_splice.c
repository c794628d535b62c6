/*
 * The other half of the extension: READs of bytes that are in the page cache, answered before Python hears of them.
 *
 * pyfuse3 calls fuse_session_receive_buf() through the dynamic linker. This module defines a function of
 * that name and is found first, as that of _channel.c is (which see; one library, because the linker looks
 * into libfuse before it looks into a second one). It receives a request with libfuse's own function, and if that is a READ of a file that was put into the table below,
 * and all its bytes are in the page cache of the blobs, it answers by itself: header and pages go into a
 * pipe and from there to /dev/fuse by splice(2). So there is no Python, and one copy less: the kernel
 * copies from the blob's pages to those of the mount. Then it looks for the next request, for BURST_NS at
 * most: the event loop must get its turn. Whatever is not such a READ is handed up as if nothing had been
 * here; after a burst that ended otherwise pyfuse3 is told EINTR, on which it asks again.
 *
 * The loop must not wait for a disk. mincore(2) says which pages of a mapping are in the page cache and
 * up to date; the mapping is made for that question alone and never touched. A page that is dropped between
 * the question and the splice is read from the disk then, with the loop waiting for it: microseconds lie
 * between the two, and it was in use. (preadv2 with RWF_NOWAIT asks without that gap, but copies;
 * cachestat(2) counts pages that are still being read.)
 *
 * Everything here runs in the event loop's thread with the GIL held, as pyfuse3's own reads and replies do.
 */
#define Py_LIMITED_API 0x030b0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* RTLD_NEXT, splice, mincore */
#endif
#define FUSE_USE_VERSION 35
#define _FILE_OFFSET_BITS 64
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <fuse3/fuse_lowlevel.h>

#include "_splice.h"

/* As in linux/fuse.h (protocol 7.45); none of this has changed since 7.9, where READ got its last fields. */
#define OPCODE_READ 15u
struct in_header {
    uint32_t len, opcode;
    uint64_t unique, nodeid;
    uint32_t uid, gid, pid;
    uint16_t total_extlen, padding;
};
struct read_in {
    uint64_t fh, offset;
    uint32_t size, read_flags;
    uint64_t lock_owner;
    uint32_t flags, padding;
};
struct out_header {
    uint32_t len;
    int32_t error;
    uint64_t unique;
};
_Static_assert(sizeof(struct in_header) == 40 && sizeof(struct read_in) == 40, "as in linux/fuse.h");
_Static_assert(sizeof(struct out_header) == 16, "as in linux/fuse.h");

#define PAGE 4096u
#define BURST_NS 1000000 /* how long other tasks of the loop may have to wait: a few requests of 1 MiB */
#define PIECES 8u        /* extents of one request */
#define MOST_PAGES 1024u /* of one request */

/* --- The table: handle -> where the bytes of the file lie ----------------------------------------------- */

struct blob {
    int fd; /* the caller's, who keeps it open until drop() */
    uint64_t size;
    unsigned char *map;
};

/* A run of the file's bytes, up to the next extent's start. NOWHERE: no blob has them. */
struct extent {
    uint64_t start, blob, offset;
};
#define NOWHERE UINT64_MAX

struct file {
    struct file *next;
    uint64_t handle, size;
    size_t extents, blobs;
    struct extent *extent;
    struct blob *blob;
};

#define BUCKETS 1024u /* a power of two; how many files are kept is the caller's to bound */
static struct file *bucket[BUCKETS];
static size_t kept;

static uint64_t answered, answered_bytes, handed_up;

static struct file **find(uint64_t handle) {
    struct file **at = &bucket[(handle * 0x9E3779B97F4A7C15ull) >> 54];
    while (*at != NULL && (*at)->handle != handle)
        at = &(*at)->next;
    return at;
}

static void discard(struct file *file) {
    for (size_t i = 0; i < file->blobs; i++)
        if (file->blob[i].map != NULL)
            munmap(file->blob[i].map, file->blob[i].size);
    free(file->blob);
    free(file->extent);
    free(file);
}

static void drop(struct file **at) {
    struct file *file = *at;
    *at = file->next;
    kept--;
    discard(file);
}

/* --- The pipe ------------------------------------------------------------------------------------------- */

static int pipe_ends[2] = {-1, -1};
static unsigned int pipe_pages;

static void close_pipe(void) {
    if (pipe_ends[0] >= 0) {
        close(pipe_ends[0]);
        close(pipe_ends[1]);
    }
    pipe_ends[0] = pipe_ends[1] = -1;
    pipe_pages = 0;
}

static int open_pipe(void) {
    int bytes;

    if (pipe_ends[0] >= 0)
        return 1;
    if (pipe2(pipe_ends, O_CLOEXEC | O_NONBLOCK) < 0) {
        pipe_ends[0] = pipe_ends[1] = -1;
        return 0;
    }
    /* More than fs.pipe-max-size (1 MiB) needs CAP_SYS_RESOURCE. Requests are made to fit into that. */
    if (fcntl(pipe_ends[1], F_SETPIPE_SZ, (int)(2 * MOST_PAGES * PAGE)) < 0)
        fcntl(pipe_ends[1], F_SETPIPE_SZ, 256 * (int)PAGE);
    bytes = fcntl(pipe_ends[1], F_GETPIPE_SZ);
    pipe_pages = bytes > 0 ? (unsigned int)bytes / PAGE : 0;
    return 1;
}

/* --- A READ --------------------------------------------------------------------------------------------- */

struct piece {
    const struct blob *blob;
    uint64_t offset, length;
};

/* The pieces of a range of the file; 0 when there are too many, or bytes that no blob has. */
static unsigned int cut(const struct file *file, uint64_t offset, uint64_t length, struct piece *piece) {
    size_t low = 0, high = file->extents;
    unsigned int count = 0;

    while (high - low > 1) { /* the last extent that does not start after offset */
        size_t middle = low + (high - low) / 2;
        if (file->extent[middle].start <= offset)
            low = middle;
        else
            high = middle;
    }
    for (; length > 0; low++) {
        const struct extent *extent = &file->extent[low];
        uint64_t end = low + 1 < file->extents ? file->extent[low + 1].start : file->size;
        uint64_t run = end - offset < length ? end - offset : length;
        if (extent->blob == NOWHERE || count == PIECES)
            return 0;
        piece[count].blob = &file->blob[extent->blob];
        piece[count].offset = extent->offset + (offset - extent->start);
        piece[count].length = run;
        if (piece[count].offset + run > piece[count].blob->size)
            return 0;
        count++;
        offset += run;
        length -= run;
    }
    return count;
}

static unsigned int pages_of(const struct piece *piece) {
    return (unsigned int)((piece->offset + piece->length - 1) / PAGE - piece->offset / PAGE + 1);
}

static int is_resident(const struct piece *piece) {
    static unsigned char in_core[MOST_PAGES + PIECES];
    uint64_t first = piece->offset / PAGE * PAGE;
    unsigned int pages = pages_of(piece);

    if (mincore(piece->blob->map + first, (size_t)(piece->offset + piece->length - first), in_core) < 0)
        return 0;
    for (unsigned int i = 0; i < pages; i++)
        if (!(in_core[i] & 1))
            return 0;
    return 1;
}

/* 1: the request is answered, or gone. 0: somebody else has to. */
static int answer(int device, const struct in_header *head, const struct read_in *in) {
    struct file *file = *find(in->fh);
    struct piece piece[PIECES];
    struct out_header out = {.error = 0, .unique = head->unique};
    unsigned int count, pages = 1; /* the header's */
    uint64_t length;
    int gone;

    if (file == NULL || in->offset >= file->size)
        return 0;
    length = in->size < file->size - in->offset ? in->size : file->size - in->offset;
    count = cut(file, in->offset, length, piece);
    if (count == 0 || !open_pipe())
        return 0;
    for (unsigned int i = 0; i < count; i++)
        pages += pages_of(&piece[i]);
    if (pages > pipe_pages || pages > MOST_PAGES)
        return 0;
    for (unsigned int i = 0; i < count; i++)
        if (!is_resident(&piece[i]))
            return 0;

    out.len = (uint32_t)(sizeof out + length);
    if (write(pipe_ends[1], &out, sizeof out) != (ssize_t)sizeof out) {
        close_pipe();
        return 0;
    }
    for (unsigned int i = 0; i < count; i++) {
        loff_t at = (loff_t)piece[i].offset;
        uint64_t left = piece[i].length;
        while (left > 0) {
            ssize_t got = splice(piece[i].blob->fd, &at, pipe_ends[1], NULL, left, SPLICE_F_NONBLOCK);
            if (got <= 0) { /* a blob that was cut short, say; whoever reads it next will say so */
                close_pipe();
                return 0;
            }
            left -= (uint64_t)got;
        }
    }
    if (splice(pipe_ends[0], NULL, device, NULL, out.len, 0) == (ssize_t)out.len) {
        answered++;
        answered_bytes += length;
        return 1;
    }
    gone = errno == ENOENT; /* its process was killed meanwhile */
    close_pipe();
    return gone;
}

/* --- What pyfuse3 finds instead of libfuse's ------------------------------------------------------------ */

typedef int (*receive_buf)(struct fuse_session *, struct fuse_buf *);

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static uint64_t received; /* requests that came through here */

/* Of those with the name "fuse_session_receive_buf" in the process, this one comes first. */
__attribute__((visibility("default"))) int fuse_session_receive_buf(struct fuse_session *session,
                                                                    struct fuse_buf *buf) {
    static receive_buf next;
    int device = fuse_session_fd(session);
    int64_t end = 0;

    if (next == NULL)
        next = (receive_buf)dlsym(RTLD_NEXT, "fuse_session_receive_buf");
    if (next == NULL) /* cannot be: this module is linked with libfuse3 */
        return -ENOSYS;
    for (;;) {
        int got = next(session, buf);
        const struct in_header *head = buf->mem;
        struct pollfd waits = {.fd = device, .events = POLLIN};

        received++;
        if (got < (int)(sizeof *head + sizeof(struct read_in)) || (buf->flags & FUSE_BUF_IS_FD) || kept == 0 ||
            head->opcode != OPCODE_READ)
            return got;
        if (!answer(device, head, (const struct read_in *)(head + 1))) {
            handed_up++;
            return got;
        }
        if (end == 0)
            end = now_ns() + BURST_NS;
        else if (now_ns() > end)
            return -EINTR;
        if (poll(&waits, 1, 0) != 1 || waits.revents != POLLIN)
            return -EINTR;
    }
}

/* --- Python's face --------------------------------------------------------------------------------------- */

/* Map the blobs; 0 when one of them cannot be asked what is in the page cache. */
static int look_at(struct file *file, const int64_t *fds) {
    for (size_t i = 0; i < file->blobs; i++) {
        struct blob *blob = &file->blob[i];
        struct stat status;
        void *map;

        blob->fd = (int)fds[i];
        if (fstat(blob->fd, &status) < 0 || status.st_size <= 0)
            return 0;
        /* Of others' files mincore says that all is there: who asks could learn what they read. */
        if (geteuid() != 0 && geteuid() != status.st_uid)
            return 0;
        blob->size = (uint64_t)status.st_size;
        map = mmap(NULL, blob->size, PROT_READ, MAP_SHARED, blob->fd, 0);
        if (map == MAP_FAILED)
            return 0;
        blob->map = map;
    }
    return 1;
}

static PyObject *py_keep(PyObject *module, PyObject *args) {
    unsigned long long handle, size;
    const char *extents, *fds;
    Py_ssize_t extents_bytes, fds_bytes;
    struct file *file, **at;

    (void)module;
    if (!PyArg_ParseTuple(args, "KKy#y#:reads_keep", &handle, &size, &extents, &extents_bytes, &fds, &fds_bytes))
        return NULL;
    if (extents_bytes <= 0 || extents_bytes % (Py_ssize_t)sizeof(struct extent) != 0 ||
        fds_bytes % (Py_ssize_t)sizeof(int64_t) != 0) {
        PyErr_SetString(PyExc_ValueError, "extents of 24 bytes and descriptors of 8 are wanted");
        return NULL;
    }
    at = find(handle);
    if (*at != NULL) {
        PyErr_SetString(PyExc_ValueError, "the handle is in the table");
        return NULL;
    }
    file = calloc(1, sizeof *file);
    if (file == NULL)
        return PyErr_NoMemory();
    file->handle = handle;
    file->size = size;
    file->extents = (size_t)extents_bytes / sizeof(struct extent);
    file->blobs = (size_t)fds_bytes / sizeof(int64_t);
    file->extent = malloc((size_t)extents_bytes);
    file->blob = calloc(file->blobs + 1, sizeof(struct blob));
    if (file->extent == NULL || file->blob == NULL) {
        discard(file);
        return PyErr_NoMemory();
    }
    memcpy(file->extent, extents, (size_t)extents_bytes);
    for (size_t i = 0; i < file->extents; i++) {
        uint64_t before = i ? file->extent[i - 1].start : 0;
        if ((i ? file->extent[i].start <= before : file->extent[i].start != 0) || file->extent[i].start >= size ||
            (file->extent[i].blob != NOWHERE && file->extent[i].blob >= file->blobs)) {
            discard(file);
            PyErr_SetString(PyExc_ValueError, "extents begin at 0, rise, and are of blobs that are given");
            return NULL;
        }
    }
    if (!look_at(file, (const int64_t *)(const void *)fds)) {
        discard(file);
        Py_RETURN_FALSE;
    }
    *at = file; /* the end of its chain */
    kept++;
    Py_RETURN_TRUE;
}

static PyObject *py_drop(PyObject *module, PyObject *args) {
    unsigned long long handle;
    struct file **at;

    (void)module;
    if (!PyArg_ParseTuple(args, "K:reads_drop", &handle))
        return NULL;
    at = find(handle);
    if (*at == NULL)
        Py_RETURN_FALSE;
    drop(at);
    Py_RETURN_TRUE;
}

static PyObject *py_clear(PyObject *module, PyObject *args) {
    (void)module;
    (void)args;
    for (size_t i = 0; i < BUCKETS; i++)
        while (bucket[i] != NULL)
            drop(&bucket[i]);
    close_pipe();
    Py_RETURN_NONE;
}

static PyObject *py_statistics(PyObject *module, PyObject *args) {
    (void)module;
    (void)args;
    return Py_BuildValue("{s:K,s:K,s:K,s:K,s:n}", "received", (unsigned long long)received, "answered",
                         (unsigned long long)answered, "answered_bytes", (unsigned long long)answered_bytes,
                         "handed_up", (unsigned long long)handed_up, "kept", (Py_ssize_t)kept);
}

PyMethodDef ckptfs_reads_methods[] = {
    {"reads_keep", py_keep, METH_VARARGS,
     "reads_keep(handle, size, extents, fds): answer READs of this handle. extents: native uint64 triples (start, index "
     "into fds or 2**64-1, offset); fds: native int64, to be kept open until drop(). False: these cannot be read so."},
    {"reads_drop", py_drop, METH_VARARGS, "reads_drop(handle): no longer. False: it was not in the table."},
    {"reads_clear", py_clear, METH_NOARGS, "reads_clear(): empty the table (a new connection)."},
    {"reads_statistics", py_statistics, METH_NOARGS, "reads_statistics(): received, answered, answered_bytes, handed_up, kept."},
    {NULL, NULL, 0, NULL},
};
