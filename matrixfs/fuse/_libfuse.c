/*
 * What pyfuse3 lacks, added beside it (coherence.md 5).
 *
 * This module defines fuse_session_new, fuse_session_receive_buf, fuse_session_process_buf and fuse_session_destroy.
 * Loaded with RTLD_GLOBAL before pyfuse3, these definitions are found first when pyfuse3's own references are bound; they
 * adjust the operation table, and one request, answer what needs no Python, and call libfuse's real functions.
 *
 * Invariants:
 *  - One session per process, as in pyfuse3.  `session` is set only while libfuse's object lives: it is cleared
 *    before the real fuse_session_destroy runs, so no function here can reach a freed session.
 *  - All state below is read and written with the GIL held: pyfuse3 calls session_new, session_destroy and
 *    (through process_buf) init with the GIL.  Only the write(2) of notifications runs without it, on values
 *    copied before.
 *  - The table handed on is a private copy of pyfuse3's; libfuse copies it again.
 *  - A request that Python has to answer (file locks, ranges, flags) is parked in a slot.  Python knows it by slot
 *    and generation, never by a pointer; a number whose slot was answered, or used again, is refused.  A slot's request is valid from
 *    park() to unpark(), and unpark() comes before every reply, as replying frees the request.  What is still parked
 *    when the session ends is answered (ENOTCONN) before libfuse frees what those requests point to.
 *
 * To add an operation: put its function into wrap_operations; `inner` has pyfuse3's, if that has to be called.
 */
#define FUSE_USE_VERSION 312
#define PY_SSIZE_T_CLEAN
#define _GNU_SOURCE
#include <Python.h>

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <limits.h>
#include <linux/fs.h>
#include <linux/limits.h>
#include <poll.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/uio.h>
#include <sys/xattr.h>
#include <unistd.h>

#define REQUEST_BYTES 1048576u
#define REQUEST_BYTES_TEXT "1048576"
#define BACKGROUND_MAX 256u
#define CONGESTION 192u

/* From the kernel's fuse.h; older headers lack the newer ones. */
#define OPCODE_SETATTR 4u
#define OPCODE_OPEN 14u
#define OPCODE_WRITE 16u
#define OPCODE_GETXATTR 22
#define OPCODE_INIT 26u
#define OPCODE_CREATE 35u
#define OPCODE_TMPFILE 51u
#define NOTIFY_INVAL_ENTRY 3
#define NOTIFY_INC_EPOCH 8
#define NOTIFY_PRUNE 9
#define EXPIRE_ONLY 1u

struct getxattr_request { /* struct fuse_in_header and fuse_getxattr_in; the name follows */
	uint32_t len;
	uint32_t opcode;
	uint64_t unique;
	uint64_t node;
	uint32_t uid, gid, pid, extensions;
	uint32_t size, padding;
};

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

struct notify_entry {
	uint64_t parent;
	uint32_t name_length;
	uint32_t flags;
};

struct notify_prune {
	uint32_t count;
	uint32_t padding;
	uint64_t spare;
};

_Static_assert(sizeof(struct request_header) == 40, "wire format of struct fuse_in_header");
_Static_assert(sizeof(struct getxattr_request) == 48, "wire format of struct fuse_in_header and fuse_getxattr_in");
_Static_assert(sizeof(struct notify_prune) == 16, "wire format of struct fuse_notify_prune_out");
_Static_assert(sizeof(void *) >= sizeof(uint64_t), "slot numbers travel as the data pointer of an interrupt");
_Static_assert(sizeof(struct notify_header) == 16, "wire format of struct fuse_out_header");
_Static_assert(sizeof(struct notify_entry) == 16, "wire format of struct fuse_notify_inval_entry_out");

typedef struct fuse_session *(*session_new_fn)(struct fuse_args *, const struct fuse_lowlevel_ops *, size_t, void *);
typedef int (*receive_fn)(struct fuse_session *, struct fuse_buf *);
typedef void (*session_destroy_fn)(struct fuse_session *);

/* What a file handle's number tells; matrixfs/fuse/handles.py has the same. */
#define READ_ONLY_HANDLE (1ull << 62)
#define INODE_HANDLE (1ull << 61) /* no handle but an inode's number: the kernel opened it without asking */
#define APPEND_HANDLE (1ull << 60) /* a WRITE to the end of the file */
#define TOLD_HANDLE (1ull << 59)   /* a WRITE, and so this is told of it */

static struct fuse_session *session;
static struct fuse_lowlevel_ops inner;
static int max_read_requested;
static int no_open;
static PyObject *on_request, *on_interrupted; /* both or none; see set_lock_handlers */
static PyObject *on_range;		      /* see set_range_handler */
static PyObject *on_flags;		      /* see set_flag_handler */
static struct {
	unsigned minor, capable, want, max_write, max_readahead;
	int clears_privileges;
} negotiated;

/*
 * libfuse's own function behind ours.  The version is that of pyfuse3's reference; RTLD_NEXT would look behind this
 * module only, but libfuse3 may have been loaded before it: hence the handle.
 */
static void *real(const char *name)
{
	void *library = dlopen("libfuse3.so.3", RTLD_NOW | RTLD_NOLOAD);
	void *found = NULL;

	if (library != NULL) {
		found = dlvsym(library, name, "FUSE_3.0");
		dlclose(library); /* this module is linked against it: it stays */
	}
	return found;
}

static int current_fd(void)
{
	return session == NULL ? -1 : fuse_session_fd(session);
}

static void want(struct fuse_conn_info *conn, unsigned flags, int wanted)
{
	if (wanted)
		conn->want |= flags & conn->capable; /* more than capable is an error to libfuse */
	else
		conn->want &= ~flags;
}

