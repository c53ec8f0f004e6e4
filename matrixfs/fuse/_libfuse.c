/*
 * What pyfuse3 lacks, added beside it (coherence.md 5).
 *
 * This module defines fuse_session_new, fuse_session_destroy and fuse_reply_open.  Loaded with RTLD_GLOBAL before pyfuse3, these
 * definitions are found first when pyfuse3's own references are bound; they adjust the operation table and call
 * libfuse's real functions.
 *
 * Invariants:
 *  - One session per process, as in pyfuse3.  `session` is set only while libfuse's object lives: it is cleared
 *    before the real fuse_session_destroy runs, so no function here can reach a freed session.
 *  - All state below is read and written with the GIL held: pyfuse3 calls session_new, session_destroy and
 *    (through process_buf) init with the GIL.  Only the write(2) of notifications runs without it, on values
 *    copied before.
 *  - The table handed on is a private copy of pyfuse3's; libfuse copies it again.  Nothing here is freed.
 *
 * To add an operation (issue "Locks": getlk, setlk, flock, no-open): put its function into wrap_operations, and
 * save the inner one in `inner` if it has to be called.
 */
#define FUSE_USE_VERSION 312
#define PY_SSIZE_T_CLEAN
#define _GNU_SOURCE
#include <Python.h>

#include <dlfcn.h>
#include <errno.h>
#include <fuse_lowlevel.h>
#include <limits.h>
#include <stdint.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#define REQUEST_BYTES 1048576u
#define REQUEST_BYTES_TEXT "1048576"
#define BACKGROUND_MAX 256u
#define CONGESTION 192u

/* From the kernel's fuse.h; older headers lack the newer ones. */
#define NOTIFY_INVAL_ENTRY 3
#define NOTIFY_INC_EPOCH 8
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

_Static_assert(sizeof(struct notify_header) == 16, "wire format of struct fuse_out_header");
_Static_assert(sizeof(struct notify_entry) == 16, "wire format of struct fuse_notify_inval_entry_out");

typedef struct fuse_session *(*session_new_fn)(struct fuse_args *, const struct fuse_lowlevel_ops *, size_t, void *);
typedef void (*session_destroy_fn)(struct fuse_session *);
typedef int (*reply_open_fn)(fuse_req_t, const struct fuse_file_info *);

static struct fuse_session *session;
static struct fuse_lowlevel_ops inner;
static int max_read_requested;
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
	 * open with O_TRUNC (the handler truncates; mounts without OPEN calls will have to clear it). */
	want(conn, FUSE_CAP_AUTO_INVAL_DATA | FUSE_CAP_PARALLEL_DIROPS | FUSE_CAP_ATOMIC_O_TRUNC, 1);
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

static void wrap_operations(struct fuse_lowlevel_ops *table)
{
	table->init = on_init;
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

	if (se == session)
		session = NULL;
	if (real_destroy != NULL)
		real_destroy(se);
}

/*
 * In libfuse's place for pyfuse3, whose FileInfo has no "noflush" (kernel >= 5.16: close(2) sends no FLUSH, which is
 * worth a third of an open-read-close).  We never use "nonseekable", so it carries the wish.
 */
__attribute__((visibility("default"))) int fuse_reply_open(fuse_req_t req, const struct fuse_file_info *info)
{
	static reply_open_fn real_reply;
	struct fuse_file_info reply = *info;

	if (real_reply == NULL)
		real_reply = (reply_open_fn)real("fuse_reply_open");
	if (real_reply == NULL)
		return -ENOSYS; /* can't be: usable() said so */
	if (reply.nonseekable) {
		reply.nonseekable = 0;
		reply.noflush = 1;
	}
	return real_reply(req, &reply);
}

/* ---- for Python ---- */

static int current_fd(void)
{
	return session == NULL ? -1 : fuse_session_fd(session);
}

PyDoc_STRVAR(usable_doc, "usable() -> bool\n\nWhether libfuse's real functions were found: ask before importing pyfuse3.");

static PyObject *usable(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
	return PyBool_FromLong(real("fuse_session_new") != NULL && real("fuse_session_destroy") != NULL &&
			       real("fuse_reply_open") != NULL);
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

static PyMethodDef methods[] = {
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
