/*
 * What pyfuse3 lacks, added beside it (coherence.md 5).
 *
 * This module defines fuse_session_new and fuse_session_destroy.  Loaded with RTLD_GLOBAL before pyfuse3, these
 * definitions are found first when pyfuse3's own references are bound; they adjust the operation table and call
 * libfuse's real functions.
 *
 * Invariants:
 *  - One session per process, as in pyfuse3.  `session` is set only while libfuse's object lives: it is cleared
 *    before the real fuse_session_destroy runs, so no function here can reach a freed session.
 *  - All state below is read and written with the GIL held: pyfuse3 calls session_new, session_destroy and
 *    (through process_buf) init with the GIL.  Only the write(2) of notifications runs without it, on values
 *    copied before.
 *  - The table handed on is a private copy of pyfuse3's; libfuse copies it again.
 *  - File locks: a request that Python has to answer is parked in a slot.  Python knows it by slot and generation,
 *    never by a pointer; a number whose slot was answered, or used again, is refused.  A slot's request is valid from
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
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/uio.h>
#include <unistd.h>

#define REQUEST_BYTES 1048576u
#define REQUEST_BYTES_TEXT "1048576"
#define BACKGROUND_MAX 256u
#define CONGESTION 192u

/* From the kernel's fuse.h; older headers lack the newer ones. */
#define NOTIFY_INVAL_ENTRY 3
#define NOTIFY_INC_EPOCH 8
#define NOTIFY_PRUNE 9
#define EXPIRE_ONLY 1u

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

_Static_assert(sizeof(struct notify_prune) == 16, "wire format of struct fuse_notify_prune_out");
_Static_assert(sizeof(void *) >= sizeof(uint64_t), "slot numbers travel as the data pointer of an interrupt");
_Static_assert(sizeof(struct notify_header) == 16, "wire format of struct fuse_out_header");
_Static_assert(sizeof(struct notify_entry) == 16, "wire format of struct fuse_notify_inval_entry_out");

typedef struct fuse_session *(*session_new_fn)(struct fuse_args *, const struct fuse_lowlevel_ops *, size_t, void *);
typedef void (*session_destroy_fn)(struct fuse_session *);

/* What a file handle's number tells; matrixfs/fuse/handles.py has the same. */
#define READ_ONLY_HANDLE (1ull << 62)
#define INODE_HANDLE (1ull << 61) /* no handle but an inode's number: the kernel opened it without asking */
#define APPEND_HANDLE (1ull << 60) /* a WRITE to the end of the file */
#define TOLD_HANDLE (1ull << 59)   /* a WRITE, and so this is told of it */
#define ROOT_HANDLE (1ull << 58)   /* a WRITE of root, who may leave set-id bits */