static void on_init(void *userdata, struct fuse_conn_info *conn)
{
	if (inner.init != NULL)
		inner.init(userdata, conn);

	conn->max_write = REQUEST_BYTES; /* libfuse derives max_pages from it */
	if (max_read_requested)
		conn->max_read = REQUEST_BYTES; /* libfuse insists on the same figure here and in the mount option */
	if (conn->max_readahead < REQUEST_BYTES)
		conn->max_readahead = REQUEST_BYTES; /* the kernel takes the smaller of this and the device's */
	conn->max_background = BACKGROUND_MAX;
	conn->congestion_threshold = CONGESTION;
	conn->time_gran = 1;

	/* A changed mtime drops the pages (coherence.md 2); many lookups in one directory at once; one call for
	 * open with O_TRUNC, where there is a call for open at all: else the kernel truncates by SETATTR. */
	want(conn, FUSE_CAP_AUTO_INVAL_DATA | FUSE_CAP_PARALLEL_DIROPS, 1);
	want(conn, FUSE_CAP_ATOMIC_O_TRUNC, !no_open);
	/* Without them the kernel keeps locks to this node. */
	want(conn, FUSE_CAP_POSIX_LOCKS | FUSE_CAP_FLOCK_LOCKS, on_request != NULL);
	/* Where the kernel checks access control lists, it sends the umask: a directory's default list goes before it. */
	want(conn, FUSE_CAP_DONT_MASK, (conn->want & FUSE_CAP_POSIX_ACL) != 0);
	want(conn, FUSE_CAP_READDIRPLUS | FUSE_CAP_ASYNC_READ | FUSE_CAP_ASYNC_DIO | FUSE_CAP_CACHE_SYMLINKS, 1);
	/* Dirty pages without a lock (coherence.md 3); set-id bits without saying whose write it was (what we want of that is
	 * FUSE_HANDLE_KILLPRIV_V2); a pipe costs small requests a second system call and saves large ones nothing, as pyfuse3
	 * copies anyway. */
	want(conn, FUSE_CAP_WRITEBACK_CACHE | FUSE_CAP_HANDLE_KILLPRIV | FUSE_CAP_SPLICE_READ, 0);

	negotiated.minor = conn->proto_minor;
	negotiated.capable = conn->capable;
	negotiated.want = conn->want;
	negotiated.max_write = conn->max_write;
	negotiated.max_readahead = conn->max_readahead;
}

/* ---- parked requests ---- */

struct slot {
	fuse_req_t request; /* NULL: free */
	uint32_t generation;
	uint32_t next_free; /* of a free slot: index of the next one */
};

#define NO_SLOT UINT32_MAX
#define SLOTS_FIRST 64u
#define SLOTS_MAX (1u << 20)

static struct slot *slots; /* grows, never shrinks */
static uint32_t slots_made, first_free = NO_SLOT, parked;

static int grow_slots(void)
{
	uint32_t wanted = slots_made ? slots_made * 2 : SLOTS_FIRST, index;
	struct slot *grown = wanted > SLOTS_MAX ? NULL : realloc(slots, wanted * sizeof(*slots));

	if (grown == NULL)
		return -1;
	slots = grown;
	for (index = slots_made; index < wanted; index++)
		slots[index] = (struct slot){.next_free = index + 1 < wanted ? index + 1 : NO_SLOT};
	first_free = slots_made;
	slots_made = wanted;
	return 0;
}

/* Parks a request; its number, or 0 when there is no memory (no number is 0: generations begin with 1). */
static uint64_t park(fuse_req_t request)
{
	struct slot *slot;
	uint32_t index;

	if (first_free == NO_SLOT && grow_slots() < 0)
		return 0;
	index = first_free;
	slot = &slots[index];
	first_free = slot->next_free;
	slot->request = request;
	if (++slot->generation == 0)
		slot->generation = 1;
	parked++;
	return (uint64_t)slot->generation << 32 | index;
}

/* Takes a request out of its slot, to be answered by the caller; NULL when the number is not, or no more, a request's. */
static fuse_req_t unpark(uint64_t number)
{
	uint32_t index = (uint32_t)number;
	fuse_req_t request;

	if (index >= slots_made || slots[index].generation != (uint32_t)(number >> 32) || slots[index].request == NULL)
		return NULL;
	request = slots[index].request;
	slots[index].request = NULL;
	slots[index].next_free = first_free;
	first_free = index;
	parked--;
	return request;
}

static void answer_all(int error)
{
	uint32_t index;
	fuse_req_t request;

	for (index = 0; index < slots_made; index++) {
		request = unpark((uint64_t)slots[index].generation << 32 | index);
		if (request != NULL)
			fuse_reply_err(request, error);
	}
}

/*
 * A request with a waiting task was interrupted.  libfuse holds the request's mutex here, so it must not be answered
 * here: Python's callable only cancels the task.
 */
static void on_interrupt(fuse_req_t Py_UNUSED(request), void *data)
{
	PyGILState_STATE state = PyGILState_Ensure();

	if (on_interrupted != NULL) {
		PyObject *callable = on_interrupted, *result;

		Py_INCREF(callable); /* it may set other handlers */
		result = PyObject_CallFunction(callable, "K", (unsigned long long)(uintptr_t)data);
		if (result == NULL)
			PyErr_WriteUnraisable(callable);
		Py_XDECREF(result);
		Py_DECREF(callable);
	}
	PyGILState_Release(state);
}

/* Calls callable(operation, number, ...); the rest as Py_BuildValue makes a tuple of it. */
static PyObject *call_with(PyObject *callable, int operation, uint64_t number, const char *format, va_list rest)
{
	PyObject *first = Py_BuildValue("(iK)", operation, (unsigned long long)number);
	PyObject *others = Py_VaBuildValue(format, rest);
	PyObject *arguments = first == NULL || others == NULL ? NULL : PySequence_Concat(first, others);
	PyObject *result = arguments == NULL ? NULL : PyObject_CallObject(callable, arguments);

	Py_XDECREF(first);
	Py_XDECREF(others);
	Py_XDECREF(arguments);
	return result;
}

/* Hands a request to Python, whose callable is in `handler`.  It is answered later, or here when Python can't take it. */
static void hand_over(fuse_req_t request, PyObject **handler, int operation, const char *format, ...)
{
	PyGILState_STATE state = PyGILState_Ensure();
	PyObject *callable = *handler, *result;
	uint64_t number;
	va_list rest;

	if (callable == NULL || (number = park(request)) == 0) {
		fuse_reply_err(request, callable == NULL ? ENOSYS : ENOMEM);
		PyGILState_Release(state);
		return;
	}
	Py_INCREF(callable);
	va_start(rest, format);
	result = call_with(callable, operation, number, format, rest);
	va_end(rest);
	if (result == NULL) {
		PyErr_WriteUnraisable(callable);
		request = unpark(number); /* unless it was answered before the exception */
		if (request != NULL)
			fuse_reply_err(request, EIO);
	} else if (number >> 32 == slots[(uint32_t)number].generation && slots[(uint32_t)number].request != NULL) {
		/* Not answered yet.  If the interrupt has come already, this calls on_interrupt. */
		fuse_req_interrupt_func(request, on_interrupt, (void *)(uintptr_t)number);
	}
	Py_XDECREF(result);
	Py_DECREF(callable);
	PyGILState_Release(state);
}

