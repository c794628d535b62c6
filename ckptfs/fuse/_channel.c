/*
 * The channel extension: the one thing about FUSE passthrough that pyfuse3 3.x on libfuse < 3.17 cannot
 * say, the reply to OPEN. (The ioctls that register a backing file need no C: device.py.)
 *
 * pyfuse3 calls fuse_reply_open() through the dynamic linker. This module defines a function of that name
 * and is loaded with RTLD_GLOBAL before pyfuse3, so the linker finds it first. For a handle that has a
 * backing id in the table below it answers OPEN itself, with FOPEN_PASSTHROUGH and the id; for every other
 * it calls the next definition, which is libfuse's. The counters show that it ran: where they stay at zero
 * (libfuse linked in statically, another order of loading) channel.py turns passthrough off and nothing
 * else changes.
 *
 * The table has a fixed size and never allocates. All functions run with the GIL held: pyfuse3 calls
 * fuse_reply_open() from its event loop, and never without the GIL.
 *
 * Why FOPEN_NOFLUSH, for all files: close() would otherwise send FLUSH and wait for the daemon, and so
 * would every fork and exec of a process that has files open here. Why not FOPEN_KEEP_CACHE with
 * passthrough: without it the kernel drops the pages that the mount's own cache still holds of the file,
 * so the bytes are in memory once, in the backing file's page cache.
 */
#define Py_LIMITED_API 0x030b0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* RTLD_NEXT */
#endif
#define FUSE_USE_VERSION 35
#define _FILE_OFFSET_BITS 64
#include <dlfcn.h>
#include <errno.h>
#include <stdint.h>
#include <string.h>

#include <fuse3/fuse_lowlevel.h>

#include "_splice.h"

/* linux/fuse.h of 6.9 and later; the headers of older systems lack these. */
#define CKPTFS_FOPEN_NOFLUSH (1u << 5)
#define CKPTFS_FOPEN_PASSTHROUGH (1u << 7)

struct open_out {
    uint64_t fh;
    uint32_t open_flags;
    int32_t backing_id;
};

_Static_assert(sizeof(struct open_out) == 16, "as in linux/fuse.h");

/* --- The table: handle -> backing id, open addressing with linear probing ------------------------------ */

#define SLOTS 131072u            /* a power of two; 2 MiB of zero pages, touched only where used */
#define LIMIT (SLOTS / 4u * 3u)  /* fuller than that, probing gets slow */

static struct {
    uint64_t handle;
    int32_t backing_id; /* 0: the slot is free; the kernel's ids start at 1 */
} table[SLOTS];

static uint32_t used;
static uint64_t answered; /* OPENs and OPENDIRs that came through here */
static uint64_t granted;  /* of these, answered with passthrough */

static uint32_t home(uint64_t handle) { return (uint32_t)((handle * 0x9E3779B97F4A7C15ull) >> 40) & (SLOTS - 1u); }

/* The handle's slot, or the free one where it would go. There is always a free one: used <= LIMIT < SLOTS. */
static uint32_t slot_of(uint64_t handle) {
    uint32_t at = home(handle);
    while (table[at].backing_id != 0 && table[at].handle != handle)
        at = (at + 1u) & (SLOTS - 1u);
    return at;
}

/* Free a slot and move up those behind it that would not be found across the gap. */
static void free_slot(uint32_t gap) {
    uint32_t at = gap;
    for (;;) {
        at = (at + 1u) & (SLOTS - 1u);
        if (table[at].backing_id == 0)
            break;
        /* May it stay? Only if its home lies after the gap (cyclically). */
        if (((at - home(table[at].handle)) & (SLOTS - 1u)) < ((at - gap) & (SLOTS - 1u)))
            continue;
        table[gap] = table[at];
        gap = at;
    }
    table[gap].backing_id = 0;
    used--;
}

/* --- What pyfuse3 finds instead of libfuse's ------------------------------------------------------------ */

typedef int (*reply_open)(fuse_req_t, const struct fuse_file_info *);