static struct fuse_session *session;
static struct fuse_lowlevel_ops inner;
static int max_read_requested;
static int no_open;
static PyObject *on_request, *on_interrupted; /* both or none; see set_lock_handlers */
static struct {
	unsigned minor, capable, want, max_write, max_readahead;
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
	want(conn, FUSE_CAP_READDIRPLUS | FUSE_CAP_ASYNC_READ | FUSE_CAP_ASYNC_DIO | FUSE_CAP_CACHE_SYMLINKS, 1);
	/* Dirty pages without a lock (coherence.md 3); set-id bits are the kernel's to clear, by SETATTR; a pipe
	 * costs small requests a second system call and saves large ones nothing, as pyfuse3 copies anyway. */
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

/* ---- file locks ---- */

enum { GETLK, SETLK, FLOCK, FLUSH };

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

/* Hands a request to Python.  It is answered later, or here when Python can't take it. */
static void hand_over(fuse_req_t request, int operation, fuse_ino_t ino, const struct fuse_file_info *info, int type,
		      long long start, long long end, int pid, int wait)
{
	PyGILState_STATE state = PyGILState_Ensure();
	PyObject *callable = on_request, *result;
	uint64_t number;

	if (callable == NULL || (number = park(request)) == 0) {
		fuse_reply_err(request, callable == NULL ? ENOSYS : ENOMEM);
		PyGILState_Release(state);
		return;
	}
	Py_INCREF(callable);
	result = PyObject_CallFunction(callable, "iKKKKiLLii", operation, (unsigned long long)number,
				       (unsigned long long)ino, (unsigned long long)info->fh,
				       (unsigned long long)info->lock_owner, type, start, end, pid, wait);
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

/* The last byte of a range, as the kernel has it: the end of all files for length 0. */
static long long last_byte(const struct flock *lock)
{
	return lock->l_len == 0 ? LLONG_MAX : (long long)lock->l_start + lock->l_len - 1;
}

static void on_getlk(fuse_req_t request, fuse_ino_t ino, struct fuse_file_info *info, struct flock *lock)
{
	hand_over(request, GETLK, ino, info, lock->l_type, lock->l_start, last_byte(lock), lock->l_pid, 0);
}

static void on_setlk(fuse_req_t request, fuse_ino_t ino, struct fuse_file_info *info, struct flock *lock, int sleep)
{
	hand_over(request, SETLK, ino, info, lock->l_type, lock->l_start, last_byte(lock), lock->l_pid, sleep);
}

static void on_flock(fuse_req_t request, fuse_ino_t ino, struct fuse_file_info *info, int operation)
{
	int kind = operation & ~LOCK_NB;
	int type = kind == LOCK_SH ? F_RDLCK : kind == LOCK_EX ? F_WRLCK : F_UNLCK;

	hand_over(request, FLOCK, ino, info, type, 0, LLONG_MAX, fuse_req_ctx(request)->pid,
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
		hand_over(request, FLUSH, ino, info, F_UNLCK, 0, LLONG_MAX, fuse_req_ctx(request)->pid, 0);
	} else if (info->fh & READ_ONLY_HANDLE || inner.flush == NULL) {
		quick_flushes++;
		fuse_reply_err(request, 0);
	} else {
		inner.flush(request, ino, info);
	}
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

/* The file's flags are those of now, after F_SETFL, which no OPEN told of; and who writes is known only here. */
static void tell_write(fuse_req_t request, fuse_ino_t ino, struct fuse_file_info *info)
{
	if (no_open)
		name_inode(ino, info);
	info->fh |= TOLD_HANDLE | (info->flags & O_APPEND ? APPEND_HANDLE : 0);
	if (!info->writepage && fuse_req_ctx(request)->uid == 0)
		info->fh |= ROOT_HANDLE;
}

static void on_write(fuse_req_t request, fuse_ino_t ino, const char *buffer, size_t size, off_t offset,
		     struct fuse_file_info *info)
{
	tell_write(request, ino, info);
	inner.write(request, ino, buffer, size, offset, info);
}

static void on_write_buf(fuse_req_t request, fuse_ino_t ino, struct fuse_bufvec *buffer, off_t offset,
			 struct fuse_file_info *info)
{
	tell_write(request, ino, info);
	inner.write_buf(request, ino, buffer, offset, info);
}

static void wrap_operations(struct fuse_lowlevel_ops *table)
{
	table->init = on_init;
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

static int current_fd(void)
{
	return session == NULL ? -1 : fuse_session_fd(session);
}

PyDoc_STRVAR(usable_doc, "usable() -> bool\n\nWhether libfuse's real functions were found: ask before importing pyfuse3.");

static PyObject *usable(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
	return PyBool_FromLong(real("fuse_session_new") != NULL && real("fuse_session_destroy") != NULL);
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
				  "want (FUSE_CAP bits),\nmax_write and max_readahead in bytes.  All 0 before the first request was served.");

static PyObject *kernel_features(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
	return Py_BuildValue("{s:I,s:I,s:I,s:I,s:I}", "minor", negotiated.minor, "capable", negotiated.capable, "want",
			     negotiated.want, "max_write", negotiated.max_write, "max_readahead",
			     negotiated.max_readahead);
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
	{"reply_err", reply_err, METH_VARARGS, reply_err_doc},
	{"reply_lock", reply_lock, METH_VARARGS, reply_lock_doc},
	{"count_locks", count_locks, METH_VARARGS, count_locks_doc},
	{"lock_counters", lock_counters, METH_NOARGS, lock_counters_doc},
	{"set_no_open", set_no_open, METH_O, set_no_open_doc},
	{"notify_prune", notify_prune, METH_VARARGS, notify_prune_doc},
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