/* ---- file locks ---- */

enum { GETLK, SETLK, FLOCK, FLUSH };

static void hand_over_lock(fuse_req_t request, int operation, fuse_ino_t ino, const struct fuse_file_info *info,
			   int type, long long start, long long end, int pid, int wait)
{
	hand_over(request, &on_request, operation, "(KKKiLLii)", (unsigned long long)ino, (unsigned long long)info->fh,
		  (unsigned long long)info->lock_owner, type, start, end, pid, wait);
}

/* The last byte of a range, as the kernel has it: the end of all files for length 0. */
static long long last_byte(const struct flock *lock)
{
	return lock->l_len == 0 ? LLONG_MAX : (long long)lock->l_start + lock->l_len - 1;
}

static void on_getlk(fuse_req_t request, fuse_ino_t ino, struct fuse_file_info *info, struct flock *lock)
{
	hand_over_lock(request, GETLK, ino, info, lock->l_type, lock->l_start, last_byte(lock), lock->l_pid, 0);
}

static void on_setlk(fuse_req_t request, fuse_ino_t ino, struct fuse_file_info *info, struct flock *lock, int sleep)
{
	hand_over_lock(request, SETLK, ino, info, lock->l_type, lock->l_start, last_byte(lock), lock->l_pid, sleep);
}

static void on_flock(fuse_req_t request, fuse_ino_t ino, struct fuse_file_info *info, int operation)
{
	int kind = operation & ~LOCK_NB;
	int type = kind == LOCK_SH ? F_RDLCK : kind == LOCK_EX ? F_WRLCK : F_UNLCK;

	hand_over_lock(request, FLOCK, ino, info, type, 0, LLONG_MAX, fuse_req_ctx(request)->pid,
		       (operation & LOCK_NB) == 0);
}

/*
 * Which inodes have locks that this mount set: a counting filter that Python keeps.  A false "maybe" costs a call to
 * Python, a false "none" can't be.
 */
#define FILTER_SIZE 4096u

static uint32_t filter[FILTER_SIZE];
static unsigned long long quick_flushes;

static uint32_t *filter_at(uint64_t ino)
{
	return &filter[(ino * 0x9E3779B97F4A7C15u) >> 52];
}

_Static_assert(FILTER_SIZE == 1u << (64 - 52), "the filter's index has 12 bits");

/*
 * A descriptor is closed.  One that can't write has no error to report, so without locks there is nothing to do:
 * it is answered here, as most files are opened for reading.
 */
static void on_flush(fuse_req_t request, fuse_ino_t ino, struct fuse_file_info *info)
{
	if (*filter_at(ino) != 0) {
		hand_over_lock(request, FLUSH, ino, info, F_UNLCK, 0, LLONG_MAX, fuse_req_ctx(request)->pid, 0);
	} else if (info->fh & READ_ONLY_HANDLE || inner.flush == NULL) {
		quick_flushes++;
		fuse_reply_err(request, 0);
	} else {
		inner.flush(request, ino, info);
	}
}

/* ---- extended attributes ---- */

/*
 * Nodes without any, as long as this mount holds their locks: Python says so, and takes it back (kernel_caches.py).  The
 * kernel asks for security.capability before every write(2); that is answered here.  One node per place: what is pushed
 * out costs a call to Python, no more.
 */
#define BARE_BITS 16

static uint64_t bare[1u << BARE_BITS];
static unsigned long long quick_attributes;

static uint64_t *bare_at(uint64_t node)
{
	return &bare[(node * 0x9E3779B97F4A7C15u) >> (64 - BARE_BITS)];
}

/* Whether an attribute can have this name; for others Python knows the error. */
static int is_attribute(const char *name)
{
	static const char *const spaces[] = {"user.", "trusted.", "security."};
	size_t length;

	for (size_t i = 0; i < sizeof(spaces) / sizeof(*spaces); i++) {
		length = strlen(spaces[i]);
		if (strncmp(name, spaces[i], length) == 0)
			return name[length] != '\0';
	}
	return strcmp(name, "system.posix_acl_access") == 0 || strcmp(name, "system.posix_acl_default") == 0;
}

/* Answers a question for an attribute of a bare node; whether it was one. */
static int answer_bare(const struct fuse_buf *buffer, size_t length, int fd)
{
	const struct getxattr_request *request = buffer->mem;
	const char *name = (const char *)(request + 1);
	struct notify_header reply = {.len = sizeof(reply), .code = -ENODATA};

	if (length <= sizeof(*request) || buffer->flags & FUSE_BUF_IS_FD || request->opcode != OPCODE_GETXATTR ||
	    *bare_at(request->node) != request->node || memchr(name, '\0', length - sizeof(*request)) == NULL ||
	    !is_attribute(name))
		return 0;
	reply.unique = request->unique;
	if (write(fd, &reply, sizeof(reply)) < 0 && errno != ENOENT) /* ENOENT: the caller is gone */
		return 0;
	quick_attributes++;
	return 1;
}

/*
 * In libfuse's place for pyfuse3, which waits for the next request in Python's event loop: some 30 us.  Behind a question
 * that was answered here comes the write(2) it was for, so we look for that a moment.  The event loop has its turn after
 * a few of them: locks that are given up and the lease live there.
 */
#define NEXT_REQUEST_NS 50000
#define ANSWERS_AT_ONCE 16

__attribute__((visibility("default"))) int fuse_session_receive_buf(struct fuse_session *se, struct fuse_buf *buffer)
{
	static receive_fn real_receive;
	struct pollfd ready = {.fd = current_fd(), .events = POLLIN};
	const struct timespec moment = {.tv_nsec = NEXT_REQUEST_NS};
	int length, answers;

	if (real_receive == NULL)
		real_receive = (receive_fn)real("fuse_session_receive_buf");
	for (answers = 0; answers < ANSWERS_AT_ONCE; answers++) {
		length = real_receive(se, buffer);
		if (length <= 0 || se != session || !answer_bare(buffer, (size_t)length, ready.fd))
			return length;
		if (ppoll(&ready, 1, &moment, NULL) <= 0)
			break;
	}
	return -EINTR; /* pyfuse3 waits again */
}

static void on_listxattr(fuse_req_t request, fuse_ino_t node, size_t size)
{
	if (*bare_at(node) != node) {
		inner.listxattr(request, node, size);
		return;
	}
	quick_attributes++;
	if (size == 0)
		fuse_reply_xattr(request, 0);
	else
		fuse_reply_buf(request, NULL, 0);
}

