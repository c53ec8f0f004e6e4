/*
 * What pyfuse3 lacks, added beside it (coherence.md 5): the Python module matrixfs.fuse._libfuse.
 *
 * This module defines fuse_session_new, fuse_session_receive_buf, fuse_session_process_buf and fuse_session_destroy.
 * Loaded with RTLD_GLOBAL before pyfuse3, these definitions are found first when pyfuse3's own references are bound;
 * they adjust the operation table, and one request, answer what needs no Python, and call libfuse's real functions.
 *
 * Invariants:
 *  - One session per process, as in pyfuse3.  `mfs_session` is set only while libfuse's object lives: it is cleared
 *    before the real fuse_session_destroy runs, so no function here can reach a freed session.
 *  - All state here is read and written with the GIL held: pyfuse3 calls session_new, session_destroy and
 *    (through process_buf) init with the GIL.  Only the write(2) of notifications runs without it, on values
 *    copied before.
 *  - The table handed on is a private copy of pyfuse3's; libfuse copies it again.
 *  - A request that Python has to answer (file locks, ranges, flags, statx) is parked in a slot.  Python knows it by
 *    slot and generation, never by a pointer; a number whose slot was answered, or used again, is refused.  A slot's
 *    request is valid from park() to mfs_unpark(), and mfs_unpark() comes before every reply, as replying frees the
 *    request.
 *    What is still parked when the session ends is answered (ENOTCONN) before libfuse frees what those requests point
 *    to.
 *  - Nothing but the module's PyInit and the functions in libfuse's place is visible outside: the module is in the
 *    process's global scope, where other libraries' names would meet ours.
 *
 * To add an operation: put its function into the mfs_wrap_... of its file; `mfs_inner` has pyfuse3's, if that has to be
 * called.
 */
#ifndef MATRIXFS_EXTENSION_H
#define MATRIXFS_EXTENSION_H

#define FUSE_USE_VERSION 312
#define PY_SSIZE_T_CLEAN
#define _GNU_SOURCE
#include <Python.h>

#include <fuse_lowlevel.h>
#include <stdint.h>

/* From the kernel's fuse.h; older headers lack the newer ones. */
#define OPCODE_GETATTR 3u
#define OPCODE_SETATTR 4u
#define OPCODE_OPEN 14u
#define OPCODE_READ 15u
#define OPCODE_WRITE 16u
#define OPCODE_RELEASE 18u
#define OPCODE_GETXATTR 22
#define OPCODE_INIT 26u
#define OPCODE_CREATE 35u
#define OPCODE_TMPFILE 51u
#define OPCODE_STATX 52u

struct request_header { /* struct fuse_in_header */
	uint32_t len;
	uint32_t opcode;
	uint64_t unique;
	uint64_t node;
	uint32_t uid, gid, pid, extensions;
};

struct notify_header {
	uint32_t len;
	int32_t code; /* the field is called error in replies */
	uint64_t unique;
};

_Static_assert(sizeof(struct request_header) == 40, "wire format of struct fuse_in_header");
_Static_assert(sizeof(struct notify_header) == 16, "wire format of struct fuse_out_header");

/* What a file handle's number tells; matrixfs/fuse/handles.py has the same. */
#define READ_ONLY_HANDLE (1ull << 62)
#define INODE_HANDLE (1ull << 61) /* no handle but an inode's number: the kernel opened it without asking */
#define APPEND_HANDLE (1ull << 60) /* a WRITE to the end of the file */
#define TOLD_HANDLE (1ull << 59)   /* a WRITE, and so this is told of it */

#pragma GCC visibility push(hidden)

/* ---- session.c ---- */

struct mfs_agreed {
	unsigned minor, capable, want, max_write, max_readahead;
	int clears_privileges;
};

extern struct fuse_session *mfs_session;
extern struct fuse_lowlevel_ops mfs_inner;
extern struct mfs_agreed mfs_negotiated;

void *mfs_real(const char *name);
int mfs_current_fd(void);

/* ---- parked.c ---- */

extern PyObject *mfs_on_interrupted;
extern uint32_t mfs_parked;

fuse_req_t mfs_unpark(uint64_t number);
void mfs_answer_all(int error);
void mfs_hand_over(fuse_req_t request, PyObject **handler, int operation, const char *format, ...);
PyObject *mfs_set_handler(PyObject **handler, PyObject *request);
PyObject *mfs_set_wanted(int *place, PyObject *wanted);

/* ---- handles.c ---- */

extern int mfs_no_open;

void mfs_name_inode(fuse_ino_t ino, struct fuse_file_info *info);

/* ---- locks.c ---- */

extern PyObject *mfs_on_request;

/* ---- attributes.c ---- */

void mfs_forget_bare(void);
int mfs_answer_bare(const struct fuse_buf *buffer, size_t length, int fd);

/* ---- callers.c ---- */

extern int mfs_is_init_reply;

int mfs_take_over_replies(struct fuse_session *se, const uint32_t *words, size_t length);
void mfs_note_caller(const struct request_header *header, const uint32_t *words, size_t length);

/* ---- statx.c ---- */

void mfs_note_statx(struct request_header *header);

/* ---- of all files: operations for libfuse's table, functions for Python ---- */

void mfs_wrap_attributes(struct fuse_lowlevel_ops *table);
void mfs_wrap_flags(struct fuse_lowlevel_ops *table);
void mfs_wrap_handles(struct fuse_lowlevel_ops *table);
void mfs_wrap_locks(struct fuse_lowlevel_ops *table);
void mfs_wrap_ranges(struct fuse_lowlevel_ops *table);
void mfs_wrap_statx(struct fuse_lowlevel_ops *table);

extern PyMethodDef mfs_attribute_methods[], mfs_caller_methods[], mfs_flag_methods[], mfs_handle_methods[];
extern PyMethodDef mfs_lock_methods[], mfs_notification_methods[], mfs_parked_methods[], mfs_range_methods[];
extern PyMethodDef mfs_session_methods[], mfs_statx_methods[];

#pragma GCC visibility pop

#endif