/* Of those with the name "fuse_reply_open" in the process, this one comes first. */
__attribute__((visibility("default"))) int fuse_reply_open(fuse_req_t req, const struct fuse_file_info *fi) {
    static reply_open next;
    struct fuse_file_info plain;
    uint32_t at;

    answered++;
    at = slot_of(fi->fh);
    if (table[at].backing_id != 0) {
        struct open_out out = {
            .fh = fi->fh,
            .open_flags = CKPTFS_FOPEN_PASSTHROUGH | CKPTFS_FOPEN_NOFLUSH,
            .backing_id = table[at].backing_id,
        };
        granted++;
        return fuse_reply_buf(req, (const char *)&out, sizeof out);
    }
    if (next == NULL)
        next = (reply_open)dlsym(RTLD_NEXT, "fuse_reply_open");
    if (next == NULL) /* cannot be: this module is linked with libfuse3 */
        return fuse_reply_err(req, ENOSYS);
    plain = *fi;
#if FUSE_VERSION >= FUSE_MAKE_VERSION(3, 11)
    plain.noflush = 1; /* pyfuse3 cannot set it */
#endif
    return next(req, &plain);
}

/* --- Python's face --------------------------------------------------------------------------------------- */

static PyObject *py_grant(PyObject *module, PyObject *args) {
    unsigned long long handle;
    int backing_id;
    uint32_t at;

    (void)module;
    if (!PyArg_ParseTuple(args, "Ki:grant", &handle, &backing_id))
        return NULL;
    if (backing_id <= 0) {
        PyErr_SetString(PyExc_ValueError, "a backing id is a positive number");
        return NULL;
    }
    at = slot_of(handle);
    if (table[at].backing_id == 0) {
        if (used >= LIMIT)
            Py_RETURN_FALSE;
        used++;
    }
    table[at].handle = handle;
    table[at].backing_id = backing_id;
    Py_RETURN_TRUE;
}

static PyObject *py_revoke(PyObject *module, PyObject *args) {
    unsigned long long handle;
    uint32_t at;

    (void)module;
    if (!PyArg_ParseTuple(args, "K:revoke", &handle))
        return NULL;
    at = slot_of(handle);
    if (table[at].backing_id == 0)
        Py_RETURN_FALSE;
    free_slot(at);
    Py_RETURN_TRUE;
}

static PyObject *py_clear(PyObject *module, PyObject *args) {
    (void)module;
    (void)args;
    memset(table, 0, sizeof table);
    used = 0;
    Py_RETURN_NONE;
}

static PyObject *py_statistics(PyObject *module, PyObject *args) {
    (void)module;
    (void)args;
    return Py_BuildValue("{s:K,s:K,s:I,s:I}", "answered", (unsigned long long)answered, "granted",
                         (unsigned long long)granted, "table_used", (unsigned int)used, "table_limit",
                         (unsigned int)LIMIT);
}

static PyObject *py_is_first(PyObject *module, PyObject *args) {
    void *found = dlsym(RTLD_DEFAULT, "fuse_reply_open");
    Dl_info whose, ours;

    (void)module;
    (void)args;
    /* By file, not by address: the linker may hand out the address of a stub. */
    if (found == NULL || !dladdr(found, &whose) || !dladdr((void *)table, &ours))
        Py_RETURN_FALSE;
    return PyBool_FromLong(whose.dli_fbase == ours.dli_fbase);
}

static PyMethodDef methods[] = {
    {"grant", py_grant, METH_VARARGS,
     "grant(handle, backing_id): answer OPENs of this handle with passthrough. False: the table is full."},
    {"revoke", py_revoke, METH_VARARGS, "revoke(handle): no longer. False: it was not in the table."},
    {"clear", py_clear, METH_NOARGS, "clear(): empty the table (a new connection)."},
    {"statistics", py_statistics, METH_NOARGS, "statistics(): answered, granted, table_used, table_limit."},
    {"is_first", py_is_first, METH_NOARGS,
     "is_first(): does the linker find this module's fuse_reply_open before all others?"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_channel",
    .m_doc = "What pyfuse3 cannot say: passthrough OPEN replies. See _channel.c.",
    .m_size = -1, /* the table is the process's, as pyfuse3's session is */
    .m_methods = methods,
};

PyMODINIT_FUNC PyInit__channel(void) {
    PyObject *module = PyModule_Create(&definition);
    if (module != NULL && PyModule_AddFunctions(module, ckptfs_reads_methods) < 0) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