/*
 * pyfuse3 acts on the flags itself, with a getxattr before the setxattr: another node may come between.  So it sees
 * none, and Python finds them in front of the name, plus one (attribute_requests.py).
 */
static void on_setxattr(fuse_req_t request, fuse_ino_t node, const char *name, const char *value, size_t size, int flags)
{
	char marked[XATTR_NAME_MAX + 2];
	size_t length = strlen(name);

	if (length > XATTR_NAME_MAX || (flags & ~(XATTR_CREATE | XATTR_REPLACE)) != 0) {
		fuse_reply_err(request, length > XATTR_NAME_MAX ? ERANGE : EINVAL);
		return;
	}
	marked[0] = (char)(flags + 1);
	memcpy(marked + 1, name, length + 1);
	inner.setxattr(request, node, marked, value, size, 0);
}

/* ---- without OPEN ("localflocks", coherence.md 6) ---- */

static void refuse_open(fuse_req_t request, fuse_ino_t Py_UNUSED(ino), struct fuse_file_info *Py_UNUSED(info))
{
	fuse_reply_err(request, ENOSYS); /* once: the kernel then opens, and closes, by itself */
}

static void refuse_create(fuse_req_t request, fuse_ino_t Py_UNUSED(parent), const char *Py_UNUSED(name),
			  mode_t Py_UNUSED(mode), struct fuse_file_info *Py_UNUSED(info))
{
	fuse_reply_err(request, ENOSYS); /* once: the kernel sends LOOKUP and MKNOD */
}

/* pyfuse3 passes on nothing but fh: let it say which inode. */
static void name_inode(fuse_ino_t ino, struct fuse_file_info *info)
{
	if (info->fh == 0)
		info->fh = ino | INODE_HANDLE;
}

static void read_inode(fuse_req_t request, fuse_ino_t ino, size_t size, off_t offset, struct fuse_file_info *info)
{
	name_inode(ino, info);
	inner.read(request, ino, size, offset, info);
}

static void fsync_inode(fuse_req_t request, fuse_ino_t ino, int datasync, struct fuse_file_info *info)
{
	name_inode(ino, info);
	inner.fsync(request, ino, datasync, info);
}

/* ---- writing ---- */

/* The file's flags are those of now, after F_SETFL, which no OPEN told of. */
static void tell_write(fuse_ino_t ino, struct fuse_file_info *info)
{
	if (no_open)
		name_inode(ino, info);
	info->fh |= TOLD_HANDLE | (info->flags & O_APPEND ? APPEND_HANDLE : 0);
}

static void on_write(fuse_req_t request, fuse_ino_t ino, const char *buffer, size_t size, off_t offset,
		     struct fuse_file_info *info)
{
	tell_write(ino, info);
	inner.write(request, ino, buffer, size, offset, info);
}

static void on_write_buf(fuse_req_t request, fuse_ino_t ino, struct fuse_bufvec *buffer, off_t offset,
			 struct fuse_file_info *info)
{
	tell_write(ino, info);
	inner.write_buf(request, ino, buffer, offset, info);
}

/* ---- ranges of a file ---- */

enum { FALLOCATE, LSEEK, COPY_FILE_RANGE };

static void on_fallocate(fuse_req_t request, fuse_ino_t ino, int mode, off_t offset, off_t length,
			 struct fuse_file_info *info)
{
	name_inode(ino, info);
	hand_over(request, &on_range, FALLOCATE, "(KiLL)", (unsigned long long)info->fh, mode, (long long)offset,
		  (long long)length);
}

static void on_lseek(fuse_req_t request, fuse_ino_t ino, off_t offset, int whence, struct fuse_file_info *info)
{
	name_inode(ino, info);
	hand_over(request, &on_range, LSEEK, "(KLi)", (unsigned long long)info->fh, (long long)offset, whence);
}

static void on_copy_file_range(fuse_req_t request, fuse_ino_t source, off_t at, struct fuse_file_info *reading,
			       fuse_ino_t target, off_t to, struct fuse_file_info *writing, size_t length,
			       int Py_UNUSED(flags))
{
	name_inode(source, reading);
	name_inode(target, writing);
	hand_over(request, &on_range, COPY_FILE_RANGE, "(KKLLL)", (unsigned long long)reading->fh,
		  (unsigned long long)writing->fh, (long long)at, (long long)to,
		  length > (size_t)LLONG_MAX ? LLONG_MAX : (long long)length);
}

/* ---- flags and projects of files ---- */

/*
 * What the kernel asks by itself for ioctl(2) with these commands (fs/fuse/ioctl.c); the version, which it passes on with
 * room for a long, though it is an int; and fstrim(8).  The order is that of matrixfs/fuse/flag_requests.py.
 */
static const struct {
	unsigned int command;
	size_t in, out; /* bytes */
} known_ioctls[] = {
	{FS_IOC_GETFLAGS, 0, sizeof(uint32_t)},
	{FS_IOC_SETFLAGS, sizeof(uint32_t), 0},
	{FS_IOC_FSGETXATTR, 0, sizeof(struct fsxattr)},
	{FS_IOC_FSSETXATTR, sizeof(struct fsxattr), 0},
	{FS_IOC_GETVERSION, 0, sizeof(uint32_t)},
	{FITRIM, sizeof(struct fstrim_range), sizeof(struct fstrim_range)},
};

static void on_ioctl(fuse_req_t request, fuse_ino_t ino, unsigned int command, void *Py_UNUSED(argument),
		     struct fuse_file_info *Py_UNUSED(info), unsigned Py_UNUSED(flags), const void *input,
		     size_t input_bytes, size_t output_bytes)
{
	const struct fuse_ctx *context = fuse_req_ctx(request);
	size_t at, in;

	for (at = 0; at < sizeof(known_ioctls) / sizeof(*known_ioctls); at++) {
		in = known_ioctls[at].in;
		if (command == known_ioctls[at].command && input_bytes >= in && output_bytes >= known_ioctls[at].out) {
			hand_over(request, &on_flags, (int)at, "(KIiy#)", (unsigned long long)ino,
				  (unsigned int)context->uid, (int)context->pid, in ? (const char *)input : "",
				  (Py_ssize_t)in);
			return;
		}
	}
	fuse_reply_err(request, ENOTTY);
}

/*
 * "Now" for both times is what whoever may write a file may set, where it is append-only too.  pyfuse3 doesn't tell, so
 * Python finds it where a device's number would be, which no request changes.
 */
static void on_setattr(fuse_req_t request, fuse_ino_t ino, struct stat *wanted, int fields, struct fuse_file_info *info)
{
	const int both = FUSE_SET_ATTR_ATIME_NOW | FUSE_SET_ATTR_MTIME_NOW;

	wanted->st_rdev = (fields & both) == both;
	inner.setattr(request, ino, wanted, fields, info);
}

/* ---- set-id bits and capabilities ---- */

/*
 * FUSE_HANDLE_KILLPRIV_V2: the kernel leaves it to us to take away set-user-ID, set-group-ID and security.capability, and
 * so needn't ask for the latter before every write(2).  libfuse (3.14) knows neither that nor the flags of requests that
 * say whether the caller may keep set-id bits.  So the bit is put into its reply to INIT, on the way out, and the flags are
 * read here.
 */
#define INIT_KILLPRIV_V2 (1u << 28)
#define SETATTR_KILLS (1u << 11)
#define OPEN_KILLS (1u << 0)
#define WRITE_OF_PAGES (1u << 0)
#define WRITE_KILLS (1u << 2)
#define INIT_FLAGS 3 /* index of 32-bit words behind the header, in request and reply */
#define SETATTR_VALID 0
#define OPEN_FLAGS 1
#define CREATE_FLAGS 3
#define WRITE_FLAGS 5

typedef int (*custom_io_fn)(struct fuse_session *, const struct fuse_custom_io *, int);

static int wants_privileges = 1; /* see set_clears_privileges */
static int is_init_reply;

/*
 * The request that libfuse was handed last.  pyfuse3 runs its handler in the same breath, up to the first checkpoint: so
 * long this is that handler's (py_caller).
 */
enum { LOSES, KEEPS, NOT_TOLD };

static struct {
	int set_id; /* of LOSES, KEEPS, NOT_TOLD: what happens to set-id bits */
	int of_pages;
	uint32_t pid, gid;
} caller;

static ssize_t write_reply(int fd, struct iovec *parts, int count, void *Py_UNUSED(userdata))
{
	const struct notify_header *header = parts[0].iov_base;

	if (is_init_reply && count > 1 && header->code == 0 && parts[1].iov_len > INIT_FLAGS * sizeof(uint32_t)) {
		((uint32_t *)parts[1].iov_base)[INIT_FLAGS] |= INIT_KILLPRIV_V2; /* on do_init's stack */
		negotiated.clears_privileges = 1;
	}
	return writev(fd, parts, count);
}

static ssize_t read_request(int fd, void *buffer, size_t length, void *Py_UNUSED(userdata))
{
	return read(fd, buffer, length);
}

/* Whether the reply to this INIT is to pass write_reply. */
static int take_over_replies(struct fuse_session *se, const uint32_t *words, size_t length)
{
	static const struct fuse_custom_io io = {.writev = write_reply, .read = read_request};
	custom_io_fn set = (custom_io_fn)real("fuse_session_custom_io");

	return wants_privileges && set != NULL && se == session && length > INIT_FLAGS * sizeof(*words) &&
	       words[INIT_FLAGS] & INIT_KILLPRIV_V2 && set(se, &io, current_fd()) == 0;
}

static int has_flag(const uint32_t *words, size_t length, size_t index, uint32_t flag)
{
	return length >= (index + 1) * sizeof(*words) && (words[index] & flag) != 0;
}

/* Keeps what libfuse doesn't pass on of a request; `length` is that of the words behind its header. */
static void note_caller(const struct request_header *header, const uint32_t *words, size_t length)
{
	int loses = 0;

	caller.of_pages = 0;
	caller.pid = header->pid;
	caller.gid = header->gid;
	switch (header->opcode) {
	case OPCODE_SETATTR: /* other kernels set the mode */
		loses = has_flag(words, length, SETATTR_VALID, SETATTR_KILLS);
		break;
	case OPCODE_WRITE: /* other kernels have set the mode, but around their pages they tell as here */
		loses = has_flag(words, length, WRITE_FLAGS, WRITE_KILLS);
		caller.of_pages = has_flag(words, length, WRITE_FLAGS, WRITE_OF_PAGES);
		break;
	case OPCODE_OPEN:
	case OPCODE_CREATE:
		loses = has_flag(words, length, header->opcode == OPCODE_OPEN ? OPEN_FLAGS : CREATE_FLAGS, OPEN_KILLS);
		caller.set_id = !negotiated.clears_privileges ? NOT_TOLD : loses ? LOSES : KEEPS;
		return;
	default:
		caller.set_id = NOT_TOLD;
		return;
	}
	caller.set_id = loses ? LOSES : KEEPS;
}

/* ---- all requests ---- */

typedef void (*process_buf_fn)(struct fuse_session *, const struct fuse_buf *);

/*
 * In libfuse's place for pyfuse3.  libfuse (3.14) doesn't know TMPFILE.  It and its reply look like CREATE's, with the
 * name "/", which no file can have: so that is what it becomes.
 */
__attribute__((visibility("default"))) void fuse_session_process_buf(struct fuse_session *se,
								      const struct fuse_buf *buffer)
{
	static process_buf_fn real_process;
	struct request_header *header = buffer->flags & FUSE_BUF_IS_FD ? NULL : buffer->mem;

	if (real_process == NULL)
		real_process = (process_buf_fn)real("fuse_session_process_buf");
	if (header != NULL && buffer->size >= sizeof(*header)) {
		const uint32_t *words = (const uint32_t *)(header + 1);
		size_t length = buffer->size - sizeof(*header);

		if (header->opcode == OPCODE_TMPFILE)
			header->opcode = OPCODE_CREATE;
		note_caller(header, words, length);
		is_init_reply = header->opcode == OPCODE_INIT && take_over_replies(se, words, length);
	}
	real_process(se, buffer); /* it is there: usable() said so */
	is_init_reply = 0;
}

static void wrap_operations(struct fuse_lowlevel_ops *table)
{
	table->init = on_init;
	if (on_range != NULL) {
		table->fallocate = on_fallocate;
		table->lseek = on_lseek;
		table->copy_file_range = on_copy_file_range;
	}
	if (on_flags != NULL)
		table->ioctl = on_ioctl;
	table->setattr = table->setattr == NULL ? NULL : on_setattr;
	table->listxattr = table->listxattr == NULL ? NULL : on_listxattr;
	table->setxattr = table->setxattr == NULL ? NULL : on_setxattr;
	table->write = table->write == NULL ? NULL : on_write;
	table->write_buf = table->write_buf == NULL ? NULL : on_write_buf;
	if (on_request != NULL) {
		table->getlk = on_getlk;
		table->setlk = on_setlk;
		table->flock = on_flock;
		table->flush = on_flush;
	}
	if (no_open) {
		table->open = refuse_open;
		table->flush = refuse_open;
		table->create = refuse_create;
		table->read = table->read == NULL ? NULL : read_inode;
		table->fsync = table->fsync == NULL ? NULL : fsync_inode;
	}
}

/* In libfuse's place for pyfuse3.  NULL is its answer to any failure. */
__attribute__((visibility("default"))) struct fuse_session *
fuse_session_new(struct fuse_args *args, const struct fuse_lowlevel_ops *ops, size_t op_size, void *userdata)
{
	session_new_fn real_new = (session_new_fn)real("fuse_session_new");
	struct fuse_lowlevel_ops table;
	struct fuse_session *made;

	if (real_new == NULL)
		return NULL; /* can't be: usable() said so before pyfuse3 was loaded */
	memset(&table, 0, sizeof(table));
	memcpy(&table, ops, op_size < sizeof(table) ? op_size : sizeof(table));
	memset(&negotiated, 0, sizeof(negotiated));
	memset(bare, 0, sizeof(bare));
	max_read_requested = fuse_opt_add_arg(args, "-omax_read=" REQUEST_BYTES_TEXT) == 0;
	inner = table;
	wrap_operations(&table);
	made = real_new(args, &table, sizeof(table), userdata);
	if (made != NULL)
		session = made;
	return made;
}

/* In libfuse's place for pyfuse3: forget the session before it is freed. */
__attribute__((visibility("default"))) void fuse_session_destroy(struct fuse_session *se)
{
	session_destroy_fn real_destroy = (session_destroy_fn)real("fuse_session_destroy");

	if (se == session) {
		answer_all(ENOTCONN);
		session = NULL;
	}
	if (real_destroy != NULL)
		real_destroy(se);
}

/* ---- for Python ---- */

PyDoc_STRVAR(usable_doc, "usable() -> bool\n\nWhether libfuse's real functions were found: ask before importing pyfuse3.");

static PyObject *usable(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
	return PyBool_FromLong(real("fuse_session_new") != NULL && real("fuse_session_receive_buf") != NULL &&
			       real("fuse_session_process_buf") != NULL && real("fuse_session_destroy") != NULL);
}

PyDoc_STRVAR(session_fd_doc, "session_fd() -> int\n\nThe session's file descriptor; -1 without a mounted session, or when pyfuse3 "
			     "was loaded first and so\nits session was made without this module.");

static PyObject *py_session_fd(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
	return PyLong_FromLong(current_fd());
}

PyDoc_STRVAR(inc_epoch_doc, "notify_inc_epoch() -> int\n\nHave every name of the mount looked up again on next use.  Never blocks.\n"
			    "Returns 0 or an errno: EINVAL from kernels before 6.16, EBADF without a session.");

static PyObject *notify_inc_epoch(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
	struct notify_header header = {.len = sizeof(header), .code = NOTIFY_INC_EPOCH, .unique = 0};
	int fd = current_fd();

	if (fd < 0)
		return PyLong_FromLong(EBADF);
	/* One counter in the kernel: quicker than letting go of the GIL. */
	return PyLong_FromLong(write(fd, &header, sizeof(header)) < 0 ? errno : 0);
}

PyDoc_STRVAR(expire_entry_doc, "notify_expire_entry(parent: int, name: bytes) -> int\n\nHave one name looked up again on next use, without "
			       "unhashing it: a directory that is\nsomebody's working directory keeps its path.  Blocks while the kernel "
			       "holds the parent's lock: call it in a worker thread.\nReturns 0 or an errno: ENOENT when the kernel doesn't "
			       "know it.");

static PyObject *notify_expire_entry(PyObject *Py_UNUSED(module), PyObject *args)
{
	unsigned long long parent;
	Py_buffer name;
	struct notify_header header;
	struct notify_entry entry;
	char terminator = '\0';
	int fd, result = 0;

	if (!PyArg_ParseTuple(args, "Ky*:notify_expire_entry", &parent, &name))
		return NULL;
	fd = current_fd();
	if (fd < 0 || name.len > NAME_MAX) {
		PyBuffer_Release(&name);
		return PyLong_FromLong(fd < 0 ? EBADF : ENAMETOOLONG);
	}
	header = (struct notify_header){
		.len = (uint32_t)(sizeof(header) + sizeof(entry) + (size_t)name.len + 1), .code = NOTIFY_INVAL_ENTRY};
	entry = (struct notify_entry){.parent = parent, .name_length = (uint32_t)name.len, .flags = EXPIRE_ONLY};
	struct iovec parts[] = {
		{&header, sizeof(header)}, {&entry, sizeof(entry)}, {name.buf, (size_t)name.len}, {&terminator, 1}};
	Py_BEGIN_ALLOW_THREADS /* the buffer stays pinned until its release */
	if (writev(fd, parts, 4) < 0)
		result = errno;
	Py_END_ALLOW_THREADS
	PyBuffer_Release(&name);
	return PyLong_FromLong(result);
}

PyDoc_STRVAR(kernel_features_doc, "kernel_features() -> dict[str, int]\n\nWhat kernel and libfuse agreed on: minor (protocol 7.minor), capable and "
				  "want (FUSE_CAP bits),\nmax_write and max_readahead in bytes, clears_privileges (FUSE_HANDLE_KILLPRIV_V2).  All 0 "
				  "before the first request was served.");

static PyObject *kernel_features(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
	return Py_BuildValue("{s:I,s:I,s:I,s:I,s:I,s:i}", "minor", negotiated.minor, "capable", negotiated.capable, "want",
			     negotiated.want, "max_write", negotiated.max_write, "max_readahead",
			     negotiated.max_readahead, "clears_privileges", negotiated.clears_privileges);
}

PyDoc_STRVAR(set_clears_privileges_doc,
	     "set_clears_privileges(wanted: bool) -> None\n\nFrom the next session on: False refuses FUSE_HANDLE_KILLPRIV_V2, as "
	     "if the kernel didn't have it.");

static PyObject *set_clears_privileges(PyObject *Py_UNUSED(module), PyObject *wanted)
{
	int truth = PyObject_IsTrue(wanted);

	if (truth < 0)
		return NULL;
	wants_privileges = truth;
	Py_RETURN_NONE;
}

PyDoc_STRVAR(caller_doc,
	     "caller() -> tuple[bool | None, bool, int, int]\n\nOf the request whose handler has begun, before its first checkpoint: "
	     "whether it keeps\nset-id bits (None: not told), whether it is pages of a mapping, and the caller's pid and gid.");

static PyObject *py_caller(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
	return Py_BuildValue("(OOII)", caller.set_id == NOT_TOLD ? Py_None : caller.set_id == KEEPS ? Py_True : Py_False,
			     caller.of_pages ? Py_True : Py_False, caller.pid, caller.gid);
}

PyDoc_STRVAR(set_lock_handlers_doc,
	     "set_lock_handlers(request, interrupted) -> None\n\nHave file locks answered by Python, from the next session on; "
	     "None, None: by the kernel, for this node alone.\nrequest(operation, number, ino, fh, owner, type, start, end, pid, "
	     "wait) answers at once or later by reply_err or reply_lock;\ninterrupted(number) must not answer itself.");

static PyObject *set_lock_handlers(PyObject *Py_UNUSED(module), PyObject *args)
{
	PyObject *request, *interrupted, *old_request = on_request, *old_interrupted = on_interrupted;

	if (!PyArg_ParseTuple(args, "OO:set_lock_handlers", &request, &interrupted))
		return NULL;
	if ((request == Py_None) != (interrupted == Py_None) ||
	    (request != Py_None && (!PyCallable_Check(request) || !PyCallable_Check(interrupted)))) {
		PyErr_SetString(PyExc_TypeError, "two callables, or None and None");
		return NULL;
	}
	on_request = request == Py_None ? NULL : Py_NewRef(request);
	on_interrupted = interrupted == Py_None ? NULL : Py_NewRef(interrupted);
	Py_XDECREF(old_request); /* last: what it frees may call anything */
	Py_XDECREF(old_interrupted);
	Py_RETURN_NONE;
}

PyDoc_STRVAR(set_range_handler_doc,
	     "set_range_handler(request) -> None\n\nHave fallocate, SEEK_DATA, SEEK_HOLE and copy_file_range answered by Python, "
	     "from the next session on; None: by nobody.\nrequest(operation, number, ...) answers at once or later by reply_err, "
	     "reply_seek or reply_written.");

static PyObject *set_handler(PyObject **handler, PyObject *request)
{
	PyObject *old = *handler;

	if (request != Py_None && !PyCallable_Check(request)) {
		PyErr_SetString(PyExc_TypeError, "a callable, or None");
		return NULL;
	}
	*handler = request == Py_None ? NULL : Py_NewRef(request);
	Py_XDECREF(old); /* last: what it frees may call anything */
	Py_RETURN_NONE;
}

static PyObject *set_range_handler(PyObject *Py_UNUSED(module), PyObject *request)
{
	return set_handler(&on_range, request);
}

PyDoc_STRVAR(set_flag_handler_doc,
	     "set_flag_handler(request) -> None\n\nHave ioctl(2) for flags and projects of files answered by Python, from the next "
	     "session on; None: by nobody.\nrequest(operation, number, node, uid, pid, argument) answers at once or later by "
	     "reply_ioctl or reply_err.");

static PyObject *set_flag_handler(PyObject *Py_UNUSED(module), PyObject *request)
{
	return set_handler(&on_flags, request);
}

PyDoc_STRVAR(reply_err_doc, "reply_err(number: int, error: int) -> int\n\nAnswer a parked request with an errno, 0 for success.\nReturns 0, "
			    "ESRCH when no such request is parked (any more), or the errno of the kernel.");

static PyObject *reply_err(PyObject *Py_UNUSED(module), PyObject *args)
{
	unsigned long long number;
	int error;
	fuse_req_t request;

	if (!PyArg_ParseTuple(args, "Ki:reply_err", &number, &error))
		return NULL;
	request = unpark(number);
	return PyLong_FromLong(request == NULL ? ESRCH : -fuse_reply_err(request, error));
}

PyDoc_STRVAR(reply_lock_doc,
	     "reply_lock(number: int, type: int, start: int, end: int, pid: int) -> int\n\nAnswer F_GETLK: F_UNLCK, or the type and "
	     "range of a lock in the way (end: its last byte).  Returns as reply_err.");

static PyObject *reply_lock(PyObject *Py_UNUSED(module), PyObject *args)
{
	unsigned long long number;
	long long start, end;
	int type, pid;
	fuse_req_t request;
	struct flock lock = {.l_whence = SEEK_SET};

	if (!PyArg_ParseTuple(args, "KiLLi:reply_lock", &number, &type, &start, &end, &pid))
		return NULL;
	if (start < 0 || end < start) {
		PyErr_SetString(PyExc_ValueError, "no range");
		return NULL;
	}
	request = unpark(number);
	if (request == NULL)
		return PyLong_FromLong(ESRCH);
	lock.l_type = (short)type;
	lock.l_start = start;
	lock.l_len = end == LLONG_MAX ? 0 : end - start + 1;
	lock.l_pid = pid;
	return PyLong_FromLong(-fuse_reply_lock(request, &lock));
}

PyDoc_STRVAR(reply_seek_doc, "reply_seek(number: int, offset: int) -> int\n\nAnswer lseek.  Returns as reply_err.");

static PyObject *reply_seek(PyObject *Py_UNUSED(module), PyObject *args)
{
	unsigned long long number;
	long long offset;
	fuse_req_t request;

	if (!PyArg_ParseTuple(args, "KL:reply_seek", &number, &offset))
		return NULL;
	request = unpark(number);
	return PyLong_FromLong(request == NULL ? ESRCH : -fuse_reply_lseek(request, (off_t)offset));
}

PyDoc_STRVAR(reply_written_doc, "reply_written(number: int, count: int) -> int\n\nAnswer copy_file_range with the bytes copied.  Returns as "
				"reply_err.");

static PyObject *reply_written(PyObject *Py_UNUSED(module), PyObject *args)
{
	unsigned long long number;
	unsigned int count;
	fuse_req_t request;

	if (!PyArg_ParseTuple(args, "KI:reply_written", &number, &count))
		return NULL;
	request = unpark(number);
	return PyLong_FromLong(request == NULL ? ESRCH : -fuse_reply_write(request, count));
}

PyDoc_STRVAR(reply_ioctl_doc,
	     "reply_ioctl(number: int, answer: bytes) -> int\n\nAnswer ioctl with success; answer: what it returns.  Returns as "
	     "reply_err.");

static PyObject *reply_ioctl(PyObject *Py_UNUSED(module), PyObject *args)
{
	unsigned long long number;
	const char *answer;
	Py_ssize_t length;
	fuse_req_t request;

	if (!PyArg_ParseTuple(args, "Ky#:reply_ioctl", &number, &answer, &length))
		return NULL;
	request = unpark(number);
	return PyLong_FromLong(request == NULL ? ESRCH : -fuse_reply_ioctl(request, 0, answer, (size_t)length));
}

PyDoc_STRVAR(count_locks_doc, "count_locks(ino: int, change: int) -> None\n\nOne more (1) or one less (-1) reason to have closes of the inode told to "
			      "Python.");

static PyObject *count_locks(PyObject *Py_UNUSED(module), PyObject *args)
{
	unsigned long long ino;
	int change;
	uint32_t *count;

	if (!PyArg_ParseTuple(args, "Ki:count_locks", &ino, &change))
		return NULL;
	count = filter_at(ino);
	if ((change != 1 && change != -1) || (change < 0 && *count == 0)) {
		PyErr_SetString(PyExc_ValueError, "counts by 1 or -1, and not below 0");
		return NULL;
	}
	*count += (uint32_t)change;
	Py_RETURN_NONE;
}

PyDoc_STRVAR(set_bare_doc, "set_bare(node: int, is_bare: bool) -> None\n\nWhether the node is known to have no extended attributes, until the "
			   "next call: then who asks for one\nis answered without Python.");

static PyObject *set_bare(PyObject *Py_UNUSED(module), PyObject *args)
{
	unsigned long long node;
	int is_bare;
	uint64_t *place;

	if (!PyArg_ParseTuple(args, "Kp:set_bare", &node, &is_bare))
		return NULL;
	place = bare_at(node);
	if (is_bare)
		*place = node;
	else if (*place == node)
		*place = 0;
	Py_RETURN_NONE;
}

PyDoc_STRVAR(bare_answers_doc, "bare_answers() -> int\n\nHow many questions for extended attributes were answered without Python.");

static PyObject *bare_answers(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
	return PyLong_FromUnsignedLongLong(quick_attributes);
}

PyDoc_STRVAR(lock_counters_doc, "lock_counters() -> dict[str, int]\n\nparked: requests that Python has to answer; quick_flushes: closes answered "
				"without Python.");

static PyObject *lock_counters(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
	return Py_BuildValue("{s:I,s:K}", "parked", parked, "quick_flushes", quick_flushes);
}

PyDoc_STRVAR(set_no_open_doc, "set_no_open(wanted: bool) -> None\n\nFrom the next session on: have the kernel open and close files by itself "
			      "(coherence.md 6).");

static PyObject *set_no_open(PyObject *Py_UNUSED(module), PyObject *wanted)
{
	int truth = PyObject_IsTrue(wanted);

	if (truth < 0)
		return NULL;
	no_open = truth;
	Py_RETURN_NONE;
}

PyDoc_STRVAR(notify_prune_doc, "notify_prune(node: int) -> int\n\nHave the kernel drop the names of an inode that nobody uses, and so forget it.\n"
			       "Returns 0 or an errno: EINVAL from kernels before 6.18, EBADF without a session.");

static PyObject *notify_prune(PyObject *Py_UNUSED(module), PyObject *args)
{
	unsigned long long node;
	struct {
		struct notify_header header;
		struct notify_prune prune;
		uint64_t node;
	} message = {{sizeof(message), NOTIFY_PRUNE, 0}, {1, 0, 0}, 0};
	int fd = current_fd(), result = 0;

	if (!PyArg_ParseTuple(args, "K:notify_prune", &node))
		return NULL;
	if (fd < 0)
		return PyLong_FromLong(EBADF);
	message.node = node;
	Py_BEGIN_ALLOW_THREADS
	if (write(fd, &message, sizeof(message)) < 0)
		result = errno;
	Py_END_ALLOW_THREADS
	return PyLong_FromLong(result);
}

static PyMethodDef methods[] = {
	{"set_lock_handlers", set_lock_handlers, METH_VARARGS, set_lock_handlers_doc},
	{"set_range_handler", set_range_handler, METH_O, set_range_handler_doc},
	{"set_flag_handler", set_flag_handler, METH_O, set_flag_handler_doc},
	{"reply_err", reply_err, METH_VARARGS, reply_err_doc},
	{"reply_seek", reply_seek, METH_VARARGS, reply_seek_doc},
	{"reply_written", reply_written, METH_VARARGS, reply_written_doc},
	{"reply_ioctl", reply_ioctl, METH_VARARGS, reply_ioctl_doc},
	{"reply_lock", reply_lock, METH_VARARGS, reply_lock_doc},
	{"count_locks", count_locks, METH_VARARGS, count_locks_doc},
	{"lock_counters", lock_counters, METH_NOARGS, lock_counters_doc},
	{"set_bare", set_bare, METH_VARARGS, set_bare_doc},
	{"bare_answers", bare_answers, METH_NOARGS, bare_answers_doc},
	{"set_no_open", set_no_open, METH_O, set_no_open_doc},
	{"notify_prune", notify_prune, METH_VARARGS, notify_prune_doc},
	{"set_clears_privileges", set_clears_privileges, METH_O, set_clears_privileges_doc},
	{"caller", py_caller, METH_NOARGS, caller_doc},
	{"usable", usable, METH_NOARGS, usable_doc},
	{"session_fd", py_session_fd, METH_NOARGS, session_fd_doc},
	{"notify_inc_epoch", notify_inc_epoch, METH_NOARGS, inc_epoch_doc},
	{"notify_expire_entry", notify_expire_entry, METH_VARARGS, expire_entry_doc},
	{"kernel_features", kernel_features, METH_NOARGS, kernel_features_doc},
	{NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
	PyModuleDef_HEAD_INIT,
	.m_name = "_libfuse",
	.m_doc = "What pyfuse3 lacks, added beside it; see matrixfs/fuse/libfuse.py.",
	.m_size = -1, /* one session per process: the state is the process's */
	.m_methods = methods,
};

PyMODINIT_FUNC PyInit__libfuse(void)
{
	return PyModule_Create(&definition);
}
